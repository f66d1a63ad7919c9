//! One client per server and our own ordered failover: the client library shuffles the servers it is given.

use super::ZooKeeperConfig;
use crate::files;
use rustls::pki_types::ServerName;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;
use zookeeper_client::{Client, Error, SessionInfo, SessionState, TlsOptions};

/// A server that says nothing for so long has lost its connection; the client library asks it three times in that.
const SILENCE: Duration = Duration::from_secs(2);
/// A session that holds nothing but watches. Servers raise it to two of their ticks.
const SESSION: Duration = Duration::from_secs(6);
/// What a failed connection is looked into for.
const DIAGNOSIS: Duration = Duration::from_millis(200);

/// The clients of all servers. Servers are numbers, in the order of the configuration.
pub(super) struct Clients {
    config: ZooKeeperConfig,
    clients: Mutex<Vec<Option<Client>>>,
    /// Server that the next request begins with.
    first: AtomicUsize,
}

/// An answer and where it came from.
pub(super) struct Answered<T> {
    pub(super) answer: T,
    pub(super) endpoint: usize,
    /// Another server that was asked before may do the same, now or later.
    pub(super) unsure: bool,
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) why: String,
    /// What was asked for may have been done, or may be done later.
    pub(super) unsure: bool,
    /// The connection is at fault, not what was asked for: another one may do.
    pub(super) broken: bool,
    /// The session that was asked for, or in which was asked, is gone. What a server said on connecting is certain; a client
    /// says it also after its session went on elsewhere.
    pub(super) expired: bool,
}

impl Failure {
    /// Nothing was asked for.
    pub(super) fn before(why: impl Into<String>) -> Self {
        Failure { why: why.into(), unsure: false, broken: false, expired: false }
    }

    pub(super) fn silent(after: Duration) -> Self {
        let why = format!("silent for {} ms", after.as_millis());
        Failure { why, unsure: true, broken: true, expired: false }
    }

    /// The server's word about a node.
    pub(super) fn at(path: &str, error: &Error) -> Self {
        let failure = Failure::from(error);
        Failure { why: format!("{path}: {}", failure.why), ..failure }
    }
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        // What a server says about a node or a login is an answer; all else is the end of a session.
        let answer = matches!(
            error,
            Error::NoNode
                | Error::NoAuth
                | Error::BadVersion
                | Error::NodeExists
                | Error::NotEmpty
                | Error::NoChildrenForEphemerals
                | Error::InvalidAcl
                | Error::AuthFailed
                | Error::BadArguments(_)
                | Error::QuotaExceeded
                | Error::Unimplemented
        );
        // Nothing is done for a session that is gone.
        let expired = matches!(error, Error::SessionExpired);
        Failure { why: error.to_string(), unsure: !answer && !expired, broken: !answer, expired }
    }
}

/// Which session a connection is for.
pub(super) enum Purpose {
    /// Reads and watches: a session that ends with its client.
    Follow,
    /// A new session that outlives its connection.
    Lease(Duration),
    /// That session again, on another connection.
    Resume(SessionInfo, Duration),
    /// The same, to end it: it ends with its client.
    End(SessionInfo, Duration),
}

impl Clients {
    pub(super) fn new(config: ZooKeeperConfig) -> Self {
        let clients = Mutex::new(vec![None; config.endpoints.len()]);
        Clients { config, clients, first: AtomicUsize::new(0) }
    }

    pub(super) fn config(&self) -> &ZooKeeperConfig {
        &self.config
    }

    pub(super) fn name(&self, endpoint: usize) -> &str {
        self.config.endpoints.get(endpoint).map_or("?", String::as_str)
    }

