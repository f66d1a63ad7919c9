//! The snapshot for people and load balancers. Its JSON is what `pgsquire status --json` prints; `explain` and `plan`
//! are other views of the same value.

use crate::config::{Mode, OnDcsLoss, RouteTo};
use crate::rule::Reason;
use crate::time::Time;
use crate::topology::{Endpoint, Role};
use crate::wal::{Lsn, Term, Timeline};
use alloc::string::String;
use alloc::vec::Vec;
use serde::Serialize;

/// Everything the agent knows and wants, at one time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// When, on this host's monotonic clock (microseconds).
    pub at: Time,
    /// This host.
    pub node: String,
    /// Act or show.
    pub mode: Mode,
    /// One per `[[cluster]]`.
    pub clusters: Vec<ClusterStatus>,
    /// The server on this host, if there is one.
    pub local: Option<LocalStatus>,
    /// One per `[[pgbouncer]]`.
    pub poolers: Vec<PoolerStatus>,
    /// What the desired state contradicts in itself; nothing is done while there is any.
    pub contradictions: Vec<String>,
}

/// An answer that carries its own end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Up, if asked no later than `valid_until`.
    pub up: bool,
    /// Why.
    pub reason: Reason,
    /// After this the verdict is down, whatever it said.
    pub valid_until: Time,
    /// Clients are held back by us until then at most; none: they are not.
    pub holding: Option<Time>,
}

impl Verdict {
    /// Whether it is up when asked at `now`.
    pub fn is_up(&self, now: Time) -> bool {
        self.up && now <= self.valid_until
    }
}

/// How well something is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Knowledge {
    /// Known and fresh enough to act on.
    pub known: bool,
    /// Age of the newest answer in milliseconds, if there ever was one.
    pub age_ms: Option<u64>,
    /// Why it is not known.
    pub why: Option<String>,
}

/// One cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ClusterStatus {
    /// Scope, or scope/group.
    pub name: String,
    /// The store's answers.
    pub store: Knowledge,
    /// How new the view in force is.
    pub term: Option<Term>,
    /// Member that holds the leader key.
    pub leader: Option<String>,
    /// Whether the leader is proved to accept writes, and by what.
    pub writable: bool,
    /// Why it is, or is not.
    pub writable_reason: Reason,
    /// Patroni is paused by its operator.
    pub pause: bool,
    /// Standby cluster: nobody accepts writes.
    pub standby_cluster: bool,
    /// Members by name.
    pub members: Vec<MemberLine>,
    /// What verdicts rest on, when the store is away, or a primary goes on without its key.
    pub away: Option<AwayStatus>,
    /// Why nothing moves, when something holds the whole cluster.
    pub holding: Option<Reason>,
    /// What could not be read.
    pub problems: Vec<String>,
    /// Switches: who waits for whom.
    pub switch: SwitchStatus,
}

/// What happens around a switch of one cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct SwitchStatus {
    /// This host's pools wait.
    pub hold: Option<HoldStatus>,
    /// The member on this host is about to stop, or is stopping.
    pub stopping: Option<String>,
    /// Agents with poolers that live, and how far each is.
    pub poolers: Vec<PeerLine>,
    /// Agents whose word a strict fence needs.
    pub registry: Vec<String>,
    /// What is not there by the way this cluster is followed, and what is; none: all of it is there.
    pub without: Option<String>,
    /// Milliseconds that our own lease lives from now on, if it is not renewed; none: there is none.
    pub lease_ms: Option<u64>,
    /// What limits the protocol here: a Patroni without `before_stop`, a pooler's own limits, a store that does not
    /// take our keys.
    pub troubles: Vec<String>,
}

/// A hold of this host's pools.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HoldStatus {
    /// The member that is let go of.
    pub from: String,
    /// Why.
    pub why: String,
    /// For how long they have waited, in milliseconds.
    pub since_ms: u64,
    /// How long they will wait at most from now on, in milliseconds.
    pub ends_in_ms: u64,
}

/// What another agent says of its poolers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PeerLine {
    /// Its node name.
    pub node: String,
    /// The member on its host.
    pub member: Option<String>,
    /// How far it is, for people.
    pub says: String,
}

/// One member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemberLine {
    /// Name.
    pub name: String,
    /// Role by its own key.
    pub role: Option<Role>,
    /// Patroni's state word.
    pub state: String,
    /// Where its server listens.
    pub endpoint: Option<Endpoint>,
    /// Timeline.
    pub timeline: Option<Timeline>,
    /// Log position.
    pub lsn: Option<Lsn>,
    /// Bytes behind the leader, on the same timeline.
    pub lag: Option<u64>,
    /// Patroni's version.
    pub version: Option<String>,
    /// Tags, as `key=value`.
    pub tags: Vec<String>,
}

/// What verdicts rest on while the store is away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AwayStatus {
    /// `on_dcs_loss`.
    pub policy: OnDcsLoss,
    /// The member that is vouched for; none: nobody is, verdicts are red.
    pub leader: Option<String>,
    /// Who says so, or why nobody does.
    pub reason: Reason,
    /// For how long those words count, in ms.
    pub ends_in_ms: Option<u64>,
}

/// The server on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LocalStatus {
    /// Its answers.
    pub server: Knowledge,
    /// Member name, if known.
    pub member: Option<String>,
    /// `pg_is_in_recovery()`.
    pub in_recovery: Option<bool>,
    /// Timeline.
    pub timeline: Option<Timeline>,
    /// The answer of `/primary`.
    pub primary: Verdict,
}

/// One PgBouncer process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PoolerStatus {
    /// Name in our configuration.
    pub name: String,
    /// Path of its ini.
    pub ini: String,
    /// The files on disk.
    pub files: Knowledge,
    /// The console's answers.
    pub console: Knowledge,
    /// PgBouncer's version, for instance `1.18`.
    pub version: Option<String>,
    /// The answer of `/pool/<name>`.
    pub pool: Verdict,
    /// Routes by entry.
    pub routes: Vec<RouteStatus>,
    /// What is being done now.
    pub doing: Option<String>,
    /// What would be done next, and why: filled in observe mode and while waiting to try again.
    pub next: Vec<PlannedOrder>,
    /// What stands in the way: unreadable file, refused console, a file PgBouncer would not load.
    pub troubles: Vec<String>,
}

/// One route of one pooler.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RouteStatus {
    /// Entry of `[databases]`.
    pub database: String,
    /// Where it must lead.
    pub to: RouteTo,
    /// In which cluster.
    pub cluster: String,
    /// Members it must lead to now; empty: unknown, it stays where it is.
    pub members: Vec<String>,
    /// The wanted `host` value and port.
    pub target: Option<Endpoint>,
    /// Why there.
    pub reason: Reason,
    /// What the file on disk says.
    pub on_disk: Option<Endpoint>,
    /// What PgBouncer has loaded.
    pub loaded: Option<Endpoint>,
    /// Server links of the database.
    pub links: u32,
    /// Server links that lead elsewhere than the target.
    pub stale_links: u32,
    /// Wanted = on disk = loaded, and no link leads elsewhere.
    pub verified: bool,
    /// PgBouncer has paused the database.
    pub paused: bool,
}

/// An order that would be given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedOrder {
    /// What.
    pub order: String,
    /// Why.
    pub reason: Reason,
}
