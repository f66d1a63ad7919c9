//! May writes be sent to the leader?

use crate::config::{ClusterConfig, Config};
use crate::observed::{ClusterView, LOCAL_PROBE_AGE, Observed};
use crate::rule::{Reason, Rule};
use crate::time::Time;
use crate::topology::{Endpoint, Member};
use crate::wal::Timeline;
use alloc::format;
use alloc::string::String;

/// A leader that is proved to accept writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WritableLeader {
    /// Its name.
    pub name: String,
    /// Where its server listens.
    pub endpoint: Endpoint,
    /// The timeline it writes on.
    pub timeline: Timeline,
    /// What proves it, for people.
    pub proof: String,
}

/// The leader of the cluster, if everything we know says that it accepts writes. It may still have to wait for its term
/// to be kept on disk: see [`term_kept`].
///
/// # Errors
/// The rule that speaks against it.
pub fn writable_leader(
    config: &Config,
    cluster: &ClusterConfig,
    observed: &Observed,
    now: Time,
) -> Result<WritableLeader, Reason> {
    let view = &observed.clusters[&cluster.name];
    let topology = view.usable(config, cluster, now)?;
    if topology.config.standby_cluster {
        return Err(Reason::new(
            Rule::HandsOff,
            format!("{} is a standby cluster: nobody accepts writes", cluster.name),
        ));
    }
    let Some(leader) = &topology.leader else {
        return Err(Reason::new(Rule::HandsOff, format!("nobody holds the leader key of {}", cluster.name)));
    };
    let Some(member) = topology.leader_member() else {
        let text = format!("the leader key names {}, which is no member of {}", leader.name, cluster.name);
        return Err(Reason::new(Rule::HandsOff, text));
    };
    let Some(endpoint) = &member.endpoint else {
        let problem = member.problem.as_deref().unwrap_or("its key has no conn_url");
        return Err(Reason::new(Rule::HandsOff, format!("{}: {problem}", member.name)));
    };
    let (timeline, proof) = proof(config, cluster, observed, view, member, now)?;
    check_timeline(config, view, member, timeline)?;
    check_claimants(config, cluster, view, member, timeline, now)?;
    Ok(WritableLeader { name: member.name.clone(), endpoint: endpoint.clone(), timeline, proof })
}

/// What proves that the leader is out of recovery: this host's own server, if it is the leader; else its REST API.
fn proof(
    config: &Config,
    cluster: &ClusterConfig,
    observed: &Observed,
    view: &ClusterView,
    member: &Member,
    now: Time,
) -> Result<(Timeline, String), Reason> {
    if !config.mutants.obey(Rule::WritableLeader) {
        let timeline = member.timeline.or(view.term.as_ref().and_then(|t| t.timeline));
        return Ok((timeline.unwrap_or(Timeline(1)), "none".into()));
    }
    let not = |text: String| Err(Reason::new(Rule::WritableLeader, text));
    let here = config.local.as_ref().is_some_and(|l| l.cluster == cluster.name && l.probe);
    if here
        && observed.local_member(config) == Some(&member.name)
        && let Ok(server) = observed.local.fresh(now, LOCAL_PROBE_AGE)
    {
        if server.in_recovery {
            return not(format!("{} leads, but its server is still in recovery", member.name));
        }
        if let Some(timeline) = server.timeline {
            return Ok((timeline, "the server on this host is out of recovery".into()));
        }
    }
    if let Some(timeline) = word_of_agent(config, view, member, now) {
        return Ok((timeline, format!("the agent beside {} says so", member.name)));
    }
    let Some(fact) = view.asked.get(&member.name) else {
        return not(format!("{} leads; its REST API has not answered yet", member.name));
    };
    let max_age =
        if config.mutants.obey(Rule::FactAge) { cluster.max_fact_age } else { core::time::Duration::MAX };
    match fact.fresh(now, max_age) {
        Err(why) => not(format!("{} leads; its REST API: {why}", member.name)),
        Ok(status) if !status.is_writable() => {
            let role = status.role.map_or("unknown", |role| role.word());
            not(format!(
                "{} leads, but is not writable yet (state {}, role {role})",
                member.name, status.state
            ))
        }
        Ok(status) => match (status.timeline, &status.system_id, &view.topology.system_id) {
            (_, Some(said), Some(known)) if said != known => {
                not(format!("{} answers for system {said}, but the cluster is {known}", member.name))
            }
            (Some(timeline), ..) => Ok((timeline, format!("{} says so by REST", member.name))),
            (None, ..) => not(format!("{} does not tell its timeline", member.name)),
        },
    }
}

