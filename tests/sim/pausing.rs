//! PAUSE and RESUME: ours with their journal and their guard, and those of an operator at the console.

use crate::agent_host::{Host, Job};
use crate::pgbouncer::{Mark, PgBouncer};
use crate::workers::Next;
use crate::world::{Thing, World};
use pgsquire_core::effect::{Pause, PauseScope, PoolerOrder};
use pgsquire_core::event::Outcome;
use pgsquire_core::time::Time;
use std::collections::BTreeSet;
use std::time::Duration;

/// PgBouncer looks so often whether its pools are filled.
const JANITOR: Duration = Duration::from_millis(333);
/// The guard ends a pause so long after its deadline.
const GUARD: Duration = Duration::from_secs(1);

/// Who paused what; PgBouncer itself does not know.
#[derive(Debug, Clone, Default)]
pub struct Pauses {
    /// Something is paused by us since.
    pub ours: Option<Time>,
    /// The process.
    pub ours_all: bool,
    /// These databases.
    pub our_databases: BTreeSet<String>,
    /// The operator paused the process when we had no pause.
    pub operator_all: bool,
    /// … or these databases.
    pub operator: BTreeSet<String>,
    /// He paused the process, or these databases, while a pause of ours was on: that cannot be seen.
    pub late: (bool, BTreeSet<String>),
    /// Last time at which somebody else ended a pause of ours: the operator, or a restart.
    pub broken: Time,
    /// Last time at which the agent ended a pause of ours.
    pub ended: Option<Time>,
}

impl PgBouncer {
    /// Clients of a database wait.
    pub fn is_paused(&self, database: &str) -> bool {
        self.paused_all || self.paused.contains(database)
    }

    /// `RESUME database`.
    pub fn resume(&mut self, database: &str) {
        self.paused.remove(database);
        self.pauses.operator.remove(database);
        self.forget_ours();
    }

    fn forget_ours(&mut self) {
        self.pauses.ours_all &= self.paused_all;
        self.pauses.our_databases.retain(|database| self.paused.contains(database));
        if !self.pauses.ours_all && self.pauses.our_databases.is_empty() {
            self.pauses.ours = None;
        }
    }

    /// The operator takes his own pauses back.
    pub fn operator_resumes(&mut self) {
        if std::mem::take(&mut self.pauses.operator_all) {
            self.paused_all = false;
        }
        let (all, late) = std::mem::take(&mut self.pauses.late);
        self.paused_all &= !all || self.pauses.ours_all;
        for database in std::mem::take(&mut self.pauses.operator).into_iter().chain(late) {
            self.paused.remove(&database);
        }
    }

    /// Idle links of what is paused are closed; those with a transaction follow it. Returns the end of the next one.
    fn close_paused(&mut self, now: Time) -> Option<Time> {
        let (all, paused) = (self.paused_all, self.paused.clone());
        let stays = |link: &crate::pgbouncer::Link| {
            link.session || link.busy > now || !(all || paused.contains(&link.database))
        };
        self.links.retain(stays);
        let waits = |link: &&crate::pgbouncer::Link| {
            !link.session && (self.paused_all || self.paused.contains(&link.database))
        };
        self.links.iter().filter(waits).map(|link| link.busy).min()
    }

    /// A pool below `min_pool_size` is filled up although its database is paused: the link is closed in login.
    pub fn refill(&mut self, now: Time) {
        if self.min_pool_size == 0 || self.paused_all || self.paused.is_empty() {
            self.refills = None;
            return;
        }
        if now.since(*self.refills.get_or_insert(now)) >= JANITOR {
            for database in self.paused.clone() {
                self.marks.entry(database).or_insert(Mark { since: now, last: now }).last = now;
            }
        }
    }
}

impl World {
    /// Links of paused pools go.
    pub fn settle_links(&mut self, h: usize, p: usize) {
        let now = self.now;
        if let Some(next) = self.hosts[h].poolers[p].close_paused(now) {
            self.at(next.max(now + Duration::from_millis(1)), Thing::Settle(h, p));
        }
    }

