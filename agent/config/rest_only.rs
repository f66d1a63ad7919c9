//! What needs a store, asked for where no store is followed.

use super::cluster::Clusters;
use super::reader::{Item, Table};
use pgsquire_core::config::{ClusterConfig, Fence, SwitchConfig};

const WHY: &str =
    "is followed by its members' REST API alone, and without a store no agent can tell another one anything";

/// Refuses a drain, a strict fence and elected backups that are asked for in so many words, if this host's own cluster has no
/// store, or none of its clusters has. (Where another one has a store they are for that one.)
pub(super) fn check(root: &Table<'_>, switch: Option<(&Table<'_>, &SwitchConfig)>, clusters: &Clusters) {
    let Some(cluster) = without_store(clusters) else { return };
    let refuse = |item: Item<'_>, what: &str, help: &str| {
        item.error_help(format!("{what} needs a store: {} {WHY}", cluster.name), help);
    };
    if let Some((table, read)) = switch {
        if let Some(item) = table.item("drain").filter(|_| read.drain) {
            refuse(item, "a drain before a planned stop", "leave it out, or write drain = false");
        }
        if let Some(item) = table.item("fence").filter(|_| read.fence == Fence::Strict) {
            refuse(item, "a strict fence", "leave it out, or write fence = \"off\"");
        }
    }
    let archive = root.item("archive").filter(Item::is_table).and_then(Item::table);
    if let Some(item) = archive.and_then(|archive| archive.item("backup")) {
        let help = "leave [[archive.backup]] out, and let cron on one host run `pgsquire backup run`";
        refuse(item, "electing who makes a backup", help);
    }
}

/// The cluster because of which they are refused.
fn without_store(clusters: &Clusters) -> Option<&ClusterConfig> {
    let here = clusters.core.iter().find(|cluster| Some(&cluster.name) == clusters.local.as_ref());
    match here {
        Some(here) => Some(here).filter(|here| !here.has_store()),
        None if clusters.core.iter().any(ClusterConfig::has_store) => None,
        None => clusters.core.first(),
    }
}
