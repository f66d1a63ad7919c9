//! etcd servers of our own.

use crate::processes::{As, Process, free_port, until};
use crate::store::{Access, RealStore};
use etcd_client::{Client, ConnectOptions, Txn, TxnOp};
use nix::sys::signal::Signal;
use pgsquire::dcs::{StoreConfig, etcd::EtcdConfig};
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

/// A cluster of etcd servers.
pub struct Cluster {
    dir: TempDir,
    /// Its servers.
    pub nodes: Vec<Node>,
    /// What they are started with besides.
    pub more: Vec<String>,
    /// The first one also serves clients with certificates there.
    secure: Option<u16>,
}

/// One of them.
pub struct Node {
    client_port: u16,
    peer_port: u16,
    /// It, while it runs.
    pub process: Option<Process>,
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
        Cluster::start_with(count, &[], None).await
    }

    /// Starts them with more arguments, and one that also serves clients with certificates.
    pub async fn start_with(count: usize, more: &[&str], secure: Option<u16>) -> Cluster {
        let node = |_| Node { client_port: free_port(), peer_port: free_port(), process: None };
        let dir = tempfile::Builder::new().prefix("etcd").tempdir().unwrap();
        let more = more.iter().map(|word| (*word).to_owned()).collect();
        let mut cluster = Cluster { dir, nodes: (0..count).map(node).collect(), more, secure };
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
        let listen = match self.secure {
            Some(port) => format!("{client},https://127.0.0.1:{port}"),
            None => client.clone(),
        };
        let args = [
            "--name",
            &format!("n{n}"),
            "--data-dir",
            data.to_str().unwrap(),
            "--listen-client-urls",
            &listen,
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
        let args: Vec<&str> = args.into_iter().chain(self.more.iter().map(String::as_str)).collect();
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

    /// Forgets all that a server that was killed knew.
    pub fn forget(&self, n: usize) {
        std::fs::remove_dir_all(self.dir.path().join(format!("n{n}"))).unwrap();
    }

    /// What a server has said.
    pub fn log(&self, n: usize) -> String {
        std::fs::read_to_string(self.dir.path().join(format!("n{n}.log"))).unwrap()
    }

    /// Where clients reach these.
    pub fn endpoints(&self, of: &[usize]) -> Vec<String> {
        of.iter().map(|n| self.nodes[*n].endpoint()).collect()
    }
}

impl RealStore for Cluster {
    async fn begin_one(secure: Option<&Path>) -> Self {
        let Some(dir) = secure else { return Cluster::start(1).await };
        let path = |name: &str| dir.join(name).display().to_string();
        let files = [path("server.crt"), path("server.key"), path("ca.crt")];
        let [cert, key, ca] = &files;
        let more = ["--cert-file", cert, "--key-file", key, "--trusted-ca-file", ca, "--client-cert-auth"];
        Cluster::start_with(1, &more, Some(free_port())).await
    }

    async fn again(&mut self) {
        self.kill(0);
        self.begin(0);
        self.ready(0).await;
    }

    async fn rebuild(&mut self) {
        self.kill(0);
        self.forget(0);
        self.begin(0);
        self.ready(0).await;
    }

    fn place(&self) -> String {
        self.nodes[0].endpoint()
    }

    fn secure_place(&self) -> String {
        format!("127.0.0.1:{}", self.secure.unwrap())
    }

    fn config(Access { endpoints, ca, cert, key }: Access) -> StoreConfig {
        let files = EtcdConfig { tls_ca: ca, tls_cert: cert, tls_key: key, ..EtcdConfig::default() };
        StoreConfig::Etcd(EtcdConfig { endpoints, ..files })
    }

    async fn put(&self, keys: &[(String, String)]) {
        let mut client = self.client(0).await;
        // etcd takes 128 operations in one transaction.
        for some in keys.chunks(100) {
            let puts = some.iter().map(|(key, value)| TxnOp::put(key.as_str(), value.as_str(), None));
            client.txn(Txn::new().and_then(puts.collect::<Vec<_>>())).await.unwrap();
        }
    }

    async fn delete(&self, keys: &[String]) {
        let deletes = keys.iter().map(|key| TxnOp::delete(key.as_str(), None));
        self.client(0).await.txn(Txn::new().and_then(deletes.collect::<Vec<_>>())).await.unwrap();
    }
}
