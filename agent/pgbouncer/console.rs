//! PgBouncer's admin console: simple protocol, one command at a time, columns by name because they grow from version to
//! version.

use crate::session::{Kept, Rows, SessionError, Target, column};
use pgsquire_core::pgbouncer::console::{ConsoleView, LoadedDatabase, SETTINGS, ServerLink};
use pgsquire_core::topology::Endpoint;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// The console of one process: a connection that is kept while it works.
pub struct Console {
    target: Target,
    kept: Kept,
    /// Of which connection, and what it is.
    version: Option<(u64, (u32, u32))>,
}

/// A command about one database.
pub fn about(verb: &str, database: &str) -> String {
    format!("{verb} {}", quoted(database))
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
        Console { target, kept: Kept::default(), version: None }
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
        self.kept.change(&self.target, command).await.map(|_| ())
    }

    async fn show(&mut self, topic: &str) -> Result<Rows, SessionError> {
        self.kept.ask(&self.target, &format!("SHOW {topic}")).await
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
        match self.kept.ask(&self.target, &about("RESUME", database)).await {
            Err(SessionError::Refused { message, .. }) if is_not_paused(&message) => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// One look at everything that decisions need.
    ///
    /// # Errors
    /// When one of the answers is missing.
    pub async fn look(&mut self) -> Result<ConsoleView, SessionError> {
        let databases = self.databases().await?;
        let servers = self.show("SERVERS").await?.iter().map(server).collect();
        let mut waiting = BTreeMap::new();
        for pool in self.show("POOLS").await?.iter() {
            let database = text(pool, "database");
            if database != super::CONSOLE_DATABASE {
                *waiting.entry(database).or_insert(0) += number::<u64>(pool, "cl_waiting");
            }
        }
        let settings = self.show("CONFIG").await?;
        let wanted = |row: &&Row| column(row, "key").is_some_and(|key| SETTINGS.contains(&key));
        let settings =
            settings.iter().filter(wanted).map(|row| (text(row, "key"), text(row, "value"))).collect();
        let resolved =
            if databases.iter().any(needs_resolver) { self.resolved().await? } else { BTreeMap::new() };
        let version = self.version().await?;
        Ok(ConsoleView { version, databases, servers, waiting, settings, paused: None, resolved })
    }

    /// Cuts the clients that hold server links of the database to one of these endpoints. `false`: this version (before
    /// 1.24) cannot cut a single client.
    ///
    /// # Errors
    /// When the console refuses or has no answer.
    pub async fn cut_clients(&mut self, database: &str, stale: &[Endpoint]) -> Result<bool, SessionError> {
        if self.version().await? < (1, 24) {
            return Ok(false);
        }
        let servers = self.show("SERVERS").await?;
        let is_stale = |row: &&Row| {
            let link = server(row);
            link.database == database && stale.iter().any(|e| e.host == link.addr && e.port == link.port)
        };
        let held: Vec<String> = servers.iter().filter(is_stale).map(|row| text(row, "link")).collect();
        let clients = self.show("CLIENTS").await?;
        for client in clients.iter().filter(|row| held.contains(&text(row, "ptr"))) {
            let command = format!("KILL_CLIENT {}", text(client, "id"));
            match self.run(&command).await {
                // It left by itself meanwhile.
                Ok(_) | Err(SessionError::Refused { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }

    async fn databases(&mut self) -> Result<Vec<LoadedDatabase>, SessionError> {
        let rows = self.show("DATABASES").await?;
        Ok(rows.iter().map(database).filter(|d| d.name != super::CONSOLE_DATABASE).collect())
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

    async fn resolved(&mut self) -> Result<BTreeMap<String, Vec<String>>, SessionError> {
        let rows = self.show("DNS_HOSTS").await?;
        let entry = |row| (text(row, "hostname"), addresses(&text(row, "addrs")));
        Ok(rows.iter().map(entry).collect())
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

fn server(row: &Row) -> ServerLink {
    ServerLink {
        database: text(row, "database"),
        state: text(row, "state"),
        addr: text(row, "addr"),
        port: number(row, "port"),
        session: false,
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
