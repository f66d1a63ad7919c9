//! The agent's part in switches: what it hears goes into [`SwitchState`], and what follows from it comes out as orders.

use crate::agent::{Agent, Pending};
use crate::config::{ClusterConfig, Config, Fence, Mode, Route};
use crate::effect::{Effect, EffectId, Order, PoolerOrder};
use crate::event::{Event, HookId, HookKind};
use crate::leader::writable_leader;
use crate::pgbouncer::pools::Pooler;
use crate::pgbouncer::reconcile::{self, Decisions};
use crate::pgbouncer::{let_go, pause};
use crate::questions::Question;
use crate::rule::{Reason, Rule};
use crate::switch::before_stop::{self, Step, Stop};
use crate::switch::conductor::{self, Said};
use crate::switch::fence;
use crate::switch::hold::{self, Change, Hold};
use crate::switch::publish::{self, OwnKeys};
use crate::switch::records::{REGISTRY, Registered, VERSION, to_bytes};
use crate::switch::{ServerSign, SwitchState, UNCHANGED};
use crate::time::Time;
use crate::topology::Endpoint;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

/// A publisher that has not answered by then is given up.
const PUBLISH_WITHIN: Duration = Duration::from_secs(3);
/// An entry of the registry that is not seen is put again after this.
const REGISTER_AGAIN: Duration = Duration::from_secs(2);
/// While a hook waits, time passes this often.
const HOOK_WAITS: Duration = Duration::from_millis(5);
/// … and while pools are held, this often.
const HELD: Duration = Duration::from_millis(50);

/// Switches by cluster name.
pub(crate) type Switches = BTreeMap<String, SwitchState>;

impl Agent {
    /// A fact about switches.
    pub(crate) fn observe_switch(&mut self, event: Event) {
        match event {
            Event::PeersRead { cluster, read } => {
                self.switch_of(&cluster, |state| state.view.observe_read(read));
            }
            Event::PeersChanged { cluster, change } => {
                self.switch_of(&cluster, |state| state.view.observe_change(change));
            }
            Event::PeersFailed { cluster, why } => {
                self.switch_of(&cluster, |state| state.view.failed = Some(why))
            }
            Event::LeaseKept { cluster, lease } => self.switch_of(&cluster, |state| state.lease = lease),
            Event::ServerSeen { cluster, endpoint, word, at } => {
                self.switch_of(&cluster, |state| state.server = Some(ServerSign { endpoint, word, at }));
            }
            Event::HookAsked { hook, kind, wall } => self.hook_asked(hook, kind, wall),
            Event::HookLost { hook } => self.with_conductor(|facts, state, said| {
                conductor::lost(facts, state, hook, said);
            }),
            Event::Stopping => {
                self.ending = true;
                self.with_conductor(conductor::stop);
            }
            Event::PoolerForgotten { cluster, node } => {
                self.recorder.say(
                    self.now,
                    "registry",
                    &cluster,
                    format!("{node} is forgotten on the operator's word"),
                );
                if self.config.cluster(&cluster).is_some_and(ClusterConfig::has_store) {
                    self.forgotten.push((cluster, node));
                }
            }
            _ => {}
        }
    }

    fn switch_of(&mut self, cluster: &str, change: impl FnOnce(&mut SwitchState)) {
        if let Some(state) = self.switches.get_mut(cluster) {
            change(state);
        }
    }

    fn hook_asked(&mut self, hook: HookId, kind: HookKind, wall: u64) {
        if self.config.local.is_none() || self.ending {
            let strict = self.config.switch.fence == Fence::Strict && kind == HookKind::PrePromote;
            let go_on = !strict;
            let why = match self.ending {
                true => "the agent on this host stops".to_string(),
                false => "there is no [patroni] or [postgres] on this host".to_string(),
            };
            self.answers.push((hook, crate::effect::HookAnswer::Return { go_on, why }));
            return;
        }
        self.schedule.hurry(&Question::LocalPatroni);
        if let Some(local) = &self.config.local {
            self.schedule.hurry(&Question::Store(local.cluster.clone()));
        }
        self.with_conductor(|facts, state, said| match kind {
            HookKind::BeforeStop => before_stop::before_stop(facts, state, hook, wall, said),
            HookKind::PrePromote => fence::pre_promote(facts, state, hook, said),
        });
    }

