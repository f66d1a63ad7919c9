//! Tables that are understood and checked, and take effect in a later version: `[archive]` and `[metrics]`.

use super::file::{SOME, listen};
use super::reader::{Item, Table};
use super::settings::*;
use super::units;
use std::time::Duration;

/// `[archive]`.
pub(super) fn archive(root: &Table<'_>) -> Option<ArchiveSettings> {
    let table = root.table("archive")?;
    root.later(&["archive"]);
    let tools = [("pgbackrest", ArchiveTool::PgBackRest), ("wal-g", ArchiveTool::WalG)];
    let settings = ArchiveSettings {
        tool: table.word("tool", &tools).unwrap_or(ArchiveTool::PgBackRest),
        stanza: table.text("stanza"),
        config: table.path("config"),
        timeout: table.duration("timeout", SOME).unwrap_or(Duration::from_secs(60)),
        backups: table.tables("backup").into_iter().filter_map(backup).collect(),
    };
    table.finish();
    Some(settings)
}

fn backup(table: Table<'_>) -> Option<BackupSettings> {
    let kinds = [("full", BackupKind::Full), ("diff", BackupKind::Diff), ("incr", BackupKind::Incr)];
    let sources = [
        ("primary", BackupFrom::Primary),
        ("prefer-replica", BackupFrom::PreferReplica),
        ("replica", BackupFrom::Replica),
    ];
    let kind = table.word("kind", &kinds);
    let schedule = table.parse("schedule", schedule);
    let from = table.word("from", &sources).unwrap_or(BackupFrom::PreferReplica);
    for key in ["kind", "schedule"] {
        if !table.has(key) {
            table.missing(key, "a backup needs kind = \"full\" and schedule = \"0 1 * * 0\"");
        }
    }
    table.finish();
    Some(BackupSettings { kind: kind?, schedule: schedule?, from })
}

/// The five fields of cron. What they hold is checked where schedules are used.
fn schedule(text: &str) -> Result<String, String> {
    if text.split_whitespace().count() != 5 {
        return Err(format!("`{text}` is not a schedule: write the five fields of cron, like 0 1 * * 0"));
    }
    Ok(text.to_owned())
}

/// `[metrics]`.
pub(super) fn metrics(root: &Table<'_>) -> MetricsSettings {
    let Some(table) = root.table("metrics") else { return MetricsSettings::default() };
    let empty_is_none = |text: &str| match text {
        "" => Ok(None),
        text => listen(text).map(Some),
    };
    let metrics = MetricsSettings {
        listen: table.parse("listen", empty_is_none).flatten(),
        sources: table.tables("source").into_iter().filter_map(source).collect(),
    };
    if metrics != MetricsSettings::default() {
        root.later(&["metrics"]);
    }
    table.finish();
    metrics
}

fn source(table: Table<'_>) -> Option<SourceSettings> {
    let name = table.text("name");
    let url = table.parse("url", units::url);
    let timeout = table.duration("timeout", SOME).unwrap_or(Duration::from_secs(2));
    let mut labels = Vec::new();
    if let Some(table) = table.table("labels") {
        for (label, _, item) in table.names() {
            labels.extend(item.string().map(|value| (label.to_owned(), value.to_owned())));
        }
    }
    let text = |item: &Item<'_>| item.string().map(str::to_owned);
    let drop = table.list("drop").unwrap_or_default().iter().filter_map(text).collect();
    for key in ["name", "url"] {
        if !table.has(key) {
            table.missing(key, "a source needs a name and the url of its page");
        }
    }
    table.finish();
    Some(SourceSettings { name: name?, url: url?, timeout, labels, drop })
}
