//! What clients were told is committed, against what is there.

use std::collections::HashSet;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use pgsquire_lab::{Lab, Load};
use tokio_postgres::SimpleQueryMessage;

/// Fails unless every row that was acknowledged until now (after `since`: an unplanned loss of the primary may lose what
/// came before) is in the table on `member`. Says how many there are.
pub async fn complete(lab: &Lab, member: &str, load: &Load, since: Instant) -> Result<usize> {
    let told: Vec<(usize, u64)> = {
        let log = load.log();
        log.commits.iter().filter(|c| c.at > since).map(|c| (c.client, c.number)).collect()
    };
    ensure!(!told.is_empty(), "nothing was acknowledged");
    let client = lab.superuser(member, "app").await?;
    let rows = client.simple_query("SELECT client, n FROM commits").await.context("reading the table")?;
    let there: HashSet<(usize, u64)> = rows.iter().filter_map(row).collect();
    let missing: Vec<_> = told.iter().filter(|row| !there.contains(row)).collect();
    ensure!(
        missing.is_empty(),
        "{} of {} acknowledged rows are missing on {member}: {:?}",
        missing.len(),
        told.len(),
        &missing[..missing.len().min(10)]
    );
    Ok(told.len())
}

fn row(message: &SimpleQueryMessage) -> Option<(usize, u64)> {
    let SimpleQueryMessage::Row(row) = message else { return None };
    Some((row.get(0)?.parse().ok()?, row.get(1)?.parse().ok()?))
}
