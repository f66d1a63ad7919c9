//! Patroni's loop, as far as its neighbours can see it.

use crate::postgres::Run;
use crate::world::{Member, Thing, World};
use pgsquire_core::event::{Event, Hint, HookKind};
use pgsquire_core::time::Time;
use std::time::Duration;

/// What Patroni is in the middle of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Idle,
    /// The store did not answer; it will give up being primary.
    GivingUp,
    /// A graceful stop for a switchover.
    SwitchingOver,
    /// Waiting for its `pre_promote`.
    Fencing,
    /// Waiting for its server to end promotion.
    Promoting,
    /// Its server will come back as a replica.
    Restarting,
    /// About to stop its server inside the loop: nobody renews the lease.
    Demoting,
    /// Its server will come back as the primary.
    RestartingPrimary,
}

/// Patroni on one member.
#[derive(Debug, Clone)]
pub struct Patroni {
    /// The process is there.
    pub alive: bool,
    /// The process is stopped (SIGSTOP).
    pub frozen: bool,
    /// Raised when the process or the server is killed: what was planned before does not happen.
    pub life: u64,
    /// Until when it believes that it holds the lock.
    pub lock_until: Time,
    /// What it is in the middle of.
    pub action: Action,
    /// The role it says while it does not ask its server.
    pub cached_role: &'static str,
    /// The state that it says, whatever its server does.
    pub state: Option<&'static str>,
    /// When it last saw its store.
    pub store_seen: Time,
    /// It is paused, as far as it knows.
    pub paused: bool,
    /// A primary that cannot reach its store asked every member, and all answered: it goes on until then.
    pub failsafe_until: Time,
    /// A primary has asked: it does not race for the lock until then.
    asked_until: Time,
    /// A promotion was refused: it is out of the race until then.
    no_race_until: Time,
    next_loop: Time,
}

impl Patroni {
    /// Runs.
    pub fn new(primary: bool) -> Self {
        Patroni {
            alive: true,
            frozen: false,
            life: 0,
            lock_until: Time::ZERO,
            action: Action::Idle,
            cached_role: if primary { "primary" } else { "replica" },
            state: None,
            store_seen: Time::ZERO,
            paused: false,
            failsafe_until: Time::ZERO,
            asked_until: Time::ZERO,
            no_race_until: Time::ZERO,
            next_loop: Time::ZERO,
        }
    }
}

/// What happens to a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A run of the loop.
    Loop,
    /// The store did not come back in time.
    GaveUp,
    /// The checkpoint before a stop is done.
    Checkpointed,
    /// A hook has returned.
    Hooked {
        /// Which.
        kind: HookKind,
        /// It may go on.
        go_on: bool,
    },
    /// The server has stopped.
    Stopped,
    /// The key is given away.
    Release,
    /// The server is started as a replica.
    StartReplica,
    /// The server is started as the primary that it was.
    StartPrimary,
    /// The server has started.
    Started {
        /// As a primary.
        primary: bool,
    },
    /// The server has ended recovery.
    Promoted,
    /// The server follows the timeline of the primary.
    Follow,
}

impl Step {
    /// Done by PostgreSQL alone: a frozen Patroni does not hold it up.
    fn is_servers(self) -> bool {
        matches!(self, Step::Stopped | Step::Started { .. } | Step::Promoted | Step::Follow)
    }
}

const AGAIN: Duration = Duration::from_millis(200);

