//! One PgBouncer process: its files, what it has loaded, its server links and its back-off marks.

use crate::pausing::Pauses;
use pgsquire_core::pgbouncer::console::{ConsoleView, LoadedDatabase, ServerLink};
use pgsquire_core::pgbouncer::ini::Files;
use pgsquire_core::time::Time;
use pgsquire_core::topology::Endpoint;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A value that PgBouncer refuses, though the grammar allows it.
pub const REFUSED: &str = "pool_mode = nonsense";

/// A server link.
#[derive(Debug, Clone, PartialEq)]
pub struct Link {
    /// Database.
    pub database: String,
    /// Address and port of the server.
    pub to: Endpoint,
    /// Closes when it is released.
    pub dirty: bool,
    /// Its client never releases it.
    pub session: bool,
    /// A transaction runs on it until then.
    pub busy: Time,
}

/// A login of a pool that failed.
#[derive(Debug, Clone, PartialEq)]
pub struct Mark {
    /// When the pool was first marked.
    pub since: Time,
    /// The last attempt.
    pub last: Time,
}

/// The process.
#[derive(Debug, Clone)]
pub struct PgBouncer {
    /// Our name for it.
    pub name: String,
    /// Its main file.
    pub ini: String,
    /// Files on disk.
    pub disk: Files,
    /// Copies of refused files that were kept beside them.
    pub rejected: Vec<Vec<u8>>,
    /// Version.
    pub version: (u32, u32),
    /// It runs.
    pub up: bool,
    /// Its console does not answer.
    pub console_dead: bool,
    /// Entries as loaded.
    pub loaded: BTreeMap<String, Endpoint>,
    /// When an entry last came to lead elsewhere.
    pub moved: BTreeMap<String, Time>,
    /// Databases that clients opened through `*`.
    pub opened: BTreeSet<String>,
    /// `server_login_retry` in force.
    pub login_retry: String,
    /// `min_pool_size` in force.
    pub min_pool_size: u32,
    /// The process is paused.
    pub paused_all: bool,
    /// Databases that are paused, each by itself.
    pub paused: BTreeSet<String>,
    /// Since when pools are kept filled up although their databases are paused.
    pub refills: Option<Time>,
    /// Who paused what.
    pub pauses: Pauses,
    /// Server links.
    pub links: Vec<Link>,
    /// Pools whose last login failed.
    pub marks: BTreeMap<String, Mark>,
    /// Databases whose clients hold their links.
    pub sessions: BTreeSet<String>,
    /// RELOADs so far.
    pub reloads: u64,
}

impl PgBouncer {
    /// A process that has just started with these files.
    pub fn new(name: &str, disk: Files, version: (u32, u32)) -> Self {
        let mut new = PgBouncer {
            name: name.into(),
            ini: disk.root.clone(),
            disk,
            rejected: Vec::new(),
            version,
            up: true,
            console_dead: false,
            loaded: BTreeMap::new(),
            moved: BTreeMap::new(),
            opened: BTreeSet::new(),
            login_retry: "15".into(),
            min_pool_size: 0,
            paused_all: false,
            paused: BTreeSet::new(),
            refills: None,
            pauses: Pauses::default(),
            links: Vec::new(),
            marks: BTreeMap::new(),
            sessions: BTreeSet::new(),
            reloads: 0,
        };
        new.reload(Time::ZERO);
        new
    }

