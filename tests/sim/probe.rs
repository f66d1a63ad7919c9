//! The connection that each host keeps to the server of the leader.

use crate::postgres::Run;
use crate::world::{Thing, World};
use pgsquire_core::event::{Event, ServerWord};
use pgsquire_core::topology::Endpoint;
use std::time::Duration;

/// Pause between probes.
const PAUSE: Duration = Duration::from_millis(500);

/// The server that a host watches for one cluster.
#[derive(Debug, Clone, Default)]
pub struct Watched {
    endpoint: Option<Endpoint>,
    generation: u64,
    /// What the agent was told last: it is up.
    told: Option<bool>,
}

impl World {
    /// The agent orders a server to be watched.
    pub fn watch_server(&mut self, h: usize, cluster: &str, endpoint: Option<&Endpoint>) {
        let run = self.hosts[h].run;
        let watched = self.hosts[h].watched.entry(cluster.into()).or_default();
        watched.generation += 1;
        watched.endpoint = endpoint.cloned();
        watched.told = None;
        let generation = watched.generation;
        if endpoint.is_some() {
            let first = self.rng.millis(1, 10);
            self.later(first, Thing::Probe(h, run, cluster.into(), generation, true));
        }
    }

    /// The connection says something, if that is news. `goes_on`: it is the one that is repeated.
    pub fn probe(&mut self, h: usize, run: u64, cluster: &str, generation: u64, goes_on: bool) {
        let Some(watched) = self.hosts[h].watched.get(cluster) else { return };
        if self.hosts[h].run != run || watched.generation != generation {
            return;
        }
        let Some(endpoint) = watched.endpoint.clone() else { return };
        let told = watched.told;
        let up = self.member_at(&endpoint).is_some_and(|at| self.member(at).pg.accepts());
        if goes_on {
            self.later(PAUSE, Thing::Probe(h, run, cluster.into(), generation, true));
        }
        if told == Some(up) {
            return;
        }
        if let Some(watched) = self.hosts[h].watched.get_mut(cluster) {
            watched.told = Some(up);
        }
        let word = match up {
            true => ServerWord::Up,
            false => ServerWord::Lost { why: "connection refused".into() },
        };
        let event = Event::ServerSeen { cluster: cluster.into(), endpoint, word, at: self.host_time(h) };
        self.tell(h, run, vec![event]);
    }

    /// A server went into another state: a reset, or a new connection that is made, is seen soon. A machine that dies says
    /// nothing, and is found out by the next probe.
    pub fn server_turned(&mut self, c: usize, m: usize) {
        let member = &self.clusters[c].members[m];
        if !matches!(member.pg.run, Run::Down | Run::Stopping) {
            return;
        }
        let endpoint = Endpoint { host: member.host.clone(), port: member.port };
        for h in 0..self.hosts.len() {
            let watching =
                self.hosts[h].watched.iter().filter(|(_, w)| w.endpoint.as_ref() == Some(&endpoint));
            let list: Vec<(String, u64)> = watching.map(|(c, w)| (c.clone(), w.generation)).collect();
            for (cluster, generation) in list {
                let (run, after) = (self.hosts[h].run, self.rng.millis(1, 20));
                self.later(after, Thing::Probe(h, run, cluster, generation, false));
            }
        }
    }
}
