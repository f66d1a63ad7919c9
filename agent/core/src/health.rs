//! Verdicts for load balancers. Each carries its own end.

use crate::config::Config;
use crate::desired::Decision;
use crate::leader::term_kept;
use crate::observed::{Observed, PRIMARY_PROBE_AGE};
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
        Ok((name, until)) => Verdict {
            up: true,
            reason: Reason::new(
                Rule::PrimaryUp,
                format!("{name} holds the leader key and is out of recovery"),
            ),
            valid_until: if config.mutants.obey(Rule::VerdictEnds) { until } else { Time::NEVER },
            holding: None,
        },
    }
}

fn primary_until(config: &Config, observed: &Observed, now: Time) -> Result<(String, Time), Reason> {
    let no = |text: String| Reason::new(Rule::PrimaryUp, text);
    let (Some(local), Some(name)) = (&config.local, observed.local_member(config)) else {
        return Err(no("there is no PostgreSQL on this host".into()));
    };
    let cluster = config.cluster(&local.cluster).ok_or_else(|| no("its cluster is not configured".into()))?;
    let view = &observed.clusters[&local.cluster];
    let topology = view.usable(config, cluster, now)?;
    let obey = config.mutants.obey(Rule::PrimaryUp);
    match &topology.leader {
        Some(leader) if leader.name == name => {}
        Some(leader) => return Err(no(format!("{} holds the leader key", leader.name))),
        None => return Err(no("nobody holds the leader key".into())),
    }
    if let Some(why) = &observed.stopping {
        return Err(no(why.clone()));
    }
    if topology.config.standby_cluster {
        return Err(no("this is a standby cluster".into()));
    }
    let (read, ttl) = view.lease.ok_or_else(|| no("the lease of the leader key is not proved".into()))?;
    let lease_end = read + ttl;
    if lease_end < now && obey {
        return Err(no(format!(
            "the proved lease of the leader key ended {} ago",
            Human(now.since(lease_end))
        )));
    }
    let server = observed
        .local
        .fresh(now, PRIMARY_PROBE_AGE)
        .map_err(|why| no(format!("the PostgreSQL on this host: {why}")))?;
    if server.in_recovery && obey {
        return Err(no(format!("{name} is still in recovery")));
    }
    let term = view.term.as_ref().and_then(|term| term.timeline);
    if server.timeline < term {
        return Err(no("the PostgreSQL on this host is on an older timeline".to_string()));
    }
    let probe_end = observed.local.seen().unwrap_or(Time::ZERO) + PRIMARY_PROBE_AGE;
    let view_end = view.seen.unwrap_or(Time::ZERO) + cluster.max_fact_age;
    Ok((name.into(), lease_end.min(probe_end).min(view_end)))
}

/// May this pooler get traffic? PgBouncer answers, no database of a route is paused, every target is verified.
pub fn pool(
    config: &Config,
    observed: &Observed,
    pooler: &Pooler,
    decisions: &BTreeMap<String, Decision>,
    now: Time,
) -> Verdict {
    let seen = match pooler.console.fresh(now, CONSOLE_AGE) {
        Ok(_) => pooler.console.seen().unwrap_or(Time::ZERO),
        Err(why) => return down(Rule::VerifyLinks, format!("PgBouncer's console: {why}")),
    };
    let mut until = seen + CONSOLE_AGE;
    if let Some(own) = pooler.pause.as_ref().filter(|own| now < own.pause.until) {
        // A red answer would make the load balancer cut the clients that wait.
        return Verdict {
            up: true,
            reason: Reason::new(Rule::HoldLost, format!("clients wait: {}", own.pause.cause)),
            valid_until: until.min(own.pause.until),
            holding: Some(own.pause.until),
        };
    }
    for (entry, decision) in decisions {
        if decision.target.is_none() {
            return down(decision.reason.rule, format!("{entry}: {}", decision.reason.text));
        }
        let is_paused = |database: &&str| pooler.row(database).is_some_and(|row| row.paused);
        if let Some(paused) = pooler.databases_of(entry).into_iter().find(is_paused) {
            return down(Rule::VerifyLinks, format!("{paused} is paused"));
        }
        if !pooler.is_serving(entry, decision, now) && config.mutants.obey(Rule::VerifyLinks) {
            return down(Rule::VerifyLinks, format!("{entry} is not verified yet"));
        }
    }
    for (name, view) in &observed.clusters {
        if config.routes_into(name).next().is_some() {
            let cluster_end = view.seen.unwrap_or(Time::ZERO)
                + config.cluster(name).map_or(CONSOLE_AGE, |c| c.max_fact_age);
            until = until.min(cluster_end);
            if let Err(reason) = term_kept(config, view) {
                return Verdict { up: false, reason, valid_until: Time::NEVER, holding: None };
            }
        }
    }
    Verdict {
        up: true,
        reason: Reason::new(Rule::VerifyLinks, "every route is verified"),
        valid_until: until,
        holding: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
