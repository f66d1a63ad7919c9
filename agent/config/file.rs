//! The whole file: every table, and the small ones here.

use super::cluster::{self, Clusters};
use super::glance::{DEFAULT_SOCKET, DEFAULT_STATE_DIR};
use super::problem::Problems;
use super::reader::Table;
use super::settings::*;
use super::{later, pooler, rest_only, units};
use pgsquire_core::config::{Config, Fence, LocalConfig, Mode, SwitchConfig};
use std::path::PathBuf;
use std::time::Duration;
use toml::Spanned;
use toml::de::DeTable;

/// The shortest duration that is more than nothing.
pub(super) const SOME: Duration = Duration::from_millis(1);

/// The longest `drain_timeout`: a quarter of Patroni's default `ttl` of 30 s. In some demotions nobody renews the lease
/// while before_stop runs. (Whether it fits the cluster's real `ttl` is for the daemon to say, which sees it.)
const LONGEST_DRAIN: Duration = Duration::from_millis(7_500);

/// Reads the document. What is wrong goes to `problems`, and a default stands in its place.
pub(super) fn read(document: &Spanned<DeTable<'_>>, host_name: &str, problems: &Problems) -> Settings {
    let root = Table::root(document, problems);
    let mut clusters = cluster::read_all(&root.tables("cluster"));
    let node = Node::read(root.table("node"), host_name);
    let patroni = root.table("patroni").map(patroni);
    let postgres = root.table("postgres").map(postgres);
    let local = local(&root, &clusters, &node, patroni.as_ref(), postgres.is_some());
    clusters.local = local.as_ref().map(|local| local.cluster.clone());
    clusters.has_local = patroni.is_some() || postgres.is_some();
    let poolers = pooler::read_all(root.tables("pgbouncer"), &clusters);
    let switch_table = root.table("switch");
    let switch = switch_table.as_ref().map(switch).unwrap_or_default();
    rest_only::check(&root, switch_table.as_ref().map(|table| (table, &switch)), &clusters);
    let settings = Settings {
        state_dir: node.state_dir,
        timezone: node.timezone,
        control_socket: control_socket(root.table("control")),
        http: root.table("http").map(http).unwrap_or_default(),
        patroni,
        postgres,
        archive: later::archive(&root),
        metrics: later::metrics(&root),
        telemetry: root.table("telemetry").map(telemetry).unwrap_or_default(),
        core: Config {
            node: node.name,
            mode: node.mode,
            clusters: clusters.core,
            local,
            poolers: poolers.core,
            switch,
            mutants: Default::default(),
        },
        clusters: clusters.shell,
        poolers: poolers.shell,
    };
    root.finish();
    settings
}

struct Node {
    name: String,
    mode: Mode,
    state_dir: PathBuf,
    timezone: String,
    cluster: Option<String>,
}

impl Node {
    fn read(table: Option<Table<'_>>, host_name: &str) -> Node {
        let mut node = Node {
            name: host_name.to_owned(),
            mode: Mode::Enforce,
            state_dir: PathBuf::from(DEFAULT_STATE_DIR),
            timezone: "UTC".to_owned(),
            cluster: None,
        };
        let Some(table) = table else { return node };
        let modes = [("enforce", Mode::Enforce), ("observe", Mode::Observe)];
        node.name = table.text("name").unwrap_or(node.name);
        node.mode = table.word("mode", &modes).unwrap_or(node.mode);
        node.state_dir = table.path("state_dir").unwrap_or(node.state_dir);
        node.timezone = table.text("timezone").unwrap_or(node.timezone);
        node.cluster = table.text("cluster");
        table.finish();
        node
    }
}

fn control_socket(table: Option<Table<'_>>) -> PathBuf {
    let default = PathBuf::from(DEFAULT_SOCKET);
    let Some(table) = table else { return default };
    let socket = table.path("socket");
    table.finish();
    socket.unwrap_or(default)
}

/// The server on this host: which cluster it belongs to, and how it is asked.
fn local(
    root: &Table<'_>,
    clusters: &Clusters,
    node: &Node,
    patroni: Option<&PatroniSettings>,
    probe: bool,
) -> Option<LocalConfig> {
    let known = |name: &str| clusters.core.iter().any(|c| c.name == name);
    let cluster = match (&node.cluster, clusters.core.as_slice()) {
        (Some(name), _) if clusters.complete && !known(name) => {
            if let Some(item) = root.table("node").and_then(|t| t.item("cluster")) {
                item.error_help(format!("there is no [[cluster]] `{name}`"), clusters.names());
            }
            return None;
        }
        (Some(name), _) => name.clone(),
        (None, [only]) => only.name.clone(),
        (None, []) => return None,
        (None, _) if patroni.is_none() && !probe => return None,
        (None, _) => {
            let here = if patroni.is_some() { "patroni" } else { "postgres" };
            let message =
                "there are several [[cluster]] tables: which one does this host's server belong to?";
            if let Some(item) = root.item(here) {
                item.error_help(message, "say `cluster = \"…\"` in [node]");
            }
            return None;
        }
    };
    let patroni_url = patroni.map(|p| p.url.clone());
    (patroni.is_some() || probe).then_some(LocalConfig { cluster, patroni_url, probe })
}

