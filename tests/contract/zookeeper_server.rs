//! ZooKeeper servers of our own.

use crate::processes::{As, Process, free_port, until};
use crate::store::{Access, RealStore};
use futures_util::future::join_all;
use nix::sys::signal::Signal;
use pgsquire::dcs::StoreConfig;
use pgsquire::dcs::zookeeper::ZooKeeperConfig;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tempfile::TempDir;
use tokio::time::timeout;
use zookeeper_client::{Acls, Client, CreateMode, CreateOptions, Error};

/// Debian puts the server and all it needs there.
const CLASS_PATH: &str = "/usr/share/java/zookeeper.jar:/usr/share/java/*";

/// For everybody, and lasting.
pub const LASTING: CreateOptions<'static> = CreateMode::Persistent.with_acls(Acls::anyone_all());
/// For everybody, and bound to its session.
pub const LEASED: CreateOptions<'static> = CreateMode::Ephemeral.with_acls(Acls::anyone_all());

/// Servers that belong together.
pub struct Ensemble {
    dir: TempDir,
    /// Its servers.
    pub nodes: Vec<Node>,
    /// Where the files for TLS are.
    secure: Option<PathBuf>,
}

/// One of them.
pub struct Node {
    client_port: u16,
    /// For clients with certificates.
    pub secure_port: u16,
    peer_ports: (u16, u16),
    process: Option<Process>,
}

impl Node {
    /// Where clients reach it.
    pub fn endpoint(&self) -> String {
        format!("127.0.0.1:{}", self.client_port)
    }
}

impl Ensemble {
    /// Starts so many servers and waits until all answer.
    pub async fn start(count: usize) -> Ensemble {
        Ensemble::start_with(count, &[]).await
    }

    /// Starts one that also serves clients with certificates; the files are in this folder.
    pub async fn start_secure(dir: &Path) -> Ensemble {
        let here = dir.display();
        let more = format!(
            "serverCnxnFactory=org.apache.zookeeper.server.NettyServerCnxnFactory\n\
             ssl.keyStore.location={here}/server.pem\nssl.keyStore.type=PEM\n\
             ssl.trustStore.location={here}/ca.pem\nssl.trustStore.type=PEM\nssl.clientAuth=need\n"
        );
        Ensemble::start_in(1, &[], &more, Some(dir.to_owned())).await
    }

    /// Starts them with more options of Java.
    pub async fn start_with(count: usize, java: &[&str]) -> Ensemble {
        Ensemble::start_in(count, java, "", None).await
    }

    async fn start_in(count: usize, java: &[&str], more: &str, secure: Option<PathBuf>) -> Ensemble {
        let node = |_| Node {
            client_port: free_port(),
            secure_port: free_port(),
            peer_ports: (free_port(), free_port()),
            process: None,
        };
        let dir = tempfile::Builder::new().prefix("zookeeper").tempdir().unwrap();
        let mut ensemble = Ensemble { dir, nodes: (0..count).map(node).collect(), secure };
        for n in 0..count {
            ensemble.configure(n, more);
            ensemble.begin_with(n, java);
        }
        for n in 0..count {
            ensemble.ready(n).await;
        }
        ensemble
    }

    fn configure(&self, n: usize, more: &str) {
        let data = self.dir.path().join(format!("n{n}"));
        fs::create_dir(&data).unwrap();
        fs::write(data.join("myid"), n.to_string()).unwrap();
        let node = &self.nodes[n];
        let mut text = format!(
            "dataDir={}\nclientPortAddress=127.0.0.1\nclientPort={}\ntickTime=200\ninitLimit=50\nsyncLimit=10\n\
             maxClientCnxns=0\nadmin.enableServer=false\n{more}",
            data.display(),
            node.client_port
        );
        if !more.is_empty() {
            text += &format!("secureClientPortAddress=127.0.0.1\nsecureClientPort={}\n", node.secure_port);
        }
        if self.nodes.len() > 1 {
            for (n, Node { peer_ports: (peer, election), .. }) in self.nodes.iter().enumerate() {
                text += &format!("server.{n}=127.0.0.1:{peer}:{election}\n");
            }
        }
        fs::write(self.dir.path().join(format!("n{n}.cfg")), text).unwrap();
    }

    /// Starts a server, again perhaps.
    pub fn begin(&mut self, n: usize) {
        self.begin_with(n, &[]);
    }

