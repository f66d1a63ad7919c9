//! The publisher and the follower of our own keys against real ZooKeeper servers.

use crate::processes::{free_port, until};
use crate::store::{self, ANSWER, lease_word, pairs, publish, put};
use crate::worker::Worker;
use crate::zookeeper_server::{self as server, Ensemble, LASTING, write};
use nix::sys::signal::Signal;
use pgsquire::dcs::zookeeper::ZooKeeperConfig;
use pgsquire_core::event::{Event, Outcome};
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::Instant;
use zookeeper_client::{Client, Stat};

const BASE: &str = "/pgsquire/service/main";
const SHORT: Duration = Duration::from_secs(2);
/// The longest that a server with these ticks agrees to.
const LONG: Duration = Duration::from_secs(4);

fn publisher(endpoints: Vec<String>, ttl: Duration) -> Worker {
    store::publisher(server::store(ZooKeeperConfig { endpoints, ..ZooKeeperConfig::default() }), ttl)
}

/// Key -> value and what the server says of it, as another client reads them.
async fn stored(client: &Client) -> BTreeMap<String, (String, Stat)> {
    let mut found = BTreeMap::new();
    let mut left = vec![BASE.to_owned()];
    while let Some(path) = left.pop() {
        let Ok((children, _)) = client.get_children(&path).await else { continue };
        left.extend(children.iter().map(|child| format!("{path}/{child}")));
        let Ok((value, stat)) = client.get_data(&path).await else { continue };
        if let Some(key) = path.strip_prefix(&format!("{BASE}/")).filter(|_| !value.is_empty()) {
            found.insert(key.to_owned(), (String::from_utf8(value).unwrap(), stat));
        }
    }
    found
}

async fn values(client: &Client) -> Vec<(String, String)> {
    stored(client).await.into_iter().map(|(key, (value, _))| (key, value)).collect()
}

/// A way to a server that can be frozen, both directions at once.
struct Way {
    endpoint: String,
    frozen: watch::Sender<bool>,
}

impl Way {
    async fn to(target: String) -> Way {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        let (frozen, sees) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (target, sees) = (target.clone(), sees.clone());
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(target).await else { return };
                    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
                    tokio::select! {
                        () = carry(near_in, far_out, sees.clone()) => {}
                        () = carry(far_in, near_out, sees) => {}
                    }
                });
            }
        });
        Way { endpoint, frozen }
    }
}

async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut frozen: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; 65_536];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if frozen.wait_for(|frozen| !frozen).await.is_err() || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn exactly_the_ordered_keys_are_there_and_one_order_is_one_transaction() {
    let ensemble = Ensemble::start(1).await;
    let client = ensemble.client(0).await;
    let mut publisher = publisher(ensemble.endpoints(&[0]), LONG);
    assert_eq!(publisher.outcome(publish(&[])).await, Outcome::Done);
    assert!(client.check_stat(BASE).await.unwrap().is_none(), "nothing is needed yet");

    publisher.order(publish(&[("poolers/a", "1"), ("switch", "x")])).await;
    assert_eq!(lease_word(&mut publisher).await, Some(LONG * 3 / 4));
    let Event::Done { outcome: Outcome::Done, .. } = publisher.next().await else { panic!("not done") };
    let first = stored(&client).await;
    assert_eq!(values(&client).await, pairs(&[("poolers/a", "1"), ("switch", "x")]));
    let owner = first["switch"].1.ephemeral_owner;
    assert!(first.values().all(|(_, stat)| owner != 0 && stat.ephemeral_owner == owner));
    assert_eq!(first["switch"].1.czxid, first["poolers/a"].1.czxid);

    let same = [("poolers/a", "1"), ("members/b", "2")];
    assert_eq!(publisher.outcome(publish(&same)).await, Outcome::Done);
    let second = stored(&client).await;
    assert_eq!(values(&client).await, pairs(&[("members/b", "2"), ("poolers/a", "1")]));
    assert_eq!(second["poolers/a"], first["poolers/a"], "what is the same is not put again");
    let base = client.check_stat(BASE).await.unwrap().unwrap();
    assert_eq!(base.pzxid, second["members/b"].1.czxid, "one put and one delete are one transaction");

    let mut waits = Vec::new();
    for n in 0..20 {
        let began = Instant::now();
        assert_eq!(publisher.outcome(publish(&[("switch", &n.to_string())])).await, Outcome::Done);
        waits.push(began.elapsed());
    }
    waits.sort_unstable();
    println!("a publish takes {:?} (median of 20; longest {:?})", waits[10], waits[19]);

    // The registry outlives its agent.
    assert_eq!(publisher.outcome(put("registry/a", Some("r"))).await, Outcome::Done);
    assert_eq!(publisher.outcome(put("registry/a", Some("r2"))).await, Outcome::Done);
    assert_eq!(publisher.outcome(put("registry/b", None)).await, Outcome::Done);
    assert_eq!(stored(&client).await["registry/a"].1.ephemeral_owner, 0);
    assert_eq!(publisher.outcome(publish(&[("switch", "last")])).await, Outcome::Done);
    let began = Instant::now();
    publisher.stop().await;
    assert_eq!(values(&client).await, pairs(&[("registry/a", "r2")]), "after {:?}", began.elapsed());
}

