//! How a store is followed, whichever it is.

use super::Report;
use crate::clock;
use crate::report::NobodyListens;
use pgsquire_core::effect::{Effect, EffectId, Order};
use pgsquire_core::event::{Event, Outcome, StoreChange, StoreRead};
use pgsquire_core::time::Time;
use std::collections::hash_map::RandomState;
use std::future::{Future, pending};
use std::hash::BuildHasher;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

/// A store with its endpoints. Endpoints are numbers to the follower.
pub(super) trait Store: Send + Sync {
    /// A running watch.
    type Watch: Watch;
    /// Reads everything from the first endpoint that answers. The error is a sentence about all of them.
    fn read(&self) -> impl Future<Output = Result<Reading, String>> + Send;
    /// Watches one endpoint for what happens after the read.
    fn watch(&self, after: &Reading) -> impl Future<Output = Result<Self::Watch, WatchEnd>> + Send;
    /// Begin the next read elsewhere.
    fn avoid(&self, endpoint: usize);
}

/// A running watch.
pub(super) trait Watch: Send {
    /// The next changes, by revision and in order. May be dropped and called again without a loss.
    fn next(&mut self) -> impl Future<Output = Result<Vec<StoreChange>, WatchEnd>> + Send;
}

/// A read and where it came from.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) read: StoreRead,
    pub(super) endpoint: usize,
}

/// Why a watch ended.
#[derive(Debug)]
pub(super) struct WatchEnd {
    pub(super) why: String,
    /// The endpoint itself is at fault.
    pub(super) endpoint_failed: bool,
}

/// Whose keys are followed: what is read of them is told in different words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// Patroni's.
    Patronis,
    /// Those of the agents.
    Agents,
}

impl Whose {
    fn read(self, cluster: String, read: StoreRead) -> Event {
        match self {
            Whose::Patronis => Event::StoreRead { cluster, read },
            Whose::Agents => Event::PeersRead { cluster, read },
        }
    }

    fn changed(self, cluster: String, change: StoreChange) -> Event {
        match self {
            Whose::Patronis => Event::StoreChanged { cluster, change },
            Whose::Agents => Event::PeersChanged { cluster, change },
        }
    }

    fn failed(self, cluster: String, why: String) -> Event {
        match self {
            Whose::Patronis => Event::StoreFailed { cluster, why },
            Whose::Agents => Event::PeersFailed { cluster, why },
        }
    }
}

/// What makes the follower read while its watch runs.
pub(super) enum Prompt {
    /// Orders.
    Orders(Receiver<Effect>),
    /// Time: so long after the last read.
    Every(Duration),
}

impl Prompt {
    /// The next order; for ever none if there are no orders.
    async fn order(&mut self) -> Option<Effect> {
        match self {
            Prompt::Orders(orders) => orders.recv().await,
            Prompt::Every(_) => pending().await,
        }
    }

    /// What is to be done next while the watch runs and the last read began then.
    async fn next(&mut self, last: Instant) -> Step {
        match self {
            Prompt::Orders(orders) => Step::Ordered(orders.recv().await),
            Prompt::Every(pause) => {
                sleep_until(last + *pause).await;
                Step::Due
            }
        }
    }
}

/// A watch that lived for this long makes the next failure the first one.
const SETTLED: Duration = Duration::from_secs(5);
/// While changes come faster than reads, a read that was ordered is repeated so many times.
const READS_AT_MOST: u32 = 5;

/// A read beside the watch.
struct Extra<'a> {
    /// How many reads there were for this order, this one included.
    reads: u32,
    read: Pin<Box<dyn Future<Output = Result<Reading, String>> + Send + 'a>>,
}

/// A watch and how far it has led.
struct Running<'a, W> {
    store: String,
    /// Newest revision that is reported.
    reached: u64,
    endpoint: usize,
    watch: W,
    /// Begin of the last read.
    read_at: Instant,
    extra: Option<Extra<'a>>,
}

