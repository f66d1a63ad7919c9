//! One PgBouncer process on this host: does what `core/src/pgbouncer` decides.
//!
//! One worker per process, one order at a time. The files are in [`ini_files`], the console in [`console`], pauses in
//! [`pause`], what must outlive the agent in [`notes`] and [`pauses`], and who ends a pause without it in [`guard`] and
//! [`release`].

pub mod console;
pub mod guard;
pub mod ini_files;
pub mod notes;
mod pause;
pub mod pauses;
pub mod release;

use crate::files::Disk;
use crate::session::Target;
use crate::worker::{Worker, work};
use console::Console;
use guard::Guard;
use notes::Notes;
use pause::Pauser;
use pgsquire_core::effect::{Effect, Order, PoolerOrder};
use pgsquire_core::event::{Event, Outcome};
use pgsquire_core::topology::Endpoint;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// PgBouncer's own database, which is its console.
pub const CONSOLE_DATABASE: &str = "pgbouncer";

/// A worker that is stopped ends its pause within this time.
const LET_GO: Duration = Duration::from_secs(2);

/// What the worker must know.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// The pooler's name in our words.
    pub pooler: String,
    /// Its ini file.
    pub ini: PathBuf,
    /// PgBouncer's working directory, where it looks for relative includes. Nobody outside can know it; none: the
    /// folder of the ini file.
    pub cwd: Option<PathBuf>,
    /// Connection string of its console.
    pub console: String,
    /// Holds the console's password.
    pub password_file: Option<PathBuf>,
    /// Our state folder.
    pub state_dir: PathBuf,
}

impl WorkerConfig {
    fn cwd(&self) -> PathBuf {
        let folder = || self.ini.parent().unwrap_or(Path::new("/")).to_path_buf();
        self.cwd.clone().unwrap_or_else(folder)
    }
}

/// The console of a pooler, for people.
fn console_name(pooler: &str) -> String {
    format!("the console of pooler {pooler}")
}

/// Works until `stop`, or until nobody listens. An order that has begun is brought to its end, and a pause of ours is
/// let go of.
pub async fn run(
    config: WorkerConfig,
    orders: Receiver<Effect>,
    events: Sender<Event>,
    stop: CancellationToken,
) {
    run_with_guard(config, guard::this_program(), orders, events, stop).await;
}

/// The same, where this process is not the pgsquire program: the guard of pauses is run by `program`.
pub async fn run_with_guard(
    config: WorkerConfig,
    program: PathBuf,
    orders: Receiver<Effect>,
    events: Sender<Event>,
    stop: CancellationToken,
) {
    let mut pooler = Pooler::new(config, program);
    pooler.pauser.take_over(&mut pooler.disk).await;
    work(pooler, orders, events, stop).await;
}

struct Pooler {
    config: WorkerConfig,
    console: Console,
    pauser: Pauser,
    disk: Disk,
}

impl Worker for Pooler {
    async fn execute(&mut self, order: Order) -> Result<Outcome, String> {
        let order = match order {
            Order::Pooler { order, pooler } if pooler == self.config.pooler => order,
            other => return Err(format!("this is no order for pooler {}: {other:?}", self.config.pooler)),
        };
        match order {
            PoolerOrder::ReadFiles => {
                let (root, cwd) = (self.config.ini.clone(), self.config.cwd());
                self.disk.run(move || ini_files::read_all(&root, &cwd)).await.map(Outcome::Files)
            }
            PoolerOrder::Look => self.console.look().await.map(Outcome::Console).map_err(|e| e.to_string()),
            PoolerOrder::Write { files, keep_rejected } => {
                self.disk.run(move || ini_files::write_all(&files, keep_rejected)).await
            }
            PoolerOrder::KeepGood { files } => {
                self.noting(move |notes| notes.keep_good(&files)).await?;
                Ok(Outcome::Done)
            }
            PoolerOrder::Reload => self.command("RELOAD".into()).await,
            PoolerOrder::BorrowLoginRetry { value } => {
                self.noting(move |notes| notes.borrow_login_retry(&value)).await?;
                self.command(console::set("server_login_retry", "0")).await
            }
            PoolerOrder::ReturnLoginRetry { value } => {
                self.command(console::set("server_login_retry", &value)).await?;
                self.noting(Notes::return_login_retry).await?;
                Ok(Outcome::Done)
            }
            PoolerOrder::Reconnect { database } => {
                self.console.find(&database).await.map_err(|e| e.to_string())?;
                self.command(console::about("RECONNECT", &database)).await
            }
            PoolerOrder::Cut { database, stale } => self.cut(database, &stale).await,
            PoolerOrder::Resume { database } => self.resume(database).await,
            PoolerOrder::Pause(_)
            | PoolerOrder::ExtendPause(_)
            | PoolerOrder::ZeroMinPoolSize
            | PoolerOrder::CutPaused { .. }
            | PoolerOrder::EndPause => self.about_pauses(order).await.map(|()| Outcome::Done),
        }
    }

