//! PgBouncer's admin console: simple protocol, questions in one round trip where they go together, columns by name
//! because they grow from version to version.

use crate::session::{Answer, Kept, Rows, Session, SessionError, Target, column};
use pgsquire_core::effect::PauseScope;
use pgsquire_core::pgbouncer::console::{ConsoleView, LoadedDatabase, SETTINGS, ServerLink};
use pgsquire_core::topology::Endpoint;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;
use tokio::time::Instant;

/// Settings change by RELOAD and SET. Ours are seen at once, those of others so much later.
const SETTINGS_AGE: Duration = Duration::from_secs(1);

/// The console of one process: a connection that is kept while it works.
pub struct Console {
    target: Target,
    kept: Kept,
    /// Of which connection, and what it is.
    version: Option<(u64, (u32, u32))>,
    /// Of which connection, read when, and what they are.
    settings: Option<(u64, Instant, BTreeMap<String, String>)>,
    /// Whether a database was seen that leads to a host by name.
    has_names: bool,
}

/// What of a process is paused.
pub struct Standing {
    /// `SHOW DATABASES`, without PgBouncer's own.
    pub databases: Vec<LoadedDatabase>,
    /// The whole process; none: this version does not tell.
    pub process: Option<bool>,
}

/// A command about one database.
pub fn about(verb: &str, database: &str) -> String {
    format!("{verb} {}", quoted(database))
}

/// The commands that pause, or resume, a scope.
pub fn scoped(verb: &str, scope: &PauseScope) -> Vec<String> {
    match scope {
        PauseScope::Process => vec![verb.into()],
        PauseScope::Databases(list) => list.iter().map(|database| about(verb, database)).collect(),
    }
}

/// A `SET` command.
pub fn set(key: &str, value: &str) -> String {
    format!("SET {key} = '{}'", value.replace('\'', "''"))
}

/// A name as the console reads it. Its buffer holds 63 bytes, quotes included: a long plain name goes without.
fn quoted(name: &str) -> String {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    if !name.is_empty() && name.bytes().all(plain) {
        name.into()
    } else {
        format!("\"{}\"", name.replace('"', "\"\""))
    }
}

impl Console {
    /// Connects when it is first asked.
    pub fn new(target: Target) -> Self {
        Console { target, kept: Kept::default(), version: None, settings: None, has_names: false }
    }

    /// Notices the end of a connection while nothing is asked.
    pub async fn watch(&mut self) {
        self.kept.watch().await;
    }

    /// Runs one command that changes something.
    ///
    /// # Errors
    /// When it is refused or has no answer; then it may have had its effect.
    pub async fn run(&mut self, command: &str) -> Result<(), SessionError> {
        self.settings = None;
        self.kept.change(&self.target, command).await.map(|_| ())
    }

    /// A connection of its own.
    ///
    /// # Errors
    /// When there is none to be had.
    pub fn another(&self) -> impl Future<Output = Result<Session, SessionError>> + Send + use<> {
        let target = self.target.clone();
        async move { Session::open(&target).await }
    }

    async fn show(&mut self, topic: &str) -> Result<Rows, SessionError> {
        self.kept.ask(&self.target, &format!("SHOW {topic}")).await
    }

