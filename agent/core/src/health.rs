//! Verdicts for load balancers. Each carries its own end.

use crate::config::{ClusterConfig, Config, Route, RouteTo};
use crate::desired::Decision;
use crate::leader::term_kept;
use crate::observed::{ClusterView, Observed, PRIMARY_PROBE_AGE};
use crate::outage::{lease_by_patroni, stand_in, vouched};
use crate::pgbouncer::pools::{CONSOLE_AGE, Pooler};
use crate::rule::{Reason, Rule};
use crate::status::Verdict;
use crate::time::{Human, Time};
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};

fn down(rule: Rule, text: impl Into<String>) -> Verdict {
    Verdict { up: false, reason: Reason::new(rule, text), valid_until: Time::NEVER, holding: None }
}

/// May this host say "primary: up"? Only until the earliest end of what proves it: age of the store's answer, the
/// leader's lease as proved by that read, and the local server's last answer.
pub fn primary(config: &Config, observed: &Observed, now: Time) -> Verdict {
    match primary_until(config, observed, now) {
        Err(reason) => Verdict { up: false, reason, valid_until: Time::NEVER, holding: None },
        Ok((text, until)) => Verdict {
            up: true,
            reason: Reason::new(Rule::PrimaryUp, text),
            valid_until: if config.mutants.obey(Rule::VerdictEnds) { until } else { Time::NEVER },
            holding: None,
        },
    }
}

/// The member on this host, if it leads as far as anybody knows, and until when its server's word counts.
fn leader_here<'a>(
    config: &'a Config,
    observed: &'a Observed,
    now: Time,
) -> Result<(&'a str, &'a ClusterView, Time), Reason> {
    let no = |text: String| Reason::new(Rule::PrimaryUp, text);
    let (Some(local), Some(name)) = (&config.local, observed.local_member(config)) else {
        return Err(no("there is no PostgreSQL on this host".into()));
    };
    let view =
        observed.clusters.get(&local.cluster).ok_or_else(|| no("its cluster is not configured".into()))?;
    if let Some(leader) = view.topology.leader.as_ref().filter(|leader| leader.name != name) {
        return Err(no(format!("{} holds the leader key", leader.name)));
    }
    if let Some(why) = &observed.stopping {
        return Err(no(why.clone()));
    }
    if view.topology.config.standby_cluster {
        return Err(no("this is a standby cluster".into()));
    }
    let server = observed
        .local
        .fresh(now, PRIMARY_PROBE_AGE)
        .map_err(|why| no(format!("the PostgreSQL on this host: {why}")))?;
    if server.in_recovery && config.mutants.obey(Rule::PrimaryUp) {
        return Err(no(format!("{name} is still in recovery")));
    }
    if server.timeline < view.term.as_ref().and_then(|term| term.timeline) {
        return Err(no("the PostgreSQL on this host is on an older timeline".to_string()));
    }
    Ok((name, view, observed.local.seen().unwrap_or(Time::ZERO) + PRIMARY_PROBE_AGE))
}

fn primary_until(config: &Config, observed: &Observed, now: Time) -> Result<(String, Time), Reason> {
    let local = config.local.as_ref().and_then(|local| config.cluster(&local.cluster));
    let cluster = local.ok_or_else(|| {
        Reason::new(Rule::PrimaryUp, "there is no PostgreSQL of a configured cluster on this host")
    })?;
    if let Err(reason) = observed.clusters[&cluster.name].usable(config, cluster, now)
        && reason.rule != Rule::FactAge
    {
        return Err(reason);
    }
    let (name, view, probe_end) = leader_here(config, observed, now)?;
    let by_store = by_store(config, cluster, observed, view, now);
    let by_members = by_members(config, cluster, observed, view, name, now);
    let (text, until) = match (by_store, by_members) {
        (Ok(until), Err(_)) => (format!("{name} holds the leader key and is out of recovery"), until),
        (Ok(until), Ok((_, longer))) => {
            (format!("{name} holds the leader key and is out of recovery"), until.max(longer))
        }
        (Err(_), Ok((text, until))) => (text, until),
        (Err(reason), Err(other)) if other.rule == Rule::StoreAway => {
            // It mostly begins with what is wrong with the store.
            let text = match other.text.starts_with(&reason.text) {
                true => other.text,
                false => format!("{}; {}", reason.text, other.text),
            };
            return Err(Reason::new(reason.rule, text));
        }
        (Err(reason), Err(_)) => return Err(reason),
    };
    Ok((text, until.min(probe_end)))
}

