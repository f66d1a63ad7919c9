//! Switchovers in each pooling mode, with pools that a pause could poison, with transactions that stay open, and with
//! the oldest Patroni.

use std::time::{Duration, Instant};

use anyhow::Result;
use pgsquire_lab::{LoadSpec, PATRONI_OLD, PoolMode, Pooler, Spec, Target};

use crate::clients::Clients;
use crate::site::{PATIENCE, Site, with};
use crate::switch::{POOLERS, hooked, switch_unseen, switching};

const EACH: usize = 10;
const WRITE: [&str; 1] = ["write"];

/// One write pooler like this.
fn one(pooler: Pooler) -> Spec {
    hooked().pooler(pooler)
}

async fn unseen(spec: Spec, poolers: &[&str], change: impl Fn(LoadSpec) -> LoadSpec) -> Result<()> {
    with(spec, async |site| {
        let clients = Clients::changed(site, poolers, EACH, change).await?;
        let mut leader = site.leader().await?;
        for _ in 0..3 {
            leader = switch_unseen(site, &clients).await?;
        }
        clients.book(site, &leader).await.map(|_| ())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "matrix: statement pooling"]
async fn a_switchover_is_not_seen_in_statement_pooling() -> Result<()> {
    unseen(one(Pooler::write().mode(PoolMode::Statement)), &WRITE, |spec| spec).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "matrix: min_pool_size"]
async fn a_switchover_is_not_seen_by_pools_with_a_minimum() -> Result<()> {
    unseen(one(Pooler::write().min_pool_size(5)), &WRITE, |spec| spec).await
}

/// Another database of the process leads to a replica, so that only one of them can be paused.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "matrix: min_pool_size and a database of a replica"]
async fn a_switchover_is_not_seen_when_one_database_is_paused() -> Result<()> {
    let mut pooler = Pooler::write().min_pool_size(5);
    pooler.routes.push(("reports".into(), Target::Replica));
    unseen(one(pooler), &WRITE, |spec| spec).await
}

/// Transactions that are open when the drain begins end in time.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "matrix: transactions of half a second"]
async fn open_transactions_that_end_in_time_are_not_cut() -> Result<()> {
    unseen(switching(), &POOLERS, |spec| LoadSpec { transaction: Some(Duration::from_millis(500)), ..spec })
        .await
}

/// A client with a new connection for every transaction: those who come during the pause wait.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "matrix: new connections during a switchover"]
async fn clients_who_come_during_a_switchover_wait() -> Result<()> {
    unseen(switching(), &POOLERS, |spec| LoadSpec { fresh: true, pause: Duration::from_millis(200), ..spec })
        .await
}

/// Switches over while some clients must see something; nobody sees more than one error, and all goes on.
async fn switch_seen(site: &mut Site, clients: &Clients) -> Result<String> {
    let from = Instant::now();
    let leader = site.switch_and_follow().await?;
    clients.served(site, &leader).await?;
    site.step(&clients.errors(from));
    clients.saw_one_error_at_most(from)?;
    Ok(leader)
}

/// Transactions that outlive `drain_timeout` are cut: one error for each of their clients.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "matrix: transactions longer than drain_timeout"]
async fn transactions_that_outlive_the_drain_are_cut_once() -> Result<()> {
    with(switching(), async |site| {
        let long = |spec| LoadSpec { transaction: Some(Duration::from_secs(8)), ..spec };
        let clients = Clients::changed(site, &POOLERS, 3, long).await?;
        let leader = switch_seen(site, &clients).await?;
        clients.book(site, &leader).await.map(|_| ())
    })
    .await
}

/// Session pooling: each client keeps its link until the stop ends it with one error; nobody waits for them to leave.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "matrix: session pooling"]
async fn sessions_see_one_error_in_a_switchover() -> Result<()> {
    with(one(Pooler::write().mode(PoolMode::Session)), async |site| {
        let clients = Clients::start(site, &WRITE, EACH).await?;
        for _ in 0..3 {
            switch_seen(site, &clients).await?;
        }
        let leader = site.wait_healthy(PATIENCE).await?;
        clients.book(site, &leader).await.map(|_| ())
    })
    .await
}

/// Patroni before 3.0.3 has no `before_stop`: errors are counted and shown, nothing is lost, nothing stays paused.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "matrix: Patroni without before_stop"]
async fn without_before_stop_errors_are_counted_and_nothing_is_lost() -> Result<()> {
    let spec = Spec { patroni: PATRONI_OLD.into(), ..switching() };
    with(spec, async |site| {
        let clients = Clients::start(site, &POOLERS, EACH).await?;
        for _ in 0..3 {
            let from = Instant::now();
            let leader = site.switch_and_follow().await?;
            clients.served(site, &leader).await?;
            site.step(&format!("no barrier: {}", clients.errors(from)));
        }
        let leader = site.leader().await?;
        clients.book(site, &leader).await.map(|_| ())
    })
    .await
}
