//! etcd, version 3 of its API.

mod client;
mod keys;

pub(super) use keys::EtcdKeys;

use super::beside;
use super::failover::{Answered, Clients, Failure};
use super::follow::{Reading, Store, Watch, WatchEnd};
use crate::clock;
use client::words;
use etcd_client::{Client, Error, GetOptions, KvClient, WatchOptions, WatchResponse, WatchStream};
use pgsquire_core::event::{StoreChange, StoreRead};
use pgsquire_core::patroni::{Keys, StoredValue};
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::timeout;

/// An endpoint that has not answered by then is passed over.
pub const DEADLINE: Duration = Duration::from_secs(2);
/// Longer answers are refused, in bytes.
const ANSWER_LIMIT: usize = 16 << 20;

/// How to reach etcd.
#[derive(Debug, Clone, Default)]
pub struct EtcdConfig {
    /// `host:port`, `http://host:port` or `https://host:port`; without a scheme, TLS is used if there is a `tls_ca`.
    pub endpoints: Vec<String>,
    /// PEM certificates to trust. Without it no `https` endpoint is.
    pub tls_ca: Option<PathBuf>,
    /// PEM certificate to show.
    pub tls_cert: Option<PathBuf>,
    /// Its PEM key.
    pub tls_key: Option<PathBuf>,
    /// User, where etcd asks for one.
    pub username: Option<String>,
    /// Holds the user's password. Certificates, key and password are read again when they change.
    pub password_file: Option<PathBuf>,
}

/// The keys below one prefix, for a follower.
pub(super) struct Etcd {
    prefix: String,
    clients: Clients<EtcdConfig>,
}

impl Etcd {
    pub(super) fn new(config: EtcdConfig, prefix: String) -> Self {
        Etcd { prefix, clients: Clients::new(config) }
    }

    async fn read_with(&self, mut client: Client) -> Result<StoreRead, Failure> {
        let started = clock::now();
        let below = GetOptions::new().with_prefix();
        let answer = reader(&client).get(self.prefix.as_str(), Some(below)).await?;
        let header = answer.header().ok_or_else(|| Failure::unsure("its answer has no header"))?;
        let mut keys = Keys::new();
        let mut lease = 0;
        for kv in answer.kvs() {
            let Some(key) = self.relative(kv.key()) else { continue };
            if key == "leader" {
                lease = kv.lease();
            }
            keys.insert(
                key,
                StoredValue { value: kv.value().to_vec(), revision: positive(kv.mod_revision()) },
            );
        }
        let leader_ttl = time_to_live(&mut client, lease).await?;
        let (store, raft_term, revision) =
            (store_id(header.cluster_id()), header.raft_term(), positive(header.revision()));
        let beside = if keys.is_empty() { self.beside(&client).await } else { Vec::new() };
        Ok(StoreRead { store, raft_term, revision, keys, leader_ttl, beside, started })
    }

    /// Where there are keys, if there are none of ours. One question for each name: whole clusters may stand below it.
    async fn beside(&self, client: &Client) -> Vec<String> {
        for folder in beside::folders(&self.prefix) {
            let mut found = Vec::new();
            let end = after(folder);
            let mut from = folder.to_owned();
            for _ in 0..beside::MANY {
                let first = GetOptions::new().with_range(end.as_str()).with_limit(1).with_keys_only();
                // Who may not know is not told.
                let Ok(answer) = client.kv_client().get(from.as_str(), Some(first)).await else { break };
                let Some(kv) = answer.kvs().first() else { break };
                let key = String::from_utf8_lossy(kv.key());
                let name = key.strip_prefix(folder).unwrap_or_default();
                match name.split_once('/') {
                    Some((name, _)) => {
                        let path = format!("{folder}{name}");
                        from = after(&format!("{path}/"));
                        found.extend(beside::counts(name).then_some(path));
                    }
                    None => from = format!("{key}\0"),
                }
            }
            if !found.is_empty() {
                return found;
            }
        }
        Vec::new()
    }

    fn relative(&self, key: &[u8]) -> Option<String> {
        let key = key.strip_prefix(self.prefix.as_bytes())?;
        Some(String::from_utf8_lossy(key).into_owned())
    }
}

/// The first key behind all that begin with this, which ends with a slash.
fn after(folder: &str) -> String {
    format!("{}0", folder.strip_suffix('/').unwrap_or(folder))
}

/// The library gives up on an answer of more than 4 MB.
fn reader(client: &Client) -> KvClient {
    client.kv_client().max_decoding_message_size(ANSWER_LIMIT)
}

