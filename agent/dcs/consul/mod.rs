//! Consul: its key-value store, sessions and blocking queries, over its HTTP API.

mod client;
mod keys;
#[cfg(test)]
mod tests;
mod watch;

pub(super) use keys::ConsulKeys;

use super::beside;
use super::failover::{Answered, Clients, Failure};
use super::follow::{Reading, Store, WatchEnd};
use crate::clock;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use client::Door;
use pgsquire_core::event::StoreRead;
use pgsquire_core::patroni::{Keys, StoredValue};
use serde::Deserialize;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use watch::ConsulWatch;

/// An endpoint that has not answered by then is passed over.
pub const DEADLINE: Duration = Duration::from_secs(2);
/// A longer value is no value of Patroni's or ours. Consul itself takes 512 kB if nobody tells it otherwise.
const VALUE_LIMIT: usize = 1 << 20;
/// Below each prefix: a key that is never there.
const ABSENT: &str = "pgsquire/absent";

/// How to reach Consul.
#[derive(Debug, Clone, Default)]
pub struct ConsulConfig {
    /// `host:port`, `http://host:port` or `https://host:port`; without a scheme, TLS is used if there is a `tls_ca`.
    pub endpoints: Vec<String>,
    /// PEM certificates to trust. Without it no `https` endpoint is.
    pub tls_ca: Option<PathBuf>,
    /// PEM certificate to show.
    pub tls_cert: Option<PathBuf>,
    /// Its PEM key.
    pub tls_key: Option<PathBuf>,
    /// Holds the ACL token. Certificates, key and token are read again when they change, and after a refusal.
    pub token_file: Option<PathBuf>,
}

/// Consul's keys do not begin with a slash.
fn without_slash(prefix: &str) -> String {
    prefix.trim_start_matches('/').to_owned()
}

/// One key as Consul lists it.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    key: String,
    #[serde(default)]
    value: Option<String>,
    modify_index: u64,
}

/// The keys below a prefix.
#[derive(Debug, Default)]
struct Listing {
    /// The newest change among them and the tombstones of deleted ones; if there are neither, of all keys.
    index: u64,
    keys: Keys,
}

async fn list(door: &Door, prefix: &str, questions: &[(&str, &str)]) -> Result<Listing, Failure> {
    let questions = [&[("recurse", "")], questions].concat();
    let answer = door.get(&format!("v1/kv/{prefix}"), &questions).await?;
    let mut listing = Listing { index: answer.index()?, ..Listing::default() };
    if answer.code == 404 {
        return Ok(listing);
    }
    for Entry { key, value, modify_index: revision } in answer.json::<Vec<Entry>>()? {
        // A key of the prefix's own name is a folder that somebody made in Consul's web page.
        let Some(name) = key.strip_prefix(prefix).filter(|name| !name.is_empty()) else { continue };
        let value = BASE64
            .decode(value.unwrap_or_default())
            .map_err(|e| Failure::unsure(format!("the value of {key} is not base64: {e}")))?;
        if value.len() > VALUE_LIMIT {
            let (length, limit) = (value.len(), VALUE_LIMIT >> 10);
            return Err(Failure::unsure(format!(
                "{key} holds {length} bytes; more than {limit} kB are not read"
            )));
        }
        listing.keys.insert(name.to_owned(), StoredValue { value, revision });
    }
    Ok(listing)
}

/// The keys below one prefix, for a follower.
pub(super) struct Consul {
    prefix: String,
    clients: Clients<ConsulConfig>,
    /// The datacenter as one of the endpoints told it.
    datacenter: Mutex<Option<String>>,
}

impl Consul {
    pub(super) fn new(config: ConsulConfig, prefix: &str) -> Self {
        Consul { prefix: without_slash(prefix), clients: Clients::new(config), datacenter: Mutex::default() }
    }

