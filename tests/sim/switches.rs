//! Switches in which one thing goes wrong on purpose, or nothing at all.

use crate::faults::Fault;
use crate::scenarios::{POOL, Scenario};
use crate::setup::{ClusterSetup, PoolerSetup, Setup, route};
use crate::world::{BEGIN, World};
use pgsquire_core::config::{Fence, Route, RouteTo};
use pgsquire_core::time::Time;
use std::time::Duration;

/// A second pooler host, with another PgBouncer.
const OTHER: usize = 4;

/// A scenario in which all comes right in the end.
const fn switch(
    name: &'static str,
    setup: fn() -> Setup,
    faults: &'static [(u64, Fault, bool)],
    lasts: u64,
    ends: fn(&World) -> Result<(), String>,
) -> Scenario {
    Scenario { name, setup, faults, lasts, settles: true, ends }
}

const AT: u64 = 8_000;
/// Poolers that live and answer have drained by then.
const AT_ONCE: Duration = Duration::from_millis(500);
const SWITCHOVER: (u64, Fault, bool) = (AT, Fault::Switchover(0), true);

/// All of them.
pub const ALL: &[Scenario] = &[
    switch("a planned switchover in a calm world", busy, &[SWITCHOVER], 25, promoted_without_errors),
    switch("the same with sessions", sessions, &[SWITCHOVER], 40, promoted),
    switch("the same with a strict fence", strict, &[SWITCHOVER], 25, promoted_without_errors),
    switch("the same with Patroni 3.0.2", old_patroni, &[SWITCHOVER], 30, promoted),
    switch(
        "two switchovers in a row",
        busy,
        &[SWITCHOVER, (16_000, Fault::Switchover(0), true)],
        30,
        promoted_without_errors,
    ),
    switch("the primary is restarted", busy, &[(AT, Fault::Restart(0), true)], 20, no_errors),
    switch(
        "a switchover is scheduled",
        busy,
        &[(AT, Fault::Scheduled(0), true), (20_000, Fault::Restart(0), true)],
        40,
        no_errors,
    ),
    switch(
        "the coordinator dies before the stop",
        busy,
        &[SWITCHOVER, (AT + 450, Fault::Agent(0), true)],
        60,
        anything,
    ),
    switch(
        "the coordinator dies at the stop",
        busy,
        &[SWITCHOVER, (AT + 900, Fault::Agent(0), true)],
        60,
        anything,
    ),
    switch(
        "the coordinator dies after the stop",
        busy,
        &[SWITCHOVER, (AT + 1_500, Fault::Agent(0), true)],
        60,
        anything,
    ),
    switch(
        "the coordinator hangs",
        busy,
        &[SWITCHOVER, (AT + 900, Fault::AgentHangs(0), true)],
        60,
        anything,
    ),
    switch(
        "the agent of a pooler dies while it is paused, and nobody takes over",
        busy,
        &[
            (AT, Fault::Machine(0, 0), true),
            (AT, Fault::Machine(0, 1), true),
            (AT, Fault::Machine(0, 2), true),
            (AT + 2_000, Fault::Agent(POOL), true),
        ],
        95,
        anything,
    ),
    switch(
        "the agent of a pooler hangs while it is paused, and nobody takes over",
        busy,
        &[
            (AT, Fault::Machine(0, 0), true),
            (AT, Fault::Machine(0, 1), true),
            (AT, Fault::Machine(0, 2), true),
            (AT + 2_000, Fault::AgentHangs(POOL), true),
        ],
        95,
        anything,
    ),
    switch(
        "the agent of a pooler is started again while it is paused",
        busy,
        &[SWITCHOVER, (AT + 1_500, Fault::Agent(POOL), true), (AT + 1_700, Fault::Agent(POOL), false)],
        40,
        promoted,
    ),
    switch(
        "the agent of a pooler is stopped while it is paused",
        busy,
        &[SWITCHOVER, (AT + 1_500, Fault::AgentStopped(POOL), true)],
        40,
        promoted,
    ),
    switch(
        "PgBouncer is restarted while it is paused",
        busy,
        &[SWITCHOVER, (AT + 1_500, Fault::Pooler(POOL, 0), true)],
        40,
        promoted,
    ),
    switch(
        "the switchover is called off while one pooler is silent",
        busy,
        &[
            (AT - 100, Fault::AgentHangs(OTHER), true),
            SWITCHOVER,
            (AT + 2_000, Fault::CalledOff(0), true),
            (AT + 2_500, Fault::AgentHangs(OTHER), false),
        ],
        40,
        no_errors,
    ),
    switch(
        "one pooler is silent",
        busy,
        &[(AT - 100, Fault::AgentHangs(OTHER), true), SWITCHOVER, (30_000, Fault::AgentHangs(OTHER), false)],
        60,
        promoted,
    ),
    switch(
        "the operator has paused a database",
        busy,
        &[
            (5_000, Fault::OperatorPauses(POOL, 0, false), true),
            (5_000, Fault::OperatorPauses(OTHER, 0, false), true),
            SWITCHOVER,
        ],
        40,
        promoted,
    ),
    switch(
        "the operator has paused the process",
        busy,
        &[
            (5_000, Fault::OperatorPauses(POOL, 0, true), true),
            (5_000, Fault::OperatorPauses(OTHER, 0, true), true),
            SWITCHOVER,
        ],
        40,
        promoted,
    ),
    switch("the primary is lost", busy, &[(AT, Fault::Machine(0, 0), true)], 60, promoted_with_few_errors),
    switch(
        "the primary's server dies and comes back",
        busy,
        &[(AT, Fault::Postgres(0, 0), true)],
        60,
        few_errors,
    ),
    switch(
        "the leader key is away for a moment, and the primary is well",
        busy,
        &[(AT, Fault::LeaderKey(0), true)],
        30,
        no_errors,
    ),
    switch(
        "a switchover, while another cluster of the same poolers is lost for good",
        two_clusters,
        &[(AT, Fault::Machine(1, 0), true), (70_000, Fault::Switchover(0), true)],
        90,
        promoted_without_errors_of_app,
    ),
    switch(
        "a switchover after one that nobody took over, and lost servers are not waited for",
        no_failover_hold,
        &[
            SWITCHOVER,
            (AT + 1_500, Fault::Machine(0, 0), true),
            (AT + 1_500, Fault::Machine(0, 1), true),
            (AT + 1_500, Fault::Machine(0, 2), true),
            (40_000, Fault::Machine(0, 0), false),
            (40_000, Fault::Machine(0, 1), false),
            (40_000, Fault::Machine(0, 2), false),
            (80_000, Fault::Switchover(0), true),
        ],
        100,
        promoted_without_late_errors,
    ),
    switch(
        "a strict fence, after a restart that the primary was long back from",
        strict_without_failover_hold,
        &[
            (AT, Fault::Restart(0), true),
            (AT + 300, Fault::Machine(0, 0), true),
            (AT + 300, Fault::Machine(0, 1), true),
            (AT + 300, Fault::Machine(0, 2), true),
            (40_000, Fault::Machine(0, 0), false),
            (60_000, Fault::Machine(0, 1), false),
            (60_000, Fault::Machine(0, 2), false),
            (80_000, Fault::PatroniFrozen(0, 0), true),
        ],
        140,
        promoted_late,
    ),
    switch(
        "the store is away at the switchover",
        busy,
        &[SWITCHOVER, (AT + 700, Fault::Outage(0), true), (AT + 8_000, Fault::Outage(0), false)],
        60,
        anything,
    ),
    switch(
        "the store is rebuilt while pools wait",
        busy,
        &[SWITCHOVER, (AT + 1_500, Fault::Rebuilt(0, true), true)],
        60,
        anything,
    ),
    switch(
        "the store is rebuilt under another name while pools wait",
        busy,
        &[SWITCHOVER, (AT + 1_500, Fault::Rebuilt(0, false), true)],
        60,
        anything,
    ),
    switch(
        "a strict fence, and the agent of a pooler is dead",
        strict,
        &[(6_000, Fault::Agent(POOL), true), (AT, Fault::PatroniFrozen(0, 0), true)],
        70,
        not_promoted,
    ),
    switch(
        "a strict fence, and a pooler is cut off from the store",
        strict,
        &[(7_000, Fault::HostStore(POOL, 0), true), (AT, Fault::PatroniFrozen(0, 0), true)],
        70,
        not_promoted,
    ),
    switch(
        "a strict fence, and all poolers live while the old primary goes on",
        strict,
        &[(AT, Fault::PatroniFrozen(0, 0), true)],
        70,
        promoted,
    ),
];