    async fn watch(&mut self) {
        tokio::select! {
            biased;
            () = self.console.watch() => {}
            () = self.pauser.watch() => {}
        }
    }

    /// What does not succeed in time is left to the guard and to `pgsquire release`.
    async fn end(&mut self) {
        let ended = timeout(LET_GO, self.pauser.end(&mut self.console, &mut self.disk)).await;
        let why = match ended {
            Ok(Ok(())) => return,
            Ok(Err(why)) => why,
            Err(_) => format!("{} did not answer in time", console_name(&self.config.pooler)),
        };
        tracing::warn!(
            "a pause of pooler {} may be left: {why}; `pgsquire release` ends it",
            self.config.pooler
        );
    }
}

impl Pooler {
    fn new(config: WorkerConfig, program: PathBuf) -> Self {
        let console = Console::new(Target {
            what: console_name(&config.pooler),
            conninfo: config.console.clone(),
            default_dbname: CONSOLE_DATABASE.into(),
            password_file: config.password_file.clone(),
        });
        let pauser = Pauser::new(&config, Guard::new(program, &config.state_dir));
        Pooler { config, console, pauser, disk: Disk::default() }
    }

    async fn about_pauses(&mut self, order: PoolerOrder) -> Result<(), String> {
        let (pauser, console, disk) = (&mut self.pauser, &mut self.console, &mut self.disk);
        match order {
            PoolerOrder::Pause(pause) => pauser.begin(console, disk, pause).await,
            PoolerOrder::ExtendPause(pause) => pauser.extend(disk, pause).await,
            PoolerOrder::ZeroMinPoolSize => pauser.zero(console, disk).await,
            PoolerOrder::CutPaused { databases, stale } => pauser.cut(console, disk, databases, &stale).await,
            PoolerOrder::EndPause => pauser.end(console, disk).await,
            other => Err(format!("this is not about pauses: {other}")),
        }
    }

    async fn command(&mut self, command: String) -> Result<Outcome, String> {
        self.console.run(&command).await.map(|()| Outcome::Done).map_err(|e| e.to_string())
    }

    async fn noting<F>(&mut self, change: F) -> Result<(), String>
    where
        F: FnOnce(&Notes) -> Result<(), String> + Send + 'static,
    {
        let notes = self.notes();
        self.disk.run(move || change(&notes)).await
    }

    fn notes(&self) -> Notes {
        let notes = Notes::new(&self.config.state_dir, &self.config.pooler);
        notes.of_console(&self.config.console, self.config.password_file.as_deref())
    }

    /// KILL leaves the database paused. A pause that somebody else put there stays; every other ends here, also when
    /// KILL has no answer or a bad one, because it may have worked all the same.
    async fn cut(&mut self, database: String, stale: &[Endpoint]) -> Result<Outcome, String> {
        if self.console.cuts_clients().await.map_err(|e| e.to_string())? {
            let databases = [database];
            let cut = self.console.cut_clients(&databases, stale).await;
            return cut.map(|()| Outcome::Done).map_err(|e| e.to_string());
        }
        let was_paused = self.console.find(&database).await.map_err(|e| e.to_string())?.paused;
        let notes = self.notes();
        let name = database.clone();
        let ours = self.disk.run(move || notes.has_cut(&name)).await?;
        if was_paused && !ours {
            return self.command(console::about("KILL", &database)).await;
        }
        let name = database.clone();
        self.noting(move |notes| notes.begin_cut(&name)).await?;
        let killed = self.console.run(&console::about("KILL", &database)).await;
        let resumed = self.resume(database).await;
        match (killed, resumed) {
            (Ok(_), resumed) => resumed,
            (Err(kill), Ok(_)) => Err(kill.to_string()),
            (Err(kill), Err(resume)) => Err(format!("{kill}; then {resume}")),
        }
    }

    async fn resume(&mut self, database: String) -> Result<Outcome, String> {
        self.console.resume(&database).await.map_err(|e| e.to_string())?;
        self.noting(move |notes| notes.end_cut(&database)).await?;
        Ok(Outcome::Done)
    }
}