#[tokio::test]
async fn our_own_follower_sees_puts_and_deletes() {
    let ensemble = Ensemble::start(1).await;
    write(&ensemble.client(0).await, "/service/main/leader", "pg1").await;
    let named = store::puts_and_deletes_are_seen(ensemble.store(&[0])).await;
    assert_ne!(named, "unnamed");
}

#[tokio::test]
async fn a_session_that_expires_takes_our_keys_along_and_they_come_back() {
    let ensemble = Ensemble::start(1).await;
    let client = ensemble.client(0).await;
    let way = Way::to(ensemble.nodes[0].endpoint()).await;
    let mut publisher = publisher(vec![way.endpoint.clone()], SHORT);
    let keys = [("poolers/a", "1"), ("switch", "x")];
    assert_eq!(publisher.outcome(publish(&keys)).await, Outcome::Done);
    let owner = stored(&client).await["switch"].1.ephemeral_owner;
    way.frozen.send(true).unwrap();
    let began = Instant::now();
    while lease_word(&mut publisher).await.is_some() {}
    let told = began.elapsed();
    assert!(!values(&client).await.is_empty(), "the agent knows before the server acts");
    until("the keys are gone", async || values(&client).await.is_empty().then_some(())).await;
    println!("the lease was given up after {told:?}, the keys were gone after {:?}", began.elapsed());
    way.frozen.send(false).unwrap();
    while lease_word(&mut publisher).await.is_none() {}
    until("the keys are back", async || (values(&client).await == pairs(&keys)).then_some(())).await;
    assert_ne!(stored(&client).await["switch"].1.ephemeral_owner, owner);
    publisher.stop().await;
    assert_eq!(values(&client).await, []);
}

#[tokio::test]
async fn the_keys_of_a_run_that_crashed_end_with_its_session_and_the_next_run_takes_them_over() {
    let ensemble = Ensemble::start(1).await;
    let client = ensemble.client(0).await;
    let mut first = publisher(ensemble.endpoints(&[0]), SHORT);
    assert_eq!(first.outcome(publish(&[("poolers/a", "1"), ("switch", "1")])).await, Outcome::Done);
    let owner = stored(&client).await["switch"].1.ephemeral_owner;
    first.abort().await;
    assert_eq!(values(&client).await, pairs(&[("poolers/a", "1"), ("switch", "1")]));
    let mut second = publisher(ensemble.endpoints(&[0]), SHORT);
    assert_eq!(second.outcome(publish(&[("poolers/a", "2")])).await, Outcome::Done);
    assert_ne!(stored(&client).await["poolers/a"].1.ephemeral_owner, owner);
    until("what is left of the first is gone", async || {
        (values(&client).await == pairs(&[("poolers/a", "2")])).then_some(())
    })
    .await;
    second.stop().await;
}

#[tokio::test]
async fn the_later_of_two_runs_keeps_its_key_when_the_earlier_one_ends() {
    let ensemble = Ensemble::start(1).await;
    let client = ensemble.client(0).await;
    let mut earlier = publisher(ensemble.endpoints(&[0]), LONG);
    let mut later = publisher(ensemble.endpoints(&[0]), LONG);
    assert_eq!(earlier.outcome(publish(&[("poolers/a", "1"), ("switch", "1")])).await, Outcome::Done);
    assert_eq!(later.outcome(publish(&[("poolers/a", "1"), ("switch", "1")])).await, Outcome::Done);
    let owner = stored(&client).await["poolers/a"].1.ephemeral_owner;
    assert_eq!(earlier.outcome(publish(&[("poolers/a", "1")])).await, Outcome::Done);
    assert_eq!(
        stored(&client).await["switch"].1.ephemeral_owner,
        owner,
        "the earlier one deletes only its own"
    );
    earlier.stop().await;
    assert_eq!(values(&client).await, pairs(&[("poolers/a", "1"), ("switch", "1")]));
    later.stop().await;
    assert_eq!(values(&client).await, []);
}

