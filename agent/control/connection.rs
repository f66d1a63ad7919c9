//! One connection: one question, its answer, and nobody waits for longer than the deadline.

use super::{Answer, CONNECTIONS, Context, DEADLINE, LONGEST_LINE, Request};
use crate::journal::callbacks::Call;
use pgsquire_core::effect::HookAnswer;
use pgsquire_core::event::{Event, HookKind};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, sleep_until, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

/// A callback waits no longer for room in the driver's queue: it has half a second in all.
const QUEUE: Duration = Duration::from_millis(150);
/// A hook hears something within this: it waits for 100 ms.
const HOOK: Duration = Duration::from_millis(90);
/// A hook that was told to wait hears how it went this much later at the latest.
const HOOK_LATE: Duration = Duration::from_millis(50);
/// No hook waits longer than this, whatever the core says.
const LONGEST_HOOK: Duration = Duration::from_secs(60);
/// What Patroni waits for is sent as soon as the connection is there.
const URGENT_LINE: Duration = Duration::from_millis(250);
/// Longer names of nodes are refused, in bytes.
const LONGEST_NAME: usize = 255;
/// A watched status is sent no more often than this.
const REDRAW: Duration = Duration::from_millis(250);

/// Which places a connection got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Admitted {
    /// One of those for everybody.
    Any,
    /// One of those that are kept for what Patroni waits for.
    Urgent,
}

/// The peer is gone, or too slow.
struct Gone;

type Sent = Result<(), Gone>;

/// Serves one connection.
pub(super) async fn run(
    stream: UnixStream,
    uid: u32,
    admitted: Admitted,
    context: Context,
    stop: CancellationToken,
) {
    let (read, write) = stream.into_split();
    let mut peer = Peer { read: BufReader::new(read), write };
    let served = tokio::select! {
        biased;
        // Hung up on, a callback is kept, and a command says that the daemon is not reachable: both are right.
        () = stop.cancelled() => Err(Gone),
        served = serve(&mut peer, uid, admitted, context) => served,
    };
    if served.is_err() {
        tracing::debug!("control socket: user {uid} went away before the end of the answer");
    }
}

async fn serve(peer: &mut Peer, uid: u32, admitted: Admitted, context: Context) -> Sent {
    let urgent = admitted == Admitted::Urgent;
    let request = match timeout(if urgent { URGENT_LINE } else { DEADLINE }, peer.request()).await {
        Ok(Ok(request)) if urgent && !matches!(request, Request::Callback(_) | Request::Hook { .. }) => {
            return peer.refuse(uid, crowded()).await;
        }
        Ok(Ok(request)) => request,
        Ok(Err(why)) => return peer.refuse(uid, why).await,
        Err(_) if urgent => return peer.refuse(uid, crowded()).await,
        Err(_) => return peer.refuse(uid, "no whole line within 2 s".to_owned()).await,
    };
    match request {
        Request::Ping => peer.send(&Answer::Done("pgsquire".to_owned())).await,
        Request::Status { watch } => status(peer, context, watch).await,
        Request::Events { since, follow } => events(peer, context, since, follow).await,
        Request::Callback(call) => callback(peer, context, call).await,
        Request::Hook { kind } => hook(peer, context, kind).await,
        Request::ForgetTerm { cluster } => forget_term(peer, uid, context, cluster).await,
        Request::ForgetPooler { cluster, node } => forget_pooler(peer, uid, context, cluster, node).await,
    }
}

/// Why somebody is turned away.
pub(super) fn crowded() -> String {
    format!("{CONNECTIONS} connections are open already: try again")
}

struct Peer {
    read: BufReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
}

impl Peer {
    /// The one line that is asked.
    async fn request(&mut self) -> Result<Request, String> {
        let mut line = Vec::new();
        let mut limited = (&mut self.read).take(LONGEST_LINE as u64 + 1);
        limited.read_until(b'\n', &mut line).await.map_err(|e| format!("cannot read: {e}"))?;
        if line.pop() != Some(b'\n') {
            return Err(match line.len() >= LONGEST_LINE {
                true => "the line is longer than 64 kB".to_owned(),
                false => "the line has no end".to_owned(),
            });
        }
        serde_json::from_slice(&line).map_err(|e| format!("this is not a request: {e}"))
    }

