//! A watch of one prefix at one endpoint: a blocking query after the other, and a short question beside them. A query may
//! be silent for as long as nothing changes, so only the question tells a quiet endpoint from a frozen one.

use super::client::Door;
use super::{DEADLINE, Listing, list};
use crate::dcs::failover::Failure;
use crate::dcs::follow::{Watch, WatchEnd};
use pgsquire_core::event::{StoreChange, StoreRead};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout};

/// A query without a change is answered after this …
const WAIT: Duration = Duration::from_secs(30);
/// … and a sixteenth, by which Consul spreads its answers, and what the way takes.
const PATIENCE: Duration = Duration::from_millis(30_000 + 30_000 / 16 + 5_000);
/// Pause between questions whether the endpoint lives; an answer must come within [`DEADLINE`].
const ASK_EVERY: Duration = Duration::from_secs(2);
/// So many answers in a row without a leader end the watch: an election takes less.
const LEADERLESS: u32 = 3;
/// An answer without a change that came before this is one that Consul need not have given.
const EARLY: Duration = Duration::from_millis(500);
/// Longest pause after such answers.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A watch on one endpoint.
pub(in crate::dcs) struct ConsulWatch {
    door: Door,
    name: String,
    prefix: String,
    store: String,
    /// Revision of each key as it was told.
    known: BTreeMap<String, u64>,
    /// Newest revision that was told.
    reached: u64,
    /// Index of the last answer; none: the next one is given at once.
    index: Option<u64>,
    /// Answers in a row that came early and told nothing.
    idle: u32,
    asked: Instant,
    query: Boxed<Result<Listing, Failure>>,
    leaderless: u32,
    question: Boxed<Result<bool, Failure>>,
}

impl ConsulWatch {
    pub(super) fn new(door: Door, name: String, prefix: String, read: &StoreRead) -> Self {
        let known = read.keys.iter().map(|(key, stored)| (key.clone(), stored.revision)).collect();
        // The first query has no index: what changed since the read is told at once.
        let query = Box::pin(query(door.clone(), prefix.clone(), None, Duration::ZERO));
        let question = Box::pin(has_leader(door.clone()));
        ConsulWatch {
            door,
            name,
            prefix,
            store: read.store.clone(),
            known,
            reached: read.revision,
            index: None,
            idle: 0,
            asked: Instant::now(),
            query,
            leaderless: 0,
            question,
        }
    }

    fn broke(&self, why: &str, endpoint_failed: bool) -> WatchEnd {
        let why = format!("the watch of {} at Consul endpoint {} broke: {why}", self.prefix, self.name);
        WatchEnd { why, endpoint_failed }
    }

    /// A query was answered, and the next one is asked.
    fn answered(&mut self, answer: Result<Listing, Failure>) -> Result<Vec<StoreChange>, WatchEnd> {
        let result = match answer {
            Ok(listing) => self.take(listing),
            Err(failure) => Err(self.broke(&failure.why, true)),
        };
        let told = !matches!(&result, Ok(changes) if changes.is_empty());
        self.idle = if told || self.asked.elapsed() >= EARLY { 0 } else { self.idle.saturating_add(1) };
        let pause = match self.idle {
            0 | 1 => Duration::ZERO,
            n => LONGEST_PAUSE.min(Duration::from_millis(10) * (1 << n.min(8))),
        };
        self.asked = Instant::now() + pause;
        self.query = Box::pin(query(self.door.clone(), self.prefix.clone(), self.index, pause));
        result
    }

    /// What is new in an answer, by revision: an answer is no proof of a change.
    fn take(&mut self, listing: Listing) -> Result<Vec<StoreChange>, WatchEnd> {
        if self.index.is_some_and(|index| listing.index < index) {
            // Tombstones were reaped, the store was restored, or another server answered: begin anew.
            self.index = None;
            return Ok(Vec::new());
        }
        self.index = Some(listing.index);
        let revisions: BTreeMap<String, u64> =
            listing.keys.iter().map(|(key, stored)| (key.clone(), stored.revision)).collect();
        let mut changes: BTreeMap<u64, Vec<_>> = BTreeMap::new();
        for (key, stored) in listing.keys {
            if self.known.get(&key) != Some(&stored.revision) {
                changes.entry(stored.revision).or_default().push((key, Some(stored)));
            }
        }
        // Consul does not say when a key was deleted; its tombstone is not newer than this.
        let gone = self.known.keys().filter(|key| !revisions.contains_key(*key));
        let gone: Vec<_> = gone.map(|key| (key.clone(), None)).collect();
        if !gone.is_empty() {
            changes.entry(listing.index).or_default().extend(gone);
        }
        if let Some(oldest) = changes.keys().next().filter(|oldest| **oldest <= self.reached) {
            let why = format!("it tells of revision {oldest} after {}: its history is another", self.reached);
            return Err(self.broke(&why, false));
        }
        self.known = revisions;
        self.reached = changes.keys().next_back().copied().unwrap_or(self.reached);
        let store = &self.store;
        let change = |(revision, changes)| StoreChange { store: store.clone(), revision, changes };
        Ok(changes.into_iter().map(change).collect())
    }

    /// The endpoint said whether there is a leader, or did not.
    fn lives(&mut self, answer: Result<bool, Failure>) -> Result<(), WatchEnd> {
        self.question = Box::pin(has_leader(self.door.clone()));
        match answer {
            Ok(true) => self.leaderless = 0,
            Ok(false) => self.leaderless += 1,
            Err(failure) => return Err(self.broke(&failure.why, true)),
        }
        if self.leaderless >= LEADERLESS {
            return Err(self.broke("Consul has no leader", true));
        }
        Ok(())
    }
}

impl Watch for ConsulWatch {
    async fn next(&mut self) -> Result<Vec<StoreChange>, WatchEnd> {
        loop {
            tokio::select! {
                biased;
                answer = &mut self.query => {
                    let changes = self.answered(answer)?;
                    if !changes.is_empty() {
                        return Ok(changes);
                    }
                }
                answer = &mut self.question => self.lives(answer)?,
            }
        }
    }
}

async fn query(door: Door, prefix: String, index: Option<u64>, pause: Duration) -> Result<Listing, Failure> {
    sleep(pause).await;
    let silent = |after: Duration| Failure::unsure(format!("silent for {} s", after.as_secs()));
    match index {
        None => timeout(DEADLINE, list(&door, &prefix, &[])).await.map_err(|_| silent(DEADLINE))?,
        Some(index) => {
            let (index, wait) = (index.to_string(), format!("{}s", WAIT.as_secs()));
            let questions = [("index", index.as_str()), ("wait", wait.as_str())];
            timeout(PATIENCE, list(&door, &prefix, &questions)).await.map_err(|_| silent(PATIENCE))?
        }
    }
}

/// Whether the servers behind the endpoint have a leader, as far as it knows. Needs no right, but an operator may have
/// closed it: then it is enough that the endpoint says so.
async fn has_leader(door: Door) -> Result<bool, Failure> {
    sleep(ASK_EVERY).await;
    let answer = timeout(DEADLINE, door.get("v1/status/leader", &[])).await;
    let silent = |_| Failure::unsure(format!("silent for {} s", DEADLINE.as_secs()));
    match answer.map_err(silent)? {
        Err(failure) if failure.forbidden => Ok(true),
        answer => Ok(!answer?.json::<String>()?.is_empty()),
    }
}