/// What happens next beside a running watch.
enum Step {
    Changed(Result<Vec<StoreChange>, WatchEnd>),
    Read(Result<Reading, String>),
    Ordered(Option<Effect>),
    Due,
}

/// Whether the watch still runs.
enum Watched {
    Still,
    Not,
}

async fn step<W: Watch>(running: &mut Running<'_, W>, prompt: &mut Prompt) -> Step {
    let idle = running.extra.is_none();
    let Running { watch, extra, read_at, .. } = running;

    let read = async {
        match extra.as_mut() {
            Some(extra) => extra.read.as_mut().await,
            None => pending().await,
        }
    };
    tokio::select! {
        biased;
        changes = watch.next() => Step::Changed(changes),
        read = read => Step::Read(read),
        prompted = prompt.next(*read_at), if idle => prompted,
    }
}

struct Follower<S> {
    whose: Whose,
    cluster: String,
    store: S,
    report: Report,
    /// The order that is not answered yet. The next one is taken when it is.
    open: Mutex<Option<(EffectId, Time)>>,
}

/// Follows until `stop`, or until nobody listens.
pub(super) async fn run<S: Store>(
    whose: Whose,
    cluster: String,
    store: S,
    mut prompt: Prompt,
    report: Report,
    stop: CancellationToken,
) {
    let follower = Follower { whose, cluster, store, report: report.clone(), open: Mutex::new(None) };
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        _ = follower.follow(&mut prompt) => return,
    }
    let why = "the follower of the store was stopped".into();
    let _ = follower.answer(Outcome::Failed { why }).await;
    if let Prompt::Orders(mut orders) = prompt {
        report.refuse(&mut orders).await;
    }
}

impl<S: Store> Follower<S> {
    async fn follow(&self, prompt: &mut Prompt) -> Result<(), NobodyListens> {
        let mut backoff = Backoff::default();
        loop {
            if self.open().is_none() {
                tokio::select! {
                    biased;
                    effect = prompt.order() => { self.accept(effect).await?; }
                    () = sleep(backoff.pause()) => {}
                }
            }
            let read_at = Instant::now();
            match self.store.read().await {
                Err(why) => self.failed(why).await?,
                Ok(reading) => {
                    self.told(&reading).await?;
                    let began = Instant::now();
                    self.watch(reading, read_at, prompt).await?;
                    if began.elapsed() >= SETTLED {
                        backoff = Backoff::default();
                    }
                }
            }
            backoff.failed();
        }
    }

    /// Reports changes, and reads in between when it is ordered or due, until the watch ends.
    async fn watch(
        &self,
        first: Reading,
        read_at: Instant,
        prompt: &mut Prompt,
    ) -> Result<(), NobodyListens> {
        let watch = match self.store.watch(&first).await {
            Ok(watch) => watch,
            Err(end) => return self.ended(first.endpoint, end).await,
        };
        let Reading { read: StoreRead { store, revision: reached, .. }, endpoint } = first;
        let mut running = Running { store, reached, endpoint, watch, read_at, extra: None };
        loop {
            match step(&mut running, prompt).await {
                Step::Changed(Ok(changes)) => {
                    running.reached = self.changed(changes, running.reached).await?;
                }
                Step::Changed(Err(end)) => return self.ended(running.endpoint, end).await,
                Step::Read(Err(why)) => return self.failed(why).await,
                Step::Read(Ok(reading)) => match self.extra_read(&mut running, reading).await? {
                    Watched::Still => {}
                    Watched::Not => return Ok(()),
                },
                Step::Ordered(effect) => {
                    if self.accept(effect).await? {
                        running.extra = Some(self.extra(1));
                    }
                }
                Step::Due => {
                    running.read_at = Instant::now();
                    running.extra = Some(self.extra(1));
                }
            }
        }
    }

