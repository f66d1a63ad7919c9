//! The publisher and the follower of our own keys against real etcd servers.

use crate::etcd_server::Cluster;
use crate::processes::{PATIENCE, free_port, until};
use crate::store::{self, ANSWER, lease_word, pairs, publish, put};
use crate::worker::Worker;
use etcd_client::{Client, GetOptions};
use nix::sys::signal::Signal;
use pgsquire::dcs::{StoreConfig, etcd::EtcdConfig};
use pgsquire_core::event::{Event, Outcome};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::time::{Instant, timeout};

const PREFIX: &str = "/pgsquire/service/main/";
const SHORT: Duration = Duration::from_secs(2);
const LONG: Duration = Duration::from_secs(60);

fn store(endpoints: Vec<String>) -> StoreConfig {
    StoreConfig::Etcd(EtcdConfig { endpoints, ..EtcdConfig::default() })
}

fn publisher(endpoints: Vec<String>, ttl: Duration) -> Worker {
    store::publisher(store(endpoints), ttl)
}

fn follower(endpoints: Vec<String>) -> Worker {
    store::peers(store(endpoints))
}

/// Key -> value, lease and revision, as another client reads them.
async fn stored(etcd: &mut Client) -> BTreeMap<String, (String, i64, i64)> {
    let answer = etcd.get(PREFIX, Some(GetOptions::new().with_prefix())).await.unwrap();
    let one = |kv: &etcd_client::KeyValue| {
        let key = kv.key_str().unwrap().strip_prefix(PREFIX).unwrap().to_owned();
        (key, (kv.value_str().unwrap().to_owned(), kv.lease(), kv.mod_revision()))
    };
    answer.kvs().iter().map(one).collect()
}

async fn values(etcd: &mut Client) -> Vec<(String, String)> {
    stored(etcd).await.into_iter().map(|(key, (value, ..))| (key, value)).collect()
}

#[tokio::test]
async fn exactly_the_ordered_keys_are_there_and_one_order_is_one_revision() {
    let cluster = Cluster::start(1).await;
    let mut etcd = cluster.client(0).await;
    let mut publisher = publisher(cluster.endpoints(&[0]), LONG);
    assert_eq!(publisher.outcome(publish(&[])).await, Outcome::Done);
    assert_eq!(etcd.leases().await.unwrap().leases().len(), 0, "nothing needs a lease yet");

    publisher.order(publish(&[("poolers/a", "1"), ("switch", "x")])).await;
    assert_eq!(lease_word(&mut publisher).await, Some(LONG));
    let Event::Done { outcome: Outcome::Done, .. } = publisher.next().await else { panic!("not done") };
    let first = stored(&mut etcd).await;
    assert_eq!(values(&mut etcd).await, pairs(&[("poolers/a", "1"), ("switch", "x")]));
    assert!(first.values().all(|(_, lease, _)| *lease != 0 && *lease == first["switch"].1));

    let same = [("poolers/a", "1"), ("members/b", "2")];
    assert_eq!(publisher.outcome(publish(&same)).await, Outcome::Done);
    let second = stored(&mut etcd).await;
    assert_eq!(values(&mut etcd).await, pairs(&[("members/b", "2"), ("poolers/a", "1")]));
    assert_eq!(second["poolers/a"], first["poolers/a"], "what is the same is not put again");
    let now = etcd.get("x", None).await.unwrap().header().unwrap().revision();
    assert_eq!(now, first["switch"].2 + 1, "one put and one delete are one revision");
    assert_eq!(second["members/b"].2, now);

    let mut waits = Vec::new();
    for n in 0..20 {
        let began = Instant::now();
        assert_eq!(publisher.outcome(publish(&[("switch", &n.to_string())])).await, Outcome::Done);
        waits.push(began.elapsed());
    }
    waits.sort_unstable();
    println!("a publish takes {:?} (median of 20; longest {:?})", waits[10], waits[19]);

    assert_eq!(publisher.outcome(publish(&[])).await, Outcome::Done);
    assert_eq!(values(&mut etcd).await, []);
    publisher.stop().await;
}

#[tokio::test]
async fn our_own_follower_sees_puts_and_deletes() {
    let cluster = Cluster::start(1).await;
    store::puts_and_deletes_are_seen(store(cluster.endpoints(&[0]))).await;
}

#[tokio::test]
async fn our_own_keys_are_read_again_without_an_order_and_after_a_crash() {
    let mut cluster = Cluster::start(1).await;
    let mut follower = follower(cluster.endpoints(&[0]));
    for _ in 0..2 {
        let Event::PeersRead { .. } = follower.next().await else { panic!("nothing has changed") };
    }
    cluster.kill(0);
    let Event::PeersFailed { why, .. } = follower.next().await else { panic!("it did not notice") };
    assert!(why.contains(PREFIX) && why.contains(&cluster.nodes[0].endpoint()), "{why}");
    follower.stop().await;
}

