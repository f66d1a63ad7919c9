//! Patroni's REST API of the members: `GET /primary`, asked of several members at a time.

use crate::clock;
use crate::https;
use crate::report::{Report, outcome};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use pgsquire_core::effect::{Effect, EffectId, Order};
use pgsquire_core::event::{Event, Outcome};
use pgsquire_core::time::Time;
use reqwest::Client;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc::{Receiver, Sender};
use tokio_util::sync::CancellationToken;

/// A member that has not answered by then has not answered.
pub const DEADLINE: Duration = Duration::from_secs(1);

/// Longer answers are refused, in bytes.
pub const BODY_LIMIT: usize = 1024 * 1024;

/// What the worker must know. Without `tls_ca` no certificate is trusted: `https` members then fail and say so.
#[derive(Debug, Clone, Default)]
pub struct WorkerConfig {
    /// PEM certificates to trust.
    pub tls_ca: Option<PathBuf>,
    /// PEM certificate to show.
    pub tls_cert: Option<PathBuf>,
    /// Its PEM key.
    pub tls_key: Option<PathBuf>,
}

/// Asks members until `stop`, or until nobody listens.
pub async fn run(
    config: WorkerConfig,
    mut orders: Receiver<Effect>,
    events: Sender<Event>,
    stop: CancellationToken,
) {
    let report = Report::new(events, stop.clone());
    let mut client = None;
    let mut asking = FuturesUnordered::new();
    loop {
        let (id, started, answer) = tokio::select! {
            biased;
            // Those already asked answer within their deadline.
            () = stop.cancelled(), if asking.is_empty() => return report.refuse(&mut orders).await,
            Some(answered) = asking.next() => answered,
            effect = orders.recv(), if !stop.is_cancelled() => {
                let Some(Effect { id, order, .. }) = effect else { return };
                let started = clock::now();
                match begin(&config, &mut client, order) {
                    Ok((client, member, url)) => {
                        asking.push(ask(client, id, started, member, url));
                        continue;
                    }
                    Err(why) => (id, started, Err(why)),
                }
            }
        };
        if report.done(id, started, outcome(answer)).await.is_err() {
            return;
        }
    }
}

/// The client is built at the first order, and again as long as its certificates cannot be read.
fn begin(
    config: &WorkerConfig,
    client: &mut Option<Client>,
    order: Order,
) -> Result<(Client, String, String), String> {
    let (member, url) = match order {
        Order::AskMember { member, url, .. } => (member, url),
        Order::AskLocalPatroni { url } => ("on this host".into(), url),
        order => return Err(format!("this is no order for Patroni's members: {order:?}")),
    };
    let ready = match client.take() {
        Some(client) => client,
        None => build_client(config)?,
    };
    *client = Some(ready.clone());
    Ok((ready, member, url))
}

/// A client that trusts only the certificates it is given, and works on a host without any.
///
/// # Errors
/// A sentence, when a certificate or key cannot be used.
pub fn build_client(config: &WorkerConfig) -> Result<Client, String> {
    let WorkerConfig { tls_ca, tls_cert, tls_key } = config;
    https::builder(tls_ca.as_deref(), tls_cert.as_deref(), tls_key.as_deref())?
        .connect_timeout(DEADLINE)
        .timeout(DEADLINE)
        .build()
        .map_err(|e| format!("no HTTP client for Patroni's members: {}", words(&e)))
}

async fn ask(
    client: Client,
    id: EffectId,
    started: Time,
    member: String,
    url: String,
) -> (EffectId, Time, Result<Outcome, String>) {
    let address = question(&url);
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let answer = get(&client, &address).await.map(|(code, body)| Outcome::Member { code, body, wall });
    (id, started, answer.map_err(|why| format!("member {member} gave no answer at {address}: {why}")))
}

/// Code and body of what is at an address.
///
/// # Errors
/// A sentence.
pub(crate) async fn get(client: &Client, address: &str) -> Result<(u16, Vec<u8>), String> {
    let mut response = client.get(address).send().await.map_err(|e| words(&e))?;
    let code = response.status().as_u16();
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| words(&e))? {
        if body.len() + chunk.len() > BODY_LIMIT {
            return Err(format!("the answer is longer than {} kB", BODY_LIMIT >> 10));
        }
        body.extend_from_slice(&chunk);
    }
    Ok((code, body))
}

/// Patroni publishes the address of its status page (`http://host:8008/patroni`) as its API's address.
fn question(url: &str) -> String {
    let base = url.trim_end_matches('/');
    format!("{}/primary", base.strip_suffix("/patroni").unwrap_or(base))
}

fn words(error: &reqwest::Error) -> String {
    match error.is_timeout() {
        true => format!("silent for {} s", DEADLINE.as_secs()),
        false => https::words(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_is_asked_at_the_base() {
        assert_eq!(question("http://10.0.0.1:8008/patroni"), "http://10.0.0.1:8008/primary");
        assert_eq!(question("http://10.0.0.1:8008/"), "http://10.0.0.1:8008/primary");
        assert_eq!(question("https://[::1]:8008"), "https://[::1]:8008/primary");
    }
}
