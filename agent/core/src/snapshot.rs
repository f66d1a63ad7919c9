//! From what is known and wanted to the snapshot for people and load balancers.

use crate::agent::Agent;
use crate::config::ClusterConfig;
use crate::desired::Decision;
use crate::health;
use crate::leader::writable_leader;
use crate::observed::{ClusterView, Fact, LOCAL_PROBE_AGE};
use crate::outage::vouched;
use crate::pgbouncer::pause;
use crate::pgbouncer::pools::{CONSOLE_AGE, Pooler};
use crate::pgbouncer::reconcile;
use crate::readers::lag;
use crate::rule::{Reason, Rule};
use crate::status::{
    AwayStatus, ClusterStatus, HoldStatus, Knowledge, LocalStatus, MemberLine, PeerLine, PlannedOrder,
    PoolerStatus, RouteStatus, Status, SwitchStatus,
};
use crate::switch::SwitchState;
use crate::switch::causes::{HAS_BEFORE_STOP, read_version};
use crate::switch::records::PoolerWord;
use crate::time::{Human, Time};
use crate::topology::{Member, Topology};
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

/// What people are told of a cluster whose truth comes from its members alone.
const WITHOUT_STORE: &str = "followed by its members' REST API alone: pools are re-pointed, and held when the primary is \
                             lost; without a store nothing drains before a planned stop, and nothing is fenced";

impl Agent {
    /// The snapshot at `now`.
    pub fn status(&self, now: Time) -> Status {
        Status {
            at: now,
            node: self.config.node.clone(),
            mode: self.config.mode,
            clusters: self.config.clusters.iter().map(|cluster| self.cluster_status(cluster, now)).collect(),
            local: self.local_status(now),
            poolers: self.config.poolers.iter().map(|p| self.pooler_status(&p.name, &p.ini, now)).collect(),
            contradictions: self.contradictions.clone(),
        }
    }

    fn cluster_status(&self, cluster: &ClusterConfig, now: Time) -> ClusterStatus {
        let view = &self.observed.clusters[&cluster.name];
        let usable = view.usable(&self.config, cluster, now);
        let leader = writable_leader(&self.config, cluster, &self.observed, now);
        let writable_reason = match &leader {
            Ok(l) => Reason::new(Rule::WritableLeader, format!("timeline {}: {}", l.timeline, l.proof)),
            Err(reason) => reason.clone(),
        };
        let refused = view.candidate.as_ref().map(|c| c.reason.clone());
        let topology = &view.topology;
        let mut problems = topology.problems.clone();
        if view.is_nowhere() {
            problems.push(nowhere(cluster, &view.beside));
        }
        let groups: Vec<String> = view.groups().iter().map(|group| format!("group = {group}")).collect();
        if !groups.is_empty() {
            let name = &cluster.name;
            problems
                .push(format!("{name} is a Citus cluster, give one of its groups: {}", groups.join(", ")));
        }
        if let Some((_, why)) = &view.keep_failed {
            problems.push(format!("the term could not be kept in the state folder: {why}"));
        }
        ClusterStatus {
            name: cluster.name.clone(),
            store: Knowledge {
                known: usable.is_ok(),
                age_ms: view.seen.map(|seen| millis(now, seen)),
                why: view.failed.clone().or_else(|| usable.as_ref().err().map(|reason| reason.text.clone())),
            },
            term: view.term.clone(),
            leader: topology.leader.as_ref().map(|l| l.name.clone()),
            writable: leader.is_ok(),
            writable_reason,
            pause: topology.config.pause,
            standby_cluster: topology.config.standby_cluster,
            members: topology.members.values().map(|m| member_line(view, topology, m)).collect(),
            away: self.away_status(cluster, usable.as_ref().err(), now),
            holding: usable.err().or(refused),
            problems,
            switch: self.switch_status(cluster, now),
        }
    }

