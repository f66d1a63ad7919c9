//! What is the same for every store, asked of each of the real ones.

use crate::consul_server::Consul;
use crate::etcd_server::Cluster;
use crate::processes::until;
use crate::store::{self, Access, RealStore, names, next_change, next_failure, next_read, read_store, text};
use crate::worker::Worker;
use crate::zookeeper_server::Ensemble;
use pgsquire::dcs::{self, PublisherConfig, StoreConfig, WorkerConfig};
use pgsquire_core::event::{Event, Outcome};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::Instant;

/// Makes a test of each of these for each store.
macro_rules! on_every_store {
    ($($case:ident)*) => {
        mod etcd { $(#[tokio::test] async fn $case() { super::$case::<super::Cluster>().await })* }
        mod consul { $(#[tokio::test] async fn $case() { super::$case::<super::Consul>().await })* }
        mod zookeeper { $(#[tokio::test] async fn $case() { super::$case::<super::Ensemble>().await })* }
    };
}
pub(crate) use on_every_store;

on_every_store! {
    groups_and_a_namespace_are_kept_apart
    a_scope_that_is_not_there_is_told_with_those_that_are
    ten_thousand_members_are_read
    a_read_is_of_one_moment_while_keys_come_and_go
    an_endpoint_that_speaks_html_is_told_and_passed_over
    an_endpoint_that_is_no_address_is_told_and_passed_over
    a_server_that_is_restarted_is_followed_again
    a_store_that_was_built_anew_is_another_or_an_older_one
    keys_whose_lease_expires_are_seen_to_go
    two_agents_that_race_for_one_key_both_get_an_answer_and_one_gets_the_key
}

/// As many as a server of ZooKeeper with these ticks agrees to.
const LEASE: Duration = Duration::from_secs(4);

fn pair(key: &str, value: &str) -> (String, String) {
    (key.to_owned(), value.to_owned())
}

fn follow_at(prefix: String, store: StoreConfig) -> Worker {
    let config = WorkerConfig { cluster: "main".into(), prefix, store };
    Worker::start(64, |orders, events, stop| dcs::run(config, orders, events, stop))
}

fn follow<S: RealStore>(endpoints: &[&str]) -> Worker {
    let endpoints = endpoints.iter().map(|endpoint| (*endpoint).to_owned()).collect();
    store::follow(S::config(Access { endpoints, ..Access::default() }), 64)
}

async fn groups_and_a_namespace_are_kept_apart<S: RealStore>() {
    let real = S::begin_one(None).await;
    let keys = [
        ("/db/prod/main/0/leader", "coordinator"),
        ("/db/prod/main/1/leader", "worker"),
        ("/db/prod/main/10/leader", "another worker"),
        ("/service/main/0/leader", "another namespace"),
    ];
    real.put(&keys.map(|(key, value)| pair(key, value))).await;
    for (group, leader) in [(0, "coordinator"), (1, "worker")] {
        let mut follower = follow_at(dcs::prefix("/db/prod/", "main", Some(group)), real.store());
        let (read, failures) = next_read(&mut follower).await;
        assert_eq!((names(&read), failures), (vec!["leader"], Vec::new()));
        assert_eq!(text(&read, "leader"), Some(leader.into()));
        // What happens in the other groups is not ours to tell.
        real.put_one("/db/prod/main/10/leader", leader).await;
        real.put_one(&format!("/db/prod/main/{group}/status"), "1").await;
        let change = next_change(&mut follower).await;
        assert_eq!((change.changes.len(), change.changes[0].0.as_str()), (1, "status"));
        follower.stop().await;
    }

    let ours = |group| WorkerConfig {
        cluster: "main".into(),
        prefix: dcs::own_prefix("/db/prod/", "main", Some(group)),
        store: real.store(),
    };
    let (theirs, config) = (ours(1), PublisherConfig { worker: ours(0), ttl: LEASE });
    let mut publisher =
        Worker::start(64, |orders, events, stop| dcs::run_publisher(config, orders, events, stop));
    assert_eq!(publisher.outcome(store::publish(&[("poolers/a", "1")])).await, Outcome::Done);
    // By the path that everybody else would look at.
    let mut anybody = follow_at("/pgsquire/db/prod/main/".into(), real.store());
    assert_eq!(names(&next_read(&mut anybody).await.0), ["0/poolers/a"]);
    anybody.stop().await;
    let mut stranger = Worker::start(64, |_orders, events, stop| dcs::run_peers(theirs, events, stop));
    let Event::PeersRead { read, .. } = stranger.next().await else { panic!("it reads first") };
    assert!(read.keys.is_empty(), "{:?}", read.keys);
    stranger.stop().await;
    publisher.stop().await;
}

async fn a_scope_that_is_not_there_is_told_with_those_that_are<S: RealStore>() {
    let real = S::begin_one(None).await;
    let keys = [
        "/service/main/leader",
        "/service/main/members/pg1",
        "/service/other/leader",
        "/service/sharded/0/leader",
        "/service/sharded/1/leader",
        "/pgsquire/service/main/registry/a",
    ];
    real.put(&keys.map(|key| pair(key, "1"))).await;
    let beside = async |namespace: &str, scope: &str, group: Option<u32>| {
        let mut follower = follow_at(dcs::prefix(namespace, scope, group), real.store());
        let (read, failures) = next_read(&mut follower).await;
        follower.stop().await;
        assert_eq!((names(&read), failures), (Vec::new(), Vec::new()));
        read.beside.iter().map(|path| path.trim_start_matches('/').to_owned()).collect::<Vec<_>>()
    };
    let scopes = ["service/main", "service/other", "service/sharded"];
    assert_eq!(beside("/service/", "mian", None).await, scopes);
    assert_eq!(beside("/service/", "mian", Some(0)).await, scopes);
    assert_eq!(beside("/service/", "sharded", Some(7)).await, ["service/sharded/0", "service/sharded/1"]);
    assert_eq!(beside("/service/", "main", Some(0)).await, scopes, "a cluster without groups");
    assert_eq!(beside("/servcie/", "main", None).await, ["service"]);
    assert_eq!(beside("/db/prod/", "main", None).await, ["service"]);

    // It is followed all the same: Patroni may start later.
    let mut early = follow_at(dcs::prefix("/service/", "mian", None), real.store());
    next_read(&mut early).await;
    real.put_one("/service/mian/leader", "pg1").await;
    assert_eq!(next_change(&mut early).await.changes[0].0, "leader");
    early.order(read_store()).await;
    assert_eq!(next_read(&mut early).await.0.beside, Vec::<String>::new());
    early.stop().await;
}

async fn ten_thousand_members_are_read<S: RealStore>() {
    let real = S::begin_one(None).await;
    let member = |n: u32| {
        let value = format!(
            r#"{{"conn_url":"postgres://10.0.{}.{}:5432/postgres","api_url":"http://10.0.{0}.{1}:8008/patroni","state":"running","role":"replica","version":"4.1.5","xlog_location":{n},"timeline":1}}"#,
            n / 256,
            n % 256
        );
        pair(&format!("/service/main/members/pg{n:05}"), &value)
    };
    let members: Vec<_> = (0..10_000).map(member).collect();
    real.put(&members).await;
    let began = Instant::now();
    let mut follower = store::follow(real.store(), 64);
    let (read, failures) = next_read(&mut follower).await;
    println!("10,000 members were read after {:?}", began.elapsed());
    assert_eq!(failures, Vec::<String>::new());
    assert_eq!(read.keys.len(), 10_000);
    assert_eq!(text(&read, "members/pg09999").as_ref(), members.last().map(|(_, value)| value));
    real.put_one("/service/main/leader", "pg00001").await;
    let change = next_change(&mut follower).await;
    assert_eq!((change.changes.len(), change.changes[0].0.as_str()), (1, "leader"));
    assert_eq!(follower.outcome(read_store()).await, Outcome::Done);
    follower.stop().await;
}

/// Two keys come and go together: no read may show one of them.
async fn a_read_is_of_one_moment_while_keys_come_and_go<S: RealStore>() {
    let real = S::begin_one(None).await;
    real.put_one("/service/main/leader", "pg1").await;
    let pair_of_keys = ["/service/main/members/pg1", "/service/main/sync"].map(str::to_owned);
    let mut follower = store::follow(real.store(), 1024);
    let reads = async {
        let mut seen = BTreeSet::new();
        let mut read_so_often = 0;
        // Until it was read both with them and without, and often enough.
        while read_so_often < 50 || seen.len() < 2 {
            follower.order(read_store()).await;
            match follower.next().await {
                Event::StoreRead { read, .. } => {
                    let both = names(&read).len() - 1;
                    assert!(both == 0 || both == 2, "{:?}", names(&read));
                    seen.insert(both);
                    read_so_often += 1;
                }
                Event::StoreChanged { .. } | Event::Done { outcome: Outcome::Done, .. } => {}
                // One that keys outran says so.
                Event::StoreFailed { why, .. } => assert!(why.contains("changed faster"), "{why}"),
                Event::Done { outcome: Outcome::Failed { why }, .. } => {
                    assert!(why.contains("changed faster"), "{why}");
                }
                other => panic!("{other:?}"),
            }
        }
    };
    let writes = async {
        loop {
            real.put(&pair_of_keys.clone().map(|key| (key, "{}".to_owned()))).await;
            real.delete(&pair_of_keys).await;
        }
    };
    tokio::select! {
        () = reads => {}
        () = writes => {}
    }
    follower.stop().await;
}

/// A web server, or the page of a proxy that stands where the store should.
async fn web_page() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let place = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let page = "<html><body>It works!</body></html>";
                let head = "HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close";
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let answer = format!("{head}\r\nContent-Length: {}\r\n\r\n{page}", page.len());
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.shutdown().await;
                while stream.read(&mut request).await.is_ok_and(|count| count > 0) {}
            });
        }
    });
    place
}

