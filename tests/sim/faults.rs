//! What breaks, and how it is mended.

use crate::pgbouncer::REFUSED;
use crate::postgres::Run;
use crate::setup::Setup;
use crate::world::{Thing, World};
use pgsquire_core::event::{Event, Hint};
use pgsquire_core::time::Time;
use std::time::Duration;

/// What can break. Numbers are indices of clusters, members, hosts, follows and poolers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The operator asks for a switchover to another member.
    Switchover(usize),
    /// The whole machine of a member dies.
    Machine(usize, usize),
    /// A member's PostgreSQL is killed.
    Postgres(usize, usize),
    /// A member's Patroni is stopped (SIGSTOP).
    PatroniFrozen(usize, usize),
    /// A member's Patroni is killed; its server runs on.
    PatroniDead(usize, usize),
    /// A member's REST API does not answer.
    Rest(usize, usize),
    /// A member's Patroni cannot reach the store.
    MemberStore(usize, usize),
    /// A member's host is cut off from everybody but its own pooler and clients.
    Isolated(usize, usize),
    /// A member falls behind.
    Lag(usize, usize),
    /// A member is promoted by hand.
    PromotedByHand(usize, usize),
    /// A member's clock is set back: it goes on saying that it holds the lock.
    Claims(usize, usize),
    /// At the address of a member's REST API another system answers, under its name.
    Stranger(usize, usize),
    /// Patroni is paused.
    Pause(usize),
    /// The store answers nobody.
    Outage(usize),
    /// The store's history is compacted and its members hold an election.
    Compaction(usize),
    /// The store is rebuilt from a snapshot; with another id, or the same.
    Rebuilt(usize, bool),
    /// A host cannot reach a store.
    HostStore(usize, usize),
    /// A host is served by a stale store member.
    Stale(usize, usize),
    /// A host is served by the store of another cluster.
    Swapped(usize, usize),
    /// The messages of a host's watches are slow.
    SlowWatch(usize),
    /// A watch breaks.
    Watch(usize, usize),
    /// A host reaches no REST API.
    HostRest(usize),
    /// The agent is killed.
    Agent(usize),
    /// The operator restarts the leader's server.
    Restart(usize),
    /// Patroni changes its mind while a hook runs.
    CalledOff(usize),
    /// A switchover is scheduled, for soon or for later.
    Scheduled(usize),
    /// The leader key is deleted, though its holder is well.
    LeaderKey(usize),
    /// The agent is told to stop.
    AgentStopped(usize),
    /// The agent is frozen until it is mended.
    AgentHangs(usize),
    /// The operator pauses the process or a database of it.
    OperatorPauses(usize, usize, bool),
    /// The agent is frozen; its last snapshot is still shown.
    AgentFrozen(usize),
    /// Workers are slow.
    Slow(usize),
    /// Workers fail.
    Failing(usize),
    /// The state folder cannot be written.
    StateFull(usize),
    /// The configuration is read again.
    Configured(usize),
    /// PgBouncer is restarted.
    Pooler(usize, usize),
    /// The console does not answer.
    Console(usize, usize),
    /// The operator edits the ini: which kind of edit.
    Edit(usize, usize, Edit),
}

/// What the operator does to the ini.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edit {
    /// A line that has nothing to do with us.
    Unrelated,
    /// A line that is no line of an ini file.
    Syntax,
    /// A value that PgBouncer refuses.
    Refused,
    /// A routed entry, by hand.
    Route,
}

impl World {
    /// Breaks by chance, in the time that the world has until it is healed.
    pub fn plan_faults(&mut self, time: Duration) {
        let count = 2 + self.rng.below(8);
        let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        for _ in 0..count {
            let fault = self.random_fault();
            let (at, long) = (self.rng.millis(3000, millis), self.rng.millis(300, 25_000));
            self.later(at, Thing::Fault(fault, true));
            self.later(at + long, Thing::Fault(fault, false));
        }
        self.later(time, Thing::Heal);
    }

