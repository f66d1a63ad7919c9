use super::*;
use crate::example::at;
use crate::patroni::read_topology;
use crate::topology::{Role, Topology};
use crate::wal::Timeline;

const CONFIG: &[u8] = br#"{"ttl": 20, "loop_wait": 5, "pause": true}"#;

/// Three members, and what `GET /cluster` says of them.
fn members() -> Members {
    let mut members = Members::new("main", Duration::from_secs(10));
    let line = |n: u32| {
        let role = if n == 1 { "leader" } else { "sync_standby" };
        json!({"name": format!("pg{n}"), "role": role, "state": "streaming", "host": format!("10.0.0.{n}"), "port": 5432,
               "api_url": format!("http://10.0.0.{n}:8008/patroni"), "timeline": 1, "tags": {"clonefrom": true}})
    };
    let page = json!({"members": [line(1), line(2), line(3)], "scope": "main"}).to_string();
    members.list(page.as_bytes(), CONFIG).expect("it is Patroni's");
    members
}

fn base(n: u32) -> String {
    format!("http://10.0.0.{n}:8008")
}

/// An answer of this member: its code, role, timeline and system.
fn body(n: u32, role: &str, timeline: u32, system: &str) -> Vec<u8> {
    let xlog = if role == "replica" { json!({"replayed_location": 900}) } else { json!({"location": 1000}) };
    let about = json!({"version": "4.1.5", "scope": "main", "name": format!("pg{n}")});
    let body = json!({"state": "running", "role": role, "timeline": timeline, "xlog": xlog,
                      "database_system_identifier": system, "patroni": about});
    body.to_string().into_bytes()
}

/// The member is asked at this time, and answers within 5 ms.
fn hear(members: &mut Members, n: u32, code: u16, role: &str, timeline: u32, ms: u64) {
    let body = body(n, role, timeline, "777");
    members.hear(&base(n), code, &body, at(ms), at(ms + 5)).expect("a member answered");
}

/// pg1 leads on timeline 1.
fn settled() -> Members {
    let mut members = members();
    hear(&mut members, 1, 200, "primary", 1, 1_000);
    hear(&mut members, 2, 503, "replica", 1, 1_000);
    hear(&mut members, 3, 503, "replica", 1, 1_000);
    members
}

fn topology(members: &mut Members, ms: u64) -> Topology {
    read_topology(&members.read(&Mutants::default(), at(ms)).expect("somebody answers").keys)
}

fn leader(members: &mut Members, ms: u64) -> Option<String> {
    topology(members, ms).leader.map(|leader| leader.name)
}

#[test]
fn answers_become_the_keys_of_a_store() {
    let mut members = settled();
    hear(&mut members, 2, 503, "replica", 1, 1_200);
    let read = members.read(&Mutants::default(), at(1_300)).expect("somebody answers");
    assert_eq!((read.store.as_str(), read.revision, read.leader_ttl), (STORE, REVISION, None));
    assert_eq!(read.started, at(1_000), "the leader's word is the oldest that counts");
    let topology = read_topology(&read.keys);
    assert_eq!(topology.problems, Vec::<String>::new());
    assert_eq!(topology.leader.as_ref().map(|leader| leader.name.as_str()), Some("pg1"));
    assert_eq!(topology.system_id.as_deref(), Some("777"));
    assert_eq!(topology.sync_standbys, ["pg2", "pg3"]);
    assert_eq!((topology.config.ttl, topology.config.pause), (Duration::from_secs(20), true));
    assert_eq!(topology.leader_lsn.map(|lsn| lsn.0), Some(1_000));
    let pg2 = &topology.members["pg2"];
    assert_eq!(pg2.endpoint.as_ref().map(ToString::to_string).as_deref(), Some("10.0.0.2:5432"));
    assert_eq!((pg2.role, pg2.timeline), (Some(Role::Replica), Some(Timeline(1))));
    assert_eq!((pg2.lsn.map(|lsn| lsn.0), pg2.version.as_deref()), (Some(900), Some("4.1.5")));
    assert!(pg2.has_tag("clonefrom") && pg2.is_running());
}

#[test]
fn only_positions_in_the_log_are_no_news() {
    let mut members = settled();
    let outline = |members: &mut Members, ms| members.outline(&Mutants::default(), at(ms)).expect("known");
    let before = outline(&mut members, 1_100);
    let moved = String::from_utf8(body(1, "primary", 1, "777")).unwrap().replace("1000", "2000");
    members.hear(&base(1), 200, moved.as_bytes(), at(1_200), at(1_201)).expect("heard");
    assert_eq!(outline(&mut members, 1_300), before);
    hear(&mut members, 3, 503, "replica", 2, 1_400);
    assert_ne!(outline(&mut members, 1_500), before);
}

