//! Patroni's keys and JSON read into our types.
//!
//! A forgiving reader: a value that is not what it should be gives an empty member and a problem, never a failure. Keys
//! and words of Patroni 2 to 4 (`patroni/dcs/__init__.py`, `patroni/api.py`).

use crate::topology::{DynamicConfig, Endpoint, FailoverKey, LeaderKey, Member, Role, Topology};
use crate::wal::{Lsn, Timeline};
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;
use serde::Serialize;
use serde_json::Value;

/// A value in the store and the revision at which it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredValue {
    /// The bytes.
    pub value: Vec<u8>,
    /// Revision of the last write.
    pub revision: u64,
}

/// Keys below the cluster's prefix (`leader`, `members/pg1`, …).
pub type Keys = BTreeMap<String, StoredValue>;

/// Reads all keys of one cluster.
pub fn read_topology(keys: &Keys) -> Topology {
    let mut topology = Topology::default();
    for (key, stored) in keys {
        let Ok(text) = core::str::from_utf8(&stored.value) else {
            topology.problems.push(format!("key {key}: not UTF-8"));
            if let Some(name) = key.strip_prefix("members/") {
                topology.members.insert(name.into(), unreadable(name, "its key is not UTF-8"));
            }
            continue;
        };
        match key.as_str() {
            "initialize" => topology.system_id = (!text.is_empty()).then(|| text.into()),
            "leader" if !text.is_empty() => {
                topology.leader = Some(LeaderKey { name: text.into(), revision: stored.revision });
            }
            "config" => match serde_json::from_str(text) {
                Ok(value) => topology.config = read_config(&value),
                Err(e) => topology.problems.push(format!("key config: {e}")),
            },
            "status" => topology.leader_lsn = read_status(text),
            "optime/leader" if topology.leader_lsn.is_none() => {
                topology.leader_lsn = text.parse().ok().map(Lsn);
            }
            "sync" => topology.sync_standbys = read_sync(text),
            "failover" => topology.failover = read_failover(text),
            crate::rest::PROBLEMS => {
                topology.problems.extend(serde_json::from_str::<Vec<String>>(text).unwrap_or_default());
            }
            _ => {
                if let Some(name) = key.strip_prefix("members/").filter(|name| !name.contains('/')) {
                    let member = read_member(name, text);
                    if let Some(problem) = &member.problem {
                        topology.problems.push(format!("member {name}: {problem}"));
                    }
                    topology.members.insert(name.into(), member);
                }
            }
        }
    }
    if let Some(leader) = &topology.leader
        && !topology.members.contains_key(&leader.name)
    {
        topology.problems.push(format!("the leader key names {}, which is no member", leader.name));
    }
    topology
}

fn unreadable(name: &str, problem: &str) -> Member {
    Member {
        name: name.into(),
        endpoint: None,
        api_url: None,
        state: String::new(),
        role: None,
        timeline: None,
        lsn: None,
        tags: BTreeMap::new(),
        version: None,
        problem: Some(problem.into()),
    }
}

fn read_member(name: &str, text: &str) -> Member {
    let value: Value = match serde_json::from_str(text) {
        Ok(value @ Value::Object(_)) => value,
        Ok(_) => return unreadable(name, "its value is JSON, but no object"),
        Err(e) => return unreadable(name, &format!("its value is not JSON ({e})")),
    };
    let mut member = unreadable(name, "");
    member.problem = None;
    member.state = word(&value, "state").unwrap_or_default().into();
    member.role = word(&value, "role").and_then(Role::from_word);
    member.timeline = timeline(&value["timeline"]);
    member.lsn = value["xlog_location"].as_u64().map(Lsn);
    member.api_url = word(&value, "api_url").map(Into::into);
    member.version = word(&value, "version").map(Into::into);
    member.tags = read_tags(&value["tags"]);
    match word(&value, "conn_url").map(read_conn_url) {
        Some(Ok(endpoint)) => member.endpoint = Some(endpoint),
        Some(Err(problem)) => member.problem = Some(problem),
        None => member.problem = Some("its value has no conn_url".into()),
    }
    member
}

fn word<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value.get(key)?.as_str()
}

fn timeline(value: &Value) -> Option<Timeline> {
    value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| *n > 0).map(Timeline)
}

fn read_tags(value: &Value) -> BTreeMap<String, String> {
    let Some(tags) = value.as_object() else { return BTreeMap::new() };
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    tags.iter().map(|(tag, value)| (tag.clone(), text(value))).collect()
}

