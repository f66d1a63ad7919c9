//! What the operator configured, as types: the core's part and the shell's.

use pgsquire_core::config::Config;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Everything the operator configured, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// What the core decides by.
    pub core: Config,
    /// `[node] state_dir`.
    pub state_dir: PathBuf,
    /// `[node] timezone`: schedules are read in it.
    pub timezone: String,
    /// `[control] socket`.
    pub control_socket: PathBuf,
    /// `[http]`.
    pub http: HttpSettings,
    /// `[[cluster]]`, in the order of [`Config::clusters`].
    pub clusters: Vec<ClusterSettings>,
    /// `[patroni]`.
    pub patroni: Option<PatroniSettings>,
    /// `[postgres]`.
    pub postgres: Option<PostgresSettings>,
    /// `[[pgbouncer]]`, in the order of [`Config::poolers`].
    pub poolers: Vec<PoolerSettings>,
    /// `[archive]`.
    pub archive: Option<ArchiveSettings>,
    /// `[metrics]`.
    pub metrics: MetricsSettings,
    /// `[telemetry]`.
    pub telemetry: TelemetrySettings,
}

impl Settings {
    /// Files whose content is secret: keys, passwords, tokens.
    pub fn secret_files(&self) -> Vec<&Path> {
        let mut all: Vec<&Path> = Vec::new();
        for c in &self.clusters {
            all.extend(c.tls.key.as_deref());
            all.extend(c.store.password_file());
            all.extend(c.token_file.as_deref());
            all.extend(c.probe.as_ref().and_then(|p| p.password_file.as_deref()));
        }
        all.extend(self.patroni.as_ref().and_then(|p| p.tls.key.as_deref()));
        all.extend(self.postgres.as_ref().and_then(|p| p.password_file.as_deref()));
        all.extend(self.poolers.iter().filter_map(|p| p.password_file.as_deref()));
        all.extend(self.http.tls_key.as_deref());
        all
    }
}

/// Files for TLS towards somebody.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TlsFiles {
    /// `tls_ca`: whom to trust.
    pub ca: Option<PathBuf>,
    /// `tls_cert`: our certificate.
    pub cert: Option<PathBuf>,
    /// `tls_key`: its key.
    pub key: Option<PathBuf>,
}

/// One `[[cluster]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterSettings {
    /// `scope`, or `scope/group`.
    pub name: String,
    /// Patroni's scope.
    pub scope: String,
    /// Patroni's namespace, with a slash at both ends.
    pub namespace: String,
    /// Citus group.
    pub group: Option<u32>,
    /// Where the truth about the leader comes from.
    pub store: Store,
    /// TLS towards the store.
    pub tls: TlsFiles,
    /// Consul's token.
    pub token_file: Option<PathBuf>,
    /// A direct login to the members.
    pub probe: Option<ProbeSettings>,
}

/// A store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Store {
    /// etcd, version 3.
    Etcd(EtcdSettings),
    /// Consul.
    Consul(ConsulSettings),
    /// ZooKeeper.
    ZooKeeper(ZooKeeperSettings),
    /// None: the members' REST API alone, at `patroni_hosts` and where those say.
    Members(MembersSettings),
}

/// How the members are asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MembersSettings {
    /// How many hosts ask them, this one included.
    pub pollers: u32,
}

impl Store {
    /// Holds the password of the login.
    pub fn password_file(&self) -> Option<&Path> {
        match self {
            Store::Etcd(etcd) => etcd.password_file.as_deref(),
            Store::Consul(_) | Store::Members(_) => None,
            Store::ZooKeeper(zookeeper) => zookeeper.password_file.as_deref(),
        }
    }
}

/// How to reach etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdSettings {
    /// Addresses, with their scheme.
    pub endpoints: Vec<String>,
    /// Login.
    pub username: Option<String>,
    /// Holds the password.
    pub password_file: Option<PathBuf>,
}

/// How to reach Consul; its token is [`ClusterSettings::token_file`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsulSettings {
    /// Addresses, with their scheme.
    pub endpoints: Vec<String>,
}

