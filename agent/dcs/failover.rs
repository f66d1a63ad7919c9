//! Ordered failover, whatever the store: one client per endpoint, one endpoint after the other, and the one that answered
//! last is asked first the next time. Client libraries that spread requests over all endpoints use the dead ones too.

use super::handshake::TlsFiles;
use std::future::Future;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::timeout;

/// What a store must tell about its clients.
pub(super) trait Open: Send + Sync {
    /// The client of one endpoint. Clones share its connection.
    type Client: Clone + Send + Sync;

    /// No more than one client is kept: a library that mends its connections by itself does so for those that nobody uses,
    /// and with files that it read long ago.
    const KEEP_ONE: bool = false;

    /// As configured, in order.
    fn endpoints(&self) -> &[String];

    /// What a client is made of besides its endpoint: its certificates,
    fn tls_files(&self) -> TlsFiles<'_>;

    /// and its password or token.
    fn secret(&self) -> Option<&Path>;

    /// Makes the client of an endpoint. That it is there need not mean that anybody has answered.
    fn open(&self, endpoint: &str) -> impl Future<Output = Result<Self::Client, Failure>> + Send;

    /// Why a connection to an endpoint broke, where the client does not say: what TLS has against it.
    fn look_again(&self, _endpoint: &str) -> impl Future<Output = Option<String>> + Send {
        async { None }
    }

    /// Whether a client that was kept may still be of use.
    fn is_current(_client: &Self::Client) -> bool {
        true
    }
}

/// The clients of all endpoints. Endpoints are numbers, in the order of the configuration.
pub(super) struct Clients<O: Open> {
    opener: O,
    kept: Mutex<Vec<Option<Kept<O::Client>>>>,
    /// Endpoint that the next request begins with.
    first: AtomicUsize,
}

#[derive(Clone)]
struct Kept<C> {
    client: C,
    made_of: Vec<Look>,
}

/// An answer and where it came from.
pub(super) struct Answered<T> {
    pub(super) answer: T,
    pub(super) endpoint: usize,
    /// Another endpoint that was asked before may do the same, now or later.
    pub(super) unsure: bool,
}

/// Why there is no answer.
#[derive(Debug, Default)]
pub(super) struct Failure {
    pub(super) why: String,
    /// What was asked for may have been done, or may be done later.
    pub(super) unsure: bool,
    /// The connection is at fault, not the store: a new one may do.
    pub(super) broken: bool,
    /// The endpoint answered, and we may not know.
    pub(super) forbidden: bool,
    /// The session that was asked for, or in which was asked, is gone, and no other endpoint knows more of it. Only
    /// ZooKeeper says so: a lost lease of etcd or Consul is an answer to one question, while there a client is a session,
    /// and any question in it may be the one that finds out.
    pub(super) gone: bool,
}

impl Failure {
    /// Nothing was done.
    pub(super) fn sure(why: impl Into<String>) -> Self {
        Failure { why: why.into(), ..Failure::default() }
    }

    pub(super) fn unsure(why: impl Into<String>) -> Self {
        Failure { why: why.into(), unsure: true, ..Failure::default() }
    }

    pub(super) fn silent(after: Duration) -> Self {
        Failure { broken: true, ..Failure::unsure(format!("silent for {} ms", after.as_millis())) }
    }
}

impl<O: Open> Clients<O> {
    pub(super) fn new(opener: O) -> Self {
        let kept = Mutex::new(opener.endpoints().iter().map(|_| None).collect());
        Clients { opener, kept, first: AtomicUsize::new(0) }
    }

    pub(super) fn opener(&self) -> &O {
        &self.opener
    }

    pub(super) fn name(&self, endpoint: usize) -> &str {
        self.opener.endpoints().get(endpoint).map_or("?", String::as_str)
    }