/// Until when the store proves that this host leads: age of its answer, and the lease as that proved it; a store that
/// does not tell leases leaves that to the Patroni on this host.
fn by_store(
    config: &Config,
    cluster: &ClusterConfig,
    observed: &Observed,
    view: &ClusterView,
    now: Time,
) -> Result<Time, Reason> {
    let no = |text: String| Reason::new(Rule::PrimaryUp, text);
    if view.usable(config, cluster, now)?.leader.is_none() {
        return Err(no("nobody holds the leader key".into()));
    }
    let lease_end = match view.lease {
        Some((read, ttl)) => read + ttl,
        None => lease_by_patroni(observed, view, now).map_err(no)?,
    };
    if lease_end < now && config.mutants.obey(Rule::PrimaryUp) {
        return Err(no(format!(
            "the proved lease of the leader key ended {} ago",
            Human(now.since(lease_end))
        )));
    }
    Ok(lease_end.min(view.seen.unwrap_or(Time::ZERO) + cluster.max_fact_age))
}

/// Until when the members' word stands in for the store's. Unless nobody else can take over at all, it does not outlive
/// the lease.
fn by_members(
    config: &Config,
    cluster: &ClusterConfig,
    observed: &Observed,
    view: &ClusterView,
    name: &str,
    now: Time,
) -> Result<(String, Time), Reason> {
    let vouched = vouched(config, cluster, view, now)?;
    if vouched.leader != name {
        return Err(Reason::new(Rule::StoreAway, format!("{} led before", vouched.leader)));
    }
    let until = match vouched.unrivalled {
        true => vouched.until,
        false => {
            let by_store = view.lease.map(|(read, ttl)| read + ttl).filter(|end| *end >= now);
            let by_patroni = lease_by_patroni(observed, view, now);
            let lease = match (by_store, by_patroni) {
                (Some(end), Ok(other)) => end.max(other),
                (Some(end), Err(_)) | (None, Ok(end)) => end,
                (None, Err(why)) => return Err(Reason::new(Rule::StoreAway, why)),
            };
            vouched.until.min(lease)
        }
    };
    Ok((vouched.text, until))
}

/// May this pooler get traffic? PgBouncer answers, no database of a route is paused, every target is verified.
pub fn pool(
    config: &Config,
    observed: &Observed,
    pooler: &Pooler,
    (routes, decisions): (&BTreeMap<String, Route>, &BTreeMap<String, Decision>),
    now: Time,
) -> Verdict {
    let seen = match pooler.console.fresh(now, CONSOLE_AGE) {
        Ok(_) => pooler.console.seen().unwrap_or(Time::ZERO),
        Err(why) => return down(Rule::VerifyLinks, format!("PgBouncer's console: {why}")),
    };
    let until = seen + CONSOLE_AGE;
    if let Some(own) = pooler.pause.as_ref().filter(|own| now < own.pause.until) {
        // A red answer would make the load balancer cut the clients that wait.
        return Verdict {
            up: true,
            reason: Reason::new(Rule::HoldLost, format!("clients wait: {}", own.pause.cause)),
            valid_until: until.min(own.pause.until),
            holding: Some(own.pause.until),
        };
    }
    match routes_until(config, observed, pooler, (routes, decisions), now) {
        Ok((reason, end)) => Verdict { up: true, reason, valid_until: until.min(end), holding: None },
        Err(reason) => Verdict { up: false, reason, valid_until: Time::NEVER, holding: None },
    }
}

/// Whether a route leads nowhere because the store is silent, or because a primary goes on without its key.
fn is_away(observed: &Observed, route: &Route, why: &Reason) -> bool {
    let view = observed.clusters.get(&route.cluster);
    let keyless = || view.is_some_and(|view| view.topology.leader.is_none() && view.former.is_some());
    why.rule == Rule::FactAge || route.to == RouteTo::Primary && keyless()
}

/// Until when a route is known to lead where it must. A store that falls silent leaves no gap between its word and the
/// members'.
fn known_until(
    config: &Config,
    observed: &Observed,
    pooler: &Pooler,
    (entry, route, decision): (&str, &Route, &Decision),
    now: Time,
) -> Result<Time, Reason> {
    let cluster = config.cluster(&route.cluster);
    let view = observed.clusters.get(&route.cluster);
    let (Some(cluster), Some(view)) = (cluster, view) else { return Ok(Time::NEVER) };
    term_kept(config, view)?;
    let end = view.seen.unwrap_or(Time::ZERO) + cluster.max_fact_age;
    if end.since(now) >= cluster.max_fact_age / 2 {
        return Ok(end);
    }
    let place = |d: &Decision| d.target.as_ref().map(|target| target.endpoint.clone());
    let longer = stand_in(config, observed, pooler, (entry, route), now);
    let longer = longer.ok().filter(|(other, _)| place(other) == place(decision));
    Ok(longer.map_or(end, |(_, longer)| end.max(longer)))
}

