//! A worker that carries out one order after the other: it takes an order, does it, and says what became of it.

use crate::clock;
use crate::report::{Report, outcome};
use pgsquire_core::effect::{Effect, Order};
use pgsquire_core::event::{Event, Outcome};
use std::future::pending;
use tokio::sync::mpsc::{Receiver, Sender};
use tokio_util::sync::CancellationToken;

/// What one thing outside is done with.
pub trait Worker: Send {
    /// Carries out an order. It is brought to its end, also during a stop.
    fn execute(&mut self, order: Order) -> impl Future<Output = Result<Outcome, String>> + Send;

    /// Drives what is kept between orders. It is dropped when an order comes, and called again when it has ended.
    fn watch(&mut self) -> impl Future<Output = ()> + Send {
        pending()
    }

    /// Lets go of what is kept. The last thing that is done, however the work ended.
    fn end(&mut self) -> impl Future<Output = ()> + Send {
        async {}
    }
}

/// Works until `stop`, or until nobody listens.
pub async fn work(
    mut worker: impl Worker,
    mut orders: Receiver<Effect>,
    events: Sender<Event>,
    stop: CancellationToken,
) {
    let report = Report::new(events, stop.clone());
    loop {
        let effect = tokio::select! {
            biased;
            () = stop.cancelled() => None,
            effect = orders.recv() => effect,
            () = worker.watch() => continue,
        };
        let Some(Effect { id, order, .. }) = effect else { break };
        let started = clock::now();
        let result = worker.execute(order).await;
        if report.done(id, started, outcome(result)).await.is_err() {
            break;
        }
    }
    worker.end().await;
    report.refuse(&mut orders).await;
}
