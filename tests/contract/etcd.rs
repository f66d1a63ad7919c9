//! The etcd follower against real etcd servers.

use crate::etcd_server::Cluster;
use crate::processes::{As, Process, free_port, until};
use crate::store::{self, next_change, next_read, read_store, text};
use crate::worker::Worker;
use etcd_client::{Client, DeleteOptions, LeaseGrantOptions, PutOptions, Txn, TxnOp};
use nix::sys::signal::Signal;
use pgsquire::dcs::{StoreConfig, etcd::EtcdConfig};
use pgsquire_core::event::{Event, Outcome};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::Instant;

fn follow(endpoints: Vec<String>, room: usize) -> Worker {
    store::follow(StoreConfig::Etcd(EtcdConfig { endpoints, ..EtcdConfig::default() }), room)
}

/// The read is told before the watch is made: waits until the watch reports a write.
async fn watching(etcd: &mut Client, follower: &mut Worker) {
    etcd.put("/service/main/history", "[]", None).await.unwrap();
    assert_eq!(next_change(follower).await.changes[0].0, "history");
}

#[tokio::test]
async fn everything_below_the_prefix_is_read_and_then_watched() {
    let cluster = Cluster::start(1).await;
    let mut etcd = cluster.client(0).await;
    let lease = etcd.lease_grant(30, Some(LeaseGrantOptions::new())).await.unwrap().id();
    etcd.put("/service/main/leader", "pg1", Some(PutOptions::new().with_lease(lease))).await.unwrap();
    let put = etcd.put("/service/main/members/pg1", "{}", None).await.unwrap();
    etcd.put("/service/main2/leader", "other", None).await.unwrap();
    let revision = u64::try_from(put.header().unwrap().revision()).unwrap();

    let mut follower = follow(cluster.endpoints(&[0]), 64);
    let (read, failures) = next_read(&mut follower).await;
    assert_eq!(failures, Vec::<String>::new());
    assert_eq!(read.keys.keys().collect::<Vec<_>>(), ["leader", "members/pg1"]);
    assert_eq!(read.keys["members/pg1"].revision, revision);
    assert_eq!(read.revision, revision + 1, "the store's, not the keys'");
    assert_eq!(read.store, format!("{:x}", put.header().unwrap().cluster_id()));
    assert!(read.raft_term > 0);
    let ttl = read.leader_ttl.unwrap();
    assert!((Duration::from_secs(20)..=Duration::from_secs(30)).contains(&ttl), "{ttl:?}");

    let both =
        [TxnOp::put("/service/main/status", "1", None), TxnOp::put("/service/main/history", "[]", None)];
    etcd.txn(Txn::new().and_then(both)).await.unwrap();
    etcd.put("/service/main2/leader", "not ours", None).await.unwrap();
    etcd.lease_revoke(lease).await.unwrap();
    let change = next_change(&mut follower).await;
    assert_eq!(change.revision, read.revision + 1);
    assert_eq!(change.store, read.store);
    let mut keys: Vec<_> =
        change.changes.iter().map(|(key, value)| (key.as_str(), value.is_some())).collect();
    keys.sort_unstable();
    assert_eq!(keys, [("history", true), ("status", true)], "one revision, one event");
    let gone = next_change(&mut follower).await;
    assert_eq!((gone.revision, gone.changes), (read.revision + 3, vec![("leader".into(), None)]));

    assert_eq!(follower.outcome(read_store()).await, Outcome::Done);
    etcd.put("/service/main/leader", "without a lease", None).await.unwrap();
    next_change(&mut follower).await;
    follower.order(read_store()).await;
    let (read, _) = next_read(&mut follower).await;
    assert_eq!((text(&read, "leader"), read.leader_ttl), (Some("without a lease".into()), None));
    follower.stop().await;
}

