//! When the pools of this host wait instead of failing: because a member announced its stop, because the primary is
//! lost, or because another member is about to be promoted. Every hold has an end.

use super::records::Phase;
use super::{SwitchState, UNCHANGED, causes};
use crate::config::{ClusterConfig, Config, Mode, RouteTo};
use crate::event::ServerWord;
use crate::leader::{WritableLeader, writable_leader};
use crate::observed::{ClusterView, LOCAL_PROBE_AGE, Observed};
use crate::rule::Rule;
use crate::time::{Human, Time};
use crate::topology::{Endpoint, Topology};
use crate::wal::Timeline;
use alloc::format;
use alloc::string::String;
use core::time::Duration;

/// So many ended epochs are remembered.
const REMEMBERED: usize = 16;

/// Why the pools wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The member announced its stop.
    Planned,
    /// It cannot be reached, or says that it is not writable.
    Lost,
    /// Another member is about to be promoted.
    Fenced,
}

/// The pools that lead to one member wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// The member that is let go of.
    pub from: String,
    /// Its server.
    pub endpoint: Endpoint,
    /// Why.
    pub cause: Cause,
    /// Why, for people.
    pub why: String,
    /// Epoch of the switch or fence record that began it.
    pub epoch: Option<String>,
    /// Since when.
    pub since: Time,
    /// It ends then, whatever happens.
    pub until: Time,
    /// The longest it may become: later than `until` only while it can still be prolonged.
    pub(super) last: Time,
    /// Timeline of the term at its beginning: a newer one ends it.
    pub(super) timeline: Option<Timeline>,
    /// Start time of the member's server as announced.
    pub(super) started: Option<String>,
    /// The member's hook has returned, as far as we saw.
    pub(super) stop_seen: Option<Time>,
    /// The hook was lost.
    pub(super) aborted: bool,
    /// The server on this host was seen away (for `local` routes).
    pub(super) was_down: bool,
    /// Epoch of a fence record that waits for our word, and since when.
    pub fence: Option<(String, Time)>,
}

/// What became of a hold in this turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The pools wait from now on.
    Began(String),
    /// They wait for longer.
    Extended(String),
    /// They wait no more.
    Ended(String),
}

/// Everything a hold is decided by.
pub struct Facts<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// The cluster.
    pub cluster: &'a ClusterConfig,
    /// What is known.
    pub observed: &'a Observed,
    /// Where the write pools of this host lead, as loaded.
    pub led_to: &'a [Endpoint],
    /// The shortest of the poolers' own limits for waiting clients, less their margin.
    pub limit: Option<Duration>,
    /// Now.
    pub now: Time,
}

impl Facts<'_> {
    pub(super) fn view(&self) -> &ClusterView {
        &self.observed.clusters[&self.cluster.name]
    }

    pub(super) fn topology(&self) -> &Topology {
        &self.view().topology
    }

    pub(super) fn leader(&self) -> Option<&str> {
        self.topology().leader.as_ref().map(|leader| leader.name.as_str())
    }

    pub(super) fn writable(&self) -> Option<WritableLeader> {
        writable_leader(self.config, self.cluster, self.observed, self.now).ok()
    }

    pub(super) fn member_at(&self, endpoint: &Endpoint) -> Option<&str> {
        let mut members = self.topology().members.values();
        members.find(|m| m.endpoint.as_ref() == Some(endpoint)).map(|m| m.name.as_str())
    }

    fn may_hold(&self) -> bool {
        self.config.mode == Mode::Enforce
            && !self.topology().config.standby_cluster
            && self.config.routes_into(&self.cluster.name).next().is_some()
    }

    /// How long a hold may last in all.
    pub(super) fn bounded(&self, wanted: Duration) -> Duration {
        self.limit.map_or(wanted, |limit| wanted.min(limit))
    }

    fn only_local_routes(&self) -> bool {
        self.config.routes_into(&self.cluster.name).all(|route| route.to == RouteTo::Local)
    }
}

/// Begins, prolongs or ends the hold of a cluster.
pub fn step(facts: &Facts<'_>, state: &mut SwitchState) -> Option<Change> {
    if let Some(mut hold) = state.hold.take() {
        watch(facts, state, &mut hold);
        if let Some(why) = over(facts, state, &hold) {
            end(state, &hold);
            state.given_up = None;
            return Some(Change::Ended(why));
        }
        if facts.now >= hold.last {
            end(state, &hold);
            let waited = Human(facts.now.since(hold.since));
            state.given_up = Some(hold.endpoint);
            return Some(Change::Ended(format!("nobody became writable within {waited}")));
        }
        let change = prolong(facts, &mut hold);
        state.hold = Some(hold);
        return change;
    }
    if serves_again(facts, state) {
        state.given_up = None;
    }
    let hold = facts.may_hold().then(|| begin(facts, state)).flatten()?;
    let why = format!("{}: pools that lead to {} wait", hold.why, hold.from);
    state.hold = Some(hold);
    Some(Change::Began(why))
}

