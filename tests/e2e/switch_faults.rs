//! Who takes part in a switchover dies in the middle of it: nothing stays paused, nothing is lost.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pgsquire_lab::step::{Step, Steps};
use pgsquire_lab::{Component, LoadSpec, Part, Spec, Switch};

use crate::clients::Clients;
use crate::site::{PATIENCE, Site, with};
use crate::switch::{POOLERS, switch_unseen, switching};

const EACH: usize = 10;

/// Who dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    /// The agent on the old primary's host.
    Coordinator,
    /// The agent of one of the poolers.
    PoolerAgent,
    /// One of the poolers.
    PgBouncer,
}

/// When the dead one starts again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Back {
    /// When everything else is over.
    Late,
    /// At once.
    Soon,
}

/// With settings so short that a test can wait for the guard. A pool whose agent is dead leads to a primary that is gone;
/// then PgBouncer's own back-off (15 s) would be longer than every pause of ours.
fn short() -> Spec {
    let spec = switching();
    let poolers = spec.poolers.into_iter().map(|pooler| pooler.login_retry(1)).collect();
    Spec { switch: Switch::short(), poolers, ..spec }
}

/// One client's transactions are so long that a drain takes a while: there is time to hit somebody in it.
async fn clients(site: &Site) -> Result<Clients> {
    let slow = |spec: LoadSpec| LoadSpec { transaction: Some(Duration::from_millis(300)), ..spec };
    Clients::changed(site, &POOLERS, EACH, slow).await
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_that_die_while_they_drain_leave_nothing_paused() -> Result<()> {
    with(short(), async |site| {
        let clients = clients(site).await?;
        fault(site, &clients, Step::Drained, Victim::PoolerAgent, Back::Late).await?;
        fault(site, &clients, Step::Draining, Victim::Coordinator, Back::Late).await?;
        let leader = switch_unseen(site, &clients).await?;
        clients.book(site, &leader).await.map(|_| ())
    })
    .await
}

async fn at_each_step(victim: Victim, back: Back) -> Result<()> {
    with(short(), async |site| {
        let clients = clients(site).await?;
        for step in Step::ALL {
            fault(site, &clients, step, victim, back).await?;
        }
        let leader = switch_unseen(site, &clients).await?;
        clients.book(site, &leader).await.map(|_| ())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "matrix: the coordinator dies at each step"]
async fn the_coordinator_dies_at_each_step() -> Result<()> {
    at_each_step(Victim::Coordinator, Back::Late).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "matrix: a pooler's agent dies at each step"]
async fn a_poolers_agent_dies_at_each_step() -> Result<()> {
    at_each_step(Victim::PoolerAgent, Back::Late).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "matrix: a pooler's agent is restarted at each step"]
async fn a_poolers_agent_is_restarted_at_each_step() -> Result<()> {
    at_each_step(Victim::PoolerAgent, Back::Soon).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "matrix: PgBouncer dies at each step"]
async fn pgbouncer_dies_at_each_step() -> Result<()> {
    at_each_step(Victim::PgBouncer, Back::Soon).await
}

/// Orders a switchover, kills at the step, and proves that every pause ends by itself, within its time, before the dead
/// one is started again; then that everything is as before.
async fn fault(site: &mut Site, clients: &Clients, step: Step, victim: Victim, back: Back) -> Result<()> {
    let what = format!("{victim:?} dies at {step:?}");
    let (host, component) = match victim {
        Victim::Coordinator => (site.leader().await?, Component::Agent),
        Victim::PoolerAgent => (POOLERS[0].to_string(), Component::Agent),
        Victim::PgBouncer => (POOLERS[0].to_string(), Component::PgBouncer),
    };
    let part = if component == Component::Agent { Part::Agent } else { Part::PgBouncer };
    let from = Instant::now();
    let mut steps = Steps::watch(site).await?;
    let ordered = site.order_switchover().await?;
    // The word of the one that is to die, where it is a word that one waits for.
    let pooler = (victim != Victim::Coordinator).then_some(POOLERS[0]);
    steps.reach(step, pooler, PATIENCE).await?;
    site.kill(&host, part).await?;
    site.step(&what);
    if back == Back::Soon {
        site.start(&host, component)?;
    }
    // Whether the switchover happens is the fault's business.
    let outcome = ordered.await?.unwrap_or_else(|e| format!("{e:#}"));
    let leader = site.wait_healthy(PATIENCE).await.with_context(|| what.clone())?;
    let pause = clients.answered(from).await.with_context(|| what.clone())?;
    site.step(&format!(
        "{what}: {leader} leads ({outcome}), longest pause {pause:?}, {}",
        clients.errors(from)
    ));
    let bound = site.state().spec.switch.longest_pause();
    ensure!(pause <= bound, "{what}: a pause of {pause:?}, at most {bound:?} was promised");
    if back == Back::Late {
        site.start(&host, component)?;
        site.wait_agent(&host).await.with_context(|| what.clone())?;
    }
    site.followed(&leader).await.with_context(|| what.clone())?;
    clients.served(site, &leader).await.with_context(|| what.clone())
}

/// A pooler's agent is dead when a switchover is ordered: the others are switched unseen, its own clients wait for its
/// return at the worst.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "matrix: an agent is dead before a switchover"]
async fn an_agent_that_is_dead_before_a_switchover_does_not_stop_it() -> Result<()> {
    with(short(), async |site| {
        let (near, far) = (
            Clients::start(site, &POOLERS[..1], EACH).await?,
            Clients::changed(site, &POOLERS[1..], EACH, second).await?,
        );
        let old = site.leader().await?;
        site.kill(POOLERS[1], Part::Agent).await?;
        let from = Instant::now();
        let leader = site.switchover(None).await?;
        site.step(&format!("{leader} leads instead of {old}"));
        site.wait_healthy(PATIENCE).await?;
        near.served(site, &leader).await?;
        near.saw_nothing(from).context("through the pooler whose agent lives")?;
        site.step(&format!("through the other: {}", far.errors(from)));
        site.start(POOLERS[1], Component::Agent)?;
        site.followed(&leader).await?;
        far.served(site, &leader).await?;
        near.book(site, &leader).await?;
        far.book(site, &leader).await.map(|_| ())
    })
    .await
}

/// Their rows are not those of the first pooler's clients.
fn second(spec: LoadSpec) -> LoadSpec {
    LoadSpec { first: 1000, ..spec }
}

/// One etcd of three dies while the poolers drain: nobody sees anything.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "matrix: an etcd dies during a switchover"]
async fn an_etcd_that_dies_during_a_switchover_is_not_missed() -> Result<()> {
    with(short(), async |site| {
        let clients = clients(site).await?;
        for etcd in ["etcd1", "etcd2"] {
            let from = Instant::now();
            let mut steps = Steps::watch(site).await?;
            let ordered = site.order_switchover().await?;
            steps.reach(Step::Draining, None, PATIENCE).await?;
            site.kill(etcd, Part::Store).await?;
            site.step(&format!("{etcd} dies"));
            let outcome = ordered.await?.unwrap_or_else(|e| format!("{e:#}"));
            let leader = site.wait_healthy(PATIENCE).await?;
            let pause = clients.answered(from).await?;
            site.step(&format!("{leader} leads ({outcome}), pause {pause:?}, {}", clients.errors(from)));
            ensure!(pause <= site.state().spec.switch.longest_pause(), "a pause of {pause:?}");
            site.start(etcd, Component::Etcd)?;
            site.followed(&leader).await?;
            clients.served(site, &leader).await?;
        }
        let leader = site.leader().await?;
        clients.book(site, &leader).await.map(|_| ())
    })
    .await
}

/// The store loses its quorum at each step of a switchover: pauses end, and all is well again with the quorum.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "matrix: the store loses its quorum during a switchover"]
async fn the_store_loses_its_quorum_during_a_switchover() -> Result<()> {
    with(short(), async |site| {
        let clients = clients(site).await?;
        for step in [Step::Draining, Step::Stopping] {
            let from = Instant::now();
            let mut steps = Steps::watch(site).await?;
            let ordered = site.order_switchover().await?;
            steps.reach(step, None, PATIENCE).await?;
            let dead = site.kill_quorum().await?;
            site.step(&format!("{} die at {step:?}", dead.join(", ")));
            let outcome = ordered.await?.unwrap_or_else(|e| format!("{e:#}"));
            // Nobody leads: PgBouncer itself makes clients wait while the demoted server starts again. Only its own log says
            // how long it was paused.
            let silence = clients.answered(from).await?;
            let pauses: Vec<Duration> =
                POOLERS.iter().map(|p| site.longest_pause(p)).collect::<Result<_>>()?;
            site.step(&format!(
                "{outcome}: pauses {pauses:?}, no answer for {silence:?}, {}",
                clients.errors(from)
            ));
            let bound = site.state().spec.switch.longest_pause();
            ensure!(pauses.iter().all(|p| *p <= bound), "{pauses:?}, at most {bound:?} was promised");
            for etcd in dead {
                site.start(&etcd, Component::Etcd)?;
            }
            let leader = site.wait_healthy(PATIENCE).await?;
            site.followed(&leader).await?;
            clients.served(site, &leader).await?;
            site.step(&format!("the store is back, {leader} leads"));
        }
        let leader = site.leader().await?;
        clients.book(site, &leader).await.map(|_| ())
    })
    .await
}
