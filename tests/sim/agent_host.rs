//! A host with an agent: the shell that carries orders out, late, badly, or not at all.

use crate::pgbouncer::PgBouncer;
use crate::watch::Follow;
use crate::workers::Next;
use crate::world::{Thing, World};
use pgsquire_core::agent::Agent;
use pgsquire_core::config::Config;
use pgsquire_core::effect::{Effect, EffectId, Order};
use pgsquire_core::event::{Event, Outcome, Restored};
use pgsquire_core::status::Status;
use pgsquire_core::time::Time;
use std::time::Duration;

/// What becomes of an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is done and answered.
    Fine,
    /// It is not done, and that is answered.
    Refused,
    /// It is done, but the answer says that it failed.
    AnswerLost,
    /// It is done, and there is no answer.
    Silence,
}

/// An order that is worked on.
#[derive(Debug, Clone)]
pub struct Job {
    /// Host.
    pub host: usize,
    /// Run of its agent.
    pub run: u64,
    /// Id of the effect.
    pub id: EffectId,
    /// It.
    pub order: Order,
    /// When the shell began with it, by the host's clock.
    pub started: Time,
    /// What becomes of it.
    pub fate: Fate,
    /// The part of it that is next.
    pub part: usize,
    /// Time between parts.
    pub pace: Duration,
    /// Which set of workers has it.
    pub workers: u64,
}

/// Ways in which a host's workers are in trouble.
#[derive(Debug, Clone, Copy, Default)]
pub struct Trouble {
    /// Orders fail, in 1000.
    pub failing: u64,
    /// Orders take this much longer at most, in milliseconds.
    pub slow: u64,
    /// The state folder cannot be written.
    pub state_full: bool,
    /// Members' REST APIs are not reached.
    pub rest_cut: bool,
}

/// The host.
pub struct Host {
    /// Its name.
    pub name: String,
    /// Configuration of its agent.
    pub config: Config,
    /// The agent, while it runs.
    pub agent: Option<Agent>,
    /// Which run of the agent this is.
    pub run: u64,
    /// The agent's alarm that counts.
    pub alarm: u64,
    /// The agent does not run before this.
    pub frozen_until: Time,
    /// The state folder.
    pub state: Restored,
    /// Stores it follows.
    pub follows: Vec<Follow>,
    /// Cluster and member on this host.
    pub local: Option<(usize, usize)>,
    /// PgBouncer processes.
    pub poolers: Vec<PgBouncer>,
    /// The last snapshot that was published; it outlives a frozen agent, but not a dead one.
    pub status: Option<Status>,
    /// What is wrong with its workers.
    pub trouble: Trouble,
    /// Its clock is ahead of the world's.
    pub clock: Duration,
    /// Which set of workers there is; a new configuration gets new ones.
    pub workers: u64,
    /// The old workers bring to an end what they began, until then; new orders find nobody.
    pub workers_ready: Time,
    /// The keeper of the state folder is busy until then: it does one thing after the other.
    pub keeper_busy: Time,
    /// The last time at which anything here was out of order.
    pub disturbed: Time,
    /// What the invariants remember.
    pub memory: crate::memory::Memory,
    /// Servers that it watches, by cluster.
    pub watched: std::collections::BTreeMap<String, crate::probe::Watched>,
    /// Since when its poolers are in the registry, by cluster.
    pub registered: std::collections::BTreeMap<String, Time>,
    /// Answers that came, to be repeated.
    pub answers: Vec<Event>,
}

impl World {
    /// The time on a host's clock.
    pub fn host_time(&self, h: usize) -> Time {
        self.now + self.hosts[h].clock
    }

    /// The agent of a host starts with what its state folder holds.
    pub fn start_agent(&mut self, h: usize) {
        if self.hosts[h].agent.is_some() {
            return;
        }
        let now = self.host_time(h);
        let host = &mut self.hosts[h];
        host.run += 1;
        host.follows.iter_mut().for_each(Follow::stop);
        host.agent = Some(Agent::new(host.config.clone(), host.state.clone(), now));
        host.answers.clear();
        host.memory.restarted(&host.state);
        let (run, name) = (host.run, host.name.clone());
        self.hosts[h].watched.clear();
        self.begin_peers(h);
        self.begin_polls(h);
        self.say(|_| format!("{name}: the agent starts (run {run})"));
        self.tell(h, run, vec![Event::Tick]);
    }

