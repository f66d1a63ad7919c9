//! One kept connection to something that speaks PostgreSQL's protocol: a server, or PgBouncer's console.
//!
//! The connection is driven by whoever waits for an answer, not by a task of its own, so it ends with its owner.

use crate::files;
use futures_util::StreamExt;
use std::collections::VecDeque;
use std::future::Future;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_postgres::config::Host;
use tokio_postgres::tls::NoTlsStream;
use tokio_postgres::{
    Client, Config, Connection, NoTls, SimpleQueryMessage, SimpleQueryRow, SimpleQueryStream, Socket,
};

/// Silence for this long is a failure.
pub const DEADLINE: Duration = Duration::from_secs(2);

/// Where to connect to.
#[derive(Debug, Clone)]
pub struct Target {
    /// What it is, for people: `the console of pooler write`.
    pub what: String,
    /// As libpq reads it: `host=/var/run/postgresql port=6432 user=pgbouncer`.
    pub conninfo: String,
    /// Database when the conninfo names none.
    pub default_dbname: String,
    /// Holds the password; read again for each connection. Its last newline does not count.
    pub password_file: Option<PathBuf>,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// Nothing came within [`DEADLINE`]. The command may have had its effect.
    #[error("{what} was silent for {} s while asked for {doing}", DEADLINE.as_secs())]
    Silent {
        /// Who.
        what: String,
        /// The command, or `a connection`.
        doing: String,
    },
    /// The far side answered with an error; the connection is usable.
    #[error("{what} refused {doing}: {message}")]
    Refused {
        /// Who.
        what: String,
        /// The command.
        doing: String,
        /// Its words.
        message: String,
    },
    /// There is no connection.
    #[error("cannot connect to {what}: {message}")]
    Unreachable {
        /// Who.
        what: String,
        /// Why.
        message: String,
    },
    /// The connection broke on the way. The command may have had its effect.
    #[error("the connection to {what} broke at {doing}: {message}")]
    Broken {
        /// Who.
        what: String,
        /// The command.
        doing: String,
        /// Why.
        message: String,
    },
}

/// Reads a conninfo.
///
/// # Errors
/// A sentence, when it is none that we can use. It does not repeat the conninfo, which may hold a password by mistake.
pub fn parse_conninfo(conninfo: &str, default_dbname: &str) -> Result<Config, String> {
    let mut config: Config = conninfo.parse().map_err(|e| words(&e))?;
    if config.get_password().is_some() {
        return Err("the connection string holds a password: put it into a file and name that".into());
    }
    if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
        return Err("the connection string names no host (a folder means the socket in it)".into());
    }
    if config.get_dbname().is_none() {
        config.dbname(default_dbname);
    }
    config.application_name("pgsquire").connect_timeout(DEADLINE);
    Ok(config)
}

/// Where a connection leads, for people.
fn place(config: &Config) -> String {
    let host = |host: &Host| match host {
        Host::Tcp(name) => name.clone(),
        Host::Unix(folder) => folder.display().to_string(),
    };
    let hosts: Vec<_> = config.get_hosts().iter().map(host).collect();
    let ports: Vec<_> = config.get_ports().iter().map(u16::to_string).collect();
    format!("{} port {}", hosts.join(","), if ports.is_empty() { "5432".into() } else { ports.join(",") })
}

/// All of an error's causes in one line; of a server's error its message.
fn words(error: &tokio_postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        return db.message().to_owned();
    }
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text.strip_prefix("error connecting to server: ").map(str::to_owned).unwrap_or(text)
}

/// An answer, or a refusal.
pub type Answer = Result<Rows, SessionError>;

/// Rows of an answer; columns are read by name.
#[derive(Debug, Default)]
pub struct Rows(Vec<SimpleQueryRow>);

impl Rows {
    /// No rows.
    pub const fn none() -> Self {
        Rows(Vec::new())
    }

    /// The rows.
    pub fn iter(&self) -> impl Iterator<Item = &SimpleQueryRow> {
        self.0.iter()
    }
}

/// A column's text; none: NULL, or there is no such column in this version.
pub fn column<'a>(row: &'a SimpleQueryRow, name: &str) -> Option<&'a str> {
    row.try_get(name).ok().flatten()
}