    /// A part of an order about a pause of ours; the order of the parts is that of the shell.
    pub fn pause_part(&mut self, job: &Job, p: usize, order: &PoolerOrder) -> Next {
        match order {
            PoolerOrder::Pause(pause) => self.pause_step(job, p, pause),
            PoolerOrder::ExtendPause(pause) => {
                if self.hosts[job.host].trouble.state_full {
                    return Next::Done(Outcome::Failed { why: "no space left".into() });
                }
                let name = self.hosts[job.host].poolers[p].name.clone();
                self.hosts[job.host].state.pauses.insert(name, pause.clone());
                self.set_guard(job.host, p);
                Next::Done(Outcome::Done)
            }
            PoolerOrder::ZeroMinPoolSize => {
                self.hosts[job.host].poolers[p].min_pool_size = 0;
                Next::Done(Outcome::Done)
            }
            PoolerOrder::CutPaused { databases, stale } => {
                self.cut_paused(job.host, p, databases, stale);
                Next::Done(Outcome::Done)
            }
            _ => self.end_pause_step(job, p),
        }
    }

    /// Journal and guard, `min_pool_size`, then PAUSE.
    fn pause_step(&mut self, job: &Job, p: usize, pause: &Pause) -> Next {
        let h = job.host;
        let name = self.hosts[h].poolers[p].name.clone();
        if job.part == 0 {
            if self.hosts[h].trouble.state_full {
                return Next::Done(Outcome::Failed { why: "no space left".into() });
            }
            let before = self.hosts[h].state.pauses.insert(name.clone(), pause.clone());
            self.hosts[h].memory.poolers.entry(name).or_default().journalled = before;
            self.set_guard(h, p);
            return Next::Part;
        }
        if job.part == 1 {
            if pause.min_pool_size.is_some() {
                self.hosts[h].poolers[p].min_pool_size = 0;
            }
            return Next::Part;
        }
        let before = self.hosts[h].memory.poolers.entry(name.clone()).or_default().journalled.clone();
        let had = |database: Option<&String>| match before.as_ref().map(|pause| &pause.scope) {
            Some(PauseScope::Process) => database.is_none(),
            Some(PauseScope::Databases(list)) => database.is_some_and(|d| list.contains(d)),
            None => false,
        };
        let pooler = &mut self.hosts[h].poolers[p];
        let mut new = Vec::new();
        let refused = match &pause.scope {
            PauseScope::Process => {
                let refused = pooler.paused_all && !had(None);
                pooler.paused_all = true;
                refused
            }
            PauseScope::Databases(list) => list.iter().any(|database| {
                let known = pooler.databases().contains_key(database);
                let there = pooler.paused.contains(database);
                if known && !there {
                    pooler.paused.insert(database.clone());
                    new.push(database.clone());
                }
                there && !had(Some(database))
            }),
        };
        if refused {
            // Everything that this order did is undone.
            new.iter().for_each(|database| {
                pooler.paused.remove(database);
            });
            if let Some(value) = &pause.min_pool_size {
                pooler.min_pool_size = value.parse().unwrap_or(0);
            }
            match before {
                Some(before) => self.hosts[h].state.pauses.insert(name, before),
                None => self.hosts[h].state.pauses.remove(&name),
            };
            return Next::Done(Outcome::Failed { why: "somebody else has paused it".into() });
        }
        let now = self.now;
        let pooler = &mut self.hosts[h].poolers[p];
        pooler.pauses.ours.get_or_insert(now);
        match &pause.scope {
            PauseScope::Process => pooler.pauses.ours_all = true,
            PauseScope::Databases(list) => pooler.pauses.our_databases.extend(list.iter().cloned()),
        }
        pooler.forget_ours();
        self.settle_links(h, p);
        self.check_paused(h, p);
        Next::Done(Outcome::Done)
    }

    /// `KILL_CLIENT`, or `KILL` of each database.
    fn cut_paused(
        &mut self,
        h: usize,
        p: usize,
        databases: &[String],
        stale: &[pgsquire_core::topology::Endpoint],
    ) {
        let addresses: Vec<_> = stale.iter().map(|e| self.address(e)).collect();
        let Host { poolers, state, .. } = &mut self.hosts[h];
        let pooler = &mut poolers[p];
        if pooler.version >= (1, 24) {
            databases.iter().for_each(|database| pooler.kill_clients(database, &addresses));
            return;
        }
        if let Some(pause) = state.pauses.get_mut(&pooler.name) {
            pause.scope = PauseScope::Databases(databases.to_vec());
        }
        databases.iter().for_each(|database| pooler.kill(database));
        pooler.pauses.our_databases.extend(databases.iter().cloned());
        if pooler.pauses.ours_all {
            pooler.paused_all = false;
        }
        pooler.forget_ours();
    }

