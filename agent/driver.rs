//! The loop: one task, one order. Facts go into the core, its orders go to the workers, its snapshot goes to everybody.

use crate::clock;
use crate::control::hooks::Hooks;
use crate::journal::Journal;
use crate::systemd;
use pgsquire_core::agent::Agent;
use pgsquire_core::effect::{Effect, Order};
use pgsquire_core::event::{Event, Outcome};
use pgsquire_core::status::Status;
use pgsquire_core::time::Time;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Events taken in one go before the snapshot is published and the watchdog is fed again.
const EVENTS_PER_TURN: usize = 64;

/// Where each kind of order goes.
#[derive(Debug, Default)]
pub struct Hands {
    /// Store followers by cluster.
    pub stores: BTreeMap<String, Sender<Effect>>,
    /// The asker of members' REST APIs, by cluster.
    pub members: BTreeMap<String, Sender<Effect>>,
    /// The asker of this host's Patroni.
    pub local_patroni: Option<Sender<Effect>>,
    /// The prober of this host's PostgreSQL.
    pub postgres: Option<Sender<Effect>>,
    /// Pooler workers by name.
    pub poolers: BTreeMap<String, Sender<Effect>>,
    /// The publisher of our own keys, by cluster.
    pub publishers: BTreeMap<String, Sender<Effect>>,
    /// The watcher of the leader's server, by cluster.
    pub probes: BTreeMap<String, Sender<Effect>>,
    /// The keeper of the state folder.
    pub state: Option<Sender<Effect>>,
}

impl Hands {
    fn of(&self, order: &Order) -> Option<&Sender<Effect>> {
        match order {
            Order::ReadStore { cluster } => self.stores.get(cluster),
            Order::AskMember { cluster, .. } => self.members.get(cluster),
            Order::AskLocalPatroni { .. } => self.local_patroni.as_ref(),
            Order::ProbeLocal => self.postgres.as_ref(),
            Order::KeepTerm { .. } => self.state.as_ref(),
            Order::Pooler { pooler, .. } => self.poolers.get(pooler),
            Order::Publish { cluster, .. } | Order::PutKey { cluster, .. } => self.publishers.get(cluster),
            Order::WatchServer { cluster, .. } => self.probes.get(cluster),
            Order::AnswerHook { .. } | Order::Record(_) => None,
        }
    }
}

/// The driver's other ends.
pub struct Ends {
    /// Facts.
    pub events: Receiver<Event>,
    /// New workers, after the configuration changed.
    pub hands: Receiver<Hands>,
    /// The snapshot.
    pub status: watch::Sender<Arc<Status>>,
    /// The flight recorder.
    pub journal: Journal,
    /// The hooks that wait for an answer.
    pub hooks: Hooks,
    /// Cancelled once the core has heard [`Event::Stopping`] and what it ordered is on its way.
    pub stopping_heard: CancellationToken,
}

/// Runs until `stop`.
pub async fn run(mut agent: Agent, mut hands: Hands, mut ends: Ends, stop: CancellationToken) {
    let mut queue = VecDeque::from([Event::Tick]);
    let mut watchdog = Watchdog::default();
    loop {
        for _ in 0..EVENTS_PER_TURN {
            let Some(event) = queue.pop_front().or_else(|| ends.events.try_recv().ok()) else { break };
            let stopping = event == Event::Stopping;
            for effect in agent.handle(clock::now(), event) {
                dispatch(effect, &hands, &ends, &mut queue);
            }
            if stopping {
                ends.stopping_heard.cancel();
            }
        }
        let _ = ends.status.send_replace(Arc::new(agent.status(clock::now())));
        watchdog.turn_completed();
        if !queue.is_empty() {
            continue;
        }
        let wake = pause(agent.next_wake());
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            Some(new) = ends.hands.recv() => hands = new,
            event = ends.events.recv() => match event {
                Some(event) => queue.push_back(event),
                None => return,
            },
            () = tokio::time::sleep(wake) => queue.push_back(Event::Tick),
        }
    }
}

