//! A store like etcd: one revision for all keys, leases, a history that watches replay.

use pgsquire_core::patroni::{Keys, StoredValue};
use pgsquire_core::time::Time;
use std::collections::BTreeMap;
use std::time::Duration;

/// The changes of one revision.
#[derive(Debug, Clone)]
pub struct Change {
    /// It.
    pub revision: u64,
    /// Key and new value; none: deleted.
    pub changes: Vec<(String, Option<StoredValue>)>,
}

/// What a read gives.
#[derive(Debug, Clone)]
pub struct View {
    /// Store id.
    pub id: String,
    /// Consensus term.
    pub raft_term: u64,
    /// Revision.
    pub revision: u64,
    /// Keys.
    pub keys: Keys,
    /// Time the leader key has left.
    pub leader_ttl: Option<Duration>,
}

/// The store of one cluster.
#[derive(Debug, Clone)]
pub struct Store {
    /// Cluster id of the store.
    pub id: String,
    /// Newest revision.
    pub revision: u64,
    /// Nobody is answered.
    pub outage: bool,
    /// Watches below this must read again.
    pub compacted: u64,
    /// Below this revision not everything is known: the store began there, or was rebuilt.
    pub base: u64,
    /// Everything that ever happened under this id.
    pub history: Vec<Change>,
    keys: BTreeMap<String, (StoredValue, Option<usize>)>,
    leases: BTreeMap<usize, Time>,
    /// Leases that were ever given; no number is given twice.
    pub granted: usize,
    leaders: Vec<(u64, Option<String>)>,
    /// Consensus terms by the revision at which they began; each election raises it.
    terms: Vec<(u64, u64)>,
}

impl Store {
    /// An empty store.
    pub fn new(id: &str) -> Self {
        Store {
            id: id.into(),
            revision: 1,
            outage: false,
            compacted: 0,
            base: 1,
            history: Vec::new(),
            keys: BTreeMap::new(),
            leases: BTreeMap::new(),
            granted: 0,
            leaders: vec![(0, None)],
            terms: vec![(0, 2)],
        }
    }

    /// Writes a key; with a lease it goes when that ends.
    pub fn put(&mut self, key: &str, value: &str, lease: Option<usize>) {
        let stored = StoredValue { value: value.as_bytes().to_vec(), revision: self.revision + 1 };
        if key == "leader" {
            self.leaders.push((self.revision + 1, Some(value.into())));
        }
        self.keys.insert(key.into(), (stored.clone(), lease));
        self.commit(vec![(key.into(), Some(stored))]);
    }

    /// Deletes a key, if it is there.
    pub fn delete(&mut self, key: &str) {
        self.delete_all(&[key.to_string()]);
    }

    fn delete_all(&mut self, keys: &[String]) {
        let there: Vec<_> = keys.iter().filter(|key| self.keys.remove(*key).is_some()).collect();
        if there.is_empty() {
            return;
        }
        if there.iter().any(|key| *key == "leader") {
            self.leaders.push((self.revision + 1, None));
        }
        self.commit(there.into_iter().map(|key| (key.clone(), None)).collect());
    }