#[test]
fn the_lock_moves_with_the_answers() {
    let mut members = settled();
    // pg1 is stopped for a switchover and says so; then pg2 has the lock and is promoted.
    hear(&mut members, 1, 503, "primary", 1, 1_200);
    assert_eq!(leader(&mut members, 1_210), None);
    hear(&mut members, 2, 200, "replica", 1, 1_300);
    assert_eq!(leader(&mut members, 1_310).as_deref(), Some("pg2"));
    hear(&mut members, 2, 200, "primary", 2, 1_400);
    assert_eq!(leader(&mut members, 1_410).as_deref(), Some("pg2"));
    assert_eq!(topology(&mut members, 1_410).members["pg2"].timeline, Some(Timeline(2)));
}

#[test]
fn who_took_the_lock_later_leads() {
    let mut members = settled();
    // The answer of pg1 is older than its loss of the lock, or it goes on saying so.
    hear(&mut members, 2, 503, "replica", 1, 1_200);
    hear(&mut members, 2, 200, "replica", 1, 1_400);
    hear(&mut members, 1, 200, "primary", 1, 1_500);
    assert_eq!(leader(&mut members, 1_510).as_deref(), Some("pg2"));
    let problems = topology(&mut members, 1_510).problems;
    assert!(
        problems[0].contains("pg1, pg2 all say that they hold the lock: pg2 took it last"),
        "{problems:?}"
    );
    // It stays so whoever speaks last.
    hear(&mut members, 1, 200, "primary", 1, 1_700);
    assert_eq!(leader(&mut members, 1_710).as_deref(), Some("pg2"));
    // On a newer timeline it is beyond doubt, also when a clock is set back and the claim begins anew.
    hear(&mut members, 2, 200, "primary", 2, 1_800);
    hear(&mut members, 1, 503, "primary", 1, 1_900);
    hear(&mut members, 1, 200, "primary", 1, 2_100);
    assert_eq!(leader(&mut members, 2_110).as_deref(), Some("pg2"));
}

#[test]
fn nobody_leads_while_nobody_can_tell() {
    let mut members = members();
    hear(&mut members, 1, 200, "primary", 1, 1_000);
    hear(&mut members, 2, 200, "replica", 1, 1_000);
    assert_eq!(leader(&mut members, 1_010), None);
    let problems = topology(&mut members, 1_010).problems;
    assert!(problems[0].contains("pg1, pg2") && problems[0].contains("is not known"), "{problems:?}");
    hear(&mut members, 1, 503, "replica", 1, 1_200);
    assert_eq!(leader(&mut members, 1_210).as_deref(), Some("pg2"));
}

#[test]
fn a_silent_leader_leads_until_its_word_is_too_old() {
    let mut members = settled();
    members.miss(&base(1), "silent for 1 s".into());
    for ms in [2_000, 5_000, 9_000] {
        hear(&mut members, 2, 503, "replica", 1, ms);
    }
    assert_eq!(leader(&mut members, 11_000).as_deref(), Some("pg1"));
    assert!(topology(&mut members, 11_000).problems[0].contains("http://10.0.0.1:8008: silent for 1 s"));
    hear(&mut members, 2, 503, "replica", 1, 11_001);
    assert_eq!(leader(&mut members, 11_001), None);
    let read = members.read(&Mutants::default(), at(11_002)).expect("pg2 answers");
    assert_eq!(read.started, at(11_001), "that nobody leads is as new as the newest answer");
    // What it says after that is the old claim still.
    hear(&mut members, 2, 200, "replica", 1, 11_200);
    hear(&mut members, 1, 200, "primary", 1, 12_000);
    assert_eq!(leader(&mut members, 12_010).as_deref(), Some("pg2"), "it took the lock while pg1 was away");
}

#[test]
fn a_member_alone_is_a_cluster() {
    let mut members = Members::new("main", Duration::from_secs(10));
    let page = br#"{"members": [{"name": "pg1", "role": "leader", "api_url": "http://10.0.0.1:8008/patroni", "host": "h"}]}"#;
    members.list(page, CONFIG).expect("it is Patroni's");
    hear(&mut members, 1, 200, "primary", 1, 1_000);
    assert_eq!(leader(&mut members, 1_010).as_deref(), Some("pg1"));
    members.miss(&base(1), "connection refused".into());
    let why = members.read(&Mutants::default(), at(1_200)).expect_err("nobody answers");
    assert_eq!(why, "no member of main answers: http://10.0.0.1:8008: connection refused");
}

#[test]
fn the_leader_of_a_standby_cluster_does_not_say_200() {
    let mut members = members();
    hear(&mut members, 1, 503, "standby_leader", 1, 1_000);
    hear(&mut members, 2, 503, "replica", 1, 1_000);
    assert_eq!(leader(&mut members, 1_010).as_deref(), Some("pg1"));
}

