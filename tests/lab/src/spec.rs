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
    /// Write down when each hook began and ended, in `hooks.log` of its member? See [`crate::hooks`].
    pub time_hooks: bool,
    /// The agents' `[switch]` table.
    pub switch: Switch,
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
            time_hooks: false,
            switch: Switch::default(),
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

/// What the agents' `[switch]` table says; what is not given here is not in the table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switch {
    /// How long `before_stop` waits for the poolers.
    pub drain_timeout: Option<Duration>,
    /// How long a planned pause lasts at most.
    pub hold_timeout: Option<Duration>,
    /// How long clients are queued after an unplanned loss.
    pub failover_hold: Option<Duration>,
    /// What a promotion waits for.
    pub fence: Option<Fence>,
    /// When links to an old primary are cut.
    pub stale_after: Option<Duration>,
}

impl Switch {
    /// So short that a test can wait for the end of a pause nobody ends. Together they are [`Switch::longest_pause`].
    pub fn short() -> Self {
        let seconds = |n| Some(Duration::from_secs(n));
        Self { hold_timeout: seconds(4), failover_hold: seconds(6), ..Self::default() }
    }

    /// No pool may stay paused for longer, whoever died: with the agent's defaults for what is not given.
    pub fn longest_pause(&self) -> Duration {
        let or = |time: Option<Duration>, seconds| time.unwrap_or(Duration::from_secs(seconds));
        or(self.hold_timeout, 20) + or(self.failover_hold, 45) + Duration::from_secs(1)
    }

    /// As TOML; empty if nothing is given.
    pub(crate) fn table(&self) -> String {
        let times = [
            ("drain_timeout", self.drain_timeout),
            ("hold_timeout", self.hold_timeout),
            ("failover_hold", self.failover_hold),
            ("stale_after", self.stale_after),
        ];
        let times =
            times.into_iter().filter_map(|(name, time)| Some((name, format!("{}ms", time?.as_millis()))));
        let fence = self.fence.map(|fence| ("fence", fence.word().to_string()));
        let lines: String =
            times.chain(fence).map(|(name, value)| format!("{name} = \"{value}\"\n")).collect();
        if lines.is_empty() { lines } else { format!("[switch]\n{lines}") }
    }
}

/// What a promotion waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fence {
    /// Nothing.
    Off,
    /// The word of every pooler that lives.
    Advisory,
    /// The word of every pooler that is registered.
    Strict,
}

impl Fence {
    fn word(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Advisory => "advisory",
            Self::Strict => "strict",
        }
    }
}

/// PgBouncer's `pool_mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PoolMode {
    /// A client keeps its link until it leaves.
    Session,
    /// … until its transaction ends.
    Transaction,
    /// … until its statement ends.
    Statement,
}

/// Where Patroni keeps its state.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Store {
    /// So many etcd servers of the lab: `etcd1`, `etcd2`, …
    Etcd(usize),
    /// One Consul server of the lab: `consul1`.
    Consul,
    /// One ZooKeeper server of the lab: `zookeeper1`.
    ZooKeeper,
    /// So many etcd servers for Patroni, of which the agents know nothing: they have the members' REST API only.
    RestOnly(usize),
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

    /// Gives it so many entries: `app`, and others that lead where the first one does.
    pub fn entries(mut self, count: usize) -> Self {
        let to = self.routes.first().map_or(Target::Primary, |(_, to)| *to);
        self.routes.extend((self.routes.len() + 1..=count).map(|n| (format!("app_{n}"), to)));
        self
    }

    /// Gives it another name (and host).
    pub fn named(self, name: &str) -> Self {
        Self { name: name.into(), ..self }
    }

    /// Sets how long clients keep a link.
    pub fn mode(self, mode: PoolMode) -> Self {
        self.set(
            "pool_mode",
            match mode {
                PoolMode::Session => "session",
                PoolMode::Transaction => "transaction",
                PoolMode::Statement => "statement",
            },
        )
    }

    /// Has it keep so many links open: the pools that a pause can poison.
    pub fn min_pool_size(self, links: usize) -> Self {
        self.set("min_pool_size", &links.to_string())
    }

    /// Sets `server_login_retry`, in seconds: what people lower who move their poolers by hand.
    pub fn login_retry(self, seconds: usize) -> Self {
        self.set("server_login_retry", &seconds.to_string())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_given_stands_in_the_table() {
        assert_eq!(Switch::default().table(), "");
        assert_eq!(Switch::default().longest_pause(), Duration::from_secs(66));
        let switch = Switch { fence: Some(Fence::Strict), ..Switch::short() };
        assert_eq!(
            switch.table(),
            "[switch]\nhold_timeout = \"4000ms\"\nfailover_hold = \"6000ms\"\nfence = \"strict\"\n"
        );
        assert_eq!(switch.longest_pause(), Duration::from_secs(11));
    }
}
