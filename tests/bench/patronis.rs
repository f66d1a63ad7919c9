//! What Patroni would have written about a cluster.

use serde_json::{Value, json};

/// The cluster, and its scope.
pub const CLUSTER: &str = "main";
/// Where its keys are.
pub const PREFIX: &str = "/service/main/";
/// How many members it has.
pub const MEMBERS: usize = 3;

/// What a member is called, counted from zero and round again.
pub fn name(n: usize) -> String {
    format!("pg{}", n % MEMBERS + 1)
}

/// The keys before anybody leads: each member says that it is a replica, as one still does when it has just taken the lock.
pub fn keys() -> Vec<(String, String)> {
    let member = |n: usize| {
        let word = json!({
            "conn_url": format!("postgres://10.0.0.{}:5432/postgres", n + 1),
            "api_url": format!("http://10.0.0.{}:8008/patroni", n + 1),
            "state": "running", "role": "replica", "version": "4.1.5", "timeline": 1, "xlog_location": 1000,
        });
        (format!("members/{}", name(n)), word)
    };
    let config = json!({ "ttl": 30, "loop_wait": 10, "retry_timeout": 10 });
    let rest = [("config".to_owned(), config), ("initialize".to_owned(), Value::from(777))];
    let all = (0..MEMBERS).map(member).chain(rest);
    all.map(|(key, value)| (format!("{PREFIX}{key}"), value.to_string())).collect()
}

/// The leader key.
pub fn leader_key() -> String {
    format!("{PREFIX}leader")
}