/// How to reach ZooKeeper.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ZooKeeperSettings {
    /// `host:port`.
    pub endpoints: Vec<String>,
    /// The node that all paths begin below, `/a/b`; empty: the root.
    pub chroot: String,
    /// Login of the scheme `digest`.
    pub username: Option<String>,
    /// Holds the password.
    pub password_file: Option<PathBuf>,
}

/// `probe` and `probe_password_file`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeSettings {
    /// Connection parameters without a host.
    pub conninfo: String,
    /// Holds the password.
    pub password_file: Option<PathBuf>,
}

/// `[patroni]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PatroniSettings {
    /// Base address of its REST API, without a slash at the end.
    pub url: String,
    /// TLS towards it.
    pub tls: TlsFiles,
}

/// `[postgres]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresSettings {
    /// Connection string.
    pub conninfo: String,
    /// Holds the password.
    pub password_file: Option<PathBuf>,
}

/// One `[[pgbouncer]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolerSettings {
    /// Its name in our words.
    pub name: String,
    /// Its ini file.
    pub ini: PathBuf,
    /// Connection string of its console; without a dbname it means `pgbouncer`.
    pub console: String,
    /// Holds the console's password.
    pub password_file: Option<PathBuf>,
}

/// `[http]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpSettings {
    /// `host:port`.
    pub listen: String,
    /// `host:port` of HAProxy's agent check.
    pub agent_check: Option<String>,
    /// Our certificate.
    pub tls_cert: Option<PathBuf>,
    /// Its key.
    pub tls_key: Option<PathBuf>,
    /// Clients must show a certificate of this authority.
    pub tls_client_ca: Option<PathBuf>,
}

impl Default for HttpSettings {
    fn default() -> Self {
        HttpSettings {
            listen: "0.0.0.0:8009".to_owned(),
            agent_check: None,
            tls_cert: None,
            tls_key: None,
            tls_client_ca: None,
        }
    }
}

/// `[archive]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArchiveSettings {
    /// Which program.
    pub tool: ArchiveTool,
    /// Its name for the cluster.
    pub stanza: Option<String>,
    /// Its configuration.
    pub config: Option<PathBuf>,
    /// Longest wait for one file.
    pub timeout: Duration,
    /// `[[archive.backup]]`.
    pub backups: Vec<BackupSettings>,
}

/// `tool`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArchiveTool {
    /// pgBackRest.
    PgBackRest,
    /// WAL-G.
    WalG,
}

/// One `[[archive.backup]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupSettings {
    /// How much.
    pub kind: BackupKind,
    /// When, as cron writes it.
    pub schedule: String,
    /// From where.
    pub from: BackupFrom,
}

/// `kind`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackupKind {
    /// Everything.
    Full,
    /// What changed since the last full one.
    Diff,
    /// What changed since the last one.
    Incr,
}

/// `from`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackupFrom {
    /// The primary.
    Primary,
    /// A replica if there is one.
    PreferReplica,
    /// A replica.
    Replica,
}

/// `[metrics]`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MetricsSettings {
    /// `host:port`; none: on the HTTP listener.
    pub listen: Option<String>,
    /// `[[metrics.source]]`.
    pub sources: Vec<SourceSettings>,
}

/// One `[[metrics.source]]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceSettings {
    /// Its name.
    pub name: String,
    /// Its page.
    pub url: String,
    /// Longest wait for the page.
    pub timeout: Duration,
    /// Labels to add.
    pub labels: Vec<(String, String)>,
    /// Names to leave out, as regular expressions.
    pub drop: Vec<String>,
}

/// `[telemetry]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TelemetrySettings {
    /// Filter directive.
    pub log: String,
    /// Where to send traces.
    pub otlp_endpoint: Option<String>,
}

impl Default for TelemetrySettings {
    fn default() -> Self {
        TelemetrySettings { log: "info".to_owned(), otlp_endpoint: None }
    }
}
