//! What the commands that Patroni runs as its children have in common: `callback` and `hook`. No runtime, no TLS, no
//! command line parser, one line for Patroni's log, and an end that nothing that hangs can put off.

use super::{callback, hook};
use crate::config;
use std::ffi::OsString;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

/// The guard's own line may take this long.
const LAST_WORD: Duration = Duration::from_millis(100);

/// One of these commands.
#[derive(Debug, PartialEq, Eq)]
pub enum Child {
    /// `pgsquire callback`.
    Callback(callback::Invocation),
    /// `pgsquire hook`.
    Hook(hook::Invocation),
}

impl Child {
    /// Finds it in the arguments without the command line parser: `--config` may stand anywhere. Somebody who asks for
    /// help is not Patroni.
    pub fn find(args: &[OsString]) -> Option<Child> {
        let mut config = std::env::var_os("PGSQUIRE_CONFIG").filter(|value| !value.is_empty());
        let mut words = Vec::new();
        let mut args = args.iter().skip(1);
        while let Some(arg) = args.next() {
            let text = arg.to_string_lossy();
            match text.as_ref() {
                "--config" => config = args.next().cloned(),
                "--help" | "-h" => return None,
                _ if text.starts_with("--config=") => config = Some(text["--config=".len()..].into()),
                _ if words.is_empty() && text != "callback" && text != "hook" => return None,
                _ => words.push(text.into_owned()),
            }
        }
        let config = config.map_or_else(|| PathBuf::from(config::DEFAULT_FILE), PathBuf::from);
        let (command, words) = words.split_first()?;
        match command.as_str() {
            "callback" => Some(Child::Callback(callback::Invocation::new(config, words.to_vec()))),
            _ => hook::Invocation::find(config, words).map(Child::Hook),
        }
    }

    /// Does it, within its bound.
    pub fn run(self) -> ExitCode {
        match self {
            Child::Callback(callback) => callback.run(),
            Child::Hook(hook) => hook.run(),
        }
    }
}

/// How such a command ends.
pub(super) struct Ending {
    /// Exit status.
    pub code: u8,
    /// What the operator should read in Patroni's log.
    pub line: Option<String>,
}

/// Does the work under a guard; after `bound` the process ends with status 0, unless the work tells the guard otherwise.
pub(super) fn run(name: &'static str, bound: Duration, work: impl FnOnce(&Guard) -> Ending) -> ExitCode {
    let guard = Guard::new(name, bound);
    // The work stays in this thread: on a busy machine each hand-over between threads may cost milliseconds.
    let broken =
        |_| Ending { code: guard.last_word().code, line: Some("this should not have happened".into()) };
    let ending = catch_unwind(AssertUnwindSafe(|| work(&guard))).unwrap_or_else(broken);
    if let Some(line) = &ending.line {
        guard.arm();
        complain(name, line);
    }
    // Without waiting for the guard.
    ExitCode::from(ending.code)
}

/// Ends the process when its time is over. A thread of its own, because not everything that may hang has a time-out:
/// files have none. A thread costs a tenth of a callback's time, so it is started only before such work.
pub(super) struct Guard {
    name: &'static str,
    last_word: Arc<Mutex<LastWord>>,
    /// Empty inside: the system gave us no thread. The sockets' time-outs are still there.
    thread: OnceLock<Option<Thread>>,
}

#[derive(Clone, Copy)]
struct LastWord {
    begin: Instant,
    end: Instant,
    code: u8,
}

impl Guard {
    fn new(name: &'static str, bound: Duration) -> Guard {
        let begin = Instant::now();
        let last_word = Arc::new(Mutex::new(LastWord { begin, end: begin + bound, code: 0 }));
        Guard { name, last_word, thread: OnceLock::new() }
    }

    /// From now on something may hang that has no time-out. The time runs since the start of the command.
    pub fn arm(&self) {
        self.thread.get_or_init(|| {
            let (name, shared) = (self.name, self.last_word.clone());
            let thread = std::thread::Builder::new().spawn(move || watch(name, &shared));
            thread.ok().map(|handle| handle.thread().clone())
        });
    }

    /// The exit status for the case that the time is over.
    pub fn set_code(&self, code: u8) {
        lock(&self.last_word).code = code;
    }

    /// The time is over after this, from now on.
    pub fn set_bound(&self, bound: Duration) {
        lock(&self.last_word).end = Instant::now() + bound;
        if let Some(Some(thread)) = self.thread.get() {
            thread.unpark();
        }
    }

    fn last_word(&self) -> LastWord {
        *lock(&self.last_word)
    }
}

fn watch(name: &'static str, shared: &Mutex<LastWord>) {
    loop {
        let LastWord { begin, end, code } = *lock(shared);
        match end.checked_duration_since(Instant::now()) {
            Some(left) if !left.is_zero() => std::thread::park_timeout(left),
            _ => {
                say_if_heard(name, format!("gave up after {} ms", (end - begin).as_millis()));
                std::process::exit(i32::from(code));
            }
        }
    }
}

/// Standard error may be what hangs: a pipe that nobody reads.
fn say_if_heard(name: &'static str, line: String) {
    let (said, heard) = mpsc::channel();
    let speaker = std::thread::Builder::new().spawn(move || {
        complain(name, &line);
        let _ = said.send(());
    });
    if speaker.is_ok() {
        let _ = heard.recv_timeout(LAST_WORD);
    }
}

/// Nothing can be half written under this lock.
fn lock(shared: &Mutex<LastWord>) -> MutexGuard<'_, LastWord> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One line in one write: Patroni's log is shared with others.
fn complain(name: &str, line: &str) {
    let line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let _ = std::io::stderr().write_all(format!("pgsquire {name}: {line}\n").as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgsquire_core::event::HookKind;

    fn find(line: &str) -> Option<Child> {
        let args: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        Child::find(&args)
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
            let want = Child::Callback(callback::Invocation::new("/c".into(), words()));
            assert_eq!(find(line), Some(want), "{line}");
        }
        let bare = Child::Callback(callback::Invocation::new(config::DEFAULT_FILE.into(), vec![]));
        assert_eq!(find("pgsquire callback"), Some(bare));
    }

    #[test]
    fn a_hook_is_found_whatever_follows() {
        for (line, config, kind) in [
            ("pgsquire hook before-stop", config::DEFAULT_FILE, HookKind::BeforeStop),
            ("pgsquire hook pre-promote --config /c", "/c", HookKind::PrePromote),
            ("pgsquire --config=/c hook pre_promote", "/c", HookKind::PrePromote),
            ("pgsquire hook pre-promote more words --nosuch", config::DEFAULT_FILE, HookKind::PrePromote),
        ] {
            let want = Child::Hook(hook::Invocation::new(config.into(), kind));
            assert_eq!(find(line), Some(want), "{line}");
        }
    }

    #[test]
    fn other_commands_are_not_ours() {
        for line in [
            "pgsquire",
            "pgsquire status callback",
            "pgsquire --help",
            "pgsquire callback --help",
            "pgsquire hook",
            "pgsquire hook nosuch",
            "pgsquire hook before-stop --help",
        ] {
            assert_eq!(find(line), None, "{line}");
        }
    }
}
