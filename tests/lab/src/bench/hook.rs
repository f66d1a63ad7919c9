//! What `before_stop` adds to a stop: from the start of Patroni's child to its end, with two poolers and with fifty, of
//! which most are simulated.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::table::{Figure, Row};
use super::{OWN, milliseconds, own_loads};
use crate::hooks;
use crate::lab::Lab;
use crate::progress::Progress;
use crate::simulated::SimulatedPoolers;
use crate::state::HostRole;
use crate::wait;

/// With two and with fifty poolers, in ms.
const TWO: f64 = 30.0;
const FIFTY: f64 = 150.0;
const ALL: usize = 50;
/// A stop is like the other: so many are enough.
const ROUNDS: usize = 10;
const LIMIT: Duration = Duration::from_secs(60);
const STEP: Duration = Duration::from_millis(100);

/// Switches over so many times with either number of poolers, with clients on the real ones.
pub(super) async fn rows(
    lab: &mut Lab,
    clients: usize,
    rounds: usize,
    progress: &Progress,
) -> Result<Vec<Row>> {
    let rounds = rounds.min(ROUNDS);
    let _loads = own_loads(lab, clients).await?;
    let few = stops(lab, rounds, OWN.len(), progress).await?;
    let simulated = SimulatedPoolers::start(lab.state(), ALL - OWN.len()).await?;
    let many = stops(lab, rounds, ALL, progress).await;
    simulated.end().await?;
    let row = |count, times: &[f64], target| {
        let what = format!("before-stop with {count} poolers: start to exit, {rounds} switchovers");
        Row::new(what, "ms", Figure::of(times), Some(target))
    };
    Ok(vec![row(OWN.len(), &few, TWO), row(ALL, &many?, FIFTY)])
}

/// How long the hook took in each of so many switchovers, in ms.
async fn stops(lab: &Lab, rounds: usize, poolers: usize, progress: &Progress) -> Result<Vec<f64>> {
    let mut times = Vec::new();
    for round in 1..=rounds {
        let old = lab.leader().await?;
        let host = lab.state().host(&old)?.clone();
        let before = hooks::runs(&host).len();
        lab.switchover(None).await?;
        let ask = || async {
            let runs = hooks::runs(&host).split_off(before);
            let run = runs.into_iter().find(|r| r.hook == "before-stop");
            run.ok_or_else(|| anyhow::anyhow!("before-stop has not ended on {old}"))
        };
        let run = wait::answer("the end of the hook", LIMIT, STEP, ask).await?;
        ensure!(run.code == 0, "before-stop ended with {} on {old}", run.code);
        progress.step(&format!(
            "before-stop with {poolers} poolers, {round}: {:.1} ms",
            milliseconds(run.took())
        ));
        times.push(milliseconds(run.took()));
        lab.wait_healthy(LIMIT).await?;
    }
    ensure!(lab.state().hosts_of(HostRole::Pooler).count() >= OWN.len(), "the real poolers are there");
    Ok(times)
}
