//! What the tests of all stores have in common: a follower or a publisher under test, and what it says.

use crate::certificates::Certificates;
use crate::worker::Worker;
use pgsquire::dcs::{self, PublisherConfig, StoreConfig, WorkerConfig};
use pgsquire_core::effect::Order;
use pgsquire_core::event::{Event, Outcome, StoreChange, StoreRead};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Orders are answered within this, and a test may be late by a little.
pub const ANSWER: Duration = Duration::from_millis(2_000);

/// How a store is reached.
#[derive(Clone, Default)]
pub struct Access {
    /// Where.
    pub endpoints: Vec<String>,
    /// `tls_ca`
    pub ca: Option<PathBuf>,
    /// `tls_cert`
    pub cert: Option<PathBuf>,
    /// `tls_key`
    pub key: Option<PathBuf>,
}

impl Access {
    /// With the client's certificate.
    pub fn secure(endpoint: String, tls: &Certificates) -> Self {
        let Certificates { ca, cert, key } = tls.clone();
        Access { endpoints: vec![endpoint], ca: Some(ca), cert: Some(cert), key: Some(key) }
    }
}

/// A real store with one server, as all tests that are the same for each need it. Keys are named from the root on,
/// `/service/main/leader`.
pub trait RealStore: Sized {
    /// Starts it. With a folder of certificates it also serves clients who show one, on another port.
    async fn begin_one(secure: Option<&Path>) -> Self;
    /// Kills it and starts it anew, on the same ports and with its files as they are now.
    async fn again(&mut self);
    /// Kills it, and starts one that knows nothing in its place, configured like the first.
    async fn rebuild(&mut self);
    /// Where it is reached, `host:port`.
    fn place(&self) -> String;
    /// Where it is reached with certificates.
    fn secure_place(&self) -> String;
    /// What our configuration of such a store is.
    fn config(access: Access) -> StoreConfig;
    /// Puts keys, up to 64 of them at once.
    async fn put(&self, keys: &[(String, String)]);
    /// Deletes keys at once.
    async fn delete(&self, keys: &[String]);

    /// What follows it.
    fn store(&self) -> StoreConfig {
        Self::config(Access { endpoints: vec![self.place()], ..Access::default() })
    }

    /// Puts one key.
    async fn put_one(&self, key: &str, value: &str) {
        self.put(&[(key.to_owned(), value.to_owned())]).await;
    }
}

/// A follower of Patroni's keys with room for so many events.
pub fn follow(store: StoreConfig, room: usize) -> Worker {
    let prefix = dcs::prefix("/service/", "main", None);
    let config = WorkerConfig { cluster: "main".into(), prefix, store };
    Worker::start(room, |orders, events, stop| dcs::run(config, orders, events, stop))
}

/// Our own keys of the cluster.
pub fn our_keys(store: StoreConfig) -> WorkerConfig {
    WorkerConfig { cluster: "main".into(), prefix: dcs::own_prefix("/service/", "main", None), store }
}

/// A publisher of our own keys.
pub fn publisher(store: StoreConfig, ttl: Duration) -> Worker {
    let config = PublisherConfig { worker: our_keys(store), ttl };
    Worker::start(64, |orders, events, stop| dcs::run_publisher(config, orders, events, stop))
}

/// A follower of our own keys.
pub fn peers(store: StoreConfig) -> Worker {
    let config = our_keys(store);
    Worker::start(64, |_orders, events, stop| dcs::run_peers(config, events, stop))
}

/// The order to read Patroni's keys.
pub fn read_store() -> Order {
    Order::ReadStore { cluster: "main".into() }
}

/// The order that these are our leased keys.
pub fn publish(keys: &[(&str, &str)]) -> Order {
    let keys = keys.iter().map(|(key, value)| ((*key).into(), value.as_bytes().into())).collect();
    Order::Publish { cluster: "main".into(), keys }
}

/// The order to put a key without a lease, or to delete it.
pub fn put(key: &str, value: Option<&str>) -> Order {
    Order::PutKey { cluster: "main".into(), key: key.into(), value: value.map(Into::into) }
}

/// The next read; failures before it are collected.
pub async fn next_read(follower: &mut Worker) -> (StoreRead, Vec<String>) {
    let mut failures = Vec::new();
    loop {
        match follower.next().await {
            Event::StoreRead { read, .. } => return (read, failures),
            Event::StoreFailed { why, .. } => failures.push(why),
            Event::StoreChanged { .. } | Event::Done { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

/// The next event, which is a change.
pub async fn next_change(follower: &mut Worker) -> StoreChange {
    match follower.next().await {
        Event::StoreChanged { change, .. } => change,
        other => panic!("{other:?}"),
    }
}

/// The next event, which is a failure.
pub async fn next_failure(follower: &mut Worker) -> String {
    match follower.next().await {
        Event::StoreFailed { why, .. } => why,
        other => panic!("{other:?}"),
    }
}

/// A value of a read.
pub fn text(read: &StoreRead, key: &str) -> Option<String> {
    read.keys.get(key).map(|stored| String::from_utf8(stored.value.clone()).unwrap())
}

/// Names of the keys of a read.
pub fn names(read: &StoreRead) -> Vec<&str> {
    read.keys.keys().map(String::as_str).collect()
}

/// Keys and values.
pub fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
    list.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
}

/// The next word about the lease: its time to live, or none.
pub async fn lease_word(publisher: &mut Worker) -> Option<Duration> {
    loop {
        if let Event::LeaseKept { cluster, lease } = publisher.next().await {
            assert_eq!(cluster, "main");
            return lease.map(|(_, ttl)| ttl);
        }
    }
}

/// What is published into a store is seen by its follower. Gives the store's identity.
pub async fn puts_and_deletes_are_seen(store: StoreConfig) -> String {
    let mut follower = peers(store.clone());
    let Event::PeersRead { read, .. } = follower.next().await else { panic!("it reads first") };
    assert!(read.keys.is_empty() && read.leader_ttl.is_none());
    let identity = read.store;
    let mut publisher = publisher(store, Duration::from_secs(60));
    // A full read in between may be the one to tell.
    let mut key = async |wanted: Option<&str>| loop {
        match follower.next().await {
            Event::PeersRead { read, .. } => {
                let value = read.keys.get("poolers/a").map(|stored| stored.value.as_slice());
                if value == wanted.map(str::as_bytes) {
                    return;
                }
            }
            Event::PeersChanged { change, .. } => {
                let (key, value) = &change.changes[0];
                assert_eq!(key, "poolers/a");
                let value = value.as_ref().map(|stored| stored.value.as_slice());
                assert_eq!(value, wanted.map(str::as_bytes));
                return;
            }
            other => panic!("{other:?}"),
        }
    };
    for wanted in ["1", "2"] {
        assert_eq!(publisher.outcome(publish(&[("poolers/a", wanted)])).await, Outcome::Done);
        key(Some(wanted)).await;
    }
    publisher.stop().await;
    key(None).await;
    follower.stop().await;
    identity
}
