//! Accepts connections and refuses strangers before they cost anything.

use super::connection::{self, Admitted};
use super::hooks::Hooks;
use super::{Answer, Bound, CONNECTIONS, FOLLOWERS, URGENT};
use crate::page::Pages;
use nix::unistd::{Uid, User};
use pgsquire_core::event::Event;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// What connections need.
#[derive(Debug, Clone)]
pub struct Context {
    /// What is shown.
    pub pages: Pages,
    /// Where hints and orders of the operator go.
    pub events: mpsc::Sender<Event>,
    /// Users who are served, besides root and our own.
    pub users: Vec<u32>,
    /// Hooks that wait.
    pub(super) hooks: Hooks,
    /// Connections that may stay.
    pub(super) followers: Arc<Semaphore>,
}

impl Context {
    /// Serves root, our own user and `postgres`.
    pub fn new(pages: Pages, events: mpsc::Sender<Event>, hooks: Hooks) -> Self {
        // Looked up once: the answer may come from a directory server.
        let postgres = User::from_name("postgres").ok().flatten().map(|user| user.uid.as_raw());
        let users = postgres.into_iter().collect();
        Context { pages, events, users, hooks, followers: Arc::new(Semaphore::new(FOLLOWERS)) }
    }

    fn serves(&self, uid: u32) -> bool {
        uid == 0 || uid == Uid::effective().as_raw() || self.users.contains(&uid)
    }
}

/// Serves until `stop`; then all connections are ended and awaited, and the socket's file is gone.
pub async fn serve(bound: Bound, context: Context, stop: CancellationToken) {
    let slots = Slots { any: semaphore(CONNECTIONS), urgent: semaphore(URGENT) };
    let mut connections = JoinSet::new();
    let mut complaints = Complaints::default();
    loop {
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(_) = connections.join_next() => continue,
            accepted = bound.listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(e) => {
                complaints.say(&format!("cannot accept: {e}"));
                // Out of descriptors, most likely: give others time to close theirs.
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        match admit(&stream, &context, &slots) {
            Ok((uid, admitted, slot)) => {
                let (context, stop) = (context.clone(), stop.clone());
                connections.spawn(async move {
                    connection::run(stream, uid, admitted, context, stop).await;
                    drop(slot);
                });
            }
            Err(why) => {
                complaints.say(&why);
                turn_away(&stream, &why);
            }
        }
    }
    drop(bound);
    while connections.join_next().await.is_some() {}
}

/// So many connections at once.
struct Slots {
    any: Arc<Semaphore>,
    urgent: Arc<Semaphore>,
}

fn semaphore(places: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(places))
}

impl Slots {
    /// A place; those for what Patroni waits for come last. (What a connection wants is not known yet.)
    fn take(&self) -> Option<(Admitted, OwnedSemaphorePermit)> {
        let take = |from: &Arc<Semaphore>| from.clone().try_acquire_owned().ok();
        let any = take(&self.any).map(|slot| (Admitted::Any, slot));
        any.or_else(|| take(&self.urgent).map(|slot| (Admitted::Urgent, slot)))
    }
}

fn admit(
    stream: &UnixStream,
    context: &Context,
    slots: &Slots,
) -> Result<(u32, Admitted, OwnedSemaphorePermit), String> {
    let uid = stream.peer_cred().map_err(|e| format!("cannot tell who asks: {e}"))?.uid();
    if !context.serves(uid) {
        return Err(format!(
            "user {uid} may not use the control socket: root, postgres and the agent's user may"
        ));
    }
    let (admitted, slot) = slots.take().ok_or_else(connection::crowded)?;
    Ok((uid, admitted, slot))
}

/// One line, if it goes out without waiting.
fn turn_away(stream: &UnixStream, why: &str) {
    if let Ok(mut line) = serde_json::to_vec(&Answer::Refused(why.to_owned())) {
        line.push(b'\n');
        let _ = stream.try_write(&line);
    }
}

/// Logs at most one line per second, however often it is asked to.
#[derive(Default)]
struct Complaints {
    last: Option<Instant>,
    unsaid: u64,
}

impl Complaints {
    fn say(&mut self, what: &str) {
        if self.last.is_some_and(|last| last.elapsed() < Duration::from_secs(1)) {
            self.unsaid += 1;
            return;
        }
        match self.unsaid {
            0 => tracing::warn!("control socket: {what}"),
            n => tracing::warn!("control socket: {what} (and {n} more not logged)"),
        }
        (self.last, self.unsaid) = (Some(Instant::now()), 0);
    }
}
