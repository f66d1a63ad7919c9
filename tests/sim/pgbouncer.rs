//! One PgBouncer process: its files, what it has loaded, its server links and its back-off marks.

use crate::world::World;
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
    /// Databases that are paused.
    pub paused: BTreeSet<String>,
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
            paused: BTreeSet::new(),
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
        let waits = |name: &&String| {
            self.paused.contains(*name) || !self.links.iter().any(|link| link.database == **name)
        };
        ConsoleView {
            version: self.version,
            databases: databases.iter().map(row).collect(),
            servers: self.links.iter().map(link).collect(),
            waiting: databases.keys().filter(waits).map(|name| (name.clone(), 1)).collect(),
            settings: BTreeMap::from([("server_login_retry".into(), self.login_retry.clone())]),
            paused: None,
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

impl World {
    /// The clients of a pooler ask for links, release them, or hold them.
    pub fn clients(&mut self, h: usize, p: usize) {
        let again = self.rng.millis(200, 400);
        self.later(again, crate::world::Thing::Clients(h, p));
        if !self.hosts[h].poolers[p].up {
            return;
        }
        self.drop_links(h, p);
        for (database, to) in self.hosts[h].poolers[p].databases() {
            let pooler = &self.hosts[h].poolers[p];
            let served = pooler.links.iter().any(|link| link.database == database);
            if !served && !pooler.paused.contains(&database) {
                self.login(h, p, &database, &to);
            }
        }
    }

    /// Links end with their server, and dirty ones when they are released.
    fn drop_links(&mut self, h: usize, p: usize) {
        let mut links = std::mem::take(&mut self.hosts[h].poolers[p].links);
        links.retain(|link| {
            let there = self.member_at(&link.to).is_some_and(|at| self.member(at).pg.accepts());
            there && (link.session || !link.dirty)
        });
        self.hosts[h].poolers[p].links = links;
    }

    /// One pool tries to log in, unless it waits after a failure.
    fn login(&mut self, h: usize, p: usize, database: &str, to: &Endpoint) {
        let now = self.now;
        let hosts: Vec<&str> = to.host.split(',').collect();
        let host = (*self.rng.pick(&hosts)).to_string();
        let server = self.member_at(&Endpoint { host, port: to.port });
        let open = server.filter(|at| self.member(*at).pg.accepts());
        let pooler = &mut self.hosts[h].poolers[p];
        if let Some(mark) = pooler.marks.get(database)
            && now.since(mark.last) < pooler.retry()
        {
            return self.check_mark(h, p, database, open);
        }
        match open {
            Some(at) => {
                let member = self.member(at);
                let to = Endpoint { host: member.ip.clone(), port: member.port };
                let pooler = &mut self.hosts[h].poolers[p];
                pooler.marks.remove(database);
                let session = pooler.sessions.contains(database);
                pooler.links.push(Link { database: database.into(), to, dirty: false, session });
            }
            None => {
                let mark = pooler.marks.entry(database.into()).or_insert(Mark { since: now, last: now });
                mark.last = now;
            }
        }
    }
}
