//! The whole of the core as one value: a fact goes in, orders come out.

use crate::config::{Config, PoolerConfig};
use crate::desired::{Desired, PoolerFacts, lint, plan};
use crate::effect::{Effect, EffectId, HookAnswer, Order};
use crate::event::{Event, Hint, HookId, Outcome, Restored};
use crate::observed::{ClusterView, Observed};
use crate::pgbouncer::let_go;
use crate::pgbouncer::own_pause::OwnPause;
use crate::pgbouncer::pools::{InFlight, LOST_AFTER, Pooler};
use crate::pgbouncer::reconcile;
use crate::questions::{Question, Schedule};
use crate::recorder::Recorder;
use crate::rule::{Reason, Rule};
use crate::switch::SwitchState;
use crate::switching;
use crate::time::Time;
use crate::topology::Endpoint;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

/// Time passes at least this often: ages turn into unknowns without any event.
const IDLE: Duration = Duration::from_millis(500);

/// What an effect that is not a pooler's was about.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Pending {
    Question(Question),
    KeepTerm { cluster: String, term: Option<crate::wal::Term>, durable: bool, since: Time },
    Publish { cluster: String, since: Time },
    Register { cluster: String },
    WatchServer,
}

/// The agent's mind.
#[derive(Debug, Clone, PartialEq)]
pub struct Agent {
    pub(crate) config: Config,
    pub(crate) observed: Observed,
    pub(crate) poolers: BTreeMap<String, Pooler>,
    pub(crate) desired: Desired,
    pub(crate) contradictions: Vec<String>,
    pub(crate) now: Time,
    next_id: u64,
    pub(crate) pending: BTreeMap<EffectId, Pending>,
    pub(crate) schedule: Schedule,
    pub(crate) recorder: Recorder,
    wake: Time,
    /// Switches, by cluster name.
    pub(crate) switches: BTreeMap<String, SwitchState>,
    /// The daemon was told to stop.
    pub(crate) ending: bool,
    /// Answers of hooks that are not given yet.
    pub(crate) answers: Vec<(HookId, HookAnswer)>,
    /// Poolers to take out of the registry (cluster, node).
    pub(crate) forgotten: Vec<(String, String)>,
}

impl Agent {
    /// An agent that knows what an earlier run left behind.
    pub fn new(config: Config, restored: Restored, now: Time) -> Self {
        let pooler = |p: &PoolerConfig| {
            let good = restored.last_good.get(&p.name).cloned();
            let borrowed = restored.borrowed_login_retry.get(&p.name).cloned();
            let cuts = restored.cut.get(&p.name).cloned().unwrap_or_default();
            let mut pooler = Pooler::new(good, borrowed, cuts, now);
            pooler.pause = restored.pauses.get(&p.name).map(|pause| OwnPause::inherited(pause.clone(), now));
            (p.name.clone(), pooler)
        };
        Agent {
            observed: Observed::new(&config, &restored.terms),
            switches: config.clusters.iter().map(|c| (c.name.clone(), SwitchState::default())).collect(),
            ending: false,
            answers: Vec::new(),
            forgotten: Vec::new(),
            poolers: config.poolers.iter().map(pooler).collect(),
            config,
            desired: Desired::default(),
            contradictions: Vec::new(),
            now,
            next_id: 1,
            pending: BTreeMap::new(),
            schedule: Schedule::default(),
            recorder: Recorder::default(),
            wake: now,
        }
    }

    /// Takes a fact and gives the orders that follow from it. `now` never goes back: an earlier time counts as the last.
    pub fn handle(&mut self, now: Time, event: Event) -> Vec<Effect> {
        self.now = self.now.max(now);
        self.observe(event);
        self.confirm_candidates();
        self.hear_words();
        self.raise_terms();
        let mut effects = Vec::new();
        self.step_switches(&mut effects);
        self.keep_terms(&mut effects);
        self.desired = plan(&self.config, &self.observed, &Facts(&self.poolers, &self.config), self.now);
        self.contradictions = lint(&self.config, &self.desired, &self.shared_entries());
        self.reconcile_poolers(&mut effects);
        self.publish(&mut effects);
        let (questions, next) = self.schedule.due(&self.config, &self.observed, &self.switches, self.now);
        for (question, order, reason) in questions {
            // An earlier one that was never answered is forgotten.
            self.pending.retain(|_, p| !matches!(p, Pending::Question(q) if *q == question));
            effects.push(self.effect(order, reason, Some(Pending::Question(question))));
        }
        self.wake = next;
        self.note_changes();
        for entry in self.recorder.take() {
            effects.push(Effect {
                id: EffectId(0),
                order: Order::Record(entry),
                reason: Reason::new(Rule::OnceOnly, "the flight recorder"),
            });
        }
        effects
    }

