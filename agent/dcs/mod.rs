//! Stores that Patroni keeps its truth in, and where agents talk to each other. One follower per cluster for Patroni's
//! keys and one for our own: read everything, watch, and when the watch breaks read everything again. One publisher per
//! cluster puts our own keys.

mod beside;
pub mod consul;
pub mod etcd;
mod failover;
mod follow;
mod handshake;
mod publish;
pub mod rest;
pub mod zookeeper;

use crate::report::Report;
use follow::{Prompt, Whose};
use pgsquire_core::effect::Effect;
use pgsquire_core::event::Event;
use std::time::Duration;
use tokio::sync::mpsc::{Receiver, Sender};
use tokio_util::sync::CancellationToken;

/// Our own keys are read again this often: a lost watch message is mended by then.
const PEERS_AGAIN: Duration = Duration::from_secs(5);

/// What a follower must know.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// Name of the cluster in our words.
    pub cluster: String,
    /// Where its keys are; see [`prefix`] and [`own_prefix`].
    pub prefix: String,
    /// The store.
    pub store: StoreConfig,
}

/// How to reach a store.
#[derive(Debug, Clone)]
pub enum StoreConfig {
    /// etcd, version 3 of its API.
    Etcd(etcd::EtcdConfig),
    /// Consul.
    Consul(consul::ConsulConfig),
    /// ZooKeeper, from 3.4 on; to talk to other agents through it, from 3.5 on.
    ZooKeeper(zookeeper::ZooKeeperConfig),
}

/// The prefix of a cluster's keys: `/service/main/`, or `/service/main/0/` for a Citus group.
pub fn prefix(namespace: &str, scope: &str, group: Option<u32>) -> String {
    let namespace = namespace.trim_matches('/');
    let root = if namespace.is_empty() { String::new() } else { format!("/{namespace}") };
    match group {
        Some(group) => format!("{root}/{scope}/{group}/"),
        None => format!("{root}/{scope}/"),
    }
}

/// The prefix of the keys by which agents talk about a cluster: `/pgsquire/service/main/`, or
/// `/pgsquire/service/main/0/` for a Citus group.
pub fn own_prefix(namespace: &str, scope: &str, group: Option<u32>) -> String {
    format!("/pgsquire{}", prefix(namespace, scope, group))
}

/// Follows Patroni's keys of a cluster until `stop`, or until nobody listens.
pub async fn run(
    config: WorkerConfig,
    orders: Receiver<Effect>,
    events: Sender<Event>,
    stop: CancellationToken,
) {
    let report = Report::new(events, stop.clone());
    match config.store {
        StoreConfig::Etcd(etcd) => {
            let store = etcd::Etcd::new(etcd, config.prefix);
            follow::run(Whose::Patronis, config.cluster, store, Prompt::Orders(orders), report, stop).await;
        }
        StoreConfig::Consul(consul) => {
            let store = consul::Consul::new(consul, &config.prefix);
            follow::run(Whose::Patronis, config.cluster, store, Prompt::Orders(orders), report, stop).await;
        }
        StoreConfig::ZooKeeper(zookeeper) => {
            let store = zookeeper::ZooKeeper::new(zookeeper, config.prefix);
            follow::run(Whose::Patronis, config.cluster, store, Prompt::Orders(orders), report, stop).await;
        }
    }
}

/// Follows our own keys of a cluster, those below [`own_prefix`], until `stop`, or until nobody listens. Nobody orders a
/// read of them: they are read again by time.
pub async fn run_peers(config: WorkerConfig, events: Sender<Event>, stop: CancellationToken) {
    let report = Report::new(events, stop.clone());
    match config.store {
        StoreConfig::Etcd(etcd) => {
            let store = etcd::Etcd::new(etcd, config.prefix);
            follow::run(Whose::Agents, config.cluster, store, Prompt::Every(PEERS_AGAIN), report, stop).await;
        }
        StoreConfig::Consul(consul) => {
            let store = consul::Consul::new(consul, &config.prefix);
            follow::run(Whose::Agents, config.cluster, store, Prompt::Every(PEERS_AGAIN), report, stop).await;
        }
        StoreConfig::ZooKeeper(zookeeper) => {
            let store = zookeeper::ZooKeeper::new(zookeeper, config.prefix);
            follow::run(Whose::Agents, config.cluster, store, Prompt::Every(PEERS_AGAIN), report, stop).await;
        }
    }
}

/// What a publisher must know.
#[derive(Debug, Clone)]
pub struct PublisherConfig {
    /// The cluster, the store, and our [`own_prefix`] in it.
    pub worker: WorkerConfig,
    /// The keys of an agent that is gone live this long. Stores take whole seconds, and not too few.
    pub ttl: Duration,
}

impl From<WorkerConfig> for PublisherConfig {
    fn from(worker: WorkerConfig) -> Self {
        PublisherConfig { worker, ttl: publish::TTL }
    }
}

/// Puts our own keys of a cluster as it is ordered, until `stop`, or until nobody listens. At the end its leased keys
/// are gone: at once after a stop, else when the lease ends.
pub async fn run_publisher(
    config: impl Into<PublisherConfig>,
    orders: Receiver<Effect>,
    events: Sender<Event>,
    stop: CancellationToken,
) {
    let PublisherConfig { worker: config, ttl } = config.into();
    let report = Report::new(events, stop.clone());
    match config.store {
        StoreConfig::Etcd(etcd) => {
            let store = etcd::EtcdKeys::new(etcd, config.prefix);
            publish::run(config.cluster, store, ttl, orders, report, stop).await;
        }
        StoreConfig::Consul(consul) => {
            let store = consul::ConsulKeys::new(consul, &config.prefix);
            publish::run(config.cluster, store, ttl, orders, report, stop).await;
        }
        StoreConfig::ZooKeeper(zookeeper) => {
            let store = zookeeper::ZooKeeperKeys::new(zookeeper, config.prefix);
            publish::run(config.cluster, store, ttl, orders, report, stop).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes() {
        assert_eq!(prefix("/service/", "main", None), "/service/main/");
        assert_eq!(prefix("service", "main", Some(0)), "/service/main/0/");
        assert_eq!(prefix("/a/b/", "main", None), "/a/b/main/");
        assert_eq!(prefix("/", "main", None), "/main/");
    }

    #[test]
    fn own_prefixes() {
        assert_eq!(own_prefix("/service/", "main", None), "/pgsquire/service/main/");
        assert_eq!(own_prefix("service", "main", Some(0)), "/pgsquire/service/main/0/");
        assert_eq!(own_prefix("/a/b/", "main", None), "/pgsquire/a/b/main/");
        assert_eq!(own_prefix("/", "main", None), "/pgsquire/main/");
    }
}
