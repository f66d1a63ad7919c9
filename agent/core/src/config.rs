//! What the operator wants, already checked: the shell parses TOML and refuses what is wrong (`agent/config.rs`).

use crate::rule::Mutants;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;
use serde::{Deserialize, Serialize};

/// Decide and act, or decide and show.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Act.
    Enforce,
    /// Change nothing; `plan` shows what would be done.
    Observe,
}

/// Where an entry of `[databases]` must lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RouteTo {
    /// The writable leader.
    Primary,
    /// Replicas within `max_lag`.
    Replica,
    /// Every running member within `max_lag`.
    Any,
    /// This host's PostgreSQL, whatever its role.
    Local,
}

impl fmt::Display for RouteTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RouteTo::Primary => "primary",
            RouteTo::Replica => "replica",
            RouteTo::Any => "any",
            RouteTo::Local => "local",
        })
    }
}

/// One route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Route {
    /// Where to.
    pub to: RouteTo,
    /// Name of the cluster ([`ClusterConfig::name`]).
    pub cluster: String,
    /// Replicas further behind than this many bytes get no traffic; none: no limit.
    pub max_lag: Option<u64>,
    /// Lead to the primary while no replica fits.
    pub fallback_primary: bool,
}

impl Route {
    /// Whether writers may use it. Readers that may fall back to the primary count: they feel its loss as well.
    pub fn is_write(&self) -> bool {
        self.to == RouteTo::Primary || self.fallback_primary
    }
}

/// Where the truth about a cluster comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Truth {
    /// Patroni's store. The agents talk to each other in it.
    Store,
    /// The members' REST API alone. No agent hears of another one: nothing drains, nobody gives a fence its word.
    Members {
        /// How many hosts ask them, this one included, as the operator says.
        pollers: u32,
    },
}

/// One Patroni cluster that this agent follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClusterConfig {
    /// `scope`, or `scope/group` for a Citus group.
    pub name: String,
    /// A fact older than this is unknown.
    pub max_fact_age: Duration,
    /// What verdicts rest on while the store is away.
    pub on_dcs_loss: OnDcsLoss,
    /// REST addresses of members that are asked besides, while the store is away.
    pub patroni_hosts: Vec<String>,
    /// Where the truth comes from.
    pub truth: Truth,
}

impl ClusterConfig {
    /// Whether agents can talk to each other about it: there is a store.
    pub fn has_store(&self) -> bool {
        self.truth == Truth::Store
    }
}

/// What verdicts rest on while the store is away (`on_dcs_loss`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnDcsLoss {
    /// The last verdict, while the member itself confirms its role, timeline and state.
    Hold,
    /// Nothing: red at `max_fact_age`.
    FailClosed,
    /// The leader's own word and that of a majority of the members, none of which knows a newer primary.
    Confirm,
}

impl fmt::Display for OnDcsLoss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            OnDcsLoss::Hold => "hold",
            OnDcsLoss::FailClosed => "fail-closed",
            OnDcsLoss::Confirm => "confirm",
        })
    }
}

/// One PgBouncer process on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PoolerConfig {
    /// Its name in our words.
    pub name: String,
    /// Path of its ini file.
    pub ini: String,
    /// Entry of `[databases]` -> where it must lead.
    pub routes: BTreeMap<String, Route>,
}

/// The PostgreSQL on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LocalConfig {
    /// Name of the cluster it belongs to.
    pub cluster: String,
    /// The local Patroni's REST API.
    pub patroni_url: Option<String>,
    /// The server is probed directly.
    pub probe: bool,
}

/// How `pre_promote` waits for the poolers' word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fence {
    /// It does not.
    Off,
    /// For those that live; then the promotion goes on in any case.
    Advisory,
    /// For all of the registry; without the word of each there is no promotion.
    Strict,
}

/// What happens around a switch (`[switch]`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SwitchConfig {
    /// Pools are paused during a planned switchover.
    pub drain: bool,
    /// `before_stop` waits at most this long.
    pub drain_timeout: Duration,
    /// No planned pause is longer.
    pub hold_timeout: Duration,
    /// Unplanned loss: clients wait at most this long; zero: not at all. After a promotion a replica on the parent
    /// timeline stays eligible for as long.
    pub failover_hold: Duration,
    /// Whether `pre_promote` waits.
    pub fence: Fence,
    /// And how long.
    pub fence_timeout: Duration,
    /// Server links that still lead to the old target are cut after this.
    pub stale_after: Duration,
}

impl Default for SwitchConfig {
    /// The defaults of `config.example.toml`.
    fn default() -> Self {
        SwitchConfig {
            drain: true,
            drain_timeout: Duration::from_secs(3),
            hold_timeout: Duration::from_secs(20),
            failover_hold: Duration::from_secs(45),
            fence: Fence::Advisory,
            fence_timeout: Duration::from_secs(2),
            stale_after: Duration::from_secs(10),
        }
    }
}

/// All of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Config {
    /// This host's name.
    pub node: String,
    /// Act or show.
    pub mode: Mode,
    /// Clusters; names are unique.
    pub clusters: Vec<ClusterConfig>,
    /// PostgreSQL and Patroni on this host, if any.
    pub local: Option<LocalConfig>,
    /// PgBouncer processes; names and ini files are unique.
    pub poolers: Vec<PoolerConfig>,
    /// Times around a switch.
    pub switch: SwitchConfig,
    /// Rules that are broken on purpose: always none outside the tests.
    #[serde(skip)]
    pub mutants: Mutants,
}

impl Config {
    /// The cluster of that name.
    pub fn cluster(&self, name: &str) -> Option<&ClusterConfig> {
        self.clusters.iter().find(|c| c.name == name)
    }

    /// The pooler of that name.
    pub fn pooler(&self, name: &str) -> Option<&PoolerConfig> {
        self.poolers.iter().find(|p| p.name == name)
    }

    /// Whether any route of this host leads into the cluster.
    pub fn routes_into<'a>(&'a self, cluster: &'a str) -> impl Iterator<Item = &'a Route> + 'a {
        self.poolers.iter().flat_map(|p| p.routes.values()).filter(move |r| r.cluster == cluster)
    }
}