    fn commit(&mut self, changes: Vec<(String, Option<StoredValue>)>) {
        self.revision += 1;
        self.history.push(Change { revision: self.revision, changes });
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<String> {
        self.keys.get(key).map(|(stored, _)| String::from_utf8_lossy(&stored.value).into_owned())
    }

    /// Who holds the leader key.
    pub fn leader(&self) -> Option<String> {
        self.get("leader")
    }

    /// Who held the leader key as of a revision.
    pub fn leader_at(&self, revision: u64) -> Option<&str> {
        let at = self.leaders.iter().rev().find(|(from, _)| *from <= revision);
        at.and_then(|(_, name)| name.as_deref())
    }

    /// The store's members hold an election.
    pub fn elect(&mut self) {
        let term = self.term_at(self.revision) + 1;
        self.terms.push((self.revision, term));
    }

    fn term_at(&self, revision: u64) -> u64 {
        self.terms.iter().rev().find(|(from, _)| *from <= revision).map_or(2, |(_, term)| *term)
    }

    /// Renews the lease of a member.
    pub fn renew(&mut self, member: usize, until: Time) {
        self.leases.insert(member, until);
    }

    /// After an outage all leases live for their whole time again.
    pub fn renew_all(&mut self, until: Time) {
        self.leases.values_mut().for_each(|end| *end = until);
    }

    /// A lease under a number that was never given; it ends then, unless it is renewed.
    pub fn grant(&mut self, until: Time) -> usize {
        self.granted += 1;
        self.leases.insert(self.granted, until);
        self.granted
    }

    /// Whether a lease has not ended.
    pub fn has_lease(&self, lease: usize) -> bool {
        self.leases.contains_key(&lease)
    }

    /// The lease of a key.
    pub fn lease_of(&self, key: &str) -> Option<usize> {
        self.keys.get(key).and_then(|(_, lease)| *lease)
    }

    /// Ends a lease at once.
    pub fn revoke(&mut self, lease: usize) {
        self.leases.remove(&lease);
        let bound = |(_, l): &(StoredValue, Option<usize>)| *l == Some(lease);
        let keys: Vec<String> = self.keys.iter().filter(|(_, v)| bound(v)).map(|(k, _)| k.clone()).collect();
        self.delete_all(&keys);
    }

    /// Ends leases that are over. Returns whether anything changed.
    pub fn expire(&mut self, now: Time) -> bool {
        if self.outage {
            return false;
        }
        let over: Vec<usize> = self.leases.iter().filter(|(_, end)| **end <= now).map(|(m, _)| *m).collect();
        let before = self.revision;
        for member in over {
            self.leases.remove(&member);
            let keys: Vec<String> =
                self.keys.iter().filter(|(_, (_, l))| *l == Some(member)).map(|(k, _)| k.clone()).collect();
            self.delete_all(&keys);
        }
        self.revision != before
    }

    /// A linearizable read.
    pub fn read(&self, now: Time) -> View {
        let lease = self.keys.get("leader").and_then(|(_, lease)| lease.as_ref());
        let end = lease.and_then(|member| self.leases.get(member));
        View {
            id: self.id.clone(),
            raft_term: self.term_at(self.revision),
            revision: self.revision,
            keys: self.keys.iter().map(|(key, (stored, _))| (key.clone(), stored.clone())).collect(),
            leader_ttl: end.map(|end| end.since(now)),
        }
    }

    /// What a store member that is stuck at `revision` answers. It knows nothing of leases.
    pub fn stale_read(&self, revision: u64) -> View {
        let mut keys = Keys::new();
        for change in self.history.iter().take_while(|change| change.revision <= revision) {
            for (key, value) in &change.changes {
                match value {
                    Some(value) => keys.insert(key.clone(), value.clone()),
                    None => keys.remove(key),
                };
            }
        }
        View { id: self.id.clone(), raft_term: self.term_at(revision), revision, keys, leader_ttl: None }
    }

    /// The store as it comes back from a snapshot taken at `revision`.
    pub fn rebuilt(&self, revision: u64, id: &str, leases_until: Time) -> Store {
        let view = self.stale_read(revision);
        let mut store = Store::new(id);
        for (key, stored) in &view.keys {
            let owner = |name: &str| self.owner_of(name);
            let lease = match key.as_str() {
                "leader" => owner(&String::from_utf8_lossy(&stored.value)),
                _ => key.strip_prefix("members/").and_then(owner),
            };
            if let Some(member) = lease {
                store.leases.insert(member, leases_until);
            }
            store.keys.insert(key.clone(), (stored.clone(), lease));
        }
        let leader = store.leader();
        store.leaders.push((1, leader));
        let all = store.keys.iter().map(|(key, (stored, _))| (key.clone(), Some(stored.clone()))).collect();
        store.revision = revision;
        store.base = revision;
        store.history.push(Change { revision, changes: all });
        store
    }

    /// Members are named `<cluster><number>`, numbered from 1.
    fn owner_of(&self, name: &str) -> Option<usize> {
        let digits = name.trim_start_matches(|c: char| !c.is_ascii_digit());
        digits.parse::<usize>().ok().map(|n| n - 1)
    }
}
