//! `[[cluster]]`: which Patroni clusters are followed, and through which store.

use super::file::{conninfo, pair, tls};
use super::reader::{Item, Table};
use super::settings::*;
use super::units;
use pgsquire_core::config::{ClusterConfig, OnDcsLoss, Truth};
use std::path::PathBuf;
use std::time::Duration;

/// So many hosts ask the members, unless the operator says otherwise.
const POLLERS: u32 = 10;

/// All clusters, and what the tables that name one must know.
#[derive(Default)]
pub(super) struct Clusters {
    pub core: Vec<ClusterConfig>,
    pub shell: Vec<ClusterSettings>,
    /// Every table could be read: a name that is not here does not exist.
    pub complete: bool,
    /// The cluster of this host's server.
    pub local: Option<String>,
    /// There is a server on this host.
    pub has_local: bool,
}

impl Clusters {
    /// For people: which names there are.
    pub fn names(&self) -> String {
        let names: Vec<&str> = self.core.iter().map(|c| c.name.as_str()).collect();
        match names.as_slice() {
            [] => "add a [[cluster]] table".to_owned(),
            names => format!("known: {}", names.join(", ")),
        }
    }
}

/// Reads all `[[cluster]]` tables.
pub(super) fn read_all(tables: &[Table<'_>]) -> Clusters {
    let mut all = Clusters { complete: true, ..Clusters::default() };
    for table in tables {
        let Some((core, shell)) = read(table) else {
            all.complete = false;
            continue;
        };
        if all.core.iter().any(|c| c.name == core.name) {
            table.error(format!("there are two clusters `{}`: give each scope once", core.name));
        }
        all.core.push(core);
        all.shell.push(shell);
    }
    all
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Dcs {
    Etcd,
    Consul,
    ZooKeeper,
    Patroni,
}

const STORES: [(&str, Dcs); 4] =
    [("etcd", Dcs::Etcd), ("consul", Dcs::Consul), ("zookeeper", Dcs::ZooKeeper), ("patroni", Dcs::Patroni)];

const LOSSES: [(&str, OnDcsLoss); 3] =
    [("hold", OnDcsLoss::Hold), ("fail-closed", OnDcsLoss::FailClosed), ("confirm", OnDcsLoss::Confirm)];

fn read(table: &Table<'_>) -> Option<(ClusterConfig, ClusterSettings)> {
    let scope = table.parse("scope", scope);
    if !table.has("scope") {
        table.missing("scope", "write the scope of Patroni's configuration");
    }
    let namespace = table.parse("namespace", namespace).unwrap_or_else(|| "/service/".to_owned());
    let group = table.number("group");
    let tls = tls(table);
    let hosts = table.list("patroni_hosts").unwrap_or_default();
    let dcs = dcs(table, !hosts.is_empty());
    // Files for TLS are for the store, where there is one.
    let scheme = if dcs == Some(Dcs::Patroni) { scheme(&tls) } else { "http" };
    let patroni_hosts = addresses_of(&hosts, scheme);
    let store = match dcs {
        Some(Dcs::Patroni) => Store::Members(members(table, &hosts)),
        other => store(table, &tls, other),
    };
    let on_dcs_loss = table.word("on_dcs_loss", &LOSSES).unwrap_or(OnDcsLoss::Confirm);
    let max_fact_age = table.duration("max_fact_age", Duration::from_secs(1));
    let token_file = table.path("token_file");
    let probe = probe(table);
    if !matches!(store, Store::Consul(_) | Store::Members(_)) {
        table.later_so(&["token_file"], ": it is for Consul");
    }
    table.finish();

    let scope = scope?;
    let name = group.map_or_else(|| scope.clone(), |group| format!("{scope}/{group}"));
    let max_fact_age = max_fact_age.unwrap_or(Duration::from_secs(10));
    let truth = match &store {
        Store::Members(MembersSettings { pollers }) => Truth::Members { pollers: *pollers },
        Store::Etcd(_) | Store::Consul(_) | Store::ZooKeeper(_) => Truth::Store,
    };
    let core = ClusterConfig { name: name.clone(), max_fact_age, on_dcs_loss, patroni_hosts, truth };
    let shell = ClusterSettings { name, scope, namespace, group, store, tls, token_file, probe };
    Some((core, shell))
}

fn scope(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains(|c: char| c == '/' || c.is_whitespace() || c.is_control()) {
        return Err(format!("`{text}` is not a scope: it must not be empty or hold a slash or a blank"));
    }
    Ok(text.to_owned())
}

/// Patroni puts slashes around its namespace, whatever was written.
fn namespace(text: &str) -> Result<String, String> {
    let inner = text.trim_matches('/');
    if inner.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Err(format!("`{text}` is not a namespace: it must not hold blanks"));
    }
    Ok(if inner.is_empty() { "/".to_owned() } else { format!("/{inner}/") })
}

/// What `dcs` says. Without it it is etcd, unless only `patroni_hosts` are given.
fn dcs(table: &Table<'_>, has_hosts: bool) -> Option<Dcs> {
    match table.item("dcs") {
        Some(item) => item.word(&STORES),
        None if has_hosts && !table.has("endpoints") => Some(Dcs::Patroni),
        None => Some(Dcs::Etcd),
    }
}

fn scheme(tls: &TlsFiles) -> &'static str {
    if *tls == TlsFiles::default() { "http" } else { "https" }
}

