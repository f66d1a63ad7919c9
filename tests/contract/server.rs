//! A PostgreSQL of our own.

use crate::processes::{As, Process, command, free_port, give_to_postgres, succeed, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::PathBuf;
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls};

/// It, on 127.0.0.1, with user postgres trusted.
pub struct Server {
    /// Its TCP port.
    pub port: u16,
    dir: TempDir,
    process: Option<Process>,
    /// Children of a postmaster that was killed.
    orphans: Vec<Pid>,
}

impl Server {
    /// Makes and starts one.
    pub async fn start() -> Server {
        let server = Server::make();
        let data = server.data();
        succeed(
            command(As::Postgres, "initdb")
                .args(["--no-sync", "-A", "trust", "-U", "postgres", "-D"])
                .arg(data),
        );
        server.begin().await
    }

    /// Makes a replica of this one and starts it.
    pub async fn replica(&self) -> Server {
        let replica = Server::make();
        let port = self.port.to_string();
        let base = ["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-R", "-c", "fast", "--no-sync", "-D"];
        succeed(command(As::Postgres, "pg_basebackup").args(base).arg(replica.data()));
        replica.begin().await
    }

    fn make() -> Server {
        let dir = tempfile::Builder::new().prefix("postgres").tempdir().unwrap();
        give_to_postgres(dir.path());
        Server { port: free_port(), dir, process: None, orphans: Vec::new() }
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// The folder of its unix socket.
    pub fn socket_dir(&self) -> String {
        self.dir.path().display().to_string()
    }

    async fn begin(mut self) -> Server {
        let (data, port, socket) =
            (self.data().display().to_string(), self.port.to_string(), self.socket_dir());
        let socket = format!("unix_socket_directories={socket}");
        let args =
            ["-D", &data, "-p", &port, "-c", "listen_addresses=127.0.0.1", "-c", &socket, "-c", "fsync=off"];
        self.process = Some(Process::start(As::Postgres, "postgres", &args, &self.dir.path().join("log")));
        let conninfo = self.conninfo();
        until("PostgreSQL answers", async || connect(&conninfo, "postgres").await.ok()).await;
        self
    }

    /// How to reach it by TCP.
    pub fn conninfo(&self) -> String {
        format!("host=127.0.0.1 port={} user=postgres", self.port)
    }

    /// Ends it at once. SIGKILL would leave its shared memory behind.
    pub fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.signal(Signal::SIGQUIT);
            process.wait();
        }
    }

    /// Sends SIGKILL to the postmaster, as the kernel does when memory is short. Its shared memory is cleaned up when it
    /// is started again.
    pub fn crash(&mut self) {
        let process = self.process.as_ref().unwrap();
        self.orphans = process.children();
        process.signal(Signal::SIGKILL);
    }

    /// Sends a signal to all of its processes.
    pub fn signal_all(&self, signal: Signal) {
        let process = self.process.as_ref().unwrap();
        process.signal(signal);
        for child in process.children() {
            // One may have ended meanwhile.
            let _ = kill(child, signal);
        }
    }

    /// Asks it to stop as Patroni does, and waits for its end.
    pub async fn stop_fast(&mut self) {
        let process = self.process.take().unwrap();
        process.signal(Signal::SIGINT);
        tokio::task::spawn_blocking(move || process.wait()).await.unwrap();
    }

    /// Starts it again on the same port.
    pub async fn again(mut self) -> Server {
        self.process = None;
        let orphans = std::mem::take(&mut self.orphans);
        let lives = |pid: &Pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.contains("postgres") && !stat.contains(") Z ")
        };
        until("the orphans are gone", async || (!orphans.iter().any(lives)).then_some(())).await;
        self.begin().await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A client whose connection ends with the test.
pub async fn connect(conninfo: &str, database: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) =
        tokio_postgres::connect(&format!("{conninfo} dbname={database}"), NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}
