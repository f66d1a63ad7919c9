//! Certificates that are wrong, old or replaced, for every store.

use crate::certificates::Certificates;
use crate::consul_server::Consul;
use crate::etcd_server::Cluster;
use crate::every_store::on_every_store;
use crate::processes::until;
use crate::store::{self, Access, RealStore, names, next_failure, next_read, read_store, text};
use crate::zookeeper_server::Ensemble;
use pgsquire_core::event::{Event, Outcome};
use std::fs;
use std::time::Duration;

on_every_store! {
    certificates_of_another_authority_are_told
    certificates_that_have_expired_are_told
    certificates_that_are_replaced_on_disk_are_read_again
}

async fn refused<S: RealStore>(access: Access) -> String {
    let endpoint = access.endpoints[0].clone();
    let mut follower = store::follow(S::config(access), 64);
    let why = next_failure(&mut follower).await;
    println!("{why}");
    assert!(why.contains(&endpoint), "{why}");
    follower.stop().await;
    why
}

async fn certificates_of_another_authority_are_told<S: RealStore>() {
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (tls, other) = (Certificates::make(dir.path()), Certificates::make(elsewhere.path()));
    let real = S::begin_one(Some(dir.path())).await;
    real.put_one("/service/main/leader", "pg1").await;
    let access = Access::secure(real.secure_place(), &tls);
    let why = refused::<S>(Access { ca: Some(other.ca.clone()), ..access.clone() }).await;
    assert!(why.contains("its certificate is not signed by one of tls_ca"), "{why}");
    let theirs = Access { cert: Some(other.cert.clone()), key: Some(other.key.clone()), ..access.clone() };
    let why = refused::<S>(theirs).await;
    assert!(why.contains("alert") && why.contains("tls_cert"), "{why}");
    let why = refused::<S>(Access { cert: None, key: None, ..access.clone() }).await;
    assert!(why.contains("alert") && why.contains("tls_cert"), "{why}");

    let mut follower = store::follow(S::config(access), 64);
    let (read, failures) = next_read(&mut follower).await;
    assert_eq!((text(&read, "leader"), failures), (Some("pg1".into()), Vec::new()));
    follower.stop().await;
}

async fn certificates_that_have_expired_are_told<S: RealStore>() {
    let dir = tempfile::tempdir().unwrap();
    let tls = Certificates::make(dir.path());
    tls.expire("server");
    let mut real = S::begin_one(Some(dir.path())).await;
    let access = Access::secure(real.secure_place(), &tls);
    let why = refused::<S>(access.clone()).await;
    assert!(why.contains("expired") && why.contains("renew the certificate of this endpoint"), "{why}");

    Certificates::make(dir.path());
    tls.expire("client");
    real.again().await;
    let why = refused::<S>(access).await;
    assert!(why.contains("alert") && why.contains("tls_cert"), "{why}");
}

async fn certificates_that_are_replaced_on_disk_are_read_again<S: RealStore>() {
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let tls = Certificates::make(dir.path());
    let mut real = S::begin_one(Some(dir.path())).await;
    real.put_one("/service/main/leader", "pg1").await;
    let config = S::config(Access::secure(real.secure_place(), &tls));
    let mut follower = store::follow(config.clone(), 64);
    next_read(&mut follower).await;
    assert_eq!(follower.outcome(read_store()).await, Outcome::Done);
    let mut publisher = store::publisher(config, Duration::from_secs(4));
    assert_eq!(publisher.outcome(store::publish(&[("poolers/a", "1")])).await, Outcome::Done);

    // The connection still lives, and yet the next read is made with the file of now.
    let right = fs::read(&tls.ca).unwrap();
    fs::write(&tls.ca, fs::read(Certificates::make(elsewhere.path()).ca).unwrap()).unwrap();
    let Outcome::Failed { why } = follower.outcome(read_store()).await else {
        panic!("by which certificate?")
    };
    assert!(why.contains("not signed by one of tls_ca") && why.contains(&real.secure_place()), "{why}");
    fs::write(&tls.ca, right).unwrap();
    next_read(&mut follower).await;

    // Another authority, another server's certificate, another one for us: nobody restarts the agent.
    Certificates::make(dir.path());
    real.again().await;
    let (read, _) = next_read(&mut follower).await;
    assert_eq!(text(&read, "leader"), Some("pg1".into()));
    assert_eq!(follower.outcome(read_store()).await, Outcome::Done);
    real.put_one("/service/main/status", "1").await;
    // By a change, or by a read that was on its way.
    loop {
        match follower.next().await {
            Event::StoreChanged { change, .. } if change.changes[0].0 == "status" => break,
            Event::StoreRead { read, .. } if names(&read).contains(&"status") => break,
            _ => {}
        }
    }
    follower.stop().await;

    publisher.order(store::publish(&[("poolers/a", "2")])).await;
    until("our key is there", async || {
        let mut peers = store::peers(real.store());
        let Event::PeersRead { read, .. } = peers.next().await else { panic!("it reads first") };
        peers.stop().await;
        (names(&read) == ["poolers/a"] && text(&read, "poolers/a") == Some("2".into())).then_some(())
    })
    .await;
    publisher.stop().await;
}