/// Why there is no session over a connection that stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoginError {
    /// The connection string or the password cannot be used: nothing was sent.
    Unusable(String),
    /// The server starts, stops, or is told to: it serves nobody now.
    NotNow(String),
    /// The server does not want us. It serves others.
    Refused(String),
    /// The connection ended.
    Broken(String),
}

/// The connection.
pub struct Session<S = Socket> {
    what: String,
    client: Client,
    connection: Pin<Box<Connection<S, NoTlsStream>>>,
}

impl Session {
    /// Connects and logs in.
    ///
    /// # Errors
    /// When that is not done within [`DEADLINE`].
    pub async fn open(target: &Target) -> Result<Session, SessionError> {
        let what = target.what.clone();
        let unreachable = |message| SessionError::Unreachable { what: what.clone(), message };
        let mut config = parse_conninfo(&target.conninfo, &target.default_dbname).map_err(unreachable)?;
        if let Some(file) = &target.password_file {
            config.password(files::read_secret(file).map_err(|e| unreachable(e.to_string()))?);
        }
        match timeout(DEADLINE, config.connect(NoTls)).await {
            Err(_) => Err(SessionError::Silent { what, doing: "a connection".into() }),
            Ok(Err(e)) => Err(unreachable(format!("{} ({})", words(&e), place(&config)))),
            Ok(Ok((client, connection))) => Ok(Session { what, client, connection: Box::pin(connection) }),
        }
    }
}

