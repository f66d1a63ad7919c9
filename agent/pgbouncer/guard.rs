//! The guard process: while a pause of ours is on, somebody is there to end it who does not depend on the agent.
//!
//! There is one per state folder. It holds a lock for as long as it lives, and it gets that lock from whoever starts it,
//! as its standard input: from the first moment on the lock says truly whether there is a guard.

use super::notes::Notes;
use super::pauses::{self, Entry, Journal, folder};
use super::release::{self, release};
use crate::{clock, files};
use futures_util::future::join_all;
use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use std::fs::{File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::{Child, Command};

/// Its lock, in the folder of the journals.
const LOCK: &str = ".guard";
/// How often the guard reads the journals.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Starts the guard where there is none.
#[derive(Debug)]
pub struct Guard {
    program: PathBuf,
    state_dir: PathBuf,
    /// The one that we started: it must not stay a zombie.
    child: Option<Child>,
}

impl Guard {
    /// A guard of pauses in this state folder, run by this program: the pgsquire program.
    pub fn new(program: PathBuf, state_dir: &Path) -> Self {
        let state_dir = std::path::absolute(state_dir).unwrap_or_else(|_| state_dir.into());
        Guard { program, state_dir, child: None }
    }

    /// Sees that there is one.
    ///
    /// # Errors
    /// A sentence, when there is none and none can be started.
    pub fn ensure(&mut self) -> Result<(), String> {
        let lock = folder(&self.state_dir).join(LOCK);
        files::private_folder(&folder(&self.state_dir)).map_err(|e| e.to_string())?;
        let mut open = OpenOptions::new();
        let file = open
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock)
            .map_err(|e| format!("cannot open {}: {e}", lock.display()))?;
        if !lock_whole(&file, libc::F_WRLCK) {
            return Ok(());
        }
        // No session of its own here: it makes that itself, and without other work the child is there in a millisecond.
        let mut command = Command::new(&self.program);
        command.arg0("pgsquire").args(["release", "--guard", "--state-dir"]).arg(&self.state_dir);
        command.env_clear().current_dir("/");
        command.stdin(Stdio::from(file)).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command
            .spawn()
            .map_err(|e| format!("cannot start the guard of pauses, {}: {e}", self.program.display()))?;
        self.child = Some(child);
        Ok(())
    }

    /// Waits for the end of the guard that was started here; for ever, if none was.
    pub async fn ended(&mut self) {
        match &mut self.child {
            Some(child) => {
                let _ = child.wait().await;
            }
            None => std::future::pending().await,
        }
        self.child = None;
    }
}

/// A pooler whose `server_login_retry` is lowered for a while: the server that it leads to may be away, and with the
/// default of 15 s its clients would go on waiting for as long after the pause has ended.
struct Eased {
    notes: Notes,
    pooler: String,
    console: String,
    password_file: Option<PathBuf>,
    value: String,
    until: pgsquire_core::time::Time,
}

/// A lowered `server_login_retry` is given back after this at the latest.
const EASE_AT_MOST: Duration = Duration::from_secs(30);

impl Eased {
    /// Notes the value and lowers it, so that the next run of the agent or `pgsquire release` gives it back if we cannot.
    /// None: it is 0 already, or the console does not let us.
    async fn begin(state_dir: &Path, entry: &Entry) -> Option<Eased> {
        let mut console = release::console(&entry.pooler, &entry.console, entry.password_file.as_deref());
        let value = console.setting(LOGIN_RETRY).await.ok().flatten()?;
        let seconds = value.trim().parse::<f64>().ok().filter(|seconds| *seconds > 0.0)?;
        let notes =
            Notes::new(state_dir, &entry.pooler).of_console(&entry.console, entry.password_file.as_deref());
        notes.borrow_login_retry(&value).ok()?;
        let lasts = Duration::try_from_secs_f64(seconds).unwrap_or(EASE_AT_MOST).min(EASE_AT_MOST);
        let eased = Eased {
            notes,
            pooler: entry.pooler.clone(),
            console: entry.console.clone(),
            password_file: entry.password_file.clone(),
            value,
            until: clock::now() + lasts,
        };
        // Refused or without an answer: it is noted, and given back like one that worked.
        let _ = console.run(&super::console::set(LOGIN_RETRY, "0")).await;
        Some(eased)
    }
}

