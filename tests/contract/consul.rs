//! The followers and the publisher against the real Consul.

use crate::certificates::Certificates;
use crate::consul_server::{Api, Consul, MASTER};
use crate::processes::{PATIENCE, free_port, until};
use crate::store::{self, ANSWER, lease_word, next_change, next_read, pairs, publish, put, read_store, text};
use crate::worker::Worker;
use nix::sys::signal::Signal;
use pgsquire::dcs::StoreConfig;
use pgsquire::dcs::consul::ConsulConfig;
use pgsquire_core::event::{Event, Outcome};
use reqwest::Method;
use serde_json::json;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::{Instant, timeout};

const OWN: &str = "pgsquire/service/main/";
const SHORT: Duration = Duration::from_secs(2);
const LONG: Duration = Duration::from_secs(60);

fn config(endpoints: Vec<String>) -> StoreConfig {
    StoreConfig::Consul(ConsulConfig { endpoints, ..ConsulConfig::default() })
}

fn follow(endpoints: Vec<String>) -> Worker {
    store::follow(config(endpoints), 64)
}

fn publisher(endpoints: Vec<String>, ttl: Duration) -> Worker {
    store::publisher(config(endpoints), ttl)
}

/// The read is told before the watch is made: waits until the watch reports a write.
async fn watching(api: &Api, follower: &mut Worker) {
    api.put("service/main/history", &format!("{:?}", Instant::now())).await;
    assert_eq!(next_change(follower).await.changes[0].0, "history");
}

async fn values(api: &Api) -> Vec<(String, String)> {
    api.stored(OWN).await.into_iter().map(|(key, stored)| (key, stored.value)).collect()
}

#[tokio::test]
async fn everything_below_the_prefix_is_read_and_then_watched() {
    let consul = Consul::start(0).await;
    let api = consul.api(0);
    let session = api.session("30s").await;
    api.acquire("service/main/leader", "pg1", &session).await;
    api.put("service/main/members/pg1", "{}").await;
    api.put("service/main2/leader", "other").await;
    api.put("elsewhere", "x").await;
    let revision = api.stored("").await["elsewhere"].revision;

    let mut follower = follow(consul.endpoints(&[0]));
    let (read, failures) = next_read(&mut follower).await;
    assert_eq!(failures, Vec::<String>::new());
    assert_eq!(read.keys.keys().collect::<Vec<_>>(), ["leader", "members/pg1"]);
    assert_eq!(text(&read, "leader"), Some("pg1".into()));
    assert_eq!(read.revision, revision, "the store's, not the keys'");
    assert_eq!((read.store.as_str(), read.raft_term), ("consul/dc1", 0));
    assert_eq!(read.leader_ttl, Some(Duration::from_secs(30)));
    watching(&api, &mut follower).await;

    api.put_all(&[("service/main/status", "1"), ("service/main/history", "[]")]).await;
    api.put("service/main2/leader", "not ours").await;
    api.destroy(&session).await;
    let change = next_change(&mut follower).await;
    assert!(change.revision > read.revision);
    assert_eq!(change.store, read.store);
    let keys: Vec<_> = change.changes.iter().map(|(key, value)| (key.as_str(), value.is_some())).collect();
    assert_eq!(keys, [("history", true), ("status", true)], "one transaction, one event");
    let gone = next_change(&mut follower).await;
    assert_eq!(gone.changes, vec![("leader".into(), None)]);

    assert_eq!(follower.outcome(read_store()).await, Outcome::Done);
    api.put("service/main/leader", "without a session").await;
    next_change(&mut follower).await;
    follower.order(read_store()).await;
    let (read, _) = next_read(&mut follower).await;
    assert_eq!((text(&read, "leader"), read.leader_ttl), (Some("without a session".into()), None));
    assert!(read.revision > gone.revision);
    assert!(matches!(follower.next().await, Event::Done { outcome: Outcome::Done, .. }));
    api.delete("service/main/leader").await;
    assert_eq!(next_change(&mut follower).await.changes, vec![("leader".into(), None)]);
    follower.stop().await;
}

