//! `pgsquire callback ACTION ROLE SCOPE`: hands Patroni's words to the daemon, or keeps them for it.
//!
//! The exit status is always 0, because Patroni must never suffer.

use super::patroni_child::{self, Ending, Guard};
use crate::config;
use crate::control::client::Client;
use crate::control::{Answer, Request};
use crate::journal::callbacks::{self, Call};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// After this it ends, whatever hangs: a frozen daemon, a dead disk.
const BOUND: Duration = Duration::from_millis(500);
/// The daemon has this long; the rest is for keeping the words.
const PATIENCE: Duration = Duration::from_millis(250);

/// One call of the program by Patroni.
#[derive(Debug, PartialEq, Eq)]
pub struct Invocation {
    config: PathBuf,
    words: Vec<String>,
}

impl Invocation {
    /// From what the command line says.
    pub fn new(config: PathBuf, words: Vec<String>) -> Self {
        Invocation { config, words }
    }

    /// Does it, within the bound.
    pub fn run(self) -> ExitCode {
        patroni_child::run("callback", BOUND, |guard| Ending { code: 0, line: self.deliver(guard) })
    }

    /// Gives what the operator should read in Patroni's log.
    fn deliver(self, guard: &Guard) -> Option<String> {
        let [action, role, scope] = self.words.as_slice() else {
            return Some(format!(
                "expected ACTION ROLE SCOPE, as Patroni appends them, got {:?}",
                self.words
            ));
        };
        let glance = config::glance(&self.config);
        let call = Call::new(action, role, scope);
        let told = Client::ask(&glance.control_socket, &Request::Callback(call.clone()), PATIENCE)
            .and_then(|mut daemon| daemon.answer());
        let why = match told {
            Ok(Answer::Done(_)) => return glance.trouble,
            Ok(_) => "the daemon's answer is strange".to_owned(),
            Err(e) => e.to_string(),
        };
        guard.arm();
        let kept = match callbacks::keep(&glance.state_dir, &call) {
            Ok(()) => "kept for its return".to_owned(),
            Err(e) => format!("and it could not be kept in {}: {e}", glance.state_dir.display()),
        };
        let trouble = glance.trouble.map(|trouble| format!("; {trouble}")).unwrap_or_default();
        Some(format!("{why}; {kept}{trouble}"))
    }
}
