//! The whole core on many hosts, in worlds where everything breaks: seeded, deterministic, without a clock.
//!
//! `SEEDS=20000 cargo test --test sim seeds` tries more worlds; `SEED=7 cargo test --test sim replay -- --nocapture`
//! shows one (with `SCENARIO=name` one of the directed ones). A failing run prints its seed, and the end of its log.

mod agent_host;
mod clients;
mod dcs;
mod faults;
mod hooks;
mod invariants;
mod liveness;
mod mask;
mod memory;
mod mending;
mod mutants;
mod orders;
mod outages;
mod patroni;
mod pausing;
mod peers;
mod pgbouncer;
mod polled;
mod postgres;
mod probe;
mod rest;
mod rest_only;
mod rng;
mod runs;
mod scenarios;
mod setup;
mod switch_faults;
mod switch_invariants;
mod switches;
mod watch;
mod workers;
mod world;

use runs::{Run, number_from};
use std::time::Duration;

/// Each order of the few that a move takes needs up to 11 ms in a calm world, a watch 20 ms.
const AT_ONCE: Duration = Duration::from_millis(150);
/// Each thread stops after so many failures.
const FAILURES: usize = 15;
/// Worlds that are tried without `SEEDS`.
const SEEDS: u64 = 2000;

fn assert_all_hold(failed: &[Run]) {
    if let Some(first) = failed.first() {
        let list: Vec<String> = failed.iter().map(Run::headline).collect();
        panic!("{}\n\n{}", first.report(), list.join("\n"));
    }
}

#[test]
fn seeds() {
    let count = number_from("SEEDS").unwrap_or(SEEDS);
    let failed = |first: u64| {
        move || -> Vec<Run> {
            let runs = (first..=count).step_by(2).map(|seed| Run::random(seed, None));
            runs.filter(|run| run.violation.is_some()).take(FAILURES).collect()
        }
    };
    let threads = [1, 2].map(|first| std::thread::spawn(failed(first)));
    let failed: Vec<Run> = threads.into_iter().flat_map(|t| t.join().expect("no panic")).collect();
    assert_all_hold(&failed);
}

#[test]
fn scenarios_hold() {
    let runs =
        scenarios::all().flat_map(|scenario| (1..=3).map(move |seed| Run::scenario(scenario, seed, None)));
    let failed: Vec<Run> = runs.filter(|run| run.violation.is_some()).collect();
    assert_all_hold(&failed);
}

#[test]
fn write_pools_follow_a_switchover_at_once() {
    let switchover = &scenarios::ALL[0];
    assert_eq!(switchover.name, "a switchover");
    for seed in 1..=20 {
        let followed = Run::scenario(switchover, seed, None).followed.expect("it was followed");
        assert!(followed < AT_ONCE, "seed {seed}: {followed:?}");
    }
}

#[test]
fn replay() {
    if let Some(seed) = number_from("SEED") {
        let named = std::env::var("SCENARIO").ok();
        let scenario = named.and_then(|name| scenarios::all().find(|scenario| scenario.name == name));
        let run = match scenario {
            Some(scenario) => Run::scenario(scenario, seed, None),
            None => Run::random(seed, None),
        };
        let run = run.again_with_log();
        println!("{}", run.log.join("\n"));
        assert!(run.violation.is_none(), "{:?}", run.violation);
    }
}

#[test]
fn the_same_seed_gives_the_same_log() {
    let log = || Run::random(4711, None).again_with_log().log;
    let first = log();
    assert!(first.len() > 100);
    assert!(first == log(), "the same seed gave two logs");
}