#[tokio::test]
async fn what_was_written_while_an_agent_was_down_arrives() {
    let mut consul = Consul::start(1).await;
    let api = consul.api(0);
    let mut follower = follow(consul.endpoints(&[1]));
    let (before, _) = next_read(&mut follower).await;
    watching(&api, &mut follower).await;
    consul.kill(1);
    let Event::StoreFailed { why, .. } = follower.next().await else { panic!("it did not notice") };
    assert!(why.contains("service/main/") && why.contains(&consul.endpoint(1)), "{why}");
    for n in 0..5 {
        api.put(&format!("service/main/members/pg{n}"), "{}").await;
    }
    api.delete("service/main/members/pg0").await;
    consul.begin(1).await;
    let (after, _) = next_read(&mut follower).await;
    assert_eq!(after.store, before.store);
    assert_eq!(
        after.keys.keys().collect::<Vec<_>>(),
        ["history", "members/pg1", "members/pg2", "members/pg3", "members/pg4"]
    );
    watching(&api, &mut follower).await;
    follower.stop().await;
}

#[tokio::test]
async fn a_server_that_comes_back_is_the_same_store() {
    let mut consul = Consul::start(0).await;
    let api = consul.api(0);
    let mut follower = follow(consul.endpoints(&[0]));
    next_read(&mut follower).await;
    watching(&api, &mut follower).await;
    api.put("service/main/leader", "pg1").await;
    let change = next_change(&mut follower).await;
    follower.order(read_store()).await;
    let (before, _) = next_read(&mut follower).await;
    assert!(matches!(follower.next().await, Event::Done { outcome: Outcome::Done, .. }));
    consul.kill(0);
    let Event::StoreFailed { .. } = follower.next().await else { panic!("it did not notice") };
    consul.begin(0).await;
    let (after, _) = next_read(&mut follower).await;
    assert_eq!((&after.store, text(&after, "leader")), (&before.store, Some("pg1".into())));
    assert!(after.revision >= before.revision && before.revision >= change.revision);
    watching(&api, &mut follower).await;
    follower.stop().await;
}

#[tokio::test]
async fn an_agent_without_servers_is_reported_and_their_return_is_seen() {
    let mut consul = Consul::start(1).await;
    let mut follower = follow(consul.endpoints(&[1]));
    let (before, _) = next_read(&mut follower).await;
    watching(&consul.api(0), &mut follower).await;
    consul.kill(0);
    let began = Instant::now();
    let Event::StoreFailed { why, .. } = follower.next().await else { panic!("it did not notice") };
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}: {why}", began.elapsed());
    let Outcome::Failed { why } = follower.outcome(read_store()).await else { panic!("who answered?") };
    assert!(why.contains(&consul.endpoint(1)), "{why}");
    consul.begin(0).await;
    let (after, _) = next_read(&mut follower).await;
    assert_eq!(after.store, before.store);
    assert!(after.keys.contains_key("history"));
    follower.stop().await;
}

#[tokio::test]
async fn an_endpoint_that_refuses_is_passed_over() {
    let consul = Consul::start(0).await;
    let refusing = format!("http://127.0.0.1:{}", free_port());
    let began = Instant::now();
    let mut follower = follow(vec![refusing.clone(), consul.endpoint(0)]);
    let (_, failures) = next_read(&mut follower).await;
    assert!(failures.is_empty(), "{failures:?}");
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    watching(&consul.api(0), &mut follower).await;
    follower.stop().await;

    let mut nowhere = follow(vec![refusing.clone()]);
    let Event::StoreFailed { why, .. } = nowhere.next().await else { panic!("there is nothing to read") };
    assert!(why.contains(&refusing) && why.contains("refused"), "{why}");
    nowhere.stop().await;
}

