//! How one server is watched.

use super::ping::{Pong, ping};
use super::tcp::{self, DEADLINE, NoConnection};
use crate::clock;
use crate::report::{NobodyListens, Report};
use crate::session::{LoginError, Session, SessionError, Target, column};
use pgsquire_core::event::{Event, ServerWord};
use pgsquire_core::time::Time;
use pgsquire_core::topology::Endpoint;
use std::io;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

/// With a login, the server is asked this often.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// PostgreSQL waits for a login for `authentication_timeout`, 60 s by default: a bare connection is made again by then.
const REMAKE: Duration = Duration::from_secs(30);
/// A bare connection takes the place of another once both have lived for so long.
const SETTLED: Duration = Duration::from_millis(20);
/// Pause between attempts while the server is lost.
const AGAIN: Duration = Duration::from_millis(100);
/// A server that stays lost is told again this often.
const TELL_AGAIN: Duration = Duration::from_secs(1);
/// After so many connections in a row that ended at once, the next one comes after a short pause,
const HASTY: u32 = 5;
const SHORT: Duration = Duration::from_millis(5);
/// and after so long the server is lost.
const UNSETTLED: Duration = Duration::from_secs(1);
/// So many probes missed in a row, and it is lost.
const MISSES: u32 = 2;

type Told<T = ()> = Result<T, NobodyListens>;

/// One server and how it fares.
pub(super) struct Watch {
    cluster: String,
    endpoint: Endpoint,
    login: Option<Target>,
    report: Report,
    /// When it was told to be lost; none: it is not.
    lost: Option<Instant>,
    /// Probes missed in a row.
    missed: u32,
    /// Connections in a row that ended before they said anything, and since when.
    short_lived: Option<(u32, Instant)>,
    /// How the last connection ended.
    broke: Option<String>,
    /// Why the login is of no use, as it was logged.
    useless: Option<String>,
}

impl Watch {
    pub(super) fn new(cluster: String, endpoint: Endpoint, login: Option<Target>, report: Report) -> Self {
        Watch {
            cluster,
            endpoint,
            login,
            report,
            lost: None,
            missed: 0,
            short_lived: None,
            broke: None,
            useless: None,
        }
    }

    /// Watches until nobody listens.
    pub(super) async fn run(mut self) -> NobodyListens {
        loop {
            if let Err(gone) = self.one_connection().await {
                return gone;
            }
        }
    }

    /// Makes a connection and keeps it to its end. Returns when the next one is to be made, at once.
    async fn one_connection(&mut self) -> Told {
        match tcp::connect(&self.endpoint).await {
            Err(no) => self.not_connected(no).await,
            Ok(stream) => match self.login.clone() {
                None => self.keep(stream).await,
                Some(login) => self.log_in(&login, stream).await,
            },
        }
    }

    async fn not_connected(&mut self, no: NoConnection) -> Told {
        match no {
            NoConnection::Silent => self.miss("does not answer a connection").await,
            NoConnection::Refused(e) if e.kind() == io::ErrorKind::ConnectionReset => {
                self.ended_at_once(e.to_string()).await
            }
            NoConnection::Refused(e) => self.lose(&format!("cannot be connected to: {e}")).await,
        }
    }

    async fn say(&self, word: ServerWord, at: Time) -> Told {
        let (cluster, endpoint) = (self.cluster.clone(), self.endpoint.clone());
        self.report.say(Event::ServerSeen { cluster, endpoint, word, at }).await
    }

    /// It has given a sign of life.
    async fn lives(&mut self, word: ServerWord, at: Time) -> Told {
        (self.lost, self.missed, self.short_lived, self.broke) = (None, 0, None, None);
        self.say(word, at).await
    }

    /// It is lost: says so, if that was not said just now, and pauses.
    async fn lose(&mut self, why: &str) -> Told {
        if self.lost.is_none_or(|told| told.elapsed() >= TELL_AGAIN) {
            self.lost = Some(Instant::now());
            let before = self.broke.as_ref().map(|broke| format!(" (the last connection: {broke})"));
            let why = format!("the server at {} {why}{}", self.endpoint, before.unwrap_or_default());
            self.say(ServerWord::Lost { why }, clock::now()).await?;
        }
        sleep(AGAIN).await;
        Ok(())
    }

    async fn miss(&mut self, why: &str) -> Told {
        self.missed = self.missed.saturating_add(1);
        if self.missed < MISSES {
            return Ok(());
        }
        let (missed, patience) = (self.missed, DEADLINE.as_millis());
        self.lose(&format!("{why} within {patience} ms, and {missed} probes in a row are missed")).await
    }

