//! The PgBouncer worker against a real PgBouncer before a real PostgreSQL.

use crate::pooler::{SETTINGS, World, answers, config, database};
use crate::processes::PATIENCE;
use crate::server::connect;
use crate::worker::Worker;
use nix::sys::signal::Signal;
use pgsquire::pgbouncer;
use pgsquire::state::load_restored;
use pgsquire_core::effect::{Order, PoolerOrder};
use pgsquire_core::event::Outcome;
use pgsquire_core::topology::Endpoint;
use std::collections::BTreeMap;
use tokio::time::{Instant, timeout};

fn cut(database: &str) -> PoolerOrder {
    PoolerOrder::Cut {
        database: database.into(),
        stale: vec![Endpoint { host: "127.0.0.1".into(), port: 1 }],
    }
}

#[tokio::test]
async fn a_look_shows_databases_links_waiting_clients_and_settings() {
    let mut world = World::start("", SETTINGS).await;
    let databases = [
        world.entry("app", "127.0.0.1"),
        world.entry("by_name", "localhost"),
        world.entry("two", "127.0.0.1,127.0.0.1"),
        format!("socket = port={} dbname=postgres pool_size=1\n", world.server.port),
    ];
    let wanted = world.ini(&databases.concat(), SETTINGS);
    std::fs::write(world.path("p.ini"), wanted).unwrap();
    world.done(PoolerOrder::Reload).await;
    let (app, by_name) = (world.client("app").await, world.client("by_name").await);
    assert!(answers(&app).await && answers(&by_name).await);

    let view = world.look().await;
    assert_eq!(view.version, (1, 18));
    let names: Vec<_> = view.databases.iter().map(|d| d.name.as_str()).collect();
    assert_eq!(names.len(), 4, "without its own: {names:?}");
    let shown = database(&view, "app");
    assert_eq!(
        (shown.host.as_deref(), shown.port, shown.paused),
        (Some("127.0.0.1"), world.server.port, false)
    );
    assert_eq!(database(&view, "socket").host, None);
    assert_eq!(database(&view, "two").host.as_deref(), Some("127.0.0.1,127.0.0.1"));
    let mut links: Vec<_> =
        view.servers.iter().map(|s| (s.database.as_str(), s.addr.as_str(), s.port)).collect();
    links.sort_unstable();
    let port = world.server.port;
    assert_eq!(links.iter().map(|l| (l.0, l.2)).collect::<Vec<_>>(), [("app", port), ("by_name", port)]);
    assert_eq!(links[0].1, "127.0.0.1");
    assert_eq!(view.settings["server_login_retry"], "15");
    let resolved = &view.resolved["localhost"];
    assert!(resolved.iter().any(|a| a == "127.0.0.1" || a == "::1"), "{resolved:?}");
    assert!(
        resolved.contains(&links[1].1.to_owned()),
        "the link leads to one of them: {links:?} {resolved:?}"
    );

    world.worker.stop().await;
}

#[tokio::test]
async fn clients_that_wait_are_counted_by_database() {
    let mut world = World::start("", &format!("{SETTINGS}default_pool_size = 1\n")).await;
    let databases = [world.entry("app", "127.0.0.1"), world.entry("idle", "127.0.0.1")].concat();
    let wanted = world.ini(&databases, &format!("{SETTINGS}default_pool_size = 1\n"));
    std::fs::write(world.path("p.ini"), wanted).unwrap();
    world.done(PoolerOrder::Reload).await;
    let holder = world.client("app").await;
    holder.batch_execute("BEGIN").await.unwrap();
    let (first, second) = (world.client("app").await, world.client("app").await);
    let waiting = async { tokio::join!(answers(&first), answers(&second)) };
    tokio::pin!(waiting);
    let counted = async {
        loop {
            if world.look().await.waiting.get("app") == Some(&2) {
                return;
            }
        }
    };
    tokio::select! {
        answered = &mut waiting => panic!("{answered:?} while the only link was held"),
        counted = timeout(PATIENCE, counted) => counted.expect("two clients wait"),
    }
    holder.batch_execute("COMMIT").await.unwrap();
    assert_eq!(waiting.await, (true, true));
    world.worker.stop().await;
}