    /// When to call [`handle`](Self::handle) with [`Event::Tick`] if nothing else happens.
    pub fn next_wake(&self) -> Time {
        let poolers = self.poolers.values().filter(|p| p.in_flight.is_none());
        let due =
            poolers.flat_map(|p| [p.files_due, p.look_due, p.back_off.until]).filter(|at| *at > self.now);
        due.chain([self.wake, self.now + IDLE, switching::wake(&self.switches, self.now)])
            .min()
            .unwrap_or(self.now + IDLE)
    }

    /// What every route of this host must lead to now.
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// The configuration in force.
    pub fn config(&self) -> &Config {
        &self.config
    }

    fn observe(&mut self, event: Event) {
        let now = self.now;
        match event {
            Event::Tick => {}
            Event::Configured(config) => self.reconfigure(config),
            Event::StoreRead { cluster, read } => {
                if let Some(view) = self.observed.clusters.get_mut(&cluster) {
                    view.observe_read(&self.config, now, read);
                }
            }
            Event::StoreChanged { cluster, change } => {
                let Some(view) = self.observed.clusters.get_mut(&cluster) else { return };
                // The read tells how long the new leader's lease lives. Only a verdict about this host's server rests on
                // that: a thousand poolers need not all ask at the moment in which the store has the most to do.
                let here = self.config.local.as_ref().is_some_and(|local| local.cluster == cluster);
                if view.observe_change(&self.config, now, change) && here {
                    self.schedule.hurry(&Question::Store(cluster));
                }
            }
            Event::StoreFailed { cluster, why } => {
                if let Some(view) = self.observed.clusters.get_mut(&cluster) {
                    view.failed = Some(why);
                }
            }
            Event::PeersRead { .. }
            | Event::PeersChanged { .. }
            | Event::PeersFailed { .. }
            | Event::LeaseKept { .. }
            | Event::ServerSeen { .. }
            | Event::HookAsked { .. }
            | Event::HookLost { .. }
            | Event::Stopping
            | Event::PoolerForgotten { .. } => self.observe_switch(event),
            Event::Hinted(hint) => self.take_hint(hint),
            Event::TermForgotten { cluster } => self.forget_term(&cluster),
            Event::Done { id, started, outcome } => self.observe_done(id, started, outcome),
        }
    }

    fn take_hint(&mut self, hint: Hint) {
        match hint {
            Hint::Callback { .. } => {
                for cluster in &self.config.clusters {
                    self.schedule.hurry(&Question::Store(cluster.name.clone()));
                }
                self.schedule.hurry(&Question::Local);
                self.schedule.hurry(&Question::LocalPatroni);
            }
            Hint::FilesChanged { pooler } => {
                if let Some(pooler) = self.poolers.get_mut(&pooler) {
                    pooler.files_due = self.now;
                }
            }
        }
    }

    fn reconfigure(&mut self, config: Config) {
        let clusters = config.clusters.iter().map(|c| {
            let view = self.observed.clusters.remove(&c.name).unwrap_or_else(|| ClusterView::new(None));
            (c.name.clone(), view)
        });
        self.observed.clusters = clusters.collect();
        let mut poolers = BTreeMap::new();
        for new in &config.poolers {
            let same_file = self.config.pooler(&new.name).is_some_and(|old| old.ini == new.ini);
            let old = self.poolers.remove(&new.name).filter(|_| same_file);
            poolers.insert(
                new.name.clone(),
                old.unwrap_or_else(|| Pooler::new(None, None, Vec::new(), self.now)),
            );
        }
        self.poolers = poolers;
        // The shell replaced its workers: what was asked of the old ones will not be answered.
        self.pending.clear();
        self.schedule = Schedule::default();
        let switches = config.clusters.iter().map(|c| {
            let mut state = self.switches.remove(&c.name).unwrap_or_default();
            state.published.start_over();
            state.watched = None;
            (c.name.clone(), state)
        });
        self.switches = switches.collect();
        for pooler in self.poolers.values_mut() {
            pooler.start_over(self.now);
        }
        self.config = config;
        self.recorder.say(self.now, "config", &self.config.node, "a new configuration is in force");
    }

