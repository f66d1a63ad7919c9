//! An agent without a host around it: the real followers and the real core in a loop like the daemon's. Members are not
//! asked and there is no PgBouncer: what is measured ends with the decision.

use crate::patronis::{CLUSTER, PREFIX};
use anyhow::{Context, Result};
use pgsquire::clock;
use pgsquire::dcs::{self, StoreConfig, WorkerConfig, rest};
use pgsquire_core::agent::Agent as Mind;
use pgsquire_core::config::{
    ClusterConfig, Config, Mode, OnDcsLoss, PoolerConfig, Route, RouteTo, SwitchConfig, Truth,
};
use pgsquire_core::effect::{Effect, Order};
use pgsquire_core::event::{Event, Outcome, Restored};
use std::collections::VecDeque;
use std::time::Duration;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// As the daemon has it when nothing is set.
pub const MAX_FACT_AGE: Duration = Duration::from_secs(10);
/// Room for events and for a worker's orders, as the daemon has it.
const EVENTS: usize = 1024;
const ORDERS: usize = 32;
/// Nothing here takes a tenth of it; it is for a machine that is busy with something else.
const PATIENCE: Duration = Duration::from_secs(120);

/// Where an agent learns who leads.
pub enum Source {
    /// A store.
    Store(StoreConfig),
    /// Members, by their base addresses.
    Members(rest::WorkerConfig),
}

/// Who leads, and when the core had decided so.
#[derive(Clone, Debug)]
struct Seen {
    leader: Option<String>,
    at: Instant,
}

/// A running agent. Dropped, it ends.
pub struct Agent {
    seen: watch::Receiver<Seen>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Agent {
    /// Starts one with all its workers for the source.
    pub fn start(node: &str, source: Source) -> Agent {
        let (events, facts) = mpsc::channel(EVENTS);
        let (told, seen) = watch::channel(Seen { leader: None, at: Instant::now() });
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let truth = match &source {
            Source::Store(_) => Truth::Store,
            Source::Members(config) => Truth::Members { pollers: config.pollers },
        };
        let (reads, inbox) = mpsc::channel(ORDERS);
        let (puts, to_put) = mpsc::channel(ORDERS);
        match source {
            Source::Store(store) => {
                let config =
                    |prefix: String| WorkerConfig { cluster: CLUSTER.into(), prefix, store: store.clone() };
                let ours = config(format!("/pgsquire{PREFIX}"));
                tasks.spawn(dcs::run(config(PREFIX.into()), inbox, events.clone(), stop.clone()));
                tasks.spawn(dcs::run_peers(ours.clone(), events.clone(), stop.clone()));
                tasks.spawn(dcs::run_publisher(ours, to_put, events, stop.clone()));
            }
            Source::Members(config) => {
                tasks.spawn(rest::run(config, inbox, events, stop.clone()));
            }
        }
        let mind = Mind::new(config(node, truth), Restored::default(), clock::now());
        tasks.spawn(think(mind, facts, Hands { reads, puts }, told));
        Agent { seen, stop, tasks }
    }

    /// When the core had decided that this member leads.
    pub async fn knows(&mut self, leader: &str) -> Result<Instant> {
        let known = self.seen.wait_for(|seen| seen.leader.as_deref() == Some(leader));
        let known = timeout(PATIENCE, known).await.with_context(|| {
            format!(
                "an agent does not know that {leader} leads: look whether the servers ran, then run it again"
            )
        })?;
        Ok(known.context("an agent ended unasked: run it again with RUST_BACKTRACE=1")?.at)
    }

    /// Ends it and its workers.
    pub async fn stop(mut self) {
        self.stop.cancel();
        while self.tasks.join_next().await.is_some() {}
    }
}

/// The agent of a host with one pooler.
fn config(node: &str, truth: Truth) -> Config {
    let cluster = ClusterConfig {
        name: CLUSTER.into(),
        max_fact_age: MAX_FACT_AGE,
        on_dcs_loss: OnDcsLoss::Confirm,
        patroni_hosts: Vec::new(),
        truth,
    };
    let to_primary =
        Route { to: RouteTo::Primary, cluster: CLUSTER.into(), max_lag: None, fallback_primary: false };
    let pooler = PoolerConfig {
        name: "p".into(),
        ini: "/p.ini".into(),
        routes: [("app".to_owned(), to_primary)].into(),
    };
    Config {
        node: node.into(),
        mode: Mode::Enforce,
        clusters: vec![cluster],
        local: None,
        poolers: vec![pooler],
        switch: SwitchConfig::default(),
        mutants: Default::default(),
    }
}

/// Who carries out what is ordered.
struct Hands {
    reads: Sender<Effect>,
    puts: Sender<Effect>,
}

/// The daemon's loop: a fact goes in, orders come out. Ends when no worker is left to tell it anything.
async fn think(mut mind: Mind, mut facts: Receiver<Event>, hands: Hands, told: watch::Sender<Seen>) {
    let mut queue = VecDeque::from([Event::Tick]);
    loop {
        let event = match queue.pop_front() {
            Some(event) => event,
            None => {
                let wake = mind.next_wake().since(clock::now()).max(Duration::from_millis(1));
                tokio::select! {
                    biased;
                    event = facts.recv() => match event {
                        Some(event) => event,
                        None => return,
                    },
                    () = tokio::time::sleep(wake) => Event::Tick,
                }
            }
        };
        let about_leader = matches!(event, Event::StoreRead { .. } | Event::StoreChanged { .. });
        let now = clock::now();
        for effect in mind.handle(now, event) {
            dispatch(effect, &hands, &mut queue);
        }
        if about_leader {
            tell(&mind, &told);
        }
    }
}

/// Tells who leads if it is another one now.
fn tell(mind: &Mind, told: &watch::Sender<Seen>) {
    let at = Instant::now();
    let leader = mind.status(clock::now()).clusters.into_iter().find_map(|cluster| cluster.leader);
    told.send_if_modified(|seen| {
        let news = seen.leader != leader;
        if news {
            *seen = Seen { leader, at };
        }
        news
    });
}

/// What is for a store goes there. There is a state folder that takes everything; of the rest nothing exists.
fn dispatch(effect: Effect, hands: &Hands, queue: &mut VecDeque<Event>) {
    let worker = match &effect.order {
        Order::ReadStore { .. } => &hands.reads,
        Order::Publish { .. } | Order::PutKey { .. } => &hands.puts,
        Order::KeepTerm { .. } | Order::WatchServer { .. } => {
            let (id, outcome) = (effect.id, Outcome::Done);
            return queue.push_back(Event::Done { id, started: clock::now(), outcome });
        }
        _ => return,
    };
    let id = effect.id;
    if let Err(e) = worker.try_send(effect) {
        let outcome = Outcome::Failed { why: format!("its worker does not take it: {e}") };
        queue.push_back(Event::Done { id, started: clock::now(), outcome });
    }
}
