//! What we know of the other agents: the keys below our own prefix.

use super::records::{Peers, read_peers};
use crate::event::{StoreChange, StoreRead};
use crate::patroni::Keys;
use crate::time::Time;
use alloc::string::String;

/// The keys below our own prefix, and how new they are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PeersView {
    keys: Keys,
    /// Them, understood.
    pub peers: Peers,
    /// Identity of the store and its revision.
    version: Option<(String, u64)>,
    /// When the newest full read was begun.
    pub seen: Option<Time>,
    /// Why the last attempt to read failed; cleared by a success.
    pub failed: Option<String>,
}

impl PeersView {
    /// A full read came in. One that is older than what is known of the same store crossed it on its way.
    pub fn observe_read(&mut self, read: StoreRead) {
        self.failed = None;
        let known = self.version.as_ref().filter(|(store, _)| *store == read.store);
        if known.is_some_and(|(_, revision)| read.revision < *revision) {
            return;
        }
        self.version = Some((read.store, read.revision));
        self.seen = Some(self.seen.map_or(read.started, |seen| seen.max(read.started)));
        self.keys = read.keys;
        self.peers = read_peers(&self.keys);
    }

    /// The watch reported changes.
    pub fn observe_change(&mut self, change: StoreChange) {
        let Some((store, revision)) = &mut self.version else { return };
        if *store != change.store || change.revision <= *revision {
            return;
        }
        *revision = change.revision;
        for (key, value) in change.changes {
            match value {
                Some(value) => self.keys.insert(key, value),
                None => self.keys.remove(&key),
            };
        }
        self.peers = read_peers(&self.keys);
    }

    /// Whether a key has exactly this value.
    pub fn has(&self, key: &str, value: &[u8]) -> bool {
        self.keys.get(key).is_some_and(|stored| stored.value == value)
    }
}
