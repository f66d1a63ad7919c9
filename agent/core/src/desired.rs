//! The one state this host should be in.

use crate::config::{ClusterConfig, Config, PoolerConfig, Route, RouteTo};
use crate::leader::{WritableLeader, term_kept, writable_leader};
use crate::observed::{ClusterView, Observed};
use crate::rule::{Reason, Rule};
use crate::time::{Human, Time};
use crate::topology::{Endpoint, Member, Topology};
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// Where an entry must lead now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Members it leads to, in order.
    pub members: Vec<String>,
    /// The `host` value (a list is joined with commas) and port.
    pub endpoint: Endpoint,
    /// Endpoints to which existing links may stay, though the entry does not name them.
    pub tolerated: Vec<Endpoint>,
    /// Endpoints to which links ought not to lead, but from which nobody is cut: a read that ends by itself on a running
    /// member does no harm.
    pub spared: Vec<Endpoint>,
}

/// What is decided for one route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Where to; none: unknown, hands off.
    pub target: Option<Target>,
    /// Why.
    pub reason: Reason,
}

/// Pooler -> entry -> decision.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Desired {
    /// By pooler name.
    pub poolers: BTreeMap<String, BTreeMap<String, Decision>>,
}

/// What the plan needs to know of a pooler besides the configuration.
pub trait PoolerFacts {
    /// PgBouncer's version, once it was told.
    fn version(&self, pooler: &str) -> Option<(u32, u32)>;
    /// What the file on disk says for an entry.
    fn on_disk(&self, pooler: &str, entry: &str) -> Option<Endpoint>;
    /// Its clients wait: nobody is led anywhere by what is written now.
    fn waits(&self, pooler: &str) -> bool;
}

/// Plans where every route of this host leads. Total and idempotent: a settled host plans what is already there.
pub fn plan(config: &Config, observed: &Observed, facts: &dyn PoolerFacts, now: Time) -> Desired {
    let clusters: BTreeMap<&str, ClusterPlan<'_>> = config
        .clusters
        .iter()
        .map(|cluster| (cluster.name.as_str(), ClusterPlan::new(config, cluster, observed, now)))
        .collect();
    let routes = |pooler: &PoolerConfig| {
        let decide = |(entry, route): (&String, &Route)| {
            let asked = Asked { pooler: &pooler.name, entry, route, facts };
            (entry.clone(), clusters[route.cluster.as_str()].decide(&asked))
        };
        (pooler.name.clone(), pooler.routes.iter().map(decide).collect())
    };
    Desired { poolers: config.poolers.iter().map(routes).collect() }
}

/// Which route is asked about.
pub(crate) struct Asked<'a> {
    pub(crate) pooler: &'a str,
    pub(crate) entry: &'a str,
    pub(crate) route: &'a Route,
    pub(crate) facts: &'a dyn PoolerFacts,
}

/// What the routes into one cluster are decided by.
pub(crate) struct ClusterPlan<'a> {
    pub(crate) config: &'a Config,
    observed: &'a Observed,
    pub(crate) view: &'a ClusterView,
    has_store: bool,
    pub(crate) now: Time,
    pub(crate) topology: Result<&'a Topology, Reason>,
    pub(crate) primary: Result<WritableLeader, Reason>,
}

impl<'a> ClusterPlan<'a> {
    fn new(config: &'a Config, cluster: &'a ClusterConfig, observed: &'a Observed, now: Time) -> Self {
        let view = &observed.clusters[&cluster.name];
        let primary = writable_leader(config, cluster, observed, now)
            .and_then(|leader| term_kept(config, view).map(|()| leader));
        let topology = view.usable(config, cluster, now);
        ClusterPlan { config, observed, view, has_store: cluster.has_store(), now, topology, primary }
    }

    fn decide(&self, asked: &Asked<'_>) -> Decision {
        match asked.route.to {
            RouteTo::Primary => self.to_primary(asked),
            RouteTo::Local => self.to_local(),
            RouteTo::Replica | RouteTo::Any => self.to_readers(asked),
        }
    }

