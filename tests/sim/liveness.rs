//! What must come to hold once nothing breaks any more (L1), and stay without a change (S8).

use crate::agent_host::Host;
use crate::pgbouncer::PgBouncer;
use crate::world::World;
use pgsquire_core::config::{Mode, Route, RouteTo};
use pgsquire_core::event::Event;
use pgsquire_core::topology::Endpoint;
use std::collections::BTreeSet;
use std::time::Duration;

/// Everything is settled this long after it was mended, at the latest.
const BOUND: u64 = 150;
/// The operator comes to look after this.
const OPERATOR_COMES: u64 = 50;
/// Settled is what is so at so many looks, one a second …
const SETTLED: u32 = 4;
/// … and then stays as it is for this long.
const STILL: u64 = 2;

impl World {
    /// Waits until the world is settled, then looks whether it stays so.
    pub fn check_liveness(&mut self) {
        let (mut why, mut settled) = (String::new(), 0);
        for second in 0..BOUND {
            self.run_for(Duration::from_secs(1));
            if self.violation.is_some() {
                return;
            }
            match self.settled() {
                Ok(()) => settled += 1,
                Err(text) => (why, settled) = (text, 0),
            }
            if settled == SETTLED {
                return self.check_stillness();
            }
            if second == OPERATOR_COMES {
                self.forget_terms();
            }
        }
        self.broken("L1", format!("not settled {BOUND} s after all was mended: {why}"));
    }

    /// Patroni itself went back to an older timeline (its store was rebuilt from a snapshot): the agents refuse that until
    /// the operator says that it is right.
    fn forget_terms(&mut self) {
        for h in 0..self.hosts.len() {
            for f in 0..self.hosts[h].follows.len() {
                let cluster = &self.clusters[self.hosts[h].follows[f].cluster];
                let leads = |m: &&crate::world::Member| Some(&m.name) == cluster.holder.as_ref();
                let timeline = cluster.members.iter().find(leads).map_or(0, |m| m.pg.timeline);
                let name = cluster.name.clone();
                let kept = self.hosts[h].state.terms.get(&name).and_then(|term| term.timeline);
                if kept.is_some_and(|kept| kept.0 > timeline) {
                    self.hosts[h].memory.forget();
                    let run = self.hosts[h].run;
                    self.tell(h, run, vec![Event::TermForgotten { cluster: name }]);
                }
            }
        }
    }

    fn check_stillness(&mut self) {
        self.say(|_| "=== settled".into());
        self.hosts.iter_mut().for_each(|host| host.memory.changes = 0);
        self.run_for(Duration::from_secs(STILL));
        if self.violation.is_some() {
            return;
        }
        if let Some(host) = self.hosts.iter().find(|host| host.memory.changes > 0) {
            let text = format!("{}: {} changes on a settled host", host.name, host.memory.changes);
            return self.broken("S8", text);
        }
        if let Err(why) = self.settled() {
            self.broken("L1", format!("it was settled, and is not any more: {why}"));
        }
    }

    /// Whether all that hosts say and do is as it should be.
    fn settled(&self) -> Result<(), String> {
        for cluster in &self.clusters {
            let leader = cluster.members.iter().find(|m| Some(&m.name) == cluster.holder.as_ref());
            let leader = leader.ok_or_else(|| format!("{} has no leader", cluster.name))?;
            if !leader.pg.is_writable() {
                return Err(format!("{} leads, but is not writable", leader.name));
            }
            if let Some(m) = cluster.members.iter().find(|m| m.name != leader.name && !m.pg.is_replica()) {
                return Err(format!("{} is no replica yet", m.name));
            }
            let peers = [cluster.own.get("switch"), cluster.own.get("fence")];
            if let Some(record) = peers.into_iter().flatten().next() {
                return Err(format!("a record stays in the store: {record}"));
            }
            if cluster.members.iter().any(|m| m.pg.timeline != leader.pg.timeline) {
                return Err(format!("not all of {} follow the leader's timeline", cluster.name));
            }
        }
        self.hosts
            .iter()
            .try_for_each(|host| self.settled_host(host).map_err(|why| format!("{}: {why}", host.name)))
    }

    fn settled_host(&self, host: &Host) -> Result<(), String> {
        let status = host.status.as_ref().ok_or("there is no snapshot")?;
        if let (Some((c, m)), Some(local)) = (host.local, &status.local) {
            let leads = self.clusters[c].holder.as_ref() == Some(&self.clusters[c].members[m].name);
            // Without a store the lease of the leader key is not proved.
            let may = leads && self.clusters[c].rest;
            if local.primary.is_up(self.now + host.clock) != leads && !may {
                return Err(format!("primary: {} {}", local.primary.up, local.primary.reason));
            }
        }
        for cluster in &status.clusters {
            if let Some(hold) = &cluster.switch.hold {
                return Err(format!("{} is held: {}", cluster.name, hold.why));
            }
            if host.state.terms.get(&cluster.name) != cluster.term.as_ref() {
                return Err(format!("the term of {} is not kept", cluster.name));
            }
        }
        if host.config.mode == Mode::Observe {
            return Ok(());
        }
        for (pooler, status) in host.poolers.iter().zip(&status.poolers) {
            let routes = &host.config.pooler(&pooler.name).ok_or("it is not configured")?.routes;
            let mut all = true;
            for (entry, route) in routes {
                all &= self
                    .settled_route(host, pooler, entry, route)
                    .map_err(|why| format!("{entry}: {why}"))?;
            }
            settled_pooler(host, pooler)?;
            if all != status.pool.is_up(self.now + host.clock) {
                return Err(format!("pool {}: {} {}", pooler.name, status.pool.up, status.pool.reason));
            }
            if status.doing.is_some() {
                return Err(format!("it is busy with {:?}", status.doing));
            }
        }
        Ok(())
    }