#[test]
fn a_member_of_another_system_counts_for_nothing() {
    let mut members = settled();
    let strange = body(2, "primary", 9, "888");
    members.hear(&base(2), 200, &strange, at(1_200), at(1_205)).expect("heard");
    let seen = topology(&mut members, 1_300);
    assert_eq!(seen.leader.as_ref().map(|leader| leader.name.as_str()), Some("pg1"));
    assert_eq!(seen.system_id.as_deref(), Some("777"));
    assert_eq!(seen.problems, ["pg2 answers for system 888, but the cluster is 777"]);
    assert_eq!(seen.members["pg2"].role, None, "it does not say");
    // A cluster that was built anew: most say so.
    members.hear(&base(1), 503, &body(1, "replica", 9, "888"), at(1_400), at(1_405)).expect("heard");
    let seen = topology(&mut members, 1_500);
    assert_eq!(seen.leader.as_ref().map(|leader| leader.name.as_str()), Some("pg2"));
    assert_eq!(seen.system_id.as_deref(), Some("888"));
}

#[test]
fn two_systems_of_equal_weight_have_no_leader() {
    let mut members = members();
    members.hear(&base(1), 200, &body(1, "primary", 1, "777"), at(1_000), at(1_001)).expect("heard");
    members.hear(&base(2), 200, &body(2, "primary", 1, "888"), at(1_000), at(1_001)).expect("heard");
    let seen = topology(&mut members, 1_010);
    assert_eq!((seen.leader, seen.system_id), (None, None));
    assert_eq!(seen.problems.len(), 2, "{:?}", seen.problems);
}

#[test]
fn what_is_no_member_of_this_cluster_is_refused_with_a_sentence() {
    let mut members = members();
    let mut why = |code, body: &str| {
        members.hear(&base(1), code, body.as_bytes(), at(1), at(2)).expect_err("it is no member")
    };
    assert!(why(200, "<html>It works!</html>").contains("not Patroni's JSON"));
    assert!(why(200, r#"{"hello": 1}"#).contains("without `state`"));
    assert!(why(404, r#"{"state": "running"}"#).contains("HTTP 404"));
    let other = r#"{"state": "running", "role": "primary", "patroni": {"scope": "other", "name": "pg1"}}"#;
    assert_eq!(why(200, other), "it answers for scope other, not main");
    assert!(members.read(&Mutants::default(), at(3)).is_err());
}

#[test]
fn an_old_patroni_is_known_by_its_address() {
    let mut members = members();
    let old = br#"{"state": "running", "role": "master", "timeline": 1, "xlog": {"location": 7},
                   "database_system_identifier": "777", "patroni": {"version": "3.0.2", "scope": "main"}}"#;
    members.hear(&base(1), 200, old, at(1), at(2)).expect("it is listed");
    assert_eq!(leader(&mut members, 3).as_deref(), Some("pg1"));
    let why = members.hear("http://db1:8008", 200, old, at(4), at(5)).expect_err("who is it?");
    assert!(why.contains("restapi.connect_address"), "{why}");
}

#[test]
fn one_that_is_not_listed_is_a_reason_to_look_and_one_that_is_gone_is_forgotten() {
    let mut members = settled();
    assert_eq!(members.strangers().next(), None);
    hear(&mut members, 4, 503, "replica", 1, 1_100);
    assert_eq!(members.strangers().collect::<Vec<_>>(), ["pg4"]);
    let page =
        r#"{"members": [{"name": "pg4", "api_url": "http://10.0.0.4:8008/patroni", "host": "10.0.0.4"}]}"#;
    members.list(page.as_bytes(), CONFIG).expect("it is Patroni's");
    assert_eq!(members.strangers().next(), None);
    assert_eq!(topology(&mut members, 1_200).members.keys().collect::<Vec<_>>(), ["pg4"]);
    assert_eq!(members.addresses().collect::<Vec<_>>(), [base(4)]);
    // A list that cannot be read leaves the one before it.
    assert!(members.list(b"<html>", CONFIG).is_err());
    assert!(topology(&mut members, 1_200).problems[0].contains("GET /cluster: the answer is not JSON"));
}

#[test]
fn a_second_address_of_a_member_is_known_as_such() {
    let mut members = settled();
    let answer = body(2, "replica", 1, "777");
    members.hear("http://db2:8008", 503, &answer, at(1_100), at(1_105)).expect("heard");
    assert!(members.is_alias("http://db2:8008") && !members.is_alias(&base(2)));
    members.miss(&base(2), "connection refused".into());
    assert!(!members.is_alias("http://db2:8008"), "now it is the only one");
}
