//! Worlds in which the agents ask the members, and what must hold there.

use crate::agent_host::Host;
use crate::faults::Fault;
use crate::invariants::MAX_FACT_AGE;
use crate::runs::Run;
use crate::scenarios::{POOL, Scenario, anything};
use crate::setup::Setup;
use crate::switches::{self, promoted_with_few_errors};
use crate::world::{Cluster, World};
use std::time::Duration;

/// From the moment at which another member has the lock to the agents' decision.
const DECIDED: Duration = Duration::from_millis(250);

/// All of them.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "without a store: a switchover",
        setup: plain,
        faults: &[(8_000, Fault::Switchover(0), true)],
        lasts: 20,
        settles: true,
        ends: led_to_the_leader,
    },
    Scenario {
        name: "without a store: the primary's machine dies",
        setup: plain,
        faults: &[(8_000, Fault::Machine(0, 0), true)],
        lasts: 50,
        settles: true,
        ends: led_to_the_leader,
    },
    Scenario {
        name: "without a store: clients wait while the primary is lost",
        setup: busy,
        faults: &[(8_000, Fault::Machine(0, 0), true)],
        lasts: 60,
        settles: true,
        ends: promoted_with_few_errors,
    },
    Scenario {
        name: "without a store: nobody drains, and clients wait all the same once the primary stops",
        setup: busy,
        faults: &[(8_000, Fault::Switchover(0), true)],
        lasts: 40,
        settles: true,
        ends: promoted_with_few_errors,
    },
    Scenario {
        name: "without a store: Patroni is frozen while its server goes on accepting writes",
        setup: plain,
        faults: &[(6_000, Fault::PatroniFrozen(0, 0), true)],
        lasts: 45,
        settles: true,
        ends: anything,
    },
    Scenario {
        name: "without a store: the old leader's clock is set back, and it goes on saying that it leads",
        setup: plain,
        faults: &[(6_000, Fault::Claims(0, 0), true), (8_000, Fault::Switchover(0), true)],
        lasts: 40,
        settles: true,
        ends: led_to_the_leader,
    },
    Scenario {
        name: "without a store: another system answers under a member's name and address",
        setup: plain,
        faults: &[(6_000, Fault::Stranger(0, 2), true)],
        lasts: 30,
        settles: true,
        ends: led_to_the_leader,
    },
    Scenario {
        name: "without a store: Patroni's own store is away, then the leader's REST API",
        setup: plain,
        faults: &[
            (6_000, Fault::Outage(0), true),
            (9_000, Fault::Outage(0), false),
            (14_000, Fault::Rest(0, 0), true),
            (30_000, Fault::Rest(0, 0), false),
        ],
        lasts: 45,
        settles: true,
        ends: led_to_the_leader,
    },
    Scenario {
        name: "without a store: the agent starts anew during a failover",
        setup: plain,
        faults: &[
            (8_000, Fault::Machine(0, 0), true),
            (15_000, Fault::Agent(POOL), true),
            (16_000, Fault::Agent(POOL), false),
        ],
        lasts: 60,
        settles: true,
        ends: led_to_the_leader,
    },
];

fn plain() -> Setup {
    without_store(Setup::plain())
}

fn busy() -> Setup {
    without_store(switches::busy())
}

fn without_store(mut setup: Setup) -> Setup {
    setup.clusters[0].rest = true;
    setup
}

/// The pool is up and leads to whoever holds the leader key.
fn led_to_the_leader(world: &World) -> Result<(), String> {
    let host = &world.hosts[POOL];
    let (pooler, leader) = (&host.poolers[0], world.clusters[0].holder.clone());
    let to =
        pooler.loaded.get("app").and_then(|to| world.member_at(to)).map(|at| world.member(at).name.clone());
    if to.is_none() || to != leader {
        return Err(format!("the pool leads to {to:?}, but {leader:?} leads"));
    }
    let verdict = host.status.as_ref().and_then(|status| status.poolers.first()).map(|pooler| &pooler.pool);
    match verdict {
        Some(verdict) if verdict.is_up(world.host_time(POOL)) => Ok(()),
        other => Err(format!("the pool is not up: {other:?}")),
    }
}

impl World {
    /// Whoever is shown to lead held the lock not too long ago: the word of a leader counts for `max_fact_age`, and one whose
    /// key was taken away believes in it until the lease that it knows of is over.
    pub fn judge_polled(
        &self,
        host: &Host,
        cluster: &Cluster,
        leader: Option<&str>,
    ) -> Result<(), (&'static str, String)> {
        let known = host
            .status
            .iter()
            .flat_map(|status| &status.clusters)
            .any(|c| c.name == cluster.name && c.store.known);
        let split = |at| self.now.since(at) < cluster.ttl + MAX_FACT_AGE;
        let Some(leader) = leader.filter(|_| known && !cluster.rebuilt.is_some_and(split)) else {
            return Ok(());
        };
        let bound = cluster.ttl + MAX_FACT_AGE + Duration::from_secs(2);
        let lost = cluster.lost.get(leader).is_some_and(|at| self.now.since(*at) <= bound);
        match cluster.holder.as_deref() == Some(leader) || lost {
            true => Ok(()),
            false => Err(("S3", format!("{leader} counts as leader, but does not hold the lock since long"))),
        }
    }

    /// Looked at whenever a snapshot is published: how soon the holder of the lock is shown.
    pub fn note_noticed(&mut self, h: usize) {
        let now = self.now;
        let Some(status) = &self.hosts[h].status else { return };
        for shown in &status.clusters {
            let cluster = self.clusters.iter_mut().find(|c| c.name == shown.name && c.rest);
            if let Some(cluster) = cluster.filter(|c| c.holder.is_some() && c.holder == shown.leader) {
                let (since, noticed) = &mut cluster.noticed;
                noticed.entry(h).or_insert(now.since(*since));
            }
        }
    }
}

#[test]
fn a_new_holder_of_the_lock_is_known_within_a_quarter_of_a_second() {
    for scenario in &ALL[..2] {
        for seed in 1..=20 {
            let run = Run::scenario(scenario, seed, None);
            assert!(run.violation.is_none(), "{}", run.headline());
            assert!(run.noticed.len() >= 3, "seed {seed}: {:?}", run.noticed);
            for (host, after) in &run.noticed {
                assert!(*after <= DECIDED, "{}, seed {seed}, host {host}: {after:?}", scenario.name);
            }
        }
    }
}