    fn reconcile_poolers(&mut self, effects: &mut Vec<Effect>) {
        let names: Vec<String> = self.poolers.keys().cloned().collect();
        for name in names {
            let Some(pooler) = self.poolers.get_mut(&name) else { continue };
            let empty = BTreeMap::new();
            let decisions = self.desired.poolers.get(&name).unwrap_or(&empty);
            reconcile::take_notes(pooler, decisions, self.now);
            reconcile::note_moves(pooler, decisions, self.now);
            switching::note_holds(&self.config, &name, pooler, decisions, &self.switches, self.now);
            if let Some(lost) = pooler.in_flight.take_if(|f| self.now.since(f.since) > LOST_AFTER) {
                let why = "the order was never answered".into();
                pooler.observe_done(self.now, lost.since, lost.order, Outcome::Failed { why });
            }
            if pooler.in_flight.is_some() {
                continue;
            }
            let change =
                reconcile::may_change(&self.config, pooler, self.now) && self.contradictions.is_empty();
            let about_pause = switching::pause_order(
                &self.config,
                &name,
                pooler,
                decisions,
                &self.switches,
                &switching::Moment { agent_stops: self.ending, now: self.now },
            );
            let next = about_pause.or_else(|| {
                change.then(|| reconcile::next_change(&self.config, pooler, decisions, self.now)).flatten()
            });
            let Some((order, reason)) = next.or_else(|| reconcile::next_question(pooler, self.now)) else {
                continue;
            };
            if order.changes() {
                self.recorder.say(self.now, "order", &name, format!("{order}: {}", reason.text));
            }
            let id = self.take_id();
            if let Some(pooler) = self.poolers.get_mut(&name) {
                pooler.in_flight = Some(InFlight { id, order: order.clone(), since: self.now });
            }
            effects.push(Effect { id, order: Order::Pooler { pooler: name, order }, reason });
        }
    }

    /// Entries that stand in one file, but are routed by several poolers (`%include`).
    fn shared_entries(&self) -> BTreeMap<(String, String), Vec<String>> {
        let mut places: BTreeMap<(String, String), Vec<String>> = BTreeMap::new();
        if self.poolers.len() < 2 {
            return places;
        }
        for config in &self.config.poolers {
            let disk = self.poolers.get(&config.name).and_then(|p| p.disk.last());
            for entry in config.routes.keys() {
                if let Some(file) = disk.and_then(|disk| disk.places.get(entry)) {
                    places.entry((file.clone(), entry.clone())).or_default().push(config.name.clone());
                }
            }
        }
        places.retain(|_, poolers| poolers.len() > 1);
        places
    }

    pub(crate) fn effect(&mut self, order: Order, reason: Reason, pending: Option<Pending>) -> Effect {
        let id = self.take_id();
        if let Some(pending) = pending {
            self.pending.insert(id, pending);
        }
        Effect { id, order, reason }
    }

    fn take_id(&mut self) -> EffectId {
        let id = EffectId(self.next_id);
        self.next_id += 1;
        id
    }
}

struct Facts<'a>(&'a BTreeMap<String, Pooler>, &'a Config);

impl PoolerFacts for Facts<'_> {
    fn version(&self, pooler: &str) -> Option<(u32, u32)> {
        self.0.get(pooler)?.console.last().map(|view| view.version)
    }

    fn on_disk(&self, pooler: &str, entry: &str) -> Option<Endpoint> {
        self.0.get(pooler)?.disk.last()?.entries.get(entry).cloned()
    }

    fn waits(&self, pooler: &str) -> bool {
        let (Some(config), Some(known)) = (self.1.pooler(pooler), self.0.get(pooler)) else { return false };
        let_go::all_wait(config, known)
    }
}
