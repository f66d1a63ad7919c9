//! Patroni clusters that keep their truth elsewhere than in etcd, and agents that have no store at all. (etcd is what all
//! other tests have.)
//!
//! Each test rests on `followed`, too: after each change `/primary` is 200 on the leader's host and 503 elsewhere, and
//! `/pool/write` is 200. None of these stores tells how long the leader's lease lasts: its Patroni proves it.

use std::time::Instant;

use anyhow::{Result, ensure};
use pgsquire_lab::{Pooler, Spec, Store};

use crate::clients::Clients;
use crate::site::{PATIENCE, Site, spec, with};
use crate::switch::{EACH, follow_kill, hooked, primary_killed, rejoin, switch_unseen};

const POOLER: &str = "write";

/// A write pooler on a cluster with this store; with hooks where the agents have a place to agree in.
fn on(store: Store, members: usize) -> Spec {
    let plan = if store.has_agents_keys() { hooked() } else { spec() };
    Spec { store, members, ..plan }.pooler(Pooler::write().named(POOLER))
}

/// So many switchovers that no writing client sees.
async fn unseen(store: Store, switchovers: usize) -> Result<()> {
    with(on(store, 2), async |site| {
        let clients = Clients::start(site, &[POOLER], EACH).await?;
        for _ in 0..switchovers {
            switch_unseen(site, &clients).await?;
        }
        nothing_late(site, &clients).await
    })
    .await
}

/// The same on three members, and a kill of the primary.
async fn unseen_and_killed(store: Store) -> Result<()> {
    with(on(store, 3), async |site| {
        let clients = Clients::start(site, &[POOLER], EACH).await?;
        for _ in 0..5 {
            switch_unseen(site, &clients).await?;
        }
        nothing_late(site, &clients).await?;
        site.synchronous(PATIENCE).await?;
        primary_killed(site, &clients).await
    })
    .await
}

/// Every acknowledged row is there, and no old server took one after a new one had begun.
async fn nothing_late(site: &Site, clients: &Clients) -> Result<()> {
    let late = clients.book(site, &site.leader().await?).await?;
    ensure!(late == 0, "the old side took {late} commits after the new one");
    Ok(())
}

/// A switchover without a drain: it is followed, every client is served again and every acknowledged row is there. What
/// the clients saw go wrong is said and not judged.
async fn followed_without_drain(site: &Site, clients: &Clients) -> Result<()> {
    let from = Instant::now();
    let leader = site.switch_and_follow().await?;
    clients.served(site, &leader).await?;
    site.step(&clients.errors(from));
    clients.book(site, &leader).await.map(|_| ())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switchover_is_not_seen_with_consul() -> Result<()> {
    unseen(Store::Consul, 1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switchover_is_not_seen_with_zookeeper() -> Result<()> {
    unseen(Store::ZooKeeper, 1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switchover_is_followed_by_the_rest_api_alone() -> Result<()> {
    with(on(Store::RestOnly(1), 2), async |site| {
        let clients = Clients::start(site, &[POOLER], EACH).await?;
        followed_without_drain(site, &clients).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "matrix: five switchovers and a kill with Consul"]
async fn switchovers_and_a_kill_with_consul() -> Result<()> {
    unseen_and_killed(Store::Consul).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "matrix: five switchovers and a kill with ZooKeeper"]
async fn switchovers_and_a_kill_with_zookeeper() -> Result<()> {
    unseen_and_killed(Store::ZooKeeper).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "matrix: five switchovers and a kill with the REST API alone"]
async fn switchovers_and_a_kill_with_the_rest_api_alone() -> Result<()> {
    with(on(Store::RestOnly(1), 3), async |site| {
        let clients = Clients::start(site, &[POOLER], EACH).await?;
        for _ in 0..5 {
            followed_without_drain(site, &clients).await?;
        }
        site.synchronous(PATIENCE).await?;
        let (old, leader) = follow_kill(site, &clients).await?;
        rejoin(site, &clients, &old, &leader).await
    })
    .await
}
