//! The etcd follower against real etcd servers.

use crate::certificates::Certificates;
use crate::etcd_server::Cluster;
use crate::processes::{As, Process, free_port, until};
use crate::store::{self, next_change, next_read, read_store, text};
use crate::worker::Worker;
use etcd_client::{Client, DeleteOptions, LeaseGrantOptions, PutOptions, Txn, TxnOp};
use nix::sys::signal::Signal;
use pgsquire::dcs::{StoreConfig, etcd::EtcdConfig};
use pgsquire_core::effect::Order;
use pgsquire_core::event::{Event, Outcome};
use std::time::Duration;
use tokio::time::Instant;

fn follow(endpoints: Vec<String>, room: usize) -> Worker {
    follow_with(EtcdConfig { endpoints, ..EtcdConfig::default() }, room)
}

fn follow_with(store: EtcdConfig, room: usize) -> Worker {
    store::follow(StoreConfig::Etcd(store), room)
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
async fn a_user_and_a_private_certificate_are_shown() {
    let dir = tempfile::tempdir().unwrap();
    let tls = Certificates::make(dir.path());
    let (port, peer) = (free_port(), free_port());
    let (url, peer) = (format!("https://127.0.0.1:{port}"), format!("http://127.0.0.1:{peer}"));
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let args = [
        "--data-dir",
        &path("data"),
        "--listen-client-urls",
        &url,
        "--advertise-client-urls",
        &url,
        "--listen-peer-urls",
        &peer,
        "--initial-advertise-peer-urls",
        &peer,
        "--initial-cluster",
        &format!("default={peer}"),
        "--cert-file",
        &path("server.crt"),
        "--key-file",
        &path("server.key"),
        "--trusted-ca-file",
        &path("ca.crt"),
        "--client-cert-auth",
    ];
    let _etcd = Process::start(As::Me, "etcd", &args, &dir.path().join("log"));
    let admin = |args: &[&str]| {
        let mut command = std::process::Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").args(["--endpoints", &url, "--cacert", &path("ca.crt")]);
        command.args(["--cert", &path("client.crt"), "--key", &path("client.key")]).args(args);
        command.output().unwrap()
    };
    until("etcd with TLS answers", async || {
        admin(&["put", "/service/main/leader", "pg1"]).status.success().then_some(())
    })
    .await;
    for args in [
        &["user", "add", "root:r"][..],
        &["user", "add", "squire:secret"],
        &["user", "grant-role", "root", "root"],
        &["role", "add", "reader"],
        &["role", "grant-permission", "--prefix=true", "reader", "read", "/service/"],
        &["role", "grant-permission", "--prefix=true", "reader", "readwrite", "/pgsquire/"],
        &["user", "grant-role", "squire", "reader"],
        &["auth", "enable"],
    ] {
        let out = admin(args);
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    }
    std::fs::write(path("password"), "secret\n").unwrap();
    std::fs::write(path("wrong"), "guess\n").unwrap();
    let config = EtcdConfig {
        endpoints: vec![url.clone()],
        tls_ca: Some(tls.ca.clone()),
        tls_cert: Some(tls.cert.clone()),
        tls_key: Some(tls.key.clone()),
        username: Some("squire".into()),
        password_file: Some(path("password").into()),
    };
    let mut follower = follow_with(config.clone(), 64);
    let (read, failures) = next_read(&mut follower).await;
    assert_eq!((text(&read, "leader"), failures), (Some("pg1".into()), Vec::new()));
    let put = admin(&["--user", "root:r", "put", "/service/main/leader", "pg2"]);
    assert!(put.status.success(), "{put:?}");
    assert_eq!(next_change(&mut follower).await.changes[0].0, "leader");
    follower.stop().await;

    let mut publisher = store::publisher(StoreConfig::Etcd(config.clone()), Duration::from_secs(10));
    for keys in [&["poolers/a", "switch"][..], &["poolers/a"], &[]] {
        let keys = keys.iter().map(|key| ((*key).into(), b"1".into())).collect();
        let order = Order::Publish { cluster: "main".into(), keys };
        assert_eq!(publisher.outcome(order).await, Outcome::Done);
    }
    publisher.stop().await;

    let refused = |config: EtcdConfig| async {
        let mut follower = follow_with(config, 64);
        let Event::StoreFailed { why, .. } = follower.next().await else { panic!("it was let in") };
        follower.stop().await;
        why
    };
    let why = refused(EtcdConfig { password_file: Some(path("wrong").into()), ..config.clone() }).await;
    assert!(why.contains("authentication failed"), "{why}");
    let why = refused(EtcdConfig { tls_ca: None, ..config.clone() }).await;
    assert!(why.contains(&url) && why.contains("without tls_ca"), "{why}");
    let why = refused(EtcdConfig { tls_ca: Some(path("no-such.crt").into()), ..config }).await;
    assert!(why.contains("no-such.crt"), "{why}");
}
