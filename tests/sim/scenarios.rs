//! Worlds in which one thing goes wrong on purpose. The unbroken core passes them all.

use crate::faults::{Edit, Fault};
use crate::setup::{PoolerSetup, Setup, route};
use crate::world::{Thing, World};
use pgsquire_core::config::{Mode, Route, RouteTo};
use std::collections::BTreeMap;
use std::time::Duration;

/// A directed world.
pub struct Scenario {
    /// What it is about.
    pub name: &'static str,
    /// How it is built.
    pub setup: fn() -> Setup,
    /// What happens: fault, on or off, second.
    pub faults: &'static [(u64, Fault, bool)],
    /// Seconds until it is healed.
    pub lasts: u64,
    /// All must come right in the end (else an operator would have to decide something).
    pub settles: bool,
    /// What must be so when it is healed.
    pub ends: fn(&World) -> Result<(), String>,
}

/// Nothing is asked of the end.
pub fn anything(_: &World) -> Result<(), String> {
    Ok(())
}

/// The pooler host of [`Setup::plain`].
pub const POOL: usize = 3;

/// All of them, with those about switches, outages, and clusters without a store.
pub fn all() -> impl Iterator<Item = &'static Scenario> {
    ALL.iter().chain(crate::switches::ALL).chain(crate::outages::ALL).chain(crate::rest_only::ALL)
}

/// Those that are about everything else.
pub const ALL: &[Scenario] = &[
    Scenario {
        name: "a switchover",
        setup: Setup::plain,
        faults: &[(8_000, Fault::Switchover(0), true)],
        lasts: 20,
        settles: true,
        ends: anything,
    },
    Scenario {
        name: "the primary's machine dies",
        setup: Setup::plain,
        faults: &[(8_000, Fault::Machine(0, 0), true)],
        lasts: 40,
        settles: true,
        ends: anything,
    },
    Scenario {
        name: "Patroni is frozen while its server goes on accepting writes",
        setup: Setup::plain,
        faults: &[(6_000, Fault::PatroniFrozen(0, 0), true)],
        lasts: 40,
        settles: true,
        ends: anything,
    },
    Scenario {
        name: "the driver hangs, and shows its last snapshot, while another member takes over",
        setup: Setup::plain,
        faults: &[(6_000, Fault::PatroniFrozen(0, 0), true), (20_000, Fault::AgentFrozen(0), true)],
        lasts: 40,
        settles: true,
        ends: anything,
    },
    Scenario {
        name: "the primary's host loses the store",
        setup: Setup::plain,
        faults: &[(6_000, Fault::HostStore(0, 0), true), (6_000, Fault::MemberStore(0, 0), true)],
        lasts: 40,
        settles: true,
        ends: anything,
    },
    Scenario {
        name: "a member is promoted by hand, and a route is changed by hand",
        setup: Setup::plain,
        faults: &[
            (5_000, Fault::Pause(0), true),
            (7_000, Fault::PromotedByHand(0, 1), true),
            (40_000, Fault::Edit(POOL, 0, Edit::Route), true),
        ],
        lasts: 55,
        settles: false,
        ends: anything,
    },
    Scenario {
        name: "the old primary comes back as leader on its old timeline",
        setup: Setup::plain,
        faults: &[
            (5_000, Fault::PatroniFrozen(0, 0), true),
            (45_000, Fault::Machine(0, 1), true),
            (45_000, Fault::Machine(0, 2), true),
            (80_000, Fault::PatroniFrozen(0, 0), false),
        ],
        lasts: 100,
        settles: false,
        ends: anything,
    },
    Scenario {
        name: "a host without its store sees a route changed by hand, long after the primary died",
        setup: Setup::plain,
        faults: &[
            (5_000, Fault::HostStore(POOL, 0), true),
            (9_000, Fault::Machine(0, 0), true),
            (40_000, Fault::Edit(POOL, 0, Edit::Route), true),
        ],
        lasts: 55,
        settles: true,
        ends: anything,
    },
    Scenario {
        name: "a host is led to the store of another cluster",
        setup: two_clusters,
        faults: &[(8_000, Fault::Swapped(POOL, 0), true)],
        lasts: 40,
        settles: true,
        ends: anything,
    },
    Scenario {
        name: "a syntax error in the ini, then a switchover",
        setup: Setup::plain,
        faults: &[(6_000, Fault::Edit(POOL, 0, Edit::Syntax), true), (20_000, Fault::Switchover(0), true)],
        lasts: 40,
        settles: true,
        ends: anything,
    },
    Scenario {
        name: "a value that PgBouncer refuses, then a switchover",
        setup: Setup::plain,
        faults: &[(6_000, Fault::Edit(POOL, 0, Edit::Refused), true), (20_000, Fault::Switchover(0), true)],
        lasts: 40,
        settles: true,
        ends: anything,
    },
    Scenario {
        name: "clients hold their links over a switchover",
        setup: sessions,
        faults: &[(8_000, Fault::Switchover(0), true)],
        lasts: 30,
        settles: true,
        ends: anything,
    },
    Scenario {
        name: "clients hold their links to a primary that lost the lock and does not know",
        setup: sessions,
        faults: &[(6_000, Fault::PatroniFrozen(0, 0), true)],
        lasts: 50,
        settles: true,
        ends: anything,
    },
    Scenario {
        name: "the driver hangs, and shows its last snapshot, while a switchover takes the lead away",
        setup: Setup::plain,
        faults: &[(8_000, Fault::Switchover(0), true), (8_500, Fault::AgentFrozen(0), true)],
        lasts: 30,
        settles: true,
        ends: anything,
    },
    Scenario {
        name: "routes of all kinds, and a switchover",
        setup: readers,
        faults: &[(8_000, Fault::Switchover(0), true)],
        lasts: 20,
        settles: true,
        ends: anything,
    },
    Scenario {
        name: "no replica may be read",
        setup: unreadable_replicas,
        faults: &[(8_000, Fault::Switchover(0), true)],
        lasts: 20,
        settles: true,
        ends: anything,
    },
    Scenario {
        name: "an agent that only observes",
        setup: observer,
        faults: &[(8_000, Fault::Switchover(0), true)],
        lasts: 20,
        settles: true,
        ends: anything,
    },
    Scenario {
        name: "the agent is killed, starts again, and is served by a store member that fell behind",
        setup: Setup::plain,
        faults: &[
            (8_000, Fault::Switchover(0), true),
            (16_000, Fault::Agent(POOL), true),
            (16_500, Fault::Stale(POOL, 0), true),
            (17_000, Fault::Agent(POOL), false),
        ],
        lasts: 40,
        settles: true,
        ends: anything,
    },
    Scenario {
        name: "the console is dead",
        setup: Setup::plain,
        faults: &[(6_000, Fault::Console(POOL, 0), true), (8_000, Fault::Switchover(0), true)],
        lasts: 60,
        settles: true,
        ends: anything,
    },
];

