//! Watches for servers before 3.6: each one reports once, so it is set again before the nodes are read again.

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use std::collections::BTreeSet;
use std::future::{Future, pending};
use std::pin::Pin;
use zookeeper_client::{Client, Error, OneshotWatcher, WatchedEvent};

/// What a watch is on: a node itself, there or not, or the list of its children.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum On {
    Node,
    Children,
}

type Place = (String, On);
type Report = Pin<Box<dyn Future<Output = (Place, WatchedEvent)> + Send>>;

/// Watches on a node and on all below it.
pub(super) struct OneShots {
    set: BTreeSet<Place>,
    reports: FuturesUnordered<Report>,
}

impl OneShots {
    pub(super) fn new() -> Self {
        OneShots { set: BTreeSet::new(), reports: FuturesUnordered::new() }
    }

    /// Sets those that are missing, from `path` on down. May be dropped and called again.
    pub(super) async fn set(&mut self, client: &Client, path: &str) -> Result<(), (String, Error)> {
        let mut left = vec![path.to_owned()];
        while let Some(path) = left.pop() {
            let children = self.set_at(client, &path).await.map_err(|e| (path.clone(), e))?;
            left.extend(children.into_iter().map(|child| format!("{path}/{child}")));
        }
        Ok(())
    }

    /// Sets those of one node and returns its children.
    async fn set_at(&mut self, client: &Client, path: &str) -> Result<Vec<String>, Error> {
        let (node, children) = ((path.to_owned(), On::Node), (path.to_owned(), On::Children));
        let stat = if self.set.contains(&node) {
            client.check_stat(path).await?
        } else {
            let (stat, watcher) = client.check_and_watch_stat(path).await?;
            self.add(node, watcher);
            stat
        };
        // Ephemeral nodes have no children.
        if stat.is_none_or(|stat| stat.ephemeral_owner != 0) {
            return Ok(Vec::new());
        }
        let listed = if self.set.contains(&children) {
            client.list_children(path).await
        } else {
            match client.list_and_watch_children(path).await {
                Ok((list, watcher)) => {
                    self.add(children, watcher);
                    Ok(list)
                }
                Err(e) => Err(e),
            }
        };
        match listed {
            // It vanished: the watch on the node says so.
            Err(Error::NoNode) => Ok(Vec::new()),
            listed => listed,
        }
    }

    fn add(&mut self, place: Place, watcher: OneshotWatcher) {
        self.set.insert(place.clone());
        self.reports.push(Box::pin(async move { (place, watcher.changed().await) }));
    }

    /// The next report. May be dropped and called again without a loss.
    pub(super) async fn next(&mut self) -> WatchedEvent {
        match self.reports.next().await {
            Some((place, event)) => {
                self.set.remove(&place);
                event
            }
            None => pending().await,
        }
    }
}
