//! No store: the members' REST API alone. Each member is asked by itself, again and again, and what they say is told as the
//! keys of a store ([`pgsquire_core::rest`]).

mod ask;
#[cfg(test)]
mod tests;

use crate::clock;
use crate::patroni::{self, build_client};
use crate::report::{NobodyListens, Report};
use ask::{Heard, What};
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use pgsquire_core::effect::{Effect, EffectId, Order};
use pgsquire_core::event::{Event, Outcome};
use pgsquire_core::patroni::Keys;
use pgsquire_core::rest::Members;
use pgsquire_core::rule::Mutants;
use pgsquire_core::time::Time;
use reqwest::Client;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::mpsc::{Receiver, Sender};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// From one question to a member to the next, while no more than [`MANY`] hosts ask.
pub const PACE: Duration = Duration::from_millis(150);
/// With more of them each asks less often, so that a member has no more to answer.
pub const MANY: u32 = 10;
/// Who is there is asked again after a failure, but not sooner than this; it doubles up to the usual pause.
const LIST_AGAIN: Duration = Duration::from_secs(1);
/// Certificates that nobody accepts are read again after this.
const CLIENT_AGAIN: Duration = Duration::from_secs(5);

/// What the follower must know.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// Name of the cluster in our words.
    pub cluster: String,
    /// Patroni's scope.
    pub scope: String,
    /// Base addresses of some members. The others are found.
    pub hosts: Vec<String>,
    /// How many hosts ask, this one included.
    pub pollers: u32,
    /// An answer counts for so long.
    pub max_fact_age: Duration,
    /// Whom to trust, and what to show.
    pub tls: patroni::WorkerConfig,
}

impl WorkerConfig {
    /// From one question to a member to the next.
    pub fn pace(&self) -> Duration {
        (PACE * self.pollers.max(MANY) / MANY).min(self.list_pace())
    }

    /// From one question who is there to the next.
    fn list_pace(&self) -> Duration {
        self.max_fact_age / 3
    }
}

/// What the driver was told last.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    /// Nothing.
    Nothing,
    /// Keys, but for positions in the log.
    Keys(Keys),
    /// That nobody answers.
    Failure,
}

struct Follower {
    config: WorkerConfig,
    report: Report,
    members: Members,
    told: Told,
    /// The order that is not answered yet.
    open: Option<(EffectId, Time)>,
    client: Option<(Client, Instant)>,
    asking: FuturesUnordered<BoxFuture<'static, Heard>>,
    /// Addresses that are asked for their member's status.
    addresses: BTreeMap<String, Asked>,
    /// The last [`Asked::round`].
    round: u64,
    list: List,
}

/// An address.
struct Asked {
    /// Unlike that of any other address, and of the same one when it was left and comes back: what was asked before counts
    /// for nothing.
    round: u64,
    /// It has answered, or not, at least once.
    tried: bool,
}

/// When who is there is asked next.
struct List {
    out: bool,
    due: Instant,
    failures: u32,
    /// Who was asked last: the next one is another.
    last: Option<String>,
    /// Who answered then without being listed.
    strangers: BTreeSet<String>,
}

/// Follows a cluster until `stop`, or until nobody listens.
pub async fn run(
    config: WorkerConfig,
    mut orders: Receiver<Effect>,
    events: Sender<Event>,
    stop: CancellationToken,
) {
    let report = Report::new(events, stop.clone());
    let mut follower = Follower::new(config, report.clone());
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        _ = follower.follow(&mut orders) => return,
    }
    if let Some((id, started)) = follower.open.take() {
        let why = "the follower of the members was stopped".into();
        let _ = report.done(id, started, Outcome::Failed { why }).await;
    }
    report.refuse(&mut orders).await;
}

impl Follower {
    fn new(config: WorkerConfig, report: Report) -> Self {
        Follower {
            members: Members::new(&config.scope, config.max_fact_age),
            config,
            report,
            told: Told::Nothing,
            open: None,
            client: None,
            asking: FuturesUnordered::new(),
            addresses: BTreeMap::new(),
            round: 0,
            list: List {
                out: false,
                due: Instant::now(),
                failures: 0,
                last: None,
                strangers: BTreeSet::new(),
            },
        }
    }

    async fn follow(&mut self, orders: &mut Receiver<Effect>) -> Result<(), NobodyListens> {
        self.ask_all();
        loop {
            tokio::select! {
                biased;
                Some(heard) = self.asking.next() => self.hear(heard),
                effect = orders.recv() => self.accept(effect.ok_or(NobodyListens)?).await?,
            }
            self.ask_who_is_there();
            self.tell().await?;
        }
    }

    async fn accept(&mut self, effect: Effect) -> Result<(), NobodyListens> {
        let Effect { id, order, .. } = effect;
        match order {
            Order::ReadStore { cluster } if cluster == self.config.cluster => {
                self.open = Some((id, clock::now()));
                Ok(())
            }
            other => {
                let why =
                    format!("this is no order for the members of cluster {}: {other:?}", self.config.cluster);
                self.report.done(id, clock::now(), Outcome::Failed { why }).await
            }
        }
    }

