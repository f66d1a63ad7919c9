//! The clients of a pooler: they ask for links, commit through them, release them, or hold them.

use crate::pgbouncer::{Link, Mark};
use crate::world::World;
use pgsquire_core::config::RouteTo;
use pgsquire_core::topology::Endpoint;

impl World {
    /// The clients of a pooler ask for links, release them, or hold them.
    pub fn clients(&mut self, h: usize, p: usize) {
        let pace = self.setup.pace;
        let again = self.rng.millis(pace / 2, pace);
        self.later(again, crate::world::Thing::Clients(h, p));
        if !self.hosts[h].poolers[p].up {
            return;
        }
        self.check_pause(h, p);
        let now = self.now;
        self.hosts[h].poolers[p].refill(now);
        self.drop_links(h, p);
        for (database, to) in self.hosts[h].poolers[p].databases() {
            if self.hosts[h].poolers[p].is_paused(&database) {
                continue;
            }
            let served = |link: &Link| link.database == database;
            if !self.hosts[h].poolers[p].links.iter().any(served) {
                self.login(h, p, &database, &to);
            }
            if self.writes(h, p, &database).is_some() {
                self.transact(h, p, &database);
            }
        }
    }

    /// The cluster that a database writes to.
    fn writes(&self, h: usize, p: usize, database: &str) -> Option<usize> {
        let pooler = &self.hosts[h].poolers[p];
        let routes = &self.hosts[h].config.pooler(&pooler.name)?.routes;
        let entry = if pooler.opened.contains(database) { "*" } else { database };
        let route = routes.get(entry).filter(|route| route.to == RouteTo::Primary)?;
        self.clusters.iter().position(|c| c.name == route.cluster)
    }

    fn error(&mut self, h: usize, p: usize, database: &str, why: &str) {
        if self.writes(h, p, database).is_some() {
            self.errors.push((self.now, database.to_string()));
            self.say(|w| format!("{}: a client of {database}: {why}", w.hosts[h].name));
        }
    }

    /// A transaction on each link of a database that has none.
    fn transact(&mut self, h: usize, p: usize, database: &str) {
        let now = self.now;
        let long = if self.setup.calm || !self.rng.one_in(20) { 30 } else { 3000 };
        for n in 0..self.hosts[h].poolers[p].links.len() {
            let link = &self.hosts[h].poolers[p].links[n];
            if link.database != database || link.busy > now {
                continue;
            }
            let Some((c, m)) = self.member_at(&link.to) else { continue };
            if !self.clusters[c].members[m].pg.is_writable() {
                self.error(h, p, database, "the server is read-only");
                continue;
            }
            let lasts = self.rng.millis(1, long);
            self.hosts[h].poolers[p].links[n].busy = now + lasts;
            self.commit(h, c, m);
        }
    }

    /// Links end with their server, and dirty ones when they are released.
    fn drop_links(&mut self, h: usize, p: usize) {
        let now = self.now;
        let mut torn = Vec::new();
        let mut links = std::mem::take(&mut self.hosts[h].poolers[p].links);
        links.retain(|link| {
            let at = self.member_at(&link.to);
            let there = at.is_some_and(|at| self.member(at).pg.accepts());
            if at.is_some_and(|at| !there && link.busy > self.member(at).pg.since) {
                torn.push(link.database.clone());
            }
            there && (link.session || !link.dirty || link.busy > now)
        });
        self.hosts[h].poolers[p].links = links;
        for database in torn {
            self.error(h, p, &database, "the server ended a transaction");
        }
    }

    /// One pool tries to log in, unless it waits after a failure. A pool whose last login failed cuts who asks.
    fn login(&mut self, h: usize, p: usize, database: &str, to: &Endpoint) {
        let now = self.now;
        let hosts: Vec<&str> = to.host.split(',').collect();
        let host = (*self.rng.pick(&hosts)).to_string();
        let server = self.member_at(&Endpoint { host, port: to.port });
        let open = server.filter(|at| self.member(*at).pg.accepts());
        let pooler = &self.hosts[h].poolers[p];
        if let Some(mark) = pooler.marks.get(database) {
            let waits = now.since(mark.last) < pooler.retry();
            self.error(h, p, database, "server login has been failing");
            if waits {
                return self.check_mark(h, p, database, open);
            }
        }
        match open {
            Some(at) => {
                let member = self.member(at);
                let to = Endpoint { host: member.ip.clone(), port: member.port };
                let pooler = &mut self.hosts[h].poolers[p];
                pooler.marks.remove(database);
                let session = pooler.sessions.contains(database);
                let database = database.to_string();
                pooler.links.push(Link { database, to, dirty: false, session, busy: now });
            }
            None => {
                let pooler = &mut self.hosts[h].poolers[p];
                let mark = pooler.marks.entry(database.into()).or_insert(Mark { since: now, last: now });
                mark.last = now;
                self.error(h, p, database, "cannot connect to server");
            }
        }
    }

    /// The address and port at which links to an endpoint end.
    pub fn address(&self, endpoint: &Endpoint) -> Endpoint {
        let ip = self.member_at(endpoint).map(|at| self.member(at).ip.clone());
        Endpoint { host: ip.unwrap_or_else(|| endpoint.host.clone()), port: endpoint.port }
    }
}
