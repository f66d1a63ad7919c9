//! A PgBouncer of our own before a PostgreSQL, and the worker under test.

use crate::processes::{As, PATIENCE, Process, free_port, succeed, until};
use crate::server::{Server, connect};
use crate::worker::Worker;
use nix::sys::signal::Signal;
use pgsquire::pgbouncer::{self, WorkerConfig};
use pgsquire_core::effect::{Order, PoolerOrder};
use pgsquire_core::event::Outcome;
use pgsquire_core::pgbouncer::console::{ConsoleView, LoadedDatabase};
use pgsquire_core::pgbouncer::ini::Files;
use std::path::{Path, PathBuf};
use std::process::Command;
use tempfile::TempDir;
use tokio::time::timeout;
use tokio_postgres::Client;

/// The program under test: what runs the guard of pauses.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_pgsquire");

/// Which PgBouncer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Build {
    /// The one of this host: 1.18.
    System,
    /// 1.24, put into the cache by `tests/setup matrix`.
    Debian13,
}

/// A PgBouncer before a PostgreSQL, and our worker.
pub struct World {
    pub dir: TempDir,
    pub server: Server,
    pub port: u16,
    pub bouncer: Option<Process>,
    pub worker: Worker,
    build: Build,
}

pub const SETTINGS: &str = "auth_type = trust\nserver_login_retry = 15\npool_mode = transaction\n";

impl World {
    pub async fn start(databases: &str, settings: &str) -> World {
        World::of(Build::System, databases, settings).await
    }

    /// Databases of these names, all leading to the server.
    pub async fn with(build: Build, databases: &[&str], settings: &str) -> World {
        let mut world = World::of(build, "", settings).await;
        let entries: String = databases.iter().map(|name| world.entry(name, "127.0.0.1")).collect();
        std::fs::write(world.path("p.ini"), world.ini(&entries, settings)).unwrap();
        world.done(PoolerOrder::Reload).await;
        world
    }

    async fn of(build: Build, databases: &str, settings: &str) -> World {
        let server = Server::start().await;
        let dir = tempfile::Builder::new().prefix("console").tempdir().unwrap();
        crate::processes::give_to_postgres(dir.path());
        let port = free_port();
        let config = config(dir.path(), &format!("host=127.0.0.1 port={port} user=boss"));
        let worker = worker(config);
        let mut world = World { dir, server, port, bouncer: None, worker, build };
        if build == Build::Debian13 {
            let cache = std::env::var_os("XDG_CACHE_HOME").map_or_else(
                || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache"),
                PathBuf::from,
            );
            // Where the user that it runs as can read it.
            let from = cache.join("pgsquire/pgbouncer-debian13");
            succeed(Command::new("cp").arg("-rL").arg(from).arg(world.path("debian13")));
            succeed(Command::new("chmod").args(["-R", "a+rX"]).arg(world.path("debian13")));
        }
        std::fs::write(world.path("users"), "\"boss\" \"secret\"\n\"postgres\" \"\"\n").unwrap();
        std::fs::write(world.path("p.ini"), world.ini(databases, settings)).unwrap();
        world.begin().await;
        world
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn ini(&self, databases: &str, settings: &str) -> String {
        let dir = self.dir.path().display();
        format!(
            "[databases]\n{databases}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {}\nunix_socket_dir = {dir}\n\
             auth_file = {dir}/users\nadmin_users = boss\n{settings}",
            self.port
        )
    }

    /// An entry that leads to the server.
    pub fn entry(&self, name: &str, host: &str) -> String {
        format!("{name} = host={host} port={} dbname=postgres\n", self.server.port)
    }

    pub async fn begin(&mut self) {
        let path = |name: &str| self.path(name).to_str().unwrap().to_owned();
        let (program, mut args) = match self.build {
            Build::System => ("pgbouncer".to_owned(), Vec::new()),
            Build::Debian13 => {
                let own = ["--library-path".into(), path("debian13/lib"), path("debian13/bin/pgbouncer")];
                (path("debian13/lib/ld.so"), own.to_vec())
            }
        };
        args.push(path("p.ini"));
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let bouncer = Process::start(As::Postgres, &program, &args, &self.path("log"));
        self.bouncer = Some(bouncer);
        let port = self.port;
        until("PgBouncer listens", async || tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok())
            .await;
    }

    pub fn signal(&self, signal: Signal) {
        self.bouncer.as_ref().unwrap().signal(signal);
    }

    pub async fn order(&mut self, order: PoolerOrder) -> Outcome {
        self.worker.outcome(Order::Pooler { pooler: "write".into(), order }).await
    }

    pub async fn done(&mut self, order: PoolerOrder) {
        let said = order.to_string();
        assert_eq!(self.order(order).await, Outcome::Done, "{said}");
    }

    pub async fn why_not(&mut self, order: PoolerOrder) -> String {
        match self.order(order).await {
            Outcome::Failed { why } => why,
            other => panic!("this cannot be: {other:?}"),
        }
    }

    pub async fn look(&mut self) -> ConsoleView {
        match self.order(PoolerOrder::Look).await {
            Outcome::Console(view) => view,
            other => panic!("{other:?}"),
        }
    }

    pub async fn files(&mut self) -> Files {
        match self.order(PoolerOrder::ReadFiles).await {
            Outcome::Files(files) => files,
            other => panic!("{other:?}"),
        }
    }

    /// What an operator does.
    pub async fn operator(&self) -> Client {
        connect(&self.console(), "pgbouncer").await.unwrap()
    }

    /// Connection string of the console.
    pub fn console(&self) -> String {
        format!("host=127.0.0.1 port={} user=boss", self.port)
    }

    /// The worker dies in the middle, without a word.
    pub async fn crash_worker(&mut self) {
        self.worker.crash().await;
    }

    /// A worker in the place of one that is gone.
    pub fn another_worker(&mut self) {
        self.worker = worker(config(self.dir.path(), &self.console()));
    }

    pub async fn client(&self, database: &str) -> Client {
        connect(&format!("host=127.0.0.1 port={} user=postgres", self.port), database).await.unwrap()
    }
}

/// A worker of this pooler.
pub fn worker(config: WorkerConfig) -> Worker {
    Worker::start(16, |orders, events, stop| {
        pgbouncer::run_with_guard(config, PROGRAM.into(), orders, events, stop)
    })
}

pub fn config(dir: &Path, console: &str) -> WorkerConfig {
    WorkerConfig {
        pooler: "write".into(),
        ini: dir.join("p.ini"),
        cwd: None,
        console: console.into(),
        password_file: None,
        state_dir: dir.join("state"),
    }
}

pub fn database<'a>(view: &'a ConsoleView, name: &str) -> &'a LoadedDatabase {
    view.databases.iter().find(|d| d.name == name).unwrap_or_else(|| panic!("{name} is not in {view:?}"))
}

pub async fn answers(client: &Client) -> bool {
    timeout(PATIENCE, client.simple_query("SELECT 1")).await.expect("no answer").is_ok()
}
