//! The terms of the clusters: raised by proof, kept on disk, and adopted anew only when somebody vouches for it.

use crate::agent::{Agent, Pending};
use crate::effect::{Effect, EffectId, Order};
use crate::event::Outcome;
use crate::leader::writable_leader;
use crate::observed::{Candidate, ClusterView};
use crate::questions::Question;
use crate::rule::{Reason, Rule};
use alloc::vec::Vec;
use core::time::Duration;

/// A state folder that has not kept a term within this does not keep the pools from following …
const KEEP_WITHIN: Duration = Duration::from_secs(2);
/// … and is tried again after this.
const KEEP_AGAIN: Duration = Duration::from_secs(5);

impl Agent {
    pub(crate) fn confirm_candidates(&mut self) {
        for cluster in &self.config.clusters {
            let Some(view) = self.observed.clusters.get_mut(&cluster.name) else { continue };
            let is_confirmed = |c: &Candidate| c.is_confirmed(&view.topology, self.now, cluster.max_fact_age);
            if view.candidate.as_ref().is_some_and(is_confirmed) {
                self.recorder.say(
                    self.now,
                    "term",
                    &cluster.name,
                    "a majority of the members confirmed the store: followed",
                );
                view.follow_candidate(self.now);
            }
        }
    }

    /// A leader that is proved writable lifts the term to its timeline.
    pub(crate) fn raise_terms(&mut self) {
        for cluster in &self.config.clusters {
            if let Ok(leader) = writable_leader(&self.config, cluster, &self.observed, self.now)
                && let Some(view) = self.observed.clusters.get_mut(&cluster.name)
            {
                view.raise_timeline(self.now, leader.timeline);
            }
        }
    }

    pub(crate) fn keep_terms(&mut self, effects: &mut Vec<Effect>) {
        self.give_up_keeping();
        let mut orders = Vec::new();
        for (cluster, view) in &self.observed.clusters {
            let mine = |p: &Pending| matches!(p, Pending::KeepTerm { cluster: c, .. } if c == cluster);
            let again = view.keep_failed.as_ref().is_some_and(|(at, _)| self.now.since(*at) >= KEEP_AGAIN);
            // A pool that follows waits for what outlives this process. A power cut ends PgBouncer as well, and the term of
            // the leader key, which was durable before anybody was promoted, is enough for the start after it.
            let durable = view.term == view.kept;
            let missing = view.term != view.kept || view.term != view.durable;
            if (missing || again) && !self.pending.values().any(mine) {
                orders.push((cluster.clone(), view.term.clone(), durable));
            }
        }
        for (cluster, term, durable) in orders {
            let reason = Reason::new(Rule::TermKept, "no later run may go back behind it");
            let order = Order::KeepTerm { cluster: cluster.clone(), term: term.clone(), durable };
            let pending = Pending::KeepTerm { cluster, term, durable, since: self.now };
            let effect = self.effect(order, reason, Some(pending));
            effects.push(effect);
        }
    }

    /// A state folder that hangs counts as one that cannot be written.
    pub(crate) fn give_up_keeping(&mut self) {
        let now = self.now;
        let late =
            |p: &Pending| matches!(p, Pending::KeepTerm { since, .. } if now.since(*since) >= KEEP_WITHIN);
        let ids: Vec<EffectId> = self.pending.iter().filter(|(_, p)| late(p)).map(|(id, _)| *id).collect();
        for pending in ids.iter().filter_map(|id| self.pending.remove(id)).collect::<Vec<_>>() {
            let why = "the state folder did not answer in time".into();
            self.observe_answer(pending, now, Outcome::Failed { why });
        }
    }

    pub(crate) fn forget_term(&mut self, cluster: &str) {
        let Some(view) = self.observed.clusters.get_mut(cluster) else { return };
        self.recorder.say(self.now, "term", cluster, "forgotten on the operator's word");
        match view.candidate {
            Some(_) => view.adopt_candidate(self.now),
            None => *view = ClusterView::new(None),
        }
        self.schedule.hurry(&Question::Store(cluster.into()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Event, Restored};
    use crate::example::{at, config, keys, read};

    /// Gives the agent an event and returns the orders about terms, as (revision, durable).
    fn kept(agent: &mut Agent, ms: u64, event: Event) -> Vec<(EffectId, Option<u64>, bool)> {
        let orders = agent.handle(at(ms), event).into_iter();
        let about_terms = |effect: Effect| match effect.order {
            Order::KeepTerm { term, durable, .. } => {
                Some((effect.id, term.map(|term| term.revision), durable))
            }
            _ => None,
        };
        orders.filter_map(about_terms).collect()
    }

    #[test]
    fn a_term_is_kept_for_the_next_run_first_and_made_durable_then() {
        let mut agent = Agent::new(config(), Restored::default(), at(0));
        let seen = Event::StoreRead { cluster: "main".into(), read: read(10, at(1), keys(1)) };
        let first = kept(&mut agent, 1, seen);
        let [(id, Some(revision), false)] = first[..] else { panic!("{first:?}") };
        assert!(kept(&mut agent, 2, Event::Tick).is_empty(), "one at a time");
        let done = |id| Event::Done { id, started: at(2), outcome: Outcome::Done };
        let second = kept(&mut agent, 3, done(id));
        let [(id, Some(again), true)] = second[..] else { panic!("{second:?}") };
        assert_eq!(again, revision);
        assert!(kept(&mut agent, 4, done(id)).is_empty(), "nothing is left to do");
    }
}
