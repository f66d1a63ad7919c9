//! Session pools: clients that keep their server link stay on an old primary that goes on living, until they are cut.

use std::time::Instant;

use anyhow::{Result, ensure};
use pgsquire_lab::{Load, Part, PgBouncerBuild, Pooler, Spec, sql};

use crate::ledger;
use crate::site::{PATIENCE, Site, fact, spec, value, with};

const CLIENTS: usize = 5;

fn session_pool(pgbouncer: PgBouncerBuild) -> Spec {
    let agent_settings = "[switch]\nstale_after = \"3s\"".to_string();
    Spec { agent_settings, pgbouncer, ..spec() }.pooler(Pooler::write().set("pool_mode", "session"))
}

/// PgBouncer 1.18 cuts with KILL, which leaves the database paused until RESUME.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the matrix"]
async fn sessions_on_the_old_primary_are_cut_by_kill() -> Result<()> {
    with(session_pool(PgBouncerBuild::System), async |site| {
        stale_sessions(site, "KILL 'app' command issued").await
    })
    .await
}

/// PgBouncer 1.24 cuts single clients with KILL_CLIENT.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the matrix"]
async fn sessions_on_the_old_primary_are_cut_by_kill_client() -> Result<()> {
    with(session_pool(PgBouncerBuild::Debian13), async |site| {
        stale_sessions(site, "admin forced disconnect").await
    })
    .await
}

/// Patroni of the primary dies and its PostgreSQL goes on: only a cut takes the sessions away from it. PgBouncer
/// logs it with these words.
async fn stale_sessions(site: &mut Site, words: &str) -> Result<()> {
    let load = site.load("write", CLIENTS).await?;
    let old = site.leader().await?;
    site.kill(&old, Part::Patroni).await?;
    site.step(&format!("Patroni of {old} is killed"));
    fact("another leader", || async {
        ensure!(site.leader().await? != old, "{old} leads");
        Ok(())
    })
    .await?;
    let leader = site.wait_healthy(PATIENCE).await?;
    served(site, &load, &leader).await?;
    site.recorded("write", "order", "cut links of app to").await?;
    let log = std::fs::read_to_string(site.host("write")?.log(pgsquire_lab::Component::PgBouncer))?;
    ensure!(log.contains(words), "PgBouncer's log has no `{words}`");
    let client = site.superuser(&old, "postgres").await?;
    let in_recovery = sql::value(&client, "SELECT pg_is_in_recovery()").await?;
    ensure!(in_recovery.as_deref() == Some("f"), "{old} takes no writes: this tests nothing");
    site.step("the sessions are on the new primary");
    site.start_host(&old)?;
    site.wait_healthy(PATIENCE).await?;
    let leader = site.switch_and_follow().await?;
    served(site, &load, &leader).await
}

/// Every client commits on the leader, no link leads elsewhere, nothing is paused, nothing is lost from then on.
async fn served(site: &Site, load: &Load, leader: &str) -> Result<()> {
    site.followed(leader).await?;
    let server = Some(site.address(leader)?);
    let since = load.wait_all_committed(Instant::now(), server, PATIENCE).await?;
    load.wait_all_committed(since, server, PATIENCE).await?;
    for row in site.console("write", "SHOW DATABASES").await? {
        ensure!(value(&row, "paused") != "1", "{} is left paused", value(&row, "name"));
    }
    ledger::complete(site, leader, load, since).await.map(|_| ())
}
