//! The benchmarks: every figure beside its baseline, measured in the same run, in one table.

mod callback;
mod entries;
mod idle;
mod switchover;
mod table;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::lab::Lab;
use crate::progress::Progress;

pub use switchover::{Round, Summary, SwitchoverBench, SwitchoverFigures, switchovers};
pub use table::{Baseline, Figure, Row, Table};

/// How often the callback is run, with the daemon up and down each.
const CALLBACKS: usize = 200;
/// How long the idle cluster is watched.
const IDLE: Duration = Duration::from_secs(60);
/// How often the pooler with many entries is re-pointed.
const MOVES: usize = 5;

/// What to run.
#[derive(Clone, Debug)]
pub struct Bench {
    /// The agent's binary.
    pub agent: PathBuf,
    /// How many switchovers under load.
    pub rounds: usize,
    /// How many clients on each pooler.
    pub clients: usize,
}

/// Measures everything, in two labs one after the other, which are gone afterwards.
pub async fn run(bench: &Bench, progress: &Progress) -> Result<Table> {
    let mut table = Table::new();
    let callbacks =
        callback::rows(&bench.agent, CALLBACKS, progress).await.context("running the callback")?;
    let switchovers = SwitchoverBench {
        agent: bench.agent.clone(),
        rounds: bench.rounds,
        clients: bench.clients,
        classic: true,
    };
    let mut lab = Lab::up(switchover::spec(&switchovers), progress).await?;
    let rows = on_a_cluster(&mut lab, &switchovers, progress).await;
    lab.down().await?;
    let (switchovers, idle) = rows?;
    table.rows.extend([switchovers, callbacks, idle].into_iter().flatten());
    let mut lab = Lab::up(entries::spec(bench.agent.clone()), progress).await?;
    let rows = entries::rows(&mut lab, MOVES, progress).await;
    lab.down().await?;
    table.rows.extend(rows.context("re-pointing a pooler with many entries")?);
    Ok(table)
}

/// The rows of the switchovers, and those of the idle agents. These come first in time: switchovers leave traces in
/// every process.
async fn on_a_cluster(
    lab: &mut Lab,
    bench: &SwitchoverBench,
    progress: &Progress,
) -> Result<(Vec<Row>, Vec<Row>)> {
    let idle = idle::rows(lab, IDLE, progress).await.context("watching the idle cluster")?;
    let switchovers = switchover::rows(lab, bench, progress).await.context("switching over")?;
    Ok((switchovers, idle))
}
