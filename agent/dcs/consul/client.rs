//! Consul's HTTP API at one endpoint.

use super::{ConsulConfig, DEADLINE};
use crate::dcs::failover::{Failure, Open};
use crate::dcs::handshake::{self, TlsFiles};
use crate::{files, https};
use reqwest::header::HeaderValue;
use reqwest::{Client, Method, Url};
use serde::de::DeserializeOwned;
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// Longer answers are refused, in bytes.
const ANSWER_LIMIT: usize = 16 << 20;
/// So much of what an endpoint said is shown to people, in characters.
const SHOWN: usize = 200;
/// Consul's index of a change.
const INDEX: &str = "x-consul-index";
const TOKEN: &str = "x-consul-token";

impl Open for ConsulConfig {
    type Client = Door;

    fn endpoints(&self) -> &[String] {
        &self.endpoints
    }

    fn secret(&self) -> Option<&Path> {
        self.token_file.as_deref()
    }

    fn tls_files(&self) -> TlsFiles<'_> {
        let ConsulConfig { tls_ca, tls_cert, tls_key, .. } = self;
        TlsFiles { ca: tls_ca.as_deref(), cert: tls_cert.as_deref(), key: tls_key.as_deref() }
    }

    async fn look_again(&self, endpoint: &str) -> Option<String> {
        let url =
            https::address(endpoint, self.tls_ca.is_some()).ok().filter(|url| url.scheme() == "https")?;
        handshake::objection(url.host_str()?, url.port_or_known_default()?, self.tls_files()).await
    }

    async fn open(&self, endpoint: &str) -> Result<Door, Failure> {
        self.door(endpoint).map_err(Failure::sure)
    }
}

impl ConsulConfig {
    fn door(&self, name: &str) -> Result<Door, String> {
        let ConsulConfig { tls_ca, tls_cert, tls_key, token_file, .. } = self;
        let base = https::address(name, tls_ca.is_some())?;
        let client = https::builder(tls_ca.as_deref(), tls_cert.as_deref(), tls_key.as_deref())?
            .connect_timeout(DEADLINE)
            .build()
            .map_err(|e| format!("no HTTP client: {}", https::words(&e)))?;
        let token = token_file.as_deref().map(read_token).transpose()?;
        Ok(Door { client, base, token, datacenter: Arc::default() })
    }
}

fn read_token(path: &Path) -> Result<HeaderValue, String> {
    let bytes = files::read_secret(path).map_err(|e| e.to_string())?;
    let mut token = HeaderValue::from_bytes(bytes.trim_ascii())
        .map_err(|_| format!("{} holds no token: it must be one line of text", path.display()))?;
    token.set_sensitive(true);
    Ok(token)
}

/// An answer that says no. Whoever says one of these has done nothing.
fn refused(code: u16, body: &[u8]) -> Failure {
    let said = shown(body);
    let advice = if code == 403 { " (is the token of token_file the right one?)" } else { "" };
    let nobody = ["No cluster leader", "No known Consul servers"];
    let harmless = (400..500).contains(&code) || nobody.iter().any(|text| said.contains(text));
    let why = format!("it answered {code}: {said}{advice}");
    Failure { why, unsure: !harmless, forbidden: code == 403, ..Failure::default() }
}

impl From<reqwest::Error> for Failure {
    fn from(error: reqwest::Error) -> Self {
        // Who is not connected has asked for nothing, and another connection would not come about either.
        let broken = !error.is_connect();
        Failure { why: https::words(&error), unsure: broken, broken, ..Failure::default() }
    }
}

/// The client of one endpoint.
#[derive(Clone)]
pub(in crate::dcs) struct Door {
    client: Client,
    base: Url,
    token: Option<HeaderValue>,
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
            _ => Err(refused(code, &body)),
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
        ConsulConfig::default().door("http://[::1]:8500").unwrap()
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
