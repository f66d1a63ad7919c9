//! A lab with agents, and what the tests ask of it.

use std::fs;
use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use pgsquire_lab::{
    Component, Host, HostRole, Lab, Load, LoadSpec, Pooler, Progress, Spec, Store, Target, agent, pgbouncer,
    wait,
};
use serde_json::Value;

/// A fact that does not come within this will not come.
pub const PATIENCE: Duration = Duration::from_secs(90);
const STEP: Duration = Duration::from_millis(50);

/// Agents on all hosts, no hooks; poolers are added by the test.
pub fn spec() -> Spec {
    Spec { agent: Some(env!("CARGO_BIN_EXE_pgsquire").into()), hooks: false, ..Spec::default() }
}

/// The smallest cluster that can switch over, for tests that need no more.
pub fn small() -> Spec {
    Spec { store: Store::Etcd(1), members: 2, ..spec() }
}

/// Brings a lab up, runs the test and ends the lab. After a failure it says what the agents did and wrote.
pub async fn with(spec: Spec, test: impl AsyncFnOnce(&mut Site) -> Result<()>) -> Result<()> {
    let progress = Progress::shown();
    let lab = Lab::up(spec, &progress).await?;
    let mut site = Site { lab, progress };
    let outcome = test(&mut site).await;
    if let Err(e) = &outcome {
        eprintln!("{}\n{e:#}", site.story());
    }
    progress.step("done");
    site.lab.down().await?;
    outcome
}

/// One running lab.
pub struct Site {
    lab: Lab,
    progress: Progress,
}

impl Deref for Site {
    type Target = Lab;
    fn deref(&self) -> &Lab {
        &self.lab
    }
}

impl DerefMut for Site {
    fn deref_mut(&mut self) -> &mut Lab {
        &mut self.lab
    }
}

impl Site {
    /// Says what the test is about to do.
    pub fn step(&self, what: &str) {
        self.progress.step(what);
    }

    /// A host of the lab.
    pub fn host(&self, name: &str) -> Result<&Host> {
        self.lab.state().host(name)
    }

    /// The names of the members.
    pub fn member_names(&self) -> Vec<String> {
        self.state().hosts_of(HostRole::Member).map(|h| h.name.clone()).collect()
    }

    /// Starts clients that commit through a pooler.
    pub async fn load(&self, pooler: &str, clients: usize) -> Result<Load> {
        Load::start(LoadSpec::writes(self.pooler_address(pooler)?, clients)).await
    }

    /// Switches over and waits until the cluster is healthy and every pool leads where it must.
    pub async fn switch_and_follow(&self) -> Result<String> {
        let leader = self.switchover(None).await?;
        self.step(&format!("{leader} leads"));
        self.wait_healthy(PATIENCE).await?;
        self.followed(&leader).await?;
        self.step("followed");
        Ok(leader)
    }

    /// Waits for another leader, whom all pools follow.
    pub async fn another_leads(&self, old: &str) -> Result<String> {
        fact(&format!("another leader than {old}"), || async {
            let leader = self.leader().await?;
            ensure!(leader != old, "{leader} leads");
            Ok(())
        })
        .await?;
        let leader = self.wait_healthy(PATIENCE).await?;
        self.followed(&leader).await?;
        self.step(&format!("{leader} leads and is followed"));
        Ok(leader)
    }

    /// Waits until every pooler with an agent leads where it must, its links included, and the health answers say so.
    pub async fn followed(&self, leader: &str) -> Result<()> {
        fact(&format!("every pool follows {leader}"), || async {
            for pooler in &self.state().spec.poolers {
                for (database, to) in pooler.routes.iter().filter(|(database, _)| database != "*") {
                    self.leads(&pooler.name, database, &self.allowed(*to, leader)).await?;
                }
                if self.runs(&pooler.name, Component::Agent) {
                    self.answers(&pooler.name, &format!("/pool/{}", pooler.name), 200).await?;
                }
            }
            for member in self.member_names() {
                if self.runs(&member, Component::Agent) {
                    self.answers(&member, "/primary", if member == leader { 200 } else { 503 }).await?;
                }
            }
            Ok(())
        })
        .await
    }

    /// Members that a route must lead to, in order.
    fn allowed(&self, to: Target, leader: &str) -> Vec<String> {
        let mut running = self.member_names();
        running.retain(|m| self.runs(m, Component::Patroni));
        match to {
            Target::Primary => return vec![leader.to_string()],
            Target::Replica => running.retain(|m| m != leader),
            Target::Any => {}
        }
        running
    }

