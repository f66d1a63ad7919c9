//! The ZooKeeper follower against real servers.

use crate::processes::{free_port, until};
use crate::store::{self, names, next_change, next_failure, next_read, read_store, text};
use crate::worker::Worker;
use crate::zookeeper_server::{self as server, Ensemble, LASTING, LEASED, write};
use nix::sys::signal::Signal;
use pgsquire::dcs::zookeeper::ZooKeeperConfig;
use pgsquire_core::event::{Event, Outcome};
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::time::Instant;
use zookeeper_client::Client;

pub const BASE: &str = "/service/main";

pub fn follow(config: ZooKeeperConfig) -> Worker {
    store::follow(server::store(config), 64)
}

pub fn config(endpoints: Vec<String>) -> ZooKeeperConfig {
    ZooKeeperConfig { endpoints, ..ZooKeeperConfig::default() }
}

/// The read is told before the watch is made: waits until the watch reports a write.
pub async fn watching(client: &Client, follower: &mut Worker) {
    write(client, "/service/main/history", "[]").await;
    assert_eq!(next_change(follower).await.changes[0].0, "history");
}

async fn zxid(client: &Client, path: &str) -> u64 {
    u64::try_from(client.check_stat(path).await.unwrap().unwrap().mzxid).unwrap()
}

async fn everything_is_read_and_then_watched(one_shot_watches: bool) {
    let ensemble = Ensemble::start(1).await;
    let client = ensemble.client(0).await;
    write(&client, "/service/main/initialize", "").await;
    write(&client, "/service/main/members", "").await;
    write(&client, "/service/main2/leader", "other").await;
    let session = ensemble.client(0).await;
    session.create("/service/main/leader", b"pg1", &LEASED).await.unwrap();
    session.create("/service/main/members/pg1", b"{}", &LEASED).await.unwrap();

    let one_shot = ZooKeeperConfig { one_shot_watches, ..config(ensemble.endpoints(&[0])) };
    let mut follower = follow(one_shot);
    let (read, failures) = next_read(&mut follower).await;
    assert_eq!(failures, Vec::<String>::new());
    assert_eq!(names(&read), ["initialize", "leader", "members/pg1"]);
    assert_eq!(text(&read, "leader"), Some("pg1".into()));
    let newest = zxid(&client, "/service/main/members/pg1").await;
    assert_eq!((read.keys["members/pg1"].revision, read.revision), (newest, newest));
    let service = client.check_stat("/service").await.unwrap().unwrap();
    assert_eq!(read.store, format!("{:x}-{:x}", service.czxid, service.ctime));
    assert_eq!((read.raft_term, read.leader_ttl), (newest >> 32, None));

    watching(&client, &mut follower).await;
    write(&client, "/service/main/status", "1").await;
    let change = next_change(&mut follower).await;
    let wanted = zxid(&client, "/service/main/status").await;
    assert_eq!((change.store.as_str(), change.revision), (read.store.as_str(), wanted));
    assert_eq!(change.changes[0].0, "status");
    assert_eq!(change.changes[0].1.as_ref().map(|stored| stored.revision), Some(wanted));
    write(&client, "/service/main2/leader", "not ours").await;

    // A value that is the same, written again, is news.
    write(&client, "/service/main/status", "1").await;
    let again = next_change(&mut follower).await;
    assert!(again.revision > wanted, "{again:?}");

    // Two keys in one transaction are one event.
    let mut both = client.new_multi_writer();
    both.add_set_data("/service/main/status", b"2", None).unwrap();
    both.add_create("/service/main/failover", b"{}", &LASTING).unwrap();
    both.commit().await.unwrap();
    let mut keys = Vec::new();
    while keys.len() < 2 {
        keys.extend(next_change(&mut follower).await.changes.into_iter().map(|(key, _)| key));
    }
    keys.sort_unstable();
    assert_eq!(keys, ["failover", "status"]);

    // A leader that is gone is a delete, and its members as well.
    drop(session);
    let mut gone = Vec::new();
    let mut last = again.revision;
    while gone.len() < 2 {
        let change = next_change(&mut follower).await;
        assert!(change.revision > last, "{change:?}");
        last = change.revision;
        assert!(change.changes.iter().all(|(_, value)| value.is_none()), "{change:?}");
        gone.extend(change.changes.into_iter().map(|(key, _)| key));
    }
    gone.sort_unstable();
    assert_eq!(gone, ["leader", "members/pg1"]);

    assert_eq!(follower.outcome(read_store()).await, Outcome::Done);
    client.create("/service/main/leader", b"pg2", &LEASED).await.unwrap();
    let change = next_change(&mut follower).await;
    assert_eq!(change.changes[0].0, "leader");
    follower.order(read_store()).await;
    let (read, _) = next_read(&mut follower).await;
    assert_eq!((text(&read, "leader"), read.revision), (Some("pg2".into()), change.revision));
    follower.stop().await;
}

#[tokio::test]
async fn everything_below_the_prefix_is_read_and_then_watched() {
    everything_is_read_and_then_watched(false).await;
}

