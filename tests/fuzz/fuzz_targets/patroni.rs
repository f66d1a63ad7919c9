//! Nothing that stands in the store, or that a member answers, makes the reader fail.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgsquire_core::patroni::{Keys, StoredValue, read_member_status, read_topology};
use pgsquire_core::rest::Members;
use pgsquire_core::rule::Mutants;
use pgsquire_core::time::Time;
use std::time::Duration;

const LIST: &[u8] = br#"{"members": [{"name": "a", "host": "a", "api_url": "http://a:8008/patroni"}]}"#;

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

    let mut members = Members::new("main", Duration::from_secs(10));
    let _ = members.list(bytes, b"{\"ttl\": 20}");
    let _ = members.list(LIST, bytes);
    let _ = members.list(LIST, b"{\"ttl\": 20}");
    let _ = members.hear("http://a:8008", 200, bytes, Time::ZERO, Time::ZERO);
    let _ = members.read(&Mutants::default(), Time::ZERO);
});
