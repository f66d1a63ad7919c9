//! Planned changes of the primary with Patroni's hooks in use: nobody sees them.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use pgsquire_lab::hooks;
use pgsquire_lab::keys::{Keys, own_prefix, patroni_prefix};
use pgsquire_lab::{Part, Pooler, Spec};

use crate::clients::Clients;
use crate::site::{PATIENCE, Site, spec, with};

/// The two pooler hosts.
pub const POOLERS: [&str; 2] = ["write", "write2"];
/// On each of them.
pub const EACH: usize = 25;

/// Agents on all hosts, Patroni runs their hooks and it is written down how long they took; no poolers yet.
pub fn hooked() -> Spec {
    Spec { hooks: true, time_hooks: true, ..spec() }
}

/// The same with two pooler hosts.
pub fn switching() -> Spec {
    POOLERS.iter().fold(hooked(), |spec, name| spec.pooler(Pooler::write().named(name)))
}

#[tokio::test(flavor = "multi_thread")]
async fn planned_changes_are_not_seen_and_a_kill_costs_one_error() -> Result<()> {
    with(switching(), async |site| {
        let clients = Clients::start(site, &POOLERS, EACH).await?;
        for _ in 0..3 {
            switch_unseen(site, &clients).await?;
        }
        restart_unseen(site, &clients).await?;
        let leader = site.leader().await?;
        ensure!(clients.book(site, &leader).await? == 0, "the old side took commits after the new one");
        site.synchronous(PATIENCE).await?;
        primary_killed(site, &clients).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "matrix: 20 switchovers and 5 restarts"]
async fn twenty_switchovers_and_five_restarts_are_not_seen() -> Result<()> {
    with(switching(), async |site| {
        let clients = Clients::start(site, &POOLERS, EACH).await?;
        for _ in 0..20 {
            switch_unseen(site, &clients).await?;
        }
        for _ in 0..5 {
            restart_unseen(site, &clients).await?;
        }
        let leader = site.leader().await?;
        ensure!(clients.book(site, &leader).await? == 0, "the old side took commits after the new one");
        Ok(())
    })
    .await
}

/// A planned switchover that no writing client sees; the barrier was there, and all goes on afterwards.
pub async fn switch_unseen(site: &mut Site, clients: &Clients) -> Result<String> {
    let (old, from) = (site.leader().await?, Instant::now());
    let before = hooks::runs(site.host(&old)?).len();
    let leader = site.switch_and_follow().await?;
    clients.served(site, &leader).await?;
    barrier(site, &old, before)?;
    clients.saw_nothing(from).with_context(|| format!("switchover from {old} to {leader}"))?;
    Ok(leader)
}

/// A restart of the primary that no writing client sees.
async fn restart_unseen(site: &mut Site, clients: &Clients) -> Result<()> {
    let (leader, from) = (site.leader().await?, Instant::now());
    let before = hooks::runs(site.host(&leader)?).len();
    site.rest()?.restart(&leader).await.with_context(|| format!("restarting {leader}"))?;
    site.step(&format!("{leader} was restarted"));
    ensure!(site.wait_healthy(PATIENCE).await? == leader, "{leader} does not lead any more");
    clients.served(site, &leader).await?;
    barrier(site, &leader, before)?;
    clients.saw_nothing(from).with_context(|| format!("restart of {leader}"))
}

/// `before_stop` has run on the member: else nobody's seeing nothing would be chance.
fn barrier(site: &Site, member: &str, before: usize) -> Result<()> {
    let runs = hooks::runs(site.host(member)?).split_off(before);
    let run = runs.iter().find(|r| r.hook == "before-stop").context("before-stop did not run")?;
    ensure!(run.code == 0, "before-stop ended with {}", run.code);
    site.step(&format!("before-stop took {:?}", run.took()));
    Ok(())
}

/// PostgreSQL and Patroni of the primary are killed: a client that waits a little sees one error, and nothing is lost.
pub async fn primary_killed(site: &mut Site, clients: &Clients) -> Result<()> {
    let from = Instant::now();
    let (old, leader) = follow_kill(site, clients).await?;
    clients.saw_one_error_at_most(from)?;
    rejoin(site, clients, &old, &leader).await
}

/// Kills PostgreSQL and Patroni of the primary and waits until another member serves every client: who led, and who leads.
pub async fn follow_kill(site: &mut Site, clients: &Clients) -> Result<(String, String)> {
    let (old, from) = (site.leader().await?, Instant::now());
    site.step(&format!("PostgreSQL and Patroni of {old} are killed"));
    site.kill(&old, Part::Both).await?;
    let leader = site.another_leads(&old).await?;
    clients.served(site, &leader).await?;
    site.step(&clients.errors(from));
    Ok((old, leader))
}

/// Starts what was killed, and finds every acknowledged row.
pub async fn rejoin(site: &mut Site, clients: &Clients, old: &str, leader: &str) -> Result<()> {
    site.start_host(old)?;
    site.wait_healthy(PATIENCE).await?;
    site.followed(leader).await?;
    clients.book(site, leader).await.map(|_| ())
}

/// Patroni has noted a switchover for tomorrow, and the primary is restarted today: the restart is drained as one, and
/// the switchover stays noted.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "matrix: a switchover tomorrow, a restart today"]
async fn a_switchover_tomorrow_does_not_disturb_a_restart_today() -> Result<()> {
    with(switching(), async |site| {
        let clients = Clients::start(site, &POOLERS, EACH).await?;
        let candidate = site.switchover_tomorrow().await?;
        site.step(&format!("{candidate} will lead tomorrow"));
        let (keys, prefix) = (Keys::of(site.state(), 0)?, own_prefix(site.state()));
        let mut changes = keys.watch(&prefix).await?;
        restart_unseen(site, &clients).await?;
        let record = format!("{prefix}switch");
        let seen =
            changes.wait("the record of the restart", PATIENCE, |c| c.key == record && c.value.is_some());
        let kind = seen.await?.field("kind");
        ensure!(kind.as_deref() == Some("restart"), "it was drained as {kind:?}");
        let noted = keys.below(&format!("{}failover", patroni_prefix(site.state()))).await?;
        ensure!(noted.iter().any(|(_, v)| v.contains("scheduled_at")), "the switchover is gone: {noted:?}");
        site.rest()?.forget_switchover(&site.leader().await?).await?;
        switch_unseen(site, &clients).await.map(|_| ())
    })
    .await
}