    async fn send(&mut self, answer: &Answer) -> Sent {
        let mut line = serde_json::to_vec(answer).map_err(|_| Gone)?;
        line.push(b'\n');
        match timeout(DEADLINE, self.write.write_all(&line)).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(Gone),
        }
    }

    async fn refuse(&mut self, uid: u32, why: String) -> Sent {
        tracing::warn!("control socket: refused user {uid}: {why}");
        self.send(&Answer::Refused(why)).await
    }

    /// Comes back when the peer hangs up, or says more than its one line.
    async fn left(&mut self) -> Gone {
        let mut byte = [0];
        let _ = self.read.read(&mut byte).await;
        Gone
    }
}

async fn status(peer: &mut Peer, mut context: Context, watch: bool) -> Sent {
    // Taken before the first answer, so that followers cannot use up the slots of callbacks.
    let place = if watch { Some(context.followers.clone().try_acquire_owned()) } else { None };
    if let Some(Err(_)) = place {
        return peer.send(&Answer::Refused("too many follow already".to_owned())).await;
    }
    loop {
        match context.pages.json() {
            Ok(page) => peer.send(&Answer::Status(page)).await?,
            Err(e) => return peer.send(&Answer::Refused(format!("the status has no JSON: {e}"))).await,
        }
        if !watch {
            return peer.send(&Answer::Done(String::new())).await;
        }
        tokio::select! {
            gone = peer.left() => return Err(gone),
            () = tokio::time::sleep(REDRAW) => {}
        }
        tokio::select! {
            gone = peer.left() => return Err(gone),
            more = context.pages.changed() => if !more { return Ok(()) },
        }
    }
}

async fn events(peer: &mut Peer, context: Context, since: u64, follow: bool) -> Sent {
    let journal = context.pages.journal();
    if !follow {
        for record in journal.since(since) {
            peer.send(&Answer::Event(record)).await?;
        }
        return peer.send(&Answer::Done(String::new())).await;
    }
    let Ok(_place) = context.followers.clone().try_acquire_owned() else {
        return peer.send(&Answer::Refused("too many follow already".to_owned())).await;
    };
    let (past, mut future) = journal.follow(since);
    for record in past {
        peer.send(&Answer::Event(record)).await?;
    }
    loop {
        let next = tokio::select! {
            gone = peer.left() => return Err(gone),
            next = future.recv() => next,
        };
        match next {
            Ok(record) => peer.send(&Answer::Event(record)).await?,
            Err(RecvError::Lagged(n)) => peer.send(&Answer::Missed(n)).await?,
            Err(RecvError::Closed) => return Ok(()),
        }
    }
}

async fn callback(peer: &mut Peer, context: Context, call: Call) -> Sent {
    // Cut here too: not every peer is our own client.
    let call = Call::new(&call.action, &call.role, &call.scope);
    let Ok(Ok(place)) = timeout(QUEUE, context.events.reserve()).await else {
        return peer.send(&Answer::Refused("the agent is busy".to_owned())).await;
    };
    // Patroni waits for its child: the answer goes before all that wakes other threads, which would take the core that
    // the child is about to use. (It has a place in the queue, and goes into an empty buffer.)
    let sent = peer.send(&Answer::Done(String::new())).await;
    call.record(context.pages.journal(), "");
    place.send(call.hint());
    sent
}