#[tokio::test]
async fn servers_without_lasting_watches_are_watched_as_well() {
    everything_is_read_and_then_watched(true).await;
}

#[tokio::test]
async fn what_happens_between_the_read_and_the_watch_is_told() {
    let ensemble = Ensemble::start(1).await;
    let client = ensemble.client(0).await;
    write(&client, "/service/main/leader", "pg1").await;
    write(&client, "/service/main/failover", "{}").await;
    // With room for one event the follower stands between its read and its watch until somebody listens.
    let mut follower = store::follow(ensemble.store(&[0]), 1);
    follower.order(read_store()).await;
    until("the first event waits", async || (follower.waiting() == 1).then_some(())).await;
    client.delete("/service/main/failover", None).await.unwrap();
    write(&client, "/service/main/members/pg1", "{}").await;
    write(&client, "/service/main/leader", "pg2").await;
    let (read, _) = next_read(&mut follower).await;
    assert_eq!((text(&read, "leader"), names(&read)), (Some("pg1".into()), vec!["failover", "leader"]));
    let change = loop {
        match follower.next().await {
            Event::StoreChanged { change, .. } => break change,
            Event::Done { .. } => {}
            other => panic!("{other:?}"),
        }
    };
    let keys: Vec<_> = change.changes.iter().map(|(key, value)| (key.as_str(), value.is_some())).collect();
    assert_eq!(keys, [("failover", false), ("members/pg1", true), ("leader", true)]);
    assert_eq!(change.revision, zxid(&client, "/service/main/leader").await);
    follower.stop().await;
}

#[tokio::test]
async fn what_was_written_while_a_server_was_down_arrives() {
    let mut ensemble = Ensemble::start(3).await;
    let client = ensemble.client(1).await;
    write(&client, "/service/main/leader", "pg1").await;
    let mut follower = follow(config(ensemble.endpoints(&[0])));
    let (before, _) = next_read(&mut follower).await;
    watching(&client, &mut follower).await;
    ensemble.kill(0);
    let why = next_failure(&mut follower).await;
    assert!(why.contains("/service/main/") && why.contains(&ensemble.nodes[0].endpoint()), "{why}");
    let client = ensemble.client(1).await;
    for n in 0..5 {
        let path = format!("/service/main/members/pg{n}");
        until("a write after the election", async || {
            client.mkdir("/service/main/members", &LASTING).await.ok()?;
            client.create(&path, b"{}", &LASTING).await.ok()
        })
        .await;
    }
    client.delete("/service/main/members/pg0", None).await.unwrap();
    ensemble.begin(0);
    let (after, _) = next_read(&mut follower).await;
    assert_eq!(after.store, before.store);
    assert!(after.revision > before.revision && after.raft_term >= before.raft_term);
    assert_eq!(
        names(&after),
        ["history", "leader", "members/pg1", "members/pg2", "members/pg3", "members/pg4"]
    );
    write(&client, "/service/main/leader", "pg2").await;
    assert_eq!(next_change(&mut follower).await.changes[0].0, "leader", "and the watch runs again");
    follower.stop().await;
}

#[tokio::test]
async fn an_ensemble_that_comes_back_is_the_same() {
    let mut ensemble = Ensemble::start(1).await;
    let client = ensemble.client(0).await;
    write(&client, "/service/main/leader", "pg1").await;
    drop(client);
    let mut follower = follow(config(ensemble.endpoints(&[0])));
    let (before, _) = next_read(&mut follower).await;
    ensemble.kill(0);
    next_failure(&mut follower).await;
    ensemble.begin(0);
    let (after, _) = next_read(&mut follower).await;
    assert_eq!((after.store, after.keys), (before.store, before.keys));
    assert!(after.revision >= before.revision);
    write(&ensemble.client(0).await, "/service/main/leader", "pg2").await;
    assert_eq!(next_change(&mut follower).await.changes[0].0, "leader");
    follower.stop().await;
}

#[tokio::test]
async fn an_endpoint_that_refuses_or_speaks_nonsense_is_passed_over() {
    let ensemble = Ensemble::start(1).await;
    let refusing = format!("127.0.0.1:{}", free_port());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nonsense = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\nno").await;
        }
    });
    write(&ensemble.client(0).await, "/service/main/initialize", "7").await;
    let began = Instant::now();
    let endpoints = vec![refusing.clone(), nonsense.clone(), ensemble.nodes[0].endpoint()];
    let mut follower = follow(config(endpoints));
    let (_, failures) = next_read(&mut follower).await;
    assert!(failures.is_empty(), "{failures:?}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    write(&ensemble.client(0).await, "/service/main/leader", "pg1").await;
    next_change(&mut follower).await;
    follower.stop().await;

    let mut nowhere = follow(config(vec![refusing.clone(), nonsense.clone()]));
    let why = next_failure(&mut nowhere).await;
    println!("{why}");
    assert!(why.contains(&refusing) && why.contains("refused") && why.contains(&nonsense), "{why}");
    let Outcome::Failed { why } = nowhere.outcome(read_store()).await else { panic!("nothing to read") };
    assert!(why.contains(&refusing), "{why}");
    nowhere.stop().await;
}

