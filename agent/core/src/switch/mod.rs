//! The protocol between agents: a planned stop is announced, poolers let go of the member and say so, and everybody
//! ends by himself, whoever else dies.
//!
//! ```text
//!   member's host                     store, our own prefix              pooler host
//!   before_stop ──> conductor ──────> switch {epoch, phase: drain} ────> hold: PAUSE
//!                   returns    <───── poolers/<node> {drained: epoch} <─ no link to the member
//!   PostgreSQL stops                  switch {phase: stop}
//!   new leader: pre_promote ────────> fence {epoch} ───────────────────> hold, cut
//!                   returns    <───── poolers/<node> {fenced: epoch}  <─ no link that could write elsewhere
//!   it is writable ─────────────────> members/<member> {timeline} ─────> re-point, RESUME
//! ```
//!
//! [`records`] is what is said, [`peers`] what was heard, [`conductor`] takes the hooks further, which [`before_stop`] and
//! [`fence`] answer, [`hold`] says when this host's pools wait and [`causes`] why, [`publish`] what this host says. PAUSE
//! and RESUME themselves are in [`pause`](crate::pgbouncer::pause).

pub mod before_stop;
pub mod causes;
pub mod conductor;
pub mod fence;
pub mod hold;
pub mod peers;
pub mod publish;
pub mod records;

use crate::event::ServerWord;
use crate::time::Time;
use crate::topology::Endpoint;
use alloc::collections::VecDeque;
use alloc::string::String;
use core::time::Duration;

/// An announced stop that has not happened so long after its hook returned will not happen: it counts as called off, on
/// the member's own host as for the poolers that let go of it.
pub(crate) const UNCHANGED: Duration = Duration::from_secs(2);

/// What this agent knows and does about switches of one cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SwitchState {
    /// The other agents.
    pub view: peers::PeersView,
    /// Start of the last renewal of our lease, and how long it lives from then on.
    pub lease: Option<(Time, Duration)>,
    /// What the connection to the leader's server said last.
    pub server: Option<ServerSign>,
    /// Server that the shell was told to watch.
    pub watched: Option<Endpoint>,
    /// This host's pools wait.
    pub hold: Option<hold::Hold>,
    /// Epochs that this host has brought to their end: they start no hold again.
    pub ended: VecDeque<String>,
    /// A server for which clients have waited in vain for as long as they may: until it is back no other loss of it makes
    /// them wait, and what is paused goes on without knowing where to.
    pub given_up: Option<Endpoint>,
    /// The member on this host is about to stop.
    pub stop: Option<before_stop::Stop>,
    /// The member on this host is about to be promoted.
    pub promotion: Option<fence::Promotion>,
    /// What this host says.
    pub published: publish::Published,
}

/// A sign of the leader's server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerSign {
    /// The server.
    pub endpoint: Endpoint,
    /// What it said.
    pub word: ServerWord,
    /// When.
    pub at: Time,
}
