//! Users, passwords and certificates towards a real ZooKeeper.

use crate::certificates::Certificates;
use crate::store::{self, next_change, next_failure, next_read, text};
use crate::zookeeper::{BASE, config, follow, watching};
use crate::zookeeper_server::{self as server, Ensemble, write};
use pgsquire::dcs::zookeeper::ZooKeeperConfig;
use pgsquire_core::event::Outcome;
use std::time::Duration;
use zookeeper_client::{Acl, Acls, AuthId, Client, CreateMode, Permission};

#[tokio::test]
async fn a_login_opens_what_it_may_and_a_wrong_one_nothing() {
    let ensemble = Ensemble::start(1).await;
    let admin = Client::connector()
        .with_auth("digest", b"squire:secret")
        .connect(&ensemble.nodes[0].endpoint())
        .await
        .unwrap();
    let ours = [Acl::new(Permission::ALL, AuthId::authed())];
    let lasting = CreateMode::Persistent.with_acls(Acls::new(&ours));
    admin.mkdir(BASE, &lasting).await.unwrap();
    admin.create("/service/main/leader", b"pg1", &lasting).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let with = |password: &str| {
        let file = dir.path().join(password);
        std::fs::write(&file, format!("{password}\n")).unwrap();
        let (username, password_file) = (Some("squire".into()), Some(file));
        ZooKeeperConfig { username, password_file, ..config(ensemble.endpoints(&[0])) }
    };
    let mut follower = follow(with("secret"));
    let (read, failures) = next_read(&mut follower).await;
    assert_eq!((text(&read, "leader"), failures), (Some("pg1".into()), Vec::new()));
    admin.set_data("/service/main/leader", b"pg2", None).await.unwrap();
    assert_eq!(next_change(&mut follower).await.changes[0].0, "leader");
    follower.stop().await;

    let mut stranger = follow(with("guess"));
    let why = next_failure(&mut stranger).await;
    assert!(
        why.contains("/service/main: not authorized") && why.contains(&ensemble.nodes[0].endpoint()),
        "{why}"
    );
    stranger.stop().await;
    let missing = ZooKeeperConfig { password_file: Some("/nonexistent/password".into()), ..with("secret") };
    let mut stranger = follow(missing);
    let why = next_failure(&mut stranger).await;
    assert!(why.contains("/nonexistent/password"), "{why}");
    stranger.stop().await;

    // What is published with a login is for it alone.
    let mut publisher = store::publisher(server::store(with("secret")), Duration::from_secs(10));
    let keys = store::publish(&[("poolers/a", "1")]);
    assert_eq!(publisher.outcome(keys).await, Outcome::Done);
    let anybody = ensemble.client(0).await;
    let read = anybody.get_data("/pgsquire/service/main/poolers/a").await;
    assert_eq!(read.unwrap_err(), zookeeper_client::Error::NoAuth);
    publisher.stop().await;
}

#[tokio::test]
async fn a_private_certificate_is_shown_and_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let tls = Certificates::make(dir.path());
    let ensemble = Ensemble::start_secure(dir.path()).await;
    write(&ensemble.client(0).await, "/service/main/leader", "pg1").await;
    let endpoint = format!("127.0.0.1:{}", ensemble.nodes[0].secure_port);
    let config = ZooKeeperConfig {
        tls_ca: Some(tls.ca.clone()),
        tls_cert: Some(tls.cert.clone()),
        tls_key: Some(tls.key.clone()),
        ..config(vec![endpoint.clone()])
    };
    let mut follower = follow(config.clone());
    let (read, _) = next_read(&mut follower).await;
    assert_eq!(text(&read, "leader"), Some("pg1".into()));
    watching(&ensemble.client(0).await, &mut follower).await;
    follower.stop().await;

    let refused = |config: ZooKeeperConfig| async {
        let mut follower = follow(config);
        let why = next_failure(&mut follower).await;
        follower.stop().await;
        why
    };
    let why = refused(ZooKeeperConfig { tls_cert: None, tls_key: None, ..config.clone() }).await;
    assert!(why.contains(&endpoint) && why.contains("TLS"), "{why}");
    let why = refused(ZooKeeperConfig { tls_ca: Some("/nonexistent/ca.pem".into()), ..config.clone() }).await;
    assert!(why.contains("/nonexistent/ca.pem"), "{why}");
    let plain = ensemble.nodes[0].endpoint();
    let why = refused(ZooKeeperConfig { endpoints: vec![plain.clone()], ..config }).await;
    assert!(why.contains(&plain) && why.contains("TLS"), "{why}");
}
