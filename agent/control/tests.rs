//! Hooks on a connection, with the test in the driver's place.

use super::connection::{self, Admitted};
use super::hooks::Hooks;
use super::{Answer, Context, Request};
use crate::{clock, example, journal, page::Pages};
use pgsquire_core::effect::HookAnswer;
use pgsquire_core::event::{Event, HookId, HookKind};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

/// Nothing here takes longer, unless it hangs.
const LONG: Duration = Duration::from_secs(20);

/// One connection, the driver's end of the events, and its answers.
struct Scene {
    peer: BufReader<UnixStream>,
    facts: mpsc::Receiver<Event>,
    hooks: Hooks,
    served: tokio::task::JoinHandle<()>,
    _state_dir: tempfile::TempDir,
}

impl Scene {
    async fn new(admitted: Admitted, request: &Request, room: usize) -> Scene {
        let state_dir = tempfile::tempdir().expect("folder");
        let (journal, _writer) = journal::open(state_dir.path());
        let status = example::agent().status(clock::now());
        let pages = Pages::new(watch::channel(Arc::new(status)).1, watch::channel(vec![]).1, journal);
        let (events, facts) = mpsc::channel(room);
        let hooks = Hooks::default();
        let context = Context::new(pages, events, hooks.clone());
        let (ours, theirs) = UnixStream::pair().expect("pair");
        let served = tokio::spawn(connection::run(theirs, 0, admitted, context, CancellationToken::new()));
        let mut scene = Scene { peer: BufReader::new(ours), facts, hooks, served, _state_dir: state_dir };
        let mut line = serde_json::to_vec(request).expect("JSON");
        line.push(b'\n');
        scene.peer.write_all(&line).await.expect("asked");
        scene
    }

    async fn hook(kind: HookKind) -> (Scene, HookId) {
        let mut scene = Scene::new(Admitted::Any, &Request::Hook { kind }, 10).await;
        match scene.fact().await {
            Event::HookAsked { hook, kind: asked, wall } if asked == kind && wall > 1_700_000_000 => {
                (scene, hook)
            }
            other => panic!("{other:?}"),
        }
    }

    async fn fact(&mut self) -> Event {
        timeout(LONG, self.facts.recv()).await.expect("a fact in time").expect("a fact")
    }

    async fn answer(&mut self) -> Answer {
        let mut line = String::new();
        timeout(LONG, self.peer.read_line(&mut line)).await.expect("in time").expect("a line");
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{line}: {e}"))
    }

    /// The connection has ended, and no fact is left.
    async fn ends_silently(mut self) {
        timeout(LONG, self.served).await.expect("in time").expect("served");
        assert_eq!(self.facts.recv().await, None);
    }
}

fn wait(at_most_ms: u64) -> HookAnswer {
    HookAnswer::Wait { at_most_ms, why: "for two poolers".to_owned() }
}

fn go_on(go_on: bool) -> HookAnswer {
    HookAnswer::Return { go_on, why: "done".to_owned() }
}

#[tokio::test]
async fn the_answers_of_the_core_are_forwarded_until_return() {
    let (mut scene, hook) = Scene::hook(HookKind::PrePromote).await;
    for answer in [wait(10_000), go_on(false)] {
        scene.hooks.answer(hook, answer.clone());
        assert_eq!(scene.answer().await, Answer::Hook(answer));
    }
    scene.ends_silently().await;
}

#[tokio::test]
async fn a_silent_core_is_answered_for_and_hears_of_it() {
    let begin = Instant::now();
    let (mut scene, hook) = Scene::hook(HookKind::PrePromote).await;
    scene.hooks.set_strict(true);
    let busy = |go_on| Answer::Hook(HookAnswer::Return { go_on, why: "the agent is busy".to_owned() });
    assert_eq!(scene.answer().await, busy(false));
    assert!(begin.elapsed() >= Duration::from_millis(90));
    assert_eq!(scene.fact().await, Event::HookLost { hook });
    scene.ends_silently().await;

    let (mut scene, hook) = Scene::hook(HookKind::BeforeStop).await;
    scene.hooks.answer(hook, wait(1));
    assert_eq!(scene.answer().await, Answer::Hook(wait(1)));
    assert_eq!(scene.answer().await, busy(true));
    assert_eq!(scene.fact().await, Event::HookLost { hook });
}

#[tokio::test]
async fn a_hook_that_is_killed_is_lost() {
    let (mut scene, hook) = Scene::hook(HookKind::BeforeStop).await;
    scene.hooks.answer(hook, wait(60_000));
    assert_eq!(scene.answer().await, Answer::Hook(wait(60_000)));
    scene.peer = BufReader::new(UnixStream::pair().expect("pair").0);
    assert_eq!(scene.fact().await, Event::HookLost { hook });
    scene.ends_silently().await;
}

#[tokio::test]
async fn a_full_queue_is_not_asked() {
    let request = Request::Hook { kind: HookKind::BeforeStop };
    // Room for the question, and none for the word that the hook is lost.
    let mut scene = Scene::new(Admitted::Any, &request, 1).await;
    assert!(matches!(scene.answer().await, Answer::Hook(HookAnswer::Return { go_on: true, .. })));
    scene.ends_silently().await;
}

#[tokio::test]
async fn urgent_places_are_for_what_patroni_waits_for() {
    let request = Request::Hook { kind: HookKind::BeforeStop };
    let mut scene = Scene::new(Admitted::Urgent, &request, 10).await;
    assert!(matches!(scene.fact().await, Event::HookAsked { .. }));
    let mut scene = Scene::new(Admitted::Urgent, &Request::Ping, 10).await;
    assert!(matches!(scene.answer().await, Answer::Refused(why) if why.contains("64 connections")));
}
