//! What the agents take from a machine on which nothing happens, beside the programs they look after.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::table::{Figure, Row};
use crate::lab::Lab;
use crate::process::ProcessId;
use crate::progress::Progress;
use crate::state::{Component, HostRole};
use crate::usage::Usage;

/// From the start of the agents until everything that follows a start is over.
const SETTLE: Duration = Duration::from_secs(15);
/// Resident memory, in MB.
const MEMORY: f64 = 20.0;
/// Processor time, in % of one core.
const CPU: f64 = 0.5;

/// One process that is watched.
struct Watched {
    name: &'static str,
    process: ProcessId,
    before: Usage,
}

/// What one process took.
struct Taken {
    name: &'static str,
    megabytes: f64,
    percent: f64,
}

/// Watches the agents of the write pooler's host and of a member that does not lead.
pub(super) async fn rows(lab: &Lab, time: Duration, progress: &Progress) -> Result<Vec<Row>> {
    let member = lab.replicas().await?.into_iter().next().context("no replica")?;
    let store = lab.state().hosts_of(HostRole::Etcd).next().context("no etcd")?.name.clone();
    progress.step(&format!("idle cluster: {} s to settle, {} s to watch", SETTLE.as_secs(), time.as_secs()));
    tokio::time::sleep(SETTLE).await;
    let watch = |name, host: &str, component| -> Result<Watched> {
        let process = lab.state().process(host, component).with_context(|| format!("no {name} on {host}"))?;
        Ok(Watched { name, process, before: Usage::of(process)? })
    };
    let start = Instant::now();
    let watched = [
        watch("agent on a pooler host", "write", Component::Agent)?,
        watch("agent on a member", &member, Component::Agent)?,
        watch("patroni", &member, Component::Patroni)?,
        watch("etcd", &store, Component::Etcd)?,
        watch("pgbouncer", "write", Component::PgBouncer)?,
    ];
    tokio::time::sleep(time).await;
    let taken = watched.iter().map(|w| w.taken(start)).collect::<Result<Vec<_>>>()?;
    let (agents, others) = taken.split_at(2);
    Ok(agents.iter().flat_map(|agent| rows_of(agent, others)).collect())
}

impl Watched {
    fn taken(&self, since: Instant) -> Result<Taken> {
        let after = Usage::of(self.process).with_context(|| self.name)?;
        let cpu = (after.cpu - self.before.cpu).as_secs_f64() / since.elapsed().as_secs_f64();
        let megabytes = after.resident as f64 / 1_048_576.0;
        Ok(Taken { name: self.name, megabytes, percent: cpu * 100.0 })
    }
}

fn rows_of(agent: &Taken, others: &[Taken]) -> [Row; 2] {
    let memory = Row::new(
        format!("idle {}: resident memory", agent.name),
        "MB",
        Figure::Value(agent.megabytes),
        Some(MEMORY),
    );
    let cpu = Row::new(
        format!("idle {}: CPU, of one core", agent.name),
        "%",
        Figure::Value(agent.percent),
        Some(CPU),
    );
    [
        others.iter().fold(memory, |row, o| row.beside(o.name, Figure::Value(o.megabytes))),
        others.iter().fold(cpu, |row, o| row.beside(o.name, Figure::Value(o.percent))),
    ]
}