    /// A connection ended before it said anything. Whoever listened may just be gone: the next connect will tell.
    async fn ended_at_once(&mut self, how: String) -> Told {
        let (count, since) = self.short_lived.unwrap_or((0, Instant::now()));
        self.short_lived = Some((count.saturating_add(1), since));
        let why = format!("takes connections and ends them at once: {how}");
        self.broke = Some(how);
        if since.elapsed() >= UNSETTLED {
            return self.lose(&why).await;
        }
        if count >= HASTY {
            sleep(SHORT).await;
        }
        Ok(())
    }

    /// Keeps a bare connection to its end, if the server serves.
    async fn keep(&mut self, mut stream: TcpStream) -> Told {
        // The ping comes second: if it says that the server does not shut down, neither did it when it took the first
        // connection, and the shutdown ends that one.
        let at = clock::now();
        let pong = tokio::select! {
            biased;
            how = tcp::ended(&stream) => return self.ended_at_once(how).await,
            pong = ping(&self.endpoint) => pong,
        };
        match pong {
            Ok(Pong::Serves) => self.lives(ServerWord::Up, at).await?,
            Ok(Pong::Ended(how)) => return self.ended_at_once(how).await,
            not => {
                drop(stream);
                return match not {
                    Ok(Pong::NotNow(why)) => self.lose(&format!("lets nobody in: {why}")).await,
                    Err(no) => self.not_connected(no).await,
                    Ok(_) => Ok(()),
                };
            }
        }
        loop {
            if let Ok(how) = timeout(REMAKE, tcp::ended(&stream)).await {
                self.broke = Some(how);
                return Ok(());
            }
            if self.login.is_some() {
                // It stood in for a login that was refused: try that again.
                return Ok(());
            }
            let at = clock::now();
            let Ok(new) = tcp::connect(&self.endpoint).await else { return Ok(()) };
            // A shutdown that began just now ends the old one and may not end the new one.
            let both = async {
                tokio::select! { how = tcp::ended(&stream) => how, how = tcp::ended(&new) => how }
            };
            if let Ok(how) = timeout(SETTLED, both).await {
                self.broke = Some(how);
                return Ok(());
            }
            stream = new;
            self.lives(ServerWord::Up, at).await?;
        }
    }

    /// Logs in and asks to the end of the session.
    async fn log_in(&mut self, login: &Target, stream: TcpStream) -> Told {
        match timeout(DEADLINE, Session::open_over(login, stream)).await {
            Err(_) => self.miss("does not answer a login").await,
            Ok(Ok(session)) => self.ask(session).await,
            Ok(Err(LoginError::Broken(how))) => self.ended_at_once(how).await,
            Ok(Err(LoginError::NotNow(why))) => self.lose(&format!("lets nobody in: {why}")).await,
            Ok(Err(LoginError::Refused(why) | LoginError::Unusable(why))) => self.without_login(why).await,
        }
    }

    /// The login is of no use; that is our fault and not the server's.
    async fn without_login(&mut self, why: String) -> Told {
        if self.useless.as_ref() != Some(&why) {
            tracing::warn!(
                "the probe cannot log in to the server at {}, a bare connection has to do: {why}",
                self.endpoint
            );
            self.useless = Some(why);
        }
        match tcp::connect(&self.endpoint).await {
            Ok(stream) => self.keep(stream).await,
            Err(no) => self.not_connected(no).await,
        }
    }

    /// Asks again and again until the session ends.
    async fn ask(&mut self, mut session: Session<TcpStream>) -> Told {
        self.useless = None;
        loop {
            let (at, began) = (clock::now(), Instant::now());
            match timeout(DEADLINE, session.run("SELECT pg_is_in_recovery() AS it")).await {
                Err(_) | Ok(Err(SessionError::Silent { .. })) => {
                    return self.miss("does not answer a query").await;
                }
                Ok(Err(SessionError::Refused { message, .. })) => {
                    return self.ended_at_once(message).await;
                }
                Ok(Err(e)) => return self.ended_at_once(e.to_string()).await,
                Ok(Ok(rows)) => match rows.iter().next().and_then(|row| column(row, "it")) {
                    Some(it) => self.lives(ServerWord::InRecovery(it == "t"), at).await?,
                    None => return self.ended_at_once("no answer to pg_is_in_recovery()".into()).await,
                },
            }
            if timeout(ASK_EVERY.saturating_sub(began.elapsed()), session.ended()).await.is_ok() {
                self.broke = Some("it was closed".into());
                return Ok(());
            }
        }
    }
}
