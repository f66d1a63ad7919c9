//! `pgsquire callback ACTION ROLE SCOPE`: hands Patroni's words to the daemon, or keeps them for it.
//!
//! No runtime, no TLS, no check of the configuration; the exit status is always 0, because Patroni must never suffer.

use crate::config;
use crate::control::client::Client;
use crate::control::{Answer, Request};
use crate::journal::callbacks::{self, Call};
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
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

    /// Finds a callback in the arguments without the command line parser: `--config` may stand anywhere.
    /// Somebody who asks for help is no callback.
    pub fn find(args: &[OsString]) -> Option<Self> {
        let mut config = std::env::var_os("PGSQUIRE_CONFIG").filter(|value| !value.is_empty());
        let mut words = Vec::new();
        let mut args = args.iter().skip(1);
        while let Some(arg) = args.next() {
            let text = arg.to_string_lossy();
            match text.as_ref() {
                "--config" => config = args.next().cloned(),
                "--help" | "-h" => return None,
                _ if text.starts_with("--config=") => config = Some(text["--config=".len()..].into()),
                _ if words.is_empty() && text != "callback" => return None,
                _ => words.push(text.into_owned()),
            }
        }
        if words.is_empty() {
            return None;
        }
        words.remove(0);
        let config = config.map_or_else(|| PathBuf::from(config::DEFAULT_FILE), PathBuf::from);
        Some(Invocation { config, words })
    }

    /// Does it, within the bound.
    pub fn run(self) -> ExitCode {
        let (done, finished) = mpsc::channel();
        // In a thread of its own, because not everything that may hang has a time-out: files have none.
        let work = std::thread::Builder::new().spawn(move || {
            let trouble = self.deliver();
            let _ = done.send(trouble);
        });
        let trouble = match work {
            Ok(_) => match finished.recv_timeout(BOUND) {
                Ok(trouble) => trouble,
                Err(_) => Some("gave up after half a second; the daemon looks for itself anyway".to_owned()),
            },
            Err(e) => Some(format!("cannot start a thread: {e}")),
        };
        if let Some(trouble) = trouble {
            // In one write: Patroni's log is shared with others.
            let _ = std::io::stderr().write_all(format!("pgsquire callback: {trouble}\n").as_bytes());
        }
        // Without waiting for the thread.
        ExitCode::SUCCESS
    }

    /// Gives what the operator should read in Patroni's log.
    fn deliver(self) -> Option<String> {
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
        let kept = match callbacks::keep(&glance.state_dir, &call) {
            Ok(()) => "kept for its return".to_owned(),
            Err(e) => format!("and it could not be kept in {}: {e}", glance.state_dir.display()),
        };
        let trouble = glance.trouble.map(|trouble| format!("; {trouble}")).unwrap_or_default();
        Some(format!("{why}; {kept}{trouble}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(line: &str) -> Option<(String, Vec<String>)> {
        let args: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        Invocation::find(&args).map(|i| (i.config.display().to_string(), i.words))
    }

    #[test]
    fn a_callback_is_found_wherever_config_stands() {
        let words = || vec!["on_start".to_owned(), "primary".to_owned(), "main".to_owned()];
        for line in [
            "pgsquire callback on_start primary main --config /c",
            "pgsquire --config /c callback on_start primary main",
            "pgsquire --config=/c callback on_start primary main",
            "pgsquire callback --config /c on_start primary main",
        ] {
            assert_eq!(find(line), Some(("/c".to_owned(), words())), "{line}");
        }
        assert_eq!(find("pgsquire callback"), Some((config::DEFAULT_FILE.to_owned(), vec![])));
    }

    #[test]
    fn other_commands_are_not_callbacks() {
        for line in ["pgsquire", "pgsquire status callback", "pgsquire --help", "pgsquire callback --help"] {
            assert_eq!(find(line), None, "{line}");
        }
    }
}
