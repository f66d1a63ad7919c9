//! What must hold of switches: S3 of commits, S7 of pauses, and of what agents tell each other.

use crate::invariants::MAX_FACT_AGE;
use crate::pgbouncer::PgBouncer;
use crate::world::World;
use pgsquire_core::config::{Fence, Mode};
use pgsquire_core::switch::records::{POOLERS, PoolerWord, REGISTRY, Switch};
use pgsquire_core::time::Time;
use std::time::Duration;

/// What PgBouncer, the guard and a worker that fails may need on top of a deadline.
const SLACK: Duration = Duration::from_secs(9);
/// A pooler is asked by a fence when it was in the registry for so long.
const REGISTERED: Duration = Duration::from_secs(10);
/// A look at the console, and the publication of what it showed.
const LOOKED: Duration = Duration::from_secs(4);

impl World {
    /// A commit is acknowledged: under a strict fence there is none on the old side after the first on the new (S3).
    pub fn commit(&mut self, h: usize, c: usize, m: usize) {
        let now = self.now;
        let timeline = self.clusters[c].members[m].pg.timeline;
        let cluster = &mut self.clusters[c];
        cluster.commits.entry(timeline).or_insert(now);
        let newer = cluster.commits.range(timeline + 1..).map(|(t, at)| (*t, *at)).next();
        let Some((newer, first)) = newer else { return };
        let host = &self.hosts[h];
        let registered = host.registered.get(&cluster.name);
        let asked = registered.is_some_and(|at| *at + REGISTERED < first);
        let fenced = self.setup.fence == Fence::Strict && asked && host.config.mode == Mode::Enforce;
        if fenced && !cluster.by_hand && cluster.rebuilt.is_none() {
            let text = format!(
                "{}: a commit on timeline {timeline} {:?} after the first on {newer}",
                host.name,
                now.since(first)
            );
            self.broken("S3", text);
        }
    }

    /// Looked at now and then: no pause of ours outlives its time (S7).
    pub fn check_pause(&mut self, h: usize, p: usize) {
        let now = self.now;
        let host = &mut self.hosts[h];
        let switch = &host.config.switch;
        let longest = switch.hold_timeout + switch.failover_hold + Duration::from_secs(1) + SLACK;
        let pooler = &mut host.poolers[p];
        if pooler.console_dead {
            // Nobody can end it; the time does not count.
            pooler.pauses.ours = pooler.pauses.ours.map(|_| now);
        }
        let Some(since) = pooler.pauses.ours else { return };
        if now.since(since) > longest {
            let text = format!("{}: {} is paused by us for {:?}", host.name, pooler.name, now.since(since));
            self.broken("S7", text);
        }
    }

    /// Pools that wait may be led to the member that holds the leader key, before it is promoted.
    pub fn is_promised(&self, h: usize, p: usize, at: (usize, usize)) -> bool {
        let (cluster, member) = (&self.clusters[at.0], self.member(at));
        let pooler = &self.hosts[h].poolers[p];
        let lost = cluster.lost.get(&member.name);
        let leads = cluster.holder.as_ref() == Some(&member.name)
            || lost.is_some_and(|at| self.now.since(*at) <= MAX_FACT_AGE);
        let waits = pooler.pauses.ours.is_some() || pooler.paused_all || !pooler.paused.is_empty();
        // That somebody else ended the pause is seen a look later.
        let broken = pooler.pauses.broken;
        let waited = broken > Time::ZERO && self.now.since(broken) < LOOKED;
        (waits || waited) && leads
    }

    /// While clients are held, the load balancer is not told to cut them.
    pub fn judge_held(&self, h: usize) -> Result<(), (&'static str, String)> {
        let host = &self.hosts[h];
        let Some(status) = &host.status else { return Ok(()) };
        if !self.setup.calm || host.frozen_until > self.now {
            return Ok(());
        }
        let now = self.now + host.clock;
        for (pooler, status) in host.poolers.iter().zip(&status.poolers) {
            let held = pooler.pauses.ours.is_some_and(|at| self.now.since(at) > Duration::from_millis(200));
            let until = host.state.pauses.get(&pooler.name).map_or(Time::ZERO, |pause| pause.until);
            let clear = pooler.up && !pooler.console_dead && self.now.since(host.disturbed) > LOOKED;
            if held && clear && now < until && !status.pool.is_up(now) {
                let text = format!("{} holds its clients, and says {}", pooler.name, status.pool.reason);
                return Err(("H2", text));
            }
        }
        Ok(())
    }