    /// Asks one endpoint after the other until one answers, each for so long, and begins with the one that answered last.
    /// The failure names them all.
    pub(super) async fn ask<T, F>(
        &self,
        deadline: Duration,
        ask: impl Fn(O::Client) -> F,
    ) -> Result<Answered<T>, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        // What a kept client that broke may have done counts, whatever became of the next one.
        let doubt = AtomicBool::new(false);
        let answered = self.each(deadline, |endpoint| self.ask_at(endpoint, &ask, &doubt)).await;
        let doubt = doubt.into_inner();
        match answered {
            Ok(answered) => Ok(Answered { unsure: answered.unsure || doubt, ..answered }),
            Err(failure) => Err(Failure { unsure: failure.unsure || doubt, ..failure }),
        }
    }

    /// The same for who needs another client than the one that is kept: a session that keys are bound to.
    pub(super) async fn each<T, F>(
        &self,
        deadline: Duration,
        ask: impl Fn(usize) -> F,
    ) -> Result<Answered<T>, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let count = self.opener.endpoints().len();
        let first = self.first.load(Ordering::Relaxed);
        let mut whys = Vec::new();
        let (mut unsure, mut forbidden, mut gone) = (false, false, false);
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
                    forbidden |= failure.forbidden;
                    gone |= failure.gone;
                    let why = failure.why;
                    whys.push(format!("{}: {why}{}", self.name(endpoint), self.advice(&why)));
                    if gone {
                        break;
                    }
                }
            }
        }
        Err(Failure { why: whys.join("; "), unsure, broken: false, forbidden, gone })
    }

    /// Asks one endpoint. The kept connection may have ended while nobody looked: then it is asked again on a new one.
    async fn ask_at<T, F>(
        &self,
        endpoint: usize,
        ask: impl Fn(O::Client) -> F,
        doubt: &AtomicBool,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        if let Some(client) = self.kept_at(endpoint) {
            match ask(client).await {
                Err(failure) if failure.broken => {
                    doubt.fetch_or(failure.unsure, Ordering::Relaxed);
                }
                answer => return answer,
            }
            self.keep(endpoint, None);
        }
        let made_of = self.looks();
        let client = self.opener.open(self.name(endpoint)).await?;
        let answer = match ask(client.clone()).await {
            Ok(answer) => answer,
            Err(failure) => return Err(self.explained(endpoint, failure).await),
        };
        // A new one is kept only after it has proved itself by an answer.
        self.keep(endpoint, Some(Kept { client, made_of }));
        Ok(answer)
    }

    async fn explained(&self, endpoint: usize, mut failure: Failure) -> Failure {
        // The session of a new client is its own: that it is gone says nothing to the next one.
        failure.gone = false;
        let is_told = ["certificate", "alert"].iter().any(|word| failure.why.contains(word));
        if failure.broken
            && !is_told
            && let Some(objection) = self.opener.look_again(self.name(endpoint)).await
        {
            failure.why = format!("{}: {objection}", failure.why);
        }
        failure
    }

    /// Begin the next request elsewhere.
    pub(super) fn avoid(&self, endpoint: usize) {
        self.keep(endpoint, None);
        let next = (endpoint + 1) % self.opener.endpoints().len().max(1);
        let _ = self.first.compare_exchange(endpoint, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The client of an endpoint.
    pub(super) async fn client(&self, endpoint: usize) -> Result<O::Client, Failure> {
        match self.kept_at(endpoint) {
            Some(client) => Ok(client),
            None => self.opener.open(self.name(endpoint)).await,
        }
    }

    fn kept(&self) -> MutexGuard<'_, Vec<Option<Kept<O::Client>>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The one that is kept, unless what it was made of has changed on disk: no library reads its files again.
    fn kept_at(&self, endpoint: usize) -> Option<O::Client> {
        let Kept { client, made_of } = self.kept().get(endpoint).cloned().flatten()?;
        (O::is_current(&client) && made_of == self.looks()).then_some(client)
    }

    fn keep(&self, endpoint: usize, client: Option<Kept<O::Client>>) {
        let mut kept = self.kept();
        if O::KEEP_ONE && client.is_some() {
            kept.fill(None);
        }
        if let Some(place) = kept.get_mut(endpoint) {
            *place = client;
        }
    }

    fn looks(&self) -> Vec<Look> {
        let TlsFiles { ca, cert, key } = self.opener.tls_files();
        [ca, cert, key, self.opener.secret()].map(|path| path.and_then(look)).into()
    }

    fn advice(&self, why: &str) -> &'static str {
        // An authority that was made anew under its old name is known, and has not signed it.
        if ["UnknownIssuer", "BadSignature"].iter().any(|said| why.contains(said)) {
            if self.opener.tls_files().ca.is_none() {
                return " (no certificate is trusted without tls_ca)";
            }
            " (its certificate is not signed by one of tls_ca)"
        } else if why.contains("certificate expired") {
            " (renew the certificate of this endpoint)"
        } else if why.contains("received fatal alert") {
            " (it does not take our tls_cert, or wants one)"
        } else {
            ""
        }
    }
}

/// Changes whenever a file is written or replaced: time, length, and which file it is.
type Look = Option<(i64, i64, u64, u64)>;