    /// Does PgBouncer lead exactly there, with what it has loaded and with its links?
    pub async fn leads(&self, pooler: &str, database: &str, members: &[String]) -> Result<()> {
        let mut loaded = self.pool_targets(pooler, database).await?;
        loaded.sort();
        ensure!(loaded == members, "{database} of {pooler} leads to {loaded:?}, not to {members:?}");
        for linked in self.links(pooler, database).await? {
            ensure!(members.contains(&linked), "a link of {database} of {pooler} leads to {linked}");
        }
        Ok(())
    }

    /// The members that the server links of a database end at, by `SHOW SERVERS`.
    pub async fn links(&self, pooler: &str, database: &str) -> Result<Vec<String>> {
        let rows = self.console(pooler, "SHOW SERVERS").await?;
        let rows = rows.iter().filter(|row| value(row, "database") == database);
        rows.map(|row| self.member_at(value(row, "addr"))).collect()
    }

    /// The member with this address.
    pub fn member_at(&self, address: &str) -> Result<String> {
        let found = self.state().hosts_of(HostRole::Member).find(|h| h.address.to_string() == address);
        Ok(found.with_context(|| format!("{address} is no member"))?.name.clone())
    }

    /// Does this component run?
    pub fn runs(&self, host: &str, component: Component) -> bool {
        self.state().process(host, component).is_some_and(|p| p.alive())
    }

    /// Fails unless the agent of a host answers a path with this code.
    pub async fn answers(&self, host: &str, path: &str, wanted: u16) -> Result<()> {
        let (code, body) = agent::get(self.state(), self.host(host)?, path).await?;
        ensure!(code == wanted, "{path} of {host} answers {code}, not {wanted}: {}", body.trim());
        Ok(())
    }

    /// The pool's clients wait: the load balancer is told `up`, and that it is a hold with an end.
    pub async fn holds(&self, name: &str) -> Result<()> {
        let (code, body) = agent::get(self.state(), self.host(name)?, &format!("/pool/{name}")).await?;
        let said: Value = serde_json::from_str(&body).with_context(|| format!("/pool/{name}"))?;
        let has_end = said["holding_for_ms"].as_u64().is_some_and(|ms| ms > 0);
        ensure!(
            code == 200 && said["holding"] == true && has_end,
            "{name} does not hold: {code} {}",
            body.trim()
        );
        Ok(())
    }

    /// `/status` of a host's agent.
    pub async fn status(&self, host: &str) -> Result<Value> {
        let (_, body) = agent::get(self.state(), self.host(host)?, "/status").await?;
        serde_json::from_str(&body).with_context(|| format!("/status of {host}"))
    }

    /// A pooler in `/status` of the agent on the host of the same name.
    pub async fn pool(&self, name: &str) -> Result<Value> {
        let status = self.status(name).await?;
        let pools = status["poolers"].as_array().into_iter().flatten();
        let mut pools = pools.filter(|p| p["name"] == name);
        pools.next().cloned().with_context(|| format!("no pool {name} in {status}"))
    }

    /// Waits until the agent says of a pool that something with these words stands in the way.
    pub async fn troubled(&self, pool: &str, words: &str) -> Result<()> {
        fact(&format!("{pool} has a trouble with `{words}`"), || async {
            let troubles = self.pool(pool).await?["troubles"].to_string();
            ensure!(troubles.contains(words), "its troubles: {troubles}");
            Ok(())
        })
        .await
    }

    /// Waits until the agent says of a pool that nothing stands in the way.
    pub async fn untroubled(&self, pool: &str) -> Result<()> {
        fact(&format!("{pool} has no trouble"), || async {
            let troubles = self.pool(pool).await?["troubles"].to_string();
            ensure!(troubles == "[]", "its troubles: {troubles}");
            Ok(())
        })
        .await
    }

    /// Runs `pgsquire` on a host: exit code and what it printed.
    pub async fn command(&self, host: &str, words: &[&str]) -> Result<(Option<i32>, String)> {
        let program = agent::program(self.state());
        let mut command = tokio::process::Command::new(&program);
        command.arg("--config").arg(agent::config(self.host(host)?)).args(words).kill_on_drop(true);
        let output = tokio::time::timeout(PATIENCE, command.output()).await.context("no end")??;
        let text = [output.stdout, output.stderr].concat();
        Ok((output.status.code(), String::from_utf8_lossy(&text).into_owned()))
    }