/// An order without a worker, or with one that has too much to do, fails at once: the core decides again.
fn dispatch(effect: Effect, hands: &Hands, ends: &Ends, queue: &mut VecDeque<Event>) {
    let Effect { id, order, reason } = effect;
    let order = match order {
        Order::Record(entry) => return ends.journal.append(entry),
        Order::AnswerHook { hook, answer } => return ends.hooks.answer(hook, answer),
        order => order,
    };
    tracing::trace!(?order, %reason, "order");
    let why = match hands.of(&order) {
        None => "there is no worker for it".to_owned(),
        Some(worker) => match worker.try_send(Effect { id, order, reason }) {
            Ok(()) => return,
            Err(e) => format!("its worker does not take it: {e}"),
        },
    };
    queue.push_back(Event::Done { id, started: clock::now(), outcome: Outcome::Failed { why } });
}

/// From now until then; a deadline that has passed is a short pause, so that a mistake in the core cannot spin.
fn pause(wake: Time) -> Duration {
    wake.since(clock::now()).max(Duration::from_millis(1))
}

/// Tells systemd that the driver lives. Only completed turns do that.
struct Watchdog {
    pause: Option<Duration>,
    fed: Time,
}

impl Default for Watchdog {
    fn default() -> Self {
        Watchdog { pause: systemd::watchdog_interval(), fed: Time::ZERO }
    }
}

impl Watchdog {
    fn turn_completed(&mut self) {
        let now = clock::now();
        if self.pause.is_some_and(|pause| now.since(self.fed) >= pause / 2) {
            systemd::watchdog();
            self.fed = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgsquire_core::effect::{EffectId, HookAnswer};
    use pgsquire_core::event::HookId;
    use pgsquire_core::rule::{Reason, Rule};
    use tokio::sync::mpsc;

    /// The driver's ends, and the test's.
    fn ends() -> (Agent, Ends, mpsc::Sender<Event>, tempfile::TempDir) {
        let agent = crate::example::agent();
        let state_dir = tempfile::tempdir().expect("folder");
        let (events, facts) = mpsc::channel(10);
        let ends = Ends {
            events: facts,
            hands: mpsc::channel(1).1,
            status: watch::channel(Arc::new(agent.status(clock::now()))).0,
            journal: crate::journal::open(state_dir.path()).0,
            hooks: Hooks::default(),
            stopping_heard: CancellationToken::new(),
        };
        (agent, ends, events, state_dir)
    }

    #[tokio::test]
    async fn that_we_stop_is_heard() {
        let (agent, ends, events, _state_dir) = ends();
        let (heard, stop) = (ends.stopping_heard.clone(), CancellationToken::new());
        let driver = tokio::spawn(run(agent, Hands::default(), ends, stop.clone()));
        events.send(Event::Tick).await.expect("sent");
        assert!(!heard.is_cancelled());
        events.send(Event::Stopping).await.expect("sent");
        let patience = Duration::from_secs(20);
        tokio::time::timeout(patience, heard.cancelled()).await.expect("in time");
        stop.cancel();
        driver.await.expect("ended");
    }

    #[test]
    fn an_answer_to_a_hook_has_no_outcome_and_an_order_without_a_worker_fails() {
        let (_, ends, _events, _state_dir) = ends();
        let mut queue = VecDeque::new();
        let mut give = |order| {
            let reason = Reason::new(Rule::WritableLeader, "");
            dispatch(Effect { id: EffectId(1), order, reason }, &Hands::default(), &ends, &mut queue);
            queue.pop_front()
        };
        let answer = HookAnswer::Return { go_on: true, why: String::new() };
        assert_eq!(give(Order::AnswerHook { hook: HookId(1), answer }), None);
        assert!(matches!(give(Order::ProbeLocal), Some(Event::Done { outcome: Outcome::Failed { .. }, .. })));
    }
}
