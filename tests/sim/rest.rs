//! What Patroni says of itself: in its member key, and by its REST API.

use crate::postgres::Run;
use crate::world::World;

impl World {
    fn role_word(&self, c: usize, word: &'static str) -> &'static str {
        if word == "primary" && self.clusters[c].old_words { "master" } else { word }
    }

    fn state_word(&self, c: usize, m: usize) -> &'static str {
        if let Some(state) = self.clusters[c].members[m].patroni.state {
            return state;
        }
        match self.clusters[c].members[m].pg.run {
            Run::Running => "running",
            Run::Starting => "starting",
            Run::Stopping => "stopping",
            Run::Down => "stopped",
        }
    }

    fn position(&self, c: usize, m: usize) -> u64 {
        let pg = &self.clusters[c].members[m].pg;
        if pg.in_recovery { self.wal().saturating_sub(pg.lag) } else { self.wal() }
    }

    /// What a member writes about itself into the store.
    pub fn member_json(&self, c: usize, m: usize) -> String {
        let member = &self.clusters[c].members[m];
        let (state, pg) = (self.state_word(c, m), &member.pg);
        let live = if pg.in_recovery { "replica" } else { "primary" };
        let role = self.role_word(c, if pg.run == Run::Running { live } else { member.patroni.cached_role });
        let running = if pg.run == Run::Running {
            format!(",\"xlog_location\":{},\"timeline\":{}", self.position(c, m), pg.timeline)
        } else {
            String::new()
        };
        let tags = if member.noloadbalance { ",\"tags\":{\"noloadbalance\":true}" } else { "" };
        format!(
            "{{\"conn_url\":\"postgres://{}:{}/postgres\",\"api_url\":\"http://{}:8008/patroni\",\
             \"state\":\"{state}\",\"role\":\"{role}\",\"version\":\"{}\"{running}{tags}}}",
            member.host,
            member.port,
            member.ip,
            if self.clusters[c].old_patroni { "3.0.2" } else { "4.0.4" }
        )
    }

    /// What a primary of another system answers that took over a member's name and address.
    fn stranger(&self, c: usize, name: &str) -> Vec<u8> {
        let scope = &self.clusters[c].name;
        format!(
            "{{\"state\":\"running\",\"role\":\"primary\",\"xlog\":{{\"location\":7}},\"timeline\":9,\
             \"database_system_identifier\":\"666\",\"patroni\":{{\"version\":\"4.0.4\",\"scope\":\"{scope}\",\
             \"name\":\"{name}\"}}}}"
        )
        .into_bytes()
    }

    /// What `GET /primary` of the REST API at an address answers a host now; none: no answer.
    pub fn rest_answer(&self, h: usize, ip: &str) -> Option<(u16, Vec<u8>)> {
        let (c, m) = self.find_member(|m| m.ip == ip)?;
        let member = self.member((c, m));
        if !member.patroni.alive || member.patroni.frozen || member.rest_dead {
            return None;
        }
        let here = self.hosts[h].local;
        if here != Some((c, m)) && (member.isolated || here.is_some_and(|at| self.member(at).isolated)) {
            return None;
        }
        if member.stranger {
            return Some((200, self.stranger(c, &member.name)));
        }
        let code = if member.patroni.lock_until > self.now || member.claims { 200 } else { 503 };
        let (state, pg) = (self.state_word(c, m), &member.pg);
        // It asks its server only in some states, else its word is a cached one.
        let run = if state == "stopping" { Run::Stopping } else { pg.run };
        let (role, xlog) = match (run, pg.in_recovery) {
            (Run::Running, false) => ("primary", format!("\"xlog\":{{\"location\":{}}}", self.wal())),
            (Run::Running, true) => {
                let at = self.position(c, m);
                ("replica", format!("\"xlog\":{{\"received_location\":{at},\"replayed_location\":{at}}}"))
            }
            _ => (member.patroni.cached_role, String::new()),
        };
        let role = self.role_word(c, role);
        let live = match xlog.is_empty() {
            true => String::new(),
            false => format!(
                "{xlog},\"timeline\":{},\"postmaster_start_time\":\"start {}\",",
                pg.timeline, pg.started
            ),
        };
        let pause = if member.patroni.paused { "\"pause\":true," } else { "" };
        let failsafe =
            if member.patroni.failsafe_until > self.now { "\"failsafe_mode_is_active\":true," } else { "" };
        let seen = member.patroni.store_seen.as_micros() / 1_000_000;
        let body = format!(
            "{{\"state\":\"{state}\",\"role\":\"{role}\",{live}{pause}{failsafe}\"dcs_last_seen\":{seen},\"database_system_identifier\":\"{}\",\
             \"patroni\":{{\"version\":\"4.0.4\",\"scope\":\"{}\",\"name\":\"{}\"}}}}",
            self.clusters[c].system, self.clusters[c].name, member.name
        );
        Some((code, body.into_bytes()))
    }
}
