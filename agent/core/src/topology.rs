//! A Patroni cluster as its store describes it.

use crate::wal::{Lsn, Timeline};
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;
use serde::Serialize;

/// What a member's server is, in Patroni's words. `master` (before 4.0) reads as primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Accepts writes, or did when the word was written.
    Primary,
    /// Leads a standby cluster: read-only.
    StandbyLeader,
    /// Follows.
    Replica,
    /// Has no data yet.
    Uninitialized,
}

impl Role {
    /// Reads Patroni's word; an unknown word is no role.
    pub fn from_word(word: &str) -> Option<Role> {
        match word {
            "primary" | "master" | "promoted" => Some(Role::Primary),
            "standby_leader" => Some(Role::StandbyLeader),
            "replica" | "demoted" | "sync_standby" | "quorum_standby" => Some(Role::Replica),
            "uninitialized" => Some(Role::Uninitialized),
            _ => None,
        }
    }

    /// Patroni's word since 4.0.
    pub fn word(self) -> &'static str {
        match self {
            Role::Primary => "primary",
            Role::StandbyLeader => "standby_leader",
            Role::Replica => "replica",
            Role::Uninitialized => "uninitialized",
        }
    }
}

/// Host and TCP port of a server. The host is a name or an address, an IPv6 address without brackets.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Endpoint {
    /// Name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// One member, from its key below `members/`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Member {
    /// Its name: the last part of the key.
    pub name: String,
    /// Where clients reach its PostgreSQL (`conn_url`).
    pub endpoint: Option<Endpoint>,
    /// Its Patroni REST API (`api_url`).
    pub api_url: Option<String>,
    /// Patroni's state word, for instance `running` or `stopping`.
    pub state: String,
    /// Role as last written by the member itself.
    pub role: Option<Role>,
    /// Its timeline.
    pub timeline: Option<Timeline>,
    /// End of its write-ahead log as last written by the member itself.
    pub lsn: Option<Lsn>,
    /// Tags; booleans as `true` / `false`.
    pub tags: BTreeMap<String, String>,
    /// Patroni's version.
    pub version: Option<String>,
    /// What could not be read in the key's value.
    pub problem: Option<String>,
}

impl Member {
    /// Whether its server runs, in the words of all Patroni versions (`streaming` appears in `/cluster` only).
    pub fn is_running(&self) -> bool {
        matches!(self.state.as_str(), "running" | "streaming" | "in archive recovery")
    }

    /// Whether a boolean tag is set.
    pub fn has_tag(&self, tag: &str) -> bool {
        self.tags.get(tag).is_some_and(|value| value == "true")
    }
}

/// The leader key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeaderKey {
    /// The member that holds it.
    pub name: String,
    /// Store revision at which it was written.
    pub revision: u64,
}

/// Patroni's dynamic configuration, as far as we use it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DynamicConfig {
    /// Lifetime of the leader key.
    pub ttl: Duration,
    /// Pause between two runs of Patroni's loop.
    pub loop_wait: Duration,
    /// The operator told Patroni to keep its hands off.
    pub pause: bool,
    /// This is a standby cluster: it has no primary.
    pub standby_cluster: bool,
}

impl Default for DynamicConfig {
    /// Patroni's own defaults.
    fn default() -> Self {
        DynamicConfig {
            ttl: Duration::from_secs(30),
            loop_wait: Duration::from_secs(10),
            pause: false,
            standby_cluster: false,
        }
    }
}

/// The failover key: somebody asked for another leader.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct FailoverKey {
    /// The leader that is to stop; none: whoever leads.
    pub leader: Option<String>,
    /// Who is to lead; none: whoever can.
    pub candidate: Option<String>,
    /// Not before this (ISO 8601 with an offset); none: now.
    pub scheduled_at: Option<String>,
}

/// All that the store says about one cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Topology {
    /// PostgreSQL's system identifier (`initialize`); none while bootstrapping.
    pub system_id: Option<String>,
    /// Who holds the leader key.
    pub leader: Option<LeaderKey>,
    /// Members by name.
    pub members: BTreeMap<String, Member>,
    /// The leader's log position as Patroni last wrote it (`status`).
    pub leader_lsn: Option<Lsn>,
    /// Dynamic configuration (`config`).
    pub config: DynamicConfig,
    /// The failover key.
    pub failover: Option<FailoverKey>,
    /// Names in the `sync` key's standby list.
    pub sync_standbys: Vec<String>,
    /// Keys that could not be read, with why. None of them is fatal.
    pub problems: Vec<String>,
}

impl Topology {
    /// The member that holds the leader key, if there is one of that name.
    pub fn leader_member(&self) -> Option<&Member> {
        self.members.get(&self.leader.as_ref()?.name)
    }
}
