//! Patroni of our own: members of one cluster, each with its PostgreSQL, in an etcd of our own.

use crate::etcd_server::Cluster;
use crate::processes::{As, Process, free_port, give_to_postgres, succeed, until};
use nix::sys::signal::Signal;
use pgsquire::https;
use reqwest::{Client, Method};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

/// It.
pub struct Patroni {
    dir: TempDir,
    etcd: Cluster,
    members: Vec<Member>,
    client: Client,
}

struct Member {
    rest: u16,
    postgres: u16,
    process: Process,
}

/// What `tests/setup` put into the cache; PostgreSQL's user must be able to read it.
fn packages(into: &Path) -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map_or_else(|| PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache"), PathBuf::from);
    let from = cache.join("pgsquire/patroni-4.1.5");
    assert!(from.join("complete").exists(), "{} is missing: tests/setup fetches it", from.display());
    succeed(Command::new("cp").arg("-r").arg(from).arg(into));
    into.join("patroni-4.1.5")
}

impl Patroni {
    /// Starts a cluster of so many; the first one leads.
    pub async fn start(count: usize) -> Patroni {
        let dir = tempfile::Builder::new().prefix("patroni").tempdir().unwrap();
        give_to_postgres(dir.path());
        packages(dir.path());
        let etcd = Cluster::start(1).await;
        let builder = https::builder(None, None, None).unwrap();
        let client = builder.timeout(Duration::from_secs(60)).build().unwrap();
        let mut patroni = Patroni { dir, etcd, members: Vec::new(), client };
        for _ in 0..count {
            patroni.add().await;
        }
        patroni
    }

    /// Starts one more member, and waits until it runs.
    pub async fn add(&mut self) {
        let n = self.members.len();
        let (rest, postgres) = (free_port(), free_port());
        let home = self.dir.path().join(name(n));
        std::fs::create_dir(&home).unwrap();
        give_to_postgres(&home);
        let file = home.join("patroni.yml");
        std::fs::write(&file, self.config(n, &home, rest, postgres)).unwrap();
        let packages = format!("PYTHONPATH={}", self.dir.path().join("patroni-4.1.5").display());
        let args = [
            &packages,
            "PYTHONDONTWRITEBYTECODE=1",
            "/usr/bin/python3",
            "-m",
            "patroni",
            file.to_str().unwrap(),
        ];
        let process = Process::start(As::Postgres, "env", &args, &self.dir.path().join(format!("{n}.log")));
        self.members.push(Member { rest, postgres, process });
        until("the member runs", async || {
            let status = self.ask(n, Method::GET, "patroni", Value::Null).await?;
            let is_up = status["state"] == "running" && (n > 0 || status["role"] == "primary");
            is_up.then_some(())
        })
        .await;
    }

    fn config(&self, n: usize, home: &Path, rest: u16, postgres: u16) -> String {
        let (etcd, name) = (self.etcd.endpoints(&[0])[0].clone(), name(n));
        let login = |user: &str| json!({ "username": user, "password": "secret" });
        json!({
            "scope": "main", "namespace": "/service/", "name": name,
            "restapi": { "listen": format!("127.0.0.1:{rest}"), "connect_address": format!("127.0.0.1:{rest}") },
            "etcd3": { "hosts": [etcd] },
            "bootstrap": {
                "dcs": { "ttl": 20, "loop_wait": 1, "retry_timeout": 3, "postgresql": { "use_pg_rewind": true } },
                "initdb": ["no-sync", { "auth-host": "scram-sha-256" }],
            },
            "postgresql": {
                "listen": format!("127.0.0.1:{postgres}"), "connect_address": format!("127.0.0.1:{postgres}"),
                "data_dir": home.join("data"), "bin_dir": "/usr/lib/postgresql/15/bin", "pgpass": home.join("pgpass"),
                "use_unix_socket": true,
                "authentication": { "superuser": login("postgres"), "replication": login("replicator"),
                                    "rewind": login("rewind") },
                "parameters": { "unix_socket_directories": home, "fsync": "off", "wal_log_hints": "on",
                                "shared_buffers": "16MB" },
                "pg_hba": ["local all all trust", "host all all 127.0.0.0/8 scram-sha-256",
                           "host replication replicator 127.0.0.0/8 scram-sha-256"],
                "basebackup": [{ "checkpoint": "fast" }, "no-sync"],
            },
        })
        .to_string()
    }

    /// Base address of a member's REST API.
    pub fn base(&self, n: usize) -> String {
        format!("http://127.0.0.1:{}", self.members[n].rest)
    }

    /// Where a member's PostgreSQL listens.
    pub fn endpoint(&self, n: usize) -> String {
        format!("127.0.0.1:{}", self.members[n].postgres)
    }

    async fn ask(&self, n: usize, method: Method, path: &str, body: Value) -> Option<Value> {
        let request = self.client.request(method, format!("{}/{path}", self.base(n)));
        let request = if body.is_null() { request } else { request.body(body.to_string()) };
        let text = request.send().await.ok()?.text().await.ok()?;
        Some(serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// Has one member lead instead of the other; comes back when Patroni has done it.
    pub async fn switch_over(&self, from: usize, to: usize) {
        let wish = json!({ "leader": name(from), "candidate": name(to) });
        let ready = async || {
            let page = self.ask(from, Method::GET, "cluster", Value::Null).await?;
            let members = page["members"].as_array()?.clone();
            members.iter().any(|m| m["name"] == name(to) && m["state"] == "streaming").then_some(())
        };
        until("the candidate streams", ready).await;
        let said = self.ask(from, Method::POST, "switchover", wish).await;
        let said = said.expect("Patroni answered").to_string();
        assert!(said.contains("Successfully"), "{said}");
    }

    /// Sends a signal to a member's Patroni.
    pub fn signal(&self, n: usize, signal: Signal) {
        self.members[n].process.signal(signal);
    }

    /// Kills a member's Patroni and server, and takes its key out of the store, as its lease would.
    pub async fn remove(&mut self, n: usize) {
        self.kill(n);
        let key = format!("/service/main/members/{}", name(n));
        self.etcd.client(0).await.delete(key, None).await.unwrap();
    }

    /// Kills a member's Patroni and server.
    pub fn kill(&mut self, n: usize) {
        self.members[n].process.kill();
        crash_server(&self.dir.path().join(name(n)));
    }
}

/// What a member is called.
pub fn name(n: usize) -> String {
    format!("pg{}", n + 1)
}

/// A postmaster is no child of ours: Patroni starts it as a daemon.
fn crash_server(home: &Path) {
    let text = std::fs::read_to_string(home.join("data/postmaster.pid")).unwrap_or_default();
    let Some(pid) = text.lines().next().and_then(|line| line.trim().parse::<i32>().ok()) else { return };
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    if String::from_utf8_lossy(&command).contains(&*home.to_string_lossy()) {
        // SIGQUIT: it cleans up its shared memory.
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGQUIT);
    }
}

impl Drop for Patroni {
    fn drop(&mut self) {
        for n in 0..self.members.len() {
            self.kill(n);
        }
    }
}
