//! `pre_promote`: nobody may be able to write to the old primary before there is a new one.

use super::SwitchState;
use super::conductor::{ANNOUNCE_WITHIN, Facts, NO_STORE, Said, epoch, live, missing};
use super::records::{Fencing, PoolerWord, VERSION};
use crate::config::{Fence, Mode};
use crate::event::HookId;
use crate::leader::writable_leader;
use crate::rule::Rule;
use crate::time::{Human, Time};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// The member on this host is about to be promoted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Promotion {
    /// The hook that waits; none: it was answered.
    pub hook: Option<HookId>,
    /// When it asked.
    pub asked: Time,
    /// What the poolers are told.
    pub record: Fencing,
}

/// `pre_promote` asked.
pub fn pre_promote(facts: &Facts<'_>, state: &mut SwitchState, hook: HookId, said: &mut Said) {
    let fence = facts.config.switch.fence;
    if fence == Fence::Off || facts.config.mode != Mode::Enforce || !facts.config.mutants.obey(Rule::Fenced) {
        return said.give(
            hook,
            true,
            "nobody is asked: [switch] fence is off, or this is observe mode".into(),
        );
    }
    if !facts.cluster.has_store() {
        return said.give(hook, fence != Fence::Strict, NO_STORE.into());
    }
    if let Some(first) = state.promotion.as_mut().and_then(|promotion| promotion.hook.take()) {
        said.give(first, fence != Fence::Strict, "a second pre_promote came".into());
    }
    let view = &facts.observed.clusters[&facts.cluster.name];
    let record = Fencing {
        v: VERSION,
        epoch: epoch(facts),
        member: facts.member().into(),
        former: view.former.clone(),
        strict: fence == Fence::Strict,
    };
    let waits = format!("pre_promote: the poolers are asked to let go of {}", former(&record));
    said.wait(hook, facts.config.switch.fence_timeout + ANNOUNCE_WITHIN, waits);
    state.promotion = Some(Promotion { hook: Some(hook), asked: facts.now, record });
}

fn former(record: &Fencing) -> &str {
    record.former.as_deref().unwrap_or("whoever led before")
}

/// Returns whether the promotion is still of interest.
pub(super) fn promote(
    facts: &Facts<'_>,
    state: &SwitchState,
    promotion: &mut Promotion,
    said: &mut Said,
) -> bool {
    let record = &promotion.record;
    let switch = &facts.config.switch;
    let Some(hook) = promotion.hook else {
        let view = &facts.observed.clusters[&facts.cluster.name];
        let leads = view.topology.leader.as_ref().is_some_and(|leader| leader.name == record.member);
        let writable = writable_leader(facts.config, facts.cluster, facts.observed, facts.now).is_ok();
        return leads
            && !writable
            && facts.now.since(promotion.asked) < switch.hold_timeout + switch.failover_hold;
    };
    let missing = silent(facts, state, record);
    let took = Human(facts.now.since(promotion.asked));
    let (go_on, why) = if missing.is_empty() {
        (true, format!("no pooler can write to {} any more, after {took}", former(record)))
    } else if facts.now.since(promotion.asked) >= switch.fence_timeout {
        let who = missing.join(", ");
        match record.strict {
            true => (
                false,
                format!(
                    "not fenced, no promotion: no word from {who} (`pgsquire forget NAME` takes a pooler out)"
                ),
            ),
            false => (true, format!("promotion goes on without the word of {who}")),
        }
    } else {
        return true;
    };
    said.give(hook, go_on, why);
    promotion.hook = None;
    // A refused promotion gives the lock away: the poolers need not wait for it.
    go_on
}

/// Who has not said yet that he cannot write to the old primary any more.
fn silent(facts: &Facts<'_>, state: &SwitchState, record: &Fencing) -> Vec<String> {
    let peers = &state.view.peers;
    let mut asked = live(state);
    let trusts_leases = !record.strict || !facts.config.mutants.obey(Rule::StrictFence);
    if trusts_leases {
        // A pooler beside the lost leader may be as lost as that is.
        let beside = |node: &String| {
            let word = peers.poolers.get(node);
            record.former.is_some() && word.is_some_and(|word| word.member == record.former)
        };
        asked.retain(|node| !beside(node));
    } else {
        asked.extend(peers.registry.iter().cloned());
        if state.view.seen.is_none() {
            asked.insert("the store, whose registry was not read".into());
        }
    }
    let let_go = |word: &PoolerWord| {
        word.fenced.as_ref() == Some(&record.epoch)
            || word.holds.is_some() && word.holds == record.former && word.links_left == 0
    };
    missing(asked, state, let_go)
}