#[tokio::test]
async fn what_was_written_while_a_server_was_down_arrives() {
    let mut cluster = Cluster::start(3).await;
    let mut follower = follow(cluster.endpoints(&[0]), 64);
    let (before, _) = next_read(&mut follower).await;
    watching(&mut cluster.client(0).await, &mut follower).await;
    cluster.kill(0);
    let Event::StoreFailed { why, .. } = follower.next().await else { panic!("it did not notice") };
    assert!(why.contains("/service/main/") && why.contains(&cluster.nodes[0].endpoint()), "{why}");
    let mut etcd = cluster.client(1).await;
    for n in 0..5 {
        let key = format!("/service/main/members/pg{n}");
        until("a write after the election", async || etcd.clone().put(key.as_str(), "{}", None).await.ok())
            .await;
    }
    etcd.delete("/service/main/members/pg0", Some(DeleteOptions::new())).await.unwrap();
    cluster.begin(0);
    let (after, _) = next_read(&mut follower).await;
    assert_eq!(after.store, before.store);
    assert_eq!(
        after.keys.keys().collect::<Vec<_>>(),
        ["history", "members/pg1", "members/pg2", "members/pg3", "members/pg4"]
    );
    etcd.put("/service/main/leader", "pg1", None).await.unwrap();
    assert_eq!(next_change(&mut follower).await.changes[0].0, "leader", "and the watch runs again");
    follower.stop().await;
}

#[tokio::test]
async fn an_endpoint_that_refuses_is_passed_over() {
    let cluster = Cluster::start(1).await;
    let refusing = format!("http://127.0.0.1:{}", free_port());
    let endpoints = vec![refusing.clone(), format!("http://{}", cluster.nodes[0].endpoint())];
    let began = Instant::now();
    let mut follower = follow(endpoints, 64);
    let (_, failures) = next_read(&mut follower).await;
    assert!(failures.is_empty(), "{failures:?}");
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    cluster.client(0).await.put("/service/main/leader", "pg1", None).await.unwrap();
    next_change(&mut follower).await;
    follower.stop().await;

    let mut nowhere = follow(vec![refusing.clone()], 64);
    let Event::StoreFailed { why, .. } = nowhere.next().await else { panic!("there is nothing to read") };
    assert!(why.contains(&refusing) && why.contains("refused"), "{why}");
    let Outcome::Failed { why } = nowhere.outcome(read_store()).await else { panic!("nothing to read") };
    assert!(why.contains(&refusing), "{why}");
    nowhere.stop().await;
}

#[tokio::test]
async fn a_frozen_server_is_left_for_the_next_within_two_seconds() {
    let cluster = Cluster::start(3).await;
    let mut etcd = cluster.client(1).await;
    let mut follower = follow(cluster.endpoints(&[0, 1, 2]), 64);
    next_read(&mut follower).await;
    watching(&mut etcd, &mut follower).await;
    cluster.signal(0, Signal::SIGSTOP);
    until("the others have a leader", async || etcd.clone().put("/x", "", None).await.ok()).await;

    // By an ordered read: the watch moves without having failed.
    let began = Instant::now();
    assert_eq!(follower.outcome(read_store()).await, Outcome::Done);
    assert!(began.elapsed() < Duration::from_millis(3500), "{:?}", began.elapsed());
    etcd.put("/service/main/leader", "pg1", None).await.unwrap();
    assert_eq!(next_change(&mut follower).await.changes[0].0, "leader");
    follower.stop().await;

    // From the start.
    let began = Instant::now();
    let mut second = follow(cluster.endpoints(&[0, 1, 2]), 64);
    let (read, _) = next_read(&mut second).await;
    assert_eq!(text(&read, "leader"), Some("pg1".into()));
    assert!(began.elapsed() < Duration::from_millis(3500), "{:?}", began.elapsed());
    second.stop().await;
    cluster.signal(0, Signal::SIGCONT);

    // By the watch alone: pings end it.
    let mut third = follow(cluster.endpoints(&[2, 1]), 64);
    next_read(&mut third).await;
    watching(&mut etcd, &mut third).await;
    cluster.signal(2, Signal::SIGSTOP);
    let began = Instant::now();
    let (_, failures) = next_read(&mut third).await;
    assert_eq!(failures.len(), 1, "{failures:?}");
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
    until("a leader again", async || etcd.clone().put("/service/main/leader", "pg2", None).await.ok()).await;
    assert_eq!(next_change(&mut third).await.changes[0].0, "leader");
    cluster.signal(2, Signal::SIGCONT);
    third.stop().await;
}

