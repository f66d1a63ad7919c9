//! The store is away: who vouches for the leader meanwhile, and until when (`on_dcs_loss`).
//!
//! Only verdicts rest on this. Nothing is moved to a leader who is merely vouched for.

use crate::config::{ClusterConfig, Config, OnDcsLoss, Route, RouteTo};
use crate::desired::{Decision, Target, one};
use crate::observed::{ClusterView, LOCAL_PROBE_AGE, Observed};
use crate::patroni::MemberStatus;
use crate::pgbouncer::pools::Pooler;
use crate::rule::{Reason, Rule};
use crate::time::{Human, Time};
use crate::topology::{Endpoint, Member};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

/// A member's word counts for so long: it is asked each second, and has a second to answer.
pub const WORD_AGE: Duration = Duration::from_secs(3);
/// What is left of a lease that Patroni's clock proves only to the second.
const CLOCK_MARGIN: Duration = Duration::from_secs(1);

/// A leader whom its own REST API, and with `confirm` a majority of the members, vouches for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vouched {
    /// Its name.
    pub leader: String,
    /// Where its server listens.
    pub endpoint: Endpoint,
    /// Until when those words count.
    pub until: Time,
    /// Its Patroni said that nobody else can take over while it says so: it goes on by the word of all members, or
    /// everybody is paused. Without that, only its lease keeps others from it.
    pub unrivalled: bool,
    /// Who says so, for people.
    pub text: String,
}

/// Who leads by the word of the members, while the store is away.
///
/// # Errors
/// Why nobody may be taken for the leader.
pub fn vouched(
    config: &Config,
    cluster: &ClusterConfig,
    view: &ClusterView,
    now: Time,
) -> Result<Vouched, Reason> {
    let no = |text: String| Reason::new(Rule::StoreAway, text);
    let topology = &view.topology;
    let away = match view.usable(config, cluster, now) {
        Err(reason) if reason.rule != Rule::FactAge => return Err(reason),
        Err(reason) => reason.text,
        Ok(_) if topology.leader.is_none() => format!("nobody holds the leader key of {}", cluster.name),
        Ok(_) => "the lease of the leader key is not proved".to_string(),
    };
    if cluster.on_dcs_loss == OnDcsLoss::FailClosed {
        return Err(no(format!("{away}; on_dcs_loss = \"fail-closed\"")));
    }
    let member = last_leader(view).filter(|_| !topology.config.standby_cluster);
    let Some((member, endpoint)) = member.and_then(|m| Some((m, m.endpoint.clone()?))) else {
        return Err(no(format!("{away}; who led before is not known")));
    };
    let leader = member.name.clone();
    if !config.mutants.obey(Rule::StoreAway) {
        let text = "nobody was asked".to_string();
        return Ok(Vouched { leader, endpoint, until: now + WORD_AGE, unrivalled: true, text });
    }
    let (word, seen) = word_of(view, &leader, now).map_err(|why| no(format!("{away}; {leader}: {why}")))?;
    let paused = topology.config.pause && word.pause && cluster.on_dcs_loss == OnDcsLoss::Confirm;
    let leads = word.is_writable() || paused && word.claims_primary();
    let has_key = topology.leader.is_some() || word.failsafe;
    let known = view.term.as_ref().and_then(|term| term.timeline);
    if !leads || !has_key || word.timeline < known {
        return Err(no(format!("{away}; {leader} itself does not say that it still leads")));
    }
    let (until, others) = match cluster.on_dcs_loss {
        OnDcsLoss::Confirm => {
            confirmed(view, word, paused, now).map_err(|why| no(format!("{away}; {why}")))?
        }
        _ => (seen, "its own REST API".to_string()),
    };
    let how = match (word.failsafe, paused) {
        (true, _) => ", which goes on in failsafe mode",
        (_, true) => ", in Patroni's pause",
        _ => "",
    };
    Ok(Vouched {
        endpoint,
        until: until.min(seen) + WORD_AGE,
        unrivalled: word.failsafe || paused,
        text: format!("{away}; {others} vouches for {leader}{how}"),
        leader,
    })
}