    /// Whether it would load the files on disk.
    pub fn would_load(&self) -> bool {
        let refused = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).contains(REFUSED);
        !self.disk.parts.values().any(refused) && !self.disk.problems().iter().any(|p| p.is_fatal())
    }

    /// Where the entries of the files on disk lead.
    pub fn on_disk(&self) -> BTreeMap<String, Endpoint> {
        entries(&self.disk)
    }

    /// The process is restarted. It does not come up with files that it does not load.
    pub fn restart(&mut self, now: Time) {
        self.links.clear();
        self.marks.clear();
        self.paused.clear();
        self.paused_all = false;
        self.pauses = Pauses { broken: now, ..Pauses::default() };
        self.opened.clear();
        self.loaded.clear();
        self.up = self.would_load();
        if self.up {
            self.reload(now);
        }
    }

    /// `RELOAD`. A load that fails leaves the databases as they are.
    pub fn reload(&mut self, now: Time) {
        self.reloads += 1;
        if !self.would_load() {
            return;
        }
        let new = self.on_disk();
        let old_star = self.loaded.get("*").cloned();
        let databases: Vec<String> = self
            .loaded
            .keys()
            .chain(self.opened.iter())
            .cloned()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        for database in databases {
            let before = self.loaded.get(&database).or(old_star.as_ref()).cloned();
            let after =
                new.get(&database).or_else(|| new.get("*").filter(|_| self.opened.contains(&database)));
            if after != before.as_ref() {
                self.dirty(&database);
                self.moved.insert(database, now);
            }
        }
        self.opened.retain(|database| !new.contains_key(database) && new.contains_key("*"));
        self.loaded = new;
        let known: BTreeSet<String> = self.databases().into_keys().collect();
        self.links.retain(|link| known.contains(&link.database));
        self.login_retry = self.disk.setting("server_login_retry").unwrap_or_else(|| "15".into());
        self.min_pool_size = self.disk.setting("min_pool_size").and_then(|n| n.parse().ok()).unwrap_or(0);
    }

    /// `RECONNECT`.
    pub fn dirty(&mut self, database: &str) {
        self.links.iter_mut().filter(|link| link.database == database).for_each(|link| link.dirty = true);
    }

    /// `KILL`.
    pub fn kill(&mut self, database: &str) {
        self.links.retain(|link| link.database != database);
        self.paused.insert(database.into());
    }

    /// `KILL_CLIENT` of all clients on links to these endpoints.
    pub fn kill_clients(&mut self, database: &str, stale: &[Endpoint]) {
        self.links.retain(|link| link.database != database || !stale.contains(&link.to));
    }

    /// Databases that exist, with where they lead.
    pub fn databases(&self) -> BTreeMap<String, Endpoint> {
        let named = self.loaded.iter().filter(|(name, _)| *name != "*");
        let mut all: BTreeMap<_, _> = named.map(|(name, to)| (name.clone(), to.clone())).collect();
        if let Some(star) = self.loaded.get("*") {
            all.extend(self.opened.iter().map(|name| (name.clone(), star.clone())));
        }
        all
    }

    /// `server_login_retry` in force.
    pub fn retry(&self) -> Duration {
        Duration::from_secs_f64(self.login_retry.trim().parse().unwrap_or(15.0))
    }

    /// What the console shows.
    pub fn look(&self, addresses: &BTreeMap<String, String>) -> ConsoleView {
        let databases = self.databases();
        let row = |(name, to): (&String, &Endpoint)| LoadedDatabase {
            name: name.clone(),
            host: Some(to.host.clone()),
            port: to.port,
            paused: self.paused.contains(name),
            ..LoadedDatabase::default()
        };
        let link = |link: &Link| ServerLink {
            database: link.database.clone(),
            state: if link.session { "active".into() } else { "idle".into() },
            addr: link.to.host.clone(),
            port: link.to.port,
            session: link.session,
        };
        let hosts = databases.values().flat_map(|to| to.host.split(','));
        let resolved = hosts.filter_map(|host| Some((host.to_string(), vec![addresses.get(host)?.clone()])));
        let waits =
            |name: &&String| self.is_paused(name) || !self.links.iter().any(|link| link.database == **name);
        ConsoleView {
            version: self.version,
            databases: databases.iter().map(row).collect(),
            servers: self.links.iter().map(link).collect(),
            waiting: databases.keys().filter(waits).map(|name| (name.clone(), 1)).collect(),
            settings: BTreeMap::from([
                ("server_login_retry".into(), self.login_retry.clone()),
                ("min_pool_size".into(), self.min_pool_size.to_string()),
                ("query_wait_timeout".into(), "120".into()),
                ("client_login_timeout".into(), "60".into()),
            ]),
            paused: (self.version >= (1, 19)).then_some(self.paused_all),
            resolved: resolved.collect(),
        }
    }
}

/// Where the entries of some files lead.
pub fn entries(files: &Files) -> BTreeMap<String, Endpoint> {
    let endpoint = |e: &pgsquire_core::pgbouncer::ini::Entry| {
        Some(Endpoint { host: e.host.clone()?, port: u16::try_from(e.port).ok()? })
    };
    files.entries().iter().filter_map(|(name, entry)| Some((name.clone(), endpoint(entry)?))).collect()
}