#[tokio::test]
async fn a_compacted_history_is_read_again_from_scratch() {
    let cluster = Cluster::start(1).await;
    let mut etcd = cluster.client(0).await;
    etcd.put("/service/main/leader", "pg1", None).await.unwrap();
    // With room for one event the follower stands between its read and its watch until somebody listens.
    let mut follower = follow(cluster.endpoints(&[0]), 1);
    follower.order(read_store()).await;
    until("the first event waits", async || (follower.waiting() == 1).then_some(())).await;
    let mut revision = 0;
    for n in 0..5 {
        revision =
            etcd.put("/service/main/status", n.to_string(), None).await.unwrap().header().unwrap().revision();
    }
    etcd.compact(revision, None).await.unwrap();
    let (first, _) = next_read(&mut follower).await;
    assert_eq!(text(&first, "status"), None);
    let (again, failures) = next_read(&mut follower).await;
    assert!(failures.iter().any(|why| why.contains("compacted")), "{failures:?}");
    assert_eq!(text(&again, "status"), Some("4".into()));
    follower.stop().await;
}

#[tokio::test]
async fn a_lost_quorum_is_reported_and_its_return_is_seen() {
    let mut cluster = Cluster::start(3).await;
    let mut follower = follow(cluster.endpoints(&[0]), 64);
    let (before, _) = next_read(&mut follower).await;
    watching(&mut cluster.client(0).await, &mut follower).await;
    cluster.kill(1);
    cluster.kill(2);
    let began = Instant::now();
    let Event::StoreFailed { why, .. } = follower.next().await else { panic!("it did not notice") };
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}: {why}", began.elapsed());
    let Outcome::Failed { why } = follower.outcome(read_store()).await else { panic!("who answered?") };
    assert!(why.contains(&cluster.nodes[0].endpoint()), "{why}");
    cluster.begin(1);
    let (after, _) = next_read(&mut follower).await;
    assert_eq!(after.store, before.store);
    assert!(after.raft_term > before.raft_term, "{} {}", after.raft_term, before.raft_term);
    follower.stop().await;
}

#[tokio::test]
async fn another_cluster_on_the_same_address_is_another_store() {
    let mut cluster = Cluster::start(1).await;
    let mut etcd = cluster.client(0).await;
    for n in 0..10 {
        etcd.put("/service/main/leader", format!("pg{n}"), None).await.unwrap();
    }
    let mut follower = follow(cluster.endpoints(&[0]), 64);
    let (before, _) = next_read(&mut follower).await;
    watching(&mut etcd, &mut follower).await;
    cluster.kill(0);
    cluster.forget(0);
    // etcd names a cluster by its members' addresses, and by a word that its operator gives it.
    cluster.more.extend(["--initial-cluster-token", "rebuilt"].map(str::to_owned));
    cluster.begin(0);
    cluster.ready(0).await;
    let (after, failures) = next_read(&mut follower).await;
    assert!(!failures.is_empty(), "the watch broke");
    assert_ne!(after.store, before.store);
    assert!(after.revision < before.revision && after.keys.is_empty(), "{after:?}");
    follower.stop().await;
}