#[tokio::test]
async fn a_frozen_agent_is_left_for_the_next() {
    let consul = Consul::start(1).await;
    let api = consul.api(0);
    // By an ordered read: the watch moves without having failed.
    let mut follower = follow(consul.endpoints(&[1, 0]));
    next_read(&mut follower).await;
    watching(&api, &mut follower).await;
    consul.signal(1, Signal::SIGSTOP);
    let began = Instant::now();
    assert_eq!(follower.outcome(read_store()).await, Outcome::Done);
    assert!(began.elapsed() < Duration::from_millis(3500), "{:?}", began.elapsed());
    watching(&api, &mut follower).await;
    follower.stop().await;

    // From the start.
    let began = Instant::now();
    let mut second = follow(consul.endpoints(&[1, 0]));
    next_read(&mut second).await;
    assert!(began.elapsed() < Duration::from_millis(3500), "{:?}", began.elapsed());
    second.stop().await;
    consul.signal(1, Signal::SIGCONT);

    // By the watch alone: the question beside it ends it.
    let mut third = follow(consul.endpoints(&[1, 0]));
    let (_, failures) = next_read(&mut third).await;
    assert!(failures.is_empty(), "{failures:?}");
    watching(&api, &mut third).await;
    consul.signal(1, Signal::SIGSTOP);
    let began = Instant::now();
    let Event::StoreFailed { why, .. } = third.next().await else { panic!("it did not notice") };
    println!("a frozen agent was noticed after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(6), "{:?}", began.elapsed());
    assert!(why.contains(&consul.endpoint(1)) && why.contains("silent"), "{why}");
    next_read(&mut third).await;
    watching(&api, &mut third).await;
    consul.signal(1, Signal::SIGCONT);
    third.stop().await;
}

#[tokio::test]
async fn a_token_is_shown_and_read_again() {
    let consul = Consul::guarded().await;
    let api = consul.api(0);
    api.put("service/main/leader", "pg1").await;
    let rules = r#"key_prefix "service/" { policy = "read" } key_prefix "pgsquire/" { policy = "write" }
        session_prefix "" { policy = "write" }"#;
    let policy = json!({ "Name": "squire", "Rules": rules });
    api.ask(Method::PUT, "v1/acl/policy", &policy.to_string()).await.unwrap();
    let token = json!({ "Policies": [{ "Name": "squire" }] });
    let made = api.ask(Method::PUT, "v1/acl/token", &token.to_string()).await.unwrap();
    let secret =
        serde_json::from_str::<serde_json::Value>(&made).unwrap()["SecretID"].as_str().unwrap().to_owned();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    let with = |token_file: Option<PathBuf>| {
        StoreConfig::Consul(ConsulConfig {
            endpoints: consul.endpoints(&[0]),
            token_file,
            ..ConsulConfig::default()
        })
    };

    std::fs::write(&file, "22222222-2222-2222-2222-222222222222\n").unwrap();
    let mut follower = store::follow(with(Some(file.clone())), 64);
    let Event::StoreFailed { why, .. } = follower.next().await else { panic!("it was let in") };
    assert!(why.contains(&consul.endpoint(0)) && why.contains("403") && why.contains("token_file"), "{why}");
    std::fs::write(&file, format!("{secret}\n")).unwrap();
    let (read, _) = next_read(&mut follower).await;
    assert_eq!(text(&read, "leader"), Some("pg1".into()));
    assert_eq!(read.store, "consul", "this token may not ask for the name of the datacenter");
    watching(&api, &mut follower).await;
    follower.stop().await;

    let mut publisher = store::publisher(with(Some(file.clone())), LONG);
    assert_eq!(publisher.outcome(publish(&[("poolers/a", "1")])).await, Outcome::Done);
    assert_eq!(values(&api).await, pairs(&[("poolers/a", "1")]));
    publisher.stop().await;

    std::fs::write(&file, format!("{MASTER}\n")).unwrap();
    let mut master = store::follow(with(Some(file)), 64);
    assert_eq!(next_read(&mut master).await.0.store, "consul/dc1");
    master.stop().await;

    let refused = async |token_file| {
        let mut follower = store::follow(with(token_file), 64);
        let Event::StoreFailed { why, .. } = follower.next().await else { panic!("it was let in") };
        follower.stop().await;
        why
    };
    // Without a token a list is empty there, and its reader must not take that for an empty store.
    let why = refused(None).await;
    assert!(why.contains("403"), "{why}");
    let why = refused(Some(dir.path().join("no-such-token"))).await;
    assert!(why.contains("no-such-token"), "{why}");
}

#[tokio::test]
async fn a_private_certificate_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let tls = Certificates::make(dir.path());
    let path = |name: &str| dir.path().join(name).display().to_string();
    let https = free_port();
    let more = json!({
        "ca_file": path("ca.crt"),
        "cert_file": path("server.crt"),
        "key_file": path("server.key"),
        "verify_incoming_https": true,
    });
    let consul = Consul::with_https(more, https).await;
    consul.api(0).put("service/main/leader", "pg1").await;
    let config = ConsulConfig {
        endpoints: vec![format!("https://127.0.0.1:{https}")],
        tls_ca: Some(tls.ca.clone()),
        tls_cert: Some(tls.cert.clone()),
        tls_key: Some(tls.key.clone()),
        token_file: None,
    };
    let mut follower = store::follow(StoreConfig::Consul(config.clone()), 64);
    let (read, failures) = next_read(&mut follower).await;
    assert_eq!((text(&read, "leader"), failures), (Some("pg1".into()), Vec::new()));
    watching(&consul.api(0), &mut follower).await;
    follower.stop().await;
    let refused = async |config: ConsulConfig| {
        let mut follower = store::follow(StoreConfig::Consul(config), 64);
        let Event::StoreFailed { why, .. } = follower.next().await else { panic!("it was let in") };
        follower.stop().await;
        why
    };
    let why = refused(ConsulConfig { tls_ca: None, ..config.clone() }).await;
    assert!(why.contains("127.0.0.1") && why.contains("without tls_ca"), "{why}");
    let why = refused(ConsulConfig { tls_ca: Some(path("no-such.crt").into()), ..config }).await;
    assert!(why.contains("no-such.crt"), "{why}");
}

