//! A world: clusters, hosts, one queue of things to come, one generator, one clock.

use crate::agent_host::{Host, Job};
use crate::dcs::Store;
use crate::faults::Fault;
use crate::hooks::Hook;
use crate::invariants::Violation;
use crate::patroni::{Patroni, Step};
use crate::peers::PeersStep;
use crate::polled::PollStep;
use crate::postgres::Postgres;
use crate::rng::Rng;
use crate::setup::Setup;
use pgsquire_core::effect::HookAnswer;
use pgsquire_core::event::Event;
use pgsquire_core::time::Time;
use pgsquire_core::topology::Endpoint;
use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

/// One member of a cluster.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// Host in its `conn_url`: a name or the address.
    pub host: String,
    /// Its address.
    pub ip: String,
    /// Port of its PostgreSQL.
    pub port: u16,
    /// Tag `noloadbalance`.
    pub noloadbalance: bool,
    /// Its server.
    pub pg: Postgres,
    /// Its Patroni.
    pub patroni: Patroni,
    /// Its Patroni cannot reach the store.
    pub store_cut: bool,
    /// Its REST API does not answer.
    pub rest_dead: bool,
    /// Its host reaches neither the store nor another member, and none reaches it.
    pub isolated: bool,
    /// Its clock was set back: it goes on saying that it holds the lock.
    pub claims: bool,
    /// At its REST API's address another system answers, under its name.
    pub stranger: bool,
}

/// One Patroni cluster and its store.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// Scope.
    pub name: String,
    /// System identifier.
    pub system: String,
    /// Its store.
    pub store: Store,
    /// The agents do not follow it: they ask the members.
    pub rest: bool,
    /// Who holds the leader key since when, and how long after that each host showed it.
    pub noticed: (Time, BTreeMap<usize, Duration>),
    /// Our own keys in it, with revisions of their own.
    pub own: Store,
    /// Its Patroni is older than 3.0.3 and has no `before_stop`.
    pub old_patroni: bool,
    /// A member was promoted by hand: nobody asked the fence.
    pub by_hand: bool,
    /// The first commit on each timeline.
    pub commits: BTreeMap<u32, Time>,
    /// Members.
    pub members: Vec<Member>,
    /// Lifetime of leases.
    pub ttl: Duration,
    /// Pause between two runs of Patroni's loop.
    pub loop_wait: Duration,
    /// Patroni is paused.
    pub paused: bool,
    /// `failsafe_mode` is on.
    pub failsafe: bool,
    /// The store tells how long the leader key lives.
    pub tells_leases: bool,
    /// Roles are written as `master`.
    pub old_words: bool,
    /// When the store was last rebuilt.
    pub rebuilt: Option<Time>,
    /// When somebody last deleted the leader key by hand, and the revision of that.
    pub key_deleted: Option<(Time, u64)>,
    /// Who holds the leader key.
    pub holder: Option<String>,
    /// When a member last became writable by promotion.
    pub promoted: Option<Time>,
    /// When members last lost it.
    pub lost: BTreeMap<String, Time>,
}

/// Something that happens at a time.
#[derive(Debug, Clone)]
pub enum Thing {
    /// A member's Patroni or PostgreSQL goes a step on (cluster, member, life, step).
    Member(usize, usize, u64, Step),
    /// A lease may be over.
    Lease(usize),
    /// An order is worked on.
    Act(Box<Job>),
    /// The agent of a host is told something (host, run, events).
    Tell(usize, u64, Vec<Event>),
    /// A message of a watch arrives (host, run, follow, watch, events).
    Watch(usize, u64, usize, u64, Vec<Event>),
    /// The shell of a host reads a store by itself (host, run, follow).
    Reread(usize, u64, usize),
    /// The shell of a host asks a cluster's members (host, run, follow, step).
    Poll(usize, u64, usize, PollStep),
    /// The agent of a host wanted to be woken (host, run, which of its alarms).
    Wake(usize, u64, u64),
    /// The clients of a pooler do something (host, pooler).
    Clients(usize, usize),
    /// Our own keys as a host sees them go a step on (host, run, follow, step).
    Peers(usize, u64, usize, PeersStep),
    /// A lease of our own keys may be over.
    OwnLease(usize),
    /// The connection to a watched server says something (host, run, cluster, generation, it is repeated).
    Probe(usize, u64, String, u64, bool),
    /// A hook is answered; none: its time may be over.
    Hook(u64, Option<HookAnswer>),
    /// The guard of a pause wakes up (host, pooler).
    Guard(usize, usize),
    /// `pgsquire release` runs on a host, after its agent has ended.
    Release(usize),
    /// Links of paused pools may be idle now (host, pooler).
    Settle(usize, usize),
    /// An agent that was told to stop ends (host, run).
    EndAgent(usize, u64),
    /// The agent of a host starts.
    StartAgent(usize),
    /// Something breaks, or is mended.
    Fault(Fault, bool),
    /// All is mended; nothing breaks any more.
    Heal,
}

struct Slot {
    at: Time,
    order: u64,
    thing: Thing,
}