    fn random_fault(&mut self) -> Fault {
        let c = if self.rng.one_in(6) { self.rng.below(self.clusters.len()) } else { 0 };
        let m = if self.rng.one_in(2) { 0 } else { self.rng.below(self.clusters[c].members.len()) };
        let h = self.rng.below(self.hosts.len());
        let pooled: Vec<usize> =
            (0..self.hosts.len()).filter(|h| !self.hosts[*h].poolers.is_empty()).collect();
        let with_pooler = *self.rng.pick(&pooled);
        let p = self.rng.below(self.hosts[with_pooler].poolers.len());
        let f = self.rng.below(self.hosts[h].follows.len());
        let operator = self.rng.one_in(2);
        let edit = *self.rng.pick(&[Edit::Unrelated, Edit::Syntax, Edit::Refused, Edit::Route]);
        *self.rng.pick(&[
            Fault::Switchover(c),
            Fault::Switchover(c),
            Fault::Switchover(c),
            Fault::Switchover(c),
            Fault::Restart(c),
            Fault::CalledOff(c),
            Fault::Scheduled(c),
            Fault::LeaderKey(c),
            Fault::AgentStopped(h),
            Fault::AgentStopped(with_pooler),
            Fault::OperatorPauses(with_pooler, p, operator),
            Fault::Machine(c, m),
            Fault::Machine(c, m),
            Fault::Postgres(c, m),
            Fault::PatroniFrozen(c, m),
            Fault::PatroniFrozen(c, m),
            Fault::PatroniDead(c, m),
            Fault::Rest(c, m),
            Fault::MemberStore(c, m),
            Fault::Isolated(c, m),
            Fault::Lag(c, m),
            Fault::Pause(c),
            Fault::Outage(c),
            Fault::Compaction(c),
            Fault::Rebuilt(c, true),
            Fault::Rebuilt(c, false),
            Fault::HostStore(h, f),
            Fault::HostStore(h, f),
            Fault::Stale(h, f),
            Fault::Stale(h, f),
            Fault::SlowWatch(h),
            Fault::Watch(h, f),
            Fault::HostRest(h),
            Fault::Agent(h),
            Fault::Agent(with_pooler),
            Fault::AgentFrozen(h),
            Fault::Slow(h),
            Fault::Failing(h),
            Fault::Failing(with_pooler),
            Fault::StateFull(h),
            Fault::Configured(with_pooler),
            Fault::Pooler(with_pooler, p),
            Fault::Console(with_pooler, p),
            Fault::Edit(with_pooler, p, edit),
            Fault::Edit(with_pooler, p, edit),
        ])
    }

    /// A fault begins (`on`) or ends.
    pub fn fault(&mut self, fault: Fault, on: bool) {
        if self.healed.is_some() {
            return;
        }
        self.say(|_| format!("--- {} {fault:?}", if on { "broken:" } else { "mended:" }));
        match fault {
            Fault::Switchover(..)
            | Fault::Machine(..)
            | Fault::Postgres(..)
            | Fault::PatroniFrozen(..)
            | Fault::PatroniDead(..)
            | Fault::Rest(..)
            | Fault::Claims(..)
            | Fault::Stranger(..)
            | Fault::MemberStore(..)
            | Fault::Isolated(..)
            | Fault::Lag(..)
            | Fault::Restart(..)
            | Fault::CalledOff(..)
            | Fault::Scheduled(..)
            | Fault::LeaderKey(..)
            | Fault::PromotedByHand(..) => self.member_fault(fault, on),
            Fault::Pause(c) if self.clusters[c].paused != on && !self.clusters[c].store.outage => {
                self.clusters[c].paused = on;
                self.write_config(c);
            }
            Fault::Pause(_) => {}
            Fault::Outage(..) | Fault::Compaction(..) | Fault::Rebuilt(..) => self.store_fault(fault, on),
            _ => self.host_fault(fault, on),
        }
    }

