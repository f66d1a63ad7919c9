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
use std::time::Duration;
use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, sleep};
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

/// A watch that lived for this long makes the next failure the first one.
const SETTLED: Duration = Duration::from_secs(5);
/// While changes come faster than reads, a read that was ordered is repeated so many times.
const READS_AT_MOST: u32 = 5;

/// An ordered read that is not answered yet.
struct Asked {
    id: EffectId,
    started: Time,
}

/// A read beside the watch.
struct Extra<'a> {
    asked: Asked,
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
    extra: Option<Extra<'a>>,
}

/// What happens next beside a running watch.
enum Step {
    Changed(Result<Vec<StoreChange>, WatchEnd>),
    Read(Result<Reading, String>),
    Ordered(Option<Effect>),
}

/// Whether the watch still runs.
enum Watched {
    Still,
    Not,
}

async fn step<W: Watch>(running: &mut Running<'_, W>, orders: &mut Receiver<Effect>) -> Step {
    let idle = running.extra.is_none();
    let Running { watch, extra, .. } = running;
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
        effect = orders.recv(), if idle => Step::Ordered(effect),
    }
}

struct Follower<S> {
    cluster: String,
    store: S,
    report: Report,
}

/// Follows until `stop`, or until nobody listens. Nothing here must be brought to an end.
pub(super) async fn run<S: Store>(
    cluster: String,
    store: S,
    mut orders: Receiver<Effect>,
    report: Report,
    stop: CancellationToken,
) {
    let follower = Follower { cluster, store, report };
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        _ = follower.follow(&mut orders) => {}
    }
}

impl<S: Store> Follower<S> {
    async fn follow(&self, orders: &mut Receiver<Effect>) -> Result<(), NobodyListens> {
        let mut backoff = Backoff::default();
        let mut asked = None;
        loop {
            if asked.is_none() {
                asked = tokio::select! {
                    biased;
                    effect = orders.recv() => self.asked(effect).await?,
                    () = sleep(backoff.pause()) => None,
                };
            }
            match self.store.read().await {
                Err(why) => self.failed(why, asked.take()).await?,
                Ok(reading) => {
                    self.told(&reading, asked.take()).await?;
                    let began = Instant::now();
                    asked = self.watch(reading, orders).await?;
                    if began.elapsed() >= SETTLED {
                        backoff = Backoff::default();
                    }
                }
            }
            backoff.failed();
        }
    }

    /// Reports changes, and reads in between when it is ordered, until the watch ends. Returns an order that is still
    /// to be answered.
    async fn watch(
        &self,
        first: Reading,
        orders: &mut Receiver<Effect>,
    ) -> Result<Option<Asked>, NobodyListens> {
        let watch = match self.store.watch(&first).await {
            Ok(watch) => watch,
            Err(end) => return self.ended(first.endpoint, end, None).await,
        };
        let Reading { read: StoreRead { store, revision: reached, .. }, endpoint } = first;
        let mut running = Running { store, reached, endpoint, watch, extra: None };
        loop {
            match step(&mut running, orders).await {
                Step::Changed(Ok(changes)) => {
                    running.reached = self.changed(changes, running.reached).await?;
                }
                Step::Changed(Err(end)) => {
                    let asked = running.extra.take().map(|extra| extra.asked);
                    return self.ended(running.endpoint, end, asked).await;
                }
                Step::Read(read) => {
                    let Some(extra) = running.extra.take() else { continue };
                    match read {
                        Err(why) => return self.failed(why, Some(extra.asked)).await.map(|()| None),
                        Ok(reading) => match self.extra_read(&mut running, extra, reading).await? {
                            Watched::Still => {}
                            Watched::Not => return Ok(None),
                        },
                    }
                }
                Step::Ordered(effect) => {
                    let begin = |asked| Extra { asked, reads: 1, read: Box::pin(self.store.read()) };
                    running.extra = self.asked(effect).await?.map(begin);
                }
            }
        }
    }

    /// Reports a read that was made beside the watch, unless it is older than a change that is already reported: that
    /// would take the change back, so it is read again.
    async fn extra_read<'a>(
        &'a self,
        running: &mut Running<'a, S::Watch>,
        extra: Extra<'a>,
        reading: Reading,
    ) -> Result<Watched, NobodyListens> {
        let Extra { asked, reads, .. } = extra;
        let (store, revision, endpoint) = (&reading.read.store, reading.read.revision, reading.endpoint);
        if *store != running.store {
            let why =
                format!("the store of cluster {} was {} and is {store} now", self.cluster, running.store);
            self.told(&reading, Some(asked)).await?;
            self.failed(why, None).await?;
            return Ok(Watched::Not);
        }
        if revision < running.reached {
            if reads < READS_AT_MOST {
                running.extra = Some(Extra { asked, reads: reads + 1, read: Box::pin(self.store.read()) });
            } else {
                let why = format!("cluster {} changed faster than it could be read", self.cluster);
                self.report.done(asked.id, asked.started, Outcome::Failed { why }).await?;
            }
            return Ok(Watched::Still);
        }
        self.told(&reading, Some(asked)).await?;
        running.reached = revision;
        if endpoint != running.endpoint {
            // The watched endpoint did not answer the read: its watch may be dead without knowing it.
            match self.store.watch(&reading).await {
                Ok(watch) => (running.watch, running.endpoint) = (watch, endpoint),
                Err(end) => {
                    self.ended(endpoint, end, None).await?;
                    return Ok(Watched::Not);
                }
            }
        }
        Ok(Watched::Still)
    }

    /// The order as ours to answer; an order that is not for us is answered.
    async fn asked(&self, effect: Option<Effect>) -> Result<Option<Asked>, NobodyListens> {
        let Some(Effect { id, order, .. }) = effect else { return Err(NobodyListens) };
        let started = clock::now();
        match order {
            Order::ReadStore { cluster } if cluster == self.cluster => Ok(Some(Asked { id, started })),
            other => {
                let why = format!("this is no order for the store of cluster {}: {other:?}", self.cluster);
                self.report.done(id, started, Outcome::Failed { why }).await?;
                Ok(None)
            }
        }
    }

    async fn told(&self, reading: &Reading, asked: Option<Asked>) -> Result<(), NobodyListens> {
        let read = reading.read.clone();
        self.report.say(Event::StoreRead { cluster: self.cluster.clone(), read }).await?;
        match asked {
            Some(Asked { id, started }) => self.report.done(id, started, Outcome::Done).await,
            None => Ok(()),
        }
    }

    async fn failed(&self, why: String, asked: Option<Asked>) -> Result<(), NobodyListens> {
        self.report.say(Event::StoreFailed { cluster: self.cluster.clone(), why: why.clone() }).await?;
        match asked {
            Some(Asked { id, started }) => self.report.done(id, started, Outcome::Failed { why }).await,
            None => Ok(()),
        }
    }

    async fn ended(
        &self,
        endpoint: usize,
        end: WatchEnd,
        asked: Option<Asked>,
    ) -> Result<Option<Asked>, NobodyListens> {
        if end.endpoint_failed {
            self.store.avoid(endpoint);
        }
        self.failed(end.why, None).await?;
        Ok(asked)
    }

    /// Reports the changes above `reached` and returns where that leads: those below are part of a read already.
    async fn changed(&self, changes: Vec<StoreChange>, reached: u64) -> Result<u64, NobodyListens> {
        let mut now = reached;
        for change in changes.into_iter().filter(|change| change.revision > reached) {
            now = now.max(change.revision);
            self.report.say(Event::StoreChanged { cluster: self.cluster.clone(), change }).await?;
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
