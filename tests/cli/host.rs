//! A host with a folder of its own, on which the daemon may run.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

/// The program under test.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_pgsquire");
/// Nothing in these tests takes longer, unless it hangs.
pub const LONG: Duration = Duration::from_secs(20);

pub struct Host {
    folder: tempfile::TempDir,
    pub port: u16,
    daemon: Option<Child>,
    /// Plays systemd.
    systemd: UnixDatagram,
}

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

impl Host {
    /// A host that only has a folder and a configuration.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path();
        // Other users must be able to come as far as the socket.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("mode set");
        std::fs::create_dir(path.join("state")).expect("folder made");
        let systemd = UnixDatagram::bind(path.join("notify")).expect("notify socket");
        systemd.set_read_timeout(Some(LONG)).expect("time-out set");
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = free.local_addr().expect("address").port();
        let host = Host { folder, port, daemon: None, systemd };
        host.configure("");
        host
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn config(&self) -> PathBuf {
        self.path("config.toml")
    }

    /// Writes the configuration: what every host here has, and more.
    pub fn configure(&self, more: &str) {
        let folder = self.folder.path().display();
        let text = format!(
            "[node]\nname = 'host1'\nstate_dir = '{folder}/state'\n[control]\nsocket = '{folder}/control.sock'\n\
             [http]\nlisten = '127.0.0.1:{}'\n{more}",
            self.port
        );
        std::fs::write(self.config(), text).expect("configuration written");
    }

    /// Starts the daemon and waits for its READY=1.
    pub fn start(&mut self) {
        let mut command = self.command(&["run"]);
        let daemon = command.env("NOTIFY_SOCKET", self.path("notify")).stderr(Stdio::null()).spawn();
        self.daemon = Some(daemon.expect("daemon started"));
        self.told("READY=1");
    }

    /// Starts the daemon with a listener as a socket unit passes it.
    pub fn start_with_listener(&mut self, listener: TcpListener) {
        let script = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" run";
        let mut command = Command::new("sh");
        command.args(["-c", script, PROGRAM]).env("PGSQUIRE_CONFIG", self.config());
        command.env("NOTIFY_SOCKET", self.path("notify"));
        command.stdin(Stdio::from(OwnedFd::from(listener))).stderr(Stdio::null());
        self.daemon = Some(command.spawn().expect("daemon started"));
        self.told("READY=1");
    }

    /// Waits until the daemon has told systemd this.
    pub fn told(&self, what: &str) {
        let mut buffer = [0; 4096];
        loop {
            let length = match self.systemd.recv(&mut buffer) {
                // A test that is stopped and continued is not one that was told nothing.
                Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                received => received.unwrap_or_else(|e| panic!("no {what}: {e}")),
            };
            if String::from_utf8_lossy(&buffer[..length]).lines().any(|line| line == what) {
                return;
            }
        }
    }

    /// Whether anything was told that nobody waited for.
    pub fn told_nothing(&self) -> bool {
        self.systemd.set_nonblocking(true).expect("set");
        self.systemd.recv(&mut [0; 10]).is_err()
    }

    /// SIGTERM; gives the exit status.
    pub fn stop(&mut self) -> Option<i32> {
        let mut daemon = self.daemon.take().expect("a daemon runs");
        signal(&daemon, "TERM");
        daemon.wait().expect("ended").code()
    }

    /// SIGKILL: the socket's file stays.
    pub fn crash(&mut self) {
        let mut daemon = self.daemon.take().expect("a daemon runs");
        daemon.kill().expect("killed");
        daemon.wait().expect("ended");
    }

    /// Sends the daemon a signal.
    pub fn signal(&self, name: &str) {
        signal(self.daemon.as_ref().expect("a daemon runs"), name);
    }

    /// A command that uses this host's configuration.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(args).env("PGSQUIRE_CONFIG", self.config()).env_remove("NOTIFY_SOCKET");
        command
    }

    /// Runs a command to its end.
    pub fn run(&self, args: &[&str]) -> Ran {
        self.command(args).output().expect("ran").into()
    }

    /// The same as somebody else. Only root can do that.
    pub fn run_as(&self, uid: u32, args: &[&str]) -> Ran {
        // Somebody else may not be able to read the folder that the program was built in.
        let program = self.path("pgsquire");
        if !program.exists() {
            std::fs::copy(PROGRAM, &program).expect("program copied");
        }
        let mut command = Command::new("setpriv");
        command.args([&format!("--reuid={uid}"), &format!("--regid={uid}"), "--clear-groups", "--"]);
        command.arg(program).args(args).env("PGSQUIRE_CONFIG", self.config());
        command.output().expect("setpriv ran").into()
    }

    /// A raw connection to the control socket.
    pub fn connect(&self) -> UnixStream {
        let stream = UnixStream::connect(self.path("control.sock")).expect("connected");
        stream.set_read_timeout(Some(LONG)).expect("time-out set");
        stream.set_write_timeout(Some(LONG)).expect("time-out set");
        stream
    }

    /// `METHOD path` over HTTP: status, headers in small letters, body.
    pub fn http(&self, method: &str, path: &str) -> (u16, String, String) {
        http(&format!("127.0.0.1:{}", self.port), method, path)
    }

    /// Waits until a command that goes on prints a line with this.
    pub fn wait_for_line(&self, follow: &[&str], part: &str) -> String {
        let mut child = self.command(follow).stdout(Stdio::piped()).spawn().expect("started");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let (found, line) = std::sync::mpsc::channel();
        let wanted = part.to_owned();
        let reader = std::thread::spawn(move || {
            let line = lines.map_while(Result::ok).find(|line| line.contains(&wanted));
            let _ = found.send(line);
        });
        let line = line.recv_timeout(LONG).ok().flatten();
        child.kill().expect("killed");
        child.wait().expect("ended");
        reader.join().expect("reader ended");
        line.unwrap_or_else(|| panic!("{follow:?} says nothing with {part:?}"))
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status();
    assert!(status.expect("kill ran").success());
}

/// One HTTP request over a connection of its own.
pub fn http(address: &str, method: &str, path: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(address).expect("connected");
    stream.set_read_timeout(Some(LONG)).expect("time-out set");
    let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answered");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
    (code, head.to_ascii_lowercase(), body.to_owned())
}

/// Whether this process may become somebody else.
pub fn is_root() -> bool {
    nix::unistd::Uid::effective().is_root()
}

/// The lines of a file; none when it is not there.
pub fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path).unwrap_or_default().lines().map(str::to_owned).collect()
}
