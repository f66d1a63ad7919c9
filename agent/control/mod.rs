//! The control socket: how callbacks and commands on this host reach the daemon. One JSON line is asked per connection,
//! and one or more are answered.

pub mod client;
mod connection;
pub mod hooks;
mod server;
mod socket;

pub use server::{Context, serve};
pub use socket::{BindError, Bound, bind};

use crate::journal::Record;
use crate::journal::callbacks::Call;
use pgsquire_core::effect::HookAnswer;
use pgsquire_core::event::HookKind;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A longer line is refused, in bytes.
pub const LONGEST_LINE: usize = 64 * 1024;
/// A peer that is slower than this is refused.
pub const DEADLINE: Duration = Duration::from_secs(2);
/// So many connections are served at once.
pub const CONNECTIONS: usize = 64;
/// So many of them may stay open and follow.
pub const FOLLOWERS: usize = 16;
/// So many are served besides, if they are what Patroni waits for: callbacks and hooks.
pub const URGENT: usize = 16;
/// So many hooks may wait at once. Patroni runs one of a kind at a time.
pub const HOOKS: usize = 8;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Request {
    /// Are you there?
    Ping,
    /// The whole picture.
    Status {
        /// Again with each change.
        #[serde(default)]
        watch: bool,
    },
    /// The flight recorder.
    Events {
        /// Only entries after this number.
        #[serde(default)]
        since: u64,
        /// And those to come.
        #[serde(default)]
        follow: bool,
    },
    /// Patroni ran a callback.
    Callback(Call),
    /// Patroni runs a hook and waits.
    Hook {
        /// Which.
        kind: HookKind,
    },
    /// Adopt what the store says now.
    ForgetTerm {
        /// Of this cluster; none: the only one.
        #[serde(default)]
        cluster: Option<String>,
    },
    /// Take a pooler out of the registry.
    ForgetPooler {
        /// Of this cluster; none: the only one.
        #[serde(default)]
        cluster: Option<String>,
        /// Its agent's node name.
        node: String,
    },
}

/// One line of an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// The whole picture.
    Status(serde_json::Value),
    /// One entry of the flight recorder.
    Event(Record),
    /// So many entries were lost to a follower that was too slow.
    Missed(u64),
    /// What a hook is told; the last is [`HookAnswer::Return`].
    Hook(HookAnswer),
    /// The end: it was done.
    Done(String),
    /// The end: it was not done, and why.
    Refused(String),
}

#[cfg(test)]
mod tests;