impl Session<TcpStream> {
    /// Logs in over a connection that stands. The hosts of the target's connection string do not matter; there is no
    /// deadline but the caller's.
    ///
    /// # Errors
    /// When it cannot be used, when the server does not let us in, or when the connection ends.
    pub async fn open_over(target: &Target, stream: TcpStream) -> Result<Self, LoginError> {
        let mut config: Config = target.conninfo.parse().map_err(|e| LoginError::Unusable(words(&e)))?;
        config.application_name("pgsquire");
        if config.get_dbname().is_none() {
            config.dbname(&target.default_dbname);
        }
        if let Some(file) = &target.password_file {
            config.password(files::read_secret(file).map_err(|e| LoginError::Unusable(e.to_string()))?);
        }
        match config.connect_raw(stream, NoTls).await {
            Ok((client, connection)) => {
                Ok(Session { what: target.what.clone(), client, connection: Box::pin(connection) })
            }
            Err(e) => Err(login_error(&e)),
        }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Session<S> {
    /// Runs one command by the simple protocol. After [`SessionError::Silent`] and [`SessionError::Broken`] the session
    /// is of no more use: drop it.
    ///
    /// # Errors
    /// When it is refused, or has no answer within [`DEADLINE`].
    pub async fn run(&mut self, command: &str) -> Result<Rows, SessionError> {
        only(self.run_all(&[command]).await?)
    }

    /// Runs commands that are sent in one write, one after the other, and waits for all answers: one round trip. The
    /// inner result is an answer or a refusal; a refused command does not keep the next ones from being run.
    ///
    /// # Errors
    /// When the answers do not all come within [`DEADLINE`]: as with [`Session::run`] the session is of no more use.
    pub async fn run_all(&mut self, commands: &[&str]) -> Result<Vec<Answer>, SessionError> {
        let (what, doing) = (self.what.clone(), short(&commands.join("; ")));
        let answered = async {
            let mut streams = Vec::with_capacity(commands.len());
            for command in commands {
                // Only queues it: nothing is written before the connection is polled, and then all of it.
                streams.push(self.client.simple_query_raw(command).await.map_err(|e| words(&e))?);
            }
            let collect = async {
                let mut answers = Vec::with_capacity(streams.len());
                for (stream, command) in streams.into_iter().zip(commands) {
                    answers.push(answer(&what, command, pin!(stream)).await?);
                }
                Ok(answers)
            };
            tokio::select! {
                biased;
                answers = collect => answers,
                end = &mut self.connection => Err(end_words(end)),
            }
        };
        match timeout(DEADLINE, answered).await {
            Err(_) => Err(SessionError::Silent { what, doing }),
            Ok(Err(message)) => Err(SessionError::Broken { what, doing, message }),
            Ok(Ok(answers)) => Ok(answers),
        }
    }

    /// Waits until the connection ends by itself. Drop the session then.
    pub async fn ended(&mut self) {
        let _ = (&mut self.connection).await;
    }

    /// Whether the far side has closed the connection while nobody looked.
    pub async fn has_ended(&mut self) -> bool {
        std::future::poll_fn(|cx| std::task::Poll::Ready(self.connection.as_mut().poll(cx).is_ready())).await
    }
}

impl Session {
    /// Sends commands in one write and does not wait: the answer of the last may take for ever.
    ///
    /// # Errors
    /// When the connection is broken already.
    pub async fn send(mut self, commands: &[String]) -> Result<Asked, SessionError> {
        let doing = short(&commands.join("; "));
        let broken = |what, message| SessionError::Broken { what, doing: doing.clone(), message };
        let mut open = VecDeque::with_capacity(commands.len());
        for command in commands {
            match self.client.simple_query_raw(command).await {
                Ok(stream) => open.push_back((command.clone(), Box::pin(stream))),
                Err(e) => return Err(broken(self.what, words(&e))),
            }
        }
        match self.has_ended().await {
            true => Err(broken(self.what, "the connection was closed".into())),
            false => Ok(Asked { session: self, open }),
        }
    }
}

fn login_error(error: &tokio_postgres::Error) -> LoginError {
    let io = std::error::Error::source(error).is_some_and(|cause| cause.is::<std::io::Error>());
    match error.code() {
        // Class 57: operator intervention.
        Some(code) if code.code().starts_with("57") => LoginError::NotNow(words(error)),
        Some(_) => LoginError::Refused(words(error)),
        None if io || error.is_closed() => LoginError::Broken(words(error)),
        None => LoginError::Unusable(words(error)),
    }
}

/// Commands that were sent, and whose answers are not waited for.
pub struct Asked {
    session: Session,
    open: VecDeque<(String, Pin<Box<SimpleQueryStream>>)>,
}

impl Asked {
    /// The next answer, if it comes within this time: the command that it answers, and the answer. None: it has not come
    /// yet, or all have come.
    ///
    /// # Errors
    /// When the connection broke.
    pub async fn answer(&mut self, within: Duration) -> Result<Option<(String, Answer)>, SessionError> {
        let Some((command, stream)) = self.open.front_mut() else { return Ok(None) };
        let what = self.session.what.clone();
        let answered = async {
            tokio::select! {
                biased;
                answer = answer(&what, command, stream.as_mut()) => answer,
                end = &mut self.session.connection => Err(end_words(end)),
            }
        };
        match timeout(within, answered).await {
            Err(_) => Ok(None),
            Ok(Err(message)) => Err(SessionError::Broken { what, doing: short(command), message }),
            Ok(Ok(answer)) => Ok(self.open.pop_front().map(|(command, _)| (command, answer))),
        }
    }

    /// The command that is to be answered next.
    pub fn next(&self) -> Option<&str> {
        self.open.front().map(|(command, _)| command.as_str())
    }

    /// Drives the connection: whether it has ended. What is answered meanwhile is read and dropped.
    pub fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // Nobody asks for these answers any more; a channel that is not emptied would stop the reading.
        self.open.clear();
        self.session.connection.as_mut().poll(cx).map(|_| ())
    }
}

/// Collects one answer; the outer error is a broken connection.
async fn answer(
    what: &str,
    command: &str,
    mut stream: Pin<&mut SimpleQueryStream>,
) -> Result<Answer, String> {
    let mut rows = Vec::new();
    while let Some(message) = stream.next().await {
        match message {
            Ok(message) => rows.extend(row(message)),
            Err(e) if e.as_db_error().is_some() => {
                let (what, doing) = (what.to_owned(), short(command));
                return Ok(Err(SessionError::Refused { what, doing, message: words(&e) }));
            }
            Err(e) => return Err(words(&e)),
        }
    }
    Ok(Ok(Rows(rows)))
}

fn row(message: SimpleQueryMessage) -> Option<SimpleQueryRow> {
    match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    }
}

fn end_words(end: Result<(), tokio_postgres::Error>) -> String {
    end.err().map_or_else(|| "the connection was closed".into(), |e| words(&e))
}

