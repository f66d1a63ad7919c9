//! Restarts of the primary under load: its clients wait, and see nothing of it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::own_loads;
use super::table::{Figure, Row};
use crate::lab::Lab;
use crate::progress::Progress;
use crate::report::human;

const ROUNDS: usize = 5;
const LIMIT: Duration = Duration::from_secs(90);

/// Restarts the primary a few times.
pub(super) async fn rows(
    lab: &mut Lab,
    clients: usize,
    rounds: usize,
    progress: &Progress,
) -> Result<Vec<Row>> {
    let rounds = rounds.min(ROUNDS);
    let loads = own_loads(lab, clients).await?;
    let (mut errors, mut outages) = (0, Vec::new());
    for round in 1..=rounds {
        let (leader, from) = (lab.leader().await?, Instant::now());
        lab.rest()?.restart(&leader).await.with_context(|| format!("restarting {leader}"))?;
        let (server, back) = (lab.address(&leader)?, Instant::now());
        for (_, load) in &loads {
            load.wait_all_committed(back, Some(server), LIMIT).await?;
        }
        let reports = loads.iter().map(|(_, load)| load.report(from, Instant::now()));
        let reports: Vec<_> = reports.collect();
        let failed: usize = reports.iter().map(|r| r.errors).sum();
        let outage = reports.iter().map(|r| r.outage).max().unwrap_or_default();
        let texts: Vec<_> = reports.iter().flat_map(|r| r.error_texts.keys()).collect();
        progress.step(&format!("restart {round}: {failed} errors, outage {} {texts:?}", human(outage)));
        errors += failed;
        outages.push(super::milliseconds(outage));
        lab.wait_healthy(LIMIT).await?;
    }
    let what = |figure| format!("restart of the primary, {clients} clients, {rounds} rounds: {figure}");
    Ok(vec![
        Row::new(what("errors that clients saw"), "", Figure::Value(errors as f64), Some(0.0)),
        Row::new(what("longest time without a commit"), "ms", Figure::of(&outages), None),
    ])
}