    /// Does something as the conductor of the local member's cluster.
    fn with_conductor(&mut self, act: impl FnOnce(&conductor::Facts<'_>, &mut SwitchState, &mut Said)) {
        let Some(local) = &self.config.local else { return };
        let (Some(cluster), Some(state)) =
            (self.config.cluster(&local.cluster), self.switches.get_mut(&local.cluster))
        else {
            return;
        };
        let facts = conductor::Facts {
            config: &self.config,
            cluster,
            observed: &self.observed,
            started: self.observed.started.as_ref(),
            now: self.now,
        };
        let mut said = Said::default();
        act(&facts, state, &mut said);
        for note in said.notes {
            self.recorder.say(self.now, "hook", &cluster.name, note);
        }
        self.answers.extend(said.answers);
    }

    /// What the agents beside the leaders say of their servers.
    pub(crate) fn hear_words(&mut self) {
        for (name, state) in &self.switches {
            if let Some(view) = self.observed.clusters.get_mut(name) {
                view.observe_words(&state.view.peers.members, self.now);
            }
        }
    }

    /// Takes hooks and holds further.
    pub(crate) fn step_switches(&mut self, effects: &mut Vec<Effect>) {
        self.with_conductor(conductor::step);
        self.note_stop();
        let limit = self.poolers.values().filter_map(pause::waiting_limit).min();
        for cluster in &self.config.clusters {
            let led_to = write_targets(&self.config, &cluster.name, &self.poolers);
            let Some(state) = self.switches.get_mut(&cluster.name) else { continue };
            let facts = hold::Facts {
                config: &self.config,
                cluster,
                observed: &self.observed,
                led_to: &led_to,
                limit,
                now: self.now,
            };
            match hold::step(&facts, state) {
                Some(Change::Began(why) | Change::Extended(why) | Change::Ended(why)) => {
                    self.recorder.say(self.now, "hold", &cluster.name, why);
                }
                None => {}
            }
            let leaving = state.hold.as_ref().map(|hold| hold.from.clone());
            if let Some(view) = self.observed.clusters.get_mut(&cluster.name) {
                view.leaving = leaving;
            }
        }
        for (hook, answer) in core::mem::take(&mut self.answers) {
            let reason = Reason::new(Rule::AckDrained, "Patroni waits for its hook");
            effects.push(Effect { id: EffectId(0), order: Order::AnswerHook { hook, answer }, reason });
        }
        self.watch_servers(effects);
    }

    /// "primary: up" ends with the begin of a stop, and comes back when that has not happened or is over.
    fn note_stop(&mut self) {
        let local = self.config.local.as_ref().map(|local| local.cluster.as_str());
        let stop = local.and_then(|cluster| self.switches.get(cluster)).and_then(|state| state.stop.as_ref());
        self.observed.stopping = stop.filter(|stop| self.is_stopping(stop)).map(|stop| match &stop.record {
            Some(record) => format!("{} is about to stop ({})", record.from, record.epoch),
            None => "it is about to stop".into(),
        });
    }

    fn is_stopping(&self, stop: &Stop) -> bool {
        let Step::Over { since, aborted } = stop.step else { return true };
        let patroni = &self.observed.local_patroni;
        let (Some(status), Some(seen)) = (patroni.last(), patroni.seen()) else { return !aborted };
        let before = stop.record.as_ref().and_then(|record| record.started.as_ref());
        let restarted = before.is_some() && status.started.is_some() && status.started.as_ref() != before;
        let unchanged = seen > since + UNCHANGED;
        !(aborted || seen > since && status.state == "running" && (restarted || unchanged))
    }

    /// The server that the write pools lead to is watched, as long as nobody else is proved writable.
    fn watch_servers(&mut self, effects: &mut Vec<Effect>) {
        let mut orders = Vec::new();
        for cluster in &self.config.clusters {
            let Some(state) = self.switches.get_mut(&cluster.name) else { continue };
            let wants = self.config.mode == Mode::Enforce
                && !self.config.switch.failover_hold.is_zero()
                && self.config.routes_into(&cluster.name).any(Route::is_write);
            let leader = writable_leader(&self.config, cluster, &self.observed, self.now).ok();
            let endpoint =
                leader.map(|leader| leader.endpoint).or_else(|| state.watched.clone()).filter(|_| wants);
            if endpoint != state.watched {
                state.watched.clone_from(&endpoint);
                state.server = None;
                state.given_up = None;
                orders.push(Order::WatchServer { cluster: cluster.name.clone(), endpoint });
            }
        }
        for order in orders {
            let reason = Reason::new(Rule::HoldOnProof, "the server that writers use is watched");
            let effect = self.effect(order, reason, Some(Pending::WatchServer));
            effects.push(effect);
        }
    }

    /// Says in the store what ought to be said.
    pub(crate) fn publish(&mut self, effects: &mut Vec<Effect>) {
        self.give_up_publishing();
        let mut orders: Vec<(String, OwnKeys)> = Vec::new();
        let mut registers = Vec::new();
        for cluster in self.config.clusters.iter().filter(|cluster| cluster.has_store()) {
            let Some(state) = self.switches.get_mut(&cluster.name) else { continue };
            let facts = publish::Facts {
                config: &self.config,
                cluster,
                observed: &self.observed,
                poolers: &self.poolers,
                now: self.now,
            };
            let wanted = if self.ending { OwnKeys::new() } else { publish::wanted(&facts, state) };
            if state.published.due(&wanted, self.now) {
                state.published.sending = Some(wanted.clone());
                orders.push((cluster.name.clone(), wanted));
            }
            let known = state.view.seen.is_some() && !state.view.peers.registry.contains(&self.config.node);
            let due = !state.published.registering && self.now >= state.published.register_after;
            if known && due && publish::speaks(&facts) {
                state.published.registering = true;
                state.published.register_after = self.now + REGISTER_AGAIN;
                registers.push(cluster.name.clone());
            }
        }
        for (cluster, keys) in orders {
            let reason = Reason::new(Rule::AckGone, "what this host says to the other agents has changed");
            let pending = Pending::Publish { cluster: cluster.clone(), since: self.now };
            let effect = self.effect(Order::Publish { cluster, keys }, reason, Some(pending));
            effects.push(effect);
        }
        for cluster in registers {
            let record = Registered { v: VERSION, node: self.config.node.clone() };
            let key = format!("{REGISTRY}{}", self.config.node);
            let order = Order::PutKey { cluster: cluster.clone(), key, value: Some(to_bytes(&record)) };
            let reason = Reason::new(Rule::StrictFence, "this host's poolers have to give their word");
            let effect = self.effect(order, reason, Some(Pending::Register { cluster }));
            effects.push(effect);
        }
        for (cluster, node) in core::mem::take(&mut self.forgotten) {
            let order =
                Order::PutKey { cluster: cluster.clone(), key: format!("{REGISTRY}{node}"), value: None };
            let reason = Reason::new(Rule::StrictFence, "the operator took it out of the registry");
            let effect = self.effect(order, reason, Some(Pending::Register { cluster }));
            effects.push(effect);
        }
    }

    fn give_up_publishing(&mut self) {
        let now = self.now;
        let late =
            |p: &Pending| matches!(p, Pending::Publish { since, .. } if now.since(*since) >= PUBLISH_WITHIN);
        let ids: Vec<EffectId> = self.pending.iter().filter(|(_, p)| late(p)).map(|(id, _)| *id).collect();
        for id in ids {
            if let Some(Pending::Publish { cluster, .. }) = self.pending.remove(&id) {
                self.switch_of(&cluster, |state| {
                    state.published.answered(now, Err("no answer in time".into()))
                });
            }
        }
    }
}

/// When to look again although nothing happens.
pub(crate) fn wake(switches: &Switches, now: Time) -> Time {
    let hook_waits = |state: &SwitchState| {
        let stops = state.stop.as_ref().is_some_and(Stop::waits);
        let promotes = state.promotion.as_ref().is_some_and(|promotion| promotion.hook.is_some());
        stops || promotes
    };
    let mut next = Time::NEVER;
    for state in switches.values() {
        if hook_waits(state) {
            next = next.min(now + HOOK_WAITS);
        } else if state.hold.is_some() {
            next = next.min(now + HELD);
        }
        if state.published.next() > now {
            next = next.min(state.published.next());
        }
    }
    next
}

/// Where the write pools of a cluster lead, as loaded.
fn write_targets(config: &Config, cluster: &str, poolers: &BTreeMap<String, Pooler>) -> Vec<Endpoint> {
    let mut targets = Vec::new();
    for pooler in &config.poolers {
        let Some(known) = poolers.get(&pooler.name) else { continue };
        let writes = pooler.routes.iter().filter(|(_, route)| route.cluster == cluster && route.is_write());
        targets.extend(writes.filter_map(|(entry, _)| known.loaded(entry)));
    }
    targets
}

fn holds_of<'a>(config: &'a Config, name: &str, switches: &'a Switches) -> BTreeMap<&'a str, &'a Hold> {
    let Some(pooler) = config.pooler(name) else { return BTreeMap::new() };
    let routed = |cluster: &str| pooler.routes.values().any(|route| route.cluster == cluster);
    let held = switches.iter().filter(|(cluster, _)| routed(cluster));
    held.filter_map(|(cluster, state)| Some((cluster.as_str(), state.hold.as_ref()?))).collect()
}

