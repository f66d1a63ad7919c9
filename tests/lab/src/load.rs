//! Clients that commit through a pooler and write down what happens to them.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::pgbouncer::{APP_PASSWORD, APP_USER, DATABASE};
use crate::report::Report;
use crate::sql;
use crate::wait;

/// What the clients do.
#[derive(Clone, Debug)]
pub struct LoadSpec {
    /// The pooler (or server) they connect to.
    pub address: SocketAddrV4,
    /// The database they ask for.
    pub database: String,
    /// How many they are, with one connection each.
    pub clients: usize,
    /// The number of the first of them, so that two loads can share the table.
    pub first: usize,
    /// What each does again and again.
    pub work: Work,
    /// How long a transaction stays open between its INSERT and its COMMIT. None: the INSERT is the transaction.
    pub transaction: Option<Duration>,
    /// A new connection for every transaction?
    pub fresh: bool,
    /// Pause of a client after a commit.
    pub pause: Duration,
    /// Pause of a client after an error, before it connects again.
    pub reconnect_pause: Duration,
    /// After so long without an answer a client gives up, drops its connection and counts an error.
    pub give_up: Duration,
}

impl LoadSpec {
    /// Writing clients that hardly rest.
    pub fn writes(address: SocketAddrV4, clients: usize) -> Self {
        Self {
            address,
            database: DATABASE.into(),
            clients,
            first: 0,
            work: Work::Write,
            transaction: None,
            fresh: false,
            pause: Duration::from_millis(10),
            reconnect_pause: Duration::from_millis(100),
            give_up: Duration::from_secs(60),
        }
    }

    /// One client that shows whether a pooler answers at all: it asks again and again, and takes an error for an answer.
    pub fn asker(address: SocketAddrV4) -> Self {
        let pause = Duration::from_millis(20);
        Self { pause, reconnect_pause: pause, ..Self::reads(address, 1) }
    }

    /// Reading clients.
    pub fn reads(address: SocketAddrV4, clients: usize) -> Self {
        Self { work: Work::Read, ..Self::writes(address, clients) }
    }
}

/// What a client does again and again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Inserts a row: counts once the commit is acknowledged.
    Write,
    /// Reads something.
    Read,
}

/// An acknowledged commit (or an answered read).
#[derive(Clone, Copy, Debug)]
pub struct Commit {
    /// When the client sent what committed it.
    pub sent: Instant,
    /// When the client had the answer.
    pub at: Instant,
    /// Which client.
    pub client: usize,
    /// The client's running number of this row; one that failed is not used again.
    pub number: u64,
    /// The server that did it.
    pub server: Ipv4Addr,
    /// The timeline it was on; 0 for a read.
    pub timeline: u32,
}

/// Something a client saw fail.
#[derive(Clone, Debug)]
pub struct Failure {
    /// When.
    pub at: Instant,
    /// Which client.
    pub client: usize,
    /// The server's or pooler's words.
    pub text: String,
}

/// What all clients saw so far.
#[derive(Debug, Default)]
pub struct Log {
    /// In the order of time.
    pub commits: Vec<Commit>,
    /// In the order of time.
    pub failures: Vec<Failure>,
}

/// A running load. Dropping it ends it.
#[derive(Debug)]
pub struct Load {
    log: Arc<Mutex<Log>>,
    stop: watch::Sender<bool>,
    clients: JoinSet<()>,
    first: usize,
    count: usize,
}

impl Load {
    /// Starts the clients and waits until each has committed once.
    pub async fn start(spec: LoadSpec) -> Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let (log, start) = (Arc::new(Mutex::new(Log::default())), Instant::now());
        let (first, count) = (spec.first, spec.clients);
        let mut clients = JoinSet::new();
        for number in spec.first..spec.first + spec.clients {
            let client = LoadClient { number, spec: spec.clone(), log: log.clone(), next: 0 };
            clients.spawn(client.run(stopped.clone()));
        }
        let load = Self { log, stop, clients, first, count };
        load.wait_all_committed(start, None, Duration::from_secs(60)).await.context("starting the load")?;
        Ok(load)
    }

    /// Waits until every client has committed after `since` (on `server`, if given), and says when the last of them did.
    pub async fn wait_all_committed(
        &self,
        since: Instant,
        server: Option<Ipv4Addr>,
        limit: Duration,
    ) -> Result<Instant> {
        let ask = || async {
            let first = self.first_commits(since, server);
            let served = first.iter().flatten().count();
            anyhow::ensure!(served == self.count, "{served} of {} clients have", self.count);
            first.into_iter().flatten().max().context("there are no clients")
        };
        wait::answer("a commit by every client", limit, Duration::from_millis(50), ask).await
    }

    /// Waits until somebody had an answer after `since`, be it an error.
    pub async fn wait_answered(&self, since: Instant, limit: Duration) -> Result<Instant> {
        let ask = || async {
            let log = self.log();
            let last = log.commits.last().map(|c| c.at).max(log.failures.last().map(|f| f.at));
            last.filter(|at| *at > since).context("nobody had one")
        };
        wait::answer("an answer to a client", limit, Duration::from_millis(20), ask).await
    }

    /// The first commit of each client after `since`.
    fn first_commits(&self, since: Instant, server: Option<Ipv4Addr>) -> Vec<Option<Instant>> {
        let log = self.log();
        let mut first = vec![None; self.count];
        let recent = log.commits.iter().rev().take_while(|c| c.at >= since);
        recent
            .filter(|c| server.is_none_or(|s| s == c.server))
            .for_each(|c| first[c.client - self.first] = Some(c.at));
        first
    }

    /// What was seen so far; the clients cannot write while this is held.
    pub fn log(&self) -> MutexGuard<'_, Log> {
        locked(&self.log)
    }

    /// What was seen between two instants.
    pub fn report(&self, from: Instant, to: Instant) -> Report {
        Report::of(&self.log(), from, to)
    }

    /// Lets every client finish what it is doing (for at most `limit`), and ends the load.
    pub async fn stop(mut self, limit: Duration) -> Log {
        self.stop.send_replace(true);
        let finished = async { while self.clients.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(limit, finished).await;
        self.clients.shutdown().await;
        std::mem::take(&mut *locked(&self.log))
    }
}