#[tokio::test]
async fn a_host_that_is_written_and_reloaded_is_loaded() {
    let mut world = World::start("", SETTINGS).await;
    let included = world.path("databases.ini");
    std::fs::write(&included, format!("[databases]\n{}", world.entry("app", "127.0.0.1"))).unwrap();
    let root = format!("%include {}\n{}", included.display(), world.ini("", SETTINGS));
    std::fs::write(world.path("p.ini"), &root).unwrap();
    let files = world.files().await;
    assert_eq!(files.parts.len(), 2);
    world.done(PoolerOrder::Reload).await;
    let before = world.client("app").await;
    assert!(answers(&before).await);

    let path = included.to_str().unwrap().to_owned();
    let old = files.parts[&path].clone();
    let new = format!("[databases]\n{}", world.entry("app", "localhost")).into_bytes();
    let write = |expected: &[u8]| PoolerOrder::Write {
        files: BTreeMap::from([(path.clone(), (expected.to_vec(), new.clone()))]),
        keep_rejected: false,
    };
    assert_eq!(world.order(write(b"something else")).await, Outcome::ChangedMeanwhile);
    assert_eq!(std::fs::read(&included).unwrap(), old);
    world.done(write(&old)).await;
    assert_eq!(
        database(&world.look().await, "app").host.as_deref(),
        Some("127.0.0.1"),
        "written is not loaded"
    );
    world.done(PoolerOrder::Reload).await;
    assert_eq!(database(&world.look().await, "app").host.as_deref(), Some("localhost"));
    world.done(PoolerOrder::Reconnect { database: "app".into() }).await;
    assert!(answers(&before).await, "a client in transaction pooling keeps its connection");

    let files = world.files().await;
    world.done(PoolerOrder::KeepGood { files: files.clone() }).await;
    let (restored, problems) = load_restored(&world.path("state"));
    assert_eq!((restored.last_good.get("write"), problems), (Some(&files), Vec::new()));
    world.worker.stop().await;
}

#[tokio::test]
async fn a_borrowed_login_retry_is_noted_and_undone_by_reload() {
    let mut world = World::start("", SETTINGS).await;
    let noted =
        |world: &World| load_restored(&world.path("state")).0.borrowed_login_retry.get("write").cloned();
    world.done(PoolerOrder::BorrowLoginRetry { value: "15".into() }).await;
    assert_eq!(world.look().await.settings["server_login_retry"], "0");
    assert_eq!(noted(&world), Some("15".into()));
    world.done(PoolerOrder::Reload).await;
    assert_eq!(world.look().await.settings["server_login_retry"], "15", "RELOAD undoes SET");
    world.done(PoolerOrder::BorrowLoginRetry { value: "15".into() }).await;
    world.done(PoolerOrder::ReturnLoginRetry { value: "7.5".into() }).await;
    assert_eq!(world.look().await.settings["server_login_retry"], "7.5");
    assert_eq!(noted(&world), None);

    let why = world.why_not(PoolerOrder::ReturnLoginRetry { value: "fifteen".into() }).await;
    assert!(why.contains("pooler write") && why.contains("SET server_login_retry"), "{why}");
    world.worker.stop().await;
}

#[tokio::test]
async fn a_cut_ends_links_and_pauses_nothing() {
    let mut world = World::start("", SETTINGS).await;
    let databases =
        [world.entry("app", "127.0.0.1"), world.entry("App-1.x", "127.0.0.1"), world.entry("*", "127.0.0.1")];
    let wanted = world.ini(&databases.concat(), SETTINGS);
    std::fs::write(world.path("p.ini"), wanted).unwrap();
    world.done(PoolerOrder::Reload).await;
    let cuts = |world: &World| load_restored(&world.path("state")).0.cut;
    for name in ["app", "App-1.x"] {
        let client = world.client(name).await;
        client.batch_execute("BEGIN").await.unwrap();
        assert!(world.look().await.servers.iter().any(|s| s.database == name));
        world.done(cut(name)).await;
        let view = world.look().await;
        assert!(!view.servers.iter().any(|s| s.database == name), "{view:?}");
        assert!(!database(&view, name).paused);
        assert!(!answers(&client).await, "it was cut");
        assert!(answers(&world.client(name).await).await, "and is served when it comes back");
        assert!(cuts(&world).is_empty());
    }

    let why = world.why_not(cut("nosuch")).await;
    assert!(why.contains("SHOW DATABASES does not list it"), "{why}");
    let why = world.why_not(PoolerOrder::Reconnect { database: "nosuch".into() }).await;
    assert!(why.contains("nosuch"), "{why}");
    assert!(!world.look().await.databases.iter().any(|d| d.name == "nosuch"), "`*` did not make it");

    // An operator's pause stays, ours does not.
    let console =
        connect(&format!("host=127.0.0.1 port={} user=boss", world.port), "pgbouncer").await.unwrap();
    console.simple_query("PAUSE app").await.unwrap();
    world.done(cut("app")).await;
    assert!(database(&world.look().await, "app").paused);
    world.done(PoolerOrder::Resume { database: "app".into() }).await;
    assert!(!database(&world.look().await, "app").paused);
    world.done(PoolerOrder::Resume { database: "app".into() }).await;
    world.done(PoolerOrder::Resume { database: "nosuch".into() }).await;

    console.simple_query("PAUSE").await.unwrap();
    let why = world.why_not(cut("app")).await;
    assert!(why.contains("KILL app") && why.contains("already suspended/paused"), "{why}");
    assert!(cuts(&world).is_empty(), "it did nothing, so nothing is owed");
    console.simple_query("RESUME").await.unwrap();
    assert!(answers(&world.client("app").await).await);
    world.worker.stop().await;
}

