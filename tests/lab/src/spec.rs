//! What a lab is made of.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Patroni as installed by default.
pub const PATRONI: &str = "4.1.5";
/// The oldest Patroni of the compatibility matrix: Debian 12's own.
pub const PATRONI_OLD: &str = "3.0.2";

/// The plan of a lab. `Spec::default()` is three etcd, three members and nothing else.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Spec {
    /// Patroni's scope.
    pub scope: String,
    /// Where Patroni keeps its state.
    pub store: Store,
    /// How many PostgreSQL members: `pg1`, `pg2`, …
    pub members: usize,
    /// Hosts with a PgBouncer each.
    pub poolers: Vec<Pooler>,
    /// The agent's binary. Without it nothing of pgsquire runs.
    pub agent: Option<PathBuf>,
    /// Do the members run an agent, too, and have Patroni call it?
    pub member_agents: bool,
    /// Does Patroni run the agent's hooks (`before_stop`, `pre_promote`) on the members?
    pub hooks: bool,
    /// Patroni's version; `tests/setup` knows which are there.
    pub patroni: String,
    /// Debian's PgBouncer of the machine, or the newer one.
    pub pgbouncer: PgBouncerBuild,
    /// Patroni's lease, in seconds (20 is its lower limit).
    pub ttl: u32,
    /// Patroni's `loop_wait`, in seconds.
    pub loop_wait: u32,
    /// Patroni's `retry_timeout`, in seconds.
    pub retry_timeout: u32,
    /// More keys of Patroni's dynamic configuration at bootstrap, e.g. `("synchronous_mode", true)`.
    pub dynamic: Vec<(String, serde_json::Value)>,
    /// Tables appended to the configuration of every agent, as TOML.
    pub agent_settings: String,
    /// Lines of the agents' `[[cluster]]` table, as TOML, e.g. `probe = …`.
    pub agent_cluster_settings: String,
    /// Environment of every agent.
    pub agent_env: Vec<(String, String)>,
    /// The lab's folder; a new one in the system's folder for temporary files if not given.
    pub dir: Option<PathBuf>,
    /// Stays up when the program that started it ends. Else the lab ends with it, however that comes about.
    pub stays_up: bool,
    /// How long each step of the start may take.
    pub patience: Duration,
}

impl Default for Spec {
    fn default() -> Self {
        Self {
            scope: "main".into(),
            store: Store::Etcd(3),
            members: 3,
            poolers: Vec::new(),
            agent: None,
            member_agents: true,
            hooks: false,
            patroni: PATRONI.into(),
            pgbouncer: PgBouncerBuild::System,
            ttl: 20,
            loop_wait: 1,
            retry_timeout: 3,
            dynamic: Vec::new(),
            agent_settings: String::new(),
            agent_cluster_settings: String::new(),
            agent_env: Vec::new(),
            dir: None,
            stays_up: false,
            patience: Duration::from_secs(90),
        }
    }
}

impl Spec {
    /// Adds a pooler host.
    pub fn pooler(mut self, pooler: Pooler) -> Self {
        self.poolers.push(pooler);
        self
    }
}

/// Where Patroni keeps its state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Store {
    /// So many etcd servers of the lab: `etcd1`, `etcd2`, …
    Etcd(usize),
    /// A store that somebody else runs.
    Foreign {
        /// Its block in Patroni's configuration, as YAML.
        patroni: String,
        /// Its lines in the agents' `[[cluster]]` table, as TOML.
        agent: String,
    },
}

/// Which PgBouncer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PgBouncerBuild {
    /// The one installed on this machine.
    System,
    /// Debian 13's, put into the cache by `tests/setup matrix`.
    Debian13,
}

/// A host with a PgBouncer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pooler {
    /// The host's name, and the pooler's.
    pub name: String,
    /// The port it listens on (shifted if the machine needs that).
    pub port: u16,
    /// Entries of `[databases]` and where each must lead. All open the database `app`.
    pub routes: Vec<(String, Target)>,
    /// Who moves it.
    pub follow: Follow,
    /// More lines of its `[pgbouncer]` section; they win over the lab's.
    pub settings: Vec<(String, String)>,
}

impl Pooler {
    /// A pooler whose only database is `app`, moved by an agent.
    pub fn new(name: &str, port: u16, to: Target) -> Self {
        Self {
            name: name.into(),
            port,
            routes: vec![("app".into(), to)],
            follow: Follow::Agent,
            settings: Vec::new(),
        }
    }

    /// The write pooler: `write`, port 6432, to the primary.
    pub fn write() -> Self {
        Self::new("write", 6432, Target::Primary)
    }

    /// The read pooler: `read`, port 6433, to a replica.
    pub fn read() -> Self {
        Self::new("read", 6433, Target::Replica)
    }

    /// The write pooler of today: `classic`, port 6432, moved by sed and RELOAD from Patroni's callback.
    pub fn classic() -> Self {
        Self::new("classic", 6432, Target::Primary).follow(Follow::Classic)
    }

    /// Says who moves it.
    pub fn follow(mut self, follow: Follow) -> Self {
        self.follow = follow;
        self
    }

    /// Adds a line to its `[pgbouncer]` section.
    pub fn set(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }
}

/// Where a route must lead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Target {
    /// The primary.
    Primary,
    /// A replica.
    Replica,
    /// Any member.
    Any,
}

impl Target {
    /// The agent's word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Replica => "replica",
            Self::Any => "any",
        }
    }
}

/// Who moves a pooler when the primary changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Follow {
    /// An agent on the pooler's host (nobody, if the lab has no agent).
    Agent,
    /// Patroni's `on_role_change` on the members, with sed and RELOAD.
    Classic,
    /// Nobody.
    Nobody,
}
