//! Pauses: begun, kept, cut and ended by the worker, with a real PgBouncer and clients in it.

use crate::pooler::{Build, SETTINGS, World, answers, database};
use crate::processes::{PATIENCE, until};
use crate::worker::Worker;
use nix::sys::signal::Signal;
use pgsquire::clock;
use pgsquire::pgbouncer::pauses::{Entry, Journal, boot_id};
use pgsquire::state::load_restored;
use pgsquire_core::effect::{Pause, PauseScope, PoolerOrder};
use pgsquire_core::pgbouncer::console::ConsoleView;
use pgsquire_core::topology::Endpoint;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_postgres::Client;

pub fn pause(scope: PauseScope, lasts: Duration) -> Pause {
    Pause { scope, until: clock::now() + lasts, min_pool_size: None, cause: "a test".into() }
}

pub fn databases(names: &[&str]) -> PauseScope {
    PauseScope::Databases(names.iter().map(|name| (*name).into()).collect())
}

const LONG: Duration = Duration::from_secs(600);

pub fn order(scope: PauseScope) -> PoolerOrder {
    PoolerOrder::Pause(pause(scope, LONG))
}

pub fn journal(world: &World) -> Journal {
    Journal::new(&world.path("state"), "write")
}

fn entry(world: &World) -> Option<Entry> {
    journal(world).read().unwrap()
}

fn links(view: &ConsoleView, name: &str) -> usize {
    view.servers.iter().filter(|link| link.database == name).count()
}

/// A query that is sent and not answered yet.
type Waiting<'a> = Pin<Box<dyn Future<Output = bool> + 'a>>;

/// Sends a query and sees it wait in PgBouncer.
pub async fn waits<'a>(world: &mut World, client: &'a Client, name: &str) -> Waiting<'a> {
    let mut query: Waiting<'a> =
        Box::pin(async move { client.simple_query("INSERT INTO seen VALUES (1)").await.is_ok() });
    let before = world.look().await.waiting.get(name).copied().unwrap_or_default();
    let seen = async { while world.look().await.waiting.get(name) != Some(&(before + 1)) {} };
    tokio::select! {
        served = &mut query => panic!("{name} is paused, and its client was answered: {served}"),
        seen = timeout(PATIENCE, seen) => seen.expect("the client waits"),
    }
    query
}

async fn served(query: Waiting<'_>) -> bool {
    timeout(PATIENCE, query).await.expect("still waiting")
}

/// Where the queries of clients leave a trace.
async fn seen(world: &World) -> usize {
    let server = crate::server::connect(&world.server.conninfo(), "postgres").await.unwrap();
    let rows = server.query("SELECT 1 FROM seen", &[]).await.unwrap();
    rows.len()
}

pub async fn world(build: Build, names: &[&str], settings: &str) -> World {
    let world = World::with(build, names, settings).await;
    let server = crate::server::connect(&world.server.conninfo(), "postgres").await.unwrap();
    server.batch_execute("CREATE TABLE seen (n int)").await.unwrap();
    world
}

async fn links_go(world: &mut World, name: &str) {
    let gone = async { while links(&world.look().await, name) > 0 {} };
    timeout(PATIENCE, gone).await.expect("the links stay");
}

async fn a_process_is_paused_and_resumed(build: Build) {
    let mut world = world(build, &["app", "b"], SETTINGS).await;
    let (holder, other) = (world.client("app").await, world.client("b").await);
    holder.batch_execute("BEGIN").await.unwrap();
    world.done(order(PauseScope::Process)).await;
    let noted = entry(&world).expect("it is journalled");
    assert_eq!((noted.pooler.as_str(), noted.boot_id.clone()), ("write", boot_id()));
    assert_eq!((noted.pause.scope, noted.console), (PauseScope::Process, world.console()));
    assert!(load_restored(&world.path("state")).0.pauses.contains_key("write"));
    assert!(pgsquire::pgbouncer::guard::is_there(&world.path("state")));
    let view = world.look().await;
    assert_eq!(links(&view, "app"), 1, "the transaction is open");
    assert_eq!(view.paused, (build == Build::Debian13).then_some(true));
    let query = waits(&mut world, &other, "b").await;
    world.done(order(PauseScope::Process)).await;
    assert!(holder.batch_execute("COMMIT").await.is_ok(), "it goes on to its end");
    links_go(&mut world, "app").await;
    assert_eq!(links(&world.look().await, "b"), 0);
    world.done(PoolerOrder::EndPause).await;
    assert!(served(query).await && answers(&holder).await);
    assert_eq!(entry(&world), None);
    assert_eq!(world.look().await.paused, (build == Build::Debian13).then_some(false));
    world.done(PoolerOrder::EndPause).await;
    let state = world.path("state");
    until("the guard ends with the pause", async || {
        (!pgsquire::pgbouncer::guard::is_there(&state)).then_some(())
    })
    .await;
    world.worker.stop().await;
}