/// What is left of the lease when asked now, in whole seconds rounded down; none: it has none, it is gone, or we may
/// not ask. A store that answers a read but not this is at fault.
async fn time_to_live(client: &mut Client, lease: i64) -> Result<Option<Duration>, Failure> {
    if lease == 0 {
        return Ok(None);
    }
    match client.lease_time_to_live(lease, None).await {
        Ok(answer) => Ok(u64::try_from(answer.ttl()).ok().map(Duration::from_secs)),
        Err(Error::GRpcStatus(status)) if status.message().contains("etcdserver: permission denied") => {
            tracing::warn!(
                "etcd does not let us ask for the time to live of the leader key: {}",
                status.message()
            );
            Ok(None)
        }
        Err(Error::GRpcStatus(status)) if status.message().contains("lease not found") => Ok(None),
        Err(e) => Err(e.into()),
    }
}

impl Store for Etcd {
    type Watch = EtcdWatch;

    async fn read(&self) -> Result<Reading, String> {
        let answered = self.clients.ask(DEADLINE, |client| self.read_with(client)).await;
        match answered {
            Ok(Answered { answer: read, endpoint, .. }) => Ok(Reading { read, endpoint }),
            Err(Failure { why, .. }) => {
                Err(format!("no etcd endpoint answered a read of {}: {why}", self.prefix))
            }
        }
    }

    async fn watch(&self, after: &Reading) -> Result<EtcdWatch, WatchEnd> {
        let name = self.clients.name(after.endpoint).to_owned();
        let failed = |why: String| {
            let why = format!("etcd at {name} did not let us watch {}: {why}", self.prefix);
            WatchEnd { why, endpoint_failed: true }
        };
        let start = i64::try_from(after.read.revision).unwrap_or(i64::MAX).saturating_add(1);
        let options = WatchOptions::new().with_prefix().with_start_revision(start);
        let client = self.clients.client(after.endpoint).await.map_err(|e| failed(e.why))?;
        let mut watcher = client.watch_client().max_decoding_message_size(ANSWER_LIMIT);
        let stream = timeout(DEADLINE, watcher.watch(self.prefix.as_str(), Some(options)))
            .await
            .map_err(|_| failed(format!("silent for {} s", DEADLINE.as_secs())))?
            .map_err(|e| failed(words(&e)))?;
        Ok(EtcdWatch { stream, name, prefix: self.prefix.clone(), store: after.read.store.clone() })
    }

    fn avoid(&self, endpoint: usize) {
        self.clients.avoid(endpoint);
    }
}

/// A watch on one endpoint.
pub(super) struct EtcdWatch {
    stream: WatchStream,
    name: String,
    prefix: String,
    store: String,
}

impl Watch for EtcdWatch {
    async fn next(&mut self) -> Result<Vec<StoreChange>, WatchEnd> {
        loop {
            let answer = match self.stream.message().await {
                Ok(Some(answer)) => answer,
                Ok(None) => return Err(self.broke("it was closed", true)),
                Err(e) => return Err(self.broke(&words(&e), true)),
            };
            self.check(&answer)?;
            let changes = self.changes(&answer);
            if !changes.is_empty() {
                return Ok(changes);
            }
        }
    }
}

impl EtcdWatch {
    fn broke(&self, why: &str, endpoint_failed: bool) -> WatchEnd {
        let why = format!("the watch of {} at etcd endpoint {} broke: {why}", self.prefix, self.name);
        WatchEnd { why, endpoint_failed }
    }

    fn check(&self, answer: &WatchResponse) -> Result<(), WatchEnd> {
        if answer.compact_revision() > 0 {
            let why = format!("its history is compacted up to revision {}", answer.compact_revision());
            return Err(self.broke(&why, false));
        }
        if answer.canceled() {
            let why = match answer.cancel_reason() {
                "" => "it was canceled without a reason",
                reason => reason,
            };
            return Err(self.broke(why, true));
        }
        match answer.header().map(|header| store_id(header.cluster_id())) {
            Some(store) if store != self.store => {
                Err(self.broke(&format!("it comes from store {store}, not {}", self.store), true))
            }
            _ => Ok(()),
        }
    }

    /// One answer may carry several revisions.
    fn changes(&self, answer: &WatchResponse) -> Vec<StoreChange> {
        let mut changes: Vec<StoreChange> = Vec::new();
        for kv in answer.events().iter().filter_map(|event| event.kv()) {
            let revision = positive(kv.mod_revision());
            let Some(key) = kv.key().strip_prefix(self.prefix.as_bytes()) else { continue };
            // A key that was just deleted has no version.
            let value = (kv.version() > 0).then(|| StoredValue { value: kv.value().to_vec(), revision });
            let change = (String::from_utf8_lossy(key).into_owned(), value);
            match changes.last_mut() {
                Some(last) if last.revision == revision => last.changes.push(change),
                _ => changes.push(StoreChange { store: self.store.clone(), revision, changes: vec![change] }),
            }
        }
        changes
    }
}

fn positive(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

fn store_id(cluster: u64) -> String {
    format!("{cluster:x}")
}
