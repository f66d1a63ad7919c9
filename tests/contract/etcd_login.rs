//! Users, passwords and certificates towards a real etcd.

use crate::certificates::Certificates;
use crate::etcd_server::Cluster;
use crate::processes::{As, Process, free_port, until};
use crate::store::{self, next_change, next_read, read_store, text};
use crate::worker::Worker;
use etcd_client::{Client, ConnectOptions};
use pgsquire::dcs::{StoreConfig, etcd::EtcdConfig};
use pgsquire_core::effect::Order;
use pgsquire_core::event::{Event, Outcome};
use std::time::Duration;

fn follow_with(store: EtcdConfig, room: usize) -> Worker {
    store::follow(StoreConfig::Etcd(store), room)
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

#[tokio::test]
async fn a_login_whose_token_has_ended_is_renewed() {
    let mut cluster = Cluster::start_with(1, &["--auth-token-ttl", "1", "--logger", "zap"], None).await;
    let mut etcd = cluster.client(0).await;
    etcd.put("/service/main/leader", "pg1", None).await.unwrap();
    etcd.user_add("root", "r", None).await.unwrap();
    etcd.user_grant_role("root", "root").await.unwrap();
    etcd.auth_enable().await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    std::fs::write(&file, "r\n").unwrap();
    let config = EtcdConfig {
        endpoints: cluster.endpoints(&[0]),
        username: Some("root".into()),
        password_file: Some(file.clone()),
        ..EtcdConfig::default()
    };
    let mut follower = follow_with(config.clone(), 64);
    next_read(&mut follower).await;
    let mut publisher = store::publisher(StoreConfig::Etcd(config.clone()), Duration::from_secs(60));
    assert_eq!(publisher.outcome(store::publish(&[("poolers/a", "1")])).await, Outcome::Done);
    // etcd forgets a token that nobody showed for its time to live.
    until("both tokens are forgotten", async || {
        (cluster.log(0).matches("deleted a simple token").count() >= 2).then_some(())
    })
    .await;
    assert_eq!(follower.outcome(read_store()).await, Outcome::Done);
    assert_eq!(publisher.outcome(store::publish(&[("poolers/a", "2")])).await, Outcome::Done);

    // And after a restart it knows none of them.
    cluster.kill(0);
    cluster.begin(0);
    let (read, _) = next_read(&mut follower).await;
    assert_eq!(text(&read, "leader"), Some("pg1".into()));
    assert_eq!(follower.outcome(read_store()).await, Outcome::Done);

    // A password that was changed is read again.
    let options = ConnectOptions::new().with_user("root", "r");
    let mut root = Client::connect(cluster.endpoints(&[0]), Some(options)).await.unwrap();
    root.user_change_password("root", "other").await.unwrap();
    std::fs::write(&file, "other, and longer\n").unwrap();
    let Outcome::Failed { why } = follower.outcome(read_store()).await else { panic!("it was let in") };
    assert!(why.contains("authentication failed"), "{why}");
    std::fs::write(&file, "other\n").unwrap();
    next_read(&mut follower).await;
    follower.stop().await;
    publisher.stop().await;
}