#[tokio::test]
async fn a_frozen_server_is_left_for_the_next() {
    let ensemble = Ensemble::start(3).await;
    let client = ensemble.client(1).await;
    write(&client, "/service/main/leader", "pg1").await;
    let mut follower = follow(config(ensemble.endpoints(&[0, 1, 2])));
    next_read(&mut follower).await;
    watching(&client, &mut follower).await;

    // By the watch alone: once it has nothing to read, only the library's questions can find out.
    tokio::time::sleep(Duration::from_millis(500)).await;
    ensemble.signal(0, Signal::SIGSTOP);
    let began = Instant::now();
    let (_, failures) = next_read(&mut follower).await;
    let took = began.elapsed();
    println!("a frozen server was noticed by the watch, and another one read, after {took:?}: {failures:?}");
    assert!(!failures.is_empty() && took < Duration::from_secs(6), "{took:?} {failures:?}");
    let client = ensemble.client(1).await;
    until("a leader again", async || client.set_data("/service/main/leader", b"pg2", None).await.ok()).await;
    loop {
        match follower.next().await {
            Event::StoreChanged { change, .. } if change.changes[0].0 == "leader" => break,
            Event::StoreRead { read, .. } if text(&read, "leader") == Some("pg2".into()) => break,
            _ => {}
        }
    }

    // From the start.
    let began = Instant::now();
    let mut second = follow(config(ensemble.endpoints(&[0, 1, 2])));
    let (read, _) = next_read(&mut second).await;
    assert_eq!(text(&read, "leader"), Some("pg2".into()));
    assert!(began.elapsed() < Duration::from_millis(3_500), "{:?}", began.elapsed());
    assert_eq!(second.outcome(read_store()).await, Outcome::Done);
    second.stop().await;
    ensemble.signal(0, Signal::SIGCONT);
    follower.stop().await;
}

#[tokio::test]
async fn all_paths_begin_below_the_chroot() {
    let ensemble = Ensemble::start(1).await;
    let client = ensemble.client(0).await;
    write(&client, "/db/prod/service/main/leader", "pg1").await;
    write(&client, "/service/main/leader", "not this one").await;
    let chroot = |chroot: &str| ZooKeeperConfig { chroot: chroot.into(), ..config(ensemble.endpoints(&[0])) };
    let mut follower = follow(chroot("/db/prod"));
    let (read, _) = next_read(&mut follower).await;
    assert_eq!(text(&read, "leader"), Some("pg1".into()));
    write(&client, "/service/main/leader", "nor this").await;
    write(&client, "/db/prod/service/main/leader", "pg2").await;
    let change = next_change(&mut follower).await;
    assert_eq!(change.revision, zxid(&client, "/db/prod/service/main/leader").await);
    follower.stop().await;
    let mut publisher = store::publisher(server::store(chroot("/db/prod")), Duration::from_secs(10));
    let keys = store::publish(&[("poolers/a", "1")]);
    assert_eq!(publisher.outcome(keys).await, Outcome::Done);
    assert!(client.check_stat("/db/prod/pgsquire/service/main/poolers/a").await.unwrap().is_some());
    publisher.stop().await;

    let mut nowhere = follow(chroot("/no/such"));
    let why = next_failure(&mut nowhere).await;
    assert!(why.contains("the chroot of the endpoints does not exist"), "{why}");
    nowhere.stop().await;
}

#[tokio::test]
async fn a_value_of_five_megabytes_is_read_where_the_server_has_it() {
    let ensemble = Ensemble::start_with(1, &["-Djute.maxbuffer=8388608"]).await;
    let client = ensemble.client(0).await;
    client.mkdir(BASE, &LASTING).await.unwrap();
    client.create("/service/main/history", &vec![b'x'; 5 << 20], &LASTING).await.unwrap();
    let mut follower = follow(config(ensemble.endpoints(&[0])));
    let (read, failures) = next_read(&mut follower).await;
    assert_eq!(failures, Vec::<String>::new());
    assert_eq!(read.keys["history"].value.len(), 5 << 20);
    follower.stop().await;
}

#[tokio::test]
async fn a_lost_quorum_is_reported_and_its_return_is_seen() {
    let mut ensemble = Ensemble::start(3).await;
    let client = ensemble.client(0).await;
    write(&client, "/service/main/leader", "pg1").await;
    let mut follower = follow(config(ensemble.endpoints(&[0])));
    let (before, _) = next_read(&mut follower).await;
    watching(&client, &mut follower).await;
    ensemble.kill(1);
    ensemble.kill(2);
    let why = next_failure(&mut follower).await;
    assert!(why.contains(&ensemble.nodes[0].endpoint()), "{why}");
    let Outcome::Failed { why } = follower.outcome(read_store()).await else { panic!("who answered?") };
    assert!(why.contains(&ensemble.nodes[0].endpoint()), "{why}");
    ensemble.begin(1);
    let (after, _) = next_read(&mut follower).await;
    assert_eq!((text(&after, "leader"), after.store), (Some("pg1".into()), before.store));
    assert!(after.revision >= before.revision && after.raft_term >= before.raft_term);
    follower.stop().await;
}
