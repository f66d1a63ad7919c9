//! One connection: one question, its answer, and nobody waits for longer than the deadline.

use super::{Answer, Context, DEADLINE, LONGEST_LINE, Request};
use crate::journal::callbacks::Call;
use pgsquire_core::event::Event;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// A callback waits no longer for room in the driver's queue: it has half a second in all.
const QUEUE: Duration = Duration::from_millis(150);
/// A watched status is sent no more often than this.
const REDRAW: Duration = Duration::from_millis(250);

/// The peer is gone, or too slow.
struct Gone;

type Sent = Result<(), Gone>;

/// Serves one connection.
pub(super) async fn run(stream: UnixStream, uid: u32, context: Context, stop: CancellationToken) {
    let (read, write) = stream.into_split();
    let mut peer = Peer { read: BufReader::new(read), write };
    let served = tokio::select! {
        biased;
        // Hung up on, a callback is kept, and a command says that the daemon is not reachable: both are right.
        () = stop.cancelled() => Err(Gone),
        served = serve(&mut peer, uid, context) => served,
    };
    if served.is_err() {
        tracing::debug!("control socket: user {uid} went away before the end of the answer");
    }
}

async fn serve(peer: &mut Peer, uid: u32, context: Context) -> Sent {
    let request = match timeout(DEADLINE, peer.request()).await {
        Ok(Ok(request)) => request,
        Ok(Err(why)) => return peer.refuse(uid, why).await,
        Err(_) => return peer.refuse(uid, "no whole line within 2 s".to_owned()).await,
    };
    match request {
        Request::Ping => peer.send(&Answer::Done("pgsquire".to_owned())).await,
        Request::Status { watch } => status(peer, context, watch).await,
        Request::Events { since, follow } => events(peer, context, since, follow).await,
        Request::Callback(call) => callback(peer, context, call).await,
        Request::ForgetTerm { cluster } => forget_term(peer, uid, context, cluster).await,
    }
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
    let answer = match context.events.send_timeout(call.clone().hint(), QUEUE).await {
        Ok(()) => {
            call.record(context.pages.journal(), "");
            Answer::Done(String::new())
        }
        Err(_) => Answer::Refused("the agent is busy".to_owned()),
    };
    peer.send(&answer).await
}

async fn forget_term(peer: &mut Peer, uid: u32, context: Context, cluster: Option<String>) -> Sent {
    let status = context.pages.status();
    let names: Vec<&str> = status.clusters.iter().map(|c| c.name.as_str()).collect();
    let known = || format!("known: {}", names.join(", "));
    let chosen = match (&cluster, names.as_slice()) {
        (_, []) => Err("no cluster is followed here".to_owned()),
        (Some(name), all) if all.contains(&name.as_str()) => Ok(name.clone()),
        (Some(name), _) => Err(format!("there is no cluster `{name}`; {}", known())),
        (None, [only]) => Ok((*only).to_owned()),
        (None, _) => Err(format!("several clusters are followed: name one with --cluster; {}", known())),
    };
    let cluster = match chosen {
        Ok(cluster) => cluster,
        Err(why) => return peer.send(&Answer::Refused(why)).await,
    };
    let event = Event::TermForgotten { cluster: cluster.clone() };
    if context.events.send_timeout(event, DEADLINE).await.is_err() {
        return peer.send(&Answer::Refused("the agent is busy: try again".to_owned())).await;
    }
    let text = format!("the operator (user {uid}) adopts what the store says now");
    context.pages.journal().record("term", &cluster, &text);
    peer.send(&Answer::Done(format!("{cluster}: what the store says now is adopted with the next read")))
        .await
}
