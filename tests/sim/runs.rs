//! Whole runs: from a seed to a verdict.

use crate::faults::time_of_trouble;
use crate::invariants::Violation;
use crate::rng::Rng;
use crate::scenarios::Scenario;
use crate::setup::Setup;
use crate::world::World;
use pgsquire_core::rule::Rule;
use std::collections::BTreeMap;
use std::time::Duration;

/// A run that is over.
pub struct Run {
    seed: u64,
    scenario: Option<&'static Scenario>,
    broken: Option<Rule>,
    /// The invariant that was found broken.
    pub violation: Option<Violation>,
    /// From the last promotion to the last host that has loaded it, if all write pools lead there.
    pub followed: Option<Duration>,
    /// How long after the last change of the lock each host that asks the members showed it.
    pub noticed: BTreeMap<usize, Duration>,
    /// Its log, if it was kept.
    pub log: Vec<String>,
}

impl Run {
    /// A world by chance.
    pub fn random(seed: u64, broken: Option<Rule>) -> Run {
        Self::go(seed, None, broken, false)
    }

    /// A directed world; by chance are only the delays in it.
    pub fn scenario(scenario: &'static Scenario, seed: u64, broken: Option<Rule>) -> Run {
        Self::go(seed, Some(scenario), broken, false)
    }

    /// The same, with its log.
    pub fn again_with_log(&self) -> Run {
        Self::go(self.seed, self.scenario, self.broken, true)
    }

    fn go(seed: u64, scenario: Option<&'static Scenario>, broken: Option<Rule>, keep_log: bool) -> Run {
        let by_chance = || Setup::random(&mut Rng::new(seed ^ 0xABCD_EF01));
        let setup = Setup { broken, ..scenario.map_or_else(by_chance, |scenario| (scenario.setup)()) };
        let trouble = scenario.map_or(time_of_trouble(&setup), |s| Duration::from_secs(s.lasts));
        let mut world = World::new(setup, seed, keep_log);
        match scenario {
            Some(scenario) => world.plan_scenario(scenario),
            None => world.plan_faults(trouble),
        }
        world.run_for(trouble);
        let noticed = world.clusters[0].noticed.1.clone();
        if let Some(Err(text)) = scenario.map(|scenario| (scenario.ends)(&world)) {
            world.broken("E1", text);
        }
        if world.violation.is_none() && scenario.is_none_or(|scenario| scenario.settles) {
            world.check_liveness();
        }
        let followed = followed(&world);
        let World { violation, log, .. } = world;
        Run { seed, scenario, broken, violation, followed, noticed, log: log.unwrap_or_default() }
    }

    /// Its seed and what was found, in one line.
    pub fn headline(&self) -> String {
        let what = self.scenario.map_or("by chance", |scenario| scenario.name);
        match &self.violation {
            Some(v) => format!("seed {} ({what}): {} does not hold: {}", self.seed, v.invariant, v.text),
            None => format!("seed {} ({what}): all holds", self.seed),
        }
    }

    /// What to print when an invariant was broken: the end of the log, from the same run made again.
    pub fn report(&self) -> String {
        let log = self.again_with_log().log;
        let end = log.len().saturating_sub(120);
        let how = format!("SEED={} cargo test --test sim replay -- --nocapture", self.seed);
        format!("{}\n{}\n{how}", log[end..].join("\n"), self.headline())
    }
}

/// How long after the promotion the last pooler led there and let its clients go on.
fn followed(world: &World) -> Option<Duration> {
    let promoted = world.clusters[0].promoted?;
    let poolers = world.hosts.iter().flat_map(|host| &host.poolers);
    let moved: Option<Vec<Duration>> = poolers
        .map(|pooler| {
            let done = (*pooler.moved.get("app")?).max(pooler.pauses.ended?);
            (done >= promoted && pooler.pauses.ours.is_none()).then(|| done.since(promoted))
        })
        .collect();
    moved?.into_iter().max()
}

/// A number from the environment.
pub fn number_from(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}
