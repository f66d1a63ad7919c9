//! What must hold of orders, when they are given and when they are done: S3, S4, S5, L2.

use crate::invariants::MAX_FACT_AGE;
use crate::mask::{mask, same_but_for_routes};
use crate::pgbouncer::entries;
use crate::world::World;
use pgsquire_core::config::{Mode, Route, RouteTo};
use pgsquire_core::effect::{Effect, Order, PoolerOrder};
use pgsquire_core::pgbouncer::ini::Files;
use pgsquire_core::time::Time;
use pgsquire_core::topology::Endpoint;
use std::collections::BTreeMap;
use std::time::Duration;

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
        let value = self.hosts[h].poolers.iter().find(|p| p.name == *pooler).map(|p| p.login_retry.clone());
        let memory = &mut self.hosts[h].memory;
        // What is given back may be there already: the agent was not told.
        let idle = matches!(order, PoolerOrder::ReturnLoginRetry { value: v } if Some(v) == value.as_ref());
        memory.changes += u64::from(!idle);
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
        match order {
            PoolerOrder::Write { files, .. } => self.check_order_of_terms(h, pooler, files),
            PoolerOrder::EndPause if effect.reason.text.starts_with("clients may go on") => {
                self.check_resumed(h, pooler);
            }
            _ => {}
        }
    }

    /// Looked at whenever clients are let go on because all is well: S3. What was promised must have come true.
    fn check_resumed(&mut self, h: usize, pooler: &str) {
        let Some(p) = self.hosts[h].poolers.iter().position(|p| p.name == pooler) else { return };
        let known = &self.hosts[h].poolers[p];
        let (loaded, pauses) = (known.loaded.clone(), &known.pauses);
        let waits = |entry: &String| {
            let by_star = |database: &String| !loaded.contains_key(database);
            let ours = &pauses.our_databases;
            pauses.ours_all || ours.contains(entry) || entry == "*" && ours.iter().any(by_star)
        };
        let routes = self.hosts[h].config.pooler(pooler).into_iter().flat_map(|config| config.routes.clone());
        let writes = routes.filter(|(entry, route)| route.to == RouteTo::Primary && waits(entry));
        for (entry, route) in writes.collect::<Vec<_>>() {
            let Some(at) = loaded.get(&entry).and_then(|to| self.member_at(to)) else { continue };
            if let Err(text) = self.judge_writable(h, p, &entry, &route, at) {
                let name = &self.hosts[h].name;
                let text = format!("{name}: clients of {entry} go on to {}: {text}", self.member(at).name);
                self.broken("S3", text);
            }
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
            if self.is_promised(h, p, at) {
                continue;
            }
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
                members.into_iter().try_for_each(|at| self.judge_read_target(h, p, route, at))
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
        match self.is_promised(h, p, at) {
            true => Ok(()),
            false => self.judge_writable(h, p, entry, route, at),
        }
    }

    /// Whether clients of a write route may use a member.
    fn judge_writable(
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
                && !other.isolated
        });
        claims.map(|(_, other)| other.name.clone()).next()
    }

    fn judge_read_target(&self, h: usize, p: usize, route: &Route, at: (usize, usize)) -> Result<(), String> {
        let member = self.member(at);
        let promised = route.fallback_primary && self.is_promised(h, p, at);
        let leads = promised || member.pg.wrote_within(self.now, MAX_FACT_AGE + ORDER_TIME).is_some();
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
}