#[tokio::test]
async fn a_pause_of_the_process_waits_for_a_transaction() {
    a_process_is_paused_and_resumed(Build::System).await;
}

#[tokio::test]
#[ignore = "part of the matrix"]
async fn a_pause_of_the_process_with_1_24() {
    a_process_is_paused_and_resumed(Build::Debian13).await;
}

#[tokio::test]
async fn a_pause_of_databases_leaves_the_others() {
    let mut world = world(Build::System, &["app", "b", "free"], SETTINGS).await;
    let (holder, other, free) =
        (world.client("app").await, world.client("b").await, world.client("free").await);
    holder.batch_execute("BEGIN").await.unwrap();
    world.done(order(databases(&["app", "b"]))).await;
    let view = world.look().await;
    assert!(database(&view, "app").paused && database(&view, "b").paused && !database(&view, "free").paused);
    assert!(answers(&free).await);
    let query = waits(&mut world, &other, "b").await;
    holder.batch_execute("COMMIT").await.unwrap();
    links_go(&mut world, "app").await;
    // Another scope: what is not in it any more is resumed, and nothing is forgotten.
    world.done(order(databases(&["app"]))).await;
    assert!(served(query).await);
    let view = world.look().await;
    assert!(database(&view, "app").paused && !database(&view, "b").paused);
    let noted = entry(&world).unwrap();
    assert_eq!(noted.scopes(), [databases(&["app"])]);
    world.done(PoolerOrder::EndPause).await;
    assert!(answers(&holder).await);
    let why = world.why_not(order(databases(&["app", "nosuch"]))).await;
    assert!(why.contains("no database nosuch"), "{why}");
    assert!(!database(&world.look().await, "app").paused);
    world.worker.stop().await;
}

#[tokio::test]
async fn somebody_elses_pause_is_left_alone() {
    let mut world = world(Build::System, &["app", "b"], &format!("{SETTINGS}min_pool_size = 2\n")).await;
    let operator = world.operator().await;
    let client = world.client("b").await;
    operator.simple_query("PAUSE b").await.unwrap();
    let why = world.why_not(order(databases(&["app", "b"]))).await;
    assert!(why.contains("database b of pooler write is paused by somebody else"), "{why}");
    let view = world.look().await;
    assert!(!database(&view, "app").paused && database(&view, "b").paused);
    operator.simple_query("RESUME b").await.unwrap();

    operator.simple_query("PAUSE").await.unwrap();
    let query = waits(&mut world, &client, "b").await;
    for scope in [PauseScope::Process, databases(&["app"])] {
        let pause = Pause { min_pool_size: Some("2".into()), ..pause(scope, LONG) };
        let why = world.why_not(PoolerOrder::Pause(pause)).await;
        assert!(why.contains("already suspended/paused") && !why.contains("could not be undone"), "{why}");
        let view = world.look().await;
        assert_eq!(view.settings["min_pool_size"], "2", "given back");
        assert_eq!((view.waiting["b"], database(&view, "app").paused), (1, false));
        assert_eq!(entry(&world), None);
    }
    world.done(PoolerOrder::EndPause).await;
    assert_eq!(world.look().await.waiting["b"], 1, "the pause is not ours");
    operator.simple_query("RESUME").await.unwrap();
    assert!(served(query).await);
    world.worker.stop().await;
}