    /// The flight recorder of a host's agent, as `kind subject: text`.
    pub async fn events(&self, host: &str) -> Result<Vec<String>> {
        let (code, text) = self.command(host, &["events", "--json"]).await?;
        ensure!(code == Some(0), "events of {host}: {code:?} {text}");
        text.lines().map(event_line).collect()
    }

    /// Waits until the flight recorder of a host has an entry of this kind with these words.
    pub async fn recorded(&self, host: &str, kind: &str, words: &str) -> Result<()> {
        fact(&format!("{host} records `{kind} … {words}`"), || async {
            let events = self.events(host).await?;
            let found = events.iter().any(|e| e.starts_with(kind) && e.contains(words));
            ensure!(found, "it recorded:\n{}", events.join("\n"));
            Ok(())
        })
        .await
    }

    /// A setting of a running PgBouncer.
    pub async fn setting(&self, pooler: &str, name: &str) -> Result<String> {
        let rows = self.console(pooler, "SHOW CONFIG").await?;
        let row = rows.iter().find(|row| value(row, "key") == name);
        Ok(value(row.with_context(|| format!("{pooler} has no setting {name}"))?, "value").to_string())
    }

    /// Where the ini of a pooler lies.
    pub fn ini_path(&self, pooler: &str) -> Result<PathBuf> {
        Ok(pgbouncer::ini(self.host(pooler)?))
    }

    /// The ini of a pooler.
    pub fn ini(&self, pooler: &str) -> Result<String> {
        fs::read_to_string(self.ini_path(pooler)?).with_context(|| format!("reading the ini of {pooler}"))
    }

    /// Edits the ini of a pooler in place, as an operator does.
    pub fn edit_ini(&self, pooler: &str, edit: impl FnOnce(String) -> String) -> Result<String> {
        let text = edit(self.ini(pooler)?);
        fs::write(self.ini_path(pooler)?, &text).with_context(|| format!("writing the ini of {pooler}"))?;
        Ok(text)
    }

    /// Edits the configuration of an agent and sends it SIGHUP.
    pub fn reconfigure(&self, host: &str, edit: impl FnOnce(String) -> String) -> Result<()> {
        let file = agent::config(self.host(host)?);
        let text = fs::read_to_string(&file)?;
        let edited = edit(text.clone());
        ensure!(edited != text, "the edit changed nothing of {text}");
        fs::write(&file, edited)?;
        let process = self.state().process(host, Component::Agent);
        process.with_context(|| format!("no agent runs on {host}"))?.signal(Signal::SIGHUP)
    }

    /// What the agents of the poolers recorded and the last lines of all logs.
    fn story(&self) -> String {
        let mut text = String::new();
        for host in self.state().hosts.iter().filter(|h| !h.role.is_store()) {
            let file = fs::read_to_string(host.file("agent/events.jsonl")).unwrap_or_default();
            let mut lines: Vec<&str> = file.lines().rev().take(40).collect();
            lines.reverse();
            let lines = lines.into_iter().map(|l| event_line(l).unwrap_or_else(|_| l.to_string()));
            text += &format!("--- events of {}\n{}\n", host.name, lines.collect::<Vec<_>>().join("\n"));
        }
        text + &self.log_tails()
    }
}

fn event_line(line: &str) -> Result<String> {
    let record: Value = serde_json::from_str(line).with_context(|| format!("event {line}"))?;
    let word = |name: &str| record[name].as_str().unwrap_or_default();
    Ok(format!("{} {}: {} ({})", word("kind"), word("subject"), word("text"), word("time")))
}

/// Waits for a fact.
pub async fn fact<F, Fut>(what: &str, ask: F) -> Result<()>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<()>>,
{
    wait::answer(what, PATIENCE, STEP, ask).await
}

/// A column of a console's row.
pub fn value<'a>(row: &'a [(String, String)], name: &str) -> &'a str {
    row.iter().find(|(n, _)| n == name).map_or("", |(_, v)| v)
}

/// A write and a read pooler.
pub fn write_and_read(spec: Spec) -> Spec {
    spec.pooler(Pooler::write()).pooler(Pooler::read())
}
