//! Consul's HTTP API at one endpoint after the other: the first that answers is asked first the next time.

use super::{ConsulConfig, DEADLINE};
use crate::{files, https};
use reqwest::header::HeaderValue;
use reqwest::{Client, Method, Url};
use serde::de::DeserializeOwned;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::time::timeout;

/// Longer answers are refused, in bytes.
const ANSWER_LIMIT: usize = 16 << 20;
/// So much of what an endpoint said is shown to people, in characters.
const SHOWN: usize = 200;
/// Consul's index of a change.
const INDEX: &str = "x-consul-index";
const TOKEN: &str = "x-consul-token";

/// The clients of all endpoints. Endpoints are numbers, in the order of the configuration.
pub(super) struct Clients {
    config: ConsulConfig,
    doors: Mutex<Vec<Option<Door>>>,
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
    /// What a refusal was answered with.
    code: Option<u16>,
    /// The connection is at fault, not Consul: a new one may do.
    broken: bool,
}

impl Failure {
    /// Nothing was done.
    pub(super) fn sure(why: impl Into<String>) -> Self {
        Failure { why: why.into(), unsure: false, code: None, broken: false }
    }

    pub(super) fn unsure(why: impl Into<String>) -> Self {
        Failure { why: why.into(), unsure: true, code: None, broken: false }
    }

    /// The endpoint answered, and we may not know.
    pub(super) fn is_forbidden(&self) -> bool {
        self.code == Some(403)
    }

    /// An answer that says no. Whoever says one of these has done nothing.
    fn refused(code: u16, body: &[u8]) -> Self {
        let said = shown(body);
        let advice = if code == 403 { " (is the token of token_file the right one?)" } else { "" };
        let nobody = ["No cluster leader", "No known Consul servers"];
        let harmless = (400..500).contains(&code) || nobody.iter().any(|text| said.contains(text));
        let why = format!("it answered {code}: {said}{advice}");
        Failure { why, unsure: !harmless, code: Some(code), broken: false }
    }
}

impl From<reqwest::Error> for Failure {
    fn from(error: reqwest::Error) -> Self {
        // Who is not connected has asked for nothing, and another connection would not come about either.
        let broken = !error.is_connect();
        Failure { why: https::words(&error), unsure: broken, code: None, broken }
    }
}

impl Clients {
    pub(super) fn new(config: ConsulConfig) -> Self {
        let doors = Mutex::new(vec![None; config.endpoints.len()]);
        Clients { config, doors, first: AtomicUsize::new(0) }
    }

    pub(super) fn name(&self, endpoint: usize) -> &str {
        self.config.endpoints.get(endpoint).map_or("?", String::as_str)
    }

    /// Asks one endpoint after the other until one answers, each for so long, and begins with the one that answered last.
    /// The failure names them all.
    pub(super) async fn ask<T, F>(
        &self,
        deadline: Duration,
        ask: impl Fn(Door) -> F,
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
        Err(Failure { why: failures.join("; "), unsure, code: None, broken: false })
    }

    /// Asks one endpoint. The kept connection may have ended while nobody looked: then it is asked again on a new one.
    async fn ask_at<T, F>(
        &self,
        endpoint: usize,
        ask: impl Fn(Door) -> F,
        unsure: &mut bool,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        if let Some(door) = self.kept(endpoint) {
            match ask(door).await {
                Err(failure) if failure.broken => *unsure |= failure.unsure,
                answer => return answer,
            }
            self.keep(endpoint, None);
        }
        let door = self.open(endpoint).map_err(Failure::sure)?;
        let answer = ask(door.clone()).await?;
        // A new one is kept only after it has proved itself by an answer.
        self.keep(endpoint, Some(door));
        Ok(answer)
    }

