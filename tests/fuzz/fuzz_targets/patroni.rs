//! Nothing that stands in the store, or that a member answers, makes the reader fail.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgsquire_core::patroni::{Keys, StoredValue, read_member_status, read_topology};

const KEYS: [&str; 8] =
    ["config", "failover", "initialize", "leader", "members/a", "members/b", "status", "sync"];

fuzz_target!(|bytes: &[u8]| {
    let values = bytes.split(|b| *b == 0);
    let keys: Keys = KEYS
        .iter()
        .zip(values)
        .map(|(key, value)| (key.to_string(), StoredValue { value: value.to_vec(), revision: 1 }))
        .collect();
    let topology = read_topology(&keys);
    for member in topology.members.values() {
        assert!(member.endpoint.is_some() || member.problem.is_some(), "{member:?}");
    }
    let _ = read_member_status(200, bytes);
});
