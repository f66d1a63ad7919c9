//! A Consul of our own: one server that keeps its data, and agents that lead to it.

use crate::processes::{As, Process, free_port, until};
use crate::store::{Access, RealStore};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use nix::sys::signal::Signal;
use pgsquire::dcs::StoreConfig;
use pgsquire::dcs::consul::ConsulConfig;
use pgsquire::https;
use reqwest::{Client, Method};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// May do everything where access control is on.
pub const MASTER: &str = "11111111-1111-1111-1111-111111111111";

/// It. The first agent is the server.
pub struct Consul {
    dir: TempDir,
    agents: Vec<Agent>,
    /// What its agents are configured with besides.
    more: Value,
    token: Option<String>,
    https: Option<u16>,
}

struct Agent {
    http: u16,
    serf: u16,
    rpc: u16,
    process: Option<Process>,
}

/// Of Debian 11; `tests/setup` puts it there.
fn program() -> String {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache"), PathBuf::from);
    let program = cache.join("pgsquire/consul-1.8.7/usr/bin/consul");
    assert!(program.exists(), "{} is missing: tests/setup fetches it", program.display());
    program.display().to_string()
}

impl Consul {
    /// Starts the server and so many agents that lead to it.
    pub async fn start(others: usize) -> Consul {
        Consul::with(others, json!({}), None, None).await
    }

    /// Starts one in which nobody may do anything without a token.
    pub async fn guarded() -> Consul {
        let tokens = json!({ "master": MASTER, "agent": MASTER });
        let more = json!({ "acl": { "enabled": true, "default_policy": "deny", "tokens": tokens } });
        Consul::with(0, more, Some(MASTER.to_owned()), None).await
    }

    /// Starts one that is configured with more.
    pub async fn start_with(more: Value) -> Consul {
        Consul::with(0, more, None, None).await
    }

    /// Starts one that also speaks TLS on this port.
    pub async fn with_https(more: Value, port: u16) -> Consul {
        Consul::with(0, more, None, Some(port)).await
    }

    async fn with(others: usize, more: Value, token: Option<String>, https: Option<u16>) -> Consul {
        let dir = tempfile::Builder::new().prefix("consul").tempdir().unwrap();
        let agent = |_| Agent { http: free_port(), serf: free_port(), rpc: free_port(), process: None };
        let agents = (0..=others).map(agent).collect();
        let mut consul = Consul { dir, agents, more, token, https };
        for n in 0..=others {
            consul.begin(n).await;
        }
        consul
    }

    /// Starts an agent, again or for the first time, and waits until it leads to a leader.
    pub async fn begin(&mut self, n: usize) {
        let Agent { http, serf, rpc, .. } = self.agents[n];
        let path = |name: &str| self.dir.path().join(format!("n{n}{name}")).display().to_string();
        let mut config = json!({
            "node_name": format!("n{n}"),
            "data_dir": path(""),
            "bind_addr": "127.0.0.1",
            "client_addr": "127.0.0.1",
            "ports": {
                "dns": -1, "grpc": -1, "http": http, "https": self.https.map_or(-1, i32::from),
                "serf_lan": serf, "serf_wan": -1, "server": rpc,
            },
            "performance": { "raft_multiplier": 1 },
            "session_ttl_min": "1s",
            "disable_update_check": true,
        });
        let fields = config.as_object_mut().unwrap();
        match n {
            0 => {
                fields.insert("server".into(), true.into());
                fields.insert("bootstrap_expect".into(), 1.into());
            }
            _ => {
                let server = format!("127.0.0.1:{}", self.agents[0].serf);
                fields.insert("retry_join".into(), json!([server]));
                fields.insert("retry_interval".into(), "1s".into());
            }
        }
        fields.extend(self.more.as_object().unwrap().clone());
        std::fs::write(path(".json"), config.to_string()).unwrap();
        let file = format!("-config-file={}", path(".json"));
        self.agents[n].process =
            Some(Process::start(As::Me, &program(), &["agent", &file], &self.dir.path().join("log")));
        // A session needs a server that knows the agent's node.
        let api = self.api(n);
        until("Consul answers", async || {
            let made = api.ask(Method::PUT, "v1/session/create", r#"{"TTL":"10s"}"#).await.ok()?;
            let id = serde_json::from_str::<Value>(&made).ok()?["ID"].as_str()?.to_owned();
            api.ask(Method::PUT, &format!("v1/session/destroy/{id}"), "").await.ok()
        })
        .await;
    }

    /// Where an agent is reached.
    pub fn endpoint(&self, n: usize) -> String {
        format!("http://127.0.0.1:{}", self.agents[n].http)
    }

    /// Where these are reached.
    pub fn endpoints(&self, of: &[usize]) -> Vec<String> {
        of.iter().map(|n| self.endpoint(*n)).collect()
    }

    /// A client of one agent.
    pub fn api(&self, n: usize) -> Api {
        let client = https::builder(None, None, None).unwrap().build().unwrap();
        Api { client, base: self.endpoint(n), token: self.token.clone() }
    }

    /// Sends a signal to an agent.
    pub fn signal(&self, n: usize, signal: Signal) {
        self.agents[n].process.as_ref().unwrap().signal(signal);
    }

    /// Sends SIGKILL to an agent.
    pub fn kill(&mut self, n: usize) {
        self.agents[n].process = None;
    }
}

/// A client of its HTTP API.
#[derive(Clone)]
pub struct Api {
    client: Client,
    base: String,
    token: Option<String>,
}

/// A key as somebody else reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Its value.
    pub value: String,
    /// The session that holds it, or nothing.
    pub session: String,
    /// When it was last changed.
    pub revision: u64,
}