    /// While the store is silent, or a primary goes on without its key.
    fn away_status(&self, cluster: &ClusterConfig, why: Option<&Reason>, now: Time) -> Option<AwayStatus> {
        let view = &self.observed.clusters[&cluster.name];
        let vouched = vouched(&self.config, cluster, view, now);
        let keyless = why.is_none() && view.topology.leader.is_none() && vouched.is_ok();
        if !keyless && why.is_none_or(|why| why.rule != Rule::FactAge) {
            return None;
        }
        Some(AwayStatus {
            policy: cluster.on_dcs_loss,
            leader: vouched.as_ref().ok().map(|vouched| vouched.leader.clone()),
            ends_in_ms: vouched.as_ref().ok().map(|vouched| millis(vouched.until, now)),
            reason: vouched.map_or_else(|why| why, |vouched| Reason::new(Rule::StoreAway, vouched.text)),
        })
    }

    fn switch_status(&self, cluster: &ClusterConfig, now: Time) -> SwitchStatus {
        let Some(state) = self.switches.get(&cluster.name) else { return SwitchStatus::default() };
        let peers = &state.view.peers;
        let word = |(node, word): (&String, &PoolerWord)| PeerLine {
            node: node.clone(),
            member: word.member.clone(),
            says: match (&word.holds, &word.drained) {
                (Some(from), _) => format!("holds its pools away from {from}"),
                (None, Some(_)) => {
                    format!("has drained, {} links of session pools are left", word.links_left)
                }
                (None, None) if !word.drains => "does not drain".into(),
                (None, None) => "ready".into(),
            },
        };
        let stranger = |node: &String| PeerLine {
            node: node.clone(),
            member: None,
            says: "of another version: it is waited for, but not understood".into(),
        };
        SwitchStatus {
            hold: state.hold.as_ref().map(|hold| HoldStatus {
                from: hold.from.clone(),
                why: hold.why.clone(),
                since_ms: millis(now, hold.since),
                ends_in_ms: millis(hold.until, now),
            }),
            stopping: self.observed.stopping.clone(),
            poolers: peers.poolers.iter().map(word).chain(peers.strangers.iter().map(stranger)).collect(),
            registry: peers.registry.clone(),
            without: (!cluster.has_store()).then(|| WITHOUT_STORE.into()),
            lease_ms: state.lease.map(|(start, ttl)| millis(start + ttl, now)),
            troubles: self.switch_troubles(cluster, state),
        }
    }

    fn switch_troubles(&self, cluster: &ClusterConfig, state: &SwitchState) -> Vec<String> {
        let switch = &self.config.switch;
        let topology = &self.observed.clusters[&cluster.name].topology;
        let mut troubles = state.view.peers.problems.clone();
        let drains = switch.drain && cluster.has_store();
        if let Some(why) = &state.view.failed {
            troubles.push(format!("the other agents' keys cannot be read, so nothing drains: {why}"));
        }
        if let Some(why) = &state.published.why {
            troubles.push(format!("the store does not take our keys, so this host is not waited for: {why}"));
        }
        if drains && switch.drain_timeout > topology.config.ttl / 4 {
            troubles.push(format!(
                "[switch] drain_timeout ({}) is longer than a quarter of Patroni's ttl ({}): shorten it",
                Human(switch.drain_timeout),
                Human(topology.config.ttl)
            ));
        }
        let old =
            |m: &&Member| m.version.as_deref().and_then(read_version).is_some_and(|v| v < HAS_BEFORE_STOP);
        for member in topology.members.values().filter(old).filter(|_| drains) {
            troubles.push(format!(
                "{} runs Patroni {}, which has no before_stop (3.0.3): its switchovers drain late, and clients may see errors",
                member.name,
                member.version.as_deref().unwrap_or("?")
            ));
        }
        let limit = self.poolers.values().filter_map(pause::waiting_limit).min();
        let wanted = if drains { switch.hold_timeout + switch.failover_hold } else { switch.failover_hold };
        if let Some(limit) = limit.filter(|limit| *limit < wanted && (drains || !cluster.has_store())) {
            troubles.push(format!(
                "a pooler lets clients wait no longer than {} (query_wait_timeout, query_timeout, client_login_timeout \
                 less 5s): holds are cut to that, [switch] asks for {}",
                Human(limit),
                Human(wanted)
            ));
        }
        troubles
    }

