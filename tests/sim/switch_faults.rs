//! What breaks around switches.

use crate::world::{Thing, World};
use std::time::Duration;

impl World {
    /// The agent is killed; under systemd `pgsquire release` runs after it.
    pub fn crash_agent(&mut self, h: usize) {
        let ran = self.hosts[h].agent.is_some();
        self.kill_agent(h);
        if ran && !self.setup.calm && self.rng.one_in(2) {
            let after = self.rng.millis(5, 200);
            self.later(after, Thing::Release(h));
        }
    }

    /// What an agent that was frozen was told meanwhile, it is told now.
    pub fn wake_up(&mut self, h: usize) {
        if self.hosts[h].frozen_until <= self.now {
            let run = self.hosts[h].run;
            self.tell(h, run, vec![pgsquire_core::event::Event::Tick]);
        }
    }

    /// Patroni changes its mind while a hook runs.
    pub fn called_off(&mut self, c: usize) {
        if self.clusters[c].store.outage {
            return;
        }
        for m in 0..self.clusters[c].members.len() {
            if self.is_hooked(c, m) && self.clusters[c].members[m].pg.is_writable() {
                self.clusters[c].store.delete("failover");
                self.store_changed(c);
                self.call_off(c, m);
            }
        }
    }

    /// A switchover is asked for, at a time.
    pub fn schedule_switchover(&mut self, c: usize) {
        let cluster = &self.clusters[c];
        let Some(leader) = cluster.store.leader().filter(|_| !cluster.store.outage) else { return };
        let Some(to) = cluster.members.iter().find(|m| m.name != leader).map(|m| m.name.clone()) else {
            return;
        };
        let wait = if self.rng.one_in(2) { Duration::from_secs(3) } else { Duration::from_secs(3600) };
        let seconds = (self.now + wait).as_micros() / 1_000_000;
        let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        let at = format!("1970-01-01T{hour:02}:{minute:02}:{second:02}+00:00");
        let text = format!("{{\"leader\":\"{leader}\",\"member\":\"{to}\",\"scheduled_at\":\"{at}\"}}");
        self.clusters[c].store.put("failover", &text, None);
        self.store_changed(c);
        self.wake_patronis(c);
    }
}