#[tokio::test]
async fn min_pool_size_is_lent_and_given_back() {
    let mut world = world(Build::System, &["app"], &format!("{SETTINGS}min_pool_size = 2\n")).await;
    let pause = Pause { min_pool_size: Some("2".into()), ..pause(databases(&["app"]), LONG) };
    let size = async |world: &mut World| world.look().await.settings["min_pool_size"].clone();
    world.done(PoolerOrder::Pause(pause.clone())).await;
    assert_eq!(size(&mut world).await, "0");
    // Pausing again, as somebody who sees our 0 in force.
    world.done(PoolerOrder::Pause(Pause { min_pool_size: Some("0".into()), ..pause })).await;
    assert_eq!(entry(&world).unwrap().pause.min_pool_size.as_deref(), Some("2"));
    let ini = std::fs::read_to_string(world.path("p.ini")).unwrap();
    std::fs::write(world.path("p.ini"), ini.replace("min_pool_size = 2", "min_pool_size = 3")).unwrap();
    world.done(PoolerOrder::Reload).await;
    assert_eq!(size(&mut world).await, "3");
    world.done(PoolerOrder::ZeroMinPoolSize).await;
    assert_eq!(size(&mut world).await, "0");
    world.done(PoolerOrder::EndPause).await;
    assert_eq!(size(&mut world).await, "3", "the value of now, not that of then");
    let why = world.why_not(PoolerOrder::ZeroMinPoolSize).await;
    assert!(why.contains("no pause of ours is on"), "nobody would give it back: {why}");
    let why = world.why_not(PoolerOrder::ExtendPause(pause_again())).await;
    assert!(why.contains("no pause of ours is on"), "{why}");
    world.worker.stop().await;
}

fn pause_again() -> Pause {
    pause(PauseScope::Process, LONG)
}

/// Passes everything on to the console until PAUSE comes: that it passes on too, and then nothing more.
async fn cut_at_pause(to: u16, journal: Journal, was_journalled: Arc<AtomicBool>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let dead = tokio_util::sync::CancellationToken::new();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let (dead, journal, was_journalled) = (dead.clone(), journal.clone(), was_journalled.clone());
            tokio::spawn(async move {
                if dead.is_cancelled() {
                    return;
                }
                let pooler = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_pooler, mut to_pooler) = pooler.into_split();
                let up = async {
                    let mut buffer = [0; 4096];
                    while let Ok(length @ 1..) = from_client.read(&mut buffer).await {
                        let is_pause = buffer[..length].windows(5).any(|word| word == b"PAUSE");
                        if is_pause {
                            was_journalled.store(journal.read().unwrap().is_some(), Ordering::SeqCst);
                        }
                        to_pooler.write_all(&buffer[..length]).await.unwrap();
                        if is_pause {
                            dead.cancel();
                        }
                    }
                };
                let down = tokio::io::copy(&mut from_pooler, &mut to_client);
                tokio::select! { () = up => {}, _ = down => {}, () = dead.cancelled() => {} }
            });
        }
    });
    port
}

#[tokio::test]
async fn a_pause_is_journalled_before_it_is_sent() {
    let mut world = world(Build::System, &["app"], SETTINGS).await;
    let (client, operator) = (world.client("app").await, world.operator().await);
    let was_journalled = Arc::new(AtomicBool::new(false));
    let port = cut_at_pause(world.port, journal(&world), was_journalled.clone()).await;
    let config = crate::pooler::config(world.dir.path(), &format!("host=127.0.0.1 port={port} user=boss"));
    let through = crate::pooler::worker(config);
    let direct = std::mem::replace(&mut world.worker, through);
    let why = world.why_not(order(databases(&["app"]))).await;
    assert!(was_journalled.load(Ordering::SeqCst), "before PAUSE");
    assert!(why.contains("could not be undone") && why.contains("pgsquire release"), "{why}");
    assert!(entry(&world).is_some(), "it may be on");
    until("PAUSE has arrived", async || {
        let rows = operator.simple_query("SHOW DATABASES").await.unwrap();
        rows.iter()
            .any(|row| match row {
                tokio_postgres::SimpleQueryMessage::Row(row) => {
                    row.get("name") == Some("app") && row.get("paused") == Some("1")
                }
                _ => false,
            })
            .then_some(())
    })
    .await;
    // The console is back.
    world.worker = direct;
    world.done(PoolerOrder::EndPause).await;
    assert!(answers(&client).await);
    assert_eq!(entry(&world), None);
    world.worker.stop().await;
}

