//! A small cluster for the unit tests: pg1 leads, pg2 and pg3 follow, and one pooler has a write and a read route.

use crate::config::{
    ClusterConfig, Config, LocalConfig, Mode, OnDcsLoss, PoolerConfig, Route, RouteTo, SwitchConfig, Truth,
};
use crate::event::StoreRead;
use crate::observed::{ClusterView, Observed};
use crate::patroni::{Keys, MemberStatus, StoredValue, read_member_status};
use crate::rule::Mutants;
use crate::time::Time;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

/// A time, in milliseconds.
pub fn at(ms: u64) -> Time {
    Time::from_micros(ms * 1000)
}

/// A route of cluster `main`.
pub fn route(to: RouteTo) -> Route {
    Route { to, cluster: "main".into(), max_lag: None, fallback_primary: false }
}

/// The agent on a pooler host.
pub fn config() -> Config {
    let routes =
        [("app".to_string(), route(RouteTo::Primary)), ("reports".to_string(), route(RouteTo::Replica))];
    Config {
        node: "pool".into(),
        mode: Mode::Enforce,
        clusters: [ClusterConfig {
            name: "main".into(),
            max_fact_age: Duration::from_secs(10),
            on_dcs_loss: OnDcsLoss::Confirm,
            patroni_hosts: Vec::new(),
            truth: Truth::Store,
        }]
        .into(),
        local: None,
        poolers: [PoolerConfig { name: "p".into(), ini: "/p.ini".into(), routes: BTreeMap::from(routes) }]
            .into(),
        switch: SwitchConfig::default(),
        mutants: Mutants::default(),
    }
}

/// The agent on the host of pg1.
pub fn local_config() -> Config {
    let local = LocalConfig { cluster: "main".into(), patroni_url: None, probe: true };
    Config { node: "pg1".into(), local: Some(local), ..config() }
}

/// A member's key.
pub fn member(n: u32, role: &str, state: &str, timeline: u32, more: &str) -> String {
    format!(
        "{{\"conn_url\":\"postgres://10.0.0.{n}:5432/postgres\",\"api_url\":\"http://10.0.0.{n}:8008/patroni\",\
         \"role\":\"{role}\",\"state\":\"{state}\",\"timeline\":{timeline},\"xlog_location\":1000{more}}}"
    )
}

/// The keys of the cluster, led by this member on timeline 1; the leader key was written at revision 5.
pub fn keys(leader: u32) -> Keys {
    let role = |n| if n == leader { "primary" } else { "replica" };
    let members = (1..=3).map(|n| (format!("members/pg{n}"), member(n, role(n), "running", 1, "")));
    let rest = [("initialize", "777".to_string()), ("leader", format!("pg{leader}"))];
    let all = members.chain(rest.map(|(key, value)| (key.into(), value)));
    all.map(|(key, value): (String, String)| (key, StoredValue { value: value.into_bytes(), revision: 5 }))
        .collect()
}

/// A read of these keys.
pub fn read(revision: u64, started: Time, keys: Keys) -> StoreRead {
    let leader_ttl = Some(Duration::from_secs(20));
    StoreRead { store: "s".into(), raft_term: 2, revision, keys, leader_ttl, beside: Vec::new(), started }
}

/// What the REST API of a member says.
pub fn rest(code: u16, role: &str, state: &str, timeline: u32) -> MemberStatus {
    let body = format!(
        "{{\"state\":\"{state}\",\"role\":\"{role}\",\"timeline\":{timeline},\
         \"xlog\":{{\"location\":1000}},\"database_system_identifier\":\"777\"}}"
    );
    read_member_status(code, body.as_bytes()).expect("it is Patroni's JSON")
}

/// What is known after one read of the cluster led by pg1, and its answer.
pub fn observed(config: &Config, now: Time) -> Observed {
    let mut observed = Observed::new(config, &BTreeMap::new());
    let view = view(&mut observed);
    view.observe_read(config, now, read(10, now, keys(1)));
    view.observe_member("pg1", now, Ok(rest(200, "primary", "running", 1)));
    observed
}

/// What is known of cluster `main`.
pub fn view(observed: &mut Observed) -> &mut ClusterView {
    observed.clusters.get_mut("main").expect("it is configured")
}