#[tokio::test]
async fn a_member_that_lags_has_an_older_term_or_revision_and_does_not_answer_alone() {
    let mut cluster = Cluster::start(3).await;
    let mut follower = follow(cluster.endpoints(&[0]), 64);
    let (before, _) = next_read(&mut follower).await;
    watching(&mut cluster.client(0).await, &mut follower).await;
    // The others go on without it, under a leader of a later term perhaps, and it comes back alone.
    cluster.signal(0, Signal::SIGSTOP);
    let mut etcd = cluster.client(1).await;
    until("the others have a leader", async || etcd.clone().put("/x", "", None).await.ok()).await;
    let newest = etcd.put("/service/main/leader", "pg2", None).await.unwrap();
    let newest = u64::try_from(newest.header().unwrap().revision()).unwrap();
    cluster.kill(1);
    cluster.kill(2);
    cluster.signal(0, Signal::SIGCONT);
    // It has no quorum, so it says nothing rather than what was.
    let Outcome::Failed { why } = follower.outcome(read_store()).await else { panic!("an old view") };
    assert!(why.contains(&cluster.nodes[0].endpoint()), "{why}");
    cluster.begin(1);
    cluster.begin(2);
    let (after, _) = next_read(&mut follower).await;
    assert_eq!((after.store.as_str(), text(&after, "leader")), (before.store.as_str(), Some("pg2".into())));
    assert!(after.revision >= newest && after.raft_term > before.raft_term, "{after:?}");
    follower.stop().await;
}

#[tokio::test]
async fn the_grpc_proxy_is_an_endpoint_like_another() {
    let cluster = Cluster::start(1).await;
    let mut etcd = cluster.client(0).await;
    let lease = etcd.lease_grant(30, None).await.unwrap().id();
    etcd.put("/service/main/leader", "pg1", Some(PutOptions::new().with_lease(lease))).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let place = format!("127.0.0.1:{}", free_port());
    let data = dir.path().join("proxy").display().to_string();
    let args = ["grpc-proxy", "start", "--endpoints", &cluster.nodes[0].endpoint()];
    let args = [&args[..], &["--listen-addr", &place, "--data-dir", &data]].concat();
    let proxy = Process::start(As::Me, "etcd", &args, &dir.path().join("log"));
    until("the proxy listens", async || TcpStream::connect(&place).await.ok()).await;

    let mut follower = follow(vec![place.clone()], 64);
    let (read, failures) = next_read(&mut follower).await;
    assert_eq!((text(&read, "leader"), failures), (Some("pg1".into()), Vec::new()));
    assert!(read.leader_ttl.is_some() && read.raft_term > 0, "{read:?}");
    watching(&mut etcd, &mut follower).await;
    etcd.lease_revoke(lease).await.unwrap();
    assert_eq!(next_change(&mut follower).await.changes, vec![("leader".into(), None)]);
    assert_eq!(follower.outcome(read_store()).await, Outcome::Done);

    let config = EtcdConfig { endpoints: vec![place.clone()], ..EtcdConfig::default() };
    let store = store::puts_and_deletes_are_seen(StoreConfig::Etcd(config)).await;
    assert_eq!(store, read.store);
    drop(proxy);
    let Event::StoreFailed { why, .. } = follower.next().await else { panic!("it did not notice") };
    assert!(why.contains(&place), "{why}");
    follower.stop().await;
}

#[tokio::test]
async fn a_value_of_five_megabytes_is_read_where_the_server_has_it() {
    let cluster = Cluster::start_with(1, &["--max-request-bytes", "8388608"], None).await;
    let mut etcd = cluster.client(0).await;
    etcd.put("/service/main/history", vec![b'x'; 5 << 20], None).await.unwrap();
    let mut follower = follow(cluster.endpoints(&[0]), 64);
    let (read, failures) = next_read(&mut follower).await;
    assert_eq!(failures, Vec::<String>::new());
    assert_eq!(read.keys["history"].value.len(), 5 << 20);
    // Put again while it is watched: by the watch, or by the read after one that could not carry it.
    etcd.put("/service/main/history", vec![b'y'; 5 << 20], None).await.unwrap();
    loop {
        let value = match follower.next().await {
            Event::StoreChanged { change, .. } => change.changes[0].1.clone().unwrap().value,
            Event::StoreRead { read, .. } => read.keys["history"].value.clone(),
            other => panic!("{other:?}"),
        };
        if value[0] == b'y' {
            assert_eq!(value.len(), 5 << 20);
            break;
        }
    }
    follower.stop().await;
}