impl PartialEq for Slot {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Slot {}
impl PartialOrd for Slot {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Slot {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// All of it.
pub struct World {
    /// The time.
    pub now: Time,
    /// The generator.
    pub rng: Rng,
    /// How it was set up.
    pub setup: Setup,
    /// Clusters.
    pub clusters: Vec<Cluster>,
    /// Hosts with an agent.
    pub hosts: Vec<Host>,
    /// Since when nothing is broken on purpose any more.
    pub healed: Option<Time>,
    /// The first invariant that was found broken.
    pub violation: Option<Violation>,
    /// The log, if it is kept.
    pub log: Option<Vec<String>>,
    /// Hooks that run.
    pub hooks: BTreeMap<u64, Hook>,
    /// Hooks that ever ran.
    pub hooked: u64,
    /// What clients of write routes were told instead of an answer.
    pub errors: Vec<(Time, String)>,
    /// The longest that a `before_stop` has waited.
    pub waited: Duration,
    /// Steps so far.
    pub steps: u64,
    queue: BinaryHeap<Reverse<Slot>>,
    order: u64,
}

/// When a world begins.
pub const BEGIN: Time = Time::from_micros(1_000_000_000);

impl World {
    /// A world in which nothing has happened.
    pub fn new(setup: Setup, seed: u64, keep_log: bool) -> Self {
        let mut world = World {
            now: BEGIN,
            rng: Rng::new(seed),
            setup,
            clusters: Vec::new(),
            hosts: Vec::new(),
            healed: None,
            violation: None,
            log: keep_log.then(Vec::new),
            hooks: BTreeMap::new(),
            hooked: 0,
            errors: Vec::new(),
            waited: Duration::ZERO,
            steps: 0,
            queue: BinaryHeap::new(),
            order: 0,
        };
        world.build();
        world
    }

    /// Something will happen after a while.
    pub fn later(&mut self, after: Duration, thing: Thing) {
        self.at(self.now + after, thing);
    }

    /// Something will happen at a time.
    pub fn at(&mut self, at: Time, thing: Thing) {
        self.order += 1;
        self.queue.push(Reverse(Slot { at, order: self.order, thing }));
    }

    /// Writes a line into the log, if it is kept.
    pub fn say(&mut self, line: impl FnOnce(&World) -> String) {
        if self.log.is_some() {
            let text = line(self);
            let at = self.now.since(Time::from_micros(1_000_000_000)).as_micros();
            let line = format!("{:>4}.{:06} {text}", at / 1_000_000, at % 1_000_000);
            if let Some(log) = &mut self.log {
                log.push(line);
            }
        }
    }

    /// Lets time pass until `end`, or until an invariant is broken.
    pub fn run_until(&mut self, end: Time) {
        while self.violation.is_none() {
            match self.queue.peek() {
                Some(Reverse(slot)) if slot.at <= end => {}
                _ => break,
            }
            let Some(Reverse(slot)) = self.queue.pop() else { break };
            self.now = self.now.max(slot.at);
            self.steps += 1;
            self.happen(slot.thing);
            self.check_step();
        }
        self.now = self.now.max(end);
    }

    /// Lets time pass.
    pub fn run_for(&mut self, time: Duration) {
        self.run_until(self.now + time);
    }

    fn happen(&mut self, thing: Thing) {
        match thing {
            Thing::Member(c, m, life, step) => self.member_step(c, m, life, step),
            Thing::Lease(c) => {
                let now = self.now;
                if self.clusters[c].store.expire(now) {
                    self.say(|_| "store: a lease ended".into());
                    self.store_changed(c);
                }
            }
            Thing::Act(job) => self.act(*job),
            Thing::Tell(h, run, events) => self.tell(h, run, events),
            Thing::Watch(h, run, f, watch, events) => self.watch_message(h, run, f, watch, events),
            Thing::Reread(h, run, f) => self.reread(h, run, f),
            Thing::Poll(h, run, f, step) => self.poll_step(h, run, f, step),
            Thing::Wake(h, run, alarm) => self.wake(h, run, alarm),
            Thing::Clients(h, p) => self.clients(h, p),
            Thing::Peers(h, run, f, step) => self.peers_step(h, run, f, step),
            Thing::OwnLease(c) => self.own_lease(c),
            Thing::Probe(h, run, cluster, generation, again) => {
                self.probe(h, run, &cluster, generation, again);
            }
            Thing::Hook(id, answer) => self.hook_step(id, answer),
            Thing::Guard(h, p) => self.guard(h, p),
            Thing::Release(h) => self.release_pauses(h),
            Thing::Settle(h, p) => self.settle_links(h, p),
            Thing::EndAgent(h, run) => self.end_agent(h, run),
            Thing::StartAgent(h) => self.start_agent(h),
            Thing::Fault(fault, on) => self.fault(fault, on),
            Thing::Heal => self.heal(),
        }
    }

    /// Which member answers at an endpoint.
    pub fn member_at(&self, endpoint: &Endpoint) -> Option<(usize, usize)> {
        self.find_member(|m| (m.host == endpoint.host || m.ip == endpoint.host) && m.port == endpoint.port)
    }

    /// The first member of all clusters for which something holds.
    pub fn find_member(&self, holds: impl Fn(&Member) -> bool) -> Option<(usize, usize)> {
        let found = |(c, cluster): (usize, &Cluster)| Some((c, cluster.members.iter().position(&holds)?));
        self.clusters.iter().enumerate().find_map(found)
    }

    /// A member.
    pub fn member(&self, (c, m): (usize, usize)) -> &Member {
        &self.clusters[c].members[m]
    }

    /// End of the write-ahead log of a cluster's primary.
    pub fn wal(&self) -> u64 {
        10_000_000 + self.now.as_micros() / 1000
    }
}
