//! Our own keys: the publisher of a host with its lease, and how a host hears of the others' keys.

use crate::agent_host::Job;
use crate::dcs::Store;
use crate::workers::Next;
use crate::world::{Thing, World};
use pgsquire_core::event::{Event, Outcome, StoreChange, StoreRead};
use pgsquire_core::time::Time;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Lifetime of the lease of our own keys.
const TTL: Duration = Duration::from_secs(10);
/// It is renewed this often.
const RENEWED: Duration = Duration::from_secs(3);

/// One host's side of our own keys of a cluster.
#[derive(Debug, Clone, Default)]
pub struct PeersFollow {
    /// The watch is there.
    pub live: bool,
    sent: u64,
    last: Time,
    /// The lease of this run's keys.
    pub lease: Option<usize>,
    renews: bool,
    order: Option<u64>,
    wanted: BTreeMap<String, Vec<u8>>,
    put: BTreeSet<String>,
}

/// What happens to it.
#[derive(Debug, Clone)]
pub enum PeersStep {
    /// All keys are read, again and again.
    Read,
    /// The lease is renewed, again and again.
    Renew,
    /// A message of the watch arrives.
    Message(Box<Event>),
}

impl World {
    /// The agent of a host starts: its shell reads our own keys.
    pub fn begin_peers(&mut self, h: usize) {
        let run = self.hosts[h].run;
        for f in 0..self.hosts[h].follows.len() {
            self.hosts[h].follows[f].peers = PeersFollow::default();
            if self.clusters[self.hosts[h].follows[f].cluster].rest {
                continue;
            }
            let after = self.rng.millis(1, 30);
            self.later(after, Thing::Peers(h, run, f, PeersStep::Read));
        }
    }

    /// A step of a host's side.
    pub fn peers_step(&mut self, h: usize, run: u64, f: usize, step: PeersStep) {
        if self.hosts[h].run != run || self.hosts[h].agent.is_none() {
            return;
        }
        match step {
            PeersStep::Read => self.read_peers(h, run, f),
            PeersStep::Renew => self.renew_peers(h, run, f),
            PeersStep::Message(event) => {
                if self.hosts[h].follows[f].peers.live {
                    self.tell(h, run, vec![*event]);
                }
            }
        }
    }

    /// A host reaches the store in which its own keys are.
    fn reaches(&self, h: usize, f: usize) -> bool {
        let follow = &self.hosts[h].follows[f];
        let elsewhere = follow.cut || follow.stale.is_some() || follow.swapped.is_some();
        !elsewhere && !self.clusters[follow.cluster].store.outage
    }

    fn read_peers(&mut self, h: usize, run: u64, f: usize) {
        let c = self.hosts[h].follows[f].cluster;
        let (started, delay) = (self.host_time(h), self.rng.millis(1, 10));
        let cluster = self.clusters[c].name.clone();
        if !self.reaches(h, f) {
            self.hosts[h].follows[f].peers.live = false;
            let why = "the store did not answer within 2s".into();
            let again = self.rng.millis(500, 2000);
            self.later(again, Thing::Peers(h, run, f, PeersStep::Read));
            return self.later(delay, Thing::Tell(h, run, vec![Event::PeersFailed { cluster, why }]));
        }
        let view = self.clusters[c].own.read(self.now);
        let peers = &mut self.hosts[h].follows[f].peers;
        if !peers.live {
            peers.live = true;
            peers.sent = view.revision;
            peers.last = self.now + delay;
        }
        let read = StoreRead {
            store: view.id,
            raft_term: view.raft_term,
            revision: view.revision,
            keys: view.keys,
            leader_ttl: None,
            beside: Vec::new(),
            started,
        };
        self.later(delay, Thing::Tell(h, run, vec![Event::PeersRead { cluster, read }]));
        self.later(Duration::from_secs(5), Thing::Peers(h, run, f, PeersStep::Read));
    }