    fn member_fault(&mut self, fault: Fault, on: bool) {
        match fault {
            Fault::Switchover(c) if on => self.ask_switchover(c),
            Fault::Machine(c, m) => {
                self.patroni_dead(c, m, on);
                if on {
                    self.kill_server(c, m);
                }
                let host = self.hosts.iter().position(|host| host.local == Some((c, m)));
                if let Some(h) = host {
                    self.host_fault(Fault::Agent(h), on);
                }
            }
            Fault::Postgres(c, m) if on => self.kill_server(c, m),
            Fault::Restart(c) if on => self.restart_primary(c),
            Fault::CalledOff(c) if on => self.called_off(c),
            Fault::Scheduled(c) if on => self.schedule_switchover(c),
            Fault::LeaderKey(c) if on && !self.clusters[c].store.outage => {
                let cluster = &mut self.clusters[c];
                cluster.store.delete("leader");
                cluster.key_deleted = Some((self.now, cluster.store.revision));
                self.store_changed(c);
            }
            Fault::PatroniDead(c, m) => self.patroni_dead(c, m, on),
            Fault::PatroniFrozen(c, m) => self.clusters[c].members[m].patroni.frozen = on,
            Fault::Rest(c, m) => self.clusters[c].members[m].rest_dead = on,
            Fault::Claims(c, m) => self.clusters[c].members[m].claims = on,
            Fault::Stranger(c, m) => self.clusters[c].members[m].stranger = on,
            Fault::MemberStore(c, m) => self.clusters[c].members[m].store_cut = on,
            Fault::Isolated(c, m) => {
                self.clusters[c].members[m].isolated = on;
                if let Some(h) = self.hosts.iter().position(|host| host.local == Some((c, m))) {
                    self.cut_store(h, 0, on);
                }
            }
            Fault::Lag(c, m) => self.clusters[c].members[m].pg.lag = if on { 64 << 20 } else { 0 },
            Fault::PromotedByHand(c, m) if on => {
                self.clusters[c].by_hand = true;
                let now = self.now;
                let pg = &mut self.clusters[c].members[m].pg;
                let timeline = pg.timeline + 1;
                pg.turn(now, Run::Running, false, timeline);
                self.clusters[c].members[m].patroni.cached_role = "primary";
                self.wake_patroni(c, m);
            }
            _ => {}
        }
    }

    fn ask_switchover(&mut self, c: usize) {
        let cluster = &self.clusters[c];
        let Some(leader) = cluster.store.leader().filter(|_| !cluster.store.outage) else { return };
        let fit = |m: &&crate::world::Member| m.name != leader && m.pg.is_replica() && m.patroni.alive;
        let names: Vec<String> = cluster.members.iter().filter(fit).map(|m| m.name.clone()).collect();
        if names.is_empty() {
            return;
        }
        let candidate = self.rng.pick(&names).clone();
        let text = format!("{{\"leader\":\"{leader}\",\"member\":\"{candidate}\"}}");
        self.clusters[c].store.put("failover", &text, None);
        self.store_changed(c);
        self.wake_patronis(c);
    }

    fn kill_server(&mut self, c: usize, m: usize) {
        let patroni = &mut self.clusters[c].members[m].patroni;
        patroni.life += 1;
        patroni.action = crate::patroni::Action::Idle;
        patroni.state = None;
        self.kill_hooks(c, m);
        self.turn(c, m, Run::Down, true);
        let patroni = &self.clusters[c].members[m].patroni;
        if patroni.alive {
            self.wake_patroni(c, m);
        }
    }

