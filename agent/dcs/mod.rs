//! Stores that Patroni keeps its truth in. One follower per cluster: read everything, watch, and when the watch breaks
//! read everything again.

pub mod etcd;
mod follow;

use crate::report::Report;
use pgsquire_core::effect::Effect;
use pgsquire_core::event::Event;
use tokio::sync::mpsc::{Receiver, Sender};
use tokio_util::sync::CancellationToken;

/// What a follower must know.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// Name of the cluster in our words.
    pub cluster: String,
    /// Where its keys are; see [`prefix`].
    pub prefix: String,
    /// The store.
    pub store: StoreConfig,
}

/// How to reach a store.
#[derive(Debug, Clone)]
pub enum StoreConfig {
    /// etcd, version 3 of its API.
    Etcd(etcd::EtcdConfig),
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

// STAND-INS until the branch `store` is merged: take its version of this file.

/// The prefix of our own keys of a cluster.
pub fn own_prefix(namespace: &str, scope: &str, group: Option<u32>) -> String {
    format!("/pgsquire{}", prefix(namespace, scope, group))
}

/// Follows nothing until `stop`.
pub async fn run_peers(_config: WorkerConfig, _events: Sender<Event>, stop: CancellationToken) {
    stop.cancelled().await;
}

/// Publishes nothing until `stop`.
pub async fn run_publisher(
    _config: WorkerConfig,
    mut orders: Receiver<Effect>,
    events: Sender<Event>,
    stop: CancellationToken,
) {
    Report::new(events, stop.clone()).refuse(&mut orders).await;
    stop.cancelled().await;
}

// End of the stand-ins.

/// Follows a cluster until `stop`, or until nobody listens.
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
            follow::run(config.cluster, store, orders, report, stop).await;
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
}
