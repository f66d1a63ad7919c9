//! Patroni's synchronous hooks on a member's host: what they are decided by, what they are told, and how they go on.
//! [`before_stop`] and [`fence`] say who is waited for.

use super::before_stop::{self, Stop};
use super::records::PoolerWord;
use super::{SwitchState, fence};
use crate::config::{ClusterConfig, Config, Fence};
use crate::effect::HookAnswer;
use crate::event::HookId;
use crate::observed::Observed;
use crate::time::Time;
use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

/// The store has this long to take the record.
pub(super) const ANNOUNCE_WITHIN: Duration = Duration::from_millis(250);

/// Why no hook waits where the truth comes from the members alone.
pub(super) const NO_STORE: &str =
    "dcs = \"patroni\": without a store nobody can tell the poolers, and nobody is waited for";

/// What the hooks are decided by.
pub struct Facts<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// The cluster of the member on this host.
    pub cluster: &'a ClusterConfig,
    /// What is known.
    pub observed: &'a Observed,
    /// When the local Patroni was last running, its server had been started then.
    pub started: Option<&'a String>,
    /// Now.
    pub now: Time,
}

/// Answers to give, and lines for the flight recorder.
#[derive(Debug, Default)]
pub struct Said {
    /// Answers.
    pub answers: Vec<(HookId, HookAnswer)>,
    /// Lines.
    pub notes: Vec<String>,
}

impl Said {
    pub(super) fn give(&mut self, hook: HookId, go_on: bool, why: String) {
        self.notes.push(why.clone());
        self.answers.push((hook, HookAnswer::Return { go_on, why }));
    }

    pub(super) fn wait(&mut self, hook: HookId, at_most: Duration, why: String) {
        let at_most_ms = u64::try_from(at_most.as_millis()).unwrap_or(u64::MAX);
        self.notes.push(why.clone());
        self.answers.push((hook, HookAnswer::Wait { at_most_ms, why }));
    }
}

impl Facts<'_> {
    pub(super) fn member(&self) -> &str {
        self.observed.local_member(self.config).unwrap_or(&self.config.node)
    }

    /// The leader key is ours, as last heard.
    pub(super) fn leads(&self) -> Result<(), String> {
        let view = &self.observed.clusters[&self.cluster.name];
        let Some(leader) = &view.topology.leader else { return Err("nobody holds the leader key".into()) };
        if leader.name != self.member() {
            return Err(format!("{} holds the leader key, not {}", leader.name, self.member()));
        }
        Ok(())
    }

    /// … and the store was read lately.
    pub(super) fn leads_by_read(&self) -> Result<(), String> {
        self.leads()?;
        let view = &self.observed.clusters[&self.cluster.name];
        let age = self.now.since(view.seen.unwrap_or(Time::ZERO));
        if view.seen.is_none() || age >= view.topology.config.loop_wait.min(self.cluster.max_fact_age) {
            return Err("the store has not confirmed the leader key lately".into());
        }
        Ok(())
    }
}

/// Agents with poolers that live, as their leases say.
pub(super) fn live(state: &SwitchState) -> BTreeSet<String> {
    let peers = &state.view.peers;
    peers.poolers.keys().chain(&peers.strangers).cloned().collect()
}

/// The hook is gone.
pub fn lost(facts: &Facts<'_>, state: &mut SwitchState, hook: HookId, said: &mut Said) {
    if let Some(stop) = state.stop.as_mut().filter(|stop| stop.hook == hook && stop.waits()) {
        said.notes.push("before_stop was ended before it was answered: the stop may not happen".into());
        stop.end(facts.now, true);
    }
    if let Some(promotion) = state.promotion.as_mut().filter(|promotion| promotion.hook == Some(hook)) {
        said.notes.push("pre_promote was ended before it was answered".into());
        promotion.hook = None;
    }
}

/// No two are alike: a leadership has one revision, and the clock of a host only goes forward while it is up.
pub(super) fn epoch(facts: &Facts<'_>) -> String {
    let view = &facts.observed.clusters[&facts.cluster.name];
    let revision = view.topology.leader.as_ref().map_or(0, |leader| leader.revision);
    format!("{}-{revision}-{}", facts.config.node, facts.now.as_micros())
}

/// The agent stops: nobody waits for an answer that cannot come.
pub fn stop(facts: &Facts<'_>, state: &mut SwitchState, said: &mut Said) {
    if let Some(stop) = state.stop.take().filter(Stop::waits) {
        said.give(stop.hook, true, "the agent on this host stops".into());
    }
    if let Some(hook) = state.promotion.take().and_then(|promotion| promotion.hook) {
        let go_on = facts.config.switch.fence != Fence::Strict;
        said.give(hook, go_on, "the agent on this host stops".into());
    }
}

/// Takes both hooks further. Call it at every turn.
pub fn step(facts: &Facts<'_>, state: &mut SwitchState, said: &mut Said) {
    if let Some(mut stop) = state.stop.take() {
        let keep = before_stop::advance(facts, state, &mut stop, said);
        state.stop = keep.then_some(stop);
    }
    if let Some(mut promotion) = state.promotion.take() {
        let keep = fence::promote(facts, state, &mut promotion, said);
        state.promotion = keep.then_some(promotion);
    }
}

/// Who has not given the word.
pub(super) fn missing(
    asked: BTreeSet<String>,
    state: &SwitchState,
    given: impl Fn(&PoolerWord) -> bool,
) -> Vec<String> {
    let has = |node: &String| state.view.peers.poolers.get(node).is_some_and(&given);
    asked.into_iter().filter(|node| !has(node)).collect()
}