async fn an_endpoint_that_speaks_html_is_told_and_passed_over<S: RealStore>() {
    let page = web_page().await;
    let mut follower = follow::<S>(&[&page]);
    let why = next_failure(&mut follower).await;
    println!("{why}");
    assert!(why.contains(&page), "{why}");
    let said = ["this is not etcd", "this is not Consul", "gives no ZooKeeper session"];
    assert!(said.iter().any(|said| why.contains(said)), "{why}");
    follower.stop().await;

    let real = S::begin_one(None).await;
    real.put_one("/service/main/leader", "pg1").await;
    let mut follower = follow::<S>(&[&page, &real.place()]);
    let (read, failures) = next_read(&mut follower).await;
    assert_eq!((text(&read, "leader"), failures), (Some("pg1".into()), Vec::new()));
    follower.stop().await;
}

/// The configuration refuses these (see its own tests); what reaches a store all the same is told there.
async fn an_endpoint_that_is_no_address_is_told_and_passed_over<S: RealStore>() {
    let real = S::begin_one(None).await;
    real.put_one("/service/main/leader", "pg1").await;
    for nonsense in ["no address at all", "http://[::1", "127.0.0.1:99999"] {
        let mut follower = follow::<S>(&[nonsense]);
        let why = next_failure(&mut follower).await;
        println!("{why}");
        assert!(
            why.contains(&format!("{nonsense}: this is no address")) && why.contains("host:port"),
            "{why}"
        );
        follower.stop().await;
        let mut follower = follow::<S>(&[nonsense, &real.place()]);
        let (read, failures) = next_read(&mut follower).await;
        assert_eq!((text(&read, "leader"), failures), (Some("pg1".into()), Vec::new()));
        follower.stop().await;
    }
}