impl World {
    /// A step of a member is due.
    pub fn member_step(&mut self, c: usize, m: usize, life: u64, step: Step) {
        let patroni = &self.clusters[c].members[m].patroni;
        if patroni.life != life {
            return;
        }
        if !step.is_servers() && (patroni.frozen || !patroni.alive) {
            if patroni.frozen {
                self.later(AGAIN, Thing::Member(c, m, life, step));
            }
            return;
        }
        // A process that was started again knows nothing of what the one before it had in mind.
        let meant = match step {
            Step::GaveUp => patroni.action == Action::GivingUp,
            Step::Release => patroni.action == Action::SwitchingOver,
            Step::StartReplica => patroni.action == Action::Restarting,
            Step::StartPrimary => patroni.action == Action::RestartingPrimary,
            Step::Checkpointed => patroni.action == Action::SwitchingOver,
            _ => true,
        };
        if !meant {
            return;
        }
        match step {
            Step::Loop => self.patroni_loop(c, m),
            Step::GaveUp => self.gave_up(c, m),
            Step::Checkpointed => self.stop_begins(c, m, "stopping"),
            Step::Hooked { kind, go_on } => self.hooked(c, m, kind, go_on),
            Step::Stopped => self.turn(c, m, Run::Down, true),
            Step::Release => self.release(c, m),
            Step::StartReplica => {
                self.turn(c, m, Run::Starting, true);
                self.clusters[c].members[m].patroni.cached_role = "replica";
                self.clusters[c].members[m].patroni.state = None;
                let after = self.rng.millis(200, 2000);
                self.step_later(c, m, after, Step::Started { primary: false });
            }
            Step::StartPrimary => {
                self.turn(c, m, Run::Starting, false);
                let after = self.rng.millis(100, 800);
                self.step_later(c, m, after, Step::Started { primary: true });
            }
            Step::Started { primary } => {
                self.clusters[c].members[m].patroni.state = None;
                self.turn(c, m, Run::Running, !primary);
                self.clusters[c].members[m].patroni.action = Action::Idle;
                self.wake_patroni(c, m);
            }
            Step::Promoted => self.promoted(c, m),
            Step::Follow => self.follow(c, m),
        }
    }

    /// A member's server goes into another state on its timeline.
    pub fn turn(&mut self, c: usize, m: usize, run: Run, in_recovery: bool) {
        let now = self.now;
        let member = &mut self.clusters[c].members[m];
        let timeline = member.pg.timeline;
        member.pg.turn(now, run, in_recovery, timeline);
        let name = member.name.clone();
        self.server_turned(c, m);
        let kind = if in_recovery { "replica" } else { "primary" };
        self.say(|_| format!("{name}: server {run:?} as {kind} on timeline {timeline}"));
    }

    fn step_later(&mut self, c: usize, m: usize, after: Duration, step: Step) {
        let life = self.clusters[c].members[m].patroni.life;
        self.later(after, Thing::Member(c, m, life, step));
    }

    /// The loop runs soon.
    pub fn wake_patroni(&mut self, c: usize, m: usize) {
        let after = self.rng.millis(5, 300);
        self.clusters[c].members[m].patroni.next_loop = self.now + after;
        self.step_later(c, m, after, Step::Loop);
    }

    /// All loops of a cluster run soon.
    pub fn wake_patronis(&mut self, c: usize) {
        for m in 0..self.clusters[c].members.len() {
            if self.clusters[c].members[m].patroni.alive {
                self.wake_patroni(c, m);
            }
        }
    }

    /// Whether a member's Patroni reaches its store.
    fn reaches_store(&self, c: usize, m: usize) -> bool {
        let member = &self.clusters[c].members[m];
        !self.clusters[c].store.outage && !member.store_cut && !member.isolated
    }

    fn patroni_loop(&mut self, c: usize, m: usize) {
        let now = self.now;
        if now < self.clusters[c].members[m].patroni.next_loop {
            return;
        }
        let loop_wait = self.clusters[c].loop_wait;
        self.clusters[c].members[m].patroni.next_loop = now + loop_wait;
        self.step_later(c, m, loop_wait, Step::Loop);
        if self.clusters[c].members[m].patroni.action == Action::Demoting {
            return;
        }
        if !self.reaches_store(c, m) {
            self.without_store(c, m);
            return;
        }
        let paused = self.clusters[c].paused;
        let patroni = &mut self.clusters[c].members[m].patroni;
        (patroni.store_seen, patroni.paused, patroni.failsafe_until) = (now, paused, Time::ZERO);
        self.clusters[c].store.expire(now);
        let until = now + self.clusters[c].ttl;
        self.clusters[c].store.renew(m, until);
        self.at(until, Thing::Lease(c));
        let name = self.clusters[c].members[m].name.clone();
        match self.clusters[c].store.leader() {
            Some(leader) if leader == name => self.as_leader(c, m, until),
            Some(_) => self.as_follower(c, m),
            None => self.without_leader(c, m, until),
        }
        self.write_member(c, m);
        self.store_changed(c);
    }

    fn without_store(&mut self, c: usize, m: usize) {
        let cluster = &mut self.clusters[c];
        let (loop_wait, ttl) = (cluster.loop_wait, cluster.ttl);
        let member = &mut cluster.members[m];
        let paused = member.patroni.paused;
        if member.pg.is_writable() && member.patroni.action == Action::Idle && !paused {
            member.patroni.action = Action::GivingUp;
            let retry = (ttl - loop_wait) / 2;
            self.step_later(c, m, retry, Step::GaveUp);
        }
    }