/// Who leads, or led before: in failsafe mode a primary goes on without its keys.
pub fn last_leader(view: &ClusterView) -> Option<&Member> {
    match view.topology.leader {
        Some(_) => view.topology.leader_member(),
        None => view.former_member.as_ref(),
    }
}

/// What a member last said, if that counts still.
fn word_of<'a>(view: &'a ClusterView, name: &str, now: Time) -> Result<(&'a MemberStatus, Time), String> {
    let Some(fact) = view.asked.get(name) else { return Err("its REST API was not asked yet".into()) };
    let word = fact.fresh(now, WORD_AGE).map_err(|why| format!("its REST API: {why}"))?;
    Ok((word, fact.seen().unwrap_or(Time::ZERO)))
}

/// Whether enough members answer and none of them knows a newer primary: when the oldest word that is needed was asked
/// for. In Patroni's pause the lock is not renewed, so that every member must say that it is paused.
fn confirmed(
    view: &ClusterView,
    leader: &MemberStatus,
    paused: bool,
    now: Time,
) -> Result<(Time, String), String> {
    let mut members: Vec<&String> = view.topology.members.keys().collect();
    let leads = last_leader(view).map(|member| &member.name);
    members.extend(leads.filter(|name| !view.topology.members.contains_key(*name)));
    let words: Vec<(&String, &MemberStatus, Time)> = members
        .iter()
        .filter_map(|name| word_of(view, name, now).ok().map(|(word, seen)| (*name, word, seen)))
        .filter(|(_, word, _)| word.system_id.is_none() || word.system_id == leader.system_id)
        .collect();
    let rival = |name: &&String, word: &MemberStatus| {
        leads != Some(*name) && (word.holds_lock || word.claims_primary()) && word.timeline >= leader.timeline
    };
    if let Some((name, ..)) = words.iter().find(|(name, word, _)| rival(name, word)) {
        return Err(format!("{name} says that it is primary as well"));
    }
    let needed = if paused { members.len() } else { members.len() / 2 + 1 };
    let mut seen: Vec<Time> =
        words.iter().filter(|(_, word, _)| word.pause || !paused).map(|(.., seen)| *seen).collect();
    seen.sort_unstable();
    match seen.iter().rev().nth(needed - 1) {
        Some(oldest) => Ok((*oldest, format!("{} of {} members' word", seen.len(), members.len()))),
        None => Err(format!(
            "{} of {} members answer, {needed} are needed{}",
            seen.len(),
            members.len(),
            if paused { " in Patroni's pause" } else { "" }
        )),
    }
}

/// When the lease of the leader key on this host ends at the earliest, as its Patroni's last sight of the store proves:
/// it renews the key with each look, or gives up being primary (`patroni/ha.py`).
///
/// # Errors
/// That it has ended, or is not known.
pub fn lease_by_patroni(observed: &Observed, view: &ClusterView, now: Time) -> Result<Time, String> {
    let Some(seen) = observed.store_seen else {
        return Err("the lease of the leader key is not proved: the Patroni on this host has not told when it last saw its store".into());
    };
    let (ttl, loop_wait) = (view.topology.config.ttl, view.topology.config.loop_wait);
    let end = seen + ttl.saturating_sub(loop_wait + CLOCK_MARGIN);
    if end < now {
        return Err(format!("the Patroni on this host last saw its store {} ago", Human(now.since(seen))));
    }
    Ok(end)
}

