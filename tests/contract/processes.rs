//! Real neighbours as child processes: own folders, free ports, ended by their own id.

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, User, geteuid};
use std::fs::File;
use std::net::TcpListener;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tokio::time::{Instant, MissedTickBehavior, interval};

/// Nothing here takes a tenth of it; it is for a machine that is busy with something else.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A child that dies with its owner, and with this test thread.
pub struct Process {
    child: Child,
}

/// How to run it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum As {
    /// As we are.
    Me,
    /// PostgreSQL and PgBouncer refuse root.
    Postgres,
}

impl Process {
    /// Starts a program; what it says goes to a file.
    pub fn start(who: As, program: &str, args: &[&str], log: &Path) -> Process {
        let log = File::options().create(true).append(true).open(log).unwrap();
        let child = command(who, program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {program}: {e}"));
        Process { child }
    }

    /// Its id.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    /// The ids of its children.
    pub fn children(&self) -> Vec<Pid> {
        let pid = self.pid();
        let list = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        list.split_whitespace().map(|child| Pid::from_raw(child.parse().unwrap())).collect()
    }

    /// Sends a signal. One that is told to stop has stopped: on a busy machine its other threads go on for a while.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
        if signal == Signal::SIGSTOP {
            waitpid(self.pid(), Some(WaitPidFlag::WUNTRACED)).unwrap();
        }
    }

    /// Waits for its end.
    pub fn wait(mut self) {
        let _ = self.child.wait();
    }

    /// Sends SIGKILL and waits for the end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A command that ends with this thread. Debian keeps servers where not every PATH looks.
pub fn command(who: As, program: &str) -> Command {
    let mut command = Command::new("setpriv");
    if who == As::Postgres && geteuid().is_root() {
        command.args(["--reuid", "postgres", "--regid", "postgres", "--init-groups"]);
    }
    command.args(["--pdeathsig", "KILL", program]);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/usr/lib/postgresql/15/bin"));
    command
}

/// Runs a command to its end.
pub fn succeed(command: &mut Command) {
    let out = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
}

/// Gives a folder or file to the user that PostgreSQL and PgBouncer run as.
pub fn give_to_postgres(path: &Path) {
    if geteuid().is_root() {
        let user = User::from_name("postgres").unwrap().expect("no user postgres on this host");
        chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    }
}

/// A TCP port on 127.0.0.1 that nobody listens on. Below the range that the kernel takes for outgoing connections, so
/// that it is still free when it is used, and never given twice.
pub fn free_port() -> u16 {
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 20_000;
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    loop {
        let nth = TAKEN.fetch_add(1, Ordering::Relaxed);
        // Test programs that run side by side begin at different places.
        let port =
            u16::try_from(FIRST + (std::process::id().wrapping_mul(101).wrapping_add(nth)) % COUNT).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Asks again until there is something.
pub async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    let mut again = interval(Duration::from_millis(20));
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        again.tick().await;
        if let Some(found) = ask().await {
            return found;
        }
        assert!(Instant::now() < deadline, "still not: {what}");
    }
}
