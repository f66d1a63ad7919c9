//! What must hold at every step, whatever breaks.

use crate::agent_host::Host;
use crate::mask::{mask, same_but_for_routes};
use crate::pgbouncer::entries;
use crate::world::World;
use pgsquire_core::config::{Mode, Route, RouteTo};
use pgsquire_core::effect::{Effect, Order, PoolerOrder};
use pgsquire_core::event::{Event, Outcome};
use pgsquire_core::pgbouncer::ini::Files;
use pgsquire_core::time::Time;
use pgsquire_core::topology::Endpoint;
use std::collections::BTreeMap;
use std::time::Duration;

/// An invariant that does not hold.
#[derive(Debug, Clone)]
pub struct Violation {
    /// Its name: S1 to S8, L1, L2.
    pub invariant: &'static str,
    /// What was seen.
    pub text: String,
}

/// Facts older than this are unknown (as the hosts are configured).
pub const MAX_FACT_AGE: Duration = Duration::from_secs(10);
/// The local server's word counts for so long.
const PROBE_AGE: Duration = Duration::from_secs(2);
/// Orders take at most this long.
const ORDER_TIME: Duration = Duration::from_secs(8);
/// A member's own key may be this old: lifetime of a lease, loop and fact age.
const KEY_AGE: Duration = Duration::from_secs(60);
/// RELOADs of one pooler within a minute.
const RELOADS: usize = 20;
/// Orders for one pooler within a minute that change something.
const CHANGES: usize = 90;
/// Questions of one agent within a second.
const QUESTIONS: u64 = 400;
/// A pooler's clients do not wait for a mark of before the move for longer than this.
const MARK_TIME: Duration = Duration::from_secs(5);

impl World {
    /// An invariant is broken: the world stops here.
    pub fn broken(&mut self, invariant: &'static str, text: String) {
        if self.violation.is_none() {
            self.say(|_| format!("*** {invariant}: {text}"));
            self.violation = Some(Violation { invariant, text });
        }
    }

    /// Looked at after every step: S1 and S2.
    pub fn check_step(&mut self) {
        let mut up: Vec<usize> = Vec::new();
        for (h, host) in self.hosts.iter().enumerate() {
            if self.says_primary(host) {
                up.push(h);
            }
        }
        // A store that comes back from a snapshot has no say about leases that were given out since: Patroni itself is split.
        let split = |at: Time| self.now.since(at) < self.clusters[0].ttl + Duration::from_secs(10);
        if self.clusters[0].rebuilt.is_some_and(split) {
            return;
        }
        if let [first, second, ..] = up.as_slice() {
            let text =
                format!("{} and {} both say primary", self.hosts[*first].name, self.hosts[*second].name);
            self.broken("S1", text);
        }
        for h in up {
            if let Err(text) = self.is_primary(h) {
                self.broken("S2", text);
            }
        }
    }

    fn says_primary(&self, host: &Host) -> bool {
        let local = host.status.as_ref().and_then(|status| status.local.as_ref());
        local.is_some_and(|local| local.primary.is_up(self.now + host.clock))
    }

    /// Whether it is true that this host has the primary, within the bounds that a verdict may have.
    fn is_primary(&self, h: usize) -> Result<(), String> {
        let host = &self.hosts[h];
        let Some((c, m)) = host.local else { return Err(format!("{} has no server", host.name)) };
        let (cluster, member) = (&self.clusters[c], self.member((c, m)));
        if member.pg.wrote_within(self.now, PROBE_AGE).is_none() {
            return Err(format!("{} says primary, but was not writable for {PROBE_AGE:?}", host.name));
        }
        let lost = cluster.lost.get(&member.name).is_some_and(|at| self.now.since(*at) <= PROBE_AGE);
        if cluster.rebuilt.is_none() && cluster.holder.as_ref() != Some(&member.name) && !lost {
            return Err(format!("{} says primary, but lost the leader key long ago", host.name));
        }
        let read = host.memory.stores.get(&cluster.name).and_then(|store| store.read);
        match read.map(|at| (self.now + host.clock).since(at)) {
            Some(age) if age <= MAX_FACT_AGE => Ok(()),
            age => Err(format!("{} says primary, but read the store {age:?} ago", host.name)),
        }
    }

