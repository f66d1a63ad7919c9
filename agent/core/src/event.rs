//! What the core is told. Every event is a fact in the past tense.

use crate::config::Config;
use crate::effect::{EffectId, Pause};
use crate::patroni::{Keys, StoredValue};
use crate::pgbouncer::console::ConsoleView;
use crate::pgbouncer::ini::Files;
use crate::time::Time;
use crate::topology::Endpoint;
use crate::wal::{Lsn, Term, Timeline};
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;
use serde::{Deserialize, Serialize};

/// A fact.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Time passed.
    Tick,
    /// A new configuration was read and found valid.
    Configured(Config),
    /// All keys of a cluster were read from its store.
    StoreRead {
        /// Name of the cluster.
        cluster: String,
        /// What was read.
        read: StoreRead,
    },
    /// The store's watch reported changes.
    StoreChanged {
        /// Name of the cluster.
        cluster: String,
        /// The changes of one store revision.
        change: StoreChange,
    },
    /// The store could not be read, or its watch broke. A new full read follows.
    StoreFailed {
        /// Name of the cluster.
        cluster: String,
        /// Why, for people.
        why: String,
    },
    /// Somebody said that something happened (a callback, a changed file): look now.
    Hinted(Hint),
    /// The operator adopted whatever the store of this cluster says now.
    TermForgotten {
        /// Name of the cluster.
        cluster: String,
    },
    /// All our own keys of a cluster ([`crate::switch::records`]) were read from its store.
    PeersRead {
        /// Name of the cluster.
        cluster: String,
        /// What was read; it has no leader and no lease.
        read: StoreRead,
    },
    /// The watch of our own keys reported changes.
    PeersChanged {
        /// Name of the cluster.
        cluster: String,
        /// The changes of one store revision.
        change: StoreChange,
    },
    /// Our own keys could not be read, or their watch broke. A new full read follows.
    PeersFailed {
        /// Name of the cluster.
        cluster: String,
        /// Why, for people.
        why: String,
    },
    /// The lease of our own keys was granted or renewed, as of then; none: it is lost.
    LeaseKept {
        /// Name of the cluster.
        cluster: String,
        /// Start of the renewal, and how long the lease lives from then on.
        lease: Option<(Time, Duration)>,
    },
    /// The connection that is kept to a server ([`Order::WatchServer`](crate::effect::Order::WatchServer)) said
    /// something.
    ServerSeen {
        /// Name of the cluster.
        cluster: String,
        /// The server.
        endpoint: Endpoint,
        /// What.
        word: ServerWord,
        /// When the sign came, or the question was put.
        at: Time,
    },
    /// Patroni runs one of its synchronous hooks on this host and waits.
    HookAsked {
        /// Which run of a hook.
        hook: HookId,
        /// Which hook.
        kind: HookKind,
        /// The wall clock, in seconds since 1970: whether a scheduled switchover is due.
        wall: u64,
    },
    /// The hook is gone and was not told to return: it ended, was killed, or got no answer in time. It may cross such an
    /// answer on its way.
    HookLost {
        /// Which run of a hook.
        hook: HookId,
    },
    /// The daemon was told to stop: pauses are let go of, nothing new is begun.
    Stopping,
    /// The operator took a pooler out of the registry.
    PoolerForgotten {
        /// Name of the cluster.
        cluster: String,
        /// The agent's node name.
        node: String,
    },
    /// An effect ended.
    Done {
        /// Which.
        id: EffectId,
        /// When the shell began with it: an answer is a fact as of then.
        started: Time,
        /// What came of it.
        outcome: Outcome,
    },
}

/// One run of a hook. Unique within one run of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct HookId(pub u64);

/// Patroni's synchronous hooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HookKind {
    /// Before the server is stopped, for whatever reason.
    BeforeStop,
    /// The lock is taken, the server is not promoted yet.
    PrePromote,
}

/// What the connection to a server says about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerWord {
    /// It accepts connections.
    Up,
    /// It answered a query: whether it is in recovery. Only with a login (`probe`).
    InRecovery(bool),
    /// The connection broke and no new one was made, or two probes were missed.
    Lost {
        /// Why, for people.
        why: String,
    },
}

/// A reason to look now. Nothing is believed because of a hint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hint {
    /// Patroni ran a callback on this host.
    Callback {
        /// `on_role_change` and so on.
        action: String,
        /// Patroni's word for the role.
        role: String,
        /// Patroni's scope.
        scope: String,
    },
    /// A file of this pooler's configuration changed on disk.
    FilesChanged {
        /// Name of the pooler.
        pooler: String,
    },
}

/// One full read of a cluster's keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreRead {
    /// Identity of the store (etcd: the cluster id).
    pub store: String,
    /// Its consensus term, where it has one (etcd: the raft term).
    pub raft_term: u64,
    /// Its revision at the read.
    pub revision: u64,
    /// Keys below the cluster's prefix.
    pub keys: Keys,
    /// How long the leader key will live from the start of the read on, if nobody renews it.
    pub leader_ttl: Option<Duration>,
    /// If there are no keys: where the store holds some, `/service/main` and the like, as far as we may know.
    pub beside: Vec<String>,
    /// When the read was begun.
    pub started: Time,
}

/// The changes of one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreChange {
    /// Identity of the store.
    pub store: String,
    /// Its revision after the changes.
    pub revision: u64,
    /// Key below the prefix and its new value; none: deleted.
    pub changes: Vec<(String, Option<StoredValue>)>,
}

/// What an earlier run left in the state folder.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Restored {
    /// Terms by cluster name.
    pub terms: BTreeMap<String, Term>,
    /// Poolers whose `server_login_retry` we lowered and did not give back.
    pub borrowed_login_retry: BTreeMap<String, String>,
    /// Databases that we cut (KILL) and did not resume yet, by pooler.
    pub cut: BTreeMap<String, Vec<String>>,
    /// Pauses that are journalled and not ended, by pooler.
    pub pauses: BTreeMap<String, Pause>,
    /// Last files that PgBouncer was seen to have loaded, by pooler.
    pub last_good: BTreeMap<String, Files>,
}

/// What came of an effect.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It was done.
    Done,
    /// It failed, or its deadline passed; it may have had its effect all the same.
    Failed {
        /// Why, for people.
        why: String,
    },
    /// The file is not what the decision saw: nothing was written.
    ChangedMeanwhile,
    /// Answer of a member's `GET /primary`.
    Member {
        /// HTTP status.
        code: u16,
        /// Body.
        body: Vec<u8>,
        /// The wall clock when the question was put, since 1970: Patroni tells by it when it last saw its store.
        wall: Duration,
    },
    /// Answer of the local server.
    Local(LocalServer),
    /// The pooler's configuration files.
    Files(Files),
    /// The pooler's console.
    Console(ConsoleView),
}

/// What the PostgreSQL on this host says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalServer {
    /// `pg_is_in_recovery()`.
    pub in_recovery: bool,
    /// Timeline, if it could be told.
    pub timeline: Option<Timeline>,
    /// Write position, or replay position in recovery.
    pub lsn: Option<Lsn>,
}