/// Clients that ask often, and two pooler hosts: one of them fills its pools up.
pub fn busy() -> Setup {
    let mut setup = Setup { pace: 20, ..Setup::plain() };
    let other = PoolerSetup { version: (1, 24), min_pool_size: 2, ..setup.hosts[POOL].poolers[0].clone() };
    let host = setup.hosts[POOL].clone();
    setup.hosts.push(crate::setup::HostSetup { poolers: vec![other], ..host });
    setup
}

fn sessions() -> Setup {
    let mut setup = busy();
    setup.hosts[POOL].poolers[0].sessions = true;
    setup
}

fn strict() -> Setup {
    Setup { fence: Fence::Strict, ..busy() }
}

fn old_patroni() -> Setup {
    let mut setup = busy();
    setup.clusters[0].old_patroni = true;
    setup
}

/// Each pooler has a database in a second cluster of one member, too.
fn two_clusters() -> Setup {
    let mut setup = busy();
    setup.clusters.push(ClusterSetup { members: 1, ..setup.clusters[0].clone() });
    let other = Route { cluster: "second".into(), ..route(RouteTo::Primary) };
    for pooler in setup.hosts.iter_mut().flat_map(|host| &mut host.poolers) {
        pooler.routes.insert("other".into(), other.clone());
    }
    setup
}