async fn two_agents_that_race_for_one_key_both_get_an_answer_and_one_gets_the_key<S: RealStore>() {
    let real = S::begin_one(None).await;
    let values = async || {
        let mut follower = follow_at(dcs::own_prefix("/service/", "main", None), real.store());
        let (read, _) = next_read(&mut follower).await;
        follower.stop().await;
        names(&read).iter().map(|key| pair(key, &text(&read, key).unwrap())).collect::<Vec<_>>()
    };
    let mut a = store::publisher(real.store(), LEASE);
    let mut b = store::publisher(real.store(), LEASE);
    for n in 0..20 {
        let (from_a, from_b) = (format!("a{n}"), format!("b{n}"));
        let (of_a, of_b) = ([("fence", from_a.as_str())], [("fence", from_b.as_str())]);
        let done = tokio::join!(a.outcome(store::publish(&of_a)), b.outcome(store::publish(&of_b)));
        assert_eq!(done, (Outcome::Done, Outcome::Done));
        let now = values().await;
        assert!(now == store::pairs(&of_a) || now == store::pairs(&of_b), "{now:?}");
    }
    a.stop().await;
    b.stop().await;
    until("nothing is left of them", async || values().await.is_empty().then_some(())).await;
}

async fn a_server_that_is_restarted_is_followed_again<S: RealStore>() {
    let mut real = S::begin_one(None).await;
    real.put_one("/service/main/leader", "pg1").await;
    let mut follower = store::follow(real.store(), 64);
    let (before, _) = next_read(&mut follower).await;
    real.put_one("/service/main/status", "1").await;
    assert_eq!(next_change(&mut follower).await.changes[0].0, "status");
    real.again().await;
    let (after, failures) = next_read(&mut follower).await;
    assert!(failures.iter().all(|why| why.contains(&real.place())) && !failures.is_empty(), "{failures:?}");
    assert_eq!((&after.store, names(&after)), (&before.store, vec!["leader", "status"]));
    assert!(after.revision > before.revision);
    real.put_one("/service/main/leader", "pg2").await;
    let change = next_change(&mut follower).await;
    assert_eq!((change.changes[0].0.as_str(), change.store), ("leader", before.store));
    follower.stop().await;
}

