//! How a host hears of a store: reads, and a watch whose messages are late, or lost with the watch itself.

use crate::dcs::View;
use crate::peers::PeersFollow;
use crate::polled::Polled;
use crate::world::{Thing, World};
use pgsquire_core::event::{Event, StoreChange, StoreRead};
use pgsquire_core::time::Time;
use std::collections::BTreeMap;
use std::time::Duration;

/// A store that a host follows.
#[derive(Debug, Clone)]
pub struct Follow {
    /// Cluster.
    pub cluster: usize,
    /// The host cannot reach the store.
    pub cut: bool,
    /// The host is served by a store member that is stuck at this revision.
    pub stale: Option<u64>,
    /// The host is served by the store of another cluster.
    pub swapped: Option<usize>,
    /// Messages of the watch take up to this many milliseconds.
    pub lag: u64,
    live: bool,
    retrying: bool,
    watch: u64,
    sent: u64,
    last: Time,
    /// Our own keys of this cluster.
    pub peers: PeersFollow,
    /// The members, where they are asked instead of the store.
    pub polled: Option<Polled>,
}

impl Follow {
    /// Follows a cluster.
    pub fn new(cluster: usize) -> Self {
        Follow {
            cluster,
            cut: false,
            stale: None,
            swapped: None,
            lag: 20,
            live: false,
            retrying: false,
            watch: 0,
            sent: 0,
            last: Time::ZERO,
            peers: PeersFollow::default(),
            polled: None,
        }
    }

    /// The watch is gone, and what it had under way.
    pub fn stop(&mut self) {
        self.live = false;
        self.retrying = false;
        self.watch += 1;
    }
}

impl World {
    /// Messages for all that watch the store of a cluster.
    pub fn store_changed(&mut self, c: usize) {
        let now = self.now;
        let cluster = &mut self.clusters[c];
        let holder = cluster.store.leader();
        if holder != cluster.holder {
            let before = std::mem::replace(&mut cluster.holder, holder);
            cluster.lost.extend(before.map(|name| (name, now)));
            cluster.noticed = (now, BTreeMap::new());
            if cluster.holder.is_none() {
                self.wake_patronis(c);
            }
        }
        for h in 0..self.hosts.len() {
            for f in 0..self.hosts[h].follows.len() {
                self.send(h, f, c);
            }
        }
    }

    fn send(&mut self, h: usize, f: usize, c: usize) {
        let follow = &self.hosts[h].follows[f];
        let from = follow.swapped.unwrap_or(follow.cluster);
        let deaf = !follow.live || follow.cut || follow.stale.is_some();
        if from != c || deaf || self.clusters[c].store.outage {
            return;
        }
        let (sent, lag, watch, run) = (follow.sent, follow.lag, follow.watch, self.hosts[h].run);
        let store = &self.clusters[c].store;
        if store.compacted > sent {
            return self.break_watch(h, f, "the watch was behind a compaction");
        }
        let (id, name) = (store.id.clone(), self.clusters[follow.cluster].name.clone());
        let news = store.history.iter().rev().take_while(|change| change.revision > sent);
        let mut news: Vec<_> = news.cloned().collect();
        news.reverse();
        for change in news {
            let delay = self.rng.millis(1, lag);
            let at = (self.now + delay).max(self.hosts[h].follows[f].last);
            self.hosts[h].follows[f].last = at;
            self.hosts[h].follows[f].sent = change.revision;
            let message =
                StoreChange { store: id.clone(), revision: change.revision, changes: change.changes };
            let event = Event::StoreChanged { cluster: name.clone(), change: message };
            self.at(at, Thing::Watch(h, run, f, watch, vec![event]));
        }
    }

    /// Everything that the watches of a host were owed comes.
    pub fn catch_up(&mut self, h: usize) {
        for f in 0..self.hosts[h].follows.len() {
            let follow = &self.hosts[h].follows[f];
            self.send(h, f, follow.swapped.unwrap_or(follow.cluster));
        }
    }

    /// A watch breaks: the agent hears of it, and the shell reads again.
    pub fn break_watch(&mut self, h: usize, f: usize, why: &str) {
        let run = self.hosts[h].run;
        let follow = &mut self.hosts[h].follows[f];
        if !follow.live {
            return;
        }
        follow.stop();
        follow.peers.live = false;
        let cluster = self.clusters[follow.cluster].name.clone();
        let event = Event::StoreFailed { cluster, why: why.into() };
        self.later(Duration::from_millis(1), Thing::Tell(h, run, vec![event]));
        self.retry(h, f, 2, 500);
    }

    /// The shell will read by itself, if there is no such plan yet.
    fn retry(&mut self, h: usize, f: usize, from: u64, to: u64) {
        let follow = &mut self.hosts[h].follows[f];
        if !follow.live && !follow.retrying {
            follow.retrying = true;
            let (again, run) = (self.rng.millis(from, to), self.hosts[h].run);
            self.later(again, Thing::Reread(h, run, f));
        }
    }

    /// A message of a watch arrives.
    pub fn watch_message(&mut self, h: usize, run: u64, f: usize, watch: u64, events: Vec<Event>) {
        let follow = &self.hosts[h].follows[f];
        if follow.live && follow.watch == watch {
            self.tell(h, run, events);
        }
    }

    /// The shell reads by itself until it succeeds.
    pub fn reread(&mut self, h: usize, run: u64, f: usize) {
        if self.hosts[h].run != run || self.hosts[h].follows[f].live {
            return;
        }
        self.hosts[h].follows[f].retrying = false;
        let started = self.host_time(h);
        let delay = self.rng.millis(1, 10);
        match self.read_for(h, f, started, delay) {
            Ok(event) => self.later(delay, Thing::Tell(h, run, vec![event])),
            Err(why) => {
                let cluster = self.clusters[self.hosts[h].follows[f].cluster].name.clone();
                self.later(delay, Thing::Tell(h, run, vec![Event::StoreFailed { cluster, why }]));
            }
        }
    }

    /// A read for a host as it is served now; its answer is under way for `delay`. The watch goes on from there.
    pub fn read_for(&mut self, h: usize, f: usize, started: Time, delay: Duration) -> Result<Event, String> {
        let follow = &self.hosts[h].follows[f];
        let cluster = &self.clusters[follow.swapped.unwrap_or(follow.cluster)];
        if follow.cut || cluster.store.outage {
            self.retry(h, f, 500, 3000);
            return Err("the store did not answer within 2s".into());
        }
        let view = match follow.stale {
            Some(revision) => cluster.store.stale_read(revision),
            None => cluster.store.read(self.now),
        };
        let name = self.clusters[follow.cluster].name.clone();
        let follow = &mut self.hosts[h].follows[f];
        if !follow.live {
            follow.live = true;
            follow.watch += 1;
            follow.sent = view.revision;
            follow.last = self.now + delay;
        }
        let tells_leases = self.clusters[self.hosts[h].follows[f].cluster].tells_leases;
        let leader_ttl = view.leader_ttl.filter(|_| tells_leases);
        Ok(told(name, View { leader_ttl, ..view }, started))
    }
}

fn told(cluster: String, view: View, started: Time) -> Event {
    let View { id, raft_term, revision, keys, leader_ttl } = view;
    let read = StoreRead { store: id, raft_term, revision, keys, leader_ttl, beside: Vec::new(), started };
    Event::StoreRead { cluster, read }
}