/// What the end of pauses depends on, besides the switches.
pub(crate) struct Moment {
    pub(crate) agent_stops: bool,
    pub(crate) now: Time,
}

/// The next order about a pause of this pooler: one that begins or keeps it, else one that ends it. Both go before all
/// other work: clients wait.
pub(crate) fn pause_order(
    config: &Config,
    name: &str,
    pooler: &Pooler,
    decisions: &Decisions,
    switches: &Switches,
    moment: &Moment,
) -> Option<(PoolerOrder, Reason)> {
    let routed = config.pooler(name)?;
    let holds = holds_of(config, name, switches);
    if !moment.agent_stops
        && let Some(order) = pause::begin(config, routed, pooler, decisions, &holds, moment.now)
    {
        return Some(order);
    }
    pooler.pause.as_ref()?;
    let talks = |cluster: &str| config.cluster(cluster).is_some_and(ClusterConfig::has_store);
    let talking = || routed.routes.values().filter(|route| talks(&route.cluster));
    let mut states = talking().filter_map(|route| switches.get(&route.cluster));
    let given_up = switches.iter().filter(|(_, state)| state.given_up.is_some());
    let facts = pause::Ending {
        stopping: moment.agent_stops,
        held: !holds.is_empty(),
        heard: states.all(|state| state.view.seen.is_some() || state.view.failed.is_some()),
        given_up: given_up.map(|(cluster, _)| cluster.as_str()).collect(),
        needs_retry: reconcile::needs_login_retry(config, pooler, decisions, moment.now),
        now: moment.now,
    };
    pause::finish(config, routed, pooler, decisions, &facts)
}

