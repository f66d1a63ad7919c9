//! `before_stop`: who is waited for, and for how long.
//!
//! It runs for every stop of a living server, in some of them inside Patroni's loop, where each second waited is a second
//! without a renewed lease (`patroni/postgresql/__init__.py`, `patroni/ha.py`). So it waits only for what is proved to be
//! a switchover or a restart of the primary, and everything unknown returns at once.

use super::conductor::{ANNOUNCE_WITHIN, Facts, NO_STORE, Said, epoch, live, missing};
use super::records::{Phase, PoolerWord, SWITCH, Switch, SwitchKind, VERSION, to_bytes};
use super::{SwitchState, UNCHANGED};
use crate::config::Mode;
use crate::event::HookId;
use crate::leader::writable_leader;
use crate::patroni::MemberStatus;
use crate::rule::Rule;
use crate::time::{Human, Time};
use crate::topology::Role;
use alloc::format;
use alloc::string::String;
use core::time::Duration;

/// The hook has to have its first answer within 100 ms: the local Patroni has this long to answer.
const CHECK_WITHIN: Duration = Duration::from_millis(75);
/// A record of a stop that was called off stays this long, so that everybody sees it.
const ABORTED_STAYS: Duration = Duration::from_secs(5);

/// How far the stop of the member on this host is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The local Patroni was asked what it is about to do.
    Checking,
    /// The store was told.
    Announcing {
        /// Since when.
        since: Time,
    },
    /// The poolers were told.
    Draining {
        /// Since when.
        since: Time,
    },
    /// The hook has returned, or is lost.
    Over {
        /// Since when.
        since: Time,
        /// It was lost before it was answered.
        aborted: bool,
    },
}

/// The member on this host is about to stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// The hook that waits.
    pub hook: HookId,
    /// When it asked.
    pub asked: Time,
    /// The wall clock then, in seconds since 1970.
    wall: u64,
    /// How far it is.
    pub step: Step,
    /// The hook was told to wait for the store's answer.
    patient: bool,
    /// What the poolers are told, once it is known.
    pub record: Option<Switch>,
}

impl Stop {
    /// Somebody waits for the answer.
    pub fn waits(&self) -> bool {
        !matches!(self.step, Step::Over { .. })
    }

    /// The hook has its answer, or is lost.
    pub(super) fn end(&mut self, now: Time, aborted: bool) {
        self.step = Step::Over { since: now, aborted };
        if let Some(record) = &mut self.record {
            record.phase = if aborted { Phase::Aborted } else { Phase::Stop };
        }
    }
}

/// `before_stop` asked.
pub fn before_stop(facts: &Facts<'_>, state: &mut SwitchState, hook: HookId, wall: u64, said: &mut Said) {
    if let Some(stop) = state.stop.as_mut().filter(|stop| stop.waits()) {
        stop.end(facts.now, false);
        said.give(stop.hook, true, "a second before_stop of the same stop came".into());
        said.give(hook, true, "a before_stop of the same stop was waiting: both return".into());
        return;
    }
    match worth_waiting(facts, state) {
        Err(why) => said.give(hook, true, why),
        Ok(()) => {
            // With a switchover asked of this member the poolers are told at once, while Patroni is asked: the answer
            // calls it off if this stop is for something else.
            let record = asked_of_us(facts, wall).is_ok().then(|| announce(facts, SwitchKind::Switchover));
            state.stop =
                Some(Stop { hook, asked: facts.now, wall, step: Step::Checking, patient: false, record });
        }
    }
}

fn announce(facts: &Facts<'_>, kind: SwitchKind) -> Switch {
    let drain_ms = u64::try_from(facts.config.switch.drain_timeout.as_millis()).unwrap_or(u64::MAX);
    Switch {
        v: VERSION,
        epoch: epoch(facts),
        from: facts.member().into(),
        kind,
        phase: Phase::Drain,
        started: facts.started.cloned(),
        drain_ms,
        traceparent: None,
    }
}

/// Whether there may be something to wait for, by what is known already.
fn worth_waiting(facts: &Facts<'_>, state: &SwitchState) -> Result<(), String> {
    if facts.config.mode != Mode::Enforce {
        return Err("observe mode: nobody is asked to drain".into());
    }
    if !facts.cluster.has_store() {
        return Err(NO_STORE.into());
    }
    if !facts.config.switch.drain {
        return Err("[switch] drain is off".into());
    }
    facts.leads()?;
    let view = &facts.observed.clusters[&facts.cluster.name];
    if view.topology.config.standby_cluster {
        return Err("a standby cluster has no writers to wait for".into());
    }
    if state.view.seen.is_none() {
        let why = state.view.failed.as_deref().unwrap_or("they were not read yet");
        return Err(format!("the keys of the poolers' agents are not known: {why}"));
    }
    if live(state).is_empty() {
        return Err("no pooler's agent is registered".into());
    }
    Ok(())
}

/// Returns whether the stop is still of interest.
pub(super) fn advance(facts: &Facts<'_>, state: &SwitchState, stop: &mut Stop, said: &mut Said) -> bool {
    match stop.step.clone() {
        Step::Checking => return check(facts, stop, said),
        Step::Announcing { since } => {
            let record = stop.record.as_ref().map(to_bytes).unwrap_or_default();
            if state.published.has(SWITCH, &record) {
                stop.step = Step::Draining { since: facts.now };
                return advance(facts, state, stop, said);
            }
            if facts.now.since(since) >= ANNOUNCE_WITHIN {
                said.give(stop.hook, true, "the store did not take the switch record in time".into());
                stop.end(facts.now, false);
            }
        }
        Step::Draining { since } => drain(facts, state, stop, since, said),
        Step::Over { since, aborted } => return is_open(facts, since, aborted),
    }
    true
}

