//! What the core orders. Every effect has an id and a reason.

use crate::event::HookId;
use crate::pgbouncer::ini::Files;
use crate::rule::Reason;
use crate::time::Time;
use crate::topology::Endpoint;
use crate::wal::Term;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use serde::{Deserialize, Serialize};

/// Identifies an effect until its [`Done`](crate::event::Event::Done) comes back. Unique within one run of the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct EffectId(pub u64);

/// An order.
#[derive(Debug, Clone, PartialEq)]
pub struct Effect {
    /// Comes back with the outcome.
    pub id: EffectId,
    /// What to do.
    pub order: Order,
    /// Why.
    pub reason: Reason,
}

/// What to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Order {
    /// Read all keys of the cluster now; answered by `StoreRead` or `StoreFailed` besides `Done`.
    ReadStore {
        /// Name of the cluster.
        cluster: String,
    },
    /// `GET /primary` of a member's REST API.
    AskMember {
        /// Name of the cluster.
        cluster: String,
        /// Name of the member.
        member: String,
        /// Base address of its API.
        url: String,
    },
    /// `GET /primary` of the Patroni on this host.
    AskLocalPatroni {
        /// Base address of its API.
        url: String,
    },
    /// Ask the PostgreSQL on this host whether it is in recovery.
    ProbeLocal,
    /// Keep the term for the next run.
    KeepTerm {
        /// Name of the cluster.
        cluster: String,
        /// The term; none: forget it.
        term: Option<Term>,
        /// It must outlive a power cut too. Without it, it outlives this process, which takes microseconds.
        durable: bool,
    },
    /// Make our leased keys below our own prefix exactly these: put what differs or is missing, delete what an earlier
    /// such order of this run put and this one lacks. A lost lease is granted again and the keys are put again without
    /// an order. Done when the store has them.
    Publish {
        /// Name of the cluster.
        cluster: String,
        /// Key below our own prefix -> value.
        keys: BTreeMap<String, Vec<u8>>,
    },
    /// Put or delete one key of ours that has no lease.
    PutKey {
        /// Name of the cluster.
        cluster: String,
        /// Key below our own prefix.
        key: String,
        /// Value; none: delete it.
        value: Option<Vec<u8>>,
    },
    /// Keep one connection to this server and tell how it fares; none: to nobody. Done as soon as it is taken.
    WatchServer {
        /// Name of the cluster.
        cluster: String,
        /// The server.
        endpoint: Option<Endpoint>,
    },
    /// Tell a waiting hook how it goes on. Has no outcome.
    AnswerHook {
        /// Which run of a hook.
        hook: HookId,
        /// What it is told.
        answer: HookAnswer,
    },
    /// Something for one pooler. At most one such order per pooler is in flight.
    Pooler {
        /// Name of the pooler.
        pooler: String,
        /// What.
        order: PoolerOrder,
    },
    /// Put an entry into the flight recorder. Has no outcome.
    Record(Entry),
}

/// What a hook is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HookAnswer {
    /// Wait for the next answer, at most this long.
    Wait {
        /// In milliseconds.
        at_most_ms: u64,
        /// For whom, for people.
        why: String,
    },
    /// Return to Patroni.
    Return {
        /// Whether Patroni may go on. It always may after `before-stop`.
        go_on: bool,
        /// Why, for people.
        why: String,
    },
}

/// What is paused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PauseScope {
    /// The whole process (`PAUSE`).
    Process,
    /// These databases (`PAUSE db`, each).
    Databases(Vec<String>),
}

/// A pause of ours, as it is journalled before it begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// What is paused.
    pub scope: PauseScope,
    /// Its end on `CLOCK_BOOTTIME`: whoever is left ends it one second later.
    pub until: Time,
    /// `min_pool_size` to give back; none: it was not touched.
    pub min_pool_size: Option<String>,
    /// The switch or loss it belongs to, for people and for the next run of the agent.
    pub cause: String,
}