/// The members' REST API instead of a store.
fn members(table: &Table<'_>, hosts: &[Item<'_>]) -> MembersSettings {
    let help = "write patroni_hosts = [\"10.0.0.11:8008\", …]: the REST addresses of some members, the others are found";
    match table.item("patroni_hosts") {
        None => table.missing("patroni_hosts", help),
        Some(item) if hosts.is_empty() && table.list("patroni_hosts").is_some() => {
            item.error_help("no member is given", help);
        }
        Some(_) => {}
    }
    if let Some(item) = table.item("endpoints") {
        let message = "there is no store whose endpoints these could be: this cluster is followed by its members' REST API";
        item.error_help(message, "leave them out, or name the store in `dcs`");
    }
    for item in ["username", "password_file", "token_file"].into_iter().filter_map(|key| table.item(key)) {
        item.error_help(
            "Patroni's REST API is read without a login",
            "leave it out, or name the store in `dcs`",
        );
    }
    let pollers = table.number("pollers");
    if let Some(item) = table.item("pollers").filter(|_| pollers == Some(0)) {
        item.error("this host is one of them: the least is 1");
    }
    MembersSettings { pollers: pollers.filter(|n| *n > 0).unwrap_or(POLLERS) }
}

/// The store.
fn store(table: &Table<'_>, tls: &TlsFiles, dcs: Option<Dcs>) -> Store {
    if let Some(item) = table.item("pollers") {
        item.error_help("this is for a cluster without a store", "leave it out, or write dcs = \"patroni\"");
    }
    match dcs {
        Some(Dcs::Etcd) => Store::Etcd(etcd(table, tls)),
        Some(Dcs::Consul) => Store::Consul(consul(table, tls)),
        Some(Dcs::ZooKeeper) => Store::ZooKeeper(zookeeper(table)),
        // What is wrong is said already, and the stores' endpoints differ in their form: only the login is looked at.
        Some(Dcs::Patroni) | None => {
            let (username, password_file) = login(table);
            table.list("endpoints");
            Store::Etcd(EtcdSettings { endpoints: Vec::new(), username, password_file })
        }
    }
}

fn etcd(table: &Table<'_>, tls: &TlsFiles) -> EtcdSettings {
    let endpoints = http_endpoints(table, tls, 2379);
    let (username, password_file) = login(table);
    EtcdSettings { endpoints, username, password_file }
}

fn consul(table: &Table<'_>, tls: &TlsFiles) -> ConsulSettings {
    for item in ["username", "password_file"].into_iter().filter_map(|key| table.item(key)) {
        item.error_help("Consul has no users", "write the file of its token: token_file = \"…\"");
    }
    ConsulSettings { endpoints: http_endpoints(table, tls, 8500) }
}

/// The `endpoints` of a store that speaks HTTP; without any, the one on this host.
fn http_endpoints(table: &Table<'_>, tls: &TlsFiles, port: u16) -> Vec<String> {
    let scheme = scheme(tls);
    let endpoints = addresses(table, "endpoints", scheme);
    refuse_empty(table, &format!("http://127.0.0.1:{port}"));
    endpoints.unwrap_or_else(|| vec![format!("{scheme}://127.0.0.1:{port}")])
}

/// A chroot belongs to the list, but it may stand behind each address.
fn zookeeper(table: &Table<'_>) -> ZooKeeperSettings {
    const DEFAULT: &str = "127.0.0.1:2181";
    let mut endpoints = Vec::new();
    let mut chroots: Vec<String> = Vec::new();
    for item in table.list("endpoints").unwrap_or_default() {
        let Some((address, chroot)) = item.parse(units::zookeeper_endpoint) else { continue };
        if let Some(other) = chroots.first().filter(|other| **other != chroot) {
            let named =
                |chroot: &str| if chroot.is_empty() { "none".to_owned() } else { format!("`{chroot}`") };
            let message =
                format!("its chroot is {}, that of the first one is {}", named(&chroot), named(other));
            item.error_help(message, "write the same chroot behind every address");
        }
        endpoints.push(address);
        chroots.push(chroot);
    }
    refuse_empty(table, DEFAULT);
    if !table.has("endpoints") {
        endpoints.push(DEFAULT.to_owned());
    }
    let (username, password_file) = login(table);
    ZooKeeperSettings {
        endpoints,
        chroot: chroots.into_iter().next().unwrap_or_default(),
        username,
        password_file,
    }
}

fn refuse_empty(table: &Table<'_>, example: &str) {
    if let Some(item) = table.item("endpoints")
        && table.list("endpoints").is_some_and(|list| list.is_empty())
    {
        item.error_help("no endpoint is given", format!("write endpoints = [\"{example}\"]"));
    }
}

fn login(table: &Table<'_>) -> (Option<String>, Option<PathBuf>) {
    let (username, password_file) = (table.text("username"), table.path("password_file"));
    pair(table, "username", "password_file");
    (username, password_file)
}

/// A list of addresses; one that is wrong is reported and left out.
fn addresses(table: &Table<'_>, key: &'static str, scheme: &str) -> Option<Vec<String>> {
    Some(addresses_of(&table.list(key)?, scheme))
}

fn addresses_of(items: &[Item<'_>], scheme: &str) -> Vec<String> {
    let read = |item: &Item<'_>| item.parse(|text| units::endpoint(text, scheme));
    items.iter().filter_map(read).collect()
}

fn probe(table: &Table<'_>) -> Option<ProbeSettings> {
    let password_file = table.path("probe_password_file");
    if password_file.is_some() && !table.has("probe") {
        table.missing("probe", "`probe_password_file` is of no use without it");
    }
    let conninfo = table.parse("probe", |text| conninfo(text, false))?;
    Some(ProbeSettings { conninfo, password_file })
}
