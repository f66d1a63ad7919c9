//! Whole runs: from a seed to a verdict.

use crate::faults::time_of_trouble;
use crate::invariants::Violation;
use crate::rng::Rng;
use crate::setup::Setup;
use crate::world::World;
use pgsquire_core::rule::Rule;

/// A run that is over.
pub struct Run {
    /// Its seed.
    pub seed: u64,
    /// The rule that was broken on purpose.
    pub broken: Option<Rule>,
    /// The invariant that was found broken.
    pub violation: Option<Violation>,
    /// Its log, if it was kept.
    pub log: Vec<String>,
    /// Steps of the world.
    pub steps: u64,
}

impl Run {
    /// A world by chance.
    pub fn random(seed: u64, broken: Option<Rule>) -> Run {
        Self::go(seed, broken, false)
    }

    /// The same, with its log.
    pub fn again_with_log(&self) -> Run {
        Self::go(self.seed, self.broken, true)
    }

    fn go(seed: u64, broken: Option<Rule>, keep_log: bool) -> Run {
        let setup = Setup { broken, ..Setup::random(&mut Rng::new(seed ^ 0xABCD_EF01)) };
        let trouble = time_of_trouble(&setup);
        let mut world = World::new(setup, seed, keep_log);
        world.plan_faults(trouble);
        world.run_for(trouble);
        if world.violation.is_none() {
            world.check_liveness();
        }
        let World { violation, log, steps, .. } = world;
        Run { seed, broken, violation, log: log.unwrap_or_default(), steps }
    }

    /// Its seed and what was found, in one line.
    pub fn headline(&self) -> String {
        match &self.violation {
            Some(v) => format!("seed {}: {} does not hold: {}", self.seed, v.invariant, v.text),
            None => format!("seed {}: all holds", self.seed),
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

/// A number from the environment.
pub fn number_from(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}
