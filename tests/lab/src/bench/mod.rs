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

/// Measures everything, in two labs one after the other, both of which are gone afterwards.
pub async fn run(bench: &Bench, progress: &Progress) -> Result<Table> {
    let mut table = Table::new();
    let switchovers = SwitchoverBench {
        agent: bench.agent.clone(),
        rounds: bench.rounds,
        clients: bench.clients,
        classic: true,
    };
    let mut lab = Lab::up(switchover::spec(&switchovers), progress).await?;
    let rows = on_a_cluster(&mut lab, &switchovers, progress).await;
    lab.down().await?;
    table.rows = rows?;
    let mut lab = Lab::up(entries::spec(bench.agent.clone()), progress).await?;
    let rows = entries::rows(&mut lab, MOVES, progress).await;
    lab.down().await?;
    table.rows.extend(rows.context("re-pointing a pooler with many entries")?);
    Ok(table)
}

/// The idle figures are taken first: what follows leaves traces in every process.
async fn on_a_cluster(lab: &mut Lab, bench: &SwitchoverBench, progress: &Progress) -> Result<Vec<Row>> {
    let idle = idle::rows(lab, IDLE, progress).await.context("watching the idle cluster")?;
    let callbacks = callback::rows(lab, CALLBACKS, progress).await.context("running the callback")?;
    let mut rows = switchover::rows(lab, bench, progress).await.context("switching over")?;
    rows.extend(callbacks);
    rows.extend(idle);
    Ok(rows)
}