    /// Several answers in the order of the topics, in one round trip.
    async fn show_all<const N: usize>(
        &mut self,
        topics: [Option<&'static str>; N],
    ) -> Result<[Rows; N], SessionError> {
        let asked: Vec<&str> = topics.iter().flatten().copied().collect();
        let mut answers = self.kept.ask_all(&self.target, &asked).await?.into_iter();
        let mut rows = [const { Rows::none() }; N];
        for (place, _) in rows.iter_mut().zip(topics).filter(|(_, topic)| topic.is_some()) {
            *place = answers.next().unwrap_or_else(|| Ok(Rows::none()))?;
        }
        Ok(rows)
    }

    /// The row of one database. Asked before each command that names one: PgBouncer would make a database that it does
    /// not know from a `*` entry.
    ///
    /// # Errors
    /// When there is no such database, or no answer.
    pub async fn find(&mut self, database: &str) -> Result<LoadedDatabase, SessionError> {
        let loaded = self.databases().await?;
        loaded.into_iter().find(|d| d.name == database).ok_or_else(|| SessionError::Refused {
            what: self.target.what.clone(),
            doing: format!("a command about database {database}"),
            message: "SHOW DATABASES does not list it".into(),
        })
    }

    /// Ends the pause of one database; one that is not paused, or gone, is success. Twice is as good as once, so a dead
    /// connection is no reason to leave it paused.
    ///
    /// # Errors
    /// When the console refuses for another reason or has no answer.
    pub async fn resume(&mut self, database: &str) -> Result<(), SessionError> {
        self.resume_all(&[PauseScope::Databases(vec![database.into()])]).await
    }

    /// The same for whole scopes, in one round trip.
    ///
    /// # Errors
    /// As [`Console::resume`]; what could be resumed is.
    pub async fn resume_all(&mut self, scopes: &[PauseScope]) -> Result<(), SessionError> {
        let commands: Vec<String> = scopes.iter().flat_map(|scope| scoped("RESUME", scope)).collect();
        if commands.is_empty() {
            return Ok(());
        }
        let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
        let answers = self.kept.ask_all(&self.target, &commands).await?;
        answers.into_iter().try_for_each(resumed)
    }

    /// What is paused now.
    ///
    /// # Errors
    /// When one of the answers is missing.
    pub async fn standing(&mut self) -> Result<Standing, SessionError> {
        let state = self.state().await?;
        let [databases, state] = self.show_all([Some("SHOW DATABASES"), state]).await?;
        Ok(Standing { databases: loaded(&databases), process: paused(&state) })
    }

    /// The `SHOW STATE` of versions that know it.
    async fn state(&mut self) -> Result<Option<&'static str>, SessionError> {
        Ok((self.version().await? >= (1, 19)).then_some("SHOW STATE"))
    }