    fn begin_with(&mut self, n: usize, java: &[&str]) {
        if let Some(dir) = &self.secure {
            // What the server reads: a key and its certificate in one file, and names that tell their type.
            let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap();
            fs::write(dir.join("server.pem"), read("server.key") + &read("server.crt")).unwrap();
            fs::write(dir.join("ca.pem"), read("ca.crt")).unwrap();
        }
        let path = |end: &str| self.dir.path().join(format!("n{n}{end}")).display().to_string();
        let small = ["-Xmx96m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", CLASS_PATH];
        let main = "org.apache.zookeeper.server.quorum.QuorumPeerMain";
        let config = path(".cfg");
        let args: Vec<&str> = java.iter().copied().chain(small).chain([main, &config]).collect();
        let log = self.dir.path().join(format!("n{n}.log"));
        self.nodes[n].process = Some(Process::start(As::Me, "java", &args, &log));
    }

    /// Waits until a server answers.
    pub async fn ready(&self, n: usize) {
        until("ZooKeeper answers", async || self.try_client(n).await.ok()).await;
    }

    async fn try_client(&self, n: usize) -> Result<Client, Error> {
        let connector = Client::connector().with_session_timeout(Duration::from_secs(4)).with_fail_eagerly();
        let endpoint = self.nodes[n].endpoint();
        let connect = timeout(Duration::from_secs(2), connector.connect(&endpoint));
        let client = connect.await.map_err(|_| Error::Timeout)??;
        client.sync("/").await?;
        Ok(client)
    }

    /// A client of one server.
    pub async fn client(&self, n: usize) -> Client {
        until("ZooKeeper gives a session", async || self.try_client(n).await.ok()).await
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

    /// These as a store.
    pub fn store(&self, of: &[usize]) -> StoreConfig {
        store(ZooKeeperConfig { endpoints: self.endpoints(of), ..ZooKeeperConfig::default() })
    }
}

/// For short.
pub fn store(config: ZooKeeperConfig) -> StoreConfig {
    StoreConfig::ZooKeeper(config)
}

/// Makes a node and those above it, or gives it another value.
pub async fn write(client: &Client, path: &str, value: &str) {
    let (folder, _) = path.rsplit_once('/').unwrap();
    if !folder.is_empty() {
        client.mkdir(folder, &LASTING).await.unwrap();
    }
    match client.set_data(path, value.as_bytes(), None).await {
        Err(Error::NoNode) => drop(client.create(path, value.as_bytes(), &LASTING).await.unwrap()),
        other => drop(other.unwrap()),
    }
}

impl RealStore for Ensemble {
    async fn begin_one(secure: Option<&Path>) -> Self {
        match secure {
            Some(dir) => Ensemble::start_secure(dir).await,
            None => Ensemble::start(1).await,
        }
    }

    async fn again(&mut self) {
        self.kill(0);
        self.begin(0);
        self.ready(0).await;
    }

    async fn rebuild(&mut self) {
        self.kill(0);
        fs::remove_dir_all(self.dir.path().join("n0/version-2")).unwrap();
        self.begin(0);
        self.ready(0).await;
    }

    fn place(&self) -> String {
        self.nodes[0].endpoint()
    }

    fn secure_place(&self) -> String {
        format!("127.0.0.1:{}", self.nodes[0].secure_port)
    }

    fn config(Access { endpoints, ca, cert, key }: Access) -> StoreConfig {
        let files =
            ZooKeeperConfig { tls_ca: ca, tls_cert: cert, tls_key: key, ..ZooKeeperConfig::default() };
        store(ZooKeeperConfig { endpoints, ..files })
    }

    async fn put(&self, keys: &[(String, String)]) {
        let client = self.client(0).await;
        let folders: BTreeSet<&str> = keys.iter().map(|(key, _)| key.rsplit_once('/').unwrap().0).collect();
        for folder in folders {
            client.mkdir(folder, &LASTING).await.unwrap();
        }
        for some in keys.chunks(500) {
            let stats = join_all(some.iter().map(|(key, _)| client.check_stat(key))).await;
            let mut writer = client.new_multi_writer();
            for ((key, value), stat) in some.iter().zip(stats) {
                match stat.unwrap() {
                    Some(_) => writer.add_set_data(key, value.as_bytes(), None),
                    None => writer.add_create(key, value.as_bytes(), &LASTING),
                }
                .unwrap();
            }
            writer.commit().await.unwrap();
        }
    }

    async fn delete(&self, keys: &[String]) {
        let client = self.client(0).await;
        let mut writer = client.new_multi_writer();
        for key in keys {
            writer.add_delete(key, None).unwrap();
        }
        writer.commit().await.unwrap();
    }
}
