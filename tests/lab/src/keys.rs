//! The lab's own eyes and hands in etcd: keys are read, written and watched over etcd's JSON gateway.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::etcd;
use crate::http::Http;
use crate::spec::Store;
use crate::state::State;

/// Where the agents keep their keys of the lab's cluster.
pub fn own_prefix(state: &State) -> String {
    format!("/pgsquire/service/{}/", state.spec.scope)
}

/// Where Patroni keeps its keys of the lab's cluster.
pub fn patroni_prefix(state: &State) -> String {
    format!("/service/{}/", state.spec.scope)
}

/// One etcd server, asked by the lab.
#[derive(Clone, Debug)]
pub struct Keys {
    url: String,
    http: Http,
}

/// A key that was written, or one that is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The whole key.
    pub key: String,
    /// What it holds now; none: it is gone.
    pub value: Option<String>,
}

impl Change {
    /// A field of the value, if that is JSON and has it as text.
    pub fn field(&self, name: &str) -> Option<String> {
        let value: Value = serde_json::from_str(self.value.as_deref()?).ok()?;
        value[name].as_str().map(String::from)
    }
}

/// Changes as they come. Dropping it ends the watch.
#[derive(Debug)]
pub struct Changes {
    seen: mpsc::UnboundedReceiver<Change>,
    _task: JoinSet<()>,
}

impl Changes {
    /// The next change; none when the server is gone.
    pub async fn next(&mut self) -> Option<Change> {
        self.seen.recv().await
    }

    /// The first change from now on that is what one waits for.
    pub async fn wait(
        &mut self,
        what: &str,
        limit: Duration,
        mut is_it: impl FnMut(&Change) -> bool,
    ) -> Result<Change> {
        let waiting = async {
            while let Some(change) = self.next().await {
                if is_it(&change) {
                    return Ok(change);
                }
            }
            bail!("the watch has ended")
        };
        match tokio::time::timeout(limit, waiting).await {
            Ok(found) => found.with_context(|| what.to_string()),
            Err(_) => bail!("{what}: not within {} s", limit.as_secs()),
        }
    }
}

impl Keys {
    /// The etcd server with this number of the lab, counted from 0.
    ///
    /// An error with any other store: no agent writes keys into an etcd that is not there, or that it does not know.
    pub fn of(state: &State, number: usize) -> Result<Self> {
        let store = &state.spec.store;
        ensure!(
            matches!(store, Store::Etcd(_)),
            "keys are read and watched in etcd only, and the lab's store is {}: take `Store::Etcd`",
            store.label()
        );
        let endpoint = etcd::endpoints(state).get(number).copied();
        let endpoint = endpoint.with_context(|| format!("the lab has no etcd number {number}"))?;
        Ok(Self { url: format!("http://{endpoint}/v3"), http: Http::keeping(Duration::from_secs(5), 1)? })
    }

    async fn ask(&self, path: &str, body: &Value) -> Result<Value> {
        let text = self.http.send(Method::POST, &format!("{}/{path}", self.url), body).await?;
        serde_json::from_str(&text).with_context(|| format!("etcd's answer to {path}: {text}"))
    }

    /// Every key below a prefix with its value.
    pub async fn below(&self, prefix: &str) -> Result<Vec<(String, String)>> {
        let answer = self.ask("kv/range", &range(prefix)).await?;
        let pairs = answer["kvs"].as_array().into_iter().flatten();
        pairs.map(|kv| Ok((text_of(&kv["key"])?, text_of(&kv["value"])?))).collect()
    }

    /// A lease that ends by itself after so many seconds without a renewal.
    pub async fn lease(&self, seconds: u32) -> Result<String> {
        let answer = self.ask("lease/grant", &json!({ "TTL": seconds })).await?;
        Ok(answer["ID"].as_str().context("etcd gave no lease")?.to_string())
    }

    /// Renews a lease.
    pub async fn renew(&self, lease: &str) -> Result<()> {
        self.ask("lease/keepalive", &json!({ "ID": lease })).await.map(|_| ())
    }

    /// Writes a key, bound to a lease if one is given.
    pub async fn put(&self, key: &str, value: &str, lease: Option<&str>) -> Result<()> {
        let body = json!({ "key": encode(key.as_bytes()), "value": encode(value.as_bytes()), "lease": lease.unwrap_or("0") });
        self.ask("kv/put", &body).await.map(|_| ()).with_context(|| format!("writing {key}"))
    }