/// Brings what is noted of a pooler up to date with the holds.
pub(crate) fn note_holds(
    config: &Config,
    name: &str,
    pooler: &mut Pooler,
    decisions: &Decisions,
    switches: &Switches,
    now: Time,
) {
    let ahead = decisions.values().find(|decision| decision.reason.rule == Rule::PointAhead);
    if let (Some(own), Some(target)) =
        (&mut pooler.pause, ahead.and_then(|decision| decision.target.as_ref()))
        && !own.ahead.contains(&target.endpoint)
    {
        own.ahead.push(target.endpoint.clone());
    }
    let holds = holds_of(config, name, switches);
    if holds.is_empty()
        && pooler.pause.as_ref().is_some_and(|own| !own.clean)
        && let Some(routed) = config.pooler(name)
    {
        // Its pools may carry marks, though they lead where they led before.
        for entry in routed.routes.keys() {
            pooler.moved.entry(entry.clone()).or_insert(now);
        }
    }
    for (cluster, hold) in holds {
        if hold.cause != hold::Cause::Planned
            && let Some(own) = &mut pooler.pause
        {
            own.clean = false;
        }
        if let Some(own) = &mut pooler.pause {
            own.left = Some(hold.endpoint.clone());
        }
        let Some(cluster) = config.cluster(cluster) else { continue };
        let_go::hurry(config, cluster, name, pooler, hold, now);
        // A login that began between our last look and PAUSE has marked its pool, and nobody can see it: provided for
        // while clients wait anyway.
        if pooler.pause.as_ref().is_some_and(|own| own.sure)
            && let_go::let_go(config, cluster, name, pooler, hold, now) != let_go::LetGo::Not
            && let Some(routed) = config.pooler(name)
        {
            for (entry, _) in routed.routes.iter().filter(|(_, route)| route.cluster == cluster.name) {
                pooler.moved.entry(entry.clone()).or_insert(now);
            }
        }
    }
}