fn routes_until(
    config: &Config,
    observed: &Observed,
    pooler: &Pooler,
    (routes, decisions): (&BTreeMap<String, Route>, &BTreeMap<String, Decision>),
    now: Time,
) -> Result<(Reason, Time), Reason> {
    let mut until = Time::NEVER;
    let mut reason = Reason::new(Rule::VerifyLinks, "every route is verified");
    for (entry, decision) in decisions {
        let about = |reason: &Reason| Reason::new(reason.rule, format!("{entry}: {}", reason.text));
        let stand_in = match (&decision.target, routes.get(entry)) {
            (None, Some(route)) if is_away(observed, route, &decision.reason) => {
                let (stand_in, end) =
                    stand_in(config, observed, pooler, (entry, route), now).map_err(|why| about(&why))?;
                until = until.min(end);
                reason = stand_in.reason.clone();
                Some(stand_in)
            }
            (None, _) => return Err(about(&decision.reason)),
            (Some(_), route) => {
                if let Some(route) = route {
                    let end = known_until(config, observed, pooler, (entry, route, decision), now)?;
                    until = until.min(end);
                }
                None
            }
        };
        let decision = stand_in.as_ref().unwrap_or(decision);
        let is_paused = |database: &&str| pooler.row(database).is_some_and(|row| row.paused);
        if let Some(paused) = pooler.databases_of(entry).into_iter().find(is_paused) {
            return Err(Reason::new(Rule::VerifyLinks, format!("{paused} is paused")));
        }
        if !pooler.is_serving(entry, decision, now) && config.mutants.obey(Rule::VerifyLinks) {
            return Err(Reason::new(Rule::VerifyLinks, format!("{entry} is not verified yet")));
        }
    }
    Ok((reason, until))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::OnDcsLoss;
    use crate::event::LocalServer;
    use crate::example::{at, keys, local_config, observed, read, view};
    use crate::wal::Timeline;
    use core::time::Duration;

    fn server(in_recovery: bool) -> LocalServer {
        LocalServer { in_recovery, timeline: Some(Timeline(1)), lsn: None }
    }

    #[test]
    fn primary_up_ends_with_the_first_of_its_facts() {
        let config = local_config();
        let mut known = observed(&config, at(1_000));
        assert!(!primary(&config, &known, at(1_000)).up, "the server was not asked");
        known.local.learn(server(false), at(2_000));
        let end = |known: &Observed| primary(&config, known, at(2_100)).valid_until;
        assert_eq!(end(&known), at(3_000), "the server's word");
        view(&mut known).lease = Some((at(1_000), Duration::from_millis(1_500)));
        assert_eq!(end(&known), at(2_500), "the lease");
        view(&mut known).lease = Some((at(1_000), Duration::from_secs(1)));
        assert!(!primary(&config, &known, at(2_100)).up, "the lease has ended");
        known.local.learn(server(false), at(10_900));
        view(&mut known).lease = Some((at(1_000), Duration::from_secs(60)));
        assert_eq!(
            primary(&config, &known, at(10_950)).valid_until,
            at(11_000),
            "the age of the store's answer"
        );
        assert!(primary(&config, &known, at(11_000)).is_up(at(11_000)));
        assert!(!primary(&config, &known, at(11_000)).is_up(at(11_001)));
    }

    #[test]
    fn what_is_wrong_with_the_store_is_said_once() {
        let mut config = local_config();
        config.clusters[0].on_dcs_loss = OnDcsLoss::FailClosed;
        let mut known = observed(&config, at(1_000));
        known.local.learn(server(false), at(20_000));
        let text = primary(&config, &known, at(20_000)).reason.text;
        assert_eq!(text, "the store of main last answered 19.0s ago; on_dcs_loss = \"fail-closed\"");
    }

    #[test]
    fn what_makes_primary_red() {
        let config = local_config();
        let mut known = observed(&config, at(1_000));
        known.local.learn(server(true), at(1_100));
        assert!(!primary(&config, &known, at(1_200)).up, "in recovery");
        known.local.learn(server(false), at(1_300));
        assert!(primary(&config, &known, at(1_400)).up);
        view(&mut known).raise_timeline(at(1_400), Timeline(2));
        assert!(!primary(&config, &known, at(1_400)).up, "an older timeline");
        let mut known = observed(&config, at(1_000));
        known.local.learn(server(false), at(1_100));
        view(&mut known).observe_read(&config, at(1_200), read(11, at(1_200), keys(2)));
        assert_eq!(primary(&config, &known, at(1_300)).reason.text, "pg2 holds the leader key");
    }
}
