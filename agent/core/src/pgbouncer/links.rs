//! Where a PgBouncer process leads its clients: what is loaded, and where the server links go.

use super::console::{LoadedDatabase, ServerLink};
use super::pools::{CONSOLE_AGE, Pooler};
use super::seen::Seen;
use crate::desired::{Decision, Target};
use crate::time::Time;
use crate::topology::Endpoint;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::IpAddr;

impl Pooler {
    /// What an entry leads to as loaded by PgBouncer. `*` itself is not listed: what was opened through it follows each
    /// RELOAD, so those databases tell; while there is none, our last RELOAD does.
    pub fn loaded(&self, entry: &str) -> Option<Endpoint> {
        let endpoint = |row: &LoadedDatabase| Some(Endpoint { host: row.host.clone()?, port: row.port });
        if entry != "*" {
            return endpoint(self.row(entry)?);
        }
        let mut opened = self.databases_of("*").into_iter().filter_map(|database| self.row(database));
        match opened.next() {
            None => self.star_loaded.clone(),
            Some(first) => {
                opened.all(|row| row.host == first.host && row.port == first.port).then(|| endpoint(first))?
            }
        }
    }

    /// Whether PgBouncer has loaded that an entry leads there. What `*` leads to may be hidden: files that were seen
    /// loaded before are loaded still.
    pub fn is_loaded(&self, entry: &str, wanted: &Endpoint) -> bool {
        match self.loaded(entry) {
            Some(loaded) => loaded == *wanted,
            None => {
                let disk = self.disk.last();
                entry == "*" && disk.is_some() && self.good.as_ref() == disk.map(|disk| &disk.files)
            }
        }
    }

    /// Databases that an entry serves: itself, or what was opened through `*`.
    pub fn databases_of(&self, entry: &str) -> Vec<&str> {
        let Some(seen) = self.console.last() else { return Vec::new() };
        if entry != "*" {
            return seen.databases.get_key_value(entry).map(|(name, _)| name.as_str()).into_iter().collect();
        }
        let is_named = |name: &str| self.disk.last().is_some_and(|disk| disk.places.contains_key(name));
        seen.databases.keys().map(String::as_str).filter(|name| !is_named(name)).collect()
    }

    /// The row of a loaded database.
    pub fn row(&self, database: &str) -> Option<&LoadedDatabase> {
        self.console.last()?.databases.get(database)
    }

    /// Server links of an entry, and those of them that lead neither to its target nor to where links may stay.
    pub fn links(&self, entry: &str, target: &Target) -> (u32, Vec<Endpoint>) {
        let Some(view) = self.console.last() else { return (0, Vec::new()) };
        let databases = self.databases_of(entry);
        let links = || databases.iter().flat_map(|database| view.links_of(database));
        if links().next().is_none() {
            return (0, Vec::new());
        }
        let allowed = allowed_addresses(view, target);
        let (mut count, mut stale) = (0, Vec::new());
        for link in links() {
            count += 1;
            let here = allowed.iter().any(|(host, port)| *port == link.port && same_host(host, &link.addr));
            if !here {
                stale.push(Endpoint { host: link.addr.clone(), port: link.port });
            }
        }
        (count, stale)
    }

    /// Server links of an entry to one server: those that go when their transaction ends, and those of session pools.
    pub fn links_to(&self, entry: &str, endpoint: &Endpoint) -> (u32, u32) {
        let Some(view) = self.console.last() else { return (0, 0) };
        let (mut links, mut session) = (0, 0);
        for link in self.databases_of(entry).into_iter().flat_map(|database| view.links_of(database)) {
            if leads_to(view, link, endpoint) {
                *if link.session { &mut session } else { &mut links } += 1;
            }
        }
        (links, session)
    }

    /// Server links of a database to one server.
    pub fn links_of_database(&self, database: &str, endpoint: &Endpoint) -> usize {
        let Some(view) = self.console.last() else { return 0 };
        view.links_of(database).iter().filter(|link| leads_to(view, link, endpoint)).count()
    }

    /// Whether clients are led where they must be: wanted = loaded and no link leads elsewhere, on a console that was seen
    /// lately.
    pub fn is_serving(&self, entry: &str, decision: &Decision, now: Time) -> bool {
        let Some(target) = &decision.target else { return false };
        self.console.fresh(now, CONSOLE_AGE).is_ok()
            && !self.reload_unseen
            && self.is_loaded(entry, &target.endpoint)
            && self.links(entry, target).1.is_empty()
    }

    /// Whether it is so, and will be after a restart of PgBouncer: the file on disk says the same.
    pub fn is_verified(&self, entry: &str, decision: &Decision, now: Time) -> bool {
        let Some(target) = &decision.target else { return false };
        self.disk.last().is_some_and(|disk| disk.entries.get(entry) == Some(&target.endpoint))
            && self.is_serving(entry, decision, now)
    }
}

/// Addresses and ports at which links of the target may end: names are taken as PgBouncer resolved them.
fn allowed_addresses(view: &Seen, target: &Target) -> Vec<(String, u16)> {
    let listed = target.endpoint.host.split(',').map(|host| (host, target.endpoint.port));
    let tolerated = target.tolerated.iter().map(|e| (e.host.as_str(), e.port));
    let mut allowed = Vec::new();
    for (host, port) in listed.chain(tolerated) {
        allowed.push((host.to_string(), port));
        for address in view.resolved.get(host).into_iter().flatten() {
            allowed.push((address.clone(), port));
        }
    }
    allowed
}

fn leads_to(view: &Seen, link: &ServerLink, endpoint: &Endpoint) -> bool {
    let resolved = view.resolved.get(&endpoint.host).into_iter().flatten().map(String::as_str);
    let mut hosts = core::iter::once(endpoint.host.as_str()).chain(resolved);
    link.port == endpoint.port && hosts.any(|host| same_host(host, &link.addr))
}

/// Whether two spellings mean one address (`::1` and `0:0::1`).
fn same_host(a: &str, b: &str) -> bool {
    a == b || matches!((a.parse::<IpAddr>(), b.parse::<IpAddr>()), (Ok(a), Ok(b)) if a == b)
}
