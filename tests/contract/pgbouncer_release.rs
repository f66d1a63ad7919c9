//! Who ends a pause when the agent does not: `pgsquire release`, and the guard.

use crate::pgbouncer_pause::{databases, journal, order, pause, waits, world};
use crate::pooler::{Build, PROGRAM, SETTINGS, World, answers, database};
use crate::processes::{PATIENCE, until};
use pgsquire::clock;
use pgsquire::pgbouncer::guard::is_there;
use pgsquire::pgbouncer::notes::Notes;
use pgsquire::pgbouncer::pauses::{Entry, boot_id};
use pgsquire_core::effect::{Pause, PauseScope, PoolerOrder};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;
use tokio::time::timeout;

fn release(world: &World, more: &[&str]) -> (Option<i32>, String, String) {
    let state = world.path("state").display().to_string();
    let mut command = Command::new(PROGRAM);
    let Output { status, stdout, stderr } =
        command.args(["release", "--state-dir", &state]).args(more).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

fn by_hand(world: &World, scope: PauseScope, boot_id: String) -> Entry {
    Entry {
        pooler: "write".into(),
        boot_id,
        console: world.console(),
        password_file: None,
        pause: Pause { min_pool_size: Some("2".into()), ..pause(scope, Duration::from_secs(600)) },
        before: Vec::new(),
    }
}

/// The guard of this world's state folder, in /proc. A process that was started this instant has no command line yet.
async fn guard(world: &World) -> PathBuf {
    until("there is a guard", async || find_guard(world)).await
}

fn find_guard(world: &World) -> Option<PathBuf> {
    let state = world.path("state").display().to_string();
    std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path()).find(|path| {
        let line = std::fs::read(path.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        line.contains("release --guard") && line.contains(&state)
    })
}

#[tokio::test]
async fn release_ends_what_the_journal_says() {
    let mut world = world(Build::System, &["app", "b"], &format!("{SETTINGS}min_pool_size = 1\n")).await;
    let operator = world.operator().await;
    let client = world.client("app").await;
    for (scope, boot, commands) in [
        (PauseScope::Process, boot_id(), &["PAUSE"][..]),
        (databases(&["app", "b", "gone"]), "another boot".into(), &["PAUSE app", "PAUSE b"]),
    ] {
        journal(&world).write(&by_hand(&world, scope, boot)).unwrap();
        for command in [&["SET min_pool_size = 0"], commands].concat() {
            operator.simple_query(command).await.unwrap();
        }
        let query = waits(&mut world, &client, "app").await;
        let (code, out, err) = release(&world, &[]);
        assert_eq!((code, err.as_str()), (Some(0), ""), "{out}");
        assert!(out.starts_with("write: resumed ") && out.contains("min_pool_size is 2 again"), "{out}");
        assert_eq!(out.lines().count(), 1, "{out}");
        assert!(timeout(PATIENCE, query).await.expect("still paused"));
        // A look reads settings that others change at least once a second.
        let given_back = async || (world.look().await.settings["min_pool_size"] == "2").then_some(());
        until("the value is given back", given_back).await;
        assert_eq!(release(&world, &[]), (Some(0), "nothing is paused by us\n".into(), String::new()));
    }
    world.worker.stop().await;
}

#[tokio::test]
async fn release_says_what_it_could_not_end() {
    let mut world = world(Build::System, &["app"], SETTINGS).await;
    journal(&world).write(&by_hand(&world, PauseScope::Process, boot_id())).unwrap();
    world.bouncer = None;
    let (code, out, err) = release(&world, &["--json"]);
    assert_eq!(code, Some(1), "{out}");
    assert!(err.contains("pooler write") && err.contains("run `pgsquire release` again"), "{err}");
    let said: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert!(said["poolers"]["write"]["failed"][0].as_str().unwrap().contains("cannot connect"), "{out}");
    assert!(journal(&world).read().unwrap().is_some());
    world.begin().await;
    assert_eq!(release(&world, &[]).0, Some(0));
    world.worker.stop().await;
}

#[tokio::test]
async fn release_pays_debts() {
    let mut world = world(Build::System, &["app"], SETTINGS).await;
    // What an agent leaves that dies in the middle.
    let notes = Notes::new(&world.path("state"), "write").of_console(&world.console(), None);
    notes.begin_cut("app").unwrap();
    notes.borrow_login_retry("15").unwrap();
    let operator = world.operator().await;
    for command in ["KILL app", "SET server_login_retry = 0"] {
        operator.simple_query(command).await.unwrap();
    }
    let (code, out, err) = release(&world, &[]);
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert_eq!(out, "write: resumed app, server_login_retry is 15 again\n");
    let view = world.look().await;
    assert_eq!((database(&view, "app").paused, view.settings["server_login_retry"].as_str()), (false, "15"));
    assert_eq!(release(&world, &[]).1, "nothing is paused by us\n");
    world.worker.stop().await;
}

#[tokio::test]
async fn release_ends_a_pause_under_the_worker() {
    let mut world = world(Build::System, &["app"], SETTINGS).await;
    let client = world.client("app").await;
    world.done(order(PauseScope::Process)).await;
    let query = waits(&mut world, &client, "app").await;
    assert_eq!(release(&world, &[]).0, Some(0));
    assert!(timeout(PATIENCE, query).await.expect("still paused"));
    world.done(PoolerOrder::EndPause).await;
    world.worker.stop().await;
}

#[tokio::test]
async fn the_guard_ends_a_pause_whose_agent_is_gone() {
    let mut world = world(Build::System, &["app"], SETTINGS).await;
    let client = world.client("app").await;
    for scope in [PauseScope::Process, databases(&["app"])] {
        world.done(order(scope)).await;
        let guard = guard(&world).await;
        // Nothing of the daemon's: its lock, and what it opened itself.
        let files: Vec<String> = std::fs::read_dir(guard.join("fd"))
            .unwrap()
            .flatten()
            .filter_map(|fd| std::fs::read_link(fd.path()).ok())
            .map(|path| path.display().to_string())
            .collect();
        let lock = std::fs::read_link(guard.join("fd/0")).unwrap();
        assert!(lock.ends_with("state/pauses/.guard"), "{files:?}");
        assert!(!files.iter().any(|file| file.contains("postgres") || file.contains("log")), "{files:?}");
        let pid = guard.file_name().unwrap().to_str().unwrap();
        until("it has a session of its own", async || {
            let stat = std::fs::read_to_string(guard.join("stat")).unwrap();
            let session = stat.rsplit(") ").next().unwrap().split(' ').nth(3).unwrap();
            (session == pid).then_some(())
        })
        .await;

        // The end comes nearer, and then the agent dies without a word.
        let until_then = clock::now() + Duration::from_millis(300);
        let sooner = Pause { until: until_then, ..pause(PauseScope::Process, Duration::ZERO) };
        world.done(PoolerOrder::ExtendPause(sooner)).await;
        let query = waits(&mut world, &client, "app").await;
        world.crash_worker().await;
        assert!(timeout(PATIENCE, query).await.expect("the guard does not end it"));
        let ended = clock::now();
        assert!(ended >= until_then + Duration::from_secs(1), "too early: {ended:?} {until_then:?}");
        let journal = journal(&world);
        until("the entry is dropped", async || journal.read().unwrap().is_none().then_some(())).await;
        world.another_worker();
        world.done(PoolerOrder::EndPause).await;
        assert!(answers(&client).await);
    }
    let state = world.path("state");
    until("no guard is left", async || (!is_there(&state)).then_some(())).await;
    world.worker.stop().await;
}

#[tokio::test]
async fn there_is_one_guard_and_it_ends_with_the_last_pause() {
    let mut world = world(Build::System, &["app"], SETTINGS).await;
    world.done(order(PauseScope::Process)).await;
    let first = guard(&world).await;
    world.done(order(PauseScope::Process)).await;
    assert_eq!(guard(&world).await, first, "the same");
    world.done(PoolerOrder::EndPause).await;
    until("it is gone, and no zombie", async || (!first.exists()).then_some(())).await;
    assert!(!is_there(&world.path("state")));
    // The journal of an agent that was killed together with its guard.
    journal(&world).write(&by_hand(&world, PauseScope::Process, boot_id())).unwrap();
    world.crash_worker().await;
    world.another_worker();
    let state = world.path("state");
    until("the next run has a guard", async || is_there(&state).then_some(())).await;
    world.done(PoolerOrder::EndPause).await;
    world.worker.stop().await;
}
