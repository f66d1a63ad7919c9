//! One client per etcd endpoint and our own ordered failover: the client library spreads requests over all endpoints it
//! is given, the dead ones too.

use super::{DEADLINE, EtcdConfig};
use crate::files;
use etcd_client::{Certificate, Client, ConnectOptions, Error, Identity, TlsOptions};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::timeout;

/// Idle connections are asked this often whether they live,
const PING_EVERY: Duration = Duration::from_secs(3);
/// and must answer within this.
const PING_DEADLINE: Duration = Duration::from_secs(2);

/// The clients of all endpoints. Endpoints are numbers, in the order of the configuration.
pub(super) struct Clients {
    config: EtcdConfig,
    clients: Mutex<Vec<Option<Client>>>,
    /// Endpoint that the next request begins with.
    first: AtomicUsize,
}

/// An answer and where it came from.
pub(super) struct Answered<T> {
    pub(super) answer: T,
    pub(super) endpoint: usize,
    /// Another endpoint that was asked before may do the same, now or later.
    pub(super) unsure: bool,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) why: String,
    /// What was asked for may have been done, or may be done later.
    pub(super) unsure: bool,
    /// The connection is at fault, not etcd: a new one may do.
    broken: bool,
}

impl Failure {
    pub(super) fn unsure(why: impl Into<String>) -> Self {
        Failure { why: why.into(), unsure: true, broken: false }
    }

    /// Nothing was asked for.
    fn before(why: impl Into<String>) -> Self {
        Failure { why: why.into(), unsure: false, broken: false }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let why = words(&error);
        // Whoever refuses the connection, or says this, has done nothing.
        let harmless = ["Connection refused", "permission denied", "no leader", "invalid auth token"];
        let unsure = !harmless.iter().any(|said| why.contains(said));
        Failure { unsure, broken: !why.starts_with("etcdserver: "), why }
    }
}

impl Clients {
    pub(super) fn new(config: EtcdConfig) -> Self {
        let clients = Mutex::new(vec![None; config.endpoints.len()]);
        Clients { config, clients, first: AtomicUsize::new(0) }
    }

    pub(super) fn name(&self, endpoint: usize) -> &str {
        self.config.endpoints.get(endpoint).map_or("?", String::as_str)
    }

    /// Asks one endpoint after the other until one answers, each for so long, and begins with the one that answered last.
    /// The failure names them all.
    pub(super) async fn ask<T, F>(
        &self,
        deadline: Duration,
        ask: impl Fn(Client) -> F,
    ) -> Result<Answered<T>, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let count = self.config.endpoints.len();
        let first = self.first.load(Ordering::Relaxed);
        let mut failures = Vec::new();
        let mut unsure = false;
        for endpoint in (0..count).map(|n| (first + n) % count) {
            let silent = || Err(Failure::unsure(format!("silent for {} ms", deadline.as_millis())));
            let asked = timeout(deadline, self.ask_at(endpoint, &ask, &mut unsure)).await;
            match asked.unwrap_or_else(|_| silent()) {
                Ok(answer) => {
                    self.first.store(endpoint, Ordering::Relaxed);
                    return Ok(Answered { answer, endpoint, unsure });
                }
                Err(failure) => {
                    self.keep(endpoint, None);
                    unsure |= failure.unsure;
                    let why = failure.why;
                    failures.push(format!("{}: {why}{}", self.name(endpoint), self.advice(&why)));
                }
            }
        }
        Err(Failure { why: failures.join("; "), unsure, broken: false })
    }

    /// Asks one endpoint. The kept connection may have ended while nobody looked: then it is asked again on a new one.
    async fn ask_at<T, F>(
        &self,
        endpoint: usize,
        ask: impl Fn(Client) -> F,
        unsure: &mut bool,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let kept = self.kept().get(endpoint).cloned().flatten();
        if let Some(client) = kept {
            match ask(client).await {
                Err(failure) if failure.broken => *unsure |= failure.unsure,
                answer => return answer,
            }
            self.keep(endpoint, None);
        }
        let client = self.connect(endpoint).await.map_err(Failure::before)?;
        let answer = ask(client.clone()).await?;
        // A new one is kept only after it has proved itself by an answer.
        self.keep(endpoint, Some(client));
        Ok(answer)
    }

    /// Begin the next request elsewhere.
    pub(super) fn avoid(&self, endpoint: usize) {
        self.keep(endpoint, None);
        let next = (endpoint + 1) % self.config.endpoints.len().max(1);
        let _ = self.first.compare_exchange(endpoint, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The client of an endpoint.
    pub(super) async fn client(&self, endpoint: usize) -> Result<Client, Failure> {
        let kept = self.kept().get(endpoint).cloned().flatten();
        match kept {
            Some(client) => Ok(client),
            None => self.connect(endpoint).await.map_err(Failure::before),
        }
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Option<Client>>> {
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

    fn advice(&self, why: &str) -> &'static str {
        let untrusted = self.config.tls_ca.is_none() && why.contains("UnknownIssuer");
        if untrusted { " (no certificate is trusted without tls_ca)" } else { "" }
    }
}

/// The client's words, with the causes that a transport error hides.
pub(super) fn words(error: &Error) -> String {
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