    /// Messages for all that watch our own keys of a cluster. Some are lost, and some overtake others.
    pub fn own_changed(&mut self, c: usize) {
        for h in 0..self.hosts.len() {
            for f in 0..self.hosts[h].follows.len() {
                let follow = &self.hosts[h].follows[f];
                if follow.cluster == c && follow.peers.live && self.reaches(h, f) {
                    self.send_own(h, f, c);
                }
            }
        }
    }

    fn send_own(&mut self, h: usize, f: usize, c: usize) {
        let (run, lag, sent) =
            (self.hosts[h].run, self.hosts[h].follows[f].lag, self.hosts[h].follows[f].peers.sent);
        let store = &self.clusters[c].own;
        let (id, cluster) = (store.id.clone(), self.clusters[c].name.clone());
        let mut news: Vec<_> =
            store.history.iter().rev().take_while(|change| change.revision > sent).cloned().collect();
        news.reverse();
        for change in news {
            let calm = self.setup.calm;
            let (lost, overtakes) = (!calm && self.rng.one_in(300), !calm && self.rng.one_in(100));
            let delay = self.rng.millis(1, lag);
            let peers = &mut self.hosts[h].follows[f].peers;
            peers.sent = change.revision;
            let mut at = self.now + delay;
            if !overtakes {
                at = at.max(peers.last);
                peers.last = at;
            }
            if lost {
                continue;
            }
            let message =
                StoreChange { store: id.clone(), revision: change.revision, changes: change.changes };
            let event = Event::PeersChanged { cluster: cluster.clone(), change: message };
            self.at(at, Thing::Peers(h, run, f, PeersStep::Message(Box::new(event))));
        }
    }

    fn grant(&mut self, h: usize, f: usize) -> usize {
        let c = self.hosts[h].follows[f].cluster;
        let until = self.now + TTL;
        let lease = self.clusters[c].own.grant(until);
        self.hosts[h].follows[f].peers.lease = Some(lease);
        self.at(until, Thing::OwnLease(c));
        self.say_lease(h, f, true);
        lease
    }

    fn say_lease(&mut self, h: usize, f: usize, kept: bool) {
        let (run, started) = (self.hosts[h].run, self.host_time(h));
        let cluster = self.clusters[self.hosts[h].follows[f].cluster].name.clone();
        let lease = kept.then_some((started, TTL));
        self.later(Duration::from_millis(2), Thing::Tell(h, run, vec![Event::LeaseKept { cluster, lease }]));
    }

    fn renew_peers(&mut self, h: usize, run: u64, f: usize) {
        self.later(RENEWED, Thing::Peers(h, run, f, PeersStep::Renew));
        if self.hosts[h].frozen_until > self.now || !self.reaches(h, f) {
            return;
        }
        let c = self.hosts[h].follows[f].cluster;
        let Some(lease) = self.hosts[h].follows[f].peers.lease else { return };
        self.clusters[c].own.expire(self.now);
        if self.clusters[c].own.has_lease(lease) {
            let until = self.now + TTL;
            self.clusters[c].own.renew(lease, until);
            self.at(until, Thing::OwnLease(c));
            return self.say_lease(h, f, true);
        }
        self.say_lease(h, f, false);
        let lease = self.grant(h, f);
        for (key, value) in self.hosts[h].follows[f].peers.wanted.clone() {
            self.put_own(h, c, &key, &value, Some(lease));
        }
        self.own_changed(c);
    }

    fn put_own(&mut self, h: usize, c: usize, key: &str, value: &[u8], lease: Option<usize>) {
        self.check_said(h, c, key, value);
        self.clusters[c].own.put(key, &String::from_utf8_lossy(value), lease);
    }