async fn hook(peer: &mut Peer, context: Context, kind: HookKind) -> Sent {
    let mut deadline = Instant::now() + HOOK;
    let alone = |why| Answer::Hook(context.hooks.answer_alone(kind, why));
    let Some(mut place) = context.hooks.enter() else {
        return peer.send(&alone("too many hooks wait already")).await;
    };
    // Both at once: the core must hear how it ends of whatever it was asked.
    let reserve = || context.events.clone().reserve_owned();
    let Ok((Ok(question), Ok(lost))) =
        timeout_at(deadline, async { (reserve().await, reserve().await) }).await
    else {
        return peer.send(&alone("the agent is busy")).await;
    };
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    place.ask(kind, wall, question, lost);
    loop {
        let answer = tokio::select! {
            biased;
            answer = place.next() => answer,
            gone = peer.left() => return Err(gone),
            () = sleep_until(deadline) => return peer.send(&alone("the agent is busy")).await,
        };
        peer.send(&Answer::Hook(answer.clone())).await?;
        match answer {
            HookAnswer::Wait { at_most_ms, .. } => {
                let at_most = Duration::from_millis(at_most_ms).min(LONGEST_HOOK);
                deadline = Instant::now() + at_most + HOOK_LATE;
            }
            HookAnswer::Return { .. } => {
                place.returned();
                return Ok(());
            }
        }
    }
}

async fn forget_term(peer: &mut Peer, uid: u32, context: Context, cluster: Option<String>) -> Sent {
    let cluster = match choose_cluster(&context, cluster) {
        Ok(cluster) => cluster,
        Err(why) => return peer.send(&Answer::Refused(why)).await,
    };
    let text = format!("the operator (user {uid}) adopts what the store says now");
    let told = format!("{cluster}: what the store says now is adopted with the next read");
    let event = Event::TermForgotten { cluster: cluster.clone() };
    tell(peer, &context, event, ("term", &cluster, &text), told).await
}

async fn forget_pooler(
    peer: &mut Peer,
    uid: u32,
    context: Context,
    cluster: Option<String>,
    node: String,
) -> Sent {
    if node.is_empty() || node.len() > LONGEST_NAME || node.contains(char::is_control) {
        return peer.send(&Answer::Refused(format!("{node:?} is not the name of a node"))).await;
    }
    let cluster = match choose_cluster(&context, cluster) {
        Ok(cluster) => cluster,
        Err(why) => return peer.send(&Answer::Refused(why)).await,
    };
    if let Some(why) = without_registry(&context, &cluster) {
        return peer.send(&Answer::Refused(why)).await;
    }
    let text = format!("the operator (user {uid}) takes {node} out of the registry");
    let told = format!(
        "{cluster}: {node} is being taken out of the registry; a living agent of that name comes back"
    );
    let event = Event::PoolerForgotten { cluster: cluster.clone(), node };
    tell(peer, &context, event, ("registry", &cluster, &text), told).await
}

/// Why a cluster has no registry, if it has none.
fn without_registry(context: &Context, cluster: &str) -> Option<String> {
    let status = context.pages.status();
    let found = status.clusters.iter().find(|c| c.name == cluster)?;
    found.switch.without.as_ref().map(|why| format!("{cluster} has no registry of poolers: it is {why}"))
}

/// Hands the operator's word to the core, and puts it into the flight recorder: kind, subject, text.
async fn tell(
    peer: &mut Peer,
    context: &Context,
    event: Event,
    (kind, subject, text): (&str, &str, &str),
    told: String,
) -> Sent {
    if context.events.send_timeout(event, DEADLINE).await.is_err() {
        return peer.send(&Answer::Refused("the agent is busy: try again".to_owned())).await;
    }
    context.pages.journal().record(kind, subject, text);
    peer.send(&Answer::Done(told)).await
}

/// The cluster that was named, or the only one.
fn choose_cluster(context: &Context, named: Option<String>) -> Result<String, String> {
    let status = context.pages.status();
    let names: Vec<&str> = status.clusters.iter().map(|c| c.name.as_str()).collect();
    let known = || format!("known: {}", names.join(", "));
    match (named, names.as_slice()) {
        (_, []) => Err("no cluster is followed here".to_owned()),
        (Some(name), all) if all.contains(&name.as_str()) => Ok(name),
        (Some(name), _) => Err(format!("there is no cluster `{name}`; {}", known())),
        (None, [only]) => Ok((*only).to_owned()),
        (None, _) => Err(format!("several clusters are followed: name one with --cluster; {}", known())),
    }
}