    fn local_status(&self, now: Time) -> Option<LocalStatus> {
        self.config.local.as_ref()?;
        let server = self.observed.local.last();
        Some(LocalStatus {
            server: knowledge(&self.observed.local, now, LOCAL_PROBE_AGE),
            member: self.observed.local_member(&self.config).map(Into::into),
            in_recovery: server.map(|s| s.in_recovery),
            timeline: server.and_then(|s| s.timeline),
            primary: health::primary(&self.config, &self.observed, now),
        })
    }

    fn pooler_status(&self, name: &str, ini: &str, now: Time) -> PoolerStatus {
        let pooler = &self.poolers[name];
        let empty = BTreeMap::new();
        let decisions = self.desired.poolers.get(name).unwrap_or(&empty);
        let none = BTreeMap::new();
        let routes = self.config.pooler(name).map_or(&none, |pooler| &pooler.routes);
        let next = reconcile::next_change(&self.config, pooler, decisions, now);
        let planned = |(order, reason): (crate::effect::PoolerOrder, Reason)| PlannedOrder {
            order: order.to_string(),
            reason,
        };
        let mut files = knowledge(&pooler.disk, now, Duration::from_secs(60));
        files.why = files.why.or_else(|| pooler.disk_failed.clone());
        PoolerStatus {
            name: name.into(),
            ini: ini.into(),
            files,
            console: knowledge(&pooler.console, now, CONSOLE_AGE),
            version: pooler.console.last().map(|view| format!("{}.{}", view.version.0, view.version.1)),
            pool: health::pool(&self.config, &self.observed, pooler, (routes, decisions), now),
            routes: self.route_statuses(name, pooler, decisions, now),
            doing: pooler.in_flight.as_ref().filter(|f| f.order.changes()).map(|f| f.order.to_string()),
            next: next.map(planned).into_iter().collect(),
            troubles: self.troubles(pooler, decisions, now),
        }
    }

    fn route_statuses(
        &self,
        name: &str,
        pooler: &Pooler,
        decisions: &BTreeMap<String, Decision>,
        now: Time,
    ) -> Vec<RouteStatus> {
        let Some(config) = self.config.pooler(name) else { return Vec::new() };
        let route = |(entry, route): (&String, &crate::config::Route)| {
            let decision = decisions.get(entry);
            let target = decision.and_then(|d| d.target.as_ref());
            let (links, stale) = target.map_or((0, Vec::new()), |t| pooler.links(entry, t));
            RouteStatus {
                database: entry.clone(),
                to: route.to,
                cluster: route.cluster.clone(),
                members: target.map(|t| t.members.clone()).unwrap_or_default(),
                target: target.map(|t| t.endpoint.clone()),
                reason: decision.map_or_else(
                    || Reason::new(Rule::HandsOff, "nothing was decided yet"),
                    |d| d.reason.clone(),
                ),
                on_disk: pooler.disk.last().and_then(|d| d.entries.get(entry).cloned()),
                loaded: pooler.loaded(entry),
                links,
                stale_links: u32::try_from(stale.len()).unwrap_or(u32::MAX),
                verified: decision.is_some_and(|d| pooler.is_verified(entry, d, now)),
                paused: pooler
                    .databases_of(entry)
                    .iter()
                    .any(|db| pooler.row(db).is_some_and(|row| row.paused)),
            }
        };
        config.routes.iter().map(route).collect()
    }

