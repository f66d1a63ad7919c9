//! How our own keys are put into a store, whichever it is.
//!
//! What was ordered last is wanted, and what the store confirmed is held; the difference is put. A change that nobody
//! answered may still be under way, in a frozen server for instance, and would put old values over new ones when that
//! wakes up. Nothing but the end of its lease stops it, so that lease is given up: the keys move to a new one, the old one
//! is revoked, and the keys are put once more in case the late change was faster than that.

mod state;
mod store;
#[cfg(test)]
mod tests;

pub(super) use store::{Change, Done, Kept, KeyStore, WriteError};

use crate::report::{NobodyListens, Report};
use pgsquire_core::effect::Effect;
use state::{Publisher, polled};
use std::time::Duration;
use tokio::sync::mpsc::Receiver;
use tokio::time::{sleep_until, timeout};
use tokio_util::sync::CancellationToken;

/// How long keys live without their agent.
pub(super) const TTL: Duration = Duration::from_secs(10);
/// An order is answered within this.
const ANSWER: Duration = Duration::from_millis(1_800);
/// First and longest pause before something that failed is tried again without an order.
const PAUSE: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));
/// At the end the lease is revoked within this, or left to end by itself.
const REVOKE: Duration = Duration::from_secs(1);

/// Publishes until `stop`, or until nobody listens.
pub(super) async fn run<S: KeyStore>(
    cluster: String,
    store: S,
    ttl: Duration,
    mut orders: Receiver<Effect>,
    report: Report,
    stop: CancellationToken,
) {
    let mut publisher = Publisher::new(cluster, &store, ttl, report.clone());
    tokio::select! {
        biased;
        () = stop.cancelled() => {}
        // Nobody listens: its driver is gone, and so is this process soon. The keys must not outlive it for long.
        _ = publish(&mut publisher, &mut orders) => {}
    }
    publisher.refuse("the publisher was stopped").await;
    report.refuse(&mut orders).await;
    let leases = publisher.close().await;
    let revoke = futures_util::future::join_all(leases.iter().map(|lease| store.revoke(lease)));
    match timeout(REVOKE, revoke).await {
        Ok(ends) => {
            for why in ends.into_iter().filter_map(Result::err) {
                tracing::warn!("{why}; our keys end with it");
            }
        }
        Err(_) => tracing::warn!("the lease of our keys could not be revoked in time; our keys end with it"),
    }
}

async fn publish<S: KeyStore>(
    publisher: &mut Publisher<'_, S>,
    orders: &mut Receiver<Effect>,
) -> Result<(), NobodyListens> {
    loop {
        publisher.begin().await?;
        let alarm = publisher.alarm();
        let Publisher { working, renewing, revoking, .. } = publisher;
        tokio::select! {
            biased;
            step = polled(working.as_mut().map(|w| &mut w.step)) => publisher.stepped(step).await?,
            effect = orders.recv() => match effect {
                Some(effect) => publisher.take(effect).await?,
                None => return Err(NobodyListens),
            },
            kept = polled(renewing.as_mut()) => publisher.renewed(kept).await?,
            revoked = polled(revoking.as_mut()) => publisher.revoked(revoked),
            () = sleep_until(alarm) => publisher.expire().await?,
        }
    }
}
