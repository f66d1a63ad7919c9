//! The publisher and the follower of our own keys against a real Consul.

use crate::consul_server::{Api, Consul};
use crate::processes::{PATIENCE, free_port, until};
use crate::store::{self, ANSWER, lease_word, pairs, publish, put};
use crate::worker::Worker;
use nix::sys::signal::Signal;
use pgsquire::dcs::StoreConfig;
use pgsquire::dcs::consul::ConsulConfig;
use pgsquire_core::event::{Event, Outcome};
use reqwest::Method;
use std::time::Duration;
use tokio::time::{Instant, timeout};

const OWN: &str = "pgsquire/service/main/";
const SHORT: Duration = Duration::from_secs(2);
const LONG: Duration = Duration::from_secs(60);

fn config(endpoints: Vec<String>) -> StoreConfig {
    StoreConfig::Consul(ConsulConfig { endpoints, ..ConsulConfig::default() })
}

fn publisher(endpoints: Vec<String>, ttl: Duration) -> Worker {
    store::publisher(config(endpoints), ttl)
}

async fn values(api: &Api) -> Vec<(String, String)> {
    api.stored(OWN).await.into_iter().map(|(key, stored)| (key, stored.value)).collect()
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