fn patroni(table: Table<'_>) -> PatroniSettings {
    let url = table.parse("url", units::url).unwrap_or_else(|| "http://127.0.0.1:8008".to_owned());
    let tls = tls(&table);
    table.finish();
    PatroniSettings { url, tls }
}

/// `tls_ca`, `tls_cert`, `tls_key` of a table.
pub(super) fn tls(table: &Table<'_>) -> TlsFiles {
    let files =
        TlsFiles { ca: table.path("tls_ca"), cert: table.path("tls_cert"), key: table.path("tls_key") };
    pair(table, "tls_cert", "tls_key");
    files
}

/// Two keys that are of no use alone.
pub(super) fn pair(table: &Table<'_>, one: &'static str, other: &'static str) {
    for (here, gone) in [(one, other), (other, one)] {
        if table.has(here) && !table.has(gone) {
            table.missing(gone, &format!("`{here}` is of no use without it"));
        }
    }
}

fn postgres(table: Table<'_>) -> PostgresSettings {
    let default = || "host=/var/run/postgresql dbname=postgres user=postgres".to_owned();
    let conninfo = table.parse("conninfo", |text| conninfo(text, true)).unwrap_or_else(default);
    let password_file = table.path("password_file");
    table.finish();
    PostgresSettings { conninfo, password_file }
}

/// A connection string that can be used as it stands.
pub(super) fn conninfo(text: &str, needs_host: bool) -> Result<String, String> {
    // Before the parser sees it: its words might repeat the secret.
    let lower = text.to_ascii_lowercase();
    if lower.contains("password") || lower.contains("://") && lower.contains('@') {
        return Err("a password does not belong here: secrets come from files, use password_file".to_owned());
    }
    let parsed: tokio_postgres::Config =
        text.parse().map_err(|e: tokio_postgres::Error| match std::error::Error::source(&e) {
            Some(source) => format!("this is not a connection string: {source}"),
            None => format!("this is not a connection string: {e}"),
        })?;
    if needs_host && parsed.get_hosts().is_empty() && parsed.get_hostaddrs().is_empty() {
        return Err("no host is named: write host=NAME, or host=/FOLDER for a unix socket".to_owned());
    }
    Ok(text.to_owned())
}

fn switch(table: &Table<'_>) -> SwitchConfig {
    let default = SwitchConfig::default();
    let fences = [("off", Fence::Off), ("advisory", Fence::Advisory), ("strict", Fence::Strict)];
    let switch = SwitchConfig {
        drain: table.bool("drain").unwrap_or(default.drain),
        drain_timeout: drain_timeout(table).unwrap_or(default.drain_timeout),
        hold_timeout: table.duration("hold_timeout", SOME).unwrap_or(default.hold_timeout),
        failover_hold: table.duration("failover_hold", Duration::ZERO).unwrap_or(default.failover_hold),
        fence: table.word("fence", &fences).unwrap_or(default.fence),
        fence_timeout: table.duration("fence_timeout", SOME).unwrap_or(default.fence_timeout),
        stale_after: table.duration("stale_after", SOME).unwrap_or(default.stale_after),
    };
    table.finish();
    switch
}

fn drain_timeout(table: &Table<'_>) -> Option<Duration> {
    let value = table.duration("drain_timeout", SOME)?;
    if value <= LONGEST_DRAIN {
        return Some(value);
    }
    let message =
        "this is too long: it must not be more than a quarter of Patroni's ttl, 7500ms of the default 30s";
    table.item("drain_timeout")?.error_help(
        message,
        "while before_stop runs the leader's lease may not be renewed; poolers answer within milliseconds, 3s is plenty",
    );
    None
}

/// `host:port` to listen on.
pub(super) fn listen(text: &str) -> Result<String, String> {
    units::host_port(text).map(|(host, port)| units::authority(&host, port))
}

fn http(table: Table<'_>) -> HttpSettings {
    let default = HttpSettings::default();
    let http = HttpSettings {
        listen: table.parse("listen", listen).unwrap_or(default.listen),
        agent_check: table.parse("agent_check", listen),
        tls_cert: table.path("tls_cert"),
        tls_key: table.path("tls_key"),
        tls_client_ca: table.path("tls_client_ca"),
    };
    pair(&table, "tls_cert", "tls_key");
    table.later(&["agent_check"]);
    table.later_so(&["tls_cert", "tls_key", "tls_client_ca"], ": this listener speaks plain HTTP");
    table.finish();
    http
}

fn telemetry(table: Table<'_>) -> TelemetrySettings {
    let default = TelemetrySettings::default();
    let log = |text: &str| match tracing_subscriber::EnvFilter::try_new(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(e) => Err(format!("`{text}` is not a log filter ({e}): write a level, like info or debug")),
    };
    let telemetry = TelemetrySettings {
        log: table.parse("log", log).unwrap_or(default.log),
        otlp_endpoint: table.optional_text("otlp_endpoint"),
    };
    if telemetry.otlp_endpoint.is_some() {
        table.later(&["otlp_endpoint"]);
    }
    table.finish();
    telemetry
}
