//! The prober of the local PostgreSQL against real servers.

use crate::processes::until;
use crate::server::{Server, connect};
use crate::worker::Worker;
use nix::sys::signal::Signal;
use pgsquire::postgres::{self, WorkerConfig};
use pgsquire_core::effect::Order;
use pgsquire_core::event::{LocalServer, Outcome};
use pgsquire_core::wal::Timeline;
use tokio::time::Instant;

fn prober(conninfo: String) -> Worker {
    let config = WorkerConfig { conninfo, password_file: None };
    Worker::start(16, |orders, events, stop| postgres::run(config, orders, events, stop))
}

async fn probe(prober: &mut Worker) -> LocalServer {
    match prober.outcome(Order::ProbeLocal).await {
        Outcome::Local(local) => local,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn primary_replica_and_promotion() {
    let primary = Server::start().await;
    let replica = primary.replica().await;
    let mut of_primary = prober(format!("host={} port={} user=postgres", primary.socket_dir(), primary.port));
    let mut of_replica = prober(replica.conninfo());

    let first = probe(&mut of_primary).await;
    assert_eq!((first.in_recovery, first.timeline), (false, Some(Timeline(1))));
    let client = connect(&primary.conninfo(), "postgres").await.unwrap();
    client.batch_execute("CREATE TABLE t AS SELECT generate_series(1, 1000)").await.unwrap();
    let second = probe(&mut of_primary).await;
    assert!(second.lsn > first.lsn, "{first:?} {second:?}");

    until("the replica has replayed it and streams", async || {
        let local = probe(&mut of_replica).await;
        assert!(local.in_recovery);
        (local.lsn >= second.lsn && local.timeline == Some(Timeline(1))).then_some(())
    })
    .await;
    let client = connect(&replica.conninfo(), "postgres").await.unwrap();
    client.batch_execute("SELECT pg_promote(false)").await.unwrap();
    let promoted = until("the promotion is seen on the same connection", async || {
        let local = probe(&mut of_replica).await;
        (!local.in_recovery).then_some(local)
    })
    .await;
    assert_eq!(promoted.timeline, Some(Timeline(2)));
    of_primary.stop().await;
    of_replica.stop().await;
}

#[tokio::test]
async fn a_frozen_and_a_restarted_server() {
    let mut server = Server::start().await;
    let mut prober = prober(server.conninfo());
    probe(&mut prober).await;
    let client = connect(&server.conninfo(), "postgres").await.unwrap();
    let backend = "SELECT pid FROM pg_stat_activity WHERE application_name = 'pgsquire'";
    let pid: i32 = client.query_one(backend, &[]).await.unwrap().get(0);
    let backend = nix::unistd::Pid::from_raw(pid);
    nix::sys::signal::kill(backend, Signal::SIGSTOP).unwrap();
    let began = Instant::now();
    let Outcome::Failed { why } = prober.outcome(Order::ProbeLocal).await else { panic!("it is frozen") };
    assert!(why.contains("the local PostgreSQL was silent for 2 s"), "{why}");
    assert!(began.elapsed().as_millis() < 3500, "{:?}", began.elapsed());
    probe(&mut prober).await;
    nix::sys::signal::kill(backend, Signal::SIGCONT).unwrap();

    server.kill();
    let Outcome::Failed { why } = prober.outcome(Order::ProbeLocal).await else { panic!("it is down") };
    assert!(why.contains("the local PostgreSQL") && why.contains("refused"), "{why}");
    let _server = server.again().await;
    assert!(!probe(&mut prober).await.in_recovery);
    prober.stop().await;
}