    /// The next part of `Publish`: the next key that differs is put, or deleted.
    pub fn publish_part(&mut self, job: &Job, cluster: &str, keys: &BTreeMap<String, Vec<u8>>) -> Next {
        let (h, id) = (job.host, job.id.0);
        let failed = |why: &str| Next::Done(Outcome::Failed { why: why.into() });
        let Some(f) = self.follow_of(h, cluster) else { return failed("no such cluster") };
        let c = self.hosts[h].follows[f].cluster;
        if !self.reaches(h, f) {
            return failed("the store did not answer within 2s");
        }
        let peers = &mut self.hosts[h].follows[f].peers;
        if peers.order.is_some_and(|order| order > id) {
            return failed("a newer order replaced it");
        }
        peers.order = Some(id);
        peers.wanted.clone_from(keys);
        if !peers.renews {
            peers.renews = true;
            let run = self.hosts[h].run;
            self.later(RENEWED, Thing::Peers(h, run, f, PeersStep::Renew));
        }
        self.clusters[c].own.expire(self.now);
        let lease = self.hosts[h].follows[f].peers.lease;
        let lease = match lease.filter(|lease| self.clusters[c].own.has_lease(*lease)) {
            Some(lease) => lease,
            None => self.grant(h, f),
        };
        let own = &self.clusters[c].own;
        let stands = |(key, value): &(&String, &Vec<u8>)| {
            own.lease_of(key) == Some(lease)
                && own.get(key).is_some_and(|there| there.as_bytes() == value.as_slice())
        };
        let differs = keys.iter().filter(|pair| !stands(pair)).map(|(k, v)| (k.clone(), v.clone())).next();
        if let Some((key, value)) = differs {
            self.put_own(h, c, &key, &value, Some(lease));
            self.hosts[h].follows[f].peers.put.insert(key);
            self.own_changed(c);
            return Next::Part;
        }
        let put = &self.hosts[h].follows[f].peers.put;
        let Some(gone) = put.iter().find(|key| !keys.contains_key(*key)).cloned() else {
            return Next::Done(Outcome::Done);
        };
        self.hosts[h].follows[f].peers.put.remove(&gone);
        // Somebody else's by now?
        if self.clusters[c].own.lease_of(&gone) == Some(lease) {
            self.clusters[c].own.delete(&gone);
            self.own_changed(c);
        }
        Next::Part
    }

    /// A key of ours that has no lease.
    pub fn put_key(&mut self, job: &Job, cluster: &str, key: &str, value: Option<&Vec<u8>>) -> Next {
        let failed = |why: &str| Next::Done(Outcome::Failed { why: why.into() });
        let Some(f) = self.follow_of(job.host, cluster) else { return failed("no such cluster") };
        if !self.reaches(job.host, f) {
            return failed("the store did not answer within 2s");
        }
        let c = self.hosts[job.host].follows[f].cluster;
        match value {
            Some(value) => self.put_own(job.host, c, key, value, None),
            None => self.clusters[c].own.delete(key),
        }
        self.own_changed(c);
        Next::Done(Outcome::Done)
    }

    fn follow_of(&self, h: usize, cluster: &str) -> Option<usize> {
        self.hosts[h].follows.iter().position(|f| self.clusters[f.cluster].name == cluster)
    }

    /// The agent of a host was stopped, not killed: its lease ends with it.
    pub fn revoke_leases(&mut self, h: usize) {
        for f in 0..self.hosts[h].follows.len() {
            let lease = self.hosts[h].follows[f].peers.lease.take();
            if let Some(lease) = lease.filter(|_| self.reaches(h, f)) {
                let c = self.hosts[h].follows[f].cluster;
                self.clusters[c].own.revoke(lease);
                self.own_changed(c);
            }
        }
    }

    /// A store that is rebuilt has none of our keys.
    pub fn rebuild_own(&mut self, c: usize, id: &str) {
        let granted = self.clusters[c].own.granted;
        let mut own = Store::new(&format!("own of {id}"));
        own.granted = granted;
        self.clusters[c].own = own;
    }

    /// A lease of our own keys may be over.
    pub fn own_lease(&mut self, c: usize) {
        let now = self.now;
        let outage = self.clusters[c].store.outage;
        if !outage && self.clusters[c].own.expire(now) {
            self.say(|_| "store: a lease of our own keys ended".into());
            self.own_changed(c);
        }
    }
}
