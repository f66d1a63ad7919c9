//! The store is away: outage length x shape of the partition x `failsafe_mode` x `on_dcs_loss` x kind of store. What must
//! be green at its end stands in one table; the invariants hold all the time.

use crate::faults::Fault;
use crate::scenarios::{POOL, Scenario, anything};
use crate::setup::Setup;
use crate::world::{Thing, World};
use pgsquire_core::config::OnDcsLoss;
use std::time::Duration;

/// Directed worlds about it.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "the primary's host is cut off from everybody, and its Patroni is frozen",
        setup: Setup::plain,
        faults: &[(8_000, Fault::Isolated(0, 0), true), (8_500, Fault::PatroniFrozen(0, 0), true)],
        lasts: 60,
        settles: true,
        ends: anything,
    },
    Scenario {
        name: "a paused cluster loses its primary's host, which does not hear that the pause ends",
        setup: Setup::plain,
        faults: &[
            (5_000, Fault::Pause(0), true),
            (20_000, Fault::Isolated(0, 0), true),
            (30_000, Fault::Pause(0), false),
        ],
        lasts: 90,
        settles: true,
        ends: anything,
    },
    Scenario {
        name: "a paused cluster loses its store for long",
        setup: Setup::plain,
        faults: &[(5_000, Fault::Pause(0), true), (20_000, Fault::Outage(0), true)],
        lasts: 90,
        settles: true,
        ends: still_up,
    },
];

/// Nobody took the primary away: the pause kept everybody from it.
fn still_up(world: &World) -> Result<(), String> {
    match (primary_is_up(world, 0), pool_is_up(world)) {
        (true, true) => Ok(()),
        seen => Err(format!("(primary, pool) up: {seen:?}")),
    }
}

/// Who loses the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// Everybody.
    All,
    /// Everybody, and the leader's Patroni is frozen.
    AllAndFrozen,
    /// The leader's host: its Patroni and its agent.
    LeadersHost,
    /// The pooler's host.
    PoolersHost,
    /// The leader's host, and every other member as well.
    Isolated,
    /// The same, and its Patroni is frozen: its server stays writable.
    IsolatedAndFrozen,
}

const SHAPES: [Shape; 6] = [
    Shape::All,
    Shape::AllAndFrozen,
    Shape::LeadersHost,
    Shape::PoolersHost,
    Shape::Isolated,
    Shape::IsolatedAndFrozen,
];
const POLICIES: [OnDcsLoss; 3] = [OnDcsLoss::Hold, OnDcsLoss::FailClosed, OnDcsLoss::Confirm];
/// Shorter than every fact's age and lease; longer than all of them.
const LENGTHS: [u64; 2] = [4, 60];
/// So many looks a second.
const LOOKS: u64 = 50;
const BEGIN: Duration = Duration::from_secs(8);

/// One cell of the table.
#[derive(Debug, Clone, Copy)]
struct Case {
    seconds: u64,
    shape: Shape,
    failsafe: bool,
    policy: OnDcsLoss,
    tells_leases: bool,
}

impl Case {
    fn all() -> impl Iterator<Item = Case> {
        let mut cases = Vec::new();
        for seconds in LENGTHS {
            for shape in SHAPES {
                for policy in POLICIES {
                    for (failsafe, tells_leases) in
                        [(false, false), (false, true), (true, false), (true, true)]
                    {
                        cases.push(Case { seconds, shape, failsafe, policy, tells_leases });
                    }
                }
            }
        }
        cases.into_iter()
    }

    /// At the end of the outage: whether the first leader's host says "primary: up", and whether the pool is up.
    fn expected(&self) -> (bool, bool) {
        if self.seconds < 10 {
            return (true, true);
        }
        let asks = self.policy != OnDcsLoss::FailClosed;
        match self.shape {
            // Patroni gives up being primary, unless every member answers it.
            Shape::All => (asks && self.failsafe, asks && self.failsafe),
            Shape::AllAndFrozen => (false, false),
            Shape::LeadersHost if self.failsafe => (asks, asks),
            // Another member takes over, and the pool follows.
            Shape::LeadersHost | Shape::Isolated | Shape::IsolatedAndFrozen => (false, true),
            Shape::PoolersHost => (true, asks),
        }
    }

    fn faults(&self) -> &'static [Fault] {
        match self.shape {
            Shape::All => &[Fault::Outage(0)],
            Shape::AllAndFrozen => &[Fault::Outage(0), Fault::PatroniFrozen(0, 0)],
            Shape::LeadersHost => &[Fault::MemberStore(0, 0), Fault::HostStore(0, 0)],
            Shape::PoolersHost => &[Fault::HostStore(POOL, 0)],
            Shape::Isolated => &[Fault::Isolated(0, 0)],
            Shape::IsolatedAndFrozen => &[Fault::Isolated(0, 0), Fault::PatroniFrozen(0, 0)],
        }
    }

    fn run(&self, seed: u64) -> Result<(), String> {
        let mut setup = Setup { on_dcs_loss: self.policy, ..Setup::plain() };
        setup.clusters[0].failsafe = self.failsafe;
        setup.clusters[0].tells_leases = self.tells_leases;
        let mut world = World::new(setup, seed, false);
        for fault in self.faults() {
            world.later(BEGIN, Thing::Fault(*fault, true));
        }
        let end = BEGIN + Duration::from_secs(self.seconds);
        world.later(end + Duration::from_millis(1), Thing::Heal);
        world.run_for(BEGIN);
        let mut always = pool_is_up(&world);
        for _ in 0..self.seconds * LOOKS {
            world.run_for(Duration::from_secs(1) / u32::try_from(LOOKS).unwrap_or(1));
            always &= pool_is_up(&world);
        }
        let seen = (primary_is_up(&world, 0), pool_is_up(&world));
        // Nobody takes over there: a pool that is up at the end was never down.
        let untouched = matches!(self.shape, Shape::All | Shape::PoolersHost);
        if world.violation.is_none() && untouched && seen.1 && !always {
            return Err("the pool was down for a while".into());
        }
        if world.violation.is_none() && seen != self.expected() {
            return Err(format!("(primary, pool) up: {seen:?}, but {:?} was expected", self.expected()));
        }
        world.check_liveness();
        world.violation.map_or(Ok(()), |v| Err(format!("{}: {}", v.invariant, v.text)))
    }
}

fn primary_is_up(world: &World, h: usize) -> bool {
    let host = &world.hosts[h];
    let local = host.status.as_ref().and_then(|status| status.local.as_ref());
    local.is_some_and(|local| local.primary.is_up(world.now + host.clock))
}

fn pool_is_up(world: &World) -> bool {
    let host = &world.hosts[POOL];
    let pool = host.status.as_ref().and_then(|status| status.poolers.first());
    pool.is_some_and(|pool| pool.pool.is_up(world.now + host.clock))
}

#[test]
fn every_policy_says_what_it_promises_while_the_store_is_away() {
    let failed =
        |(case, seed): (Case, u64)| case.run(seed).err().map(|why| format!("{case:?}, seed {seed}: {why}"));
    let failed: Vec<String> =
        Case::all().flat_map(|case| (1..=3).map(move |seed| (case, seed))).filter_map(failed).collect();
    assert!(failed.is_empty(), "{} of them:\n{}", failed.len(), failed.join("\n"));
}
