//! Pools follow when the primary is lost without notice.

use std::time::Instant;

use anyhow::{Result, ensure};
use pgsquire_lab::{Load, Part, sql};

use crate::ledger;
use crate::site::{PATIENCE, Site, spec, with, write_and_read};

const CLIENTS: usize = 10;

#[tokio::test(flavor = "multi_thread")]
async fn each_kind_of_kill_is_followed() -> Result<()> {
    with(write_and_read(spec()), async |site| {
        let start = Instant::now();
        let load = site.load("write", CLIENTS).await?;
        postgres_killed(site, &load, start).await?;
        primary_killed(site, &load).await?;
        patroni_killed(site, &load).await
    })
    .await
}

/// PostgreSQL and Patroni of the primary die at once; the host comes back as a replica.
pub async fn primary_killed(site: &mut Site, load: &Load) -> Result<()> {
    let old = site.leader().await?;
    site.step(&format!("PostgreSQL and Patroni of {old} are killed"));
    site.kill(&old, Part::Both).await?;
    // No Patroni runs there now: both pools must be without it.
    let leader = site.another_leads(&old).await?;
    commits_on(site, load, &leader).await?;
    site.start_host(&old)?;
    site.step(&format!("{old} starts again"));
    ensure!(site.wait_healthy(PATIENCE).await? == leader, "{leader} does not lead any more");
    site.followed(&leader).await?;
    let members = site.pool_targets("read", "app").await?;
    ensure!(members.contains(&old), "{old} did not join the read pool: {members:?}");
    site.step(&format!("{old} is in the read pool"));
    Ok(())
}

/// Patroni of the primary dies, its PostgreSQL goes on taking writes: links that lead there must go, too.
async fn patroni_killed(site: &mut Site, load: &Load) -> Result<()> {
    let old = site.leader().await?;
    site.step(&format!("Patroni of {old} is killed"));
    site.kill(&old, Part::Patroni).await?;
    let leader = site.another_leads(&old).await?;
    let in_recovery =
        sql::value(&site.superuser(&old, "postgres").await?, "SELECT pg_is_in_recovery()").await?;
    ensure!(in_recovery.as_deref() == Some("f"), "{old} takes no writes: this tests nothing");
    commits_on(site, load, &leader).await
}

/// PostgreSQL of the primary dies and Patroni starts it again: nothing moves, and nothing is lost. (Patroni may also
/// give up and let another member take over: that is followed.)
pub async fn postgres_killed(site: &mut Site, load: &Load, start: Instant) -> Result<()> {
    let old = site.leader().await?;
    let before = site.ini("write")?;
    site.step(&format!("PostgreSQL of {old} is killed"));
    site.kill(&old, Part::Postgres).await?;
    let leader = site.wait_healthy(PATIENCE).await?;
    site.followed(&leader).await?;
    commits_on(site, load, &leader).await?;
    if leader != old {
        site.step(&format!("{leader} took over"));
        return Ok(());
    }
    ensure!(site.ini("write")? == before, "the ini changed, though {old} still leads");
    let rows = ledger::complete(site, &leader, load, start).await?;
    site.step(&format!("{leader} leads again, all {rows} acknowledged rows are there"));
    Ok(())
}

/// Waits until every client has committed on the leader, and finds all that they were told from then on.
pub async fn commits_on(site: &Site, load: &Load, leader: &str) -> Result<()> {
    let server = site.address(leader)?;
    let since = load.wait_all_committed(Instant::now(), Some(server), PATIENCE).await?;
    load.wait_all_committed(since, Some(server), PATIENCE).await?;
    ledger::complete(site, leader, load, since).await.map(|_| ())
}