const LOGIN_RETRY: &str = "server_login_retry";

/// Gives back what is due. What fails stays noted: the next run of the agent and `pgsquire release` know it.
async fn give_back(eased: Vec<Eased>) -> Vec<Eased> {
    let mut left = Vec::new();
    for one in eased {
        if clock::now() < one.until {
            left.push(one);
            continue;
        }
        let mut console = release::console(&one.pooler, &one.console, one.password_file.as_deref());
        if console.give_back(LOGIN_RETRY, &one.value).await.is_ok() {
            let _ = one.notes.return_login_retry();
        }
    }
    left
}

/// Locks or unlocks a whole file; says whether that was possible. The lock belongs to the open file, whatever process
/// holds it: it ends with its last holder.
fn lock_whole(file: impl AsFd, kind: i32) -> bool {
    fcntl(file, FcntlArg::F_OFD_SETLK(&whole(kind))).is_ok()
}

fn whole(kind: i32) -> libc::flock {
    let narrow = |n: i32| i16::try_from(n).unwrap_or_default();
    libc::flock { l_type: narrow(kind), l_whence: narrow(libc::SEEK_SET), l_start: 0, l_len: 0, l_pid: 0 }
}

/// The guard process itself: ends each pause one second after its end, and returns when there is none left. Its standard
/// input is the lock.
pub async fn watch(state_dir: &Path) {
    // Out of reach of the signals that a terminal or a job control sends to the agent's group. It fails only when we
    // have a session of our own already.
    let _ = nix::unistd::setsid();
    let mut eased: Vec<Eased> = Vec::new();
    loop {
        eased = give_back(eased).await;
        let Some(next) = pauses::next_end(state_dir) else {
            if !eased.is_empty() {
                tokio::time::sleep(LOOK_EVERY).await;
                continue;
            }
            // Who journals a pause and still finds the lock taken counts on us: look once more without it.
            lock_whole(std::io::stdin(), libc::F_UNLCK);
            if pauses::next_end(state_dir).is_none() || !lock_whole(std::io::stdin(), libc::F_WRLCK) {
                return;
            }
            continue;
        };
        if next.is_zero() {
            let (journals, _) = Journal::all(state_dir);
            let (boot_id, now) = (pauses::boot_id(), clock::now());
            // Side by side: one console that is silent must not keep the others waiting. What fails is tried again: an
            // agent that comes back, or `pgsquire release`, says so to people.
            let due = journals.iter().filter_map(|journal| journal.read().ok().flatten());
            let due: Vec<_> = due.filter(|entry| entry.end(&boot_id) <= now).collect();
            eased.extend(
                join_all(due.iter().map(|entry| Eased::begin(state_dir, entry))).await.into_iter().flatten(),
            );
            join_all(journals.iter().map(|journal| release(journal, |entry| entry.end(&boot_id) <= now)))
                .await;
        }
        // Not the whole time at once: the journal may say another end, and this clock stands still in a suspended host.
        match pauses::next_end(state_dir) {
            Some(left) if left < LOOK_EVERY && !left.is_zero() => tokio::time::sleep(left).await,
            Some(_) => tokio::time::sleep(LOOK_EVERY).await,
            None => {}
        }
    }
}

/// The program that runs, also after its file was replaced by an upgrade.
pub fn this_program() -> PathBuf {
    "/proc/self/exe".into()
}

/// Whether there is a guard of this state folder.
pub fn is_there(state_dir: &Path) -> bool {
    let Ok(file) = File::open(folder(state_dir).join(LOCK)) else { return false };
    // Asks, and takes nothing: whoever looks must not be mistaken for a guard.
    let mut lock = whole(libc::F_WRLCK);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut lock)).is_ok() && lock.l_type != whole(libc::F_UNLCK).l_type
}