#[tokio::test]
async fn our_own_keys_are_published_followed_and_revoked() {
    let consul = Consul::start(0).await;
    let api = consul.api(0);
    store::puts_and_deletes_are_seen(config(consul.endpoints(&[0]))).await;
    assert_eq!(api.sessions().await, Vec::<String>::new());

    let mut publisher = publisher(consul.endpoints(&[0]), LONG);
    assert_eq!(publisher.outcome(publish(&[])).await, Outcome::Done);
    assert_eq!(api.sessions().await, Vec::<String>::new(), "nothing needs a session yet");
    publisher.order(publish(&[("poolers/a", "1"), ("switch", "x")])).await;
    assert_eq!(lease_word(&mut publisher).await, Some(LONG));
    let Event::Done { outcome: Outcome::Done, .. } = publisher.next().await else { panic!("not done") };
    let first = api.stored(OWN).await;
    assert_eq!(values(&api).await, pairs(&[("poolers/a", "1"), ("switch", "x")]));
    assert!(
        first.values().all(|stored| stored.session == first["switch"].session && !stored.session.is_empty())
    );

    let same = [("poolers/a", "1"), ("members/b", "2")];
    assert_eq!(publisher.outcome(publish(&same)).await, Outcome::Done);
    let second = api.stored(OWN).await;
    assert_eq!(values(&api).await, pairs(&[("members/b", "2"), ("poolers/a", "1")]));
    assert_eq!(second["poolers/a"], first["poolers/a"], "what is the same is not put again");
    assert_eq!(publisher.outcome(put("registry/a", Some("r"))).await, Outcome::Done);
    assert_eq!(api.stored(OWN).await["registry/a"].session, "");
    assert_eq!(publisher.outcome(put("registry/a", None)).await, Outcome::Done);

    let mut waits = Vec::new();
    for n in 0..20 {
        let began = Instant::now();
        assert_eq!(publisher.outcome(publish(&[("switch", &n.to_string())])).await, Outcome::Done);
        waits.push(began.elapsed());
    }
    waits.sort_unstable();
    println!("a publish takes {:?} (median of 20; longest {:?})", waits[10], waits[19]);
    publisher.stop().await;
    assert_eq!(values(&api).await, []);
    assert_eq!(api.sessions().await, Vec::<String>::new());
}

