//! etcd, version 3 of its API.
//!
//! One client per endpoint and our own ordered failover: the client library spreads requests over all endpoints it is
//! given, the dead ones too.

use super::follow::{Reading, Store, Watch, WatchEnd};
use crate::clock;
use crate::files;
use etcd_client::{
    Certificate, Client, ConnectOptions, Error, GetOptions, Identity, TlsOptions, WatchOptions,
    WatchResponse, WatchStream,
};
use pgsquire_core::event::{StoreChange, StoreRead};
use pgsquire_core::patroni::{Keys, StoredValue};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::timeout;

/// An endpoint that has not answered by then is passed over.
pub const DEADLINE: Duration = Duration::from_secs(2);
/// Idle connections are asked this often whether they live,
const PING_EVERY: Duration = Duration::from_secs(3);
/// and must answer within this.
const PING_DEADLINE: Duration = Duration::from_secs(2);

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
    /// Holds the user's password. Certificates, key and password are read again for each new connection.
    pub password_file: Option<PathBuf>,
}

/// The keys below one prefix.
pub(super) struct Etcd {
    config: EtcdConfig,
    prefix: String,
    clients: Mutex<Vec<Option<Client>>>,
    /// Endpoint that the next read begins with.
    first: AtomicUsize,
}

impl Etcd {
    pub(super) fn new(config: EtcdConfig, prefix: String) -> Self {
        let clients = Mutex::new(vec![None; config.endpoints.len()]);
        Etcd { config, prefix, clients, first: AtomicUsize::new(0) }
    }

    fn name(&self, endpoint: usize) -> &str {
        self.config.endpoints.get(endpoint).map_or("?", String::as_str)
    }

    /// The client of an endpoint. A new one is kept only after it has proved itself by an answer.
    async fn client(&self, endpoint: usize) -> Result<Client, String> {
        let kept = self.kept().get(endpoint).cloned().flatten();
        match kept {
            Some(client) => Ok(client),
            None => self.connect(endpoint).await,
        }
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Vec<Option<Client>>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, endpoint: usize, client: Option<Client>) {
        if let Some(place) = self.kept().get_mut(endpoint) {
            *place = client;
        }
    }

    async fn connect(&self, endpoint: usize) -> Result<Client, String> {
        let mut options = ConnectOptions::new()
            .with_keep_alive(PING_EVERY, PING_DEADLINE)
            .with_keep_alive_while_idle(true)
            .with_connect_timeout(DEADLINE)
            .with_timeout(DEADLINE)
            .with_require_leader(true);
        if let Some(user) = &self.config.username {
            let password = match &self.config.password_file {
                Some(path) => files::read_secret(path).map_err(|e| e.to_string())?,
                None => Vec::new(),
            };
            let password = String::from_utf8(password).map_err(|_| "the password is not UTF-8".to_owned())?;
            options = options.with_user(user, password).with_auto_token_refresh(true);
        }
        let name = self.name(endpoint);
        if name.starts_with("https://") || (!name.starts_with("http://") && self.config.tls_ca.is_some()) {
            options = options.with_tls(self.tls()?);
        }
        Client::connect([name], Some(options)).await.map_err(|e| words(&e))
    }

    fn tls(&self) -> Result<TlsOptions, String> {
        let pem = |path: &PathBuf| files::read(path).map_err(|e| e.to_string());
        let mut tls = TlsOptions::new();
        if let Some(ca) = &self.config.tls_ca {
            tls = tls.ca_certificate(Certificate::from_pem(pem(ca)?));
        }
        if let (Some(cert), Some(key)) = (&self.config.tls_cert, &self.config.tls_key) {
            tls = tls.identity(Identity::from_pem(pem(cert)?, pem(key)?));
        }
        Ok(tls)
    }