#[tokio::test]
async fn a_silent_console_is_not_paused() {
    let mut world = world(Build::System, &["app"], SETTINGS).await;
    world.look().await;
    world.signal(Signal::SIGSTOP);
    let why = world.why_not(order(PauseScope::Process)).await;
    assert!(why.contains("silent"), "{why}");
    world.signal(Signal::SIGCONT);
    assert!(answers(&world.client("app").await).await);
    assert_eq!(entry(&world), None);
    // An end that fails keeps the journal.
    world.done(order(PauseScope::Process)).await;
    world.signal(Signal::SIGSTOP);
    let why = world.why_not(PoolerOrder::EndPause).await;
    assert!(why.contains("silent") && entry(&world).is_some(), "{why}");
    world.signal(Signal::SIGCONT);
    world.done(PoolerOrder::EndPause).await;
    assert!(answers(&world.client("app").await).await);
    world.worker.stop().await;
}

#[tokio::test]
async fn a_restarted_pgbouncer_is_paused_again() {
    let mut world = world(Build::System, &["app"], SETTINGS).await;
    for scope in [PauseScope::Process, databases(&["app"])] {
        world.done(order(scope.clone())).await;
        world.bouncer = None;
        world.begin().await;
        world.done(order(scope)).await;
        // A new client of a new process waits for a server already at its login.
        let conninfo = format!("host=127.0.0.1 port={} user=postgres", world.port);
        let client = crate::server::connect(&conninfo, "app");
        tokio::pin!(client);
        let counted = async { while world.look().await.waiting.get("app") != Some(&1) {} };
        tokio::select! {
            _ = &mut client => panic!("it is paused"),
            counted = timeout(PATIENCE, counted) => counted.expect("the client waits"),
        }
        world.done(PoolerOrder::EndPause).await;
        let client = timeout(PATIENCE, client).await.expect("still waiting").unwrap();
        assert!(answers(&client).await);
    }
    world.worker.stop().await;
}

fn cut(world: &World, names: &[&str]) -> PoolerOrder {
    PoolerOrder::CutPaused {
        databases: names.iter().map(|name| (*name).into()).collect(),
        stale: vec![Endpoint { host: "127.0.0.1".into(), port: world.server.port }],
    }
}

/// 1.18 can only KILL, which drops all clients of a database. Those of the others wait on, and nothing gets through.
#[tokio::test]
async fn a_cut_under_a_pause_lets_nothing_through() {
    let mut world = world(Build::System, &["app", "b", "c"], &format!("{SETTINGS}min_pool_size = 1\n")).await;
    let (holder, other) = (world.client("app").await, world.client("b").await);
    let same = world.client("app").await;
    holder.batch_execute("BEGIN").await.unwrap();
    world.done(order(PauseScope::Process)).await;
    let waiting = waits(&mut world, &other, "b").await;
    let doomed = waits(&mut world, &same, "app").await;
    links_go(&mut world, "b").await;
    let cut = cut(&world, &["app", "b", "c"]);
    world.done(cut.clone()).await;
    assert!(!answers(&holder).await, "it was cut");
    assert!(!served(doomed).await, "KILL takes all clients of a database");
    let view = world.look().await;
    assert!(view.databases.iter().all(|database| database.paused), "{view:?}");
    assert_eq!((links(&view, "app"), view.waiting["b"]), (0, 1));
    assert_eq!(view.settings["min_pool_size"], "0", "else a pause by database would mark the pools");
    assert_eq!(seen(&world).await, 0, "no query came through");
    let noted = entry(&world).unwrap();
    assert_eq!(noted.scopes(), [databases(&["app", "b", "c"])]);
    world.done(cut).await;
    // A pause of the databases goes on as one.
    world.done(order(databases(&["app", "b", "c"]))).await;
    world.done(PoolerOrder::EndPause).await;
    assert!(served(waiting).await);
    assert_eq!(seen(&world).await, 1);
    let view = world.look().await;
    assert!(view.databases.iter().all(|database| !database.paused), "{view:?}");
    assert_eq!(view.settings["min_pool_size"], "1");
    assert!(answers(&world.client("app").await).await);
    world.worker.stop().await;
}

