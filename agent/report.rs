//! How a worker tells the driver what it did.

use crate::clock;
use pgsquire_core::effect::{Effect, EffectId};
use pgsquire_core::event::{Event, Outcome};
use pgsquire_core::time::Time;
use tokio::sync::mpsc::{Receiver, Sender};
use tokio_util::sync::CancellationToken;

/// The way back from a worker to the driver.
#[derive(Debug, Clone)]
pub struct Report {
    events: Sender<Event>,
    stop: CancellationToken,
}

/// Nobody listens any more: the worker ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NobodyListens;

impl Report {
    /// Reports into `events` until `stop`.
    pub fn new(events: Sender<Event>, stop: CancellationToken) -> Self {
        Report { events, stop }
    }

    /// Tells the driver. During a stop what finds room in the channel is still told.
    ///
    /// # Errors
    /// When the driver is gone, or is stopping with a full channel.
    pub async fn say(&self, event: Event) -> Result<(), NobodyListens> {
        tokio::select! {
            biased;
            sent = self.events.send(event) => sent.map_err(|_| NobodyListens),
            () = self.stop.cancelled() => Err(NobodyListens),
        }
    }

    /// Tells the driver that an effect ended.
    ///
    /// # Errors
    /// As [`Report::say`].
    pub async fn done(&self, id: EffectId, started: Time, outcome: Outcome) -> Result<(), NobodyListens> {
        self.say(Event::Done { id, started, outcome }).await
    }

    /// Answers the orders that a stopped worker has not come to.
    pub async fn refuse(&self, orders: &mut Receiver<Effect>) {
        orders.close();
        while let Ok(Effect { id, .. }) = orders.try_recv() {
            let why = "the worker was stopped before it came to this".into();
            if self.done(id, clock::now(), Outcome::Failed { why }).await.is_err() {
                return;
            }
        }
    }
}

/// The outcome of work that fails with a sentence.
pub fn outcome(result: Result<Outcome, String>) -> Outcome {
    result.unwrap_or_else(|why| Outcome::Failed { why })
}