/// Writers are served again after all. That the watched server merely accepts connections does not say so: a primary that
/// lost its store comes up again as a replica.
fn serves_again(facts: &Facts<'_>, state: &SwitchState) -> bool {
    match state.server.as_ref().map(|sign| &sign.word) {
        Some(ServerWord::InRecovery(false)) => true,
        Some(ServerWord::Up) => facts.writable().is_some(),
        Some(_) => false,
        None => state.watched.is_none() && facts.writable().is_some(),
    }
}

fn begin(facts: &Facts<'_>, state: &SwitchState) -> Option<Hold> {
    causes::announced(facts, state)
        .or_else(|| causes::fenced(facts, state))
        .or_else(|| causes::lost(facts, state))
}

impl Hold {
    /// Whether the member that was let go of may be writable again, or still: worth asking it often.
    pub fn may_be_back(&self) -> bool {
        self.cause != Cause::Planned || self.stop_seen.is_some()
    }

    /// A hold that begins now. [`Hold::planned`] and [`Hold::lasting`] say why, and for how long.
    pub(super) fn new(facts: &Facts<'_>, from: &str, endpoint: Endpoint, why: String) -> Self {
        Hold {
            from: from.into(),
            endpoint,
            cause: Cause::Lost,
            why,
            epoch: None,
            since: facts.now,
            until: facts.now,
            last: facts.now,
            timeline: facts.view().term.as_ref().and_then(|term| term.timeline),
            started: None,
            stop_seen: None,
            aborted: false,
            was_down: false,
            fence: None,
        }
    }

    /// The member announced this stop: the hold lasts for `hold_timeout`, and may become longer by `failover_hold`.
    pub(super) fn planned(self, facts: &Facts<'_>, epoch: &str, started: Option<String>) -> Self {
        let switch = &facts.config.switch;
        Hold {
            cause: Cause::Planned,
            epoch: Some(epoch.into()),
            started,
            until: self.since + facts.bounded(switch.hold_timeout),
            last: self.since + facts.bounded(switch.hold_timeout + switch.failover_hold),
            ..self
        }
    }

    /// It ends after this time and does not become longer.
    pub(super) fn lasting(self, cause: Cause, time: Duration) -> Self {
        Hold { cause, until: self.since + time, last: self.since + time, ..self }
    }
}

/// The member said by its REST API that it stops before its announcement was heard: the hold becomes the announced one,
/// else nobody would tell its hook that the pools have drained.
fn join_announced(facts: &Facts<'_>, state: &SwitchState, hold: &mut Hold) {
    let Some(record) = &state.view.peers.switch else { return };
    let new = hold.cause == Cause::Lost && hold.epoch.is_none() && !state.ended.contains(&record.epoch);
    let announced = record.from == hold.from && record.phase != Phase::Aborted && facts.config.switch.drain;
    if !new || !announced || facts.leader() != Some(&record.from) {
        return;
    }
    *hold = hold.clone().planned(facts, &record.epoch, record.started.clone());
}

/// Takes what was heard since into the hold.
fn watch(facts: &Facts<'_>, state: &SwitchState, hold: &mut Hold) {
    join_announced(facts, state, hold);
    let record = state.view.peers.switch.as_ref().filter(|r| Some(&r.epoch) == hold.epoch.as_ref());
    match record {
        Some(record) => {
            if record.phase != Phase::Drain {
                hold.stop_seen.get_or_insert(facts.now);
            }
            hold.aborted |= record.phase == Phase::Aborted;
        }
        // Its agent is gone; the hook is not longer than its time-out.
        None if hold.cause == Cause::Planned => {
            hold.stop_seen.get_or_insert(facts.now + facts.config.switch.drain_timeout);
        }
        None => {}
    }
    if let Some(fence) = &state.view.peers.fence
        && fence.member != hold.from
        && facts.leader() == Some(&fence.member)
        && hold.fence.as_ref().is_none_or(|(epoch, _)| *epoch != fence.epoch)
    {
        hold.fence = Some((fence.epoch.clone(), facts.now));
    }
    hold.was_down |= facts.observed.local.seen().is_none();
}

/// A planned pause that has lasted for `hold_timeout` goes on as an unplanned one: the member may be half stopped.
fn prolong(facts: &Facts<'_>, hold: &mut Hold) -> Option<Change> {
    if hold.cause != Cause::Planned || facts.now < hold.until || hold.last <= hold.until {
        return None;
    }
    hold.cause = Cause::Lost;
    hold.until = hold.last;
    let left = Human(hold.last.since(facts.now));
    Some(Change::Extended(format!(
        "{} has not been replaced yet: its pools wait for up to {left} more",
        hold.from
    )))
}