#[tokio::test]
async fn a_refusing_endpoint_costs_nothing_and_a_frozen_one_little() {
    let ensemble = Ensemble::start(3).await;
    let client = ensemble.client(1).await;
    client.mkdir(BASE, &LASTING).await.unwrap();
    let mut endpoints = ensemble.endpoints(&[1]);
    endpoints.insert(0, format!("127.0.0.1:{}", free_port()));
    let mut first = publisher(endpoints, LONG);
    let began = Instant::now();
    assert_eq!(first.outcome(publish(&[("poolers/a", "1")])).await, Outcome::Done);
    assert!(began.elapsed() < ANSWER, "{:?}", began.elapsed());
    first.stop().await;

    let way = Way::to(ensemble.nodes[0].endpoint()).await;
    let endpoints = vec![way.endpoint.clone(), ensemble.nodes[1].endpoint()];
    // Frozen before the first word.
    way.frozen.send(true).unwrap();
    let mut second = publisher(endpoints.clone(), LONG);
    let began = Instant::now();
    assert_eq!(second.outcome(publish(&[("poolers/b", "1")])).await, Outcome::Done);
    assert!(began.elapsed() < ANSWER, "{:?}", began.elapsed());
    second.stop().await;
    way.frozen.send(false).unwrap();

    // Frozen in the middle: the session goes on through the other one.
    let mut third = publisher(endpoints, LONG);
    assert_eq!(third.outcome(publish(&[("poolers/c", "1"), ("switch", "old")])).await, Outcome::Done);
    way.frozen.send(true).unwrap();
    let began = Instant::now();
    assert_eq!(third.outcome(publish(&[("poolers/c", "2")])).await, Outcome::Done);
    println!("a publish with a frozen endpoint took {:?}", began.elapsed());
    assert!(began.elapsed() < ANSWER, "{:?}", began.elapsed());
    way.frozen.send(false).unwrap();
    until("only the last order is there", async || {
        (values(&client).await == pairs(&[("poolers/c", "2")])).then_some(())
    })
    .await;
    assert_eq!(third.outcome(publish(&[("poolers/c", "3")])).await, Outcome::Done);
    third.stop().await;
    assert_eq!(values(&client).await, []);
}

#[tokio::test]
async fn our_keys_outlive_a_restart_of_the_server() {
    let mut ensemble = Ensemble::start(1).await;
    let mut publisher = publisher(ensemble.endpoints(&[0]), LONG);
    let keys = [("poolers/a", "1"), ("switch", "x")];
    assert_eq!(publisher.outcome(publish(&keys)).await, Outcome::Done);
    ensemble.kill(0);
    ensemble.begin(0);
    let client = ensemble.client(0).await;
    while lease_word(&mut publisher).await.is_none() {}
    until("the keys are there", async || (values(&client).await == pairs(&keys)).then_some(())).await;
    // Longer than the session: it is kept again.
    tokio::time::sleep(LONG * 3 / 2).await;
    assert_eq!(values(&client).await, pairs(&keys));
    assert_eq!(publisher.outcome(publish(&keys[..1])).await, Outcome::Done);
    assert_eq!(values(&client).await, pairs(&keys[..1]));
    publisher.stop().await;
    assert_eq!(values(&client).await, []);
}

#[tokio::test]
async fn every_order_is_answered_in_time_when_nobody_answers_us() {
    let mut ensemble = Ensemble::start(1).await;
    let mut publisher = publisher(ensemble.endpoints(&[0]), SHORT);
    assert_eq!(publisher.outcome(publish(&[("poolers/a", "1")])).await, Outcome::Done);
    ensemble.signal(0, Signal::SIGSTOP);
    let began = Instant::now();
    publisher.order(publish(&[("poolers/a", "2")])).await;
    publisher.order(put("registry/a", Some("r"))).await;
    for _ in 0..2 {
        let outcome = loop {
            if let Event::Done { outcome, .. } = publisher.next().await {
                break outcome;
            }
        };
        let Outcome::Failed { why } = outcome else { panic!("who answered?") };
        assert!(why.contains(&ensemble.nodes[0].endpoint()) || why.contains("within"), "{why}");
    }
    assert!(began.elapsed() < ANSWER, "{:?}", began.elapsed());
    ensemble.signal(0, Signal::SIGCONT);
    let client = ensemble.client(0).await;
    until("what was ordered last is there", async || {
        values(&client).await.contains(&("poolers/a".into(), "2".into())).then_some(())
    })
    .await;
    ensemble.kill(0);
    let Outcome::Failed { why } = publisher.outcome(publish(&[("poolers/a", "4")])).await else {
        panic!("who answered?")
    };
    assert!(why.contains(&ensemble.nodes[0].endpoint()) || why.contains("within"), "{why}");
    let began = Instant::now();
    publisher.stop().await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}