#[tokio::test]
async fn a_cut_that_was_interrupted_is_ended_later() {
    let mut world = World::start("", SETTINGS).await;
    let wanted = world.ini(&world.entry("app", "127.0.0.1"), SETTINGS);
    std::fs::write(world.path("p.ini"), wanted).unwrap();
    world.done(PoolerOrder::Reload).await;
    let state = world.path("state");
    // What an agent leaves that dies between KILL and RESUME.
    pgbouncer::notes::Notes::new(&state, "write").begin_cut("app").unwrap();
    let console =
        connect(&format!("host=127.0.0.1 port={} user=boss", world.port), "pgbouncer").await.unwrap();
    console.simple_query("KILL app").await.unwrap();
    assert!(database(&world.look().await, "app").paused);
    assert_eq!(load_restored(&state).0.cut["write"], ["app"]);
    world.done(cut("app")).await;
    assert!(!database(&world.look().await, "app").paused, "the pause is ours, so a second cut ends it");
    assert!(load_restored(&state).0.cut.is_empty());
    world.worker.stop().await;
}

#[tokio::test]
async fn a_silent_or_absent_console_is_a_failure_that_says_so() {
    let mut world = World::start("", SETTINGS).await;
    world.look().await;
    world.signal(Signal::SIGSTOP);
    let began = Instant::now();
    let why = world.why_not(PoolerOrder::Look).await;
    assert!(why.contains("the console of pooler write was silent for 2 s") && why.contains("SHOW"), "{why}");
    assert!((1900..4000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    let why = world.why_not(PoolerOrder::Reload).await;
    assert!(why.contains("silent for 2 s") && why.contains("a connection"), "{why}");
    world.signal(Signal::SIGCONT);
    world.look().await;

    world.bouncer = None;
    let why = world.why_not(PoolerOrder::Look).await;
    assert!(why.contains("refused") && why.contains(&format!("port {}", world.port)), "{why}");
    world.begin().await;
    assert_eq!(world.look().await.version, (1, 18), "the connection is made again");
    world.bouncer = None;
    world.begin().await;
    world.look().await;
    world.worker.stop().await;
}

#[tokio::test]
async fn a_password_comes_from_its_file() {
    let settings = "auth_type = scram-sha-256\n";
    let world = World::start("", settings).await;
    let ask = async |console: String, password: &str| {
        let mut config = config(world.dir.path(), &console);
        std::fs::write(world.path("password"), password).unwrap();
        config.password_file = Some(world.path("password"));
        let mut worker =
            Worker::start(16, |orders, events, stop| pgbouncer::run(config, orders, events, stop));
        let outcome =
            worker.outcome(Order::Pooler { pooler: "write".into(), order: PoolerOrder::Look }).await;
        worker.stop().await;
        outcome
    };
    let console = format!("host=127.0.0.1 port={} user=boss", world.port);
    assert!(matches!(ask(console.clone(), "secret\n").await, Outcome::Console(_)));
    let Outcome::Failed { why } = ask(console, "guess\n").await else { panic!("a wrong password was taken") };
    assert!(why.contains("the console of pooler write") && why.contains("SASL"), "{why}");
    assert!(!why.contains("guess"), "{why}");
    let Outcome::Failed { why } = ask("host=127.0.0.1 sslmod=x".into(), "").await else { panic!("sslmod?") };
    assert!(why.contains("cannot connect to the console of pooler write") && why.contains("sslmod"), "{why}");
    world.worker.stop().await;
}

#[tokio::test]
async fn orders_for_others_and_missing_files_are_refused_with_a_sentence() {
    let mut world = World::start("", SETTINGS).await;
    let other = Order::Pooler { pooler: "read".into(), order: PoolerOrder::Look };
    let Outcome::Failed { why } = world.worker.outcome(other).await else { panic!("it is not ours") };
    assert!(why.contains("no order for pooler write"), "{why}");
    std::fs::remove_file(world.path("p.ini")).unwrap();
    let why = world.why_not(PoolerOrder::ReadFiles).await;
    assert!(why.contains("p.ini") && why.contains("No such file"), "{why}");
    world.worker.stop().await;
}
