//! The probe of the leader's server against real PostgreSQL servers.

use crate::processes::{PATIENCE, free_port};
use crate::server::Server;
use crate::worker::Worker;
use nix::sys::signal::Signal;
use pgsquire::probe::{self, Login, WorkerConfig};
use pgsquire_core::effect::Order;
use pgsquire_core::event::{Event, Outcome, ServerWord};
use pgsquire_core::topology::Endpoint;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::time::{Instant, timeout};

fn probe(login: Option<&str>) -> Worker {
    let login = login.map(|conninfo| Login { conninfo: conninfo.into(), password_file: None });
    let config = WorkerConfig { cluster: "main".into(), login };
    Worker::start(64, |orders, events, stop| probe::run(config, orders, events, stop))
}

fn at(port: u16) -> Endpoint {
    Endpoint { host: "127.0.0.1".into(), port }
}

fn watch(endpoint: Option<Endpoint>) -> Order {
    Order::WatchServer { cluster: "main".into(), endpoint }
}

/// Orders the probe to watch it; the answer comes before any word.
async fn begin(probe: &mut Worker, endpoint: Endpoint) {
    let ordered = probe.order(watch(Some(endpoint))).await;
    match probe.next().await {
        Event::Done { id, outcome: Outcome::Done, .. } => assert_eq!(id, ordered),
        other => panic!("{other:?}"),
    }
}

async fn word(probe: &mut Worker, about: &Endpoint) -> ServerWord {
    match probe.next().await {
        Event::ServerSeen { cluster, endpoint, word, .. } => {
            assert_eq!((cluster.as_str(), &endpoint), ("main", about));
            word
        }
        other => panic!("{other:?}"),
    }
}

/// Why it is lost; words of before do not count.
async fn lost(probe: &mut Worker, about: &Endpoint) -> String {
    loop {
        if let ServerWord::Lost { why } = word(probe, about).await {
            assert!(why.contains(&about.to_string()), "{why}");
            return why;
        }
    }
}

/// The first sign of life; repeated losses do not count.
async fn back(probe: &mut Worker, about: &Endpoint) -> ServerWord {
    loop {
        match word(probe, about).await {
            ServerWord::Lost { .. } => {}
            word => return word,
        }
    }
}

#[tokio::test]
async fn a_killed_postmaster_is_lost_at_once_and_seen_again() {
    let mut server = Server::start().await;
    let about = at(server.port);
    for (login, alive) in
        [(None, ServerWord::Up), (Some("user=postgres dbname=postgres"), ServerWord::InRecovery(false))]
    {
        let mut probe = probe(login);
        begin(&mut probe, about.clone()).await;
        assert_eq!(word(&mut probe, &about).await, alive);
        for _ in 0..5 {
            let began = Instant::now();
            server.crash();
            let why = lost(&mut probe, &about).await;
            println!(
                "{} login: lost {:?} after SIGKILL: {why}",
                login.map_or("no", |_| "a"),
                began.elapsed()
            );
            assert!(why.contains("refused"), "{why}");
            server = server.again().await;
            assert_eq!(back(&mut probe, &about).await, alive);
        }
        probe.stop().await;
    }
}

#[tokio::test]
async fn a_planned_stop_is_seen_and_not_held_up() {
    let mut server = Server::start().await;
    let about = at(server.port);
    for login in [None, Some("user=postgres")] {
        let mut probe = probe(login);
        begin(&mut probe, about.clone()).await;
        back(&mut probe, &about).await;
        let began = Instant::now();
        let ((), why) = tokio::join!(server.stop_fast(), lost(&mut probe, &about));
        println!("{} login: stopped in {:?}: {why}", login.map_or("no", |_| "a"), began.elapsed());
        // A process that waits for somebody's first words would hold it up for authentication_timeout, a minute.
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
        server = server.again().await;
        back(&mut probe, &about).await;
        probe.stop().await;
    }
}

