//! What begins a hold: an announced stop, a promotion that is about to happen, a primary that is proved to be lost.

use super::SwitchState;
use super::hold::{Cause, Facts, Hold};
use super::records::{Phase, Switch, SwitchKind};
use crate::event::ServerWord;
use crate::observed::LOCAL_PROBE_AGE;
use crate::rule::Rule;
use crate::topology::Endpoint;
use alloc::format;
use alloc::string::{String, ToString};

/// First version of Patroni that has `before_stop`.
pub const HAS_BEFORE_STOP: (u32, u32, u32) = (3, 0, 3);

/// A member's agent announced its stop, or Patroni is too old to let it.
pub(super) fn announced(facts: &Facts<'_>, state: &SwitchState) -> Option<Hold> {
    let switch = &facts.config.switch;
    let drains = switch.drain && facts.config.mutants.obey(Rule::DrainPlanned);
    if !drains || facts.view().usable(facts.config, facts.cluster, facts.now).is_err() {
        return None;
    }
    let leader = facts.topology().leader_member()?;
    let endpoint = leader.endpoint.clone()?;
    if let Some(record) = &state.view.peers.switch
        && record.from == leader.name
        && record.phase != Phase::Aborted
        && !state.ended.contains(&record.epoch)
    {
        let why = format!("{} is about to stop ({})", record.from, kind(record));
        let hold = Hold::new(facts, &leader.name, endpoint, why);
        return Some(hold.planned(facts, &record.epoch, record.started.clone()));
    }
    let failover = facts.topology().failover.as_ref()?;
    let asked = failover.leader.as_ref().is_none_or(|name| *name == leader.name)
        && failover.candidate.as_ref() != Some(&leader.name)
        && failover.scheduled_at.is_none();
    let epoch = format!("failover key, leader key {}", facts.topology().leader.as_ref()?.revision);
    let old =
        leader.version.as_deref().and_then(read_version).is_some_and(|version| version < HAS_BEFORE_STOP);
    if !old || !asked || state.ended.contains(&epoch) {
        return None;
    }
    let why =
        format!("a switchover is asked for, and Patroni {} has no before_stop", leader.version.as_deref()?);
    let hold = Hold::new(facts, &leader.name, endpoint, why);
    let mut hold = hold.planned(facts, &epoch, None);
    hold.stop_seen = Some(facts.now + switch.drain_timeout);
    Some(hold)
}

fn kind(record: &Switch) -> &'static str {
    match record.kind {
        SwitchKind::Switchover => "switchover",
        SwitchKind::Restart => "restart",
    }
}

/// `3.0.2` -> (3, 0, 2).
pub fn read_version(text: &str) -> Option<(u32, u32, u32)> {
    let mut parts = text.split('.').map(|part| {
        let digits: String = part.chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    });
    Some((parts.next()??, parts.next().flatten().unwrap_or(0), parts.next().flatten().unwrap_or(0)))
}

/// Another member took the lock and is about to be promoted.
pub(super) fn fenced(facts: &Facts<'_>, state: &SwitchState) -> Option<Hold> {
    let record = state.view.peers.fence.as_ref()?;
    // After a restart of the agent nobody may have been writable yet: then where the pools lead tells who is let go of.
    let promoted = facts.topology().members.get(&record.member).and_then(|member| member.endpoint.as_ref());
    let elsewhere = |endpoint: &&Endpoint| Some(*endpoint) != promoted;
    let watched = state.watched.as_ref().filter(elsewhere);
    let endpoint = watched.or_else(|| facts.led_to.iter().find(elsewhere))?;
    let from = facts.member_at(endpoint).map_or_else(|| endpoint.to_string(), Into::into);
    if record.member == from
        || facts.leader() != Some(&record.member)
        || state.ended.contains(&record.epoch)
        || state.given_up.as_ref() == Some(endpoint)
    {
        return None;
    }
    if facts.writable().is_some_and(|leader| leader.name == record.member) {
        return None;
    }
    let hold_for = facts.config.switch.failover_hold.max(facts.config.switch.fence_timeout);
    let why = format!("{} is about to be promoted", record.member);
    Some(Hold {
        epoch: Some(record.epoch.clone()),
        fence: Some((record.epoch.clone(), facts.now)),
        ..Hold::new(facts, &from, endpoint.clone(), why).lasting(Cause::Fenced, facts.bounded(hold_for))
    })
}

/// The primary cannot be reached, or says that it is not writable.
pub(super) fn lost(facts: &Facts<'_>, state: &SwitchState) -> Option<Hold> {
    let switch = &facts.config.switch;
    let endpoint = state.watched.as_ref()?;
    if !facts.config.mutants.obey(Rule::HoldOnProof) {
        // The mutant takes a missing leader key for a lost primary.
        let missing = facts.topology().leader.is_none() && facts.view().seen.is_some();
        if missing {
            let why = "nobody holds the leader key".into();
            let hold = Hold::new(facts, "?", endpoint.clone(), why);
            return Some(hold.lasting(Cause::Lost, switch.failover_hold));
        }
    }
    let why = lost_server(facts, state, endpoint)?;
    let holds = !switch.failover_hold.is_zero() && facts.config.mutants.obey(Rule::HoldLost);
    if !holds || state.given_up.as_ref() == Some(endpoint) {
        return None;
    }
    if facts.writable().is_some_and(|leader| leader.endpoint != *endpoint) {
        // There is a better place already.
        return None;
    }
    // While Patroni is paused nobody takes over: only a postmaster that is restarted comes back.
    let paused = facts.topology().config.pause;
    let hold_for = if paused { switch.hold_timeout.min(switch.failover_hold) } else { switch.failover_hold };
    let from = facts.member_at(endpoint).map_or_else(|| endpoint.to_string(), Into::into);
    let hold = Hold::new(facts, &from, endpoint.clone(), why);
    Some(hold.lasting(Cause::Lost, facts.bounded(hold_for)))
}

/// Why the server counts as lost, if it does: the connection to it says so, or its own Patroni.
fn lost_server(facts: &Facts<'_>, state: &SwitchState, endpoint: &Endpoint) -> Option<String> {
    let sign = state.server.as_ref().filter(|sign| sign.endpoint == *endpoint);
    match sign.map(|sign| &sign.word) {
        Some(ServerWord::Lost { why }) => return Some(format!("the server at {endpoint} is lost ({why})")),
        Some(ServerWord::InRecovery(true)) => {
            return Some(format!("the server at {endpoint} is in recovery"));
        }
        _ => {}
    }
    let member = facts.member_at(endpoint)?;
    let status = facts.view().asked.get(member)?.fresh(facts.now, LOCAL_PROBE_AGE).ok()?;
    let is_down = matches!(status.state.as_str(), "stopping" | "stopped" | "restarting" | "crashed");
    is_down.then(|| format!("{member} says that its server is {}", status.state))
}