    pub(crate) fn to_primary(&self, asked: &Asked<'_>) -> Decision {
        match &self.primary {
            Ok(leader) => Decision {
                target: Some(one(&leader.name, &leader.endpoint)),
                reason: Reason::new(
                    Rule::WritableLeader,
                    format!(
                        "{} leads and is writable on timeline {}: {}",
                        leader.name, leader.timeline, leader.proof
                    ),
                ),
            },
            Err(reason) => self
                .to_next_leader(asked)
                .unwrap_or_else(|| Decision { target: self.without_knowing(), reason: reason.clone() }),
        }
    }

    /// Pools that wait are led to the member that took the leader key before it is promoted: when it is writable only
    /// RESUME is left to do, and who ends the pause after the agent's death does not lead them back to the old primary.
    fn to_next_leader(&self, asked: &Asked<'_>) -> Option<Decision> {
        let waits = asked.facts.waits(asked.pooler) || !self.config.mutants.obey(Rule::PointAhead);
        let former = self.view.leaving.as_ref().filter(|_| waits)?;
        let member = self.topology.as_ref().ok()?.leader_member().filter(|member| member.name != *former)?;
        if self.is_behind(member) {
            return None;
        }
        let text = format!("{} is about to be promoted: the pools that wait lead there already", member.name);
        let target = one(&member.name, member.endpoint.as_ref()?);
        Some(Decision { target: Some(target), reason: Reason::new(Rule::PointAhead, text) })
    }

    /// A store hands its leader key out in order. Where the members alone are asked, one that still says it leads may be on
    /// a timeline that is over.
    fn is_behind(&self, member: &Member) -> bool {
        let known = self.view.term.as_ref().and_then(|term| term.timeline);
        !self.has_store
            && member.timeline.is_some_and(|own| Some(own) < known)
            && self.config.mutants.obey(Rule::TermTimeline)
    }

    /// Nowhere: what is unknown moves nothing.
    fn without_knowing(&self) -> Option<Target> {
        if self.config.mutants.obey(Rule::HandsOff) {
            return None;
        }
        let member = self.view.topology.members.values().next()?;
        Some(one(&member.name, member.endpoint.as_ref()?))
    }

    fn to_local(&self) -> Decision {
        let hold = |text: String| Decision { target: None, reason: Reason::new(Rule::HandsOff, text) };
        let Some(name) = self.observed.local_member(self.config) else {
            return hold("there is no [patroni] or [postgres] on this host".into());
        };
        let topology = match &self.topology {
            Ok(topology) => topology,
            Err(reason) => return Decision { target: None, reason: reason.clone() },
        };
        let leader = topology.leader.as_ref().filter(|_| !self.config.mutants.obey(Rule::LocalServer));
        let name = leader.map_or(name, |leader| leader.name.as_str());
        match topology.members.get(name).map(|m| m.endpoint.as_ref()) {
            Some(Some(endpoint)) => Decision {
                target: Some(one(name, endpoint)),
                reason: Reason::new(Rule::LocalServer, format!("{name} is the member on this host")),
            },
            Some(None) => hold(format!("{name} is on this host, but its key has no usable conn_url")),
            None => hold(format!("{name} is not a member of the cluster")),
        }
    }
}

pub(crate) fn one(name: &str, endpoint: &Endpoint) -> Target {
    Target {
        members: [name.to_string()].into(),
        endpoint: endpoint.clone(),
        tolerated: Vec::new(),
        spared: Vec::new(),
    }
}

/// What a desired state contradicts in itself. The agent acts on none of it while there is any.
pub fn lint(
    config: &Config,
    desired: &Desired,
    shared: &BTreeMap<(String, String), Vec<String>>,
) -> Vec<String> {
    let mut found = Vec::new();
    for pooler in &config.poolers {
        for (entry, decision) in desired.poolers.get(&pooler.name).into_iter().flatten() {
            let Some(target) = &decision.target else { continue };
            let route = pooler.routes.get(entry);
            if route.is_some_and(|r| r.to == RouteTo::Primary) && target.endpoint.host.contains(',') {
                found.push(format!("{}/{entry} is a write route with more than one host", pooler.name));
            }
            if target.endpoint.host.is_empty() || target.endpoint.port == 0 || target.members.is_empty() {
                found.push(format!("{}/{entry} leads nowhere", pooler.name));
            }
        }
    }
    for ((file, entry), poolers) in shared {
        let target =
            |pooler: &String| desired.poolers.get(pooler)?.get(entry)?.target.as_ref().map(|t| &t.endpoint);
        let mut targets: Vec<_> = poolers.iter().filter_map(target).collect();
        targets.sort();
        targets.dedup();
        if targets.len() > 1 {
            let names = poolers.join(" and ");
            found.push(format!(
                "{file}: {names} share the entry {entry}, but want it to lead to different places"
            ));
        }
    }
    found
}

