//! A watch on one server: what it reports is where to look, so all nodes are read again and compared.

use super::LONGEST_READ;
use super::client::at;
use super::oneshot::OneShots;
use super::tree::{self, Tree};
use crate::dcs::failover::Failure;
use crate::dcs::follow::{Watch, WatchEnd};
use futures_util::FutureExt;
use pgsquire_core::event::{StoreChange, StoreRead};
use pgsquire_core::patroni::{Keys, StoredValue};
use std::collections::BTreeSet;
use tokio::time::timeout;
use zookeeper_client::{
    AddWatchMode, Client, Error, EventType, PersistentWatcher, SessionState, StateWatcher, WatchedEvent,
};

/// A running watch.
pub(in crate::dcs) struct ZooKeeperWatch {
    client: Client,
    state: StateWatcher,
    events: Events,
    name: String,
    prefix: String,
    /// The identity and the keys as they were told.
    store: String,
    known: Keys,
    /// Something was reported since they were read.
    stale: bool,
    /// Keys that were made or written.
    touched: BTreeSet<String>,
}

enum Events {
    Recursive(PersistentWatcher),
    OneShot(OneShots),
}

impl Events {
    /// May be dropped and called again without a loss.
    async fn next(&mut self) -> WatchedEvent {
        match self {
            Events::Recursive(watcher) => watcher.changed().await,
            Events::OneShot(watches) => watches.next().await,
        }
    }
}

impl ZooKeeperWatch {
    /// Begins after a read: what happened since is found by the first comparison.
    pub(super) async fn begin(
        client: Client,
        prefix: &str,
        name: &str,
        after: &StoreRead,
        one_shot: bool,
    ) -> Result<Self, Failure> {
        let path = tree::top(prefix);
        let state = client.state_watcher();
        let recursive =
            if one_shot { None } else { Some(client.watch(path, AddWatchMode::PersistentRecursive).await) };
        let events = match recursive {
            Some(Ok(watcher)) => Events::Recursive(watcher),
            None | Some(Err(Error::Unimplemented)) => Events::OneShot(OneShots::new()),
            Some(Err(e)) => return Err(at(path, &e)),
        };
        if client.state() != SessionState::SyncConnected {
            return Err(Failure::sure("the connection is lost"));
        }
        let (name, prefix, store) = (name.to_owned(), prefix.to_owned(), after.store.clone());
        let (known, touched) = (after.keys.clone(), BTreeSet::new());
        Ok(ZooKeeperWatch { client, state, events, name, prefix, store, known, stale: true, touched })
    }

    fn broke(&self, why: &str, endpoint_failed: bool) -> WatchEnd {
        let why = format!("the watch of {} at ZooKeeper server {} broke: {why}", self.prefix, self.name);
        WatchEnd { why, endpoint_failed }
    }

    /// Reads all nodes. Watches that report once are set again first: what happens after that is reported again.
    async fn read(&mut self) -> Result<Tree, Failure> {
        if let Events::OneShot(watches) = &mut self.events {
            let set = watches.set(&self.client, tree::top(&self.prefix)).await;
            set.map_err(|(path, e)| at(&path, &e))?;
        }
        tree::read(&self.client, &self.prefix).await
    }

    fn note(&mut self, event: &WatchedEvent) -> Result<(), WatchEnd> {
        if event.event_type == EventType::Session {
            return self.check(event.session_state);
        }
        if let Some(key) = event.path.strip_prefix(&self.prefix)
            && event.event_type != EventType::NodeDeleted
        {
            self.touched.insert(key.to_owned());
        }
        self.stale = true;
        Ok(())
    }

    /// A connection that is lost is the end: the client would mend it in time, but with files that it read long ago, and
    /// while it is lost nothing is reported. The session behind it is of no use to anybody else.
    fn check(&self, state: SessionState) -> Result<(), WatchEnd> {
        match state {
            SessionState::SyncConnected => Ok(()),
            SessionState::Disconnected => Err(self.broke("the connection is lost", true)),
            state => Err(self.broke(&format!("its session is {state}"), true)),
        }
    }
}

