//! How a host hears of a cluster without a store: each member is asked by itself, and now and then one of them who is
//! there. What they say becomes keys by the core's own rules.

use crate::world::{Thing, World};
use pgsquire_core::event::{Event, StoreRead};
use pgsquire_core::patroni::{Keys, read_topology};
use pgsquire_core::rest::Members;
use pgsquire_core::time::Time;
use serde_json::json;
use std::time::Duration;

/// From one question to a member to the next.
const PACE: Duration = Duration::from_millis(150);
/// From one question who is there to the next.
const LIST_PACE: Duration = Duration::from_millis(3333);
/// … after one that was not answered.
const LIST_AGAIN: Duration = Duration::from_secs(1);
/// An answer that takes longer is none, in milliseconds.
const DEADLINE: u64 = 1000;

/// What the shell of a host knows of a cluster's members.
#[derive(Debug, Clone)]
pub struct Polled {
    members: Members,
    told: Option<Keys>,
}

/// What happens to it.
#[derive(Debug, Clone)]
pub enum PollStep {
    /// A member is asked.
    Ask(usize),
    /// It answered, or did not: when it was asked, and what.
    Heard(usize, Time, Option<(u16, Vec<u8>)>),
    /// Somebody is asked who is there.
    List,
}

impl World {
    /// The agent of a host starts: its shell asks the members of clusters without a store.
    pub fn begin_polls(&mut self, h: usize) {
        let run = self.hosts[h].run;
        for f in 0..self.hosts[h].follows.len() {
            let c = self.hosts[h].follows[f].cluster;
            if !self.clusters[c].rest {
                continue;
            }
            let members = Members::new(&self.clusters[c].name, Duration::from_secs(10));
            self.hosts[h].follows[f].polled = Some(Polled { members, told: None });
            for m in 0..self.clusters[c].members.len() {
                let after = self.rng.millis(1, 150);
                self.later(after, Thing::Poll(h, run, f, PollStep::Ask(m)));
            }
            self.later(Duration::from_millis(20), Thing::Poll(h, run, f, PollStep::List));
        }
    }

    /// A step of it.
    pub fn poll_step(&mut self, h: usize, run: u64, f: usize, step: PollStep) {
        if self.hosts[h].run != run || self.hosts[h].agent.is_none() {
            return;
        }
        if self.hosts[h].frozen_until > self.now {
            // The shell is frozen as well; what was under way is lost.
            let again = match step {
                PollStep::Ask(m) | PollStep::Heard(m, ..) => PollStep::Ask(m),
                PollStep::List => PollStep::List,
            };
            return self.later(Duration::from_millis(200), Thing::Poll(h, run, f, again));
        }
        match step {
            PollStep::Ask(m) => self.poll(h, run, f, m),
            PollStep::Heard(m, started, answer) => self.heard(h, f, m, started, answer),
            PollStep::List => self.list(h, run, f),
        }
    }

    fn poll(&mut self, h: usize, run: u64, f: usize, m: usize) {
        let (started, lag) = (self.host_time(h), self.hosts[h].follows[f].lag);
        let answer = self.asked(h, f, m).filter(|_| lag < DEADLINE || !self.rng.one_in(3));
        let delay = match answer {
            Some(_) => self.rng.millis(1, lag.min(DEADLINE - 1)),
            None => Duration::from_millis(DEADLINE),
        };
        self.later(delay, Thing::Poll(h, run, f, PollStep::Heard(m, started, answer)));
        self.later(delay.max(PACE), Thing::Poll(h, run, f, PollStep::Ask(m)));
    }

    /// What a member of the cluster that a host is led to answers.
    fn asked(&self, h: usize, f: usize, m: usize) -> Option<(u16, Vec<u8>)> {
        let follow = &self.hosts[h].follows[f];
        let cluster = &self.clusters[follow.swapped.unwrap_or(follow.cluster)];
        let reached = !follow.cut && !self.hosts[h].trouble.rest_cut;
        self.rest_answer(h, &cluster.members.get(m).filter(|_| reached)?.ip)
    }