    /// Whether a route leads where it must; false: there is no such place.
    fn settled_route(
        &self,
        host: &Host,
        pooler: &PgBouncer,
        entry: &str,
        route: &Route,
    ) -> Result<bool, String> {
        let allowed = self.allowed(host, route);
        if allowed.is_empty() {
            return Ok(false);
        }
        let disk = pooler.on_disk();
        let on_disk = disk.get(entry).ok_or("the file has no such entry")?;
        let loaded = pooler.loaded.get(entry).ok_or("it is not loaded")?;
        if loaded != on_disk && pooler.would_load() {
            return Err(format!("loaded is {loaded}, on disk is {on_disk}"));
        }
        let loaded: BTreeSet<Endpoint> =
            loaded.host.split(',').map(|host| Endpoint { host: host.into(), port: loaded.port }).collect();
        let one_host = pooler.version < (1, 17) || allowed.iter().any(|e| e.port != on_disk.port);
        let right = if one_host { loaded.is_subset(&allowed) } else { loaded == allowed };
        if !right {
            return Err(format!("it leads to {loaded:?}, not to {allowed:?}"));
        }
        let opened: Vec<&String> = if entry == "*" { pooler.opened.iter().collect() } else { Vec::new() };
        let may = |link: &Endpoint| {
            let member = self.member_at(link).map(|at| self.member(at));
            member.is_some_and(|m| allowed.iter().any(|e| e.port == m.port && (e.host == m.host)))
        };
        let ours = |database: &String| database == entry || opened.contains(&database);
        if let Some(link) = pooler.links.iter().find(|link| ours(&link.database) && !may(&link.to)) {
            let spared = matches!(route.to, RouteTo::Replica | RouteTo::Any);
            if !spared {
                return Err(format!("a link leads to {}", link.to));
            }
        }
        Ok(true)
    }

    /// Where a route may lead, now that everything runs.
    fn allowed(&self, host: &Host, route: &Route) -> BTreeSet<Endpoint> {
        let Some(c) = self.clusters.iter().position(|c| c.name == route.cluster) else {
            return BTreeSet::new();
        };
        let cluster = &self.clusters[c];
        let leads = |name: &String| cluster.holder.as_ref() == Some(name);
        let endpoints = |wanted: &dyn Fn(usize, &crate::world::Member) -> bool| -> BTreeSet<Endpoint> {
            let members = cluster.members.iter().enumerate().filter(|(m, member)| wanted(*m, member));
            members.map(|(_, m)| Endpoint { host: m.host.clone(), port: m.port }).collect()
        };
        let primary = || endpoints(&|_, m| leads(&m.name));
        match route.to {
            RouteTo::Primary => primary(),
            RouteTo::Local => endpoints(&|m, _| host.local == Some((c, m))),
            RouteTo::Any => endpoints(&|_, m| leads(&m.name) || !m.noloadbalance),
            RouteTo::Replica => {
                let replicas = endpoints(&|_, m| !leads(&m.name) && !m.noloadbalance);
                if replicas.is_empty() && route.fallback_primary { primary() } else { replicas }
            }
        }
    }
}

/// Nothing borrowed, nothing paused, nothing half done.
fn settled_pooler(host: &Host, pooler: &PgBouncer) -> Result<(), String> {
    if !pooler.up {
        return Err("PgBouncer is not running".into());
    }
    if pooler.paused_all {
        return Err("the process is paused".into());
    }
    if host.state.pauses.contains_key(&pooler.name) {
        return Err("a pause is journalled".into());
    }
    if let Some(database) = pooler.paused.first() {
        return Err(format!("{database} is paused"));
    }
    if host.state.cut.get(&pooler.name).is_some_and(|cuts| !cuts.is_empty()) {
        return Err("a cut is noted".into());
    }
    let min: u32 = pooler.disk.setting("min_pool_size").and_then(|n| n.parse().ok()).unwrap_or(0);
    if pooler.min_pool_size != min {
        return Err(format!("min_pool_size is {}, not {min}", pooler.min_pool_size));
    }
    let wanted = pooler.disk.setting("server_login_retry").unwrap_or_else(|| "15".into());
    if pooler.login_retry != wanted || host.state.borrowed_login_retry.contains_key(&pooler.name) {
        return Err(format!("server_login_retry is {}, not {wanted}", pooler.login_retry));
    }
    Ok(())
}