    /// A full read decides, so the leader of Consul's servers proves that it still leads before it answers.
    ///
    /// Its revision must never fall while the store is the same. The index of a list does: it is that of the newest key
    /// or tombstone below the prefix, and tombstones are reaped after a quarter of an hour. The index that comes with a
    /// key that is not there is that of all keys, and only rises. It is asked for before the list, so that the list holds
    /// everything up to it; what is newer in the list raises it.
    ///
    /// What is left of the session that holds the leader key Consul tells nobody, only the time to live that it was made
    /// with: a read proves no lease.
    ///
    /// It is a question of rights as well: who may not read below the prefix is refused there, while a list is shortened to
    /// what may be read and would look like a store without a leader.
    async fn read_with(&self, door: Door) -> Result<StoreRead, Failure> {
        let started = clock::now();
        let absent = format!("v1/kv/{}{ABSENT}", self.prefix);
        let before = door.get(&absent, &[("consistent", "")]).await?.index()?;
        let listing = list(&door, &self.prefix, &[("consistent", "")]).await?;
        let revision = before.max(listing.index);
        let store = self.identity(&door).await?;
        let beside = if listing.keys.is_empty() { self.beside(&door).await } else { Vec::new() };
        Ok(StoreRead { store, raft_term: 0, revision, keys: listing.keys, leader_ttl: None, beside, started })
    }

    /// Where there are keys, if there are none of ours: Consul tells those that we may read.
    async fn beside(&self, door: &Door) -> Vec<String> {
        for folder in beside::folders(&self.prefix) {
            let path = format!("v1/kv/{folder}");
            let Ok(answer) = door.get(&path, &[("keys", ""), ("separator", "/")]).await else { break };
            let folders = answer.json::<Vec<String>>().unwrap_or_default();
            let names = folders.iter().filter_map(|path| path.strip_suffix('/'));
            let names = names.filter(|path| beside::counts(path.strip_prefix(folder).unwrap_or_default()));
            let found: Vec<String> = names.take(beside::MANY).map(str::to_owned).collect();
            if !found.is_empty() {
                return found;
            }
        }
        Vec::new()
    }

    /// Names the store whose revisions can be compared: the datacenter, for one datacenter is one set of servers with one
    /// log, and with federated ones a wrong endpoint leads to a standby cluster of the same name and system identifier.
    ///
    /// Consul 1.8 has no cluster id that everybody may read, and the addresses of its servers change when one of them is
    /// replaced. A cluster that is built anew under the old name shows by indexes that fall. An agent that does not let us
    /// read its configuration is taken for one of the datacenter that another one told.
    async fn identity(&self, door: &Door) -> Result<String, Failure> {
        let told = match door.datacenter.get() {
            Some(told) => told.clone(),
            None => {
                let told = datacenter(door).await?;
                let _ = door.datacenter.set(told.clone());
                told
            }
        };
        let mut known = self.datacenter.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_some() {
            known.clone_from(&told);
        }
        Ok(known.as_ref().map_or_else(|| "consul".to_owned(), |name| format!("consul/{name}")))
    }
}

/// The datacenter of an agent; none: we may not ask (`agent:read`).
async fn datacenter(door: &Door) -> Result<Option<String>, Failure> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Agent {
        config: Config,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Config {
        datacenter: String,
    }
    match door.get("v1/agent/self", &[]).await {
        Ok(answer) => Ok(Some(answer.json::<Agent>()?.config.datacenter)),
        Err(failure) if failure.forbidden => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// A duration as Go prints it: `15s`, `15.0s`, `1m30s`, `1500ms`.
fn duration(text: &str) -> Option<Duration> {
    let mut left = text;
    let mut total = Duration::ZERO;
    while !left.is_empty() {
        let (number, rest) = left.split_at(left.find(|c: char| c != '.' && !c.is_ascii_digit())?);
        let (unit, rest) =
            rest.split_at(rest.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(rest.len()));
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        let part = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?;
        total = total.checked_add(part)?;
        left = rest;
    }
    (!text.is_empty()).then_some(total)
}

impl Store for Consul {
    type Watch = ConsulWatch;

    async fn read(&self) -> Result<Reading, String> {
        match self.clients.ask(DEADLINE, |door| self.read_with(door)).await {
            Ok(Answered { answer: read, endpoint, .. }) => Ok(Reading { read, endpoint }),
            Err(Failure { why, .. }) => {
                Err(format!("no Consul endpoint answered a read of {}: {why}", self.prefix))
            }
        }
    }

    async fn watch(&self, after: &Reading) -> Result<ConsulWatch, WatchEnd> {
        let name = self.clients.name(after.endpoint).to_owned();
        let failed = |why: String| {
            let why = format!("Consul at {name} cannot be watched for {}: {why}", self.prefix);
            WatchEnd { why, endpoint_failed: true }
        };
        let door = self.clients.client(after.endpoint).await.map_err(|e| failed(e.why))?;
        Ok(ConsulWatch::new(door, name, self.prefix.clone(), &after.read))
    }

    fn avoid(&self, endpoint: usize) {
        self.clients.avoid(endpoint);
    }
}