    /// The agent of a host is killed.
    pub fn kill_agent(&mut self, h: usize) {
        let host = &mut self.hosts[h];
        host.agent = None;
        host.status = None;
        host.run += 1;
        let name = host.name.clone();
        self.say(|_| format!("{name}: the agent is killed"));
        self.orphan_hooks(h);
    }

    /// The agent is told to stop, and ends.
    pub fn stop_agent(&mut self, h: usize) {
        let run = self.hosts[h].run;
        self.tell(h, run, vec![Event::Stopping]);
        let after = self.rng.millis(20, 1500);
        self.later(after, Thing::EndAgent(h, run));
    }

    /// An agent that was told to stop has ended: systemd runs `pgsquire release` after it.
    pub fn end_agent(&mut self, h: usize, run: u64) {
        if self.hosts[h].run == run && self.hosts[h].agent.is_some() {
            self.revoke_leases(h);
            self.kill_agent(h);
            self.later(Duration::from_millis(20), Thing::Release(h));
            if self.healed.is_some() {
                self.later(Duration::from_millis(300), Thing::StartAgent(h));
            }
        }
    }

    /// The agent is told something.
    pub fn tell(&mut self, h: usize, run: u64, events: Vec<Event>) {
        let host = &self.hosts[h];
        if host.run != run || host.agent.is_none() {
            return;
        }
        if host.frozen_until > self.now {
            return self.at(self.hosts[h].frozen_until, Thing::Tell(h, run, events));
        }
        for event in events {
            let now = self.host_time(h);
            self.check_twice(h, now, &event);
            if matches!(event, Event::Done { .. }) && self.hosts[h].answers.len() < 64 {
                self.hosts[h].answers.push(event.clone());
            }
            self.note_told(h, &event);
            self.say(|w| format!("{} <- {}", w.hosts[h].name, short(&event)));
            let effects = agent_of(&mut self.hosts[h]).handle(now, event);
            let status = agent_of(&mut self.hosts[h]).status(now);
            self.hosts[h].status = Some(status);
            self.check_published(h);
            self.note_noticed(h);
            for effect in effects {
                self.order(h, effect);
            }
        }
        self.set_alarm(h);
    }

    fn set_alarm(&mut self, h: usize) {
        let Some(agent) = &self.hosts[h].agent else { return };
        let wait = agent.next_wake().since(self.host_time(h)).max(Duration::from_millis(1));
        self.hosts[h].alarm += 1;
        let (run, alarm) = (self.hosts[h].run, self.hosts[h].alarm);
        self.later(wait, Thing::Wake(h, run, alarm));
    }

    /// An alarm of the agent rings.
    pub fn wake(&mut self, h: usize, run: u64, alarm: u64) {
        if self.hosts[h].alarm == alarm {
            self.tell(h, run, vec![Event::Tick]);
        }
    }

    /// An order is given to its worker.
    fn order(&mut self, h: usize, effect: Effect) {
        if matches!(effect.order, Order::Record(_)) {
            return;
        }
        if let Order::AnswerHook { hook, answer } = effect.order {
            self.say(|w| format!("{} -> hook {}: {answer:?}", w.hosts[h].name, hook.0));
            return self.later(Duration::from_millis(1), Thing::Hook(hook.0, Some(answer)));
        }
        self.say(|w| format!("{} -> {} [{}]", w.hosts[h].name, name_of(&effect.order), effect.reason));
        self.check_ordered(h, &effect);
        let trouble = self.hosts[h].trouble;
        let mut begin = self.rng.millis(0, 3);
        let mut pace = self.rng.millis(1, 8);
        if trouble.slow > 0 && self.rng.one_in(2) {
            begin += self.rng.millis(0, trouble.slow);
            pace += self.rng.millis(0, trouble.slow);
        }
        let fate = match self.rng.per_mille(trouble.failing) {
            false => Fate::Fine,
            true => *self.rng.pick(&[
                Fate::Refused,
                Fate::Refused,
                Fate::AnswerLost,
                Fate::AnswerLost,
                Fate::Silence,
            ]),
        };
        if fate != Fate::Fine {
            self.hosts[h].disturbed = self.now;
        }
        let started = self.host_time(h) + begin;
        let workers = self.hosts[h].workers;
        if self.hosts[h].workers_ready > self.now {
            let outcome = Outcome::Failed { why: "there is no worker for it".into() };
            let (id, run) = (effect.id, self.hosts[h].run);
            return self.later(
                Duration::from_millis(1),
                Thing::Tell(h, run, vec![Event::Done { id, started, outcome }]),
            );
        }
        let run = self.hosts[h].run;
        let job =
            Job { host: h, run, id: effect.id, order: effect.order, started, fate, part: 0, pace, workers };
        let mut at = self.now + begin + pace;
        if matches!(job.order, Order::KeepTerm { .. }) {
            at = at.max(self.hosts[h].keeper_busy);
            self.hosts[h].keeper_busy = at;
        }
        self.at(at, Thing::Act(Box::new(job)));
    }