fn check(facts: &Facts<'_>, stop: &mut Stop, said: &mut Said) -> bool {
    let patroni = &facts.observed.local_patroni;
    let status = patroni.last().filter(|_| patroni.seen() >= Some(stop.asked));
    let age = facts.now.since(stop.asked);
    match (status.map(|status| kind(facts, stop, status)), facts.leads_by_read()) {
        (Some(Ok(kind)), Ok(())) => {
            stop.record.get_or_insert_with(|| announce(facts, kind)).kind = kind;
            stop.step = Step::Announcing { since: facts.now };
            let at_most = facts.config.switch.drain_timeout + ANNOUNCE_WITHIN;
            said.wait(stop.hook, at_most, format!("before_stop: the poolers drain {}", facts.member()));
            true
        }
        (Some(Err(why)), _) => call_off(facts, stop, why, said),
        (_, Err(why)) if facts.leads().is_err() || age >= ANNOUNCE_WITHIN => call_off(facts, stop, why, said),
        (None, _) if age >= CHECK_WITHIN => {
            let why = "the local Patroni did not say in time what it is about to do";
            call_off(facts, stop, why.into(), said)
        }
        (Some(Ok(_)), Err(_)) if age >= CHECK_WITHIN && !stop.patient => {
            // Patroni has said that this is a switchover or a restart: the store has as long as for the record.
            stop.patient = true;
            said.wait(
                stop.hook,
                ANNOUNCE_WITHIN,
                "before_stop: the store is asked whose the leader key is".into(),
            );
            true
        }
        _ => true,
    }
}

/// Nothing to wait for. Returns whether somebody has to be told so.
fn call_off(facts: &Facts<'_>, stop: &mut Stop, why: String, said: &mut Said) -> bool {
    said.give(stop.hook, true, why);
    stop.end(facts.now, true);
    stop.record.is_some()
}

/// What the stop is for, if that is worth waiting.
fn kind(facts: &Facts<'_>, stop: &Stop, status: &MemberStatus) -> Result<SwitchKind, String> {
    facts.leads()?;
    if status.role.is_some_and(|role| role != Role::Primary) {
        return Err("the server on this host is no primary".into());
    }
    if status.state == "restarting" {
        return Ok(SwitchKind::Restart);
    }
    if status.state != "stopping" {
        return Err(format!("this is no stop for a switchover (Patroni's state is {})", status.state));
    }
    asked_of_us(facts, stop.wall).map(|()| SwitchKind::Switchover)
}

/// Whether a switchover is asked for that is due and means this member.
fn asked_of_us(facts: &Facts<'_>, wall: u64) -> Result<(), String> {
    let failover = facts.observed.clusters[&facts.cluster.name].topology.failover.as_ref();
    let failover = failover.ok_or("no switchover is asked for")?;
    let us = facts.member();
    if failover.leader.as_deref().is_some_and(|name| name != us) {
        return Err("the failover key names another leader".into());
    }
    if failover.candidate.as_deref() == Some(us) {
        return Err("the failover key names this member as the next leader".into());
    }
    match failover.scheduled_at.as_deref().map(crate::calendar::seconds_of) {
        Some(None) => Err("the time of the scheduled switchover is not understood".into()),
        Some(Some(at)) if at > i128::from(wall) + 1 => Err("the switchover is not due yet".into()),
        _ => Ok(()),
    }
}

/// Waits for the words of all that live.
fn drain(facts: &Facts<'_>, state: &SwitchState, stop: &mut Stop, since: Time, said: &mut Said) {
    if let Some(why) = enough(facts, state, stop, since) {
        said.give(stop.hook, true, why);
        stop.end(facts.now, false);
    }
}

/// Why nobody is waited for any more, if so.
fn enough(facts: &Facts<'_>, state: &SwitchState, stop: &Stop, since: Time) -> Option<String> {
    let epoch = &stop.record.as_ref()?.epoch;
    if !facts.config.mutants.obey(Rule::AckDrained) {
        return Some("the mutant does not wait for the poolers".into());
    }
    let drained = |word: &PoolerWord| !word.drains || word.drained.as_ref() == Some(epoch);
    let missing = missing(live(state), state, drained);
    if missing.is_empty() {
        let took = Human(facts.now.since(stop.asked));
        let left: u32 = state.view.peers.poolers.values().filter(|w| drained(w)).map(|w| w.links_left).sum();
        let left = if left > 0 { format!(", {left} links of session pools stay") } else { String::new() };
        return Some(format!("all poolers have drained {} after {took}{left}", facts.member()));
    }
    if facts.now.since(since) >= facts.config.switch.drain_timeout {
        return Some(format!("drain_timeout is over: {} did not drain in time", missing.join(", ")));
    }
    facts.leads().err().map(|why| format!("nothing to wait for any more: {why}"))
}

/// Whether a stop that was answered is still of interest to the poolers.
fn is_open(facts: &Facts<'_>, since: Time, aborted: bool) -> bool {
    let age = facts.now.since(since);
    if aborted {
        return age < ABORTED_STAYS;
    }
    let switch = &facts.config.switch;
    if age >= switch.hold_timeout + switch.failover_hold {
        return false;
    }
    let Ok(leader) = writable_leader(facts.config, facts.cluster, facts.observed, facts.now) else {
        return true;
    };
    if leader.name != facts.member() {
        return age < UNCHANGED;
    }
    // Its poolers see for themselves that it is back; they get some time for that.
    age < UNCHANGED + ABORTED_STAYS
}
