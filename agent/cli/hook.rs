//! `pgsquire hook before-stop` and `pgsquire hook pre-promote`: Patroni runs them and waits. The daemon decides how long;
//! this command only sees to it that Patroni never waits for longer than it said, whatever becomes of the daemon.
//!
//! SIGTERM keeps its default disposition: when Patroni changes its mind the process dies at once, and the daemon sees
//! that by the closed connection.

use super::patroni_child::{self, Ending, Guard};
use crate::config::{self, Glance};
use crate::control::client::{Client, ClientError};
use crate::control::{Answer, Request};
use pgsquire_core::config::Fence;
use pgsquire_core::effect::HookAnswer;
use pgsquire_core::event::HookKind;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// The daemon answers from memory: one that has said nothing after this has other troubles.
const FIRST_ANSWER: Duration = Duration::from_millis(100);
/// A word that was due may be late by this.
const SLACK: Duration = Duration::from_millis(100);
/// The guard ends the process so long after its time.
const GUARD: Duration = Duration::from_millis(500);

/// One run of a hook by Patroni.
#[derive(Debug, PartialEq, Eq)]
pub struct Invocation {
    config: PathBuf,
    kind: HookKind,
}

/// The word on the command line. Patroni's own spelling of its settings is understood as well: a slip there would cost
/// the cluster its next promotion.
///
/// # Errors
/// A sentence, when there is no such hook.
pub(super) fn kind(word: &str) -> Result<HookKind, String> {
    match word {
        "before-stop" | "before_stop" => Ok(HookKind::BeforeStop),
        "pre-promote" | "pre_promote" => Ok(HookKind::PrePromote),
        _ => Err("write before-stop or pre-promote".to_owned()),
    }
}

impl Invocation {
    /// From what the command line says.
    pub fn new(config: PathBuf, kind: HookKind) -> Self {
        Invocation { config, kind }
    }

    /// From the words behind `hook`. Patroni appends none; more of them are no reason to stand in its way.
    pub fn find(config: PathBuf, words: &[String]) -> Option<Self> {
        Some(Invocation { config, kind: kind(words.first()?).ok()? })
    }

    /// Waits as long as the daemon wants it to, within the bounds.
    pub fn run(self) -> ExitCode {
        let name = match self.kind {
            HookKind::BeforeStop => "hook before-stop",
            HookKind::PrePromote => "hook pre-promote",
        };
        patroni_child::run(name, GUARD, |guard| self.wait(guard))
    }

    fn wait(&self, guard: &Guard) -> Ending {
        guard.arm();
        let glance = config::glance(&self.config);
        let strict = self.kind == HookKind::PrePromote && glance.fence == Fence::Strict;
        // From here on a silent daemon and a hanging one end alike.
        guard.set_code(u8::from(strict));
        let (go_on, line) = match self.converse(&glance, guard) {
            Ok((go_on, why)) => (go_on || self.kind == HookKind::BeforeStop, why),
            Err(why) => (!strict, format!("{why}; {}", self.alone(strict))),
        };
        let trouble = glance.trouble.map(|trouble| format!("; {trouble}")).unwrap_or_default();
        Ending { code: u8::from(!go_on), line: Some(format!("{line}{trouble}")) }
    }

    /// What happens without the daemon's word.
    fn alone(&self, strict: bool) -> &'static str {
        match (self.kind, strict) {
            (HookKind::BeforeStop, _) => "the stop goes on without waiting for the poolers",
            (HookKind::PrePromote, false) => "the promotion goes on without the poolers' word",
            (HookKind::PrePromote, true) => {
                "no promotion, because fence = \"strict\" wants the poolers' word"
            }
        }
    }

    /// Whether Patroni may go on, and why; or why the daemon did not say.
    fn converse(&self, glance: &Glance, guard: &Guard) -> Result<(bool, String), String> {
        let request = Request::Hook { kind: self.kind };
        let asked = Client::ask(&glance.control_socket, &request, FIRST_ANSWER);
        let mut daemon = asked.map_err(|e| e.to_string())?;
        let longest = match self.kind {
            HookKind::BeforeStop => glance.drain_timeout,
            HookKind::PrePromote => glance.fence_timeout,
        };
        // Set by the first word to wait; however many follow, Patroni waits no longer in all.
        let mut waits: Option<Instant> = None;
        loop {
            match daemon.answer() {
                Ok(Answer::Hook(HookAnswer::Return { go_on, why })) => return Ok((go_on, why)),
                Ok(Answer::Hook(HookAnswer::Wait { at_most_ms, .. })) => {
                    let begin = *waits.get_or_insert_with(|| {
                        guard.set_bound(longest + GUARD);
                        Instant::now()
                    });
                    let left = longest.saturating_sub(begin.elapsed()).min(Duration::from_millis(at_most_ms));
                    daemon.patience(Some(left + SLACK));
                }
                Ok(_) => return Err("the daemon's answer is strange".to_owned()),
                Err(e @ ClientError::Refused(_)) => return Err(format!("the daemon refused: {e}")),
                Err(e) => return Err(waits.map_or_else(|| e.to_string(), |begin| late(&e, begin))),
            }
        }
    }
}

fn late(e: &ClientError, begin: Instant) -> String {
    format!("{e}, after {} ms of waiting", begin.elapsed().as_millis())
}