    /// The next part of an order is done. What a killed agent had under way stays half done.
    pub fn act(&mut self, mut job: Job) {
        let host = &self.hosts[job.host];
        if host.run != job.run || host.workers != job.workers && host.workers_ready <= self.now {
            return;
        }
        if job.fate == Fate::Refused {
            return self.answer(&job, Outcome::Failed { why: "refused".into() });
        }
        match self.part(&job) {
            Next::Part => {
                job.part += 1;
                self.later(job.pace, Thing::Act(Box::new(job)));
            }
            Next::Done(outcome) => self.answer(&job, outcome),
        }
    }

    fn answer(&mut self, job: &Job, outcome: Outcome) {
        let lost = || Outcome::Failed { why: "no answer within 2s".into() };
        let failed = matches!(outcome, Outcome::Failed { .. });
        if self.hosts[job.host].workers != job.workers && self.rng.one_in(2) {
            return;
        }
        let (after, outcome) = match job.fate {
            Fate::Silence => return,
            Fate::AnswerLost => (Duration::from_secs(2), lost()),
            _ if failed && job.fate == Fate::Fine => (Duration::ZERO, outcome),
            _ => (job.pace, outcome),
        };
        let mut events = Vec::new();
        if let (Order::ReadStore { cluster }, Outcome::Failed { why }) = (&job.order, &outcome) {
            events.push(Event::StoreFailed { cluster: cluster.clone(), why: why.clone() });
        }
        events.push(Event::Done { id: job.id, started: job.started, outcome });
        if !self.setup.calm && self.rng.one_in(100) {
            let twice = after + self.rng.millis(0, 5000);
            self.later(twice, Thing::Tell(job.host, job.run, events.clone()));
        }
        self.later(after, Thing::Tell(job.host, job.run, events));
    }
}

fn agent_of(host: &mut Host) -> &mut Agent {
    host.agent.as_mut().expect("the agent runs")
}

fn name_of(order: &Order) -> String {
    match order {
        Order::ReadStore { cluster } => format!("read the store of {cluster}"),
        Order::AskMember { member, .. } => format!("ask {member}"),
        Order::AskLocalPatroni { .. } => "ask the local Patroni".into(),
        Order::ProbeLocal => "probe the local server".into(),
        Order::KeepTerm { term: Some(term), .. } => format!("keep the term {term}"),
        Order::KeepTerm { term: None, .. } => "forget the term".into(),
        Order::Publish { cluster, keys } => format!("publish {} keys of {cluster}", keys.len()),
        Order::PutKey { key, .. } => format!("put {key}"),
        Order::WatchServer { endpoint, .. } => format!("watch the server at {endpoint:?}"),
        Order::AnswerHook { hook, answer } => format!("answer hook {}: {answer:?}", hook.0),
        Order::Pooler { pooler, order } => format!("{pooler}: {order}"),
        Order::Record(entry) => entry.text.clone(),
    }
}

fn short(event: &Event) -> String {
    let text = match event {
        Event::StoreRead { read, .. } => {
            format!("store {} read at revision {}, lease {:?}", read.store, read.revision, read.leader_ttl)
        }
        Event::StoreChanged { change, .. } => {
            let keys: Vec<&str> = change.changes.iter().map(|(key, _)| key.as_str()).collect();
            format!("store changed at revision {}: {}", change.revision, keys.join(", "))
        }
        Event::Done { id, outcome: Outcome::Member { code, body, .. }, .. } => {
            format!("done {}: {code} {}", id.0, String::from_utf8_lossy(body))
        }
        other => format!("{other:?}"),
    };
    text.chars().take(400).collect()
}