    fn extra(&self, reads: u32) -> Extra<'_> {
        Extra { reads, read: Box::pin(self.store.read()) }
    }

    /// Reports a read that was made beside the watch, unless it is older than a change that is already reported: that
    /// would take the change back, so it is read again.
    async fn extra_read<'a>(
        &'a self,
        running: &mut Running<'a, S::Watch>,
        reading: Reading,
    ) -> Result<Watched, NobodyListens> {
        let reads = running.extra.take().map_or(1, |extra| extra.reads);
        let (store, revision, endpoint) = (&reading.read.store, reading.read.revision, reading.endpoint);
        if *store != running.store {
            let why =
                format!("the store of cluster {} was {} and is {store} now", self.cluster, running.store);
            self.told(&reading).await?;
            self.failed(why).await?;
            return Ok(Watched::Not);
        }
        if revision < running.reached {
            if reads < READS_AT_MOST {
                running.extra = Some(self.extra(reads + 1));
            } else {
                let why = format!("cluster {} changed faster than it could be read", self.cluster);
                self.answer(Outcome::Failed { why }).await?;
            }
            return Ok(Watched::Still);
        }
        self.told(&reading).await?;
        running.reached = revision;
        if endpoint != running.endpoint {
            // The watched endpoint did not answer the read: its watch may be dead without knowing it.
            match self.store.watch(&reading).await {
                Ok(watch) => (running.watch, running.endpoint) = (watch, endpoint),
                Err(end) => {
                    self.ended(endpoint, end).await?;
                    return Ok(Watched::Not);
                }
            }
        }
        Ok(Watched::Still)
    }

    fn open(&self) -> MutexGuard<'_, Option<(EffectId, Time)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an order to read. One that is not for us is answered, and `false`.
    async fn accept(&self, effect: Option<Effect>) -> Result<bool, NobodyListens> {
        let Some(Effect { id, order, .. }) = effect else { return Err(NobodyListens) };
        *self.open() = Some((id, clock::now()));
        match order {
            Order::ReadStore { cluster } if cluster == self.cluster => Ok(true),
            other => {
                let why = format!("this is no order for the store of cluster {}: {other:?}", self.cluster);
                self.answer(Outcome::Failed { why }).await.map(|()| false)
            }
        }
    }

    async fn answer(&self, outcome: Outcome) -> Result<(), NobodyListens> {
        let open = self.open().take();
        match open {
            Some((id, started)) => self.report.done(id, started, outcome).await,
            None => Ok(()),
        }
    }

    async fn told(&self, reading: &Reading) -> Result<(), NobodyListens> {
        let read = reading.read.clone();
        self.report.say(self.whose.read(self.cluster.clone(), read)).await?;
        self.answer(Outcome::Done).await
    }

    async fn failed(&self, why: String) -> Result<(), NobodyListens> {
        self.report.say(self.whose.failed(self.cluster.clone(), why.clone())).await?;
        self.answer(Outcome::Failed { why }).await
    }

    /// A watch ended. An open order is answered by the read that follows.
    async fn ended(&self, endpoint: usize, end: WatchEnd) -> Result<(), NobodyListens> {
        if end.endpoint_failed {
            self.store.avoid(endpoint);
        }
        self.report.say(self.whose.failed(self.cluster.clone(), end.why)).await
    }

    /// Reports the changes above `reached` and returns where that leads: those below are part of a read already.
    async fn changed(&self, changes: Vec<StoreChange>, reached: u64) -> Result<u64, NobodyListens> {
        let mut now = reached;
        for change in changes.into_iter().filter(|change| change.revision > reached) {
            now = now.max(change.revision);
            self.report.say(self.whose.changed(self.cluster.clone(), change)).await?;
        }
        Ok(now)
    }
}

/// Pauses between attempts: none after the first failure, then growing and jittered.
#[derive(Debug, Default)]
struct Backoff {
    failures: u32,
}

impl Backoff {
    const MIN: Duration = Duration::from_millis(100);
    const MAX: Duration = Duration::from_secs(5);

    fn failed(&mut self) {
        self.failures = self.failures.saturating_add(1);
    }

    fn ceiling(&self) -> Duration {
        match self.failures {
            0 | 1 => Duration::ZERO,
            n => Self::MAX.min(Self::MIN.saturating_mul(1 << (n - 2).min(16))),
        }
    }

