//! What became of orders: each answer goes to whoever asked.

use crate::agent::{Agent, Pending};
use crate::effect::EffectId;
use crate::event::Outcome;
use crate::observed::Fact;
use crate::patroni::{MemberStatus, read_member_status};
use crate::pgbouncer::pools::{InFlight, Pooler};
use crate::questions::Question;
use crate::rule::Rule;
use crate::time::Time;
use alloc::format;
use alloc::string::String;
use core::time::Duration;

impl Agent {
    pub(crate) fn observe_done(&mut self, id: EffectId, started: Time, outcome: Outcome) {
        if let Some(pending) = self.pending.remove(&id) {
            return self.observe_answer(pending, started, outcome);
        }
        let any = !self.config.mutants.obey(Rule::OnceOnly);
        let mine = |(_, pooler): &(&String, &mut Pooler)| {
            pooler.in_flight.as_ref().is_some_and(|f| f.id == id || any)
        };
        let Some((name, pooler)) = self.poolers.iter_mut().find(mine) else { return };
        let Some(InFlight { order, .. }) = pooler.in_flight.take() else { return };
        if order.changes() {
            let text = match &outcome {
                Outcome::Done => format!("{order}: done"),
                Outcome::Failed { why } => format!("{order}: {why}"),
                Outcome::ChangedMeanwhile => {
                    format!("{order}: the file changed meanwhile, nothing was written")
                }
                _ => format!("{order}: unexpected answer"),
            };
            self.recorder.say(self.now, "order", name, text);
        }
        pooler.observe_done(self.now, started, order, outcome);
    }

    pub(crate) fn observe_answer(&mut self, pending: Pending, started: Time, outcome: Outcome) {
        match pending {
            Pending::KeepTerm { cluster, term, durable, .. } => {
                let Some(view) = self.observed.clusters.get_mut(&cluster) else { return };
                view.keep_failed = match outcome {
                    Outcome::Failed { why } => Some((self.now, why)),
                    _ => None,
                };
                // A state folder that cannot be written must not keep the pools from following: it is shown instead.
                if durable {
                    view.durable.clone_from(&term);
                }
                view.kept = term;
            }
            Pending::Publish { cluster, .. } => {
                let Some(state) = self.switches.get_mut(&cluster) else { return };
                let result = match outcome {
                    Outcome::Done => Ok(()),
                    other => Err(why(other)),
                };
                state.published.answered(self.now, result);
            }
            Pending::Register { cluster } => {
                if let Some(state) = self.switches.get_mut(&cluster) {
                    state.published.registering = false;
                }
            }
            Pending::WatchServer => {}
            Pending::Question(question) => {
                self.schedule.answered(&question);
                self.learn_answer(question, started, outcome);
            }
        }
    }

    fn learn_answer(&mut self, question: Question, started: Time, outcome: Outcome) {
        match question {
            Question::Store(_) => {}
            Question::Member(cluster, member) => {
                if let Some(view) = self.observed.clusters.get_mut(&cluster) {
                    view.observe_member(&member, started, member_status(outcome));
                }
            }
            Question::LocalPatroni => {
                let wall = match &outcome {
                    Outcome::Member { wall, .. } => Some(*wall),
                    _ => None,
                };
                let answer = member_status(outcome);
                if let Ok(status) = &answer
                    && status.state == "running"
                    && status.started.is_some()
                {
                    self.observed.started.clone_from(&status.started);
                }
                if let (Ok(status), Some(wall)) = (&answer, wall) {
                    self.observed.store_seen =
                        status.store_seen.and_then(|seen| on_our_clock(seen, wall, started));
                }
                learn(&mut self.observed.local_patroni, started, answer);
            }
            Question::Local => {
                let answer = match outcome {
                    Outcome::Local(server) => Ok(server),
                    other => Err(why(other)),
                };
                learn(&mut self.observed.local, started, answer);
            }
        }
    }
}

/// When that was, in seconds since 1970 by the wall clock of this host, which showed `wall` when our own clock showed
/// `started`. None: it lies ahead, so the wall clock was set back and says nothing about ages.
fn on_our_clock(seconds: u64, wall: Duration, started: Time) -> Option<Time> {
    const ANSWER: Duration = Duration::from_secs(1);
    let seen = Duration::from_secs(seconds);
    (seen <= wall + ANSWER).then(|| started - wall.saturating_sub(seen))
}

fn member_status(outcome: Outcome) -> Result<MemberStatus, String> {
    match outcome {
        Outcome::Member { code, body, .. } => read_member_status(code, &body),
        other => Err(why(other)),
    }
}

/// Why there is no answer.
fn why(outcome: Outcome) -> String {
    match outcome {
        Outcome::Failed { why } => why,
        _ => "unexpected answer".into(),
    }
}

fn learn<T>(fact: &mut Fact<T>, started: Time, answer: Result<T, String>) {
    match answer {
        Ok(value) => fact.learn(value, started),
        Err(why) => *fact = Fact::Unknown { why },
    }
}
