//! Processes of a lab: started with a mark in their environment, known by PID and start time, ended by exactly that.
//!
//! The mark (`PGSQUIRE_LAB=<folder>`) is inherited, so whatever a component starts in turn (Patroni its PostgreSQL, an
//! agent its guard) is found again without guessing by name.

use std::collections::{HashMap, HashSet};
use std::fs::{self, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, Uid, User};
use serde::{Deserialize, Serialize};

use crate::wait;

/// Environment variable that marks every process of a lab with the lab's folder.
pub const MARK_LAB: &str = "PGSQUIRE_LAB";
/// Environment variable that names the host a process belongs to.
pub const MARK_HOST: &str = "PGSQUIRE_LAB_HOST";

/// The system user that PostgreSQL, Patroni, PgBouncer and the agents run as when the lab is started by root.
pub const SERVICE_USER: &str = "postgres";

/// A process that cannot be mistaken for another one with the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number.
    pub pid: i32,
    /// When it started, in clock ticks since boot.
    pub started: u64,
}

impl ProcessId {
    /// The process that has this number now, if there is one.
    pub fn of(pid: i32) -> Option<Self> {
        Some(Self { pid, started: Stat::read(pid)?.started })
    }

    /// Is it still running? One that has ended and only waits to be collected is not; one whose first thread has ended
    /// is, for the others may still have its sockets.
    pub fn alive(&self) -> bool {
        // A child of ours that has ended is collected here; for other processes this is an error without effect.
        let _ = waitpid(Pid::from_raw(self.pid), Some(WaitPidFlag::WNOHANG));
        Stat::read(self.pid)
            .is_some_and(|s| s.started == self.started && (!matches!(s.state, 'Z' | 'X') || s.threads > 1))
    }

    /// Sends a signal; a process that is gone is not an error.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if !self.alive() {
            return Ok(());
        }
        match kill(Pid::from_raw(self.pid), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(e) => Err(e).with_context(|| format!("sending {signal} to process {}", self.pid)),
        }
    }

    /// SIGTERM, and SIGKILL when `grace` is over.
    pub async fn stop(&self, grace: Duration) -> Result<()> {
        self.signal(Signal::SIGCONT)?;
        self.signal(Signal::SIGTERM)?;
        if wait::until(grace, || !self.alive()).await {
            return Ok(());
        }
        self.signal(Signal::SIGKILL)?;
        if wait::until(Duration::from_secs(5), || !self.alive()).await {
            return Ok(());
        }
        bail!("process {} does not end after SIGKILL", self.pid)
    }

    /// The process and everything below it, itself first.
    pub fn tree(&self) -> Vec<ProcessId> {
        let children = children_by_parent();
        let mut found = vec![*self];
        let mut next = 0;
        while let Some(parent) = found.get(next).map(|p| p.pid) {
            found.extend(children.get(&parent).into_iter().flatten());
            next += 1;
        }
        found.retain(ProcessId::alive);
        found
    }
}

/// What the lab reads from `/proc/<pid>/stat`.
struct Stat {
    state: char,
    parent: i32,
    threads: u32,
    started: u64,
}

impl Stat {
    fn read(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The second field is the program's name in brackets and may hold blanks and brackets itself.
    fn parse(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line[line.rfind(')')? + 1..].split_whitespace().collect();
        Some(Self {
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            threads: fields.get(17)?.parse().ok()?,
            started: fields.get(19)?.parse().ok()?,
        })
    }
}

fn all_pids() -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect()
}

fn children_by_parent() -> HashMap<i32, Vec<ProcessId>> {
    let mut map: HashMap<i32, Vec<ProcessId>> = HashMap::new();
    for pid in all_pids() {
        if let Some(stat) = Stat::read(pid) {
            map.entry(stat.parent).or_default().push(ProcessId { pid, started: stat.started });
        }
    }
    map
}