fn locked(log: &Mutex<Log>) -> MutexGuard<'_, Log> {
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One client.
struct LoadClient {
    number: usize,
    spec: LoadSpec,
    log: Arc<Mutex<Log>>,
    next: u64,
}

impl LoadClient {
    async fn run(mut self, mut stop: watch::Receiver<bool>) {
        while !*stop.borrow() {
            let text = match self.connect().await {
                Ok(client) => self.work(&client, &stop).await,
                Err(text) => Some(text),
            };
            if let Some(text) = text {
                let failure = Failure { at: Instant::now(), client: self.number, text };
                locked(&self.log).failures.push(failure);
                // The pause after an error ends early when the load does.
                let _ = tokio::time::timeout(self.spec.reconnect_pause, stop.changed()).await;
            }
        }
    }

    async fn connect(&self) -> Result<Client, String> {
        let (to, limit) = (self.spec.address, self.spec.give_up);
        let connecting = sql::by_address(to, APP_USER, APP_PASSWORD, &self.spec.database, limit).await;
        connecting.map_err(|e| e.downcast_ref().map_or_else(|| e.root_cause().to_string(), sql::reason))
    }

    /// Works until something fails (what it was) or the load ends.
    async fn work(&mut self, client: &Client, stop: &watch::Receiver<bool>) -> Option<String> {
        while !*stop.borrow() {
            // What is sent and not answered may be committed: its number is used up.
            self.next += 1;
            match tokio::time::timeout(self.spec.give_up, self.transaction(client)).await {
                Ok(Ok((sent, answer))) => self.committed(sent, answer),
                Ok(Err(text)) => return Some(text),
                Err(_) => return Some("gave up waiting for an answer".into()),
            }
            tokio::time::sleep(self.spec.pause).await;
            if self.spec.fresh {
                return None;
            }
        }
        None
    }

    /// One transaction: when what ends it was sent, and what the server said of itself.
    async fn transaction(&self, client: &Client) -> Result<(Instant, Answer), String> {
        // Simple queries: prepared statements do not survive transaction pooling in older PgBouncers.
        let run = async |query: &str| client.simple_query(query).await.map_err(|e| sql::reason(&e));
        if self.spec.transaction.is_some() {
            run("BEGIN").await?;
        }
        let mut sent = Instant::now();
        let answer =
            Answer::of(&run(&self.query()).await?).ok_or("an answer that does not name the server")?;
        if let Some(open) = self.spec.transaction {
            tokio::time::sleep(open).await;
            sent = Instant::now();
            run("COMMIT").await?;
        }
        Ok((sent, answer))
    }

    fn query(&self) -> String {
        match self.spec.work {
            Work::Write => format!(
                "INSERT INTO commits (client, n) VALUES ({}, {}) \
                 RETURNING host(inet_server_addr()), pg_walfile_name(pg_current_wal_insert_lsn())",
                self.number, self.next
            ),
            Work::Read => "SELECT host(inet_server_addr())".into(),
        }
    }

    fn committed(&mut self, sent: Instant, answer: Answer) {
        let mut log = locked(&self.log);
        let (client, number, Answer { server, timeline }) = (self.number, self.next, answer);
        // The clock is read under the lock, so the log is in the order of time.
        log.commits.push(Commit { sent, at: Instant::now(), client, number, server, timeline });
    }
}

/// What a server says of itself.
struct Answer {
    server: Ipv4Addr,
    timeline: u32,
}

impl Answer {
    fn of(messages: &[SimpleQueryMessage]) -> Option<Self> {
        let row = messages.iter().find_map(|m| match m {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        })?;
        // The name of a WAL file begins with its timeline.
        let timeline = match row.len() {
            1 => 0,
            _ => u32::from_str_radix(row.get(1)?.get(..8)?, 16).ok()?,
        };
        Some(Self { server: row.get(0)?.parse().ok()?, timeline })
    }
}
