//! Switches in which one thing goes wrong on purpose, or nothing at all.

use crate::faults::Fault;
use crate::scenarios::{POOL, Scenario};
use crate::setup::{PoolerSetup, Setup};
use crate::world::World;
use pgsquire_core::config::Fence;

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
fn busy() -> Setup {
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

fn anything(_: &World) -> Result<(), String> {
    Ok(())
}

fn at_most(world: &World, errors: u64) -> Result<(), String> {
    match world.errors {
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
    promoted(world).and_then(|()| no_errors(world))
}

fn promoted_with_few_errors(world: &World) -> Result<(), String> {
    promoted(world).and_then(|()| few_errors(world))
}