/// Host and port of a `conn_url` (`postgres://10.0.0.1:5432/postgres`, `postgres://[::1]:5432/postgres`).
fn read_conn_url(url: &str) -> Result<Endpoint, String> {
    let bad = |what: &str| format!("its conn_url `{url}` {what}");
    let rest = url
        .strip_prefix("postgres://")
        .or_else(|| url.strip_prefix("postgresql://"))
        .ok_or_else(|| bad("does not begin with postgres://"))?;
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let host_port = authority.rsplit_once('@').map_or(authority, |(_, after)| after);
    let (host, port) = match host_port.strip_prefix('[') {
        Some(v6) => {
            let (host, after) = v6.split_once(']').ok_or_else(|| bad("lacks a closing bracket"))?;
            let address: core::net::Ipv6Addr =
                host.parse().map_err(|_| bad("has no IPv6 address in brackets"))?;
            let _ = address;
            (host, after.strip_prefix(':').unwrap_or("5432"))
        }
        None => host_port.rsplit_once(':').unwrap_or((host_port, "5432")),
    };
    let valid = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':');
    if host.is_empty() || !host.bytes().all(valid) {
        return Err(bad("has no usable host"));
    }
    let port = port.parse().ok().filter(|port| *port > 0).ok_or_else(|| bad("has no usable port"))?;
    Ok(Endpoint { host: host.into(), port })
}

fn read_config(value: &Value) -> DynamicConfig {
    let default = DynamicConfig::default();
    let seconds = |key: &str, otherwise: Duration| {
        let given = value[key].as_f64().filter(|s| s.is_finite() && *s > 0.0 && *s < 1e9);
        given.map_or(otherwise, Duration::from_secs_f64)
    };
    DynamicConfig {
        ttl: seconds("ttl", default.ttl),
        loop_wait: seconds("loop_wait", default.loop_wait),
        pause: value["pause"].as_bool().unwrap_or(false),
        standby_cluster: value["standby_cluster"].as_object().is_some_and(|o| {
            ["host", "port", "restore_command"].iter().any(|key| o.get(*key).is_some_and(|v| !v.is_null()))
        }),
    }
}

fn read_status(text: &str) -> Option<Lsn> {
    let value: Value = serde_json::from_str(text).ok()?;
    value["optime"].as_u64().or_else(|| value.as_u64()).map(Lsn)
}

/// `{"leader": …, "member": …, "scheduled_at": …}`, or `from:to` of old.
fn read_failover(text: &str) -> Option<FailoverKey> {
    let name = |name: &str| (!name.is_empty()).then(|| name.into());
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Object(value)) => Some(FailoverKey {
            leader: value.get("leader").and_then(Value::as_str).and_then(name),
            candidate: value.get("member").and_then(Value::as_str).and_then(name),
            scheduled_at: value.get("scheduled_at").and_then(Value::as_str).and_then(name),
        }),
        _ => {
            let (leader, candidate) = text.split_once(':')?;
            Some(FailoverKey { leader: name(leader), candidate: name(candidate), scheduled_at: None })
        }
    }
}

fn read_sync(text: &str) -> Vec<String> {
    let Ok(value) = serde_json::from_str::<Value>(text) else { return Vec::new() };
    let list = word(&value, "sync_standby").unwrap_or_default();
    list.split(',').map(str::trim).filter(|name| !name.is_empty()).map(Into::into).collect()
}

/// What a member's REST API says about its server: the body of `GET /primary`, which Patroni sends with 200 and 503
/// alike, and the code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemberStatus {
    /// The answer's code was 200: the member holds the leader lock in Patroni's own view.
    pub holds_lock: bool,
    /// Patroni's state word.
    pub state: String,
    /// Role; from a live query only while `state` is `running`, else a cached word.
    pub role: Option<Role>,
    /// Timeline of the server.
    pub timeline: Option<Timeline>,
    /// Write position; present only on a server that is out of recovery.
    pub location: Option<Lsn>,
    /// Replay position; present only on a server in recovery.
    pub replayed: Option<Lsn>,
    /// PostgreSQL's system identifier.
    pub system_id: Option<String>,
    /// The member's name.
    pub name: Option<String>,
    /// Patroni's scope.
    pub scope: Option<String>,
    /// Patroni's version.
    pub version: Option<String>,
    /// The cluster is paused.
    pub pause: bool,
    /// When its server was started, in Patroni's words; missing while it is stopping.
    pub started: Option<String>,
    /// It goes on without a store, on the word of the other members (`failsafe_mode_is_active`).
    pub failsafe: bool,
    /// When it last saw its store, in seconds since 1970 by the clock of its host.
    pub store_seen: Option<u64>,
}

