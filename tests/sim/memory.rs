//! What the invariants remember of a host.

use pgsquire_core::effect::EffectId;
use pgsquire_core::event::Restored;
use pgsquire_core::pgbouncer::console::ConsoleView;
use pgsquire_core::time::Time;
use std::collections::{BTreeMap, VecDeque};

/// Of one pooler.
#[derive(Debug, Clone, Default)]
pub struct PoolerMemory {
    /// When orders that change something were given.
    pub changes: VecDeque<Time>,
    /// When this run of the agent ordered RELOADs.
    pub reloads: VecDeque<Time>,
    /// The last look that the agent was told, and when it was begun by the host's clock.
    pub look: Option<(ConsoleView, Time)>,
    /// What the journal said before the pause that is being begun.
    pub journalled: Option<pgsquire_core::effect::Pause>,
    /// Highest timeline that each write route was led to.
    pub timelines: BTreeMap<String, u32>,
}

/// Of one store that it follows.
#[derive(Debug, Clone, Default)]
pub struct StoreMemory {
    /// When the newest read that the agent was told was begun, by the host's clock.
    pub read: Option<Time>,
    /// Id and revision of the term that this run began with: what is older is refused.
    pub floor: Option<(String, u64)>,
    /// Id and newest revision that it was told.
    pub newest: Option<(String, u64)>,
    /// Highest timeline that any write route of the host was ordered to.
    pub ordered: u32,
}

/// Of the host.
#[derive(Debug, Clone, Default)]
pub struct Memory {
    /// By pooler's name.
    pub poolers: BTreeMap<String, PoolerMemory>,
    /// By cluster's name.
    pub stores: BTreeMap<String, StoreMemory>,
    /// Looks that were ordered: pooler.
    pub looks: BTreeMap<EffectId, String>,
    /// A term could not be kept: a later run may know less.
    pub keep_failed: bool,
    /// Orders that changed something, since this was last set to zero.
    pub changes: u64,
    /// Questions that were put in the present second: (second, how many).
    pub questions: (u64, u64),
}

impl Memory {
    /// The agent starts anew: what only one run is bound to is forgotten.
    pub fn restarted(&mut self, state: &Restored) {
        self.looks.clear();
        for pooler in self.poolers.values_mut() {
            pooler.reloads.clear();
            pooler.look = None;
        }
        for (cluster, term) in &state.terms {
            self.stores.entry(cluster.clone()).or_default().floor = Some((term.store.clone(), term.revision));
        }
        for store in self.stores.values_mut() {
            store.read = None;
            store.newest = None;
        }
        if self.keep_failed {
            self.forget();
            self.keep_failed = false;
        }
    }

    /// What the host knew of timelines is void.
    pub fn forget(&mut self) {
        for store in self.stores.values_mut() {
            store.ordered = 0;
            store.newest = None;
        }
        self.poolers.values_mut().for_each(|pooler| pooler.timelines.clear());
    }
}
