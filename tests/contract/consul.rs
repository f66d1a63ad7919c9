//! The followers and the publisher against the real Consul.

use crate::certificates::Certificates;
use crate::consul_server::{Api, Consul, MASTER};
use crate::processes::free_port;
use crate::store::{self, next_change, next_read, publish, read_store, text};
use crate::worker::Worker;
use nix::sys::signal::Signal;
use pgsquire::dcs::StoreConfig;
use pgsquire::dcs::consul::ConsulConfig;
use pgsquire_core::event::{Event, Outcome};
use reqwest::Method;
use serde_json::json;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::Instant;

fn config(endpoints: Vec<String>) -> StoreConfig {
    StoreConfig::Consul(ConsulConfig { endpoints, ..ConsulConfig::default() })
}

fn follow(endpoints: Vec<String>) -> Worker {
    store::follow(config(endpoints), 64)
}

/// The read is told before the watch is made: waits until the watch reports a write.
async fn watching(api: &Api, follower: &mut Worker) {
    api.put("service/main/history", &format!("{:?}", Instant::now())).await;
    assert_eq!(next_change(follower).await.changes[0].0, "history");
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
    assert_eq!(read.leader_ttl, None, "Consul tells nobody what is left of a session");
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
    assert_eq!(text(&read, "leader"), Some("without a session".into()));
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

    let mut publisher = store::publisher(with(Some(file.clone())), Duration::from_secs(60));
    assert_eq!(publisher.outcome(publish(&[("poolers/a", "1")])).await, Outcome::Done);
    assert_eq!(api.stored("pgsquire/service/main/").await["poolers/a"].value, "1");
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
async fn a_value_of_five_megabytes_is_refused_by_its_name() {
    let large = 8 << 20;
    let limits = json!({ "kv_max_value_size": large, "txn_max_req_len": large });
    let consul = Consul::start_with(json!({ "limits": limits })).await;
    let api = consul.api(0);
    api.put("service/main/leader", "pg1").await;
    api.put("service/main/history", &"x".repeat(5 << 20)).await;
    let mut follower = follow(consul.endpoints(&[0]));
    let Event::StoreFailed { why, .. } = follower.next().await else { panic!("it was read") };
    assert!(why.contains(&consul.endpoint(0)), "{why}");
    assert!(why.contains("service/main/history holds 5242880 bytes"), "{why}");
    api.delete("service/main/history").await;
    let (read, _) = next_read(&mut follower).await;
    assert_eq!(text(&read, "leader"), Some("pg1".into()));
    follower.stop().await;
}