    fn heard(&mut self, h: usize, f: usize, m: usize, started: Time, answer: Option<(u16, Vec<u8>)>) {
        let now = self.host_time(h);
        let base = format!("http://{}:8008", self.clusters[self.hosts[h].follows[f].cluster].members[m].ip);
        let Some(polled) = &mut self.hosts[h].follows[f].polled else { return };
        match answer {
            Some((code, body)) => {
                // Why it is refused is among the problems.
                let _ = polled.members.hear(&base, code, &body, started, now);
            }
            None => polled.members.miss(&base, "silent for 1 s".into()),
        }
        self.tell_polled(h, f);
    }

    /// What changed is told; who is silent is told once.
    fn tell_polled(&mut self, h: usize, f: usize) {
        let (now, run, mutants) =
            (self.host_time(h), self.hosts[h].run, self.hosts[h].config.mutants.clone());
        let follow = &mut self.hosts[h].follows[f];
        let Some(polled) = &mut follow.polled else { return };
        let cluster = self.clusters[follow.cluster].name.clone();
        let event = match polled.members.outline(&mutants, now) {
            Ok(keys) if polled.told.as_ref() != Some(&keys) => {
                polled.told = Some(keys);
                polled.members.read(&mutants, now).ok().map(|read| Event::StoreRead { cluster, read })
            }
            Err(why) if polled.told.take().is_some() => Some(Event::StoreFailed { cluster, why }),
            _ => None,
        };
        if let Some(event) = event {
            self.tell(h, run, vec![event]);
        }
    }

    /// A read that the agent ordered: what is known by now.
    pub fn read_polled(&mut self, h: usize, f: usize) -> Option<Result<StoreRead, String>> {
        let (now, mutants) = (self.host_time(h), self.hosts[h].config.mutants.clone());
        Some(self.hosts[h].follows[f].polled.as_mut()?.members.read(&mutants, now))
    }

    fn list(&mut self, h: usize, run: u64, f: usize) {
        let c = self.hosts[h].follows[f].cluster;
        let m = self.rng.below(self.clusters[c].members.len());
        let page = self.page(c, m).filter(|_| self.asked(h, f, m).is_some());
        let follow = &mut self.hosts[h].follows[f];
        let Some(polled) = &mut follow.polled else { return };
        let read = match page {
            Some((cluster, config)) => polled.members.list(&cluster, &config),
            None => Err("silent for 1 s".to_string()),
        };
        let again = match read {
            Ok(()) => LIST_PACE,
            Err(why) => {
                polled.members.not_listed(why);
                LIST_AGAIN
            }
        };
        self.later(again, Thing::Poll(h, run, f, PollStep::List));
        self.tell_polled(h, f);
    }

    /// What a member answers to `GET /cluster` and `GET /config`; none: its store does not answer it.
    fn page(&self, c: usize, m: usize) -> Option<(Vec<u8>, Vec<u8>)> {
        let cluster = &self.clusters[c];
        if cluster.store.outage || cluster.members[m].store_cut {
            return None;
        }
        let topology = read_topology(&cluster.store.read(self.now).keys);
        let leader = topology.leader.as_ref().map(|leader| &leader.name);
        let line = |member: &pgsquire_core::topology::Member| {
            let role = if leader == Some(&member.name) { "leader" } else { "replica" };
            json!({
                "name": member.name, "role": role, "state": member.state, "api_url": member.api_url,
                "host": member.endpoint.as_ref().map(|e| e.host.clone()),
                "port": member.endpoint.as_ref().map(|e| e.port),
                "timeline": member.timeline.map(|t| t.0),
                "tags": member.tags.iter().map(|(tag, value)| (tag.clone(), value == "true")).collect::<std::collections::BTreeMap<_, _>>(),
            })
        };
        let members: Vec<_> = topology.members.values().map(line).collect();
        let page = json!({ "members": members, "scope": cluster.name }).to_string();
        Some((page.into_bytes(), cluster.store.get("config")?.into_bytes()))
    }
}