#[tokio::test]
async fn a_cut_under_a_pause_of_databases_leaves_them_paused() {
    let mut world = world(Build::System, &["app", "b"], SETTINGS).await;
    let (holder, other) = (world.client("app").await, world.client("b").await);
    holder.batch_execute("BEGIN").await.unwrap();
    world.done(order(databases(&["app", "b"]))).await;
    let waiting = waits(&mut world, &other, "b").await;
    let cut = cut(&world, &["app", "b"]);
    world.done(cut).await;
    assert!(!answers(&holder).await);
    let view = world.look().await;
    assert!(view.databases.iter().all(|database| database.paused) && view.waiting["b"] == 1, "{view:?}");
    world.done(PoolerOrder::EndPause).await;
    assert!(served(waiting).await);
    world.worker.stop().await;
}

/// 1.24 cuts single clients, and those that wait wait on.
#[tokio::test]
#[ignore = "part of the matrix"]
async fn a_cut_under_a_pause_with_1_24() {
    for scope in [PauseScope::Process, databases(&["app"])] {
        let mut world = world(Build::Debian13, &["app"], SETTINGS).await;
        let (holder, other) = (world.client("app").await, world.client("app").await);
        holder.batch_execute("BEGIN").await.unwrap();
        world.done(order(scope.clone())).await;
        let waiting = waits(&mut world, &other, "app").await;
        let cut = cut(&world, &["app"]);
        world.done(cut).await;
        assert!(!answers(&holder).await, "it was cut");
        links_go(&mut world, "app").await;
        assert_eq!(world.look().await.waiting["app"], 1);
        assert_eq!(entry(&world).unwrap().scopes(), [scope]);
        world.done(PoolerOrder::EndPause).await;
        assert!(served(waiting).await);
        world.worker.stop().await;
    }
}

#[tokio::test]
async fn a_worker_that_is_stopped_lets_go() {
    let mut world = world(Build::System, &["app"], SETTINGS).await;
    for scope in [PauseScope::Process, databases(&["app"])] {
        let client = world.client("app").await;
        world.done(order(scope)).await;
        let query = waits(&mut world, &client, "app").await;
        let config = crate::pooler::config(world.dir.path(), &world.console());
        let worker: Worker = std::mem::replace(&mut world.worker, crate::pooler::worker(config));
        worker.stop().await;
        assert!(served(query).await);
        assert_eq!(entry(&world), None);
    }
    world.worker.stop().await;
}

#[tokio::test]
async fn links_in_session_mode_are_told() {
    let settings = format!("{SETTINGS}[users]\nsitter = pool_mode=session\n");
    let mut world = World::start("", SETTINGS).await;
    let entries = [
        world.entry("app", "127.0.0.1"),
        world.entry("long", "127.0.0.1").replace('\n', " pool_mode=session\n"),
    ];
    std::fs::write(world.path("users"), "\"boss\" \"\"\n\"postgres\" \"\"\n\"sitter\" \"\"\n").unwrap();
    std::fs::write(world.path("p.ini"), world.ini(&entries.concat(), &settings)).unwrap();
    let server = crate::server::connect(&world.server.conninfo(), "postgres").await.unwrap();
    server.batch_execute("CREATE USER sitter").await.unwrap();
    world.done(PoolerOrder::Reload).await;
    let sitter = format!("host=127.0.0.1 port={} user=sitter", world.port);
    let sitter = crate::server::connect(&sitter, "app").await.unwrap();
    assert!(answers(&sitter).await);
    let modes = async |world: &mut World| {
        let view = world.look().await;
        let mut modes: Vec<_> =
            view.servers.iter().map(|link| (link.database.clone(), link.session)).collect();
        modes.sort_unstable();
        modes
    };
    assert_eq!(modes(&mut world).await, [("app".into(), true)], "the user's own mode");
    for name in ["app", "long"] {
        assert!(answers(&world.client(name).await).await);
    }
    let wanted = [("app".into(), false), ("app".into(), true), ("long".into(), true)];
    assert_eq!(modes(&mut world).await, wanted);
    world.worker.stop().await;
}