/// Where a route leads while the store is away, if somebody vouches for that, and until when.
///
/// # Errors
/// Why nobody does.
pub fn stand_in(
    config: &Config,
    observed: &Observed,
    pooler: &Pooler,
    (entry, route): (&str, &Route),
    now: Time,
) -> Result<(Decision, Time), Reason> {
    let no = |text: String| Reason::new(Rule::StoreAway, text);
    let cluster = config.cluster(&route.cluster).ok_or_else(|| no(format!("{entry}: no such cluster")))?;
    let view = &observed.clusters[&cluster.name];
    let decision = |target, text: String| Decision { target: Some(target), reason: no(text) };
    match route.to {
        RouteTo::Primary => {
            let vouched = vouched(config, cluster, view, now)?;
            Ok((decision(one(&vouched.leader, &vouched.endpoint), vouched.text), vouched.until))
        }
        _ if cluster.on_dcs_loss == OnDcsLoss::FailClosed => {
            Err(no(format!("{entry}: the store is away; on_dcs_loss = \"fail-closed\"")))
        }
        RouteTo::Local => {
            let name = observed.local_member(config).unwrap_or(&config.node);
            let endpoint = view.topology.members.get(name).and_then(|m| m.endpoint.as_ref());
            let endpoint = endpoint.ok_or_else(|| no(format!("{entry}: {name} is not a member")))?;
            let fresh = observed.local.fresh(now, LOCAL_PROBE_AGE);
            fresh.map_err(|why| no(format!("{entry}: the PostgreSQL on this host: {why}")))?;
            let until = observed.local.seen().unwrap_or(Time::ZERO) + LOCAL_PROBE_AGE;
            Ok((decision(one(name, endpoint), "the server on this host answers".into()), until))
        }
        RouteTo::Replica | RouteTo::Any => {
            if cluster.on_dcs_loss == OnDcsLoss::Confirm {
                majority(view, now).map_err(|why| no(format!("{entry}: {why}")))?;
            }
            let loaded = pooler.loaded(entry).ok_or_else(|| no(format!("{entry} leads nowhere")))?;
            let (names, until) = readers(view, route, &loaded, now);
            if names.is_empty() {
                return Err(no(format!("{entry}: no member behind {loaded} answers that it may be read")));
            }
            let text = format!("{} answer that they may be read", names.join(", "));
            let target = Target { members: names, ..one("", &loaded) };
            Ok((decision(target, text), until))
        }
    }
}

/// Whether most members answer: else this host may be alone with a replica that nobody feeds.
fn majority(view: &ClusterView, now: Time) -> Result<(), String> {
    let members = &view.topology.members;
    let answering = members.keys().filter(|name| word_of(view, name, now).is_ok()).count();
    match answering * 2 > members.len() {
        true => Ok(()),
        false => Err(format!("{answering} of {} members answer", members.len())),
    }
}