#[tokio::test]
async fn a_frozen_server_is_lost_to_a_login() {
    let server = Server::start().await;
    let about = at(server.port);
    let mut probe = probe(Some("user=postgres dbname=postgres"));
    begin(&mut probe, about.clone()).await;
    assert_eq!(word(&mut probe, &about).await, ServerWord::InRecovery(false));
    server.signal_all(Signal::SIGSTOP);
    let why = lost(&mut probe, &about).await;
    assert!(why.contains("2 probes"), "{why}");
    lost(&mut probe, &about).await;
    server.signal_all(Signal::SIGCONT);
    assert_eq!(back(&mut probe, &about).await, ServerWord::InRecovery(false));
    probe.stop().await;
}

#[tokio::test]
async fn a_replica_says_so() {
    let server = Server::start().await;
    let replica = server.replica().await;
    let about = at(replica.port);
    let mut probe = probe(Some("user=postgres"));
    begin(&mut probe, about.clone()).await;
    for _ in 0..3 {
        assert_eq!(word(&mut probe, &about).await, ServerWord::InRecovery(true));
    }
    probe.stop().await;
}

#[tokio::test]
async fn a_login_that_is_refused_is_no_loss() {
    let mut server = Server::start().await;
    let about = at(server.port);
    let mut probe = probe(Some("user=postgres dbname=no_such_database"));
    begin(&mut probe, about.clone()).await;
    assert_eq!(word(&mut probe, &about).await, ServerWord::Up);
    server.crash();
    lost(&mut probe, &about).await;
    probe.stop().await;
}

#[tokio::test]
async fn the_newest_order_wins() {
    let server = Server::start().await;
    let (nowhere, about) = (at(free_port()), at(server.port));
    let mut probe = probe(None);
    assert_eq!(probe.outcome(watch(None)).await, Outcome::Done);
    begin(&mut probe, nowhere.clone()).await;
    let why = lost(&mut probe, &nowhere).await;
    assert!(why.contains("refused"), "{why}");
    let began = Instant::now();
    lost(&mut probe, &nowhere).await;
    assert!(began.elapsed() >= Duration::from_millis(900), "told again after {:?}", began.elapsed());
    assert_eq!(probe.outcome(watch(Some(about.clone()))).await, Outcome::Done);
    assert_eq!(word(&mut probe, &about).await, ServerWord::Up);
    assert_eq!(probe.outcome(watch(Some(about.clone()))).await, Outcome::Done, "the same again");
    let stranger = Endpoint { host: "no-such-host.invalid".into(), port: 5432 };
    assert_eq!(probe.outcome(watch(Some(stranger.clone()))).await, Outcome::Done);
    let why = lost(&mut probe, &stranger).await;
    println!("{why}");
    let other = Order::WatchServer { cluster: "other".into(), endpoint: None };
    let Outcome::Failed { why } = probe.outcome(other).await else { panic!("it is for another cluster") };
    assert!(why.contains("cluster main"), "{why}");
    assert_eq!(probe.outcome(watch(None)).await, Outcome::Done);
    assert_eq!(probe.waiting(), 0);
    probe.stop().await;
}

#[tokio::test]
async fn somebody_who_hangs_up_or_says_nothing_is_lost_after_a_second() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let about = at(listener.local_addr().unwrap().port());
    for login in [None, Some("user=postgres")] {
        let mut probe = probe(login);
        begin(&mut probe, about.clone()).await;
        let hang_up = async {
            loop {
                drop(listener.accept().await.unwrap());
            }
        };
        let why = tokio::select! {
            () = hang_up => panic!("it ended"),
            why = timeout(PATIENCE, lost(&mut probe, &about)) => why.unwrap(),
        };
        assert!(why.contains("at once"), "{why}");
        // The backlog takes connections, and nobody speaks.
        let why = loop {
            let why = lost(&mut probe, &about).await;
            if !why.contains("at once") {
                break why;
            }
        };
        assert!(why.contains("in a row"), "{why}");
        probe.stop().await;
    }
}
