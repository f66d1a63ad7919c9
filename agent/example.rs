//! What the tests of several rooms begin with.

use crate::clock;
use pgsquire_core::agent::Agent;
use pgsquire_core::config::{Config, Mode, SwitchConfig};
use pgsquire_core::event::Restored;

/// The agent of a host on which there is nothing.
pub fn agent() -> Agent {
    let config = Config {
        node: "host1".to_owned(),
        mode: Mode::Enforce,
        clusters: vec![],
        local: None,
        poolers: vec![],
        switch: SwitchConfig::default(),
        mutants: Default::default(),
    };
    Agent::new(config, Restored::default(), clock::now())
}