    /// Looked at whenever we pause something: somebody asked for it, or the server is not well.
    pub fn check_paused(&mut self, h: usize, p: usize) {
        if !self.setup.calm {
            return;
        }
        let recent = Duration::from_secs(5);
        let config = self.hosts[h].config.pooler(&self.hosts[h].poolers[p].name);
        let names = config.into_iter().flat_map(|p| p.routes.values()).map(|route| route.cluster.clone());
        let names: Vec<String> = names.collect();
        let asked = self.clusters.iter().filter(|c| names.contains(&c.name)).any(|cluster| {
            let keys = cluster.own.history.iter().rev().take(200).flat_map(|change| &change.changes);
            let told = keys.into_iter().any(|(key, _)| key == "switch" || key == "fence");
            let ill = cluster.members.iter().any(|member| {
                !member.pg.accepts()
                    || self.now.since(member.pg.since) < recent
                    || member.patroni.state.is_some()
            });
            told || ill || cluster.old_patroni
        });
        if !asked {
            let text =
                format!("{}: clients wait although nobody stops and nobody is ill", self.hosts[h].name);
            self.broken("H3", text);
        }
    }

    /// Looked at whenever a host says something in the store.
    pub fn check_said(&mut self, h: usize, c: usize, key: &str, value: &[u8]) {
        self.say(|w| format!("{}: {key} = {}", w.hosts[h].name, String::from_utf8_lossy(value)));
        if key.starts_with(REGISTRY) {
            let (name, now) = (self.clusters[c].name.clone(), self.now);
            self.hosts[h].registered.entry(name).or_insert(now);
        }
        if !key.starts_with(POOLERS) {
            return;
        }
        let Ok(word) = serde_json::from_slice::<PoolerWord>(value) else { return };
        let record = self.clusters[c].own.get("switch");
        let record = record.and_then(|text| serde_json::from_str::<Switch>(&text).ok());
        let Some(record) = record.filter(|record| word.drained.as_ref() == Some(&record.epoch)) else {
            return;
        };
        let from = self.clusters[c].members.iter().find(|m| m.name == record.from);
        let Some(from) = from.map(|m| (m.ip.clone(), m.port)) else { return };
        let name = &self.clusters[c].name;
        for pooler in &self.hosts[h].poolers {
            let config = self.hosts[h].config.pooler(&pooler.name);
            let routed = |database: &str| {
                let entry = if pooler.opened.contains(database) { "*" } else { database };
                config.is_some_and(|c| c.routes.get(entry).is_some_and(|r| r.cluster == *name))
            };
            let leads = |link: &&crate::pgbouncer::Link| {
                !link.session && routed(&link.database) && (&link.to.host, link.to.port) == (&from.0, from.1)
            };
            if self.is_excused(h, pooler) {
                continue;
            }
            if let Some(link) = pooler.links.iter().find(leads) {
                let text = format!(
                    "{} said that it has drained {}, but {} has a link there",
                    self.hosts[h].name, record.from, link.database
                );
                return self.broken("A1", text);
            }
        }
    }

    /// Somebody else ended a pause, or the console is silent: a look of before says nothing.
    fn is_excused(&self, h: usize, pooler: &PgBouncer) -> bool {
        let broken = pooler.pauses.broken > Time::ZERO && self.now.since(pooler.pauses.broken) < LOOKED;
        let disturbed = self.now.since(self.hosts[h].disturbed) < LOOKED;
        // A console that has been silent for long is not waited for.
        let look = self.hosts[h].memory.poolers.get(&pooler.name).and_then(|memory| memory.look.as_ref());
        let unseen = look.is_none_or(|(_, at)| self.host_time(h).since(*at) > Duration::from_secs(3));
        broken || disturbed || unseen || pooler.console_dead || !pooler.up
    }
}