    /// `RESUME` of all that the journal says, `min_pool_size`, then the note.
    fn end_pause_step(&mut self, job: &Job, p: usize) -> Next {
        let name = self.hosts[job.host].poolers[p].name.clone();
        match job.part {
            0 => {
                self.resume_journalled(job.host, p);
                self.hosts[job.host].poolers[p].pauses.ended = Some(self.now);
                Next::Part
            }
            _ => {
                self.hosts[job.host].state.pauses.remove(&name);
                Next::Done(Outcome::Done)
            }
        }
    }

    fn resume_journalled(&mut self, h: usize, p: usize) {
        let name = self.hosts[h].poolers[p].name.clone();
        let Some(pause) = self.hosts[h].state.pauses.get(&name).cloned() else { return };
        let pooler = &mut self.hosts[h].poolers[p];
        let mut lifted = false;
        match &pause.scope {
            PauseScope::Process => {
                lifted |= pooler.paused_all && pooler.pauses.operator_all;
                pooler.paused_all = false;
            }
            PauseScope::Databases(list) => {
                for database in list {
                    lifted |= pooler.pauses.operator.contains(database);
                    pooler.resume(database);
                }
            }
        }
        pooler.forget_ours();
        if let Some(value) = &pause.min_pool_size {
            pooler.min_pool_size = value.parse().unwrap_or(0);
        }
        self.say(|w| format!("{}: {name}: RESUME of {:?}", w.hosts[h].name, pause.scope));
        if lifted {
            self.broken("P1", format!("{}: a pause of the operator was lifted", self.hosts[h].name));
        }
    }

    /// The guard process of a pause is there from now on, until the pause is over.
    fn set_guard(&mut self, h: usize, p: usize) {
        let name = &self.hosts[h].poolers[p].name;
        let Some(pause) = self.hosts[h].state.pauses.get(name) else { return };
        if pause.until < Time::NEVER {
            let at = pause.until - self.hosts[h].clock + GUARD;
            self.at(at, Thing::Guard(h, p));
        }
    }

    /// The guard wakes up: it ends what is past its deadline, whatever the agent does.
    pub fn guard(&mut self, h: usize, p: usize) {
        let name = self.hosts[h].poolers[p].name.clone();
        let Some(pause) = self.hosts[h].state.pauses.get(&name) else { return };
        if pause.until == Time::NEVER || pause.until + GUARD > self.host_time(h) {
            return;
        }
        let pooler = &self.hosts[h].poolers[p];
        if !pooler.up || pooler.console_dead {
            return self.later(Duration::from_secs(1), Thing::Guard(h, p));
        }
        self.say(|w| format!("{}: the guard ends a pause", w.hosts[h].name));
        self.resume_journalled(h, p);
        self.hosts[h].state.pauses.remove(&name);
    }

    /// `pgsquire release`.
    pub fn release_pauses(&mut self, h: usize) {
        if self.hosts[h].agent.is_some() {
            return;
        }
        for p in 0..self.hosts[h].poolers.len() {
            let pooler = &self.hosts[h].poolers[p];
            let name = pooler.name.clone();
            if pooler.up && !pooler.console_dead {
                self.resume_journalled(h, p);
                self.hosts[h].state.pauses.remove(&name);
            }
        }
    }

    /// The operator pauses or resumes at the console.
    pub fn operator(&mut self, h: usize, p: usize, all: bool, on: bool) {
        let now = self.now;
        let Host { poolers, state, .. } = &mut self.hosts[h];
        let pooler = &mut poolers[p];
        if !pooler.up || pooler.console_dead {
            return;
        }
        let ours = pooler.pauses.ours.is_some() || state.pauses.contains_key(&pooler.name);
        let Some(database) = pooler.databases().into_keys().next() else { return };
        match (all, on) {
            (true, true) if !pooler.paused_all => {
                pooler.paused_all = true;
                pooler.pauses.operator_all = !ours;
                pooler.pauses.late.0 = ours;
            }
            (false, true) if !pooler.paused.contains(&database) => {
                pooler.paused.insert(database.clone());
                match ours {
                    true => pooler.pauses.late.1.insert(database),
                    false => pooler.pauses.operator.insert(database),
                };
            }
            (_, true) => {}
            (true, false) => {
                (pooler.paused_all, pooler.pauses.operator_all) = (false, false);
            }
            (false, false) => pooler.resume(&database),
        }
        if ours || !on {
            pooler.pauses.broken = now;
        }
        pooler.forget_ours();
        self.settle_links(h, p);
    }
}