    /// Looked at whenever a snapshot is published.
    pub fn check_published(&mut self, h: usize) {
        let clusters = self.hosts[h].status.iter().flat_map(|status| &status.clusters);
        let untold = |problem: &String| problem.contains("could not be kept");
        let keep_failed = clusters.flat_map(|c| &c.problems).any(untold);
        self.hosts[h].memory.keep_failed |= keep_failed;
        if let Err((invariant, text)) = self.judge_snapshot(h) {
            let name = &self.hosts[h].name;
            let text = format!("{name}: {text}");
            self.broken(invariant, text);
        }
    }

    fn judge_snapshot(&self, h: usize) -> Result<(), (&'static str, String)> {
        let host = &self.hosts[h];
        let Some(status) = &host.status else { return Ok(()) };
        let now = self.now + host.clock;
        let verdicts = status.local.iter().map(|l| &l.primary).chain(status.poolers.iter().map(|p| &p.pool));
        for verdict in verdicts {
            if verdict.is_up(now) && verdict.valid_until.since(now) > MAX_FACT_AGE {
                return Err(("S2", format!("a verdict has no end: {verdict:?}")));
            }
        }
        for cluster in &status.clusters {
            let memory = host.memory.stores.get(&cluster.name);
            let age = memory.and_then(|m| m.read).map(|at| now.since(at));
            if (cluster.writable || cluster.store.known) && age.is_none_or(|age| age > MAX_FACT_AGE) {
                return Err(("S2", format!("{} counts as known, but was read {age:?} ago", cluster.name)));
            }
            self.judge_view(host, &cluster.name, cluster.leader.as_deref())?;
        }
        let routes = |name: &str| host.config.pooler(name).map(|p| &p.routes);
        for pooler in status.poolers.iter().filter(|pooler| pooler.pool.is_up(now)) {
            let memory = host.memory.poolers.get(&pooler.name);
            let Some((look, _)) = memory.and_then(|m| m.look.as_ref()) else {
                return Err(("S2", format!("pool {} is up without a look at its console", pooler.name)));
            };
            for route in &pooler.routes {
                let Some(target) = &route.target else {
                    return Err((
                        "S2",
                        format!("pool {} is up, but {} leads nowhere", pooler.name, route.database),
                    ));
                };
                if routes(&pooler.name).is_some_and(|r| r[&route.database].to == RouteTo::Primary) {
                    self.judge_links(look, &route.database, target).map_err(|text| ("S2", text))?;
                }
            }
        }
        Ok(())
    }

    /// The leader shown is the one of the newest revision that the agent was told.
    fn judge_view(
        &self,
        host: &Host,
        name: &str,
        leader: Option<&str>,
    ) -> Result<(), (&'static str, String)> {
        let Some((id, revision)) = host.memory.stores.get(name).and_then(|m| m.newest.as_ref()) else {
            return Ok(());
        };
        let cluster = self.clusters.iter().find(|c| c.name == name);
        let Some(cluster) = cluster.filter(|c| c.rebuilt.is_none() && c.store.id == *id) else {
            return Ok(());
        };
        let newest = cluster.store.leader_at(*revision);
        if leader == newest {
            return Ok(());
        }
        Err(("S3", format!("{leader:?} counts as leader, but at revision {revision} it was {newest:?}")))
    }

    /// A write route that counts as verified has no link elsewhere in the look that the agent was told.
    fn judge_links(
        &self,
        look: &pgsquire_core::pgbouncer::console::ConsoleView,
        database: &str,
        target: &Endpoint,
    ) -> Result<(), String> {
        let ip = |e: &Endpoint| self.member_at(e).map_or(e.host.clone(), |at| self.member(at).ip.clone());
        let wanted = Endpoint { host: ip(target), port: target.port };
        let astray = |link: &&pgsquire_core::pgbouncer::console::ServerLink| {
            link.database == database && (link.addr != wanted.host || link.port != wanted.port)
        };
        match look.servers.iter().find(astray) {
            Some(link) => Err(format!("the pool is up, but {database} has a link to {}", link.addr)),
            None => Ok(()),
        }
    }

    /// Remembers what the agent is told.
    pub fn note_told(&mut self, h: usize, event: &Event) {
        let memory = &mut self.hosts[h].memory;
        match event {
            Event::StoreRead { cluster, read } => {
                let store = memory.stores.entry(cluster.clone()).or_default();
                store.read = store.read.max(Some(read.started));
                let above = |known: &Option<(String, u64)>| {
                    known.as_ref().is_some_and(|(id, r)| *id == read.store && *r > read.revision)
                };
                let older = above(&store.newest) || above(&store.floor);
                if !older {
                    store.newest = Some((read.store.clone(), read.revision));
                }
            }
            Event::StoreChanged { cluster, change } => {
                let store = memory.stores.entry(cluster.clone()).or_default();
                if let Some((id, revision)) = &mut store.newest
                    && *id == change.store
                {
                    *revision = (*revision).max(change.revision);
                }
            }
            Event::Done { id, started, outcome } => {
                let looked = memory.looks.remove(id);
                if let (Some(pooler), Outcome::Console(view)) = (looked, outcome) {
                    let pooler = memory.poolers.entry(pooler).or_default();
                    pooler.look = Some((view.clone(), *started));
                }
            }
            _ => {}
        }
    }