    /// Takes a key away.
    pub async fn delete(&self, key: &str) -> Result<()> {
        let body = json!({ "key": encode(key.as_bytes()) });
        self.ask("kv/deleterange", &body).await.map(|_| ()).with_context(|| format!("removing {key}"))
    }

    /// Watches all keys below a prefix; returns once the server watches.
    pub async fn watch(&self, prefix: &str) -> Result<Changes> {
        let url = format!("{}/watch", self.url);
        let body = json!({ "create_request": range(prefix) });
        let mut answer = self.http.stream(&url, &body).await?;
        let mut buffer = Vec::new();
        // The first message says that the watch is there: changes from now on are not missed.
        let first = next_message(&mut answer, &mut buffer).await.context("etcd ended the watch")?;
        ensure!(first["result"]["created"] == true, "etcd does not watch {prefix}: {first}");
        let (tell, seen) = mpsc::unbounded_channel();
        let mut task = JoinSet::new();
        task.spawn(async move {
            while let Some(message) = next_message(&mut answer, &mut buffer).await {
                for change in message["result"]["events"].as_array().into_iter().flatten().filter_map(change)
                {
                    if tell.send(change).is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Changes { seen, _task: task })
    }
}

/// The gateway sends one JSON object in each line.
async fn next_message(answer: &mut reqwest::Response, buffer: &mut Vec<u8>) -> Option<Value> {
    loop {
        if let Some(end) = buffer.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            return serde_json::from_slice(&line).ok();
        }
        buffer.extend_from_slice(&answer.chunk().await.ok()??);
    }
}

fn change(event: &Value) -> Option<Change> {
    let kv = &event["kv"];
    let gone = event["type"] == "DELETE";
    let value = if gone { None } else { Some(text_of(&kv["value"]).ok()?) };
    Some(Change { key: text_of(&kv["key"]).ok()?, value })
}

/// A prefix in etcd's words: from it to the first key that does not begin with it.
fn range(prefix: &str) -> Value {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    json!({ "key": encode(prefix.as_bytes()), "range_end": encode(&end) })
}

fn text_of(value: &Value) -> Result<String> {
    // An empty value is left out of the message.
    let bytes = decode(value.as_str().unwrap_or_default()).context("not base64")?;
    String::from_utf8(bytes).context("not text")
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Base64: the gateway's way to carry bytes in JSON.
fn encode(bytes: &[u8]) -> String {
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = (0..3).fold(0u32, |bits, i| bits << 8 | u32::from(chunk.get(i).copied().unwrap_or(0)));
        for i in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * i)) as usize & 63];
            text.push(if i <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    text
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for chunk in text.trim_end_matches('=').as_bytes().chunks(4) {
        let digits = chunk.iter().map(|c| DIGITS.iter().position(|d| d == c));
        let digits: Vec<u32> =
            digits.map(|d| d.and_then(|d| u32::try_from(d).ok())).collect::<Option<_>>()?;
        let bits = (0..4).fold(0u32, |bits, i| bits << 6 | digits.get(i).copied().unwrap_or(0));
        bytes.extend(&bits.to_be_bytes()[1..digits.len()]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_there_and_back() {
        for (plain, coded) in
            [("", ""), ("a", "YQ=="), ("ab", "YWI="), ("abc", "YWJj"), ("/service/", "L3NlcnZpY2Uv")]
        {
            assert_eq!(encode(plain.as_bytes()), coded);
            assert_eq!(decode(coded).as_deref(), Some(plain.as_bytes()));
        }
        assert_eq!(decode("*"), None);
    }

    #[test]
    fn a_prefix_ends_before_its_neighbour() {
        let range = range("/a/");
        assert_eq!(decode(range["range_end"].as_str().expect("text")).as_deref(), Some(b"/a0".as_slice()));
    }

    #[test]
    fn a_deleted_key_has_no_value() {
        let event = json!({ "type": "DELETE", "kv": { "key": encode(b"k") } });
        assert_eq!(change(&event), Some(Change { key: "k".into(), value: None }));
        let event = json!({ "kv": { "key": encode(b"k"), "value": encode(br#"{"phase":"drain"}"#) } });
        assert_eq!(change(&event).and_then(|c| c.field("phase")).as_deref(), Some("drain"));
    }
}