    /// The retry time-out is over: a primary that cannot reach its store stops being one.
    fn gave_up(&mut self, c: usize, m: usize) {
        self.clusters[c].members[m].patroni.action = Action::Idle;
        if self.reaches_store(c, m) {
            return self.wake_patroni(c, m);
        }
        if !self.clusters[c].members[m].patroni.paused && !self.goes_on_in_failsafe(c, m) {
            self.demote(c, m);
        }
    }

    /// `failsafe_mode`: a primary without its store goes on if every member answers it.
    fn goes_on_in_failsafe(&mut self, c: usize, m: usize) -> bool {
        let until = self.now + self.clusters[c].ttl;
        let cluster = &mut self.clusters[c];
        let alone = cluster.members[m].isolated;
        let answers = |(n, other): (usize, &Member)| {
            n == m || other.patroni.alive && !other.patroni.frozen && !other.rest_dead && !other.isolated
        };
        if !cluster.failsafe || alone || !cluster.members.iter().enumerate().all(answers) {
            return false;
        }
        for other in &mut cluster.members {
            other.patroni.asked_until = until;
        }
        let patroni = &mut cluster.members[m].patroni;
        (patroni.lock_until, patroni.failsafe_until) = (until, until);
        true
    }

    /// An immediate demotion.
    fn demote(&mut self, c: usize, m: usize) {
        let patroni = &mut self.clusters[c].members[m].patroni;
        patroni.lock_until = Time::ZERO;
        patroni.action = Action::Demoting;
        self.stop_begins(c, m, "stopping");
    }

    /// The server is about to be stopped.
    fn stop_begins(&mut self, c: usize, m: usize, state: &'static str) {
        self.clusters[c].members[m].patroni.state = Some(state);
        self.run_hook(c, m, HookKind::BeforeStop);
    }

    /// A hook has returned.
    fn hooked(&mut self, c: usize, m: usize, kind: HookKind, go_on: bool) {
        match (kind, self.clusters[c].members[m].patroni.action) {
            (HookKind::BeforeStop, Action::Demoting) => {
                let patroni = &mut self.clusters[c].members[m].patroni;
                patroni.action = Action::Restarting;
                patroni.cached_role = "demoted";
                self.turn(c, m, Run::Down, true);
                let after = self.rng.millis(500, 2500);
                self.step_later(c, m, after, Step::StartReplica);
            }
            (HookKind::BeforeStop, Action::SwitchingOver) => {
                self.turn(c, m, Run::Stopping, false);
                let stop = self.rng.millis(30, 600);
                self.step_later(c, m, stop, Step::Stopped);
                self.step_later(c, m, stop + Duration::from_secs(1), Step::Release);
            }
            (HookKind::BeforeStop, Action::RestartingPrimary) => {
                self.turn(c, m, Run::Stopping, false);
                let stop = self.rng.millis(30, 600);
                self.step_later(c, m, stop, Step::Stopped);
                self.step_later(c, m, stop + Duration::from_millis(20), Step::StartPrimary);
            }
            (HookKind::PrePromote, Action::Fencing) if go_on => {
                self.clusters[c].members[m].patroni.action = Action::Promoting;
                self.promote_server(c, m);
            }
            (HookKind::PrePromote, Action::Fencing) => {
                let out = self.now + self.clusters[c].ttl;
                let patroni = &mut self.clusters[c].members[m].patroni;
                patroni.action = Action::Idle;
                patroni.no_race_until = out;
                self.give_key_away(c, m);
            }
            _ => {}
        }
    }

    /// The operator restarts the server of the leader.
    pub fn restart_primary(&mut self, c: usize) {
        let leader = self.clusters[c].store.leader();
        let leads = |member: &crate::world::Member| {
            Some(&member.name) == leader.as_ref()
                && member.pg.is_writable()
                && member.patroni.action == Action::Idle
                && member.patroni.alive
                && !member.patroni.frozen
        };
        if let Some(m) = self.clusters[c].members.iter().position(leads) {
            self.clusters[c].members[m].patroni.action = Action::RestartingPrimary;
            self.stop_begins(c, m, "restarting");
        }
    }

    /// Patroni changes its mind while a hook runs.
    pub fn call_off(&mut self, c: usize, m: usize) {
        self.kill_hooks(c, m);
        let patroni = &mut self.clusters[c].members[m].patroni;
        (patroni.action, patroni.state) = (Action::Idle, None);
    }