/// Read routes and a local route on a member's host as well.
fn readers() -> Setup {
    let mut setup = Setup::plain();
    let pooler = setup.hosts[POOL].poolers[0].clone();
    setup.hosts[1].poolers.push(PoolerSetup {
        routes: BTreeMap::from([
            ("here".into(), route(RouteTo::Local)),
            ("app".into(), route(RouteTo::Primary)),
        ]),
        ..pooler
    });
    let reports = Route { fallback_primary: true, ..route(RouteTo::Replica) };
    setup.hosts[POOL].poolers[0].routes.insert("reports".into(), reports);
    setup
}

fn unreadable_replicas() -> Setup {
    let mut setup = readers();
    setup.clusters[0].noloadbalance = true;
    setup
}

fn sessions() -> Setup {
    let mut setup = Setup::plain();
    setup.hosts[POOL].poolers[0].sessions = true;
    setup
}

fn observer() -> Setup {
    let mut setup = Setup::plain();
    setup.hosts[POOL].mode = Mode::Observe;
    setup
}

fn two_clusters() -> Setup {
    let mut setup = Setup::plain();
    setup.clusters.push(setup.clusters[0].clone());
    setup
}

impl World {
    /// Plans what happens in a scenario.
    pub fn plan_scenario(&mut self, scenario: &Scenario) {
        for (millis, fault, on) in scenario.faults {
            self.later(Duration::from_millis(*millis), Thing::Fault(*fault, *on));
        }
        self.later(Duration::from_secs(scenario.lasts), Thing::Heal);
    }
}
