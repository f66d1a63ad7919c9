//! `[[pgbouncer]]` and its routes.

use super::cluster::Clusters;
use super::file::conninfo;
use super::reader::{Item, Table};
use super::settings::PoolerSettings;
use pgsquire_core::config::{PoolerConfig, Route, RouteTo};
use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

/// All poolers.
#[derive(Default)]
pub(super) struct Poolers {
    pub core: Vec<PoolerConfig>,
    pub shell: Vec<PoolerSettings>,
}

const TARGETS: [(&str, RouteTo); 4] = [
    ("primary", RouteTo::Primary),
    ("replica", RouteTo::Replica),
    ("any", RouteTo::Any),
    ("local", RouteTo::Local),
];

/// Reads all `[[pgbouncer]]` tables.
pub(super) fn read_all(tables: Vec<Table<'_>>, clusters: &Clusters) -> Poolers {
    let mut all = Poolers::default();
    for table in tables {
        let pooler = read(&table, &all, clusters);
        table.finish();
        all.core.push(PoolerConfig {
            name: pooler.0.name.clone(),
            ini: pooler.0.ini.display().to_string(),
            routes: pooler.1,
        });
        all.shell.push(pooler.0);
    }
    all
}

fn read(
    table: &Table<'_>,
    before: &Poolers,
    clusters: &Clusters,
) -> (PoolerSettings, BTreeMap<String, Route>) {
    let settings = PoolerSettings {
        name: table.parse("name", name).unwrap_or_else(|| "pgbouncer".to_owned()),
        ini: table.path("ini").unwrap_or_else(|| PathBuf::from("/etc/pgbouncer/pgbouncer.ini")),
        console: table
            .parse("console", console)
            .unwrap_or_else(|| "host=/var/run/postgresql port=6432 user=pgbouncer".to_owned()),
        password_file: table.path("password_file"),
    };
    unique(table, &settings, before);
    let mut routes = BTreeMap::new();
    if let Some(table) = table.table("routes") {
        for (entry, span, item) in table.names() {
            if let Err(why) = entry_name(entry) {
                table.error_at(entry, span, why);
                continue;
            }
            if let Some(route) = route(item, clusters) {
                routes.insert(entry.to_owned(), route);
            }
        }
    }
    (settings, routes)
}

/// A name that can stand in a URL as it is.
fn name(text: &str) -> Result<String, String> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    if text.is_empty() || !text.bytes().all(plain) {
        return Err(format!("`{text}` is not a name: letters, digits and _ . - only"));
    }
    Ok(text.to_owned())
}

/// PgBouncer reads an entry's name without quotes only, and keeps `pgbouncer` for its console.
fn entry_name(entry: &str) -> Result<(), String> {
    if entry == "pgbouncer" {
        return Err("`pgbouncer` is the console: it cannot be routed".to_owned());
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"_.-".contains(&b);
    if entry == "*" || !entry.is_empty() && entry.bytes().all(plain) {
        return Ok(());
    }
    Err(format!(
        "PgBouncer cannot read an entry named `{entry}` from its file: letters, digits and _ . - only, or *"
    ))
}

fn console(text: &str) -> Result<String, String> {
    let text = conninfo(text, true)?;
    match place(&text) {
        Some((_, ports)) if ports.is_empty() => {
            Err("no port is named: write port=6432, or where this PgBouncer listens".to_owned())
        }
        _ => Ok(text),
    }
}

/// Where a connection string leads.
fn place(conninfo: &str) -> Option<(String, Vec<u16>)> {
    let config: tokio_postgres::Config = conninfo.parse().ok()?;
    Some((format!("{:?} {:?}", config.get_hosts(), config.get_hostaddrs()), config.get_ports().to_vec()))
}

/// Two tables for one process would write over each other's work.
fn unique(table: &Table<'_>, settings: &PoolerSettings, before: &Poolers) {
    let same = |what: &str, other: &PoolerSettings, key: &'static str| {
        let message = format!("[[pgbouncer]] `{}` has this {what} already", other.name);
        match table.item(key) {
            Some(item) => item.error_help(message, "there must be one table per PgBouncer process"),
            None => {
                table.error(format!("two [[pgbouncer]] tables have the same {what}: `{key}` must differ"))
            }
        }
    };
    for other in &before.shell {
        if other.name == settings.name {
            same("name", other, "name");
        }
        if plain(&other.ini) == plain(&settings.ini) {
            same("ini file", other, "ini");
        }
        if place(&other.console).is_some() && place(&other.console) == place(&settings.console) {
            same("console", other, "console");
        }
    }
}

/// A path without `.` and doubled slashes.
fn plain(path: &Path) -> PathBuf {
    path.components().filter(|c| !matches!(c, Component::CurDir)).collect()
}

fn route(item: Item<'_>, clusters: &Clusters) -> Option<Route> {
    if !item.is_table() {
        let to = item.word(&TARGETS)?;
        let cluster = cluster(&item, None, to, clusters)?;
        return Some(Route { to, cluster, max_lag: None, fallback_primary: false });
    }
    let whole = item.again();
    let table = item.table()?;
    let to = table.word("to", &TARGETS);
    if !table.has("to") {
        table.missing("to", "write where it must lead: \"primary\", \"replica\", \"any\" or \"local\"");
    }
    let named = table.item("cluster");
    let max_lag_item = table.item("max_lag");
    let fallback_item = table.item("fallback");
    let max_lag = max_lag_item.as_ref().and_then(Item::size);
    let fallback = fallback_item.as_ref().and_then(|item| item.word(&[("primary", true)]));
    table.finish();
    let to = to?;
    if !matches!(to, RouteTo::Replica | RouteTo::Any) {
        for item in [&max_lag_item, &fallback_item].into_iter().flatten() {
            item.error(format!(
                "this means nothing for a route to \"{to}\": only \"replica\" and \"any\" have it"
            ));
        }
    }
    let cluster = cluster(&whole, named.as_ref(), to, clusters)?;
    Some(Route { to, cluster, max_lag, fallback_primary: fallback.unwrap_or(false) })
}

/// The cluster a route leads into: the one it names, the host's own for `local`, or the only one.
fn cluster(route: &Item<'_>, named: Option<&Item<'_>>, to: RouteTo, clusters: &Clusters) -> Option<String> {
    let name = match named {
        Some(item) => Some((item, item.string()?)),
        None => None,
    };
    if !clusters.complete {
        return None;
    }
    if let Some((item, name)) = name
        && !clusters.core.iter().any(|c| c.name == name)
    {
        item.error_help(format!("there is no [[cluster]] `{name}`"), clusters.names());
        return None;
    }
    if to == RouteTo::Local && !clusters.has_local {
        route.error_help("there is no server on this host to lead to", "add [postgres] or [patroni]");
        return None;
    }
    if to == RouteTo::Local && clusters.local.is_some() {
        if let Some((item, name)) = name.filter(|(_, name)| clusters.local.as_deref() != Some(name)) {
            item.error(format!("this host's server does not belong to `{name}`"));
        }
        return clusters.local.clone();
    }
    match (name, clusters.core.as_slice()) {
        (Some((_, name)), _) => Some(name.to_owned()),
        (None, [only]) => Some(only.name.clone()),
        (None, []) => {
            route.error_help("there is no cluster to lead to", "add a [[cluster]] table");
            None
        }
        (None, _) => {
            let example = format!("write {{ to = \"{to}\", cluster = \"…\" }}; {}", clusters.names());
            route.error_help("there are several clusters: the route must name one", example);
            None
        }
    }
}