fn no_failover_hold() -> Setup {
    Setup { failover_hold: 0, ..busy() }
}

fn strict_without_failover_hold() -> Setup {
    Setup { failover_hold: 0, ..strict() }
}

fn anything(_: &World) -> Result<(), String> {
    Ok(())
}

fn at_most(world: &World, errors: usize) -> Result<(), String> {
    match world.errors.len() {
        n if n <= errors => Ok(()),
        n => Err(format!("clients saw {n} errors, not {errors} at most")),
    }
}

fn no_errors(world: &World) -> Result<(), String> {
    at_most(world, 0)
}

/// One for each link, and one for each question that was put before the loss was seen.
fn few_errors(world: &World) -> Result<(), String> {
    at_most(world, 10)
}

fn promoted(world: &World) -> Result<(), String> {
    world.clusters[0].promoted.map(|_| ()).ok_or_else(|| "nobody was promoted".to_string())
}

fn not_promoted(world: &World) -> Result<(), String> {
    match world.clusters[0].promoted {
        Some(_) => Err("a member was promoted although a pooler did not give its word".into()),
        None => Ok(()),
    }
}

fn promoted_without_errors(world: &World) -> Result<(), String> {
    if world.waited > AT_ONCE {
        return Err(format!("before_stop waited {:?}", world.waited));
    }
    promoted(world).and_then(|()| no_errors(world))
}

fn promoted_without_errors_of_app(world: &World) -> Result<(), String> {
    promoted(world).and_then(|()| none_of(world, |(_, database)| database == "app"))
}

fn promoted_late(world: &World) -> Result<(), String> {
    match world.clusters[0].promoted.filter(|at| *at > BEGIN + Duration::from_secs(80)) {
        Some(_) => Ok(()),
        None => Err("nobody was promoted in the end".into()),
    }
}

/// Clients saw errors in the outage, and none in the switchover a long time after it.
fn promoted_without_late_errors(world: &World) -> Result<(), String> {
    let late = BEGIN + Duration::from_secs(70);
    promoted(world).and_then(|()| none_of(world, |(at, _)| *at > late))
}

fn none_of(world: &World, such: impl Fn(&(Time, String)) -> bool) -> Result<(), String> {
    match world.errors.iter().find(|error| such(error)) {
        Some((at, database)) => Err(format!("clients of {database} saw an error at {at:?}")),
        None => Ok(()),
    }
}

pub fn promoted_with_few_errors(world: &World) -> Result<(), String> {
    promoted(world).and_then(|()| few_errors(world))
}