    /// A member's Patroni is killed, or starts.
    pub fn patroni_dead(&mut self, c: usize, m: usize, dead: bool) {
        let patroni = &mut self.clusters[c].members[m].patroni;
        if patroni.alive != dead {
            return;
        }
        patroni.alive = !dead;
        patroni.lock_until = Time::ZERO;
        if patroni.action != crate::patroni::Action::Promoting {
            patroni.action = crate::patroni::Action::Idle;
        }
        patroni.state = None;
        if !dead {
            self.wake_patroni(c, m);
        }
    }

    fn store_fault(&mut self, fault: Fault, on: bool) {
        match fault {
            Fault::Outage(c) => {
                self.clusters[c].store.outage = on;
                if !on {
                    let until = self.now + self.clusters[c].ttl;
                    self.clusters[c].store.elect();
                    self.clusters[c].store.renew_all(until);
                    self.at(until, Thing::Lease(c));
                    self.store_changed(c);
                }
            }
            Fault::Compaction(c) if on => {
                let store = &mut self.clusters[c].store;
                store.elect();
                store.compacted = store.revision;
            }
            Fault::Rebuilt(c, same_id) if on => self.rebuild(c, same_id),
            _ => {}
        }
    }

    /// The store comes back from a snapshot that is some revisions old.
    fn rebuild(&mut self, c: usize, same_id: bool) {
        if self.clusters[c].rebuilt.is_some() {
            return;
        }
        let back = 1 + self.rng.below(30) as u64;
        let until = self.now + self.clusters[c].ttl;
        let store = &self.clusters[c].store;
        let revision = store.revision.saturating_sub(back).max(store.base);
        let id = if same_id { store.id.clone() } else { format!("{}'", store.id) };
        let mut rebuilt = store.rebuilt(revision, &id, until);
        rebuilt.outage = store.outage;
        self.clusters[c].store = rebuilt;
        self.rebuild_own(c, &id);
        self.clusters[c].rebuilt = Some(self.now);
        self.at(until, Thing::Lease(c));
        for h in 0..self.hosts.len() {
            for f in 0..self.hosts[h].follows.len() {
                if self.hosts[h].follows[f].cluster == c {
                    self.hosts[h].follows[f].stale = None;
                    self.break_watch(h, f, "the store went away");
                }
            }
        }
        self.store_changed(c);
    }

    fn host_fault(&mut self, fault: Fault, on: bool) {
        let lasting = self.rng.millis(500, 12_000);
        match fault {
            Fault::HostStore(h, f) => self.cut_store(h, f, on),
            Fault::Stale(h, f) => {
                let store = &self.clusters[self.hosts[h].follows[f].cluster].store;
                let revision = store.revision.saturating_sub(self.rng.below(25) as u64).max(store.base);
                self.hosts[h].follows[f].stale = on.then_some(revision);
                self.reconnect(h, f, on);
            }
            Fault::Swapped(h, f) => {
                self.hosts[h].follows[f].swapped = on.then_some(1);
                self.reconnect(h, f, true);
            }
            Fault::SlowWatch(h) => {
                let lag = if on { 4000 } else { 20 };
                self.hosts[h].follows.iter_mut().for_each(|f| f.lag = lag);
            }
            Fault::Watch(h, f) if on => self.break_watch(h, f, "the connection was reset"),
            Fault::HostRest(h) => self.hosts[h].trouble.rest_cut = on,
            Fault::Agent(h) if on => self.crash_agent(h),
            Fault::AgentStopped(h) if on => self.stop_agent(h),
            Fault::AgentStopped(h) => self.start_agent(h),
            Fault::AgentHangs(h) => {
                self.hosts[h].frozen_until = if on { Time::NEVER } else { self.now };
                self.wake_up(h);
            }
            Fault::OperatorPauses(h, p, all) => self.operator(h, p, all, on),
            Fault::Agent(h) => self.start_agent(h),
            Fault::AgentFrozen(h) if on => self.hosts[h].frozen_until = self.now + lasting,
            Fault::Slow(h) => self.hosts[h].trouble.slow = if on { 2500 } else { 0 },
            Fault::Failing(h) => self.hosts[h].trouble.failing = if on { 300 } else { 3 },
            Fault::Configured(h) if on => self.configure(h),
            Fault::StateFull(h) => self.hosts[h].trouble.state_full = on,
            Fault::Pooler(h, p) => {
                let now = self.now;
                self.hosts[h].poolers[p].restart(now);
            }
            Fault::Console(h, p) => self.hosts[h].poolers[p].console_dead = on,
            Fault::Edit(h, p, edit) if on => self.edit(h, p, edit),
            _ => {}
        }
        if let Fault::Agent(h)
        | Fault::AgentFrozen(h)
        | Fault::AgentHangs(h)
        | Fault::AgentStopped(h)
        | Fault::OperatorPauses(h, ..)
        | Fault::Slow(h)
        | Fault::Failing(h)
        | Fault::StateFull(h)
        | Fault::Configured(h)
        | Fault::Pooler(h, _)
        | Fault::Console(h, _)
        | Fault::Edit(h, ..) = fault
        {
            self.hosts[h].disturbed = self.now;
        }
    }