/// The agent beside a new leader sees the end of the recovery first. Its word counts until the leader's own REST API has
/// been asked after it, and not for long.
fn word_of_agent(config: &Config, view: &ClusterView, member: &Member, now: Time) -> Option<Timeline> {
    let (word, heard) = view.word.as_ref()?;
    let leader = view.topology.leader.as_ref()?;
    let is_current = word.member == member.name && word.leader_revision == leader.revision;
    let asked = view.asked.get(&member.name).and_then(|fact| fact.seen());
    let answered = asked.is_some_and(|asked| asked >= *heard);
    let fresh = now.since(*heard) <= LOCAL_PROBE_AGE || !config.mutants.obey(Rule::FactAge);
    (is_current && !answered && fresh).then_some(word.timeline)
}

fn check_timeline(
    config: &Config,
    view: &ClusterView,
    member: &Member,
    timeline: Timeline,
) -> Result<(), Reason> {
    let below = view.term.as_ref().and_then(|t| t.timeline).filter(|known| timeline < *known);
    match below {
        Some(known) if config.mutants.obey(Rule::TermTimeline) => Err(Reason::new(
            Rule::TermTimeline,
            format!("{} writes on timeline {timeline}, but timeline {known} was already seen", member.name),
        )),
        _ => Ok(()),
    }
}

fn check_claimants(
    config: &Config,
    cluster: &ClusterConfig,
    view: &ClusterView,
    member: &Member,
    timeline: Timeline,
    now: Time,
) -> Result<(), Reason> {
    let claimants = view.claimants(now, cluster.max_fact_age, timeline);
    match claimants.first() {
        Some(other) if config.mutants.obey(Rule::TwoPrimaries) => Err(Reason::new(
            Rule::TwoPrimaries,
            format!(
                "{} leads, but {other} says that it is primary as well, on timeline {timeline} or newer",
                member.name
            ),
        )),
        _ => Ok(()),
    }
}

/// Whether the term is on disk, so that no later run of this agent goes back behind it.
///
/// # Errors
/// That it is not yet.
pub fn term_kept(config: &Config, view: &ClusterView) -> Result<(), Reason> {
    if view.term == view.kept || !config.mutants.obey(Rule::TermKept) {
        return Ok(());
    }
    Err(Reason::new(Rule::TermKept, "the new term is being written to the state folder"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::{at, config, keys, observed, read, rest, view};
    use crate::patroni::MemberStatus;

    #[test]
    fn what_speaks_against_a_leader() {
        let asked = |status: MemberStatus, started: Time| {
            let config = config();
            let mut known = observed(&config, at(1_000));
            let view = view(&mut known);
            view.raise_timeline(at(1_000), Timeline(1));
            view.asked.clear();
            view.observe_member("pg1", started, Ok(status));
            writable_leader(&config, &config.clusters[0], &known, at(11_000)).map_err(|reason| reason.rule)
        };
        let up = |code, state, timeline| rest(code, "primary", state, timeline);
        assert_eq!(asked(up(200, "running", 1), at(2_000)).map(|l| l.name), Ok("pg1".into()));
        assert_eq!(asked(up(503, "running", 1), at(2_000)), Err(Rule::WritableLeader));
        assert_eq!(asked(up(200, "stopping", 1), at(2_000)), Err(Rule::WritableLeader));
        assert_eq!(asked(rest(200, "replica", "running", 1), at(2_000)), Err(Rule::WritableLeader));
        // Older than `max_fact_age`, or from before it led.
        assert_eq!(asked(up(200, "running", 1), at(1_000)).map(|l| l.timeline), Ok(Timeline(1)));
        assert_eq!(asked(up(200, "running", 1), at(999)), Err(Rule::WritableLeader));
    }

    #[test]
    fn an_older_timeline_and_a_second_primary_hold_it() {
        let config = config();
        let mut known = observed(&config, at(1_000));
        let rule = |known: &Observed| {
            writable_leader(&config, &config.clusters[0], known, at(1_500)).map_err(|reason| reason.rule)
        };
        assert!(rule(&known).is_ok());
        view(&mut known).observe_member("pg2", at(1_200), Ok(rest(503, "primary", "running", 1)));
        assert_eq!(rule(&known), Err(Rule::TwoPrimaries));
        view(&mut known).observe_member("pg2", at(1_300), Ok(rest(503, "replica", "running", 1)));
        assert!(rule(&known).is_ok());
        view(&mut known).raise_timeline(at(1_400), Timeline(2));
        assert_eq!(rule(&known), Err(Rule::TermTimeline));
    }

    #[test]
    fn a_new_leader_is_asked_anew() {
        let config = config();
        let mut known = observed(&config, at(1_000));
        view(&mut known).observe_member("pg2", at(1_100), Ok(rest(200, "primary", "running", 1)));
        view(&mut known).observe_read(&config, at(1_200), read(11, at(1_200), keys(2)));
        let reason = writable_leader(&config, &config.clusters[0], &known, at(1_300)).unwrap_err();
        assert_eq!(reason.text, "pg2 leads; its REST API has not answered yet");
    }
}
