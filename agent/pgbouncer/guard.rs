//! The guard process: while a pause of ours is on, somebody is there to end it who does not depend on the agent.
//!
//! There is one per state folder. It holds a lock for as long as it lives, and it gets that lock from whoever starts it,
//! as its standard input: from the first moment on the lock says truly whether there is a guard.

use super::pauses::{self, Journal, folder};
use super::release::release;
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
    loop {
        let Some(next) = pauses::next_end(state_dir) else {
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
