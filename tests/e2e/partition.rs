//! Hosts that are cut off, a store without quorum, a Patroni that hangs.

use anyhow::{Context, Result, bail, ensure};
use pgsquire_lab::{Component, Part, sql};

use crate::kill::commits_on;
use crate::site::{PATIENCE, Site, fact, spec, with, write_and_read};

const CLIENTS: usize = 5;

/// The old primary's host is alone and its Patroni hangs, so that its PostgreSQL goes on taking writes: the pools follow
/// the others, and its own agent does not say "primary: up" past the proved end of the lease.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the matrix"]
async fn the_primary_is_cut_off() -> Result<()> {
    with(write_and_read(spec()), async |site| {
        if let Err(why) = &site.state().cuts {
            bail!("hosts cannot be cut off here: {why}");
        }
        let load = site.load("write", CLIENTS).await?;
        let old = site.leader().await?;
        site.freeze(&old, Part::Patroni)?;
        site.isolate(&old)?;
        site.step(&format!("{old} is cut off"));
        let leader = others_lead(site, &old).await?;
        pool_is_on(site, &leader).await?;
        commits_on(site, &load, &leader).await?;
        let server = site.superuser(&old, "postgres").await?;
        let in_recovery = sql::value(&server, "SELECT pg_is_in_recovery()").await?;
        ensure!(in_recovery.as_deref() == Some("f"), "{old} takes no writes: this tests nothing");
        // Its control socket is not the network.
        let (_, status) = site.command(&old, &["status", "--json"]).await?;
        let status: serde_json::Value = serde_json::from_str(&status).context("status of the one cut off")?;
        let primary = &status["local"]["primary"];
        ensure!(!is_up(&status, primary), "{old} says that it is primary: {primary}");
        site.step(&format!("{leader} is followed"));
        drop(server);
        site.heal()?;
        site.thaw(&old, Part::Patroni)?;
        site.wait_healthy(PATIENCE).await?;
        site.followed(&leader).await?;
        ensure!(site.pool_targets("read", "app").await?.contains(&old), "{old} is not in the read pool");
        Ok(())
    })
    .await
}

/// A verdict is up until its end and no longer.
fn is_up(status: &serde_json::Value, verdict: &serde_json::Value) -> bool {
    verdict["up"] == true && verdict["valid_until"].as_u64() >= status["at"].as_u64()
}

/// The store without quorum: nothing moves, verdicts about the primary turn red, and all is well again with the quorum.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the matrix"]
async fn the_store_loses_its_quorum() -> Result<()> {
    with(write_and_read(spec()), async |site| {
        let load = site.load("write", CLIENTS).await?;
        let leader = site.leader().await?;
        let inis = [site.ini("write")?, site.ini("read")?];
        for etcd in ["etcd1", "etcd2"] {
            site.kill(etcd, Part::Store).await?;
        }
        site.step("two of three etcd are dead");
        // Patroni gives up being primary: nobody vouches for it.
        for (host, path) in [("write", "/pool/write"), (&leader, "/primary")] {
            fact(&format!("{path} is red"), || site.answers(host, path, 503)).await?;
        }
        fact("the facts are too old", || async {
            let status = site.status("write").await?;
            ensure!(status["clusters"][0]["store"]["known"] == false, "{}", status["clusters"][0]);
            Ok(())
        })
        .await?;
        fact("/pool/read is green: its members answer", || site.answers("read", "/pool/read", 200)).await?;
        site.answers("write", "/liveness", 200).await?;
        ensure!(inis == [site.ini("write")?, site.ini("read")?], "a pool was moved on no facts");
        for etcd in ["etcd1", "etcd2"] {
            site.start(etcd, Component::Etcd)?;
        }
        site.step("they are back");
        let leader = site.wait_healthy(PATIENCE).await?;
        site.followed(&leader).await?;
        commits_on(site, &load, &leader).await?;
        let leader = site.switch_and_follow().await?;
        commits_on(site, &load, &leader).await
    })
    .await
}

/// Patroni of the primary hangs, its PostgreSQL goes on: another one takes over, and two are never up at once.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the matrix"]
async fn a_frozen_patroni_loses_the_lead() -> Result<()> {
    with(write_and_read(spec()), async |site| {
        let load = site.load("write", CLIENTS).await?;
        let old = site.leader().await?;
        site.freeze(&old, Part::Patroni)?;
        site.step(&format!("Patroni of {old} is frozen"));
        let leader = others_lead(site, &old).await?;
        site.answers(&old, "/primary", 503).await?;
        pool_is_on(site, &leader).await?;
        commits_on(site, &load, &leader).await?;
        site.thaw(&old, Part::Patroni)?;
        site.step("it thaws");
        site.wait_healthy(PATIENCE).await?;
        site.followed(&leader).await?;
        commits_on(site, &load, &leader).await
    })
    .await
}

/// Waits until the agents of the others name another leader. (The lab's own question could go to the one in trouble.)
async fn others_lead(site: &Site, old: &str) -> Result<String> {
    let asked = || async {
        let status = site.status("write").await?;
        let cluster = &status["clusters"][0];
        let leader = cluster["leader"].as_str().unwrap_or_default();
        ensure!(cluster["writable"] == true && leader != old, "leader: `{leader}`, writable: {cluster}");
        Ok(())
    };
    fact(&format!("another leader than {old}"), asked).await?;
    let status = site.status("write").await?;
    Ok(status["clusters"][0]["leader"].as_str().context("no leader")?.to_string())
}

async fn pool_is_on(site: &Site, leader: &str) -> Result<()> {
    let target = [leader.to_string()];
    fact(&format!("the write pool leads to {leader}"), || site.leads("write", "app", &target)).await?;
    fact("it is green", || site.answers("write", "/pool/write", 200)).await?;
    fact("the new primary says so", || site.answers(leader, "/primary", 200)).await
}