#[tokio::test]
async fn keys_of_a_dead_run_end_with_its_session_and_a_lost_session_is_made_again() {
    let consul = Consul::start(0).await;
    let api = consul.api(0);
    let mut dead = publisher(consul.endpoints(&[0]), SHORT);
    assert_eq!(dead.outcome(publish(&[("poolers/dead", "1")])).await, Outcome::Done);
    // Longer than twice its time to live: the session is kept.
    for _ in 0..8 {
        assert_eq!(lease_word(&mut dead).await, Some(SHORT));
    }
    assert_eq!(values(&api).await, pairs(&[("poolers/dead", "1")]));
    assert_eq!(dead.outcome(put("registry/dead", Some("r"))).await, Outcome::Done);
    dead.abort().await;
    let began = Instant::now();
    until("its session has ended", async || (api.stored(OWN).await.len() == 1).then_some(())).await;
    println!("the keys of a dead run with {SHORT:?} ended after {:?}", began.elapsed());
    assert_eq!(values(&api).await, pairs(&[("registry/dead", "r")]), "that one had no session");
    api.delete("pgsquire/service/main/registry/dead").await;

    let mut publisher = publisher(consul.endpoints(&[0]), SHORT);
    let keys = [("members/a", "1"), ("poolers/a", "2")];
    assert_eq!(publisher.outcome(publish(&keys)).await, Outcome::Done);
    // The next renewal finds out.
    api.destroy(&api.stored(OWN).await["poolers/a"].session).await;
    while lease_word(&mut publisher).await.is_some() {}
    assert_eq!(lease_word(&mut publisher).await, Some(SHORT));
    until("the keys are back", async || (values(&api).await == pairs(&keys)).then_some(())).await;
    // A publish finds out.
    api.destroy(&api.stored(OWN).await["poolers/a"].session).await;
    let keys = [("poolers/a", "3")];
    assert_eq!(publisher.outcome(publish(&keys)).await, Outcome::Done);
    assert_eq!(values(&api).await, pairs(&keys));
    publisher.stop().await;
}

#[tokio::test]
async fn the_later_of_two_runs_keeps_its_key_when_the_earlier_one_ends() {
    let consul = Consul::start(0).await;
    let api = consul.api(0);
    let mut earlier = publisher(consul.endpoints(&[0]), LONG);
    let mut later = publisher(consul.endpoints(&[0]), LONG);
    assert_eq!(earlier.outcome(publish(&[("poolers/a", "1"), ("switch", "1")])).await, Outcome::Done);
    assert_eq!(later.outcome(publish(&[("poolers/a", "1"), ("switch", "1")])).await, Outcome::Done);
    let owner = api.stored(OWN).await["poolers/a"].session.clone();
    assert_eq!(earlier.outcome(publish(&[("poolers/a", "1")])).await, Outcome::Done);
    assert_eq!(api.stored(OWN).await["switch"].session, owner, "the earlier one deletes only its own");
    earlier.stop().await;
    assert_eq!(values(&api).await, pairs(&[("poolers/a", "1"), ("switch", "1")]));
    later.stop().await;
    assert_eq!(values(&api).await, []);

    // Both at once, again and again: each order is answered, and one of the values is there.
    let mut one = publisher(consul.endpoints(&[0]), LONG);
    let mut other = publisher(consul.endpoints(&[0]), LONG);
    for n in 0..10 {
        let (mine, theirs) = (format!("one {n}"), format!("other {n}"));
        let (a, b) = ([("switch", mine.as_str())], [("switch", theirs.as_str())]);
        let (first, second) = tokio::join!(one.outcome(publish(&a)), other.outcome(publish(&b)));
        assert_eq!((first, second), (Outcome::Done, Outcome::Done));
        let value = api.stored(OWN).await["switch"].value.clone();
        assert!(value == mine || value == theirs, "{value}");
    }
    one.stop().await;
    other.stop().await;
    assert_eq!(values(&api).await, []);
}