/// A session that is opened when it is needed and forgotten when it breaks.
#[derive(Default)]
pub struct Kept {
    session: Option<Session>,
    opened: u64,
}

impl Kept {
    /// How many connections there were: another number means another connection.
    pub fn opened(&self) -> u64 {
        self.opened
    }

    /// Runs a command that changes something: once.
    ///
    /// # Errors
    /// When there is no connection, or as [`Session::run`]: unless it was refused, it may have had its effect.
    pub async fn change(&mut self, target: &Target, command: &str) -> Result<Rows, SessionError> {
        self.open(target).await?;
        only(self.run(target, &[command]).await?)
    }

    /// Runs a command that may run twice, a question for instance. When the connection that was kept turns out to be
    /// dead, it runs again on a new one.
    ///
    /// # Errors
    /// As [`Kept::change`].
    pub async fn ask(&mut self, target: &Target, question: &str) -> Result<Rows, SessionError> {
        only(self.ask_all(target, &[question]).await?)
    }

    /// The same with several commands in one round trip, each with its answer or refusal.
    ///
    /// # Errors
    /// When there is no connection, or as [`Session::run_all`].
    pub async fn ask_all(
        &mut self,
        target: &Target,
        questions: &[&str],
    ) -> Result<Vec<Answer>, SessionError> {
        let before = self.opened;
        self.open(target).await?;
        match self.run(target, questions).await {
            Err(SessionError::Broken { .. }) if self.opened == before => {
                self.open(target).await?;
                self.run(target, questions).await
            }
            answer => answer,
        }
    }

    async fn open(&mut self, target: &Target) -> Result<(), SessionError> {
        if let Some(session) = &mut self.session
            && !session.has_ended().await
        {
            return Ok(());
        }
        self.session = None;
        self.session = Some(Session::open(target).await?);
        self.opened += 1;
        Ok(())
    }

    async fn run(&mut self, target: &Target, commands: &[&str]) -> Result<Vec<Answer>, SessionError> {
        let Some(mut session) = self.session.take() else {
            let message = "there is no connection".into();
            return Err(SessionError::Unreachable { what: target.what.clone(), message });
        };
        let answers = session.run_all(commands).await?;
        self.session = Some(session);
        Ok(answers)
    }

    /// Waits until an open session ends by itself and forgets it; waits for ever if none is open.
    pub async fn watch(&mut self) {
        match &mut self.session {
            Some(session) => session.ended().await,
            None => std::future::pending().await,
        }
        self.session = None;
    }
}

fn only(answers: Vec<Answer>) -> Answer {
    answers.into_iter().next().unwrap_or_else(|| Ok(Rows::default()))
}

/// The beginning of a command, for people.
fn short(command: &str) -> String {
    match command.char_indices().nth(60) {
        Some((end, _)) => format!("{} …", command[..end].trim_end()),
        None => command.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connection_strings() {
        let config =
            parse_conninfo("host=/var/run/postgresql port=6432 user=pgbouncer", "pgbouncer").unwrap();
        assert_eq!(config.get_dbname(), Some("pgbouncer"));
        assert_eq!(config.get_application_name(), Some("pgsquire"));
        assert_eq!(place(&config), "/var/run/postgresql port 6432");
        let config = parse_conninfo("postgresql://u@[::1]:7/other", "postgres").unwrap();
        assert_eq!((config.get_dbname(), place(&config).as_str()), (Some("other"), "::1 port 7"));
        for (bad, why) in [
            ("host=h password=hush", "holds a password"),
            ("postgresql://u:hush@h/db", "holds a password"),
            ("user=u", "names no host"),
            ("host=h hush=1", "unknown option"),
            ("host", "connection string"),
        ] {
            let said = parse_conninfo(bad, "x").unwrap_err();
            assert!(said.contains(why) && !said.contains("=hush"), "{bad}: {said}");
        }
    }

    #[test]
    fn long_commands_are_shortened_between_letters() {
        assert_eq!(short("RELOAD"), "RELOAD");
        let long = "ü".repeat(70);
        assert_eq!(short(&long), format!("{} …", "ü".repeat(60)));
    }
}