/// The members behind an entry that say that they run and are within its lag, and how long the newest of these words
/// counts.
fn readers(view: &ClusterView, route: &Route, loaded: &Endpoint, now: Time) -> (Vec<String>, Time) {
    let leader = view.topology.leader.as_ref().and_then(|l| word_of(view, &l.name, now).ok());
    let position = leader.and_then(|(word, _)| word.location);
    let behind = |member: &&Member| {
        member.endpoint.as_ref().is_some_and(|endpoint| {
            endpoint.port == loaded.port && loaded.host.split(',').any(|host| host == endpoint.host)
        })
    };
    let may = |word: &MemberStatus| {
        let lag = position.zip(word.replayed).map(|(leader, replica)| leader.0.saturating_sub(replica.0));
        let within = |limit: u64| word.location.is_some() || lag.is_some_and(|lag| lag <= limit);
        word.state == "running" && route.max_lag.is_none_or(within)
    };
    let fit = view.topology.members.values().filter(behind).filter_map(|member| {
        let (word, seen) = word_of(view, &member.name, now).ok()?;
        may(word).then(|| (member.name.clone(), seen))
    });
    let (names, seen): (Vec<String>, Vec<Time>) = fit.unzip();
    (names, seen.into_iter().max().unwrap_or(Time::ZERO) + WORD_AGE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::{at, config, keys, local_config, observed, read, rest, view};

    /// The store last answered at 1 s, pg1 led; then the members said these things at 20 s.
    fn asked(policy: OnDcsLoss, words: &[(&str, MemberStatus)]) -> Result<Vouched, Reason> {
        let mut config = config();
        config.clusters[0].on_dcs_loss = policy;
        let mut known = observed(&config, at(1_000));
        for (name, word) in words {
            view(&mut known).observe_member(name, at(20_000), Ok(word.clone()));
        }
        let cluster = &config.clusters[0];
        vouched(&config, cluster, &known.clusters["main"], at(20_500))
    }

    fn leader() -> MemberStatus {
        rest(200, "primary", "running", 1)
    }

    fn replica() -> MemberStatus {
        rest(503, "replica", "running", 1)
    }

    #[test]
    fn who_must_be_asked() {
        use OnDcsLoss::{Confirm, FailClosed, Hold};
        let up = |policy, words: &[(&str, MemberStatus)]| asked(policy, words).is_ok();
        let (alone, two) = ([("pg1", leader())], [("pg1", leader()), ("pg3", replica())]);
        assert!(up(Hold, &alone) && !up(Confirm, &alone) && !up(FailClosed, &alone));
        assert!(up(Hold, &two) && up(Confirm, &two) && !up(FailClosed, &two));
        assert!(!up(Confirm, &[("pg2", replica()), ("pg3", replica())]), "the leader itself is silent");
        assert!(!up(Hold, &[("pg1", replica())]), "it is no primary any more");
        let newer = rest(200, "primary", "running", 2);
        assert!(!up(Confirm, &[("pg1", leader()), ("pg2", newer), ("pg3", replica())]));
    }

    #[test]
    fn words_end() {
        let vouched = asked(OnDcsLoss::Confirm, &[("pg1", leader()), ("pg2", replica())]).expect("vouched");
        assert_eq!((vouched.until, vouched.unrivalled), (at(23_000), false));
    }

    #[test]
    fn in_patronis_pause_everybody_must_say_so() {
        let mut config = config();
        let mut known = observed(&config, at(1_000));
        let mut paused = keys(1);
        let value = crate::patroni::StoredValue { value: b"{\"pause\":true}".to_vec(), revision: 6 };
        paused.insert("config".into(), value);
        view(&mut known).observe_read(&config, at(2_000), read(12, at(2_000), paused));
        let says = |code, role| MemberStatus { pause: true, ..rest(code, role, "running", 1) };
        // The lock of a paused primary ends.
        view(&mut known).observe_member("pg1", at(20_000), Ok(says(503, "primary")));
        view(&mut known).observe_member("pg2", at(20_000), Ok(says(503, "replica")));
        let vouches = |config: &Config, known: &Observed| {
            vouched(config, &config.clusters[0], &known.clusters["main"], at(20_500))
        };
        assert!(vouches(&config, &known).is_err(), "pg3 may not be paused any more");
        view(&mut known).observe_member("pg3", at(20_000), Ok(says(503, "replica")));
        assert!(vouches(&config, &known).expect("all are paused").unrivalled);
        config.clusters[0].on_dcs_loss = OnDcsLoss::Hold;
        assert!(vouches(&config, &known).is_err(), "pg1 alone may not have heard of the end of the pause");
    }

    #[test]
    fn in_failsafe_mode_a_primary_goes_on_without_its_key() {
        let config = config();
        let mut known = observed(&config, at(1_000));
        let mut keyless = keys(1);
        keyless.remove("leader");
        keyless.remove("members/pg1");
        view(&mut known).observe_read(&config, at(2_000), read(12, at(2_000), keyless));
        let says = |failsafe| MemberStatus { failsafe, ..leader() };
        let mut vouches = |word| {
            view(&mut known).observe_member("pg1", at(2_500), Ok(word));
            view(&mut known).observe_member("pg2", at(2_500), Ok(replica()));
            vouched(&config, &config.clusters[0], &known.clusters["main"], at(2_500)).map(|v| v.leader)
        };
        assert!(vouches(says(false)).is_err());
        assert_eq!(vouches(says(true)), Ok("pg1".to_string()));
    }

    #[test]
    fn the_lease_that_patroni_proves_ends_a_loop_before_its_time() {
        let config = local_config();
        let mut known = observed(&config, at(1_000));
        let end = |known: &Observed, now| lease_by_patroni(known, &known.clusters["main"], now);
        assert!(end(&known, at(1_000)).is_err(), "it has not told");
        known.store_seen = Some(at(1_000));
        // ttl 30 s, loop_wait 10 s.
        assert_eq!(end(&known, at(20_000)), Ok(at(20_000)));
        assert!(end(&known, at(20_001)).is_err());
    }
}