    fn as_leader(&mut self, c: usize, m: usize, until: Time) {
        let wal = self.wal();
        let paused = self.clusters[c].paused;
        let member = &mut self.clusters[c].members[m];
        member.patroni.lock_until = until;
        if member.patroni.action != Action::Idle {
            return;
        }
        let (run, in_recovery) = (member.pg.run, member.pg.in_recovery);
        match (run, in_recovery) {
            (Run::Running, false) => {
                self.clusters[c].store.put("status", &format!("{{\"optime\":{wal}}}"), None);
                self.switch_over(c, m);
            }
            (Run::Running, true) => self.promote(c, m),
            (Run::Down, _) if !paused => {
                let was_primary = member.patroni.cached_role == "primary";
                self.turn(c, m, Run::Starting, !was_primary);
                let after = self.rng.millis(300, 2000);
                self.step_later(c, m, after, Step::Started { primary: was_primary });
            }
            _ => {}
        }
    }

    /// A planned switchover, if one is asked for.
    fn switch_over(&mut self, c: usize, m: usize) {
        let Some(wish) = self.clusters[c].store.get("failover") else { return };
        if self.is_for_later(&wish) {
            return;
        }
        let candidates = self.clusters[c].members.iter().enumerate();
        let ready = candidates.filter(|(n, other)| *n != m && other.pg.is_replica() && other.patroni.alive);
        let wished: Vec<_> =
            ready.filter(|(_, other)| wish.contains(&format!("\"{}\"", other.name))).collect();
        if wished.is_empty() || self.clusters[c].paused {
            self.clusters[c].store.delete("failover");
            return;
        }
        let name = self.clusters[c].members[m].name.clone();
        self.say(|_| format!("{name}: switchover begins"));
        let checkpoint = self.rng.millis(0, 1000);
        self.clusters[c].members[m].patroni.action = Action::SwitchingOver;
        self.step_later(c, m, checkpoint, Step::Checkpointed);
    }

    /// Whether a switchover is scheduled for later.
    fn is_for_later(&self, wish: &str) -> bool {
        let at = wish.split("scheduled_at\":\"").nth(1).and_then(|rest| rest.split('"').next());
        let seconds = at.and_then(pgsquire_core::calendar::seconds_of);
        seconds.is_some_and(|at| at > i128::from(self.now.as_micros() / 1_000_000))
    }

    fn release(&mut self, c: usize, m: usize) {
        self.give_key_away(c, m);
        let patroni = &mut self.clusters[c].members[m].patroni;
        patroni.action = Action::Restarting;
        patroni.cached_role = "demoted";
        self.step_later(c, m, Duration::from_secs(2), Step::StartReplica);
    }

    fn give_key_away(&mut self, c: usize, m: usize) {
        self.clusters[c].members[m].patroni.lock_until = Time::ZERO;
        let name = self.clusters[c].members[m].name.clone();
        if self.reaches_store(c, m) && self.clusters[c].store.leader().as_ref() == Some(&name) {
            self.say(|_| format!("{name}: the leader key is released"));
            self.clusters[c].store.delete("leader");
            self.store_changed(c);
        }
    }

    fn as_follower(&mut self, c: usize, m: usize) {
        let paused = self.clusters[c].paused;
        if self.is_hooked(c, m) {
            // It has lost the lock meanwhile.
            self.call_off(c, m);
        }
        let member = &mut self.clusters[c].members[m];
        member.patroni.lock_until = Time::ZERO;
        if member.patroni.action != Action::Idle && member.patroni.action != Action::GivingUp {
            return;
        }
        match (member.pg.run, member.pg.in_recovery) {
            (Run::Running, false) if !paused => self.demote(c, m),
            (Run::Running, true) => self.follow(c, m),
            (Run::Down, _) if !paused => {
                member.patroni.action = Action::Restarting;
                self.step_later(c, m, AGAIN, Step::StartReplica);
            }
            _ => {}
        }
    }

