//! The benchmarks: every figure beside its baseline, measured in the same run, in one table.

mod callback;
mod entries;
mod hook;
mod idle;
mod kill;
mod pause;
mod restart;
mod switchover;
mod table;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::lab::Lab;
use crate::load::{Load, LoadSpec};
use crate::progress::Progress;
use crate::spec::{Pooler, Spec};
use crate::state::HostRole;

pub use switchover::{Round, Summary, SwitchoverBench, SwitchoverFigures, switchovers};
pub use table::{Baseline, Figure, Row, Table};

/// How often the callback is run, with the daemon up and down each.
const CALLBACKS: usize = 200;
/// How long the idle cluster is watched.
const IDLE: Duration = Duration::from_secs(60);
/// How often the pooler with many entries is re-pointed.
const MOVES: usize = 5;

/// Rows that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Group {
    /// `pgsquire callback`
    Callback,
    /// Memory and processor time of an idle agent
    Idle,
    /// Planned switchovers
    Switchover,
    /// What `before_stop` adds, with 2 and with 50 poolers
    Hook,
    /// Restarts of the primary
    Restart,
    /// SIGKILL of the primary
    Kill,
    /// The longest pause after kill -9 of anyone
    Pause,
    /// A pooler with 1,000 entries
    Entries,
}

/// What to run.
#[derive(Clone, Debug)]
pub struct Bench {
    /// The agent's binary.
    pub agent: PathBuf,
    /// How many switchovers under load; restarts and kills are fewer, and not more than this.
    pub rounds: usize,
    /// How many clients.
    pub clients: usize,
    /// Only these; empty: all.
    pub only: Vec<Group>,
}

impl Bench {
    fn wants(&self, group: Group) -> bool {
        self.only.is_empty() || self.only.contains(&group)
    }
}

/// Measures what is wanted, in labs one after the other, which are gone afterwards.
pub async fn run(bench: &Bench, progress: &Progress) -> Result<Table> {
    let mut table = Table::new();
    let agent = &bench.agent;
    let mut callbacks = Vec::new();
    if bench.wants(Group::Callback) {
        callbacks = callback::rows(agent, CALLBACKS, progress).await.context("running the callback")?;
    }
    if [Group::Idle, Group::Switchover, Group::Hook, Group::Restart].iter().any(|g| bench.wants(*g)) {
        let switchovers = SwitchoverBench {
            agent: agent.clone(),
            rounds: bench.rounds,
            clients: bench.clients,
            classic: bench.wants(Group::Switchover),
        };
        let mut lab = Lab::up(switchover::spec(&switchovers), progress).await?;
        let rows = on_a_cluster(&mut lab, bench, &switchovers, progress).await;
        lab.down().await?;
        let (planned, idle) = rows?;
        table.rows.extend([planned, callbacks, idle].into_iter().flatten());
    } else {
        table.rows.extend(callbacks);
    }
    if bench.wants(Group::Kill) {
        let mut lab = Lab::up(kill::spec(agent.clone()), progress).await?;
        let rows = kill::rows(&mut lab, bench.rounds, progress).await;
        lab.down().await?;
        table.rows.extend(rows.context("killing the primary")?);
    }
    if bench.wants(Group::Pause) {
        let mut lab = Lab::up(pause::spec(agent.clone()), progress).await?;
        let rows = pause::rows(&mut lab, progress).await;
        lab.down().await?;
        table.rows.extend(rows.context("killing agents while they drain")?);
    }
    if bench.wants(Group::Entries) {
        let mut lab = Lab::up(entries::spec(agent.clone()), progress).await?;
        let rows = entries::rows(&mut lab, MOVES, progress).await;
        lab.down().await?;
        table.rows.extend(rows.context("re-pointing a pooler with many entries")?);
    }
    Ok(table)
}

/// The rows of planned changes, and those of the idle agents. These come first in time: switchovers leave traces in
/// every process.
async fn on_a_cluster(
    lab: &mut Lab,
    bench: &Bench,
    switchovers: &SwitchoverBench,
    progress: &Progress,
) -> Result<(Vec<Row>, Vec<Row>)> {
    let (mut idle, mut rows) = (Vec::new(), Vec::new());
    if bench.wants(Group::Idle) {
        idle = idle::rows(lab, IDLE, progress).await.context("watching the idle cluster")?;
    }
    if bench.wants(Group::Switchover) {
        rows.extend(switchover::rows(lab, switchovers, progress).await.context("switching over")?);
    }
    if bench.wants(Group::Hook) {
        let hooks = hook::rows(lab, bench.clients, bench.rounds, progress).await;
        rows.extend(hooks.context("taking the time of the hook")?);
    }
    if bench.wants(Group::Restart) {
        let restarts = restart::rows(lab, bench.clients, bench.rounds, progress).await;
        rows.extend(restarts.context("restarting the primary")?);
    }
    Ok((rows, idle))
}

/// The poolers that agents move.
const OWN: [&str; 2] = ["write", "write2"];
/// A client rests so long after a commit: 50 of them commit a thousand times a second, which leaves some of two cores
/// to those who are measured.
const REST: Duration = Duration::from_millis(50);

/// Who reads rests so long.
const READ: Duration = Duration::from_millis(200);

/// A cluster with hooks that are timed, and two write poolers.
fn own_spec(agent: PathBuf) -> Spec {
    let spec = Spec { agent: Some(agent), hooks: true, time_hooks: true, ..Spec::default() };
    OWN.iter().fold(spec, |spec, name| spec.pooler(Pooler::write().named(name)))
}

/// Clients that write through a pooler.
fn writers(lab: &Lab, pooler: &str, clients: usize) -> Result<LoadSpec> {
    // Each pooler's clients have numbers of their own.
    let number = lab.state().spec.poolers.iter().position(|p| p.name == pooler).unwrap_or_default();
    let spec = LoadSpec::writes(lab.pooler_address(pooler)?, clients);
    Ok(LoadSpec { first: number * 1000, pause: REST, ..spec })
}

/// So many clients, half of them on each of the own poolers.
async fn own_loads(lab: &Lab, clients: usize) -> Result<Vec<(String, Load)>> {
    let mut loads = Vec::new();
    for (number, name) in OWN.into_iter().enumerate() {
        let spec = writers(lab, name, half(clients, number))?;
        // Short transactions, and a client that tries again soon.
        let spec = LoadSpec { reconnect_pause: REST, ..spec };
        loads.push((name.to_string(), Load::start(spec).await?));
    }
    Ok(loads)
}

/// A client that reads on every member, as where replicas serve reads. A member without any connection before its
/// promotion takes 11 ms longer for its first login: PostgreSQL builds the cache of its catalogs.
async fn readers(lab: &Lab) -> Result<Vec<Load>> {
    let mut loads = Vec::new();
    for member in lab.state().hosts_of(HostRole::Member) {
        let spec = LoadSpec::reads(lab.postgres_address(&member.name)?, 1);
        loads.push(Load::start(LoadSpec { pause: READ, reconnect_pause: READ, ..spec }).await?);
    }
    Ok(loads)
}

/// The share of one of two.
fn half(clients: usize, number: usize) -> usize {
    (clients + number) / 2
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