    /// Looked at whenever an order is given.
    pub fn check_ordered(&mut self, h: usize, effect: &Effect) {
        let now = self.now;
        let second = now.as_micros() / 1_000_000;
        let memory = &mut self.hosts[h].memory;
        if memory.questions.0 != second {
            memory.questions = (second, 0);
        }
        memory.questions.1 += 1;
        if memory.questions.1 > QUESTIONS {
            self.broken("S5", format!("more than {QUESTIONS} orders in one second"));
            return;
        }
        let Order::Pooler { pooler, order } = &effect.order else { return };
        if matches!(order, PoolerOrder::Look) {
            memory.looks.insert(effect.id, pooler.clone());
        }
        if !order.changes() {
            return;
        }
        memory.changes += 1;
        let times = memory.poolers.entry(pooler.clone()).or_default();
        times.changes.push_back(now);
        times.changes.retain(|at| now.since(*at) < Duration::from_secs(60));
        if matches!(order, PoolerOrder::Reload) {
            times.reloads.push_back(now);
            times.reloads.retain(|at| now.since(*at) < Duration::from_secs(60));
        }
        let (changes, reloads) = (times.changes.len(), times.reloads.len());
        if changes > CHANGES || reloads > RELOADS {
            self.broken("S5", format!("{pooler}: {changes} changes, {reloads} RELOADs within a minute"));
        }
        if self.hosts[h].config.mode == Mode::Observe {
            self.broken("S5", format!("{pooler}: {order}, although the agent only observes"));
        }
        if let PoolerOrder::Write { files, .. } = order {
            self.check_order_of_terms(h, pooler, files);
        }
    }

    /// Whatever pooler it is for: no write route of a host is ordered to an older term.
    fn check_order_of_terms(&mut self, h: usize, pooler: &str, files: &BTreeMap<String, (Vec<u8>, Vec<u8>)>) {
        let Some(p) = self.hosts[h].poolers.iter().position(|p| p.name == pooler) else { return };
        let before = self.hosts[h].poolers[p].disk.clone();
        let mut after = before.clone();
        after.parts.extend(files.iter().map(|(path, (_, new))| (path.clone(), new.clone())));
        for (_, route, to) in self.moved(h, p, &before, &after) {
            let Some(at) = self.member_at(&to).filter(|_| route.to == RouteTo::Primary) else { continue };
            let timeline = self.member(at).pg.wrote_within(self.now, MAX_FACT_AGE).unwrap_or(0);
            let store = self.hosts[h].memory.stores.entry(route.cluster).or_default();
            let highest = store.ordered;
            store.ordered = highest.max(timeline);
            if timeline < highest {
                self.broken("S3", format!("a write route is ordered to timeline {timeline} after {highest}"));
            }
        }
    }

    /// Routed entries that differ between two states of the disk, with where they lead after.
    fn moved(&self, h: usize, p: usize, before: &Files, after: &Files) -> Vec<(String, Route, Endpoint)> {
        let (old, new) = (entries(before), entries(after));
        let config = &self.hosts[h].config;
        let routes =
            config.pooler(&self.hosts[h].poolers[p].name).map(|p| p.routes.clone()).unwrap_or_default();
        let differs = |(entry, route): (String, Route)| {
            let to = new.get(&entry).filter(|to| old.get(&entry) != Some(to))?.clone();
            Some((entry, route, to))
        };
        routes.into_iter().filter_map(differs).collect()
    }

