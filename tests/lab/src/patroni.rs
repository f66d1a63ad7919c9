//! Patroni and its PostgreSQL: configuration, how it is started, what its REST interface says.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;

use crate::agent;
use crate::classic;
use crate::hooks;
use crate::http::Http;
use crate::process::ProcessId;
use crate::spec::{Follow, PATRONI_OLD};
use crate::state::{Host, HostRole, State};
use crate::store;

/// Where PostgreSQL listens, usually.
pub const POSTGRES_PORT: u16 = 5432;
/// Where Patroni's REST interface listens, usually.
pub const REST_PORT: u16 = 8008;
/// A login without password that may connect and nothing else: for watching.
pub const WATCH_USER: &str = "lab_watch";

/// The command that runs Patroni on this host.
pub fn command(host: &Host) -> Vec<String> {
    let config = host.file("patroni.yml").display().to_string();
    ["/usr/bin/python3", "-m", "patroni", &config].map(String::from).to_vec()
}

/// Patroni's packages are not installed in the system: they are found by this.
pub fn environment(state: &State) -> Vec<(String, String)> {
    vec![
        ("PYTHONPATH".into(), state.patroni_packages.display().to_string()),
        ("PYTHONDONTWRITEBYTECODE".into(), "1".into()),
        ("PYTHONUNBUFFERED".into(), "1".into()),
    ]
}

/// The folder with PostgreSQL's programs, of the newest version there is.
pub fn postgres_programs() -> Result<PathBuf> {
    let version = |path: &Path| path.parent()?.file_name()?.to_str()?.parse::<u32>().ok();
    let root = "/usr/lib/postgresql";
    let entries = fs::read_dir(root).with_context(|| format!("{root} is missing: run tests/setup first"))?;
    let folders = entries.flatten().map(|e| e.path().join("bin"));
    let usable = folders.filter(|bin| bin.join("initdb").exists() && bin.join("postgres").exists());
    usable.max_by_key(|bin| version(bin)).with_context(|| format!("no PostgreSQL server in {root}"))
}

/// Writes `patroni.yml`.
pub fn configure(state: &State, host: &Host) -> Result<()> {
    let file = host.file("patroni.yml");
    let text = config_text(state, host);
    fs::write(&file, text).with_context(|| format!("writing {}", file.display()))
}

fn config_text(state: &State, host: &Host) -> String {
    let (rest, server) = (state.socket(host, REST_PORT), state.socket(host, POSTGRES_PORT));
    let (spec, bin) = (&state.spec, state.postgres_bin.display());
    let (data, pass) = (host.file("data"), host.file("pgpass"));
    format!(
        "scope: {scope}\nnamespace: /service/\nname: {name}\n\
         restapi:\n  listen: {rest}\n  connect_address: {rest}\n\
         {store}\
         bootstrap:\n  dcs:\n    ttl: {ttl}\n    loop_wait: {loop_wait}\n    retry_timeout: {retry}\n\
         \x20   maximum_lag_on_failover: 1048576\n{dynamic}\
         \x20   postgresql:\n      use_pg_rewind: true\n      use_slots: true\n      parameters:\n\
         \x20       wal_log_hints: 'on'\n        max_connections: 100\n        shared_buffers: 32MB\n\
         \x20       wal_keep_size: 128MB\n        max_wal_size: 256MB\n\
         \x20 initdb:\n  - encoding: UTF8\n  - data-checksums\n  - auth-host: scram-sha-256\n\
         postgresql:\n  listen: {server}\n  connect_address: {server}\n  data_dir: {data}\n  bin_dir: {bin}\n\
         \x20 pgpass: {pass}\n  use_unix_socket: true\n\
         \x20 authentication:\n\
         \x20   superuser: {{username: postgres, password: postgres-secret}}\n\
         \x20   replication: {{username: replicator, password: replicator-secret}}\n\
         \x20   rewind: {{username: rewind, password: rewind-secret}}\n\
         \x20 parameters:\n    unix_socket_directories: '{sockets}'\n    password_encryption: scram-sha-256\n\
         \x20 pg_hba:\n  - local all all trust\n  - host all {WATCH_USER} 127.0.0.0/8 trust\n\
         \x20 - host replication replicator 127.0.0.0/8 scram-sha-256\n\
         \x20 - host all all 127.0.0.0/8 scram-sha-256\n\
         \x20 basebackup:\n  - checkpoint: fast\n\
         {hooks}{callbacks}",
        scope = spec.scope,
        name = host.name,
        store = store::patroni_block(state),
        ttl = spec.ttl,
        loop_wait = spec.loop_wait,
        retry = spec.retry_timeout,
        dynamic = spec.dynamic.iter().map(|(k, v)| format!("    {k}: {v}\n")).collect::<String>(),
        data = data.display(),
        pass = pass.display(),
        sockets = host.sockets().display(),
        hooks = hooks_block(state, host),
        callbacks = callbacks_block(state, host),
    )
}

/// Patroni 3.0.2 knows no `before_stop`.
fn hooks_block(state: &State, host: &Host) -> String {
    if !state.spec.hooks || !state.has_agent(host) {
        return String::new();
    }
    let pre_promote = format!("  pre_promote: {}\n", hooks::line(state, host, "pre-promote"));
    if state.spec.patroni == PATRONI_OLD {
        return pre_promote;
    }
    pre_promote + &format!("  before_stop: {}\n", hooks::line(state, host, "before-stop"))
}