/// Our own keys, for every store has them; a leader's key is bound in the same way.
async fn keys_whose_lease_expires_are_seen_to_go<S: RealStore>() {
    let real = S::begin_one(None).await;
    real.put_one("/pgsquire/service/main/registry/a", "r").await;
    let mut publisher = store::publisher(real.store(), Duration::from_secs(2));
    assert_eq!(publisher.outcome(store::publish(&[("poolers/a", "1")])).await, Outcome::Done);
    let mut follower = follow_at(dcs::own_prefix("/service/", "main", None), real.store());
    let (read, _) = next_read(&mut follower).await;
    assert_eq!(names(&read), ["poolers/a", "registry/a"]);
    publisher.abort().await;
    let began = Instant::now();
    assert_eq!(next_change(&mut follower).await.changes, vec![("poolers/a".into(), None)]);
    println!("keys under a lease of 2 s were gone {:?} after the crash", began.elapsed());
    follower.order(read_store()).await;
    assert_eq!(names(&next_read(&mut follower).await.0), ["registry/a"]);
    follower.stop().await;
}

/// What the core refuses to follow: another identity, or a lower revision of the same.
async fn a_store_that_was_built_anew_is_another_or_an_older_one<S: RealStore>() {
    let mut real = S::begin_one(None).await;
    for n in 0..100 {
        real.put_one("/service/main/leader", &format!("pg{n}")).await;
    }
    let mut follower = store::follow(real.store(), 64);
    let (before, _) = next_read(&mut follower).await;
    real.rebuild().await;
    let (empty, failures) = next_read(&mut follower).await;
    assert!(!failures.is_empty(), "its watch broke");
    real.put_one("/service/main/leader", "pg1").await;
    follower.order(read_store()).await;
    let (after, _) = next_read(&mut follower).await;
    println!("{} at {}, then {} at {}", before.store, before.revision, after.store, after.revision);
    for read in [&empty, &after] {
        assert!(read.store != before.store || read.revision < before.revision, "{read:?}");
    }
    assert_eq!((names(&empty), text(&after, "leader")), (Vec::new(), Some("pg1".into())));
    follower.stop().await;
}