/// Every living process that carries the lab's mark (and, if given, that host's), with all their descendants.
pub fn marked(lab: &Path, host: Option<&str>) -> Vec<ProcessId> {
    let mut wanted = vec![[MARK_LAB.as_bytes(), b"=", lab.as_os_str().as_bytes()].concat()];
    wanted.extend(host.map(|h| format!("{MARK_HOST}={h}").into_bytes()));
    let own = std::process::id() as i32;
    let roots = all_pids().into_iter().filter(|pid| *pid != own).filter(|pid| {
        let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        wanted.iter().all(|w| environment.split(|b| *b == 0).any(|entry| entry == w))
    });
    let mut seen = HashSet::new();
    let trees = roots.filter_map(ProcessId::of).flat_map(|p| p.tree());
    trees.filter(|p| p.pid != own && seen.insert(*p)).collect()
}

/// Are we root, so that services must be started as another user?
pub fn is_root() -> bool {
    Uid::effective().is_root()
}

/// Gives a file or folder to the user the services run as. Without root there is nothing to give.
pub fn give_to_service_user(path: &Path) -> Result<()> {
    if !is_root() {
        return Ok(());
    }
    let user = User::from_name(SERVICE_USER)?
        .with_context(|| format!("there is no user `{SERVICE_USER}`: run tests/setup first"))?;
    nix::unistd::chown(path, Some(user.uid), Some(user.gid))
        .with_context(|| format!("giving {} to {SERVICE_USER}", path.display()))
}

/// How one component is started.
#[derive(Debug)]
pub struct Launch {
    /// The lab's folder: goes into the mark.
    pub lab: PathBuf,
    /// The host's name: goes into the mark.
    pub host: String,
    /// The host's number: its processes run with this group, by which the network tells senders apart.
    pub group: u32,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Environment beside the mark, `PATH`, `HOME` and `LANG`.
    pub env: Vec<(String, String)>,
    /// Working folder and `HOME`.
    pub folder: PathBuf,
    /// Where standard output and error go, appended.
    pub log: PathBuf,
}

impl Launch {
    /// Starts it in a session of its own, as the service user when we are root.
    pub fn spawn(&self) -> Result<ProcessId> {
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.log)
            .with_context(|| format!("opening log {}", self.log.display()))?;
        give_to_service_user(&self.log)?;
        let group = self.group.to_string();
        let mut command = Command::new("setsid");
        if is_root() {
            command.args(["setpriv", "--reuid", SERVICE_USER, "--regid", &group, "--clear-groups", "--"]);
        }
        command
            .args(&self.command)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin")
            .env("LANG", "C.UTF-8")
            .env("HOME", &self.folder)
            .env(MARK_LAB, &self.lab)
            .env(MARK_HOST, &self.host)
            .envs(self.env.iter().map(|(k, v)| (k, v)))
            .current_dir(&self.folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let child =
            command.spawn().with_context(|| format!("starting {} on {}", self.command[0], self.host))?;
        let pid = i32::try_from(child.id())?;
        ProcessId::of(pid).with_context(|| format!("{} on {} ended at once", self.command[0], self.host))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_line_with_a_bracket_in_the_name() {
        let line = "7 (a) b (c)) S 3 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 1 1 1";
        let stat = Stat::parse(line).expect("parsed");
        assert_eq!((stat.state, stat.parent, stat.started), ('S', 3, 4242));
    }

    #[test]
    fn a_number_taken_over_by_another_process_is_not_alive() {
        let own = ProcessId::of(std::process::id() as i32).expect("we run");
        assert!(own.alive());
        assert!(!ProcessId { started: own.started + 1, ..own }.alive());
    }

    #[tokio::test]
    async fn a_marked_process_is_found_and_stopped() {
        let folder = tempfile::tempdir().expect("folder");
        let mut child = Command::new("sleep")
            .arg("600")
            .env(MARK_LAB, folder.path())
            .env(MARK_HOST, "one")
            .spawn()
            .expect("sleep starts");
        let pid = child.id() as i32;
        let found = || marked(folder.path(), Some("one"));
        // The mark is visible once the child has replaced our image with its own.
        assert!(wait::until(Duration::from_secs(10), || found().iter().any(|p| p.pid == pid)).await);
        assert!(marked(folder.path(), Some("two")).is_empty());
        let id = ProcessId::of(pid).expect("running");
        id.stop(Duration::from_secs(5)).await.expect("stopped");
        assert!(!id.alive());
        assert!(found().is_empty());
        let _ = child.wait();
    }
}