    async fn read_at(&self, endpoint: usize) -> Result<StoreRead, String> {
        let mut client = self.client(endpoint).await?;
        let started = clock::now();
        let below = GetOptions::new().with_prefix();
        let answer = client.get(self.prefix.as_str(), Some(below)).await.map_err(|e| words(&e))?;
        let header = answer.header().ok_or("its answer has no header")?;
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
        self.keep(endpoint, Some(client));
        Ok(StoreRead { store, raft_term, revision, keys, leader_ttl, started })
    }

    fn advice(&self, why: &str) -> &'static str {
        let untrusted = self.config.tls_ca.is_none() && why.contains("UnknownIssuer");
        if untrusted { " (no certificate is trusted without tls_ca)" } else { "" }
    }

    fn relative(&self, key: &[u8]) -> Option<String> {
        let key = key.strip_prefix(self.prefix.as_bytes())?;
        Some(String::from_utf8_lossy(key).into_owned())
    }
}

/// What is left of the lease when asked now, in whole seconds rounded down; none: it has none, it is gone, or we may
/// not ask. A store that answers a read but not this is at fault.
async fn time_to_live(client: &mut Client, lease: i64) -> Result<Option<Duration>, String> {
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
        Err(e) => Err(words(&e)),
    }
}

impl Store for Etcd {
    type Watch = EtcdWatch;

    async fn read(&self) -> Result<Reading, String> {
        let count = self.config.endpoints.len();
        let first = self.first.load(Ordering::Relaxed);
        let mut failures = Vec::new();
        for endpoint in (0..count).map(|n| (first + n) % count) {
            let answer = timeout(DEADLINE, self.read_at(endpoint)).await;
            let silent = || Err(format!("silent for {} s", DEADLINE.as_secs()));
            match answer.unwrap_or_else(|_| silent()) {
                Ok(read) => {
                    self.first.store(endpoint, Ordering::Relaxed);
                    return Ok(Reading { read, endpoint });
                }
                Err(why) => {
                    self.keep(endpoint, None);
                    failures.push(format!("{}: {why}{}", self.name(endpoint), self.advice(&why)));
                }
            }
        }
        Err(format!("no etcd endpoint answered a read of {}: {}", self.prefix, failures.join("; ")))
    }

    async fn watch(&self, after: &Reading) -> Result<EtcdWatch, WatchEnd> {
        let name = self.name(after.endpoint).to_owned();
        let failed = |why: String| {
            let why = format!("etcd at {name} did not let us watch {}: {why}", self.prefix);
            WatchEnd { why, endpoint_failed: true }
        };
        let start = i64::try_from(after.read.revision).unwrap_or(i64::MAX).saturating_add(1);
        let options = WatchOptions::new().with_prefix().with_start_revision(start);
        let mut client = self.client(after.endpoint).await.map_err(failed)?;
        let stream = timeout(DEADLINE, client.watch(self.prefix.as_str(), Some(options)))
            .await
            .map_err(|_| failed(format!("silent for {} s", DEADLINE.as_secs())))?
            .map_err(|e| failed(words(&e)))?;
        Ok(EtcdWatch { stream, name, prefix: self.prefix.clone(), store: after.read.store.clone() })
    }

    fn avoid(&self, endpoint: usize) {
        self.keep(endpoint, None);
        let next = (endpoint + 1) % self.config.endpoints.len().max(1);
        let _ = self.first.compare_exchange(endpoint, next, Ordering::Relaxed, Ordering::Relaxed);
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

/// The client's words, with the causes that a transport error hides.
fn words(error: &Error) -> String {
    let (mut text, mut cause) = match error {
        Error::GRpcStatus(status) => (status.message().to_owned(), std::error::Error::source(status)),
        Error::TransportError(e) => (e.to_string(), std::error::Error::source(e)),
        other => (other.to_string(), None),
    };
    while let Some(inner) = cause {
        let more = inner.to_string();
        if more != "transport error" && !text.contains(&more) {
            text = if text.is_empty() { more } else { format!("{text}: {more}") };
        }
        cause = inner.source();
    }
    if text.is_empty() { "no reason given".into() } else { text }
}