fn look(path: &Path) -> Look {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.mtime(), meta.mtime_nsec(), meta.len(), meta.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    /// Clients that are numbers, in the order they were made.
    struct Numbers {
        endpoints: Vec<String>,
        file: PathBuf,
        made: AtomicUsize,
    }

    impl Open for Numbers {
        type Client = usize;

        fn endpoints(&self) -> &[String] {
            &self.endpoints
        }

        fn secret(&self) -> Option<&Path> {
            Some(&self.file)
        }

        fn tls_files(&self) -> TlsFiles<'_> {
            TlsFiles::default()
        }

        async fn open(&self, _endpoint: &str) -> Result<usize, Failure> {
            Ok(self.made.fetch_add(1, Ordering::Relaxed))
        }
    }

    fn clients_with(endpoints: &[&str], file: PathBuf) -> Clients<Numbers> {
        let endpoints = endpoints.iter().map(|name| (*name).to_owned()).collect();
        Clients::new(Numbers { endpoints, file, made: AtomicUsize::new(0) })
    }

    fn clients(endpoints: &[&str]) -> Clients<Numbers> {
        clients_with(endpoints, PathBuf::from("/nonexistent"))
    }

    const LONG: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn endpoints_are_asked_in_order_and_the_one_that_answered_is_asked_first_from_then_on() {
        let clients = clients(&["a:1", "b:1", "c:1"]);
        let asked = Mutex::new(Vec::new());
        let ask = |silent: bool| {
            let asked = &asked;
            clients.each(Duration::from_millis(500), move |endpoint| async move {
                asked.lock().unwrap().push(endpoint);
                match endpoint {
                    0 => Err(Failure::sure("refused")),
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
    async fn a_failure_names_all_endpoints_and_a_session_that_is_gone_is_not_asked_for_elsewhere() {
        let clients = clients(&["a:1", "b:1"]);
        let nobody = |_| async { Err::<(), _>(Failure::sure("refused")) };
        let failure = clients.each(LONG, nobody).await.err().unwrap();
        assert_eq!((failure.why.as_str(), failure.unsure), ("a:1: refused; b:1: refused", false));
        let gone = |_| async { Err::<(), _>(Failure { gone: true, ..Failure::sure("session expired") }) };
        let failure = clients.each(LONG, gone).await.err().unwrap();
        assert_eq!((failure.why.as_str(), failure.gone), ("a:1: session expired", true));
        let silent = |_| std::future::pending::<Result<(), Failure>>();
        let failure = clients.each(LONG, silent).await.err().unwrap();
        assert_eq!(failure.why, "a:1: silent for 1000 ms; b:1: silent for 1000 ms");
        let untrusted = |_| async { Err::<(), _>(Failure::sure("UnknownIssuer")) };
        let failure = clients.each(LONG, untrusted).await.err().unwrap();
        assert!(failure.why.contains("without tls_ca"), "{}", failure.why);
    }

    #[tokio::test]
    async fn a_kept_connection_that_broke_is_made_anew_and_its_doubt_stays() {
        let clients = clients(&["a:1"]);
        let asked = Mutex::new(Vec::new());
        let ask = |broken: usize| {
            let asked = &asked;
            clients.ask(LONG, move |client| async move {
                asked.lock().unwrap().push(client);
                match client == broken {
                    true => Err(Failure { broken: true, ..Failure::unsure("reset") }),
                    false => Ok(()),
                }
            })
        };
        assert!(!ask(9).await.unwrap().unsure);
        assert!(!ask(9).await.unwrap().unsure);
        assert!(ask(0).await.unwrap().unsure, "the first one may have done it");
        assert!(!ask(9).await.unwrap().unsure);
        assert_eq!(*asked.lock().unwrap(), [0, 0, 0, 1, 1]);
        let failure = ask(1).await;
        assert!(failure.is_ok(), "the next one does");
        // Whoever breaks on a new connection is not asked again.
        assert!(clients.ask(LONG, |_| async { Err::<(), _>(Failure::sure("no")) }).await.is_err());
        assert!(ask(3).await.is_err());
        assert_eq!(asked.lock().unwrap().last(), Some(&3));
    }

    #[tokio::test]
    async fn a_client_whose_files_changed_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.pem");
        let clients = clients_with(&["a:1"], file.clone());
        let ask = || async { clients.ask(LONG, |client| async move { Ok(client) }).await.unwrap().answer };
        assert_eq!((ask().await, ask().await), (0, 0));
        std::fs::write(&file, "one").unwrap();
        assert_eq!((ask().await, ask().await), (1, 1));
        let next = dir.path().join("next.pem");
        std::fs::write(&next, "two").unwrap();
        std::fs::rename(next, &file).unwrap();
        assert_eq!((ask().await, clients.client(0).await.unwrap()), (2, 2));
        std::fs::remove_file(&file).unwrap();
        assert_eq!(ask().await, 3);
    }
}