#[tokio::test]
async fn keys_of_a_dead_run_end_with_its_lease_and_of_a_stopped_one_at_once() {
    let cluster = Cluster::start(1).await;
    let mut etcd = cluster.client(0).await;
    let mut dead = publisher(cluster.endpoints(&[0]), SHORT);
    assert_eq!(dead.outcome(publish(&[("poolers/dead", "1")])).await, Outcome::Done);
    // Longer than its time to live: the lease is kept.
    for _ in 0..4 {
        assert_eq!(lease_word(&mut dead).await, Some(SHORT));
    }
    assert_eq!(values(&mut etcd).await, pairs(&[("poolers/dead", "1")]));
    assert_eq!(dead.outcome(put("registry/dead", Some("r"))).await, Outcome::Done);
    dead.abort().await;
    until("its lease has ended", async || (stored(&mut etcd.clone()).await.len() == 1).then_some(())).await;
    assert_eq!(values(&mut etcd).await, pairs(&[("registry/dead", "r")]), "that one had no lease");

    let mut stopped = publisher(cluster.endpoints(&[0]), LONG);
    assert_eq!(stopped.outcome(publish(&[("poolers/stopped", "1")])).await, Outcome::Done);
    assert_eq!(stopped.outcome(put("registry/dead", None)).await, Outcome::Done);
    stopped.stop().await;
    assert_eq!(values(&mut etcd).await, []);
    assert_eq!(etcd.leases().await.unwrap().leases().len(), 0);
}

#[tokio::test]
async fn a_lease_that_somebody_revoked_is_granted_again_with_its_keys() {
    let cluster = Cluster::start(1).await;
    let mut etcd = cluster.client(0).await;
    let mut publisher = publisher(cluster.endpoints(&[0]), SHORT);
    let keys = [("members/a", "1"), ("poolers/a", "2")];
    assert_eq!(publisher.outcome(publish(&keys)).await, Outcome::Done);
    let revoke = async |etcd: &mut Client| {
        let lease = stored(etcd).await["poolers/a"].1;
        etcd.lease_revoke(lease).await.unwrap();
    };
    // The next renewal finds out.
    revoke(&mut etcd).await;
    while lease_word(&mut publisher).await.is_some() {}
    assert_eq!(lease_word(&mut publisher).await, Some(SHORT));
    until("the keys are back", async || (values(&mut etcd.clone()).await == pairs(&keys)).then_some(()))
        .await;

    // A publish finds out.
    revoke(&mut etcd).await;
    let keys = [("poolers/a", "3")];
    assert_eq!(publisher.outcome(publish(&keys)).await, Outcome::Done);
    assert_eq!(values(&mut etcd).await, pairs(&keys));
    publisher.stop().await;
}

#[tokio::test]
async fn a_refusing_endpoint_costs_nothing_and_a_frozen_one_little() {
    let cluster = Cluster::start(3).await;
    let mut endpoints = cluster.endpoints(&[0]);
    endpoints.insert(0, format!("127.0.0.1:{}", free_port()));
    let mut first = publisher(endpoints, LONG);
    let began = Instant::now();
    assert_eq!(first.outcome(publish(&[("poolers/a", "1")])).await, Outcome::Done);
    assert!(began.elapsed() < ANSWER, "{:?}", began.elapsed());
    let mut etcd = cluster.client(0).await;
    let lease = stored(&mut etcd).await["poolers/a"].1;
    assert_eq!(first.outcome(put("registry/a", None)).await, Outcome::Done);
    assert_eq!(first.outcome(publish(&[("poolers/a", "2")])).await, Outcome::Done);
    assert_eq!(
        stored(&mut etcd).await["poolers/a"].1,
        lease,
        "who refuses has done nothing that may come late"
    );
    first.stop().await;

    // Frozen before the first word. The others may have to elect a leader before they can take anything.
    cluster.signal(0, Signal::SIGSTOP);
    let mut etcd = cluster.client(1).await;
    until("the others have a leader", async || etcd.clone().put("/x", "", None).await.ok()).await;
    let mut second = publisher(cluster.endpoints(&[0, 1, 2]), LONG);
    let began = Instant::now();
    assert_eq!(second.outcome(publish(&[("poolers/b", "1")])).await, Outcome::Done);
    assert!(began.elapsed() < ANSWER, "{:?}", began.elapsed());
    second.stop().await;
    cluster.signal(0, Signal::SIGCONT);

    // Frozen in the middle.
    until("it is back", async || cluster.client(0).await.put("/x", "", None).await.ok()).await;
    let mut third = publisher(cluster.endpoints(&[0, 1, 2]), LONG);
    assert_eq!(third.outcome(publish(&[("poolers/c", "1"), ("switch", "old")])).await, Outcome::Done);
    let lease = stored(&mut etcd).await["poolers/c"].1;
    cluster.signal(0, Signal::SIGSTOP);
    until("the others have a leader", async || etcd.clone().put("/x", "", None).await.ok()).await;
    let began = Instant::now();
    assert_eq!(third.outcome(publish(&[("poolers/c", "2")])).await, Outcome::Done);
    println!("a publish with a frozen endpoint took {:?}", began.elapsed());
    assert!(began.elapsed() < ANSWER, "{:?}", began.elapsed());
    assert_eq!(values(&mut etcd).await, pairs(&[("poolers/c", "2")]));
    // What the frozen one may still do is bound to a lease that is ended before it wakes up.
    until("the old lease is revoked", async || {
        let leases = etcd.clone().leases().await.unwrap();
        leases.leases().iter().all(|other| other.id() != lease).then_some(())
    })
    .await;
    cluster.signal(0, Signal::SIGCONT);
    until("it is back", async || cluster.client(0).await.put("/x", "", None).await.ok()).await;
    assert_eq!(third.outcome(publish(&[("poolers/c", "3")])).await, Outcome::Done);
    assert_eq!(values(&mut etcd).await, pairs(&[("poolers/c", "3")]));
    third.stop().await;
    assert_eq!(values(&mut etcd).await, []);
}