#[tokio::test]
async fn a_refusing_endpoint_costs_nothing_and_a_frozen_one_little() {
    let mut consul = Consul::start(1).await;
    let api = consul.api(0);
    let mut endpoints = consul.endpoints(&[0]);
    endpoints.insert(0, format!("127.0.0.1:{}", free_port()));
    let mut first = publisher(endpoints, LONG);
    assert_eq!(first.outcome(publish(&[("poolers/a", "1")])).await, Outcome::Done);
    let session = api.stored(OWN).await["poolers/a"].session.clone();
    assert_eq!(first.outcome(publish(&[("poolers/a", "2")])).await, Outcome::Done);
    assert_eq!(api.stored(OWN).await["poolers/a"].session, session, "who refuses has done nothing");
    first.stop().await;

    // Frozen in the middle: what it may still do is bound to a session that is ended before it wakes up.
    let mut second = publisher(consul.endpoints(&[1, 0]), LONG);
    assert_eq!(second.outcome(publish(&[("poolers/c", "1"), ("switch", "old")])).await, Outcome::Done);
    let session = api.stored(OWN).await["poolers/c"].session.clone();
    consul.signal(1, Signal::SIGSTOP);
    let began = Instant::now();
    assert_eq!(second.outcome(publish(&[("poolers/c", "2")])).await, Outcome::Done);
    println!("a publish with a frozen endpoint took {:?}", began.elapsed());
    assert!(began.elapsed() < ANSWER, "{:?}", began.elapsed());
    assert_eq!(values(&api).await, pairs(&[("poolers/c", "2")]));
    until("the old session is ended", async || (!api.sessions().await.contains(&session)).then_some(()))
        .await;
    consul.signal(1, Signal::SIGCONT);
    assert_eq!(second.outcome(publish(&[("poolers/c", "3")])).await, Outcome::Done);
    until("it is back", async || consul.api(1).ask(Method::GET, "v1/status/leader", "").await.ok()).await;
    until("only the last value is there", async || {
        (values(&api).await == pairs(&[("poolers/c", "3")])).then_some(())
    })
    .await;
    second.stop().await;

    // Nobody answers: every order is answered all the same, and the agent stops in time.
    let mut third = publisher(consul.endpoints(&[1]), SHORT);
    assert_eq!(third.outcome(publish(&[("poolers/a", "1")])).await, Outcome::Done);
    consul.signal(1, Signal::SIGSTOP);
    let began = Instant::now();
    let Outcome::Failed { why } = third.outcome(publish(&[("poolers/a", "2")])).await else {
        panic!("who answered?")
    };
    assert!(why.contains(&consul.endpoint(1)) || why.contains("within"), "{why}");
    assert!(began.elapsed() < ANSWER, "{:?}", began.elapsed());
    consul.signal(1, Signal::SIGCONT);
    until("what was ordered last is there", async || {
        (values(&api).await == pairs(&[("poolers/a", "2")])).then_some(())
    })
    .await;
    consul.kill(1);
    let Outcome::Failed { why } = third.outcome(publish(&[("poolers/a", "4")])).await else {
        panic!("who answered?")
    };
    assert!(why.contains(&consul.endpoint(1)) && why.contains("refused"), "{why}");
    timeout(PATIENCE, third.stop()).await.unwrap();
}