    /// Looked at whenever a file was written: S3, S4, S5.
    pub fn check_written(
        &mut self,
        h: usize,
        p: usize,
        before: &Files,
        files: &BTreeMap<String, (Vec<u8>, Vec<u8>)>,
        rejected: bool,
    ) {
        let after = self.hosts[h].poolers[p].disk.clone();
        if files.values().all(|(old, new)| old == new) {
            self.broken("S5", "a file was written that had not to change".into());
        }
        if let Err(text) = self.judge_bytes(h, p, before, &after, rejected) {
            self.broken("S4", text);
        }
        for (entry, route, to) in self.moved(h, p, before, &after) {
            if let Err(text) = self.judge_target(h, p, &entry, &route, &to) {
                let name = &self.hosts[h].name;
                let text = format!("{name}: {entry} -> {to}: {text}");
                self.broken("S3", text);
            }
        }
    }

    fn judge_bytes(
        &self,
        h: usize,
        p: usize,
        before: &Files,
        after: &Files,
        rejected: bool,
    ) -> Result<(), String> {
        let pooler = &self.hosts[h].poolers[p];
        let config = self.hosts[h].config.pooler(&pooler.name);
        let ours: Vec<&str> = config.into_iter().flat_map(|c| c.routes.keys().map(String::as_str)).collect();
        if rejected {
            let good = self.hosts[h].state.last_good.get(&pooler.name).ok_or("nothing good was kept")?;
            let changed = |path: &&String| before.parts.get(*path) != after.parts.get(*path);
            let kept = |bytes: &Vec<u8>| pooler.rejected.contains(bytes);
            for path in after.parts.keys().filter(changed) {
                if !before.parts.get(path).is_none_or(kept) {
                    return Err(format!("{path} was replaced, and no copy was kept"));
                }
                let bytes = |files: &Files| files.parts.get(path).cloned().unwrap_or_default();
                if mask(&bytes(good), &ours) != mask(&bytes(after), &ours) {
                    return Err(format!(
                        "{path} was replaced by something that never was the last good file"
                    ));
                }
            }
            return Ok(());
        }
        for (path, new) in &after.parts {
            let old = before.parts.get(path).cloned().unwrap_or_default();
            same_but_for_routes(&old, new, &ours).map_err(|line| format!("{path}: {line}"))?;
        }
        match after.problems().iter().find(|problem| problem.is_fatal()) {
            Some(problem) if !before.problems().iter().any(|p| p.is_fatal()) => Err(problem.to_string()),
            _ => Ok(()),
        }
    }

    /// Whether an entry may have been led there.
    fn judge_target(
        &mut self,
        h: usize,
        p: usize,
        entry: &str,
        route: &Route,
        to: &Endpoint,
    ) -> Result<(), String> {
        let cluster = self.clusters.iter().position(|c| c.name == route.cluster).ok_or("no such cluster")?;
        let hosts: Vec<Endpoint> =
            to.host.split(',').map(|host| Endpoint { host: host.into(), port: to.port }).collect();
        let found: Option<Vec<_>> = hosts.iter().map(|e| self.member_at(e)).collect();
        let members = found.ok_or("nobody is there")?;
        if members.iter().any(|(c, _)| *c != cluster) {
            return Err("this is another cluster".into());
        }
        match route.to {
            RouteTo::Primary => self.judge_write_target(h, p, entry, route, members[0]),
            RouteTo::Local if self.hosts[h].local != Some(members[0]) => Err("this is another host".into()),
            RouteTo::Local => Ok(()),
            RouteTo::Replica | RouteTo::Any => {
                members.into_iter().try_for_each(|at| self.judge_read_target(route, at))
            }
        }
    }

    fn judge_write_target(
        &mut self,
        h: usize,
        p: usize,
        entry: &str,
        route: &Route,
        at: (usize, usize),
    ) -> Result<(), String> {
        let now = self.now;
        let wrote = self.member(at).pg.wrote_within(now, MAX_FACT_AGE + ORDER_TIME);
        let timeline = wrote.ok_or("it was not writable for long")?;
        if let Some(other) = self.other_primary(at, timeline) {
            return Err(format!("{other} is primary as well, on the same timeline or a newer one"));
        }
        let host = &mut self.hosts[h];
        let kept = host.state.terms.get(&route.cluster).and_then(|term| term.timeline).map_or(0, |t| t.0);
        if kept < timeline && !host.memory.keep_failed {
            return Err(format!("timeline {timeline} was not kept on disk before"));
        }
        let memory = host.memory.poolers.entry(host.poolers[p].name.clone()).or_default();
        let highest = memory.timelines.entry(entry.to_string()).or_default();
        if timeline < *highest {
            return Err(format!("it writes on timeline {timeline}, the route was on {highest} before"));
        }
        *highest = timeline;
        Ok(())
    }

