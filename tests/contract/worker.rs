//! A worker of the agent under test: orders in, events out.

use crate::processes::PATIENCE;
use pgsquire_core::effect::{Effect, EffectId, Order};
use pgsquire_core::event::{Event, Outcome};
use pgsquire_core::rule::{Reason, Rule};
use std::future::Future;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// It, and the test in the place of the driver.
pub struct Worker {
    orders: Sender<Effect>,
    events: Receiver<Event>,
    stop: CancellationToken,
    task: JoinHandle<()>,
    next_id: u64,
}

impl Worker {
    /// Starts a worker with a channel of so many events.
    pub fn start<F>(
        room: usize,
        run: impl FnOnce(Receiver<Effect>, Sender<Event>, CancellationToken) -> F,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (orders, inbox) = mpsc::channel(16);
        let (told, events) = mpsc::channel(room);
        let stop = CancellationToken::new();
        let task = tokio::spawn(run(inbox, told, stop.clone()));
        Worker { orders, events, stop, task, next_id: 0 }
    }

    /// Gives an order and does not wait.
    pub async fn order(&mut self, order: Order) -> EffectId {
        self.next_id += 1;
        let id = EffectId(self.next_id);
        let reason = Reason::new(Rule::HandsOff, "contract test");
        self.orders.send(Effect { id, order, reason }).await.unwrap();
        id
    }

    /// The next event.
    pub async fn next(&mut self) -> Event {
        let event = timeout(PATIENCE, self.events.recv()).await.expect("no event within a minute");
        event.expect("the worker ended unasked")
    }

    /// Gives an order and waits for its outcome; other events in between are dropped.
    pub async fn outcome(&mut self, order: Order) -> Outcome {
        let ordered = self.order(order).await;
        loop {
            match self.next().await {
                Event::Done { id, outcome, .. } if id == ordered => return outcome,
                _ => {}
            }
        }
    }

    /// How many events wait to be heard.
    pub fn waiting(&self) -> usize {
        self.events.len()
    }

    /// Ends it as a crash would: nothing of it runs any more.
    pub async fn abort(self) {
        self.task.abort();
        assert!(self.task.await.unwrap_err().is_cancelled());
    }

    /// Ends it at once, wherever it is.
    pub async fn crash(&mut self) {
        self.task.abort();
        assert!((&mut self.task).await.is_err_and(|e| e.is_cancelled()));
    }

    /// Ends it in order.
    pub async fn stop(self) {
        self.stop.cancel();
        timeout(PATIENCE, self.task).await.expect("the worker does not stop").unwrap();
    }
}