    /// Between half of the ceiling and all of it, and never below the minimum once there is a ceiling.
    fn pause(&self) -> Duration {
        let ceiling = self.ceiling();
        let random = u32::try_from(RandomState::new().hash_one(self.failures) % 1000).unwrap_or(0);
        (ceiling / 2 + ceiling / 2 * random / 1000).max(Self::MIN.min(ceiling))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgsquire_core::rule::{Reason, Rule};
    use std::collections::VecDeque;
    use std::sync::Arc;
    use tokio::sync::mpsc::{self, Sender, UnboundedReceiver, UnboundedSender};
    use tokio::task::JoinHandle;

    type Changes = Result<Vec<StoreChange>, WatchEnd>;

    /// Answers from a script: reads after a while, watches fed by the test.
    #[derive(Default)]
    struct Script {
        reads: Mutex<VecDeque<(Duration, Result<Reading, String>)>>,
        watches: Mutex<VecDeque<UnboundedReceiver<Changes>>>,
        watched: Mutex<Vec<(usize, u64)>>,
        avoided: Mutex<Vec<usize>>,
    }

    impl Store for Arc<Script> {
        type Watch = UnboundedReceiver<Changes>;

        async fn read(&self) -> Result<Reading, String> {
            let next = self.reads.lock().unwrap().pop_front();
            let Some((after, answer)) = next else { return pending().await };
            sleep(after).await;
            answer
        }

        async fn watch(&self, after: &Reading) -> Result<Self::Watch, WatchEnd> {
            self.watched.lock().unwrap().push((after.endpoint, after.read.revision));
            self.watches.lock().unwrap().pop_front().ok_or_else(|| end("no watch left", true))
        }

        fn avoid(&self, endpoint: usize) {
            self.avoided.lock().unwrap().push(endpoint);
        }
    }

    impl Watch for UnboundedReceiver<Changes> {
        async fn next(&mut self) -> Changes {
            match self.recv().await {
                Some(changes) => changes,
                None => pending().await,
            }
        }
    }

    fn end(why: &str, endpoint_failed: bool) -> WatchEnd {
        WatchEnd { why: why.into(), endpoint_failed }
    }

    fn change(revision: u64) -> StoreChange {
        StoreChange { store: "s".into(), revision, changes: vec![("leader".into(), None)] }
    }

    struct World {
        script: Arc<Script>,
        orders: Sender<Effect>,
        events: mpsc::Receiver<Event>,
        stop: CancellationToken,
        task: JoinHandle<()>,
    }

    impl World {
        fn start(script: Arc<Script>) -> World {
            World::with(script, Whose::Patronis, Prompt::Orders)
        }

        fn with(
            script: Arc<Script>,
            whose: Whose,
            prompt: impl FnOnce(mpsc::Receiver<Effect>) -> Prompt,
        ) -> World {
            let (orders, inbox) = mpsc::channel(8);
            let prompt = prompt(inbox);
            let (told, events) = mpsc::channel(64);
            let stop = CancellationToken::new();
            let report = Report::new(told, stop.clone());
            let task = tokio::spawn(run(whose, "main".into(), script.clone(), prompt, report, stop.clone()));
            World { script, orders, events, stop, task }
        }

        async fn order(&self, id: u64) {
            let order = Order::ReadStore { cluster: "main".into() };
            let reason = Reason::new(Rule::FactAge, "test");
            self.orders.send(Effect { id: EffectId(id), order, reason }).await.unwrap();
        }

        /// The next event in short.
        async fn next(&mut self) -> String {
            match self.events.recv().await.unwrap() {
                Event::StoreRead { read, .. } => format!("read {}", read.revision),
                Event::StoreChanged { change, .. } => format!("changed {}", change.revision),
                Event::StoreFailed { why, .. } => format!("failed: {why}"),
                Event::Done { id, outcome: Outcome::Done, .. } => format!("done {}", id.0),
                Event::Done { id, outcome: Outcome::Failed { why }, .. } => {
                    format!("not done {}: {why}", id.0)
                }
                Event::PeersRead { read, .. } => format!("peers read {}", read.revision),
                Event::PeersChanged { change, .. } => format!("peers changed {}", change.revision),
                Event::PeersFailed { why, .. } => format!("peers failed: {why}"),
                other => panic!("{other:?}"),
            }
        }
    }

    impl Script {
        fn will_read(&self, after_ms: u64, endpoint: usize, revision: u64) {
            let read = StoreRead {
                store: "s".into(),
                raft_term: 1,
                revision,
                keys: std::collections::BTreeMap::new(),
                leader_ttl: None,
                beside: Vec::new(),
                started: Time::ZERO,
            };
            let answer = (Duration::from_millis(after_ms), Ok(Reading { read, endpoint }));
            self.reads.lock().unwrap().push_back(answer);
        }

        fn failure(&self, why: &str) {
            self.reads.lock().unwrap().push_back((Duration::ZERO, Err(why.into())));
        }

        fn will_watch(&self) -> UnboundedSender<Changes> {
            let (feed, watch) = mpsc::unbounded_channel();
            self.watches.lock().unwrap().push_back(watch);
            feed
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_never_takes_back_a_change_that_was_reported() {
        let script = Arc::new(Script::default());
        script.will_read(0, 0, 5);
        script.will_read(1000, 0, 5);
        script.will_read(1000, 0, 6);
        let feed = script.will_watch();
        let mut world = World::start(script);
        assert_eq!(world.next().await, "read 5");
        world.order(1).await;
        sleep(Duration::from_millis(500)).await;
        feed.send(Ok(vec![change(6)])).unwrap();
        for told in ["changed 6", "read 6", "done 1"] {
            assert_eq!(world.next().await, told);
        }
        feed.send(Ok(vec![change(5), change(6), change(7)])).unwrap();
        assert_eq!(world.next().await, "changed 7", "what is part of the read is not told again");
    }

    #[tokio::test(start_paused = true)]
    async fn changes_that_outrun_every_read_end_the_order() {
        let script = Arc::new(Script::default());
        let feed = script.will_watch();
        (0..6).for_each(|_| script.will_read(10, 0, 5));
        let mut world = World::start(script);
        assert_eq!(world.next().await, "read 5");
        feed.send(Ok(vec![change(6)])).unwrap();
        assert_eq!(world.next().await, "changed 6");
        world.order(1).await;
        assert_eq!(world.next().await, "not done 1: cluster main changed faster than it could be read");
        feed.send(Ok(vec![change(7)])).unwrap();
        assert_eq!(world.next().await, "changed 7", "the watch goes on");
    }

    #[tokio::test(start_paused = true)]
    async fn a_broken_watch_is_followed_by_a_read_at_once_and_then_by_pauses() {
        let script = Arc::new(Script::default());
        (5..8).for_each(|revision| script.will_read(0, 0, revision));
        let (first, second) = (script.will_watch(), script.will_watch());
        let mut world = World::start(script);
        assert_eq!(world.next().await, "read 5");
        let began = Instant::now();
        first.send(Err(end("compacted", false))).unwrap();
        assert_eq!(world.next().await, "failed: compacted");
        assert_eq!(world.next().await, "read 6");
        assert!(began.elapsed() < Duration::from_millis(50), "{:?}", began.elapsed());
        second.send(Err(end("broken", true))).unwrap();
        assert_eq!(world.next().await, "failed: broken");
        assert_eq!(world.next().await, "read 7");
        assert!(began.elapsed() >= Backoff::MIN, "{:?}", began.elapsed());
        assert_eq!(world.next().await, "failed: no watch left");
        assert_eq!(*world.script.avoided.lock().unwrap(), [0, 0], "not for the compaction");
        assert_eq!(*world.script.watched.lock().unwrap(), [(0, 5), (0, 6), (0, 7)]);
    }

    #[tokio::test(start_paused = true)]
    async fn an_order_is_answered_by_the_read_after_a_broken_watch() {
        let script = Arc::new(Script::default());
        script.will_read(0, 0, 5);
        script.will_read(1000, 0, 5);
        script.will_read(0, 1, 6);
        let (first, _second) = (script.will_watch(), script.will_watch());
        let mut world = World::start(script);
        assert_eq!(world.next().await, "read 5");
        world.order(1).await;
        sleep(Duration::from_millis(500)).await;
        first.send(Err(end("broken", true))).unwrap();
        for told in ["failed: broken", "read 6", "done 1"] {
            assert_eq!(world.next().await, told);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_failed_read_answers_its_order_and_an_order_ends_a_pause() {
        let script = Arc::new(Script::default());
        (0..20).for_each(|_| script.failure("down"));
        let mut world = World::start(script);
        for _ in 0..18 {
            assert_eq!(world.next().await, "failed: down");
        }
        let began = Instant::now();
        world.order(1).await;
        assert_eq!(world.next().await, "failed: down");
        assert_eq!(world.next().await, "not done 1: down");
        assert!(began.elapsed() < Duration::from_millis(50), "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn the_watch_moves_when_its_endpoint_does_not_answer_reads() {
        let script = Arc::new(Script::default());
        script.will_read(0, 0, 5);
        script.will_read(0, 1, 9);
        let (silent, feed) = (script.will_watch(), script.will_watch());
        let mut world = World::start(script);
        assert_eq!(world.next().await, "read 5");
        world.order(1).await;
        assert_eq!(world.next().await, "read 9");
        assert_eq!(world.next().await, "done 1");
        feed.send(Ok(vec![change(10)])).unwrap();
        assert_eq!(world.next().await, "changed 10");
        assert_eq!(*world.script.watched.lock().unwrap(), [(0, 5), (1, 9)]);
        assert!(silent.send(Ok(vec![change(6)])).is_err(), "nobody listens to the old watch");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_answers_what_was_ordered() {
        let script = Arc::new(Script::default());
        script.will_read(0, 0, 5);
        let _feed = script.will_watch();
        let mut world = World::start(script);
        assert_eq!(world.next().await, "read 5");
        for id in [1, 2] {
            world.order(id).await;
        }
        sleep(Duration::from_millis(10)).await;
        world.stop.cancel();
        assert_eq!(world.next().await, "not done 1: the follower of the store was stopped");
        assert_eq!(world.next().await, "not done 2: the worker was stopped before it came to this");
        world.task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn keys_of_agents_are_read_again_by_themselves() {
        let script = Arc::new(Script::default());
        for revision in [5, 6, 7] {
            script.will_read(0, 0, revision);
        }
        let (feed, _again) = (script.will_watch(), script.will_watch());
        let began = Instant::now();
        let mut world = World::with(script, Whose::Agents, |_| Prompt::Every(Duration::from_secs(5)));
        assert_eq!(world.next().await, "peers read 5");
        sleep(Duration::from_secs(3)).await;
        feed.send(Ok(vec![change(6)])).unwrap();
        assert_eq!(world.next().await, "peers changed 6");
        assert_eq!(world.next().await, "peers read 6", "five seconds after the first, whatever came between");
        assert_eq!(began.elapsed().as_secs(), 5);
        feed.send(Err(end("broken", true))).unwrap();
        assert_eq!(world.next().await, "peers failed: broken");
        assert_eq!(world.next().await, "peers read 7");
        assert_eq!(began.elapsed().as_secs(), 5, "a broken watch is not waited for");
        world.stop.cancel();
        world.task.await.unwrap();
    }

    #[test]
    fn the_first_retry_is_at_once_and_later_ones_have_bounds() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.pause(), Duration::ZERO);
        backoff.failed();
        assert_eq!(backoff.pause(), Duration::ZERO);
        for _ in 0..100 {
            backoff.failed();
            let pause = backoff.pause();
            assert!(pause >= Backoff::MIN && pause <= Backoff::MAX, "{pause:?}");
        }
        backoff.failures = u32::MAX;
        backoff.failed();
        assert_eq!(backoff.ceiling(), Backoff::MAX);
    }
}