    /// An answer came, or none in time. Whoever it was is asked again.
    fn hear(&mut self, heard: Heard) {
        let Heard { base, began, started, what } = heard;
        match what {
            What::Status(round, result) => {
                let Some(asked) = self.addresses.get_mut(&base).filter(|asked| asked.round == round) else {
                    return;
                };
                asked.tried = true;
                match result {
                    Ok((code, body)) => {
                        // Why it is refused is part of what is told.
                        let _ = self.members.hear(&base, code, &body, started, clock::now());
                    }
                    Err(why) => self.members.miss(&base, why),
                }
                // Under its own address it is asked anyway; under this one now and then, to know that it is there.
                let alias = self.members.is_alias(&base);
                let pace = if alias { self.config.list_pace() } else { self.config.pace() };
                self.ask(base, round, began + pace);
            }
            What::List(result) => {
                let read = result.and_then(|(cluster, config)| self.members.list(&cluster, &config));
                self.listed(&base, read);
            }
        }
    }

    /// Who is there was told, or was not.
    fn listed(&mut self, base: &str, read: Result<(), String>) {
        self.list.out = false;
        let usual = self.config.list_pace();
        let pause = match read {
            Ok(()) => {
                self.list.failures = 0;
                self.ask_all();
                usual
            }
            Err(why) => {
                self.members.not_listed(format!("{base}: {why}"));
                self.list.failures += 1;
                LIST_AGAIN.saturating_mul(1 << (self.list.failures - 1).min(16)).min(usual.max(LIST_AGAIN))
            }
        };
        self.list.due = Instant::now() + pause;
    }

    /// Asks those that are named and those that are found, and leaves those that are gone.
    fn ask_all(&mut self) {
        let found = self.members.addresses().map(str::to_owned);
        let wanted: BTreeSet<String> = self.config.hosts.iter().cloned().chain(found).collect();
        for gone in self.addresses.keys().filter(|base| !wanted.contains(*base)) {
            self.members.leave(gone);
        }
        self.addresses.retain(|base, _| wanted.contains(base));
        for new in wanted {
            if !self.addresses.contains_key(&new) {
                self.round += 1;
                self.addresses.insert(new.clone(), Asked { round: self.round, tried: false });
                self.ask(new, self.round, Instant::now());
            }
        }
    }

    fn ask(&mut self, base: String, round: u64, at: Instant) {
        let client = self.client();
        self.asking.push(Box::pin(ask::status(client, base, round, at)));
    }

    /// Asks a member that answers who is there, when it is time: each time another one.
    fn ask_who_is_there(&mut self) {
        // Somebody new is a reason to look at once; one who stays a stranger is none again.
        let is_new = |name: &str| !self.list.strangers.contains(name);
        let hurry = self.list.failures == 0 && self.members.strangers().any(is_new);
        if self.list.out || self.list.due > Instant::now() && !hurry {
            return;
        }
        let after_last = |base: &&str| Some(*base) > self.list.last.as_deref();
        let next = self.members.answering().find(after_last).or_else(|| self.members.answering().next());
        let Some(base) = next.map(str::to_owned) else { return };
        self.list.out = true;
        self.list.strangers = self.members.strangers().map(str::to_owned).collect();
        self.list.last = Some(base.clone());
        let client = self.client();
        self.asking.push(Box::pin(ask::list(client, base)));
    }

    /// The client is built anew while nobody answers: certificates may have been replaced.
    fn client(&mut self) -> Result<Client, String> {
        let silent = self.members.answering().next().is_none();
        let old = |(_, built): &(Client, Instant)| silent && built.elapsed() >= CLIENT_AGAIN;
        if self.client.as_ref().is_none_or(old) {
            self.client = Some((build_client(&self.config.tls)?, Instant::now()));
        }
        self.client.as_ref().map(|(client, _)| client.clone()).ok_or_else(String::new)
    }

    /// Tells what changed, and whatever was ordered.
    async fn tell(&mut self) -> Result<(), NobodyListens> {
        let (mutants, now) = (Mutants::default(), clock::now());
        match self.members.outline(&mutants, now) {
            Ok(keys) => {
                let news = Told::Keys(keys);
                if self.told == news && self.open.is_none() {
                    return Ok(());
                }
                self.told = news;
                let cluster = self.config.cluster.clone();
                if let Ok(read) = self.members.read(&mutants, now) {
                    self.report.say(Event::StoreRead { cluster, read }).await?;
                }
                self.answer(Outcome::Done).await
            }
            // Not before each has had its chance.
            Err(why) if self.addresses.values().all(|asked| asked.tried) && !self.list.out => {
                if self.told != Told::Failure {
                    self.told = Told::Failure;
                    let cluster = self.config.cluster.clone();
                    self.report.say(Event::StoreFailed { cluster, why: why.clone() }).await?;
                }
                self.answer(Outcome::Failed { why }).await
            }
            Err(_) => Ok(()),
        }
    }

    async fn answer(&mut self, outcome: Outcome) -> Result<(), NobodyListens> {
        match self.open.take() {
            Some((id, started)) => self.report.done(id, started, outcome).await,
            None => Ok(()),
        }
    }
}