fn callbacks_block(state: &State, host: &Host) -> String {
    let mut lines = BTreeMap::new();
    if state.has_agent(host) {
        let callback = format!("{} callback", agent::program_line(state, host));
        for action in ["on_role_change", "on_start", "on_stop", "on_restart", "on_reload"] {
            lines.insert(action, callback.clone());
        }
    }
    if state.spec.poolers.iter().any(|p| p.follow == Follow::Classic) {
        lines.insert("on_role_change", classic::script(host).display().to_string());
    }
    if lines.is_empty() {
        return String::new();
    }
    let lines: String = lines.into_iter().map(|(action, c)| format!("    {action}: {c}\n")).collect();
    format!("  callbacks:\n{lines}")
}

/// The postmaster of this host, if one runs.
pub fn postmaster(host: &Host) -> Option<ProcessId> {
    let text = fs::read_to_string(host.file("data").join("postmaster.pid")).ok()?;
    let process = ProcessId::of(text.lines().next()?.trim().parse().ok()?)?;
    // A file left behind by a killed server may name a number that is somebody else's by now.
    let command = fs::read(format!("/proc/{}/cmdline", process.pid)).ok()?;
    let data = host.file("data").display().to_string();
    String::from_utf8_lossy(&command).contains(&data).then_some(process)
}

/// A line of Patroni's `GET /cluster`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Member {
    /// The member's name.
    pub name: String,
    /// `leader`, `replica`, `sync_standby`, ….
    pub role: String,
    /// `running`, `streaming`, `starting`, ….
    pub state: String,
    /// Its timeline, when known.
    pub timeline: Option<u64>,
}

impl Member {
    /// Does it hold the leader lock?
    pub fn leads(&self) -> bool {
        matches!(self.role.as_str(), "leader" | "standby_leader")
    }

    /// Is it up: a leader running, a replica receiving?
    pub fn is_up(&self) -> bool {
        self.state == "streaming" || self.state == "running"
    }
}

/// The REST interfaces of all members.
#[derive(Clone, Debug)]
pub struct Rest {
    http: Http,
    urls: Vec<(String, String)>,
}

impl Rest {
    /// For the members of this lab.
    pub fn new(state: &State) -> Result<Self> {
        let url = |h: &Host| (h.name.clone(), format!("http://{}", state.socket(h, REST_PORT)));
        let http = Http::new(std::time::Duration::from_secs(3))?;
        Ok(Self { http, urls: state.hosts_of(HostRole::Member).map(url).collect() })
    }

    /// The cluster as seen by the first member that answers.
    pub async fn members(&self) -> Result<Vec<Member>> {
        let mut last = None;
        for (name, url) in &self.urls {
            match self.http.json(&format!("{url}/cluster")).await {
                Ok(mut view) => {
                    let members = view.get_mut("members").map(Value::take).unwrap_or_default();
                    return serde_json::from_value(members)
                        .with_context(|| format!("cluster as seen by {name}"));
                }
                Err(e) => last = Some(e),
            }
        }
        Err(last.context("the lab has no members")?).context("no member's Patroni answers")
    }

    /// The word of one member about itself: `GET /patroni`.
    pub async fn member(&self, name: &str) -> Result<Value> {
        self.http.json(&format!("{}/patroni", self.url(name)?)).await
    }

    /// Asks for a switchover; returns when Patroni has done it, or with what it says against it.
    pub async fn switchover(&self, leader: &str, candidate: &str) -> Result<String> {
        let body = serde_json::json!({ "leader": leader, "candidate": candidate });
        // Patroni answers when it is done: this takes longer than other questions.
        let http = Http::new(std::time::Duration::from_secs(60))?;
        let url = format!("{}/switchover", self.url(leader)?);
        http.send(reqwest::Method::POST, &url, &body).await
    }

    /// Has Patroni note a switchover for later. `at` is a time with its zone.
    pub async fn schedule_switchover(&self, leader: &str, candidate: &str, at: &str) -> Result<String> {
        let body = serde_json::json!({ "leader": leader, "candidate": candidate, "scheduled_at": at });
        self.http.send(reqwest::Method::POST, &format!("{}/switchover", self.url(leader)?), &body).await
    }

    /// Has Patroni forget the switchover it has noted.
    pub async fn forget_switchover(&self, leader: &str) -> Result<String> {
        let body = serde_json::json!({});
        self.http.send(reqwest::Method::DELETE, &format!("{}/switchover", self.url(leader)?), &body).await
    }

    /// Asks for a restart of PostgreSQL on one member.
    pub async fn restart(&self, name: &str) -> Result<String> {
        let http = Http::new(std::time::Duration::from_secs(60))?;
        let url = format!("{}/restart", self.url(name)?);
        http.send(reqwest::Method::POST, &url, &serde_json::json!({})).await
    }

    /// Changes Patroni's dynamic configuration, as `PATCH /config`; asks every member until one takes it.
    pub async fn patch_config(&self, change: &Value) -> Result<()> {
        let mut last = None;
        for (_, url) in &self.urls {
            match self.http.send(reqwest::Method::PATCH, &format!("{url}/config"), change).await {
                Ok(_) => return Ok(()),
                Err(e) => last = Some(e),
            }
        }
        Err(last.context("the lab has no members")?).context("changing Patroni's configuration")
    }

    fn url(&self, name: &str) -> Result<&str> {
        match self.urls.iter().find(|(n, _)| n == name) {
            Some((_, url)) => Ok(url),
            None => bail!("the lab has no member `{name}`"),
        }
    }
}