    /// A new configuration: the old workers end, then the agent is told, then there are new ones.
    fn configure(&mut self, h: usize) {
        let (run, config) = (self.hosts[h].run, self.hosts[h].config.clone());
        let after = self.rng.millis(1, 3000);
        self.hosts[h].workers += 1;
        self.hosts[h].workers_ready = self.now + after;
        self.later(after, Thing::Tell(h, run, vec![Event::Configured(config)]));
    }

    /// A host loses a store: its watch falls silent, and is found dead later.
    fn cut_store(&mut self, h: usize, f: usize, on: bool) {
        self.hosts[h].follows[f].cut = on;
        if on {
            let after = self.rng.millis(1000, 6000);
            self.later(after, Thing::Fault(Fault::Watch(h, f), true));
        } else {
            self.catch_up(h);
        }
    }

    /// A host's connection goes to another store member.
    fn reconnect(&mut self, h: usize, f: usize, breaks: bool) {
        if breaks {
            self.break_watch(h, f, "the connection was reset");
        } else {
            self.catch_up(h);
        }
    }

    /// The operator edits the ini. A bare reload by hand follows half of the edits.
    pub fn edit(&mut self, h: usize, p: usize, edit: Edit) {
        let now = self.now;
        let pooler = &mut self.hosts[h].poolers[p];
        let path = match edit {
            Edit::Route => pooler.disk.parts.keys().next().cloned().unwrap_or_default(),
            _ => pooler.ini.clone(),
        };
        let Some(bytes) = pooler.disk.parts.get_mut(&path) else { return };
        let mut text = String::from_utf8_lossy(bytes).into_owned();
        match edit {
            Edit::Unrelated => text.push_str("; a remark\nmax_client_conn = 500\n"),
            Edit::Syntax => text.push_str("this is no line of an ini\n"),
            Edit::Refused => text.push_str(&format!("{REFUSED}\n")),
            Edit::Route => text = text.replace("host=10.0.0.1 ", "host=10.0.0.2 "),
        }
        *bytes = text.into_bytes();
        if self.rng.one_in(2) {
            self.hosts[h].poolers[p].reload(now);
        }
        // Else it is found out by the next look.
        if self.rng.one_in(2) {
            self.hint_files(h, p);
        }
    }

    /// The change of a file is noticed.
    pub fn hint_files(&mut self, h: usize, p: usize) {
        let (run, pooler) = (self.hosts[h].run, self.hosts[h].poolers[p].name.clone());
        let hint = Event::Hinted(Hint::FilesChanged { pooler });
        self.later(Duration::from_millis(2), Thing::Tell(h, run, vec![hint]));
    }
}

/// Time in which things break.
pub fn time_of_trouble(setup: &Setup) -> Duration {
    Duration::from_secs(setup.clusters[0].ttl + 25)
}