    /// Begin the next request elsewhere.
    pub(super) fn avoid(&self, endpoint: usize) {
        self.keep(endpoint, None);
        let next = (endpoint + 1) % self.config.endpoints.len().max(1);
        let _ = self.first.compare_exchange(endpoint, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The client of an endpoint.
    pub(super) fn door(&self, endpoint: usize) -> Result<Door, String> {
        self.kept(endpoint).map_or_else(|| self.open(endpoint), Ok)
    }

    /// The one that is kept, unless what it was made of has changed on disk.
    fn kept(&self, endpoint: usize) -> Option<Door> {
        let door = self.doors().get(endpoint).cloned().flatten()?;
        (door.made_of == self.files()).then_some(door)
    }

    fn doors(&self) -> MutexGuard<'_, Vec<Option<Door>>> {
        self.doors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn keep(&self, endpoint: usize, door: Option<Door>) {
        if let Some(place) = self.doors().get_mut(endpoint) {
            *place = door;
        }
    }

    /// What certificates, key and token look like from outside.
    fn files(&self) -> Vec<Look> {
        let ConsulConfig { tls_ca, tls_cert, tls_key, token_file, .. } = &self.config;
        [tls_ca, tls_cert, tls_key, token_file].map(|path| path.as_deref().and_then(look)).into()
    }

    fn open(&self, endpoint: usize) -> Result<Door, String> {
        let made_of = self.files();
        let ConsulConfig { tls_ca, tls_cert, tls_key, token_file, .. } = &self.config;
        let name = self.name(endpoint);
        let scheme = if tls_ca.is_some() { "https" } else { "http" };
        let address = if name.contains("://") { name.to_owned() } else { format!("{scheme}://{name}") };
        let base = Url::parse(&address).map_err(|e| format!("this is no address: {e}"))?;
        let client = https::builder(tls_ca.as_deref(), tls_cert.as_deref(), tls_key.as_deref())?
            .connect_timeout(DEADLINE)
            .build()
            .map_err(|e| format!("no HTTP client: {}", https::words(&e)))?;
        let token = token_file.as_deref().map(read_token).transpose()?;
        Ok(Door { client, base, token, made_of, datacenter: Arc::default() })
    }

    fn advice(&self, why: &str) -> &'static str {
        let untrusted = self.config.tls_ca.is_none() && why.contains("UnknownIssuer");
        if untrusted { " (no certificate is trusted without tls_ca)" } else { "" }
    }
}

fn read_token(path: &Path) -> Result<HeaderValue, String> {
    let bytes = files::read_secret(path).map_err(|e| e.to_string())?;
    let mut token = HeaderValue::from_bytes(bytes.trim_ascii())
        .map_err(|_| format!("{} holds no token: it must be one line of text", path.display()))?;
    token.set_sensitive(true);
    Ok(token)
}

/// Changes whenever a file is written or replaced: time, length, and which file it is.
type Look = Option<(i64, i64, u64, u64)>;

fn look(path: &Path) -> Look {
    let meta = std::fs::metadata(path).ok()?;
    Some((meta.mtime(), meta.mtime_nsec(), meta.len(), meta.ino()))
}

/// The client of one endpoint.
#[derive(Clone)]
pub(super) struct Door {
    client: Client,
    base: Url,
    token: Option<HeaderValue>,
    made_of: Vec<Look>,
    /// The datacenter behind it, once it was asked for; none: it does not tell us.
    pub(super) datacenter: Arc<OnceLock<Option<String>>>,
}

/// What Consul said.
#[derive(Debug)]
pub(super) struct Answer {
    /// 200, 404 or 409.
    pub(super) code: u16,
    index: Option<u64>,
    body: Vec<u8>,
}

impl Answer {
    /// The index that it belongs to. Consul's documentation asks clients to treat 0 as 1.
    pub(super) fn index(&self) -> Result<u64, Failure> {
        let none =
            || Failure::unsure(format!("its answer has no index, this is not Consul: {}", self.text()));
        self.index.map(|index| index.max(1)).ok_or_else(none)
    }

