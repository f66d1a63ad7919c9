//! ZooKeeper.

mod client;
mod keys;
mod oneshot;
mod tree;
mod watch;

pub(super) use keys::ZooKeeperKeys;

use super::failover::{Answered, Clients, Failure};
use super::follow::{Reading, Store, WatchEnd};
use crate::clock;
use pgsquire_core::event::StoreRead;
use std::path::PathBuf;
use std::time::Duration;
use tokio::time::timeout;
use watch::ZooKeeperWatch;
use zookeeper_client::Client;

/// A server that has not answered by then is passed over.
pub const DEADLINE: Duration = Duration::from_secs(2);
/// One that goes on answering may take so long for a whole read: there are two questions to each node.
const LONGEST_READ: Duration = Duration::from_secs(10);

/// How to reach ZooKeeper.
#[derive(Debug, Clone, Default)]
pub struct ZooKeeperConfig {
    /// `host:port`.
    pub endpoints: Vec<String>,
    /// All paths begin below this node, `/a/b`; empty: at the root.
    pub chroot: String,
    /// PEM certificates to trust. With any of the three files all connections are TLS, and without this one no server is
    /// trusted.
    pub tls_ca: Option<PathBuf>,
    /// PEM certificate to show.
    pub tls_cert: Option<PathBuf>,
    /// Its PEM key.
    pub tls_key: Option<PathBuf>,
    /// User of the scheme `digest`. Nodes of ours are then for this user alone, else for everybody.
    pub username: Option<String>,
    /// Holds the user's password. Certificates, key and password are read again when they change.
    pub password_file: Option<PathBuf>,
    /// Watch as servers before 3.6 let us, also newer ones.
    pub one_shot_watches: bool,
}

impl ZooKeeperConfig {
    fn is_tls(&self) -> bool {
        self.tls_ca.is_some() || self.tls_cert.is_some() || self.tls_key.is_some()
    }
}

/// The keys below one prefix, for a follower.
pub(super) struct ZooKeeper {
    prefix: String,
    clients: Clients<ZooKeeperConfig>,
}

impl ZooKeeper {
    pub(super) fn new(config: ZooKeeperConfig, prefix: String) -> Self {
        ZooKeeper { prefix, clients: Clients::new(config) }
    }

    async fn read_with(&self, client: Client) -> Result<StoreRead, Failure> {
        let started = clock::now();
        let tree = tree::read(&client, &self.prefix).await?;
        let nothing = tree.keys.is_empty();
        let beside = if nothing { tree::beside(&client, &self.prefix).await } else { Vec::new() };
        Ok(StoreRead {
            store: tree.store,
            raft_term: epoch(tree.revision),
            revision: tree.revision,
            keys: tree.keys,
            // That the leader key is there proves that its session had not ended, and nothing about how long it will
            // last: the server tells nobody when the owner of a session was last heard, nor what timeout was agreed.
            leader_ttl: None,
            beside,
            started,
        })
    }
}

/// The election that a transaction belongs to: the upper half of its number.
fn epoch(zxid: u64) -> u64 {
    zxid >> 32
}

impl Store for ZooKeeper {
    type Watch = ZooKeeperWatch;

    async fn read(&self) -> Result<Reading, String> {
        let answered = self.clients.ask(LONGEST_READ, |client| self.read_with(client)).await;
        match answered {
            Ok(Answered { answer: read, endpoint, .. }) => Ok(Reading { read, endpoint }),
            Err(Failure { why, .. }) => {
                Err(format!("no ZooKeeper server answered a read of {}: {why}", self.prefix))
            }
        }
    }

    async fn watch(&self, after: &Reading) -> Result<ZooKeeperWatch, WatchEnd> {
        let name = self.clients.name(after.endpoint);
        let failed = |why: String| {
            let why = format!("ZooKeeper at {name} did not let us watch {}: {why}", self.prefix);
            WatchEnd { why, endpoint_failed: true }
        };
        let begin = async {
            let client = self.clients.client(after.endpoint).await?;
            let one_shot = self.clients.opener().one_shot_watches;
            ZooKeeperWatch::begin(client, &self.prefix, name, &after.read, one_shot).await
        };
        let begun = timeout(DEADLINE, begin).await;
        begun.unwrap_or_else(|_| Err(Failure::silent(DEADLINE))).map_err(|failure| failed(failure.why))
    }

    fn avoid(&self, endpoint: usize) {
        self.clients.avoid(endpoint);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_the_upper_half() {
        assert_eq!(epoch(0x5_0000_0102), 5);
        assert_eq!(epoch(7), 0);
    }

    #[test]
    fn any_file_means_tls() {
        let file = || Some(PathBuf::from("/x.pem"));
        assert!(!ZooKeeperConfig::default().is_tls());
        assert!(ZooKeeperConfig { tls_ca: file(), ..ZooKeeperConfig::default() }.is_tls());
        assert!(ZooKeeperConfig { tls_cert: file(), tls_key: file(), ..ZooKeeperConfig::default() }.is_tls());
    }

    #[tokio::test]
    async fn certificates_without_an_authority_are_said() {
        let config = ZooKeeperConfig {
            endpoints: vec!["127.0.0.1:1".into()],
            tls_cert: Some("/x.pem".into()),
            ..ZooKeeperConfig::default()
        };
        let why = ZooKeeper::new(config, "/service/main/".into()).read().await.unwrap_err();
        assert!(why.contains("127.0.0.1:1") && why.contains("without tls_ca"), "{why}");
    }
}
