//! The publisher against a store that answers from a script.

use super::*;
use pgsquire_core::effect::{EffectId, Order};
use pgsquire_core::event::{Event, Outcome};
use pgsquire_core::rule::{Reason, Rule};
use std::collections::VecDeque;
use std::future::pending;
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc::{self, Sender};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

/// What the next call of a kind does; without a script it succeeds.
#[derive(Clone, Copy)]
enum Next {
    /// Succeeds, and an endpoint that was silent may do it again.
    Unsure,
    Lost,
    Fails,
    /// Never answers.
    Stuck,
}

#[derive(Default)]
struct Script {
    grants: Mutex<VecDeque<Next>>,
    renewals: Mutex<VecDeque<Next>>,
    changes: Mutex<VecDeque<Next>>,
    revokes: Mutex<VecDeque<Next>>,
    granted: Mutex<u32>,
    /// What was asked of it.
    log: Mutex<Vec<String>>,
}

impl Script {
    async fn next(&self, script: &Mutex<VecDeque<Next>>, said: String) -> Option<Next> {
        self.log.lock().unwrap().push(said);
        let next = script.lock().unwrap().pop_front();
        match next {
            Some(Next::Stuck) => pending().await,
            next => next,
        }
    }

    fn taken(&self) -> Vec<String> {
        std::mem::take(&mut *self.log.lock().unwrap())
    }
}

impl KeyStore for Arc<Script> {
    type Lease = u32;

    async fn grant(&self, ttl: Duration) -> Result<(u32, Duration), String> {
        match self.next(&self.grants, "grant".into()).await {
            None => {
                let mut granted = self.granted.lock().unwrap();
                *granted += 1;
                Ok((*granted, ttl))
            }
            Some(_) => Err("no grant".into()),
        }
    }

    async fn renew(&self, lease: &u32) -> Result<Kept, String> {
        match self.next(&self.renewals, format!("renew {lease}")).await {
            None => Ok(Kept::Yes),
            Some(Next::Lost) => Ok(Kept::Lost),
            Some(_) => Err("no renewal".into()),
        }
    }

    async fn change(&self, lease: &u32, change: &Change) -> Result<Done, WriteError> {
        let put: Vec<_> = change.put.keys().map(|key| format!("+{key}")).collect();
        let delete: Vec<_> = change.delete.iter().map(|key| format!("-{key}")).collect();
        let said = format!("change {lease} {}", [put, delete].concat().join(" "));
        match self.next(&self.changes, said).await {
            None => Ok(Done { unsure: false }),
            Some(Next::Unsure) => Ok(Done { unsure: true }),
            Some(Next::Lost) => Err(WriteError::LeaseLost),
            Some(_) => Err(WriteError::Failed { why: "no change".into(), unsure: false }),
        }
    }

    async fn put(&self, key: &str, value: Option<&[u8]>) -> Result<(), String> {
        let said = format!("put {key} {}", value.is_some());
        self.next(&Mutex::default(), said).await;
        Ok(())
    }

    async fn revoke(&self, lease: &u32) -> Result<(), String> {
        match self.next(&self.revokes, format!("revoke {lease}")).await {
            None => Ok(()),
            Some(_) => Err("no revoke".into()),
        }
    }
}