    pub(super) fn json<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        let nonsense =
            |e| Failure::unsure(format!("its answer is not what Consul says ({e}): {}", self.text()));
        serde_json::from_slice(&self.body).map_err(nonsense)
    }

    /// The beginning of what it said, for people.
    pub(super) fn text(&self) -> String {
        shown(&self.body)
    }
}

impl Door {
    /// Reads. A question without a value is a word of its own: `recurse`.
    pub(super) async fn get(&self, path: &str, questions: &[(&str, &str)]) -> Result<Answer, Failure> {
        self.send(Method::GET, path, questions, Vec::new()).await
    }

    pub(super) async fn put(&self, path: &str, body: Vec<u8>) -> Result<Answer, Failure> {
        self.send(Method::PUT, path, &[], body).await
    }

    pub(super) async fn delete(&self, path: &str) -> Result<Answer, Failure> {
        self.send(Method::DELETE, path, &[], Vec::new()).await
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        questions: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Result<Answer, Failure> {
        let mut request = self.client.request(method, self.url(path, questions)?).body(body);
        if let Some(token) = &self.token {
            request = request.header(TOKEN, token.clone());
        }
        let mut response = request.send().await?;
        let code = response.status().as_u16();
        let index = response.headers().get(INDEX).and_then(|value| value.to_str().ok()?.parse().ok());
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            if body.len() + chunk.len() > ANSWER_LIMIT {
                let why = format!("its answer about {path} is longer than {} MB", ANSWER_LIMIT >> 20);
                return Err(Failure::unsure(why));
            }
            body.extend_from_slice(&chunk);
        }
        match code {
            200 | 404 | 409 => Ok(Answer { code, index, body }),
            _ => Err(Failure::refused(code, &body)),
        }
    }

    /// Slashes separate; whatever else is special in an address is escaped.
    fn url(&self, path: &str, questions: &[(&str, &str)]) -> Result<Url, Failure> {
        let inner = path.trim_end_matches('/');
        if inner.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(Failure::sure(format!("{path} cannot be asked for: a part of it is empty or dots")));
        }
        let mut url = self.base.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().extend(path.split('/'));
        }
        for (question, value) in questions {
            match *value {
                "" => url.query_pairs_mut().append_key_only(question),
                value => url.query_pairs_mut().append_pair(question, value),
            };
        }
        Ok(url)
    }
}

/// The first line of an answer, if it is text.
fn shown(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("nothing");
    let plain = |c: char| if c.is_control() { '?' } else { c };
    let mut short: String = line.chars().take(SHOWN).map(plain).collect();
    if line.chars().nth(SHOWN).is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn door() -> Door {
        let config = ConsulConfig { endpoints: vec!["http://[::1]:8500".into()], ..ConsulConfig::default() };
        Clients::new(config).door(0).unwrap()
    }

    #[test]
    fn keys_become_addresses() {
        let url = |path: &str, questions: &[(&str, &str)]| door().url(path, questions).unwrap().to_string();
        assert_eq!(
            url("v1/kv/service/main/", &[("recurse", ""), ("index", "7"), ("wait", "30s")]),
            "http://[::1]:8500/v1/kv/service/main/?recurse&index=7&wait=30s"
        );
        assert_eq!(url("v1/kv/a b/?#%41/ü", &[]), "http://[::1]:8500/v1/kv/a%20b/%3F%23%2541/%C3%BC");
        for bad in ["v1/kv//a", "v1/kv/a/../b", "v1/kv/."] {
            assert!(door().url(bad, &[]).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_shown_is_short() {
        assert_eq!(shown(b"\n <html>\n<body>"), "<html>");
        assert_eq!(shown(b""), "nothing");
        assert_eq!(shown(b"a\tb\xff"), "a?b\u{fffd}");
        assert_eq!(shown("ü".repeat(300).as_bytes()).chars().count(), SHOWN + 1);
    }
}
