//! Which members may be read, and which of them a read route leads to.

use crate::config::{Route, RouteTo};
use crate::desired::{Asked, ClusterPlan, Decision, Target};
use crate::observed::ClusterView;
use crate::rule::{Reason, Rule};
use crate::topology::{Endpoint, Member, Role, Topology};
use crate::wal::{Lsn, Timeline};
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

impl ClusterPlan<'_> {
    pub(crate) fn to_readers(&self, asked: &Asked<'_>) -> Decision {
        let topology = match &self.topology {
            Ok(topology) => topology,
            Err(reason) => return Decision { target: None, reason: reason.clone() },
        };
        let current = asked.facts.on_disk(asked.pooler, asked.entry);
        let (mut fit, unfit) = self.sort_members(topology, asked.route, current.as_ref());
        if asked.route.to == RouteTo::Any {
            let leader = self.readable_leader(topology);
            // One that is about to stop is left, unless there is nobody else.
            let stays = |name: &String| fit.is_empty() || self.view.leaving.as_ref() != Some(name);
            fit.extend(leader.filter(|(name, _)| stays(name)));
            fit.sort();
        }
        if fit.is_empty() {
            return self.without_readers(asked, &unfit);
        }
        match asked.facts.version(asked.pooler) {
            None => Decision {
                target: None,
                reason: Reason::new(
                    Rule::HandsOff,
                    "PgBouncer's version is not known yet: one host or a list?",
                ),
            },
            Some(version) => self.choose(asked, fit, &unfit, version >= (1, 17), current.as_ref()),
        }
    }

    /// The leader, where it may be read: a writable primary, or the running leader of a standby cluster.
    fn readable_leader(&self, topology: &Topology) -> Option<(String, Endpoint)> {
        if let Ok(leader) = &self.primary {
            return Some((leader.name.clone(), leader.endpoint.clone()));
        }
        let leader =
            topology.leader_member().filter(|m| topology.config.standby_cluster && m.is_running())?;
        Some((leader.name.clone(), leader.endpoint.clone()?))
    }

    /// Members that may be read, and why the others may not.
    fn sort_members(
        &self,
        topology: &Topology,
        route: &Route,
        current: Option<&Endpoint>,
    ) -> (Vec<(String, Endpoint)>, Vec<String>) {
        let (mut fit, mut unfit) = (Vec::new(), Vec::new());
        for member in topology.members.values() {
            if topology.leader.as_ref().is_some_and(|l| l.name == member.name) {
                continue;
            }
            if self.view.leaving.as_ref() == Some(&member.name) {
                unfit.push(format!("{} is about to stop", member.name));
                continue;
            }
            let listed = |e: &Endpoint| {
                current.is_some_and(|c| c.port == e.port && c.host.split(',').any(|h| h == e.host))
            };
            let is_listed = member.endpoint.as_ref().is_some_and(listed);
            match (self.objection(topology, member, route, is_listed), &member.endpoint) {
                (None, Some(endpoint)) => fit.push((member.name.clone(), endpoint.clone())),
                (Some(why), _) => unfit.push(format!("{} {why}", member.name)),
                (None, None) => unfit.push(format!("{} has no usable conn_url", member.name)),
            }
        }
        (fit, unfit)
    }

    /// Why a member must not be read.
    fn objection(
        &self,
        topology: &Topology,
        member: &Member,
        route: &Route,
        is_listed: bool,
    ) -> Option<String> {
        if !self.config.mutants.obey(Rule::EligibleReplica) {
            return None;
        }
        if member.role != Some(Role::Replica) {
            return Some(format!("is {}", member.role.map_or("of unknown role", Role::word)));
        }
        if !member.is_running() {
            return Some(format!(
                "is {}",
                if member.state.is_empty() { "in an unknown state" } else { &member.state }
            ));
        }
        if member.has_tag("noloadbalance") {
            return Some("has the tag noloadbalance".into());
        }
        let asked = self.view.asked.get(&member.name).and_then(|f| f.last());
        let on_leader_timeline = match (leader_timeline(self.view, topology), member.timeline) {
            (Some(leader), Some(own)) if own < leader => {
                let grace = self.config.switch.failover_hold;
                match self.view.promoted {
                    Some((at, parent)) if own == parent && self.now.since(at) <= grace => false,
                    _ => return Some(format!("is still on timeline {own}, the leader on {leader}")),
                }
            }
            _ => true,
        };
        let limit = route.max_lag?;
        if !on_leader_timeline {
            return None;
        }
        let replayed = asked.and_then(|status| status.replayed);
        match lag(topology, member, replayed) {
            // Lists that change often cost links: who is in stays until the limit, who is out enters at half of it.
            Some(lag) if lag <= limit && (is_listed || lag <= limit / 2) => None,
            Some(lag) => Some(format!("lags {lag} bytes")),
            None if is_listed => None,
            None => Some("does not tell its lag".into()),
        }
    }

    fn without_readers(&self, asked: &Asked<'_>, unfit: &[String]) -> Decision {
        let why = match unfit {
            [] => "there is no other member".to_string(),
            list => list.join("; "),
        };
        if asked.route.fallback_primary && self.config.mutants.obey(Rule::Fallback) {
            let mut decision = self.to_primary(asked);
            if decision.target.is_some() && decision.reason.rule != Rule::PointAhead {
                decision.reason =
                    Reason::new(Rule::Fallback, format!("no replica fits ({why}): to the primary"));
            }
            return decision;
        }
        Decision {
            target: None,
            reason: Reason::new(Rule::HandsOff, format!("no replica fits ({why}): it stays where it is")),
        }
    }

    fn choose(
        &self,
        asked: &Asked<'_>,
        fit: Vec<(String, Endpoint)>,
        unfit: &[String],
        lists: bool,
        current: Option<&Endpoint>,
    ) -> Decision {
        let at = |endpoint: &Endpoint| fit.iter().find(|(_, e)| e == endpoint);
        let chosen: Vec<&(String, Endpoint)> = if lists {
            // PgBouncer takes one port for the whole list: the one that most members share.
            let port = most_common_port(&fit);
            fit.iter().filter(|(_, e)| e.port == port).collect()
        } else {
            let spread =
                || fit.iter().min_by_key(|(name, _)| spread_key(&self.config.node, asked.entry, name));
            current.and_then(at).or_else(spread).into_iter().collect()
        };
        let hosts: Vec<&str> = chosen.iter().map(|(_, e)| e.host.as_str()).collect();
        let members: Vec<String> = chosen.iter().map(|(name, _)| name.clone()).collect();
        let port = chosen.first().map_or(5432, |(_, e)| e.port);
        let mut text = format!("{} may be read", members.join(", "));
        if !unfit.is_empty() {
            text = format!("{text}; {}", unfit.join("; "));
        }
        let target = Target {
            members,
            endpoint: Endpoint { host: hosts.join(","), port },
            tolerated: fit.iter().map(|(_, e)| e.clone()).collect(),
            spared: self
                .view
                .topology
                .members
                .values()
                .filter(|m| m.is_running())
                .filter_map(|m| m.endpoint.clone())
                .collect(),
        };
        Decision { target: Some(target), reason: Reason::new(Rule::EligibleReplica, text) }
    }
}

