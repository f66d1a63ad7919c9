//! What must hold at every step, whatever breaks.

use crate::agent_host::Host;
use crate::world::World;
use pgsquire_core::config::{OnDcsLoss, RouteTo};
use pgsquire_core::event::{Event, Outcome};
use pgsquire_core::time::Time;
use pgsquire_core::topology::Endpoint;
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
const PROBE_AGE: Duration = Duration::from_secs(1);

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
            if self.says_primary(host) && !self.trusts_deleted_key(host) {
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

    /// A leader key that somebody deletes by hand takes the lease with it: who cannot hear of that goes by what was proved.
    fn trusts_deleted_key(&self, host: &Host) -> bool {
        let cluster = &self.clusters[0];
        let newest = host.memory.stores.get(&cluster.name).and_then(|store| store.newest.as_ref());
        let has_heard = |revision| newest.is_some_and(|(_, heard)| *heard >= revision);
        cluster
            .key_deleted
            .is_some_and(|(at, revision)| self.now.since(at) <= cluster.ttl && !has_heard(revision))
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
        // Nobody else takes over from it.
        let unrivalled = member.patroni.failsafe_until > self.now || member.patroni.paused;
        let keeps = lost || unrivalled && self.setup.on_dcs_loss != OnDcsLoss::FailClosed;
        if cluster.rebuilt.is_none() && cluster.holder.as_ref() != Some(&member.name) && !keeps {
            return Err(format!("{} says primary, but lost the leader key long ago", host.name));
        }
        let read = host.memory.stores.get(&cluster.name).and_then(|store| store.read);
        match read.map(|at| (self.now + host.clock).since(at)) {
            Some(age) if age <= MAX_FACT_AGE || self.setup.on_dcs_loss != OnDcsLoss::FailClosed => Ok(()),
            age => Err(format!("{} says primary, but read the store {age:?} ago", host.name)),
        }
    }

    /// Looked at whenever a snapshot is published.
    pub fn check_published(&mut self, h: usize) {
        let clusters = self.hosts[h].status.iter().flat_map(|status| &status.clusters);
        let untold = |problem: &String| problem.contains("could not be kept");
        let keep_failed = clusters.flat_map(|c| &c.problems).any(untold);
        self.hosts[h].memory.keep_failed |= keep_failed;
        if let Err((invariant, text)) = self.judge_snapshot(h).and_then(|()| self.judge_held(h)) {
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
            if pooler.pool.holding.is_some() {
                // Its clients wait: a red answer would cut them.
                continue;
            }
            for route in &pooler.routes {
                let away =
                    status.clusters.iter().find(|c| c.name == route.cluster).and_then(|c| c.away.as_ref());
                if route.target.is_none() && away.is_some_and(|away| away.leader.is_some()) {
                    continue;
                }
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
        if let Some(cluster) = cluster.filter(|cluster| cluster.rest) {
            return self.judge_polled(host, cluster, leader);
        }
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
        let repeats = !matches!(
            event,
            Event::Hinted(_) | Event::HookAsked { .. } | Event::TermForgotten { .. } | Event::Configured(_)
        );
        if repeats && idle(once.clone(), event.clone()) != idle(once, Event::Tick) {
            found = Some(format!("the same event twice changed something: {event:?}"));
        }
        if let Some(text) = found {
            let text = format!("{}: {}", self.hosts[h].name, text.chars().take(300).collect::<String>());
            self.broken("S8", text);
        }
    }
}