    /// Another member that was primary for long, could be asked, and is not on an older timeline.
    fn other_primary(&self, at: (usize, usize), timeline: u32) -> Option<String> {
        let long = MAX_FACT_AGE + ORDER_TIME;
        let members = self.clusters[at.0].members.iter().enumerate();
        let claims = members.filter(|(m, other)| {
            *m != at.1
                && other.pg.is_writable()
                && other.pg.accepts()
                && other.pg.timeline >= timeline
                && self.now.since(other.pg.since) > long
                && other.patroni.alive
                && !other.patroni.frozen
                && !other.store_cut
                && !other.rest_dead
        });
        claims.map(|(_, other)| other.name.clone()).next()
    }

    fn judge_read_target(&self, route: &Route, at: (usize, usize)) -> Result<(), String> {
        let member = self.member(at);
        let leads = member.pg.wrote_within(self.now, MAX_FACT_AGE + ORDER_TIME).is_some();
        if leads && (route.to == RouteTo::Any || route.fallback_primary) {
            return Ok(());
        }
        if member.noloadbalance {
            return Err(format!("{} has the tag noloadbalance", member.name));
        }
        match member.pg.replica_within(self.now, KEY_AGE) {
            true => Ok(()),
            false => Err(format!("{} was no running replica for {KEY_AGE:?}", member.name)),
        }
    }

    /// Looked at whenever PgBouncer is told to reload: S5.
    pub fn check_reload(&mut self, h: usize, p: usize) {
        let excuse = Duration::from_secs(40);
        let pooler = &self.hosts[h].poolers[p];
        let disk = pooler.on_disk();
        let config = self.hosts[h].config.pooler(&pooler.name);
        let mut routes = config.into_iter().flat_map(|c| c.routes.keys());
        let needless = routes.all(|entry| entry == "*" || pooler.loaded.get(entry) == disk.get(entry));
        let star = config.is_some_and(|c| c.routes.contains_key("*"));
        if needless && !star && self.now.since(self.hosts[h].disturbed) > excuse {
            self.broken("S5", format!("{}: RELOAD, although the file is loaded", self.hosts[h].name));
        }
    }

    /// Looked at whenever a pool waits because its last login failed: after a move it must not wait for long (L2).
    pub fn check_mark(&mut self, h: usize, p: usize, database: &str, open: Option<(usize, usize)>) {
        let pooler = &self.hosts[h].poolers[p];
        let (Some(at), Some(mark)) = (open, pooler.marks.get(database)) else { return };
        let (Some(moved), server) = (pooler.moved.get(database), &self.member(at).pg) else { return };
        let since: Time = server.since.max(*moved);
        let routed =
            self.hosts[h].config.pooler(&pooler.name).is_some_and(|c| c.routes.contains_key(database));
        let calm = self.now.since(self.hosts[h].disturbed) > Duration::from_secs(30);
        let enforced = self.hosts[h].config.mode == Mode::Enforce && self.hosts[h].agent.is_some();
        let is_old = mark.since < *moved && mark.last < since;
        if routed && calm && enforced && is_old && self.now.since(since) > MARK_TIME {
            let text =
                format!("{}: clients of {database} wait for a failed login of before the move", pooler.name);
            self.broken("L2", text);
        }
    }

    /// The same event twice changes nothing the second time, now or later (S8).
    pub fn check_twice(&mut self, h: usize, now: Time, event: &Event) {
        if !self.rng.one_in(150) {
            return;
        }
        let old = match self.hosts[h].answers.as_slice() {
            [] => None,
            answers => Some(answers[self.rng.below(answers.len())].clone()),
        };
        let Some(agent) = &self.hosts[h].agent else { return };
        let idle = |mut agent: pgsquire_core::agent::Agent, event: Event| {
            let effects = agent.handle(now, event);
            (agent, effects)
        };
        let mut once = agent.clone();
        let mut found = None;
        if let Some(old) = old
            && idle(once.clone(), old.clone()) != idle(once.clone(), Event::Tick)
        {
            found = Some(format!("an old answer changed something: {old:?}"));
        }
        once.handle(now, event.clone());
        let repeats = !matches!(event, Event::Hinted(_) | Event::TermForgotten { .. } | Event::Configured(_));
        if repeats && idle(once.clone(), event.clone()) != idle(once, Event::Tick) {
            found = Some(format!("the same event twice changed something: {event:?}"));
        }
        if let Some(text) = found {
            let text = format!("{}: {}", self.hosts[h].name, text.chars().take(300).collect::<String>());
            self.broken("S8", text);
        }
    }
}