/// Why clients need not wait any more, if so.
fn over(facts: &Facts<'_>, state: &SwitchState, hold: &Hold) -> Option<String> {
    if facts.only_local_routes() && facts.config.local.is_some() {
        let server = facts.observed.local.fresh(facts.now, LOCAL_PROBE_AGE).is_ok();
        let back = server && facts.observed.local.seen() > Some(hold.since);
        if back && (hold.was_down || unchanged(facts, hold)) {
            return Some("the server on this host accepts connections".into());
        }
    } else if let Some(leader) = facts.writable() {
        let newer = leader.name != hold.from || Some(leader.timeline) > hold.timeline;
        if newer {
            return Some(format!("{} is writable on timeline {}", leader.name, leader.timeline));
        }
        if let Some(why) = is_back(facts, state, hold) {
            return Some(why);
        }
    } else if !facts.config.mutants.obey(Rule::ResumeWhenWritable)
        && facts.leader().is_some_and(|leader| leader != hold.from)
    {
        return Some("the mutant does not wait for the new leader to be writable".into());
    }
    (!facts.may_hold()).then(|| "nothing may be held any more".into())
}

/// Whether the member itself is writable again, or still.
fn is_back(facts: &Facts<'_>, state: &SwitchState, hold: &Hold) -> Option<String> {
    if !facts.config.mutants.obey(Rule::NotIntoTheDrained) {
        return Some("the mutant resumes into the member that stops".into());
    }
    let asked = facts.view().asked.get(&hold.from)?;
    let (status, seen) = (asked.last()?, asked.seen()?);
    if seen <= hold.since || !status.is_writable() {
        return None;
    }
    if hold.aborted {
        return Some(format!("the stop of {} was called off", hold.from));
    }
    if hold.cause == Cause::Planned {
        let restarted = matches!((&hold.started, &status.started), (Some(old), Some(new)) if old != new);
        if restarted {
            return Some(format!("{} was restarted and is writable", hold.from));
        }
        let still = unchanged(facts, hold) && hold.stop_seen.is_some_and(|at| seen > at + UNCHANGED);
        return still.then(|| format!("{} did not stop", hold.from));
    }
    let sign = state.server.as_ref().filter(|sign| sign.endpoint == hold.endpoint);
    let away =
        sign.is_some_and(|sign| matches!(sign.word, ServerWord::Lost { .. } | ServerWord::InRecovery(true)));
    let fenced = hold.fence.is_some() && state.view.peers.fence.is_some();
    (!away && !fenced).then(|| format!("{} is back and writable", hold.from))
}

fn unchanged(facts: &Facts<'_>, hold: &Hold) -> bool {
    hold.stop_seen.is_some_and(|at| facts.now > at && facts.now.since(at) >= UNCHANGED)
}

/// What this hold was about starts no other one.
fn end(state: &mut SwitchState, hold: &Hold) {
    let record = state.view.peers.switch.iter().map(|record| &record.epoch);
    let fence = hold.fence.iter().map(|(epoch, _)| epoch);
    for epoch in record.chain(hold.epoch.iter()).chain(fence) {
        if !state.ended.contains(epoch) {
            state.ended.push_back(epoch.clone());
        }
    }
    while state.ended.len() > REMEMBERED {
        state.ended.pop_front();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::{at, config, keys, observed, read, view};
    use crate::switch::ServerSign;

    #[test]
    fn a_server_that_merely_accepts_connections_does_not_end_what_was_given_up() {
        let config = config();
        let cluster = &config.clusters[0];
        let endpoint = Endpoint { host: "10.0.0.1".into(), port: 5432 };
        let given_up = |known: &Observed, word: ServerWord| {
            let sign = ServerSign { endpoint: endpoint.clone(), word, at: at(1_400) };
            let mut state = SwitchState {
                given_up: Some(endpoint.clone()),
                watched: Some(endpoint.clone()),
                server: Some(sign),
                ..SwitchState::default()
            };
            let facts =
                Facts { config: &config, cluster, observed: known, led_to: &[], limit: None, now: at(1_500) };
            step(&facts, &mut state);
            state.given_up.is_some()
        };
        let mut known = observed(&config, at(1_000));
        assert!(!given_up(&known, ServerWord::Up), "the leader is proved writable");
        assert!(given_up(&known, ServerWord::InRecovery(true)));
        view(&mut known).observe_read(&config, at(1_200), read(11, at(1_200), keys(2)));
        assert!(given_up(&known, ServerWord::Up), "nobody is proved writable");
        assert!(!given_up(&known, ServerWord::InRecovery(false)), "its own word is a proof");
    }
}
