//! The hooks that wait: where the driver leaves its answers, and the connections find them.

use super::HOOKS;
use pgsquire_core::effect::HookAnswer;
use pgsquire_core::event::{Event, HookId, HookKind};
use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::mpsc::OwnedPermit;
use tokio::sync::{Notify, watch};

/// All hooks that wait. Cheap to clone; every clone is the same.
#[derive(Debug, Clone, Default)]
pub struct Hooks(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    strict: AtomicBool,
    waiting: Mutex<Waiting>,
    /// Somebody left.
    left: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    last: u64,
    /// The newest answer is enough: whoever is told to return need not know that he was to wait before.
    answers: BTreeMap<HookId, watch::Sender<Option<HookAnswer>>>,
}

impl Hooks {
    /// Says whether `fence = "strict"` is in force: what a hook is told when the core says nothing.
    pub fn set_strict(&self, strict: bool) {
        self.0.strict.store(strict, Ordering::Relaxed);
    }

    /// What a hook is told when the core says nothing.
    pub(super) fn answer_alone(&self, kind: HookKind, why: &str) -> HookAnswer {
        let go_on = kind == HookKind::BeforeStop || !self.0.strict.load(Ordering::Relaxed);
        HookAnswer::Return { go_on, why: why.to_owned() }
    }

    /// Leaves an answer. A hook that is gone gets none, and after [`HookAnswer::Return`] there is nothing to add.
    pub fn answer(&self, hook: HookId, answer: HookAnswer) {
        let Some(answers) = self.waiting().answers.get(&hook).cloned() else {
            tracing::debug!(hook = hook.0, ?answer, "the hook is gone");
            return;
        };
        answers.send_if_modified(|newest| {
            let open = !matches!(newest, Some(HookAnswer::Return { .. }));
            if open {
                *newest = Some(answer);
            }
            open
        });
    }

    /// Comes back when no hook waits.
    pub async fn all_left(&self) {
        loop {
            let mut left = pin!(self.0.left.notified());
            // Before the look, so that nobody leaves unseen between the two.
            left.as_mut().enable();
            if self.waiting().answers.is_empty() {
                return;
            }
            left.await;
        }
    }

    /// A place for one more; none: too many wait already.
    pub(super) fn enter(&self) -> Option<Place> {
        let mut waiting = self.waiting();
        if waiting.answers.len() >= HOOKS {
            return None;
        }
        waiting.last += 1;
        let id = HookId(waiting.last);
        let (answers, answer) = watch::channel(None);
        waiting.answers.insert(id, answers);
        Some(Place { id, answer, hooks: self.clone(), lost: None })
    }

    /// Nothing can be half done under this lock.
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One hook that waits. It stops waiting with this value.
#[derive(Debug)]
pub(super) struct Place {
    id: HookId,
    answer: watch::Receiver<Option<HookAnswer>>,
    hooks: Hooks,
    /// A place in the driver's queue, so that the core hears of the loss whatever happens.
    lost: Option<OwnedPermit<Event>>,
}

impl Place {
    /// Puts the question to the core. From here on it hears how it ended: by its own answer, or by `HookLost`.
    pub fn ask(&mut self, kind: HookKind, wall: u64, question: OwnedPermit<Event>, lost: OwnedPermit<Event>) {
        self.lost = Some(lost);
        question.send(Event::HookAsked { hook: self.id, kind, wall });
    }

    /// The next answer.
    pub async fn next(&mut self) -> HookAnswer {
        loop {
            if self.answer.changed().await.is_err() {
                // The other end stays until we leave.
                std::future::pending::<()>().await;
            }
            if let Some(answer) = self.answer.borrow_and_update().clone() {
                return answer;
            }
        }
    }

    /// It has been told to return: it is not lost.
    pub fn returned(mut self) {
        self.lost = None;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.hooks.waiting().answers.remove(&self.id);
        self.hooks.0.left.notify_waiters();
        if let Some(place) = self.lost.take() {
            place.send(Event::HookLost { hook: self.id });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::mpsc;

    fn wait(ms: u64) -> HookAnswer {
        HookAnswer::Wait { at_most_ms: ms, why: String::new() }
    }

    fn go_on(go_on: bool) -> HookAnswer {
        HookAnswer::Return { go_on, why: String::new() }
    }

    fn asked(hooks: &Hooks, events: &mpsc::Sender<Event>) -> Place {
        let permit = || events.clone().try_reserve_owned().expect("room");
        let mut place = hooks.enter().expect("a place");
        place.ask(HookKind::BeforeStop, 7, permit(), permit());
        place
    }

    #[tokio::test]
    async fn answers_reach_their_hook_and_nothing_follows_a_return() {
        let hooks = Hooks::default();
        let (events, mut facts) = mpsc::channel(10);
        let (mut one, mut two) = (asked(&hooks, &events), asked(&hooks, &events));
        assert_ne!(one.id, two.id);
        hooks.answer(one.id, wait(5));
        assert_eq!(one.next().await, wait(5));
        hooks.answer(two.id, wait(6));
        hooks.answer(two.id, go_on(true));
        hooks.answer(two.id, wait(7));
        assert_eq!(two.next().await, go_on(true));
        hooks.answer(HookId(99), wait(1));

        let (first, second) = (one.id, two.id);
        two.returned();
        drop(one);
        let kind = HookKind::BeforeStop;
        for want in [first, second] {
            assert_eq!(facts.recv().await, Some(Event::HookAsked { hook: want, kind, wall: 7 }));
        }
        assert_eq!(facts.recv().await, Some(Event::HookLost { hook: first }));
        assert!(facts.try_recv().is_err(), "who was told to return is not lost");
        assert!(hooks.waiting().answers.is_empty());
    }

    #[test]
    fn the_number_of_places_is_bounded_and_they_are_free_again() {
        let hooks = Hooks::default();
        let places: Vec<Place> = (0..HOOKS).map(|_| hooks.enter().expect("a place")).collect();
        assert!(hooks.enter().is_none());
        drop(places);
        assert!(hooks.enter().is_some());
    }

    #[tokio::test]
    async fn it_is_seen_when_the_last_one_leaves() {
        let hooks = Hooks::default();
        hooks.all_left().await;
        let (one, two) = (hooks.enter().expect("a place"), hooks.enter().expect("a place"));
        let watched = hooks.clone();
        let all_left = tokio::spawn(async move { watched.all_left().await });
        drop(one);
        tokio::task::yield_now().await;
        assert!(!all_left.is_finished());
        drop(two);
        all_left.await.expect("ended");
    }

    #[test]
    fn a_loss_is_heard_when_the_queue_is_full() {
        let hooks = Hooks::default();
        let (events, mut facts) = mpsc::channel(3);
        let place = asked(&hooks, &events);
        events.try_send(Event::Tick).expect("room");
        assert!(events.try_send(Event::Tick).is_err());
        let hook = place.id;
        drop(place);
        let heard: Vec<Event> = std::iter::from_fn(|| facts.try_recv().ok()).collect();
        assert_eq!(heard.last(), Some(&Event::HookLost { hook }));
    }

    #[test]
    fn alone_only_a_strict_fence_says_no() {
        let hooks = Hooks::default();
        let goes_on = |kind| matches!(hooks.answer_alone(kind, ""), HookAnswer::Return { go_on: true, .. });
        assert!(goes_on(HookKind::PrePromote));
        hooks.set_strict(true);
        assert!(goes_on(HookKind::BeforeStop) && !goes_on(HookKind::PrePromote));
    }
}