#[tokio::test]
async fn every_order_is_answered_in_time_when_nobody_answers_us() {
    let mut cluster = Cluster::start(1).await;
    let mut etcd = cluster.client(0).await;
    let mut publisher = publisher(cluster.endpoints(&[0]), SHORT);
    assert_eq!(publisher.outcome(publish(&[("poolers/a", "1")])).await, Outcome::Done);
    cluster.signal(0, Signal::SIGSTOP);
    let began = Instant::now();
    publisher.order(publish(&[("poolers/a", "2")])).await;
    publisher.order(put("registry/a", Some("r"))).await;
    publisher.order(publish(&[("poolers/a", "3")])).await;
    let mut lost = false;
    for _ in 0..3 {
        let outcome = loop {
            match publisher.next().await {
                Event::Done { outcome, .. } => break outcome,
                Event::LeaseKept { lease, .. } => lost |= lease.is_none(),
                other => panic!("{other:?}"),
            }
        };
        let Outcome::Failed { why } = outcome else { panic!("who answered?") };
        assert!(why.contains(&cluster.nodes[0].endpoint()) || why.contains("within"), "{why}");
        assert!(began.elapsed() < ANSWER, "{:?}", began.elapsed());
    }
    if !lost {
        while lease_word(&mut publisher).await.is_some() {}
    }
    cluster.signal(0, Signal::SIGCONT);
    assert_eq!(lease_word(&mut publisher).await, Some(SHORT));
    until("what was ordered last is there", async || {
        (values(&mut etcd).await.contains(&("poolers/a".into(), "3".into()))).then_some(())
    })
    .await;
    cluster.kill(0);
    let Outcome::Failed { why } = publisher.outcome(publish(&[("poolers/a", "4")])).await else {
        panic!("who answered?")
    };
    assert!(why.contains(&cluster.nodes[0].endpoint()) && why.contains("refused"), "{why}");
    let began = Instant::now();
    timeout(PATIENCE, publisher.stop()).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test]
async fn the_later_of_two_runs_keeps_its_key_when_the_earlier_one_ends() {
    let cluster = Cluster::start(1).await;
    let mut etcd = cluster.client(0).await;
    let mut earlier = publisher(cluster.endpoints(&[0]), LONG);
    let mut later = publisher(cluster.endpoints(&[0]), LONG);
    assert_eq!(earlier.outcome(publish(&[("poolers/a", "1"), ("switch", "1")])).await, Outcome::Done);
    assert_eq!(later.outcome(publish(&[("poolers/a", "1"), ("switch", "1")])).await, Outcome::Done);
    let owner = stored(&mut etcd).await["poolers/a"].1;
    assert_eq!(earlier.outcome(publish(&[("poolers/a", "1")])).await, Outcome::Done);
    assert_eq!(stored(&mut etcd).await["switch"].1, owner, "the earlier one deletes only its own");
    earlier.stop().await;
    assert_eq!(values(&mut etcd).await, pairs(&[("poolers/a", "1"), ("switch", "1")]));
    assert!(stored(&mut etcd).await.values().all(|(_, lease, _)| *lease == owner));
    later.stop().await;
    assert_eq!(values(&mut etcd).await, []);
}