    fn troubles(&self, pooler: &Pooler, decisions: &BTreeMap<String, Decision>, now: Time) -> Vec<String> {
        let mut troubles = pooler.troubles(now);
        if let Some(disk) = pooler.disk.last()
            && disk.problems.is_empty()
        {
            let known =
                |(entry, d): (&String, &Decision)| Some((entry.clone(), d.target.as_ref()?.endpoint.clone()));
            let wanted: BTreeMap<_, _> = decisions.iter().filter_map(known).collect();
            let differs = wanted.iter().any(|(entry, endpoint)| disk.entries.get(entry) != Some(endpoint));
            if differs && let Err(why) = disk.retarget(&wanted) {
                troubles.push(why);
            }
        }
        if reconcile::reload_must_wait(pooler, decisions, now) {
            troubles.push(
                "PgBouncer was told to RELOAD very often in the last minute: the next one waits".into(),
            );
        }
        troubles
    }
}

/// For who followed a cluster that is not there.
fn nowhere(cluster: &ClusterConfig, beside: &[String]) -> String {
    let there = match beside {
        [] => String::from("nor anything else that we may see"),
        list => format!("it has {}", list.join(", ")),
    };
    let name = &cluster.name;
    format!("the store holds no key of cluster {name}; {there}: are scope, namespace and group right?")
}

fn millis(now: Time, seen: Time) -> u64 {
    u64::try_from(now.since(seen).as_millis()).unwrap_or(u64::MAX)
}

fn knowledge<T>(fact: &Fact<T>, now: Time, max_age: Duration) -> Knowledge {
    Knowledge {
        known: fact.fresh(now, max_age).is_ok(),
        age_ms: fact.seen().map(|seen| millis(now, seen)),
        why: fact.fresh(now, max_age).err(),
    }
}

fn member_line(view: &ClusterView, topology: &Topology, member: &Member) -> MemberLine {
    let leads = topology.leader.as_ref().is_some_and(|l| l.name == member.name);
    let replayed = view.asked.get(&member.name).and_then(|f| f.last()).and_then(|s| s.replayed);
    let same_timeline = topology.leader_member().is_none_or(|l| l.timeline == member.timeline);
    MemberLine {
        name: member.name.clone(),
        role: member.role,
        state: member.state.clone(),
        endpoint: member.endpoint.clone(),
        timeline: member.timeline,
        lsn: member.lsn,
        lag: (!leads && same_timeline).then(|| lag(topology, member, replayed)).flatten(),
        version: member.version.clone(),
        tags: member.tags.iter().map(|(tag, value): (&String, &String)| format!("{tag}={value}")).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Event, Restored, StoreRead};
    use crate::example::{at, config, keys, read};
    use crate::patroni::Keys;

    #[test]
    fn a_cluster_that_is_nowhere_is_told_with_what_is_there() {
        let mut agent = Agent::new(config(), Restored::default(), at(0));
        assert_eq!(agent.status(at(1)).clusters[0].problems, Vec::<String>::new(), "nobody has answered yet");
        let mut problems = |read| {
            agent.handle(at(5), Event::StoreRead { cluster: "main".into(), read });
            agent.status(at(5)).clusters[0].problems.clone()
        };
        let beside = vec!["/service/mine".into(), "/service/other".into()];
        let right = "are scope, namespace and group right?";
        assert_eq!(
            problems(StoreRead { beside, ..read(10, at(1), Keys::new()) }),
            [format!(
                "the store holds no key of cluster main; it has /service/mine, /service/other: {right}"
            )]
        );
        assert_eq!(
            problems(read(11, at(2), Keys::new())),
            [format!("the store holds no key of cluster main; nor anything else that we may see: {right}")]
        );
        assert_eq!(problems(read(12, at(3), keys(1))), Vec::<String>::new());
        let groups = keys(1)
            .into_iter()
            .flat_map(|(key, value)| [0, 1].map(|group| (format!("{group}/{key}"), value.clone())));
        assert_eq!(
            problems(read(13, at(4), groups.collect())),
            ["main is a Citus cluster, give one of its groups: group = 0, group = 1"]
        );
    }
}