/// The age of something, for people.
pub fn aged(now: Time, seen: Option<Time>) -> String {
    seen.map_or_else(|| "never".into(), |seen| format!("{} ago", Human(now.since(seen))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Truth;
    use crate::example::{at, config, keys, member, observed, read, route, view};
    use crate::patroni::StoredValue;
    use crate::wal::Timeline;
    use core::time::Duration;

    /// A pooler of some version whose read route leads somewhere.
    struct Known(Option<(u32, u32)>, Option<&'static str>);

    impl PoolerFacts for Known {
        fn version(&self, _: &str) -> Option<(u32, u32)> {
            self.0
        }
        fn on_disk(&self, _: &str, _: &str) -> Option<Endpoint> {
            Some(Endpoint { host: self.1?.into(), port: 5432 })
        }
        fn waits(&self, _: &str) -> bool {
            false
        }
    }

    /// Where the read route leads if pg3 writes this about itself.
    fn readers(pg3: &str, route: Route, known: &Known) -> Result<String, Rule> {
        let mut config = config();
        config.poolers[0].routes.insert("reports".into(), route);
        let mut all = keys(1);
        all.insert("members/pg3".into(), StoredValue { value: pg3.into(), revision: 6 });
        let mut seen = observed(&config, at(1_000));
        view(&mut seen).observe_read(&config, at(1_100), read(11, at(1_100), all));
        view(&mut seen).raise_timeline(at(1_100), Timeline(1));
        let term = view(&mut seen).term.clone();
        view(&mut seen).kept = term;
        let desired = plan(&config, &seen, known, at(1_200));
        let decision = &desired.poolers["p"]["reports"];
        decision.target.as_ref().map(|t| t.endpoint.to_string()).ok_or(decision.reason.rule)
    }

    #[test]
    fn who_may_be_read() {
        let modern = Known(Some((1, 18)), None);
        let pg3 = |text: &str| readers(text, route(RouteTo::Replica), &modern);
        let both = "10.0.0.2,10.0.0.3:5432";
        assert_eq!(pg3(&member(3, "replica", "running", 1, "")).as_deref(), Ok(both));
        for unfit in [
            member(3, "replica", "starting", 1, ""),
            member(3, "uninitialized", "running", 1, ""),
            member(3, "replica", "running", 1, ",\"tags\":{\"noloadbalance\":true}"),
            "{half".to_string(),
        ] {
            assert_eq!(pg3(&unfit).as_deref(), Ok("10.0.0.2:5432"), "{unfit}");
        }
    }

    #[test]
    fn a_lagging_replica_enters_at_half_of_the_limit_and_leaves_at_it() {
        let limited = |limit| Route { max_lag: Some(limit), ..route(RouteTo::Replica) };
        let behind = member(3, "replica", "running", 1, "").replace("1000", "400");
        let (out, inside) = (Known(Some((1, 18)), Some("10.0.0.2")), Known(Some((1, 18)), Some("10.0.0.3")));
        assert_eq!(readers(&behind, limited(1000), &out).as_deref(), Ok("10.0.0.2:5432"));
        assert_eq!(readers(&behind, limited(1000), &inside).as_deref(), Ok("10.0.0.2,10.0.0.3:5432"));
        assert_eq!(readers(&behind, limited(1200), &out).as_deref(), Ok("10.0.0.2,10.0.0.3:5432"));
        assert_eq!(readers(&behind, limited(500), &inside).as_deref(), Ok("10.0.0.2:5432"));
    }

    #[test]
    fn an_old_pooler_gets_one_host_and_keeps_it() {
        let pg3 = member(3, "replica", "running", 1, "");
        for kept in ["10.0.0.2", "10.0.0.3"] {
            let old = Known(Some((1, 16)), Some(kept));
            let at = readers(&pg3, route(RouteTo::Replica), &old);
            assert_eq!(at, Ok(alloc::format!("{kept}:5432")));
        }
        assert_eq!(readers(&pg3, route(RouteTo::Replica), &Known(None, None)), Err(Rule::HandsOff));
        let port = pg3.replace("5432", "5433");
        let modern = Known(Some((1, 18)), None);
        assert_eq!(readers(&port, route(RouteTo::Replica), &modern).as_deref(), Ok("10.0.0.2:5432"));
        assert_eq!(
            readers(&pg3, route(RouteTo::Any), &modern).as_deref(),
            Ok("10.0.0.1,10.0.0.2,10.0.0.3:5432")
        );
    }

    #[test]
    fn without_readers_it_stays_or_goes_to_the_primary() {
        let mut config = config();
        let mut seen = observed(&config, at(1_000));
        let mut all = keys(1);
        all.retain(|key, _| key != "members/pg2" && key != "members/pg3");
        view(&mut seen).observe_read(&config, at(1_100), read(11, at(1_100), all));
        let term = view(&mut seen).term.clone();
        view(&mut seen).kept = term;
        let known = Known(Some((1, 18)), None);
        let decide = |config: &Config| plan(config, &seen, &known, at(1_200)).poolers["p"]["reports"].clone();
        assert_eq!(decide(&config).target, None);
        let fallback = Route { fallback_primary: true, ..route(RouteTo::Replica) };
        config.poolers[0].routes.insert("reports".into(), fallback);
        assert_eq!(decide(&config).reason.rule, Rule::Fallback);
        assert_eq!(decide(&config).target.expect("the primary").members, ["pg1"]);
    }

    /// A pooler whose clients wait.
    struct Waiting;

    impl PoolerFacts for Waiting {
        fn version(&self, _: &str) -> Option<(u32, u32)> {
            Some((1, 18))
        }
        fn on_disk(&self, _: &str, _: &str) -> Option<Endpoint> {
            None
        }
        fn waits(&self, _: &str) -> bool {
            true
        }
    }

    #[test]
    fn without_a_store_nobody_is_led_ahead_to_a_timeline_that_is_over() {
        // The leader key has moved from pg1 to pg2, which is on timeline 1 and not proved writable.
        let ahead = |truth, known| {
            let mut config = config();
            config.clusters[0].truth = truth;
            let mut seen = observed(&config, at(1_000));
            view(&mut seen).raise_timeline(at(1_000), Timeline(known));
            view(&mut seen).observe_read(&config, at(1_100), read(11, at(1_100), keys(2)));
            view(&mut seen).leaving = Some("pg1".into());
            plan(&config, &seen, &Waiting, at(1_200)).poolers["p"]["app"].reason.rule
        };
        let members = Truth::Members { pollers: 1 };
        assert_eq!(ahead(members, 1), Rule::PointAhead);
        assert_eq!(ahead(members, 2), Rule::WritableLeader);
        // A store gave its key to pg2: its own key may be older than that.
        assert_eq!(ahead(Truth::Store, 2), Rule::PointAhead);
    }

    #[test]
    fn nothing_moves_before_the_term_is_kept_or_on_old_facts() {
        let config = config();
        let mut seen = observed(&config, at(1_000));
        let known = Known(Some((1, 18)), None);
        let rule = |seen: &Observed, now| plan(&config, seen, &known, now).poolers["p"]["app"].reason.rule;
        assert_eq!(rule(&seen, at(1_100)), Rule::TermKept);
        let term = view(&mut seen).term.clone();
        view(&mut seen).kept = term;
        assert_eq!(rule(&seen, at(1_100)), Rule::WritableLeader);
        assert!(plan(&config, &seen, &known, at(11_000)).poolers["p"]["app"].target.is_some());
        assert_eq!(rule(&seen, at(11_000) + Duration::from_micros(1)), Rule::FactAge);
    }
}
