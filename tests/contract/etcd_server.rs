//! etcd servers of our own.

use crate::processes::{As, Process, free_port, until};
use etcd_client::{Client, ConnectOptions};
use nix::sys::signal::Signal;
use std::time::Duration;
use tempfile::TempDir;

/// A cluster of etcd servers.
pub struct Cluster {
    dir: TempDir,
    /// Its servers.
    pub nodes: Vec<Node>,
}

/// One of them.
pub struct Node {
    client_port: u16,
    peer_port: u16,
    process: Option<Process>,
}

impl Node {
    /// Where clients reach it.
    pub fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.client_port)
    }
}

impl Cluster {
    /// Starts so many and waits until all answer.
    pub async fn start(count: usize) -> Cluster {
        let node = |_| Node { client_port: free_port(), peer_port: free_port(), process: None };
        let dir = tempfile::Builder::new().prefix("etcd").tempdir().unwrap();
        let mut cluster = Cluster { dir, nodes: (0..count).map(node).collect() };
        (0..count).for_each(|n| cluster.begin(n));
        for n in 0..count {
            cluster.ready(n).await;
        }
        cluster
    }

    /// Starts a server, again perhaps.
    pub fn begin(&mut self, n: usize) {
        let peer = |node: &Node| format!("http://127.0.0.1:{}", node.peer_port);
        let all: Vec<_> =
            self.nodes.iter().enumerate().map(|(n, node)| format!("n{n}={}", peer(node))).collect();
        let data = self.dir.path().join(format!("n{n}"));
        let client = format!("http://{}", self.nodes[n].endpoint());
        let own = peer(&self.nodes[n]);
        let args = [
            "--name",
            &format!("n{n}"),
            "--data-dir",
            data.to_str().unwrap(),
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
            "--listen-peer-urls",
            &own,
            "--initial-advertise-peer-urls",
            &own,
            "--initial-cluster",
            &all.join(","),
            "--heartbeat-interval",
            "100",
            "--election-timeout",
            "1000",
        ];
        let log = self.dir.path().join(format!("n{n}.log"));
        self.nodes[n].process = Some(Process::start(As::Me, "etcd", &args, &log));
    }

    /// Waits until a server answers.
    pub async fn ready(&self, n: usize) {
        until("etcd answers", async || self.client(n).await.get("x", None).await.ok()).await;
    }

    /// A client of one server.
    pub async fn client(&self, n: usize) -> Client {
        let options = ConnectOptions::new().with_timeout(Duration::from_secs(5));
        Client::connect([self.nodes[n].endpoint()], Some(options)).await.unwrap()
    }

    /// Sends a signal to a server.
    pub fn signal(&self, n: usize, signal: Signal) {
        self.nodes[n].process.as_ref().unwrap().signal(signal);
    }

    /// Kills a server.
    pub fn kill(&mut self, n: usize) {
        self.nodes[n].process = None;
    }

    /// Where clients reach these.
    pub fn endpoints(&self, of: &[usize]) -> Vec<String> {
        of.iter().map(|n| self.nodes[*n].endpoint()).collect()
    }
}