    /// A setting as it is in force now.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn setting(&mut self, key: &str) -> Result<Option<String>, SessionError> {
        let rows = self.show("CONFIG").await?;
        Ok(rows.iter().find(|row| column(row, "key") == Some(key)).map(|row| text(row, "value")))
    }

    /// Gives a setting that we made 0 its value back. When it is not 0 any more, a RELOAD has done that.
    ///
    /// # Errors
    /// When the console refuses or has no answer.
    pub async fn give_back(&mut self, key: &str, value: &str) -> Result<(), SessionError> {
        let now = self.setting(key).await?;
        if now.is_some_and(|now| now.parse::<f64>().is_ok_and(|now| now != 0.0)) {
            return Ok(());
        }
        self.run(&set(key, value)).await
    }

    /// One look at everything that decisions need. It is asked dozens of times per second while a pool drains: all in
    /// one round trip, which also makes it a picture of one moment.
    ///
    /// # Errors
    /// When one of the answers is missing.
    pub async fn look(&mut self) -> Result<ConsoleView, SessionError> {
        let version = self.version().await?;
        let state = self.state().await?;
        let known = self.settings.take().filter(|(connection, read, _)| {
            *connection == self.kept.opened() && read.elapsed() < SETTINGS_AGE
        });
        let config = known.is_none().then_some("SHOW CONFIG");
        let names = self.has_names.then_some("SHOW DNS_HOSTS");
        let topics = [Some("SHOW DATABASES"), Some("SHOW SERVERS"), Some("SHOW POOLS"), state, config, names];
        let asked = Instant::now();
        let [databases, servers, pools, state, config, mut hosts] = self.show_all(topics).await?;
        let databases = loaded(&databases);
        self.has_names = databases.iter().any(needs_resolver);
        if self.has_names && names.is_none() {
            hosts = self.show("DNS_HOSTS").await?;
        }
        let (connection, read, settings) =
            known.unwrap_or_else(|| (self.kept.opened(), asked, wanted_settings(&config)));
        let modes = Modes::new(&databases, &pools, &settings);
        let servers = servers.iter().map(|row| server(row, &modes)).collect();
        let mut waiting = BTreeMap::new();
        for pool in pools.iter() {
            let database = text(pool, "database");
            if database != super::CONSOLE_DATABASE {
                *waiting.entry(database).or_insert(0) += number::<u64>(pool, "cl_waiting");
            }
        }
        let resolved = if self.has_names { resolved(&hosts) } else { BTreeMap::new() };
        self.settings = Some((connection, read, settings.clone()));
        Ok(ConsoleView { version, databases, servers, waiting, settings, paused: paused(&state), resolved })
    }

    /// Whether this version can cut single clients (`KILL_CLIENT`, 1.24).
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn cuts_clients(&mut self) -> Result<bool, SessionError> {
        Ok(self.version().await? >= (1, 24))
    }

    /// Those of these databases that have links to one of these endpoints.
    ///
    /// # Errors
    /// When there is no answer.
    pub async fn stale(
        &mut self,
        databases: &[String],
        stale: &[Endpoint],
    ) -> Result<Vec<String>, SessionError> {
        let servers = self.show("SERVERS").await?;
        let has_stale = |name: &&String| servers.iter().any(|row| leads_to(row, name, stale));
        Ok(databases.iter().filter(has_stale).cloned().collect())
    }

    /// Cuts the clients that hold server links of these databases to one of these endpoints, whether paused or not.
    /// Needs [`Console::cuts_clients`].
    ///
    /// # Errors
    /// When the console refuses or has no answer.
    pub async fn cut_clients(
        &mut self,
        databases: &[String],
        stale: &[Endpoint],
    ) -> Result<(), SessionError> {
        let [servers, clients] = self.show_all([Some("SHOW SERVERS"), Some("SHOW CLIENTS")]).await?;
        let is_stale = |row: &&Row| databases.iter().any(|name| leads_to(row, name, stale));
        let held: Vec<String> = servers.iter().filter(is_stale).map(|row| text(row, "link")).collect();
        for client in clients.iter().filter(|row| held.contains(&text(row, "ptr"))) {
            let command = format!("KILL_CLIENT {}", text(client, "id"));
            match self.run(&command).await {
                // It left by itself meanwhile.
                Ok(()) | Err(SessionError::Refused { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    async fn databases(&mut self) -> Result<Vec<LoadedDatabase>, SessionError> {
        Ok(loaded(&self.show("DATABASES").await?))
    }

    async fn version(&mut self) -> Result<(u32, u32), SessionError> {
        if let Some((connection, version)) = self.version
            && connection == self.kept.opened()
        {
            return Ok(version);
        }
        let rows = self.show("VERSION").await?;
        let said = rows.iter().next().map(|row| text(row, "version")).unwrap_or_default();
        let version = parse_version(&said).ok_or_else(|| SessionError::Refused {
            what: self.target.what.clone(),
            doing: "SHOW VERSION".into(),
            message: format!("`{said}` is no version of PgBouncer 1.12 or later"),
        })?;
        self.version = Some((self.kept.opened(), version));
        Ok(version)
    }
}

fn loaded(rows: &Rows) -> Vec<LoadedDatabase> {
    rows.iter().map(database).filter(|d| d.name != super::CONSOLE_DATABASE).collect()
}

/// Rows of key and value: `active`, `paused`, `suspended`, each `yes` or `no`.
fn paused(state: &Rows) -> Option<bool> {
    let row = state.iter().find(|row| column(row, "key") == Some("paused"))?;
    Some(column(row, "value") == Some("yes"))
}

fn wanted_settings(config: &Rows) -> BTreeMap<String, String> {
    let wanted = |row: &&Row| column(row, "key").is_some_and(|key| SETTINGS.contains(&key));
    config.iter().filter(wanted).map(|row| (text(row, "key"), text(row, "value"))).collect()
}

fn resolved(hosts: &Rows) -> BTreeMap<String, Vec<String>> {
    hosts.iter().map(|row| (text(row, "hostname"), addresses(&text(row, "addrs")))).collect()
}

fn leads_to(link: &Row, database: &str, endpoints: &[Endpoint]) -> bool {
    let (addr, port) = (column(link, "addr").unwrap_or_default(), number::<u16>(link, "port"));
    column(link, "database") == Some(database) && endpoints.iter().any(|e| e.host == addr && e.port == port)
}

/// Which pools are in session mode: a pool's own word (a user may have a mode of its own), else its database's, else the
/// process'.
struct Modes {
    pools: BTreeMap<(String, String), String>,
    databases: BTreeMap<String, String>,
    process: String,
}

impl Modes {
    fn new(databases: &[LoadedDatabase], pools: &Rows, settings: &BTreeMap<String, String>) -> Self {
        let pool = |row| Some(((text(row, "database"), text(row, "user")), mode(column(row, "pool_mode")?)));
        let database = |row: &LoadedDatabase| Some((row.name.clone(), mode(row.pool_mode.as_deref()?)));
        Modes {
            pools: pools.iter().filter_map(pool).collect(),
            databases: databases.iter().filter_map(database).collect(),
            process: settings.get("pool_mode").cloned().unwrap_or_default(),
        }
    }

    fn is_session(&self, database: &str, user: &str) -> bool {
        let pool = self.pools.get(&(database.to_owned(), user.to_owned()));
        pool.or_else(|| self.databases.get(database)).unwrap_or(&self.process) == "session"
    }
}

fn mode(word: &str) -> String {
    word.to_ascii_lowercase()
}

/// What is not paused, or gone, need not be resumed.
pub fn resumed(answer: Answer) -> Result<(), SessionError> {
    match answer {
        Err(SessionError::Refused { message, .. }) if is_not_paused(&message) => Ok(()),
        other => other.map(|_| ()),
    }
}

/// The console has one SQLSTATE for all errors: only the words tell them apart.
fn is_not_paused(message: &str) -> bool {
    message.contains("not paused") || message.contains("no such database")
}

/// `PgBouncer 1.18.0` -> (1, 18).
fn parse_version(said: &str) -> Option<(u32, u32)> {
    let number = said.split_whitespace().nth(1)?;
    let mut parts = number.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn addresses(list: &str) -> Vec<String> {
    let bare = |entry: &str| match entry.parse::<std::net::SocketAddr>() {
        Ok(with_port) => with_port.ip().to_string(),
        Err(_) => entry.to_owned(),
    };
    list.split(',').map(str::trim).filter(|entry| !entry.is_empty()).map(bare).collect()
}

fn needs_resolver(database: &LoadedDatabase) -> bool {
    let hosts = database.host.as_deref().unwrap_or_default();
    let is_name =
        |host: &str| !host.is_empty() && !host.starts_with(['/', '@']) && host.parse::<IpAddr>().is_err();
    hosts.split(',').map(str::trim).any(is_name)
}

type Row = tokio_postgres::SimpleQueryRow;

fn text(row: &Row, name: &str) -> String {
    column(row, name).unwrap_or_default().to_owned()
}

fn number<N: std::str::FromStr + Default>(row: &Row, name: &str) -> N {
    column(row, name).and_then(|n| n.parse().ok()).unwrap_or_default()
}

fn database(row: &Row) -> LoadedDatabase {
    LoadedDatabase {
        name: text(row, "name"),
        host: column(row, "host").filter(|host| !host.is_empty()).map(str::to_owned),
        port: number(row, "port"),
        paused: number::<u8>(row, "paused") != 0,
        min_pool_size: column(row, "min_pool_size").and_then(|n| n.parse().ok()),
        pool_mode: column(row, "pool_mode").filter(|mode| !mode.is_empty()).map(str::to_owned),
    }
}

fn server(row: &Row, modes: &Modes) -> ServerLink {
    let database = text(row, "database");
    ServerLink {
        session: modes.is_session(&database, column(row, "user").unwrap_or_default()),
        database,
        state: text(row, "state"),
        addr: text(row, "addr"),
        port: number(row, "port"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_quoted_where_the_console_needs_it() {
        assert_eq!(about("KILL", "app_1"), "KILL app_1");
        assert_eq!(about("KILL", "App"), "KILL App", "case is kept, with quotes or without");
        assert_eq!(about("KILL", "a-b.c*"), "KILL \"a-b.c*\"");
        assert_eq!(about("KILL", "a\"; SHUTDOWN; \""), "KILL \"a\"\"; SHUTDOWN; \"\"\"");
        assert_eq!(about("KILL", ""), "KILL \"\"");
        assert_eq!(set("server_login_retry", "0.5"), "SET server_login_retry = '0.5'");
        assert_eq!(set("k", "a'b"), "SET k = 'a''b'");
    }

    #[test]
    fn versions() {
        assert_eq!(parse_version("PgBouncer 1.18.0"), Some((1, 18)));
        assert_eq!(parse_version("PgBouncer 1.25.2-dev (x)"), Some((1, 25)));
        assert_eq!(parse_version("PgBouncer 1.19dev"), Some((1, 19)));
        assert_eq!(parse_version("pgbouncer"), None);
        assert_eq!(parse_version(""), None);
    }

    #[test]
    fn only_names_ask_for_the_resolver() {
        let host = |host: Option<&str>| {
            needs_resolver(&LoadedDatabase {
                name: "a".into(),
                host: host.map(Into::into),
                port: 1,
                ..LoadedDatabase::default()
            })
        };
        assert!(!host(None));
        assert!(!host(Some("10.0.0.1,::1")));
        assert!(!host(Some("/run/postgresql")));
        assert!(host(Some("10.0.0.1,db2")));
    }

    #[test]
    fn resolved_addresses_come_without_ports() {
        assert_eq!(addresses("127.0.0.1:5432,10.0.0.2:0"), ["127.0.0.1", "10.0.0.2"]);
        assert_eq!(addresses("[::1]:5432, 10.0.0.2"), ["::1", "10.0.0.2"]);
        assert!(addresses("").is_empty());
    }
}