/// The newest timeline that the leader is known to be on.
fn leader_timeline(view: &ClusterView, topology: &Topology) -> Option<Timeline> {
    let record = topology.leader_member().and_then(|m| m.timeline);
    record.max(view.term.as_ref().and_then(|t| t.timeline))
}

/// Bytes behind the leader's position in the store, as Patroni counts them.
pub(crate) fn lag(topology: &Topology, member: &Member, replayed: Option<Lsn>) -> Option<u64> {
    let leader = topology.leader_lsn.max(topology.leader_member().and_then(|m| m.lsn))?;
    let own = member.lsn.max(replayed)?;
    Some(leader.bytes_since(own))
}

fn most_common_port(fit: &[(String, Endpoint)]) -> u16 {
    let mut count: BTreeMap<u16, usize> = BTreeMap::new();
    for (_, endpoint) in fit {
        *count.entry(endpoint.port).or_default() += 1;
    }
    count.into_iter().max_by_key(|(port, n)| (*n, core::cmp::Reverse(*port))).map_or(5432, |(port, _)| port)
}

/// Spreads hosts over replicas without anybody coordinating (highest random weight, FNV-1a).
fn spread_key(node: &str, entry: &str, member: &str) -> u64 {
    let bytes = node.bytes().chain([0]).chain(entry.bytes()).chain([0]).chain(member.bytes());
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, b| (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}