impl MemberStatus {
    /// Whether this answer proves that the server accepts writes. The lock alone does not: Patroni says 200 before
    /// promotion has ended (`patroni/api.py`, `patroni/ha.py`).
    pub fn is_writable(&self) -> bool {
        self.holds_lock
            && self.state == "running"
            && self.role == Some(Role::Primary)
            && self.location.is_some()
            && self.timeline.is_some()
    }

    /// Whether this answer says that the server is a running primary, lock or not.
    pub fn claims_primary(&self) -> bool {
        self.state == "running" && self.role == Some(Role::Primary) && self.location.is_some()
    }
}

/// Reads the answer of `GET /primary`.
///
/// # Errors
/// A sentence, when the body is not Patroni's status JSON.
pub fn read_member_status(code: u16, body: &[u8]) -> Result<MemberStatus, String> {
    let value: Value =
        serde_json::from_slice(body).map_err(|e| format!("the answer is not Patroni's JSON ({e})"))?;
    let state =
        word(&value, "state").ok_or("the answer is JSON without `state`: is this Patroni's REST API?")?;
    let xlog = &value["xlog"];
    Ok(MemberStatus {
        holds_lock: code == 200,
        state: state.into(),
        role: word(&value, "role").and_then(Role::from_word),
        timeline: timeline(&value["timeline"]),
        location: xlog["location"].as_u64().map(Lsn),
        replayed: xlog["replayed_location"].as_u64().map(Lsn),
        system_id: word(&value, "database_system_identifier").map(Into::into),
        name: value["patroni"]["name"].as_str().map(Into::into),
        scope: value["patroni"]["scope"].as_str().map(Into::into),
        version: value["patroni"]["version"].as_str().map(Into::into),
        pause: value["pause"].as_bool().unwrap_or(false),
        started: word(&value, "postmaster_start_time").map(Into::into),
        failsafe: value["failsafe_mode_is_active"].as_bool().unwrap_or(false),
        store_seen: value["dcs_last_seen"].as_u64(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(list: &[(&str, &str)]) -> Keys {
        let stored = |v: &&str| StoredValue { value: v.as_bytes().to_vec(), revision: 7 };
        list.iter().map(|(k, v)| (k.to_string(), stored(v))).collect()
    }

    #[test]
    fn a_member_that_is_not_json_is_a_problem_and_not_a_crash() {
        let t = read_topology(&keys(&[("members/a", "{half"), ("members/b", "3"), ("leader", "ghost")]));
        assert!(t.members["a"].problem.as_ref().unwrap().contains("not JSON"));
        assert!(t.members["b"].problem.as_ref().unwrap().contains("no object"));
        assert!(t.problems.iter().any(|p| p.contains("ghost, which is no member")), "{:?}", t.problems);
        assert_eq!(t.leader_member(), None);
    }

    #[test]
    fn conn_urls_of_all_kinds() {
        let ok = |url: &str| read_conn_url(url).unwrap().to_string();
        assert_eq!(ok("postgres://10.0.0.1:5433/postgres"), "10.0.0.1:5433");
        assert_eq!(ok("postgres://db1.example.org/postgres"), "db1.example.org:5432");
        assert_eq!(ok("postgres://[2001:db8::1]:5432/postgres"), "[2001:db8::1]:5432");
        assert_eq!(ok("postgres://u:p@h:5432/postgres?application_name=x"), "h:5432");
        for bad in
            ["http://h:1", "postgres://:5432/", "postgres://h:0/", "postgres://h:99999/", "postgres://[::1/"]
        {
            assert!(read_conn_url(bad).is_err(), "{bad}");
        }
        for hostile in ["postgres://a'b:1/", "postgres://a b:1/", "postgres://a\nb:1/", "postgres://[x;y]:1/"]
        {
            assert!(read_conn_url(hostile).is_err(), "{hostile}");
        }
    }

    #[test]
    fn the_lock_alone_does_not_make_a_server_writable() {
        let status = |code, body: &str| read_member_status(code, body.as_bytes()).unwrap();
        let promoting = r#"{"state":"running","role":"replica","xlog":{"replayed_location":5},"timeline":3}"#;
        assert!(!status(200, promoting).is_writable());
        let cached = r#"{"state":"stopping","role":"primary","xlog":{"location":5},"timeline":3}"#;
        assert!(!status(200, cached).is_writable());
        let up = r#"{"state":"running","role":"master","xlog":{"location":5},"timeline":3}"#;
        assert!(status(200, up).is_writable());
        assert!(!status(503, up).is_writable());
    }
}