impl Watch for ZooKeeperWatch {
    async fn next(&mut self) -> Result<Vec<StoreChange>, WatchEnd> {
        loop {
            if self.stale {
                let read = timeout(LONGEST_READ, self.read()).await;
                let tree = match read.unwrap_or_else(|_| Err(Failure::silent(LONGEST_READ))) {
                    Ok(tree) => tree,
                    Err(failure) => return Err(self.broke(&failure.why, true)),
                };
                self.stale = false;
                let mut touched = std::mem::take(&mut self.touched);
                touched.retain(|key| !tree.folders.contains(key));
                if tree.store != self.store {
                    let why = format!("the store is {} now, not {}", tree.store, self.store);
                    return Err(self.broke(&why, false));
                }
                let changes = changes(&self.known, &tree.keys, &touched);
                self.known = tree.keys;
                if !changes.is_empty() {
                    let (store, revision) = (self.store.clone(), tree.revision);
                    return Ok(vec![StoreChange { store, revision, changes }]);
                }
            }
            let event = tokio::select! {
                biased;
                state = self.state.changed() => {
                    self.check(state)?;
                    continue;
                }
                event = self.events.next() => event,
            };
            self.note(&event)?;
            // What one transaction changed is reported in one go.
            while let Some(event) = self.events.next().now_or_never() {
                self.note(&event)?;
            }
        }
    }
}

/// What leads from the known keys to those that are there. A key that was made and is gone again is a delete, although it
/// is not known: a read beside the watch may have told of it.
fn changes(known: &Keys, now: &Keys, touched: &BTreeSet<String>) -> Vec<(String, Option<StoredValue>)> {
    let gone: BTreeSet<&String> = known.keys().chain(touched).filter(|key| !now.contains_key(*key)).collect();
    let deletes = gone.into_iter().map(|key| (key.clone(), None));
    let puts = now.iter().filter(|(key, stored)| known.get(*key) != Some(stored));
    let mut puts: Vec<_> = puts.map(|(key, stored)| (key.clone(), Some(stored.clone()))).collect();
    puts.sort_by_key(|(_, stored)| stored.as_ref().map(|stored| stored.revision));
    deletes.chain(puts).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(list: &[(&str, u64)]) -> Keys {
        let stored = |revision| StoredValue { value: b"v".to_vec(), revision };
        list.iter().map(|(key, revision)| ((*key).to_owned(), stored(*revision))).collect()
    }

    fn between(known: &[(&str, u64)], now: &[(&str, u64)], touched: &[&str]) -> Vec<(String, Option<u64>)> {
        let touched = touched.iter().map(|key| (*key).to_owned()).collect();
        let changes = changes(&keys(known), &keys(now), &touched);
        changes.into_iter().map(|(key, stored)| (key, stored.map(|stored| stored.revision))).collect()
    }

    fn list(list: &[(&str, Option<u64>)]) -> Vec<(String, Option<u64>)> {
        list.iter().map(|(key, revision)| ((*key).to_owned(), *revision)).collect()
    }

    #[test]
    fn deletes_come_first_and_puts_in_the_order_they_were_made() {
        let known = [("leader", 5), ("members/a", 3), ("status", 4)];
        let now = [("leader", 9), ("members/b", 7), ("status", 4)];
        assert_eq!(
            between(&known, &now, &["members/a"]),
            list(&[("members/a", None), ("members/b", Some(7)), ("leader", Some(9))])
        );
    }

    #[test]
    fn nothing_changed() {
        assert_eq!(between(&[("leader", 5)], &[("leader", 5)], &["leader"]), []);
        assert_eq!(between(&[], &[], &[]), []);
    }

    #[test]
    fn a_key_that_came_and_went_is_a_delete() {
        assert_eq!(between(&[], &[], &["failover"]), list(&[("failover", None)]));
    }

    #[test]
    fn a_key_that_was_made_again_with_the_same_value_is_a_put() {
        assert_eq!(between(&[("leader", 5)], &[("leader", 8)], &[]), list(&[("leader", Some(8))]));
    }
}
