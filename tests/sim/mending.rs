//! All is mended.

use crate::agent_host::Trouble;
use crate::pgbouncer::REFUSED;
use crate::world::{Thing, World};
use pgsquire_core::config::Mode;

impl World {
    /// All is mended.
    pub fn heal(&mut self) {
        self.say(|_| "=== all is mended".into());
        self.healed = Some(self.now);
        for c in 0..self.clusters.len() {
            if self.clusters[c].store.outage {
                self.clusters[c].store.outage = false;
                let until = self.now + self.clusters[c].ttl;
                self.clusters[c].store.renew_all(until);
                self.at(until, Thing::Lease(c));
            }
            self.clusters[c].paused = false;
            self.write_config(c);
            self.clusters[c].store.delete("failover");
            self.store_changed(c);
            for m in 0..self.clusters[c].members.len() {
                let member = &mut self.clusters[c].members[m];
                member.store_cut = false;
                member.rest_dead = false;
                member.isolated = false;
                (member.claims, member.stranger) = (false, false);
                member.pg.lag = 0;
                member.patroni.frozen = false;
                self.patroni_dead(c, m, false);
            }
            self.wake_patronis(c);
        }
        for h in 0..self.hosts.len() {
            self.heal_host(h);
        }
    }

    fn heal_host(&mut self, h: usize) {
        let now = self.now;
        let host = &mut self.hosts[h];
        host.trouble = Trouble::default();
        host.disturbed = now;
        let hung = host.frozen_until > now;
        host.frozen_until = host.frozen_until.min(now);
        for pooler in &mut host.poolers {
            pooler.operator_resumes();
        }
        for f in 0..host.follows.len() {
            let follow = &mut self.hosts[h].follows[f];
            (follow.cut, follow.stale, follow.swapped, follow.lag) = (false, None, None, 20);
            // What was lost on the way is not sent again.
            self.break_watch(h, f, "the connection was reset");
        }
        for p in 0..self.hosts[h].poolers.len() {
            self.hosts[h].poolers[p].console_dead = false;
            let observes = self.hosts[h].config.mode == Mode::Observe;
            let down = !self.hosts[h].poolers[p].up;
            // Without a copy of a loaded file only the operator can help.
            let good = self.hosts[h].state.last_good.contains_key(&self.hosts[h].poolers[p].name);
            if down || observes || !good || self.rng.one_in(2) {
                self.mend_edits(h, p);
            }
            if down {
                self.hosts[h].poolers[p].restart(now);
            }
        }
        self.start_agent(h);
        if hung {
            self.wake_up(h);
        }
    }

    /// The operator takes a broken edit back.
    fn mend_edits(&mut self, h: usize, p: usize) {
        let pooler = &mut self.hosts[h].poolers[p];
        for bytes in pooler.disk.parts.values_mut() {
            let text = String::from_utf8_lossy(bytes).into_owned();
            let text = text.replace("this is no line of an ini\n", "").replace(&format!("{REFUSED}\n"), "");
            *bytes = text.into_bytes();
        }
        self.hint_files(h, p);
    }
}