struct World {
    script: Arc<Script>,
    orders: Sender<Effect>,
    events: mpsc::Receiver<Event>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl World {
    fn start() -> World {
        let script = Arc::new(Script::default());
        let (orders, inbox) = mpsc::channel(8);
        let (told, events) = mpsc::channel(64);
        let stop = CancellationToken::new();
        let report = Report::new(told, stop.clone());
        let task = tokio::spawn(run("main".into(), script.clone(), TTL, inbox, report, stop.clone()));
        World { script, orders, events, stop, task }
    }

    async fn publish(&self, id: u64, keys: &[&str]) {
        let value = id.to_string().into_bytes();
        let keys = keys.iter().map(|key| ((*key).into(), value.clone())).collect();
        let order = Order::Publish { cluster: "main".into(), keys };
        let reason = Reason::new(Rule::FactAge, "test");
        self.orders.send(Effect { id: EffectId(id), order, reason }).await.unwrap();
    }

    /// The next event in short.
    async fn next(&mut self) -> String {
        match self.events.recv().await.unwrap() {
            Event::LeaseKept { lease, .. } => if lease.is_some() { "kept" } else { "lost" }.into(),
            Event::Done { id, outcome: Outcome::Done, .. } => format!("done {}", id.0),
            Event::Done { id, outcome: Outcome::Failed { why }, .. } => format!("not done {}: {why}", id.0),
            other => panic!("{other:?}"),
        }
    }

    /// All events up to this one.
    async fn expect(&mut self, events: &[&str]) {
        for event in events {
            assert_eq!(self.next().await, *event);
        }
    }
}

/// Lets everything that is due happen: paused time moves on only when nobody has anything to do.
async fn settle() {
    sleep(Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn only_differences_are_written_and_the_lease_is_kept() {
    let mut world = World::start();
    world.publish(1, &["a", "b"]).await;
    world.expect(&["kept", "done 1"]).await;
    world.publish(2, &["b"]).await;
    world.expect(&["done 2"]).await;
    assert_eq!(world.script.taken(), ["grant", "change 1 +a +b", "change 1 +b -a"]);
    let began = Instant::now();
    world.expect(&["kept", "kept", "kept"]).await;
    assert_eq!(began.elapsed().as_secs(), TTL.as_secs());
    world.stop.cancel();
    world.expect(&["lost"]).await;
    world.task.await.unwrap();
    assert_eq!(world.script.taken(), ["renew 1", "renew 1", "renew 1", "revoke 1"]);
}

#[tokio::test(start_paused = true)]
async fn a_change_that_may_come_late_loses_its_lease_and_no_key_is_missed_meanwhile() {
    let mut world = World::start();
    world.publish(1, &["a", "b"]).await;
    world.expect(&["kept", "done 1"]).await;
    world.script.taken();
    world.script.changes.lock().unwrap().push_back(Next::Unsure);
    world.publish(2, &["a"]).await;
    world.expect(&["done 2", "kept"]).await;
    settle().await;
    let asked = ["change 1 +a -b", "grant", "change 2 +a", "revoke 1", "change 2 +a"];
    assert_eq!(world.script.taken(), asked);
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_not_revoked_before_its_keys_are_bound_to_another() {
    let mut world = World::start();
    world.script.changes.lock().unwrap().extend([Next::Unsure, Next::Stuck]);
    world.publish(1, &["a"]).await;
    world.expect(&["kept", "done 1", "kept"]).await;
    settle().await;
    assert_eq!(world.script.taken(), ["grant", "change 1 +a", "grant", "change 2 +a"]);
    sleep(ANSWER + PAUSE.1).await;
    let asked = ["grant", "change 3 +a", "revoke 1", "change 3 +a", "revoke 2", "change 3 +a"];
    assert_eq!(world.script.taken(), asked);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_cannot_be_revoked_is_left_to_its_end() {
    let mut world = World::start();
    world.script.changes.lock().unwrap().push_back(Next::Unsure);
    world.script.revokes.lock().unwrap().extend([Next::Fails; 1000]);
    world.publish(1, &["a"]).await;
    world.expect(&["kept", "done 1", "kept"]).await;
    sleep(TTL + Duration::from_secs(1)).await;
    let log = world.script.taken();
    let last = log.iter().rposition(|said| said == "revoke 1").unwrap();
    assert!(log[last..].contains(&"change 2 +a".into()), "put again after its end: {log:?}");
    sleep(TTL).await;
    assert!(!world.script.taken().contains(&"revoke 1".into()));
}

#[tokio::test(start_paused = true)]
async fn a_stuck_renewal_delays_nothing_and_the_end_of_the_lease_is_told() {
    let mut world = World::start();
    world.script.renewals.lock().unwrap().push_back(Next::Stuck);
    world.publish(1, &["a"]).await;
    world.expect(&["kept", "done 1"]).await;
    sleep(TTL / 2).await;
    let began = Instant::now();
    world.publish(2, &["a"]).await;
    world.expect(&["done 2"]).await;
    assert!(began.elapsed() < Duration::from_millis(10), "{:?}", began.elapsed());
    world.expect(&["lost"]).await;
    assert_eq!(began.elapsed().as_secs(), TTL.as_secs() / 2);
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_fails_is_tried_again_and_may_come_back() {
    let mut world = World::start();
    world.script.renewals.lock().unwrap().extend([Next::Fails; 50]);
    world.publish(1, &["a"]).await;
    world.expect(&["kept", "done 1", "lost", "kept"]).await;
    assert!(!world.script.taken().contains(&"revoke 1".into()), "it was never lost");
}

#[tokio::test(start_paused = true)]
async fn a_lost_lease_is_granted_again_with_its_keys_as_soon_as_the_store_can() {
    let mut world = World::start();
    world.publish(1, &["a"]).await;
    world.expect(&["kept", "done 1"]).await;
    world.script.renewals.lock().unwrap().push_back(Next::Lost);
    world.script.grants.lock().unwrap().extend([Next::Fails; 4]);
    world.script.taken();
    world.expect(&["lost", "kept"]).await;
    settle().await;
    let asked = ["renew 1", "grant", "grant", "grant", "grant", "grant", "change 2 +a"];
    assert_eq!(world.script.taken(), asked);
    world.script.changes.lock().unwrap().push_back(Next::Lost);
    world.publish(2, &["a"]).await;
    world.expect(&["lost", "kept", "done 2"]).await;
    assert_eq!(world.script.taken(), ["change 2 +a", "grant", "change 3 +a"]);
}

#[tokio::test(start_paused = true)]
async fn after_a_failure_everything_is_put_again() {
    let mut world = World::start();
    world.publish(1, &["a", "b"]).await;
    world.expect(&["kept", "done 1"]).await;
    world.script.changes.lock().unwrap().push_back(Next::Fails);
    world.publish(2, &["a", "c"]).await;
    world.expect(&["not done 2: no change"]).await;
    world.script.taken();
    world.publish(2, &["a"]).await;
    world.expect(&["done 2"]).await;
    assert_eq!(world.script.taken(), ["change 1 +a -b -c"]);
}

#[tokio::test(start_paused = true)]
async fn every_order_is_answered_in_time() {
    let mut world = World::start();
    world.publish(1, &["a"]).await;
    world.expect(&["kept", "done 1"]).await;
    world.script.changes.lock().unwrap().push_back(Next::Stuck);
    let began = Instant::now();
    for id in 2..=4 {
        world.publish(id, &["a"]).await;
    }
    world.expect(&["not done 3: a newer order took its place before it was begun"]).await;
    world.expect(&["not done 2: the store did not confirm it within 1800 ms"]).await;
    world.expect(&["not done 4: the store did not confirm it within 1800 ms"]).await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    // What was ordered last is put all the same, under another lease.
    world.expect(&["kept"]).await;
    settle().await;
    let log = world.script.taken();
    assert_eq!(log[log.len() - 4..], ["grant", "change 2 +a", "revoke 1", "change 2 +a"], "{log:?}");
}

#[tokio::test(start_paused = true)]
async fn a_stop_answers_and_does_not_wait_for_the_store() {
    let mut world = World::start();
    world.publish(1, &["a"]).await;
    world.expect(&["kept", "done 1"]).await;
    world.script.changes.lock().unwrap().push_back(Next::Stuck);
    world.script.revokes.lock().unwrap().push_back(Next::Stuck);
    world.publish(2, &["b"]).await;
    settle().await;
    let began = Instant::now();
    world.stop.cancel();
    world.expect(&["not done 2: the publisher was stopped", "lost"]).await;
    world.task.await.unwrap();
    assert_eq!(began.elapsed().as_millis(), REVOKE.as_millis());
}
