//! What a publisher asks of a store.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

/// Our own keys in a store. Every method asks one endpoint after the other; every error is a sentence about all of them.
pub(in crate::dcs) trait KeyStore: Send + Sync {
    /// What binds keys to the life of this run: a lease, a session.
    type Lease: Clone + PartialEq + Debug + Send + Sync;

    /// Grants a lease and says how long it lives.
    fn grant(&self, ttl: Duration) -> impl Future<Output = Result<(Self::Lease, Duration), String>> + Send;

    /// How long a lease of this time to live may live after its last renewal.
    fn longest(&self, ttl: Duration) -> Duration {
        ttl
    }

    /// Renews it for as long as it was granted.
    fn renew(&self, lease: &Self::Lease) -> impl Future<Output = Result<Kept, String>> + Send;

    /// Makes the change under the lease: all of it or nothing.
    fn change(
        &self,
        lease: &Self::Lease,
        change: &Change,
    ) -> impl Future<Output = Result<Done, WriteError>> + Send;

    /// Puts or deletes a key that has no lease.
    fn put(&self, key: &str, value: Option<&[u8]>) -> impl Future<Output = Result<(), String>> + Send;

    /// Ends a lease and its keys. One that is not there is ended.
    fn revoke(&self, lease: &Self::Lease) -> impl Future<Output = Result<(), String>> + Send;
}

/// A change of leased keys.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::dcs) struct Change {
    /// Keys and values to put, whoever holds the key now.
    pub(in crate::dcs) put: BTreeMap<String, Vec<u8>>,
    /// Keys to delete if they are bound to the lease.
    pub(in crate::dcs) delete: BTreeSet<String>,
}

impl Change {
    /// What leads to the wanted keys from those that are held; if that is unknown, from those that may be there.
    pub(super) fn between(
        held: Option<&BTreeMap<String, Vec<u8>>>,
        maybe: &BTreeSet<String>,
        wanted: &BTreeMap<String, Vec<u8>>,
    ) -> Change {
        let there = |key: &String, value: &Vec<u8>| held.is_some_and(|held| held.get(key) == Some(value));
        let put = wanted.iter().filter(|(key, value)| !there(key, value));
        Change {
            put: put.map(|(key, value)| (key.clone(), value.clone())).collect(),
            delete: maybe.iter().filter(|key| !wanted.contains_key(*key)).cloned().collect(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.put.is_empty() && self.delete.is_empty()
    }
}

/// Whether a lease lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::dcs) enum Kept {
    /// It was renewed.
    Yes,
    /// The store does not know it any more, nor its keys.
    Lost,
}

/// A change was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::dcs) struct Done {
    /// An endpoint that did not answer may make it a second time, later.
    pub(in crate::dcs) unsure: bool,
}

/// Why a change was not confirmed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::dcs) enum WriteError {
    /// The lease is gone: nothing was changed.
    LeaseLost,
    /// No endpoint confirmed it.
    Failed {
        /// A sentence.
        why: String,
        /// It may have been made, or may be made later.
        unsure: bool,
    },
}