    /// Asks one server after the other until one answers, each for so long, and begins with the one that answered last.
    /// The failure names them all.
    pub(super) async fn each<T, F>(
        &self,
        deadline: Duration,
        ask: impl Fn(usize) -> F,
    ) -> Result<Answered<T>, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let count = self.config.endpoints.len();
        let first = self.first.load(Ordering::Relaxed);
        let mut whys = Vec::new();
        let (mut unsure, mut expired) = (false, false);
        for endpoint in (0..count).map(|n| (first + n) % count) {
            let asked = timeout(deadline, ask(endpoint)).await;
            match asked.unwrap_or_else(|_| Err(Failure::silent(deadline))) {
                Ok(answer) => {
                    self.first.store(endpoint, Ordering::Relaxed);
                    return Ok(Answered { answer, endpoint, unsure });
                }
                Err(failure) => {
                    self.keep(endpoint, None);
                    unsure |= failure.unsure;
                    expired |= failure.expired;
                    whys.push(format!("{}: {}", self.name(endpoint), failure.why));
                    if failure.expired {
                        break;
                    }
                }
            }
        }
        Err(Failure { why: whys.join("; "), unsure, broken: false, expired })
    }

    /// The same, on the connections that are kept for reads and watches.
    pub(super) async fn ask<T, F>(
        &self,
        deadline: Duration,
        ask: impl Fn(Client) -> F,
    ) -> Result<Answered<T>, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        self.each(deadline, |endpoint| self.ask_at(endpoint, &ask)).await
    }

    /// Asks one server. The kept session may have ended while nobody looked: then it is asked again in a new one.
    async fn ask_at<T, F>(&self, endpoint: usize, ask: impl Fn(Client) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        if let Some(client) = self.kept_at(endpoint) {
            match ask(client).await {
                Err(failure) if failure.broken => self.keep(endpoint, None),
                answer => return answer,
            }
        }
        let client = self.connect(endpoint, Purpose::Follow).await?;
        // An expired session of a reader is nothing but a broken connection.
        let answer = ask(client.clone()).await.map_err(|failure| Failure { expired: false, ..failure })?;
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

    /// The client of a server.
    pub(super) async fn client(&self, endpoint: usize) -> Result<Client, Failure> {
        match self.kept_at(endpoint) {
            Some(client) => Ok(client),
            None => self.connect(endpoint, Purpose::Follow).await,
        }
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Option<Client>>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One that is cut off is not waited for: the next one reads its files again.
    fn kept_at(&self, endpoint: usize) -> Option<Client> {
        let client = self.kept().get(endpoint).cloned().flatten()?;
        (client.state() == SessionState::SyncConnected).then_some(client)
    }

    /// Only one is kept: the library would mend the others by itself, with files that it read long ago.
    fn keep(&self, endpoint: usize, client: Option<Client>) {
        let mut kept = self.kept();
        if client.is_some() {
            kept.fill(None);
        }
        if let Some(place) = kept.get_mut(endpoint) {
            *place = client;
        }
    }

    /// A connection of its own.
    pub(super) async fn connect(&self, endpoint: usize, purpose: Purpose) -> Result<Client, Failure> {
        let config = &self.config;
        let mut connector = Client::connector();
        let session = match &purpose {
            Purpose::Follow => SESSION,
            Purpose::Lease(timeout) | Purpose::Resume(_, timeout) | Purpose::End(_, timeout) => *timeout,
        };
        connector = connector
            .with_session_timeout(session)
            .with_connection_timeout(SILENCE.min(session / 2))
            .with_fail_eagerly();
        connector = match purpose {
            Purpose::Follow => connector,
            Purpose::Lease(_) => connector.with_detached(),
            Purpose::Resume(session, _) => connector.with_session(session).with_detached(),
            Purpose::End(session, _) => connector.with_session(session),
        };
        if let Some(user) = &config.username {
            let password = match &config.password_file {
                Some(path) => files::read_secret(path).map_err(|e| Failure::before(e.to_string()))?,
                None => Vec::new(),
            };
            connector = connector.with_auth("digest", &[user.as_bytes(), b":", &password].concat());
        }
        let address = format!("{}{}", self.name(endpoint), config.chroot);
        let connected = if config.is_tls() {
            // The library panics on a name that cannot stand in a certificate.
            let host = self.name(endpoint).rsplit_once(':').map_or("", |(host, _)| host);
            if ServerName::try_from(host.trim_matches(['[', ']'])).is_err() {
                return Err(Failure::before("its name cannot stand in a certificate"));
            }
            connector.with_tls(self.tls().map_err(Failure::before)?).secure_connect(&address).await
        } else {
            connector.connect(&address).await
        };
        match connected {
            Ok(client) => Ok(client),
            Err(error @ (Error::SessionExpired | Error::AuthFailed | Error::BadArguments(_))) => {
                Err(Failure { unsure: false, ..Failure::from(&error) })
            }
            Err(error) => Err(Failure::before(self.diagnosis(endpoint, &error).await)),
        }
    }

    /// The library says "no available hosts" whatever the reason was.
    async fn diagnosis(&self, endpoint: usize, error: &Error) -> String {
        match timeout(DIAGNOSIS, TcpStream::connect(self.name(endpoint))).await {
            Ok(Err(reason)) => reason.to_string(),
            Ok(Ok(_)) if self.config.is_tls() => {
                format!("{error}: no TLS handshake with what tls_ca trusts, or no session after it")
            }
            Ok(Ok(_)) => format!("{error}: it takes connections, but gives no ZooKeeper session"),
            Err(_) => format!("{error}: it does not even take a connection"),
        }
    }

    fn tls(&self) -> Result<TlsOptions, String> {
        let text = |path: &Path| {
            let pem = files::read(path).map_err(|e| e.to_string())?;
            String::from_utf8(pem).map_err(|_| format!("{} is not PEM", path.display()))
        };
        let Some(ca) = &self.config.tls_ca else {
            return Err("no certificate is trusted without tls_ca".to_owned());
        };
        let bad = |path: &Path, e: Error| format!("{}: {e}", path.display());
        let mut tls = TlsOptions::new().with_pem_ca(&text(ca)?).map_err(|e| bad(ca, e))?;
        if let (Some(cert), Some(key)) = (&self.config.tls_cert, &self.config.tls_key) {
            tls = tls.with_pem_identity(&text(cert)?, &text(key)?).map_err(|e| bad(cert, e))?;
        }
        Ok(tls)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_error_means() {
        let means = |error: Error| {
            let failure = Failure::at("/a", &error);
            assert!(failure.why.starts_with("/a: "), "{}", failure.why);
            (failure.unsure, failure.broken, failure.expired)
        };
        assert_eq!(means(Error::NoAuth), (false, false, false), "an answer");
        assert_eq!(means(Error::ConnectionLoss), (true, true, false));
        assert_eq!(means(Error::SessionMoved), (true, true, false), "it lives on");
        assert_eq!(means(Error::SessionExpired), (false, true, true));
    }

    fn clients(endpoints: &[&str]) -> Clients {
        let endpoints = endpoints.iter().map(|name| (*name).to_owned()).collect();
        Clients::new(ZooKeeperConfig { endpoints, ..ZooKeeperConfig::default() })
    }

    #[tokio::test(start_paused = true)]
    async fn servers_are_asked_in_order_and_the_one_that_answered_is_asked_first_from_then_on() {
        let clients = clients(&["a:1", "b:1", "c:1"]);
        let asked = Mutex::new(Vec::new());
        let ask = |silent: bool| {
            let asked = &asked;
            clients.each(Duration::from_millis(500), move |endpoint| async move {
                asked.lock().unwrap().push(endpoint);
                match endpoint {
                    0 => Err(Failure::before("refused")),
                    1 if silent => std::future::pending().await,
                    _ => Ok(()),
                }
            })
        };
        let Ok(Answered { endpoint: 2, unsure: true, .. }) = ask(true).await else { panic!("not the third") };
        let Ok(Answered { endpoint: 2, unsure: false, .. }) = ask(false).await else { panic!("not again") };
        clients.avoid(2);
        let Ok(Answered { endpoint: 1, unsure: false, .. }) = ask(false).await else {
            panic!("not the second")
        };
        assert_eq!(*asked.lock().unwrap(), [0, 1, 2, 2, 0, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_names_all_servers_and_a_session_that_is_gone_is_not_asked_for_elsewhere() {
        let clients = clients(&["a:1", "b:1"]);
        let nobody = |_| async { Err::<(), _>(Failure::before("refused")) };
        let failure = clients.each(Duration::from_secs(1), nobody).await.err().unwrap();
        assert_eq!((failure.why.as_str(), failure.unsure), ("a:1: refused; b:1: refused", false));
        let gone = |_| async { Err::<(), _>(Failure::from(&Error::SessionExpired)) };
        let failure = clients.each(Duration::from_secs(1), gone).await.err().unwrap();
        assert_eq!((failure.why.as_str(), failure.expired), ("a:1: session expired", true));
    }

    #[tokio::test]
    async fn a_name_that_cannot_be_certified_is_said() {
        let config = ZooKeeperConfig {
            endpoints: vec!["a..b:2181".into()],
            tls_ca: Some("/ca.pem".into()),
            ..ZooKeeperConfig::default()
        };
        let failure = Clients::new(config).connect(0, Purpose::Follow).await.unwrap_err();
        assert!(failure.why.contains("certificate"), "{}", failure.why);
    }
}