impl Api {
    /// What it says; an error is what it says in a refusal, or why it says nothing.
    pub async fn ask(&self, method: Method, path: &str, body: &str) -> Result<String, String> {
        let mut request = self.client.request(method, format!("{}/{path}", self.base)).body(body.to_owned());
        if let Some(token) = &self.token {
            request = request.header("X-Consul-Token", token);
        }
        let answer = request.send().await.map_err(|e| https::words(&e))?;
        let code = answer.status();
        let text = answer.text().await.map_err(|e| https::words(&e))?;
        if code.is_success() { Ok(text) } else { Err(text) }
    }

    /// Puts a key.
    pub async fn put(&self, key: &str, value: &str) {
        assert_eq!(self.ask(Method::PUT, &format!("v1/kv/{key}"), value).await.unwrap(), "true");
    }

    /// Puts a key under a session.
    pub async fn acquire(&self, key: &str, value: &str, session: &str) {
        let path = format!("v1/kv/{key}?acquire={session}");
        assert_eq!(self.ask(Method::PUT, &path, value).await.unwrap(), "true");
    }

    /// Deletes a key.
    pub async fn delete(&self, key: &str) {
        self.ask(Method::DELETE, &format!("v1/kv/{key}"), "").await.unwrap();
    }

    /// Puts several keys at once.
    pub async fn put_all(&self, keys: &[(&str, &str)]) {
        let put = |(key, value): &(&str, &str)| json!({ "KV": { "Verb": "set", "Key": key, "Value": BASE64.encode(value) } });
        let all: Vec<Value> = keys.iter().map(put).collect();
        self.ask(Method::PUT, "v1/txn", &Value::from(all).to_string()).await.unwrap();
    }

    /// Makes a session as Patroni does.
    pub async fn session(&self, ttl: &str) -> String {
        let session = json!({ "TTL": ttl, "Behavior": "delete", "LockDelay": "1ms" });
        let made = self.ask(Method::PUT, "v1/session/create", &session.to_string()).await.unwrap();
        serde_json::from_str::<Value>(&made).unwrap()["ID"].as_str().unwrap().to_owned()
    }

    /// Ends a session.
    pub async fn destroy(&self, session: &str) {
        self.ask(Method::PUT, &format!("v1/session/destroy/{session}"), "").await.unwrap();
    }

    /// The sessions that are there.
    pub async fn sessions(&self) -> Vec<String> {
        let list = self.ask(Method::GET, "v1/session/list", "").await.unwrap();
        let list: Vec<Value> = serde_json::from_str(&list).unwrap();
        list.iter().map(|session| session["ID"].as_str().unwrap().to_owned()).collect()
    }

    /// The keys below a prefix.
    pub async fn stored(&self, prefix: &str) -> BTreeMap<String, Stored> {
        let Ok(list) = self.ask(Method::GET, &format!("v1/kv/{prefix}?recurse"), "").await else {
            return BTreeMap::new();
        };
        let list: Vec<Value> = serde_json::from_str(&list).unwrap();
        let one = |entry: &Value| {
            let key = entry["Key"].as_str().unwrap().strip_prefix(prefix).unwrap().to_owned();
            let value = BASE64.decode(entry["Value"].as_str().unwrap_or_default()).unwrap();
            let stored = Stored {
                value: String::from_utf8(value).unwrap(),
                session: entry["Session"].as_str().unwrap_or_default().to_owned(),
                revision: entry["ModifyIndex"].as_u64().unwrap(),
            };
            (key, stored)
        };
        list.iter().map(one).collect()
    }
}

impl RealStore for Consul {
    async fn begin_one(secure: Option<&Path>) -> Self {
        let Some(dir) = secure else { return Consul::start(0).await };
        let path = |name: &str| dir.join(name).display().to_string();
        let more = json!({
            "ca_file": path("ca.crt"),
            "cert_file": path("server.crt"),
            "key_file": path("server.key"),
            "verify_incoming_https": true,
        });
        Consul::with_https(more, free_port()).await
    }

    async fn again(&mut self) {
        self.kill(0);
        self.begin(0).await;
    }

    async fn rebuild(&mut self) {
        self.kill(0);
        std::fs::remove_dir_all(self.dir.path().join("n0")).unwrap();
        self.begin(0).await;
    }

    fn place(&self) -> String {
        format!("127.0.0.1:{}", self.agents[0].http)
    }

    fn secure_place(&self) -> String {
        format!("127.0.0.1:{}", self.https.unwrap())
    }

    fn config(Access { endpoints, ca, cert, key }: Access) -> StoreConfig {
        let files = ConsulConfig { tls_ca: ca, tls_cert: cert, tls_key: key, ..ConsulConfig::default() };
        StoreConfig::Consul(ConsulConfig { endpoints, ..files })
    }

    async fn put(&self, keys: &[(String, String)]) {
        // Consul takes 64 operations in one transaction.
        for some in keys.chunks(64) {
            let some: Vec<_> =
                some.iter().map(|(key, value)| (key.trim_start_matches('/'), value.as_str())).collect();
            self.api(0).put_all(&some).await;
        }
    }

    async fn delete(&self, keys: &[String]) {
        let delete = |key: &String| json!({ "KV": { "Verb": "delete", "Key": key.trim_start_matches('/') } });
        let all: Vec<Value> = keys.iter().map(delete).collect();
        self.api(0).ask(Method::PUT, "v1/txn", &Value::from(all).to_string()).await.unwrap();
    }
}