/// Something to do with one PgBouncer process.
#[derive(Debug, Clone, PartialEq)]
pub enum PoolerOrder {
    /// Read its ini file and what that includes.
    ReadFiles,
    /// Ask its console what is loaded and where the links go.
    Look,
    /// Replace files, each atomically, only over the content that is expected there.
    Write {
        /// Path -> content expected, content wanted.
        files: BTreeMap<String, (Vec<u8>, Vec<u8>)>,
        /// Keep the replaced content beside the file: it was not loadable.
        keep_rejected: bool,
    },
    /// Keep these files as the last good ones.
    KeepGood {
        /// The files.
        files: Files,
    },
    /// `RELOAD`.
    Reload,
    /// Note the value in the state folder, then `SET server_login_retry = 0`.
    BorrowLoginRetry {
        /// Value to give back.
        value: String,
    },
    /// `SET server_login_retry` to the value, then drop the note.
    ReturnLoginRetry {
        /// Value of before.
        value: String,
    },
    /// `RECONNECT database`.
    Reconnect {
        /// The database.
        database: String,
    },
    /// Cut clients off server links that lead to these endpoints: `KILL_CLIENT` where the version has it (1.24), else
    /// note the database in the state folder, `KILL` it, `RESUME` it, drop the note.
    Cut {
        /// The database.
        database: String,
        /// Where the links lead that must go.
        stale: Vec<Endpoint>,
    },
    /// `RESUME database`, drop the note: an earlier cut did not come to its end.
    Resume {
        /// The database.
        database: String,
    },
    /// Journal the pause, see that the guard process runs, `SET min_pool_size = 0` if there is a value to give back,
    /// then `PAUSE` on connections of its own, one per database. Done once PgBouncer has taken the commands; whether
    /// the links are gone is for the looks to say. Fails, with everything undone, when somebody else has paused it.
    Pause(Pause),
    /// Journal another end of the pause. Changes nothing in PgBouncer.
    ExtendPause(Pause),
    /// `SET min_pool_size = 0` again: a RELOAD gave back the file's value while we pause.
    ZeroMinPoolSize,
    /// Cut clients off server links that lead to these endpoints, and leave what we paused paused. Where the version can
    /// only `KILL` (before 1.24), a pause of the process becomes one of its databases; the journal says so first.
    CutPaused {
        /// Databases to cut.
        databases: Vec<String>,
        /// Where the links lead that must go.
        stale: Vec<Endpoint>,
    },
    /// Close what still waits for a PAUSE, `RESUME` all that the journal says, give `min_pool_size` back, drop the note.
    /// What is not paused is success.
    EndPause,
}

impl PoolerOrder {
    /// Whether the order changes anything (and is therefore held back in observe mode).
    pub fn changes(&self) -> bool {
        !matches!(self, PoolerOrder::ReadFiles | PoolerOrder::Look)
    }
}

impl fmt::Display for PoolerOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PoolerOrder::ReadFiles => f.write_str("read the ini file"),
            PoolerOrder::Look => f.write_str("look at the console"),
            PoolerOrder::Write { files, .. } => {
                let paths: Vec<&str> = files.keys().map(String::as_str).collect();
                write!(f, "write {}", paths.join(", "))
            }
            PoolerOrder::KeepGood { .. } => f.write_str("keep a copy of the loaded files"),
            PoolerOrder::Reload => f.write_str("RELOAD"),
            PoolerOrder::BorrowLoginRetry { value } => write!(f, "SET server_login_retry = 0 (was {value})"),
            PoolerOrder::ReturnLoginRetry { value } => write!(f, "SET server_login_retry = {value}"),
            PoolerOrder::Reconnect { database } => write!(f, "RECONNECT {database}"),
            PoolerOrder::Cut { database, stale } => {
                write!(f, "cut links of {database} to ")?;
                stale.iter().take(1).try_for_each(|e| write!(f, "{e}"))
            }
            PoolerOrder::Resume { database } => write!(f, "RESUME {database}"),
            PoolerOrder::Pause(Pause { scope: PauseScope::Process, .. }) => f.write_str("PAUSE"),
            PoolerOrder::Pause(Pause { scope: PauseScope::Databases(list), .. }) => {
                write!(f, "PAUSE {}", list.join(", "))
            }
            PoolerOrder::ExtendPause(_) => f.write_str("keep the pause for longer"),
            PoolerOrder::ZeroMinPoolSize => f.write_str("SET min_pool_size = 0"),
            PoolerOrder::CutPaused { databases, stale } => {
                write!(f, "cut links of {} to ", databases.join(", "))?;
                stale.iter().take(1).try_for_each(|e| write!(f, "{e}"))
            }
            PoolerOrder::EndPause => f.write_str("RESUME"),
        }
    }
}

/// An entry of the flight recorder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// When.
    pub at: Time,
    /// What kind of thing happened: `leader`, `writable`, `term`, `route`, `order`, `verified`, `trouble`, `callback`, …
    pub kind: String,
    /// What it is about: a cluster, a pooler, `pooler/database`.
    pub subject: String,
    /// What happened, for people.
    pub text: String,
}
