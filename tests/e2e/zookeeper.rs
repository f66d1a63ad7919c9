//! A Patroni cluster that keeps its truth in ZooKeeper.

use std::fs::{self, File};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use pgsquire_lab::{Pooler, Spec, Store};
use tempfile::TempDir;

use crate::clients::Clients;
use crate::site::{fact, with};
use crate::switch::{EACH, hooked, switch_unseen};

#[tokio::test(flavor = "multi_thread")]
async fn a_planned_switchover_is_not_seen_with_zookeeper_either() -> Result<()> {
    let server = Server::start().await?;
    let address = format!("127.0.0.1:{}", server.port);
    let store = Store::Foreign {
        patroni: format!("zookeeper:\n  hosts: ['{address}']"),
        agent: format!("dcs = \"zookeeper\"\nendpoints = [\"{address}\"]"),
    };
    let spec = Spec { store, members: 2, ..hooked() }.pooler(Pooler::write().named("write"));
    with(spec, async |site| {
        let clients = Clients::start(site, &["write"], EACH).await?;
        for _ in 0..2 {
            switch_unseen(site, &clients).await?;
        }
        Ok(())
    })
    .await
}

/// One server, which ends with the test.
struct Server {
    port: u16,
    process: Child,
    _dir: TempDir,
}

impl Server {
    async fn start() -> Result<Server> {
        let dir = tempfile::tempdir()?;
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
        let config = dir.path().join("zoo.cfg");
        let data = dir.path().display();
        let text = format!("dataDir={data}\nclientPort={port}\ntickTime=1000\nadmin.enableServer=false\n");
        fs::write(&config, text)?;
        let log = File::create(dir.path().join("log"))?;
        let process = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "java", "-Xmx96m", "-cp"])
            .args(["/usr/share/java/zookeeper.jar:/usr/share/java/*"])
            .arg("org.apache.zookeeper.server.quorum.QuorumPeerMain")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting ZooKeeper")?;
        let server = Server { port, process, _dir: dir };
        fact("ZooKeeper listens", || async {
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).map(drop).context("connecting")
        })
        .await?;
        Ok(server)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