    fn without_leader(&mut self, c: usize, m: usize, until: Time) {
        let cluster = &mut self.clusters[c];
        let member = &mut cluster.members[m];
        member.patroni.lock_until = Time::ZERO;
        if member.patroni.action == Action::GivingUp {
            member.patroni.action = Action::Idle;
        }
        let is_primary = member.pg.is_writable();
        // Nobody takes part in the race while the old primary answers that it is still alive.
        let own = member.pg.timeline;
        let answers = |other: &crate::world::Member| {
            let rival = !is_primary || other.pg.timeline > own;
            rival
                && other.pg.is_writable()
                && other.patroni.alive
                && !other.patroni.frozen
                && !other.rest_dead
                && !other.isolated
        };
        let alone = !cluster.members.iter().any(answers);
        let member = &mut cluster.members[m];
        let may = member.pg.run == Run::Running
            && alone
            && member.patroni.action == Action::Idle
            && member.pg.lag < 1_000_000
            && (is_primary || member.patroni.asked_until <= self.now)
            && (is_primary || !cluster.paused && member.patroni.no_race_until <= self.now);
        let wish = cluster.store.get("failover").filter(|wish| !wish.contains("scheduled_at"));
        let named = wish.is_none_or(|wish| {
            wish.contains(&format!("\"member\":\"{}\"", cluster.members[m].name))
                || cluster.members.len() == 1
        });
        let name = cluster.members[m].name.clone();
        if may && named {
            cluster.store.delete("failover");
            cluster.store.put("leader", &name, Some(m));
            cluster.members[m].patroni.lock_until = until;
            self.say(|_| format!("{name}: acquired the leader key"));
            if !is_primary {
                self.promote(c, m);
            }
        } else if self.clusters[c].members[m].pg.run == Run::Down
            && self.clusters[c].members[m].patroni.action == Action::Idle
            && !self.clusters[c].paused
        {
            self.clusters[c].members[m].patroni.action = Action::Restarting;
            self.step_later(c, m, AGAIN, Step::StartReplica);
        } else if !named {
            // The candidate may never come: Patroni forgets the wish with its next loop.
            self.clusters[c].store.delete("failover");
        }
    }

    fn promote(&mut self, c: usize, m: usize) {
        self.clusters[c].members[m].patroni.action = Action::Fencing;
        self.run_hook(c, m, HookKind::PrePromote);
    }

    fn promote_server(&mut self, c: usize, m: usize) {
        self.clusters[c].members[m].patroni.cached_role = "primary";
        let after = if self.rng.one_in(3) { self.rng.millis(50, 100) } else { self.rng.millis(100, 2000) };
        self.step_later(c, m, after, Step::Promoted);
    }

    fn promoted(&mut self, c: usize, m: usize) {
        let now = self.now;
        let patroni_lives = self.clusters[c].members[m].patroni.alive;
        let pg = &mut self.clusters[c].members[m].pg;
        if !pg.is_replica() {
            return;
        }
        let timeline = pg.timeline + 1;
        pg.turn(now, Run::Running, false, timeline);
        pg.lag = 0;
        self.clusters[c].promoted = Some(now);
        self.clusters[c].members[m].patroni.action = Action::Idle;
        let (name, scope) = (self.clusters[c].members[m].name.clone(), self.clusters[c].name.clone());
        self.say(|_| format!("{name}: writable on timeline {timeline}"));
        if patroni_lives {
            self.wake_patroni(c, m);
        }
        for other in 0..self.clusters[c].members.len() {
            let after = self.rng.millis(300, 5000);
            self.step_later(c, other, after, Step::Follow);
        }
        let hint =
            Event::Hinted(Hint::Callback { action: "on_role_change".into(), role: "primary".into(), scope });
        if let Some(h) = self.hosts.iter().position(|host| host.local == Some((c, m))) {
            let run = self.hosts[h].run;
            self.later(Duration::from_millis(20), Thing::Tell(h, run, vec![hint]));
        }
    }

    /// A replica goes over to the timeline of the primary.
    fn follow(&mut self, c: usize, m: usize) {
        let now = self.now;
        let leader = self.clusters[c].store.leader();
        let primary = self.clusters[c].members.iter().find(|p| Some(&p.name) == leader.as_ref());
        let Some(timeline) = primary.filter(|p| p.pg.is_writable()).map(|p| p.pg.timeline) else { return };
        let pg = &mut self.clusters[c].members[m].pg;
        if pg.is_replica() && pg.timeline != timeline {
            pg.turn(now, Run::Running, true, timeline);
            self.wake_patroni(c, m);
        }
    }

    fn write_member(&mut self, c: usize, m: usize) {
        let text = self.member_json(c, m);
        let key = format!("members/{}", self.clusters[c].members[m].name);
        if self.clusters[c].store.get(&key).as_ref() != Some(&text) {
            self.clusters[c].store.put(&key, &text, Some(m));
        }
    }
}
