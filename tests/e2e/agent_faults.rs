//! Faults beside the primary: the agent, PgBouncer and etcd are killed or frozen.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pgsquire_lab::{Component, Load, Part, Pooler, Spec};

use crate::site::{PATIENCE, Site, fact, spec, with};

#[tokio::test(flavor = "multi_thread")]
async fn agents_poolers_and_stores_that_die_are_survived() -> Result<()> {
    let spec = Spec { members: 2, ..spec() }.pooler(Pooler::write());
    with(spec, async |site| {
        let load = site.load("write", 5).await?;
        agent_killed(site, &load).await?;
        pgbouncer_killed(site, &load).await?;
        etcd_killed_then_frozen(site).await
    })
    .await
}

/// A switchover while the pooler's agent is dead: PgBouncer keeps what it has, and the agent catches up at its start.
async fn agent_killed(site: &mut Site, load: &Load) -> Result<()> {
    let old = site.leader().await?;
    site.kill("write", Part::Agent).await?;
    let (code, text) = site.command("write", &["plan"]).await?;
    ensure!(code == Some(3), "plan without a daemon ends with {code:?}: {text}");
    let leader = site.switchover(None).await?;
    site.wait_healthy(PATIENCE).await?;
    site.leads("write", "app", &[old]).await.context("nobody moved the pool, and yet")?;
    site.step(&format!("{leader} leads, nobody moved the pool: the agent starts"));
    site.start("write", Component::Agent)?;
    site.followed(&leader).await?;
    load.wait_all_committed(Instant::now(), Some(site.address(&leader)?), PATIENCE).await?;
    site.step("it caught up");
    Ok(())
}

/// PgBouncer dies and comes back while the agent runs.
async fn pgbouncer_killed(site: &mut Site, load: &Load) -> Result<()> {
    let leader = site.leader().await?;
    site.kill("write", Part::PgBouncer).await?;
    fact("the pool is red", || site.answers("write", "/pool/write", 503)).await?;
    site.troubled("write", "console").await?;
    site.answers("write", "/liveness", 200).await?;
    site.start("write", Component::PgBouncer)?;
    site.followed(&leader).await?;
    site.untroubled("write").await?;
    load.wait_all_committed(Instant::now(), Some(site.address(&leader)?), PATIENCE).await?;
    site.step("PgBouncer is back");
    Ok(())
}

/// One etcd of three is dead, then another one frozen: facts stay fresh, and a switchover is followed each time. The
/// agent begins with the first of its endpoints, and stays with the next one that answers.
async fn etcd_killed_then_frozen(site: &mut Site) -> Result<()> {
    site.kill("etcd1", Part::Store).await?;
    fresh_facts(site).await?;
    site.switch_and_follow().await.context("with a dead etcd")?;
    site.start("etcd1", Component::Etcd)?;
    fact("etcd1 is back", || async {
        let endpoint = pgsquire_lab::etcd::endpoints(site.state())[0];
        let http = pgsquire_lab::http::Http::new(Duration::from_secs(2))?;
        let health = http.json(&format!("http://{endpoint}/health")).await?;
        ensure!(health["health"] == "true", "it says {health}");
        Ok(())
    })
    .await?;
    site.step("etcd1 is back, etcd2 freezes");
    site.freeze("etcd2", Part::Store)?;
    fresh_facts(site).await?;
    site.switch_and_follow().await.context("with a frozen etcd")?;
    site.thaw("etcd2", Part::Store)
}

/// Waits for an answer of the store that is younger than this call.
async fn fresh_facts(site: &Site) -> Result<()> {
    let start = Instant::now();
    fact("the store answered since", || async {
        let status = site.status("write").await?;
        let store = &status["clusters"][0]["store"];
        let age = Duration::from_millis(store["age_ms"].as_u64().context("the store never answered")?);
        ensure!(store["known"] == true && age < start.elapsed(), "after {:?}: {store}", start.elapsed());
        Ok(())
    })
    .await
}
