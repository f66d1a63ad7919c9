//! The follower of the members' REST API: against a real Patroni, and against servers that answer as no Patroni should.

use crate::certificates::Certificates;
use crate::patroni_server::{Patroni, name};
use crate::processes::{As, Process, free_port, until};
use crate::worker::Worker;
use nix::sys::signal::Signal;
use pgsquire::dcs::rest::{self, WorkerConfig};
use pgsquire::patroni;
use pgsquire_core::effect::Order;
use pgsquire_core::event::{Event, Outcome};
use pgsquire_core::patroni::read_topology;
use pgsquire_core::topology::Topology;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

fn config(hosts: Vec<String>) -> WorkerConfig {
    WorkerConfig {
        cluster: "main".into(),
        scope: "main".into(),
        hosts,
        pollers: 10,
        max_fact_age: Duration::from_secs(10),
        tls: patroni::WorkerConfig::default(),
    }
}

fn follow(config: WorkerConfig) -> Worker {
    Worker::start(64, |orders, events, stop| rest::run(config, orders, events, stop))
}

fn read_store() -> Order {
    Order::ReadStore { cluster: "main".into() }
}

/// Reads until one is as wanted.
async fn read_until(follower: &mut Worker, what: &str, wanted: impl Fn(&Topology) -> bool) -> Topology {
    // A switchover or a base backup on a busy machine tells a lot before it comes to its end.
    for _ in 0..10_000 {
        if let Event::StoreRead { read, .. } = follower.next().await {
            let topology = read_topology(&read.keys);
            if wanted(&topology) {
                return topology;
            }
        }
    }
    panic!("still not: {what}");
}

/// The next failure.
async fn next_failure(follower: &mut Worker) -> String {
    loop {
        if let Event::StoreFailed { why, .. } = follower.next().await {
            return why;
        }
    }
}

fn leads(topology: &Topology, n: usize) -> bool {
    topology.leader.as_ref().is_some_and(|leader| leader.name == name(n))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_is_followed_by_the_word_of_its_members() {
    let mut patroni = Patroni::start(2).await;
    // One is enough to find the others. Its name is not the address that it names itself.
    let mut follower = follow(config(vec![patroni.base(1).replace("127.0.0.1", "localhost")]));

    let seen = read_until(&mut follower, "both are known", |t| {
        leads(t, 0) && t.members.len() == 2 && t.members.values().all(|m| m.version.is_some())
    })
    .await;
    let endpoint = |n: usize| seen.members[&name(n)].endpoint.as_ref().map(ToString::to_string);
    assert_eq!((endpoint(0), endpoint(1)), (Some(patroni.endpoint(0)), Some(patroni.endpoint(1))));
    assert_eq!((seen.config.ttl, seen.config.loop_wait), (Duration::from_secs(20), Duration::from_secs(1)));
    assert!(seen.system_id.is_some() && seen.problems.is_empty(), "{:?}", seen.problems);
    let before = seen.members[&name(0)].timeline.expect("a primary tells it");

    patroni.switch_over(0, 1).await;
    let is_new = |t: &Topology| leads(t, 1) && t.members[&name(1)].timeline > Some(before);
    read_until(&mut follower, "the other leads on a newer timeline", is_new).await;

    // One whose Patroni is frozen keeps nobody from being heard.
    patroni.signal(0, Signal::SIGSTOP);
    let frozen = patroni.base(0);
    let is_silent = |t: &Topology| t.problems.iter().any(|p| *p == format!("{frozen}: silent for 1 s"));
    let seen = read_until(&mut follower, "it is silent", is_silent).await;
    assert!(leads(&seen, 1) && seen.members.len() == 2);
    assert_eq!(follower.outcome(read_store()).await, Outcome::Done);
    patroni.signal(0, Signal::SIGCONT);
    read_until(&mut follower, "it speaks again", |t| t.problems.is_empty()).await;

    patroni.add().await;
    let is_there =
        |t: &Topology| t.members.get(&name(2)).is_some_and(|m| m.is_running() && m.version.is_some());
    read_until(&mut follower, "the third is there", is_there).await;
    patroni.remove(2).await;
    read_until(&mut follower, "the third is gone", |t| !t.members.contains_key(&name(2)) && leads(t, 1))
        .await;

    patroni.kill(1);
    patroni.kill(0);
    let why = next_failure(&mut follower).await;
    assert!(why.starts_with("no member of main answers: "), "{why}");
    assert!(
        why.contains(&patroni.base(0)) && why.contains(&patroni.base(1)) && why.contains("refused"),
        "{why}"
    );
    follower.stop().await;
}

/// Answers of a server: path -> code and body; none: it never answers.
type Pages = Arc<Mutex<Option<BTreeMap<String, (u16, String)>>>>;

/// A member that answers as it is told. HTTP/1.0, one answer per connection, as Patroni does.
struct Fake {
    base: String,
    pages: Pages,
}

impl Fake {
    async fn start() -> Fake {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let pages = Pages::default();
        let told = pages.clone();
        tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut question = vec![0; 2048];
                let read = stream.read(&mut question).await.unwrap_or(0);
                let text = String::from_utf8_lossy(&question[..read]).into_owned();
                let path = text.split(' ').nth(1).unwrap_or_default().to_owned();
                let page = told.lock().unwrap().as_ref().map(|pages| pages.get(&path).cloned());
                match page {
                    None => open.push(stream),
                    Some(page) => {
                        let (code, body) = page.unwrap_or((404, "nothing here".into()));
                        let answer = format!("HTTP/1.0 {code} x\r\nServer: BaseHTTP/0.6\r\n\r\n{body}");
                        let _ = stream.write_all(answer.as_bytes()).await;
                    }
                }
            }
        });
        Fake { base, pages }
    }

    fn says(&self, path: &str, code: u16, body: impl ToString) {
        let mut pages = self.pages.lock().unwrap();
        pages.get_or_insert_default().insert(path.into(), (code, body.to_string()));
    }

    /// It leads, or follows, on timeline 1.
    fn is(&self, n: usize, code: u16) {
        self.says("/primary", code, status(n, code));
    }
}

fn status(n: usize, code: u16) -> Value {
    let (role, xlog) = match code {
        200 => ("primary", json!({ "location": 7 })),
        _ => ("replica", json!({ "replayed_location": 7 })),
    };
    json!({ "state": "running", "role": role, "timeline": 1, "xlog": xlog, "database_system_identifier": "777",
            "patroni": { "version": "4.1.5", "scope": "main", "name": name(n) } })
}

fn cluster(bases: &[&str]) -> Value {
    let line = |(n, base): (usize, &&str)| {
        json!({ "name": name(n), "role": "replica", "state": "running", "host": "10.0.0.1", "port": 5432,
                "api_url": format!("{base}/patroni") })
    };
    json!({ "scope": "main", "members": bases.iter().enumerate().map(line).collect::<Vec<_>>() })
}

const CONFIG: &str = r#"{"ttl": 20, "loop_wait": 5}"#;

#[tokio::test]
async fn hosts_that_are_no_members_are_named_and_keep_nobody_from_being_followed() {
    let (leader, html, other) = (Fake::start().await, Fake::start().await, Fake::start().await);
    let hangs = Fake::start().await;
    let refuses = format!("http://127.0.0.1:{}", free_port());
    leader.is(0, 200);
    leader.says("/cluster", 200, cluster(&[&leader.base]));
    leader.says("/config", 200, CONFIG);
    html.says("/primary", 200, "<html>It works!</html>");
    other.says("/primary", 200, status(1, 200).to_string().replace("\"main\"", "\"other\""));
    let hosts = [&hangs.base, &refuses, &html.base, &other.base, &leader.base];
    let mut follower = follow(config(hosts.map(Clone::clone).to_vec()));
    // Long before the one that hangs is given up.
    let seen = read_until(&mut follower, "there is a leader", |t| leads(t, 0)).await;
    assert!(!seen.problems.iter().any(|problem| problem.contains(&hangs.base)), "{:?}", seen.problems);
    let seen = read_until(&mut follower, "all have had their chance", |t| t.problems.len() == 4).await;
    let why = |base: &str| {
        let found = seen.problems.iter().find(|problem| problem.starts_with(base));
        found.unwrap_or_else(|| panic!("{base} is not named: {:?}", seen.problems)).clone()
    };
    assert!(why(&hangs.base).ends_with("silent for 1 s"), "{}", why(&hangs.base));
    assert!(why(&refuses).contains("refused"), "{}", why(&refuses));
    assert!(why(&html.base).contains("not Patroni's JSON"), "{}", why(&html.base));
    assert!(why(&other.base).contains("it answers for scope other, not main"), "{}", why(&other.base));

    // Without the one member there is nobody.
    leader.says("/primary", 200, "<html>");
    let failed = next_failure(&mut follower).await;
    let names_all = hosts.iter().all(|host| failed.contains(*host));
    assert!(failed.starts_with("no member of main answers: ") && names_all, "{failed}");
    let Outcome::Failed { why } = follower.outcome(read_store()).await else { panic!("nobody answers") };
    assert!(why.contains(&html.base), "{why}");
    leader.is(0, 200);
    read_until(&mut follower, "it is followed again", |t| leads(t, 0)).await;
    follower.stop().await;
}

#[tokio::test]
async fn members_come_and_go_with_the_list_and_who_cannot_give_one_is_named() {
    let (one, two) = (Fake::start().await, Fake::start().await);
    one.is(0, 200);
    two.is(1, 503);
    one.says("/cluster", 500, "the store is away");
    let mut follower =
        follow(WorkerConfig { max_fact_age: Duration::from_secs(3), ..config(vec![one.base.clone()]) });
    let why = next_failure(&mut follower).await;
    assert!(why.contains("who the members of main are is not known"), "{why}");
    assert!(why.contains(&one.base) && why.contains("GET /cluster answered HTTP 500"), "{why}");

    for fake in [&one, &two] {
        fake.says("/cluster", 200, cluster(&[&one.base]));
        fake.says("/config", 200, CONFIG);
    }
    read_until(&mut follower, "one is followed", |t| leads(t, 0) && t.problems.is_empty()).await;
    one.says("/cluster", 200, cluster(&[&one.base, &two.base]));
    two.says("/cluster", 200, cluster(&[&one.base, &two.base]));
    let is_heard = |t: &Topology| t.members.get(&name(1)).is_some_and(|m| m.version.is_some());
    read_until(&mut follower, "the other is found and asked", is_heard).await;
    // A switchover between two answers of each.
    one.is(0, 503);
    read_until(&mut follower, "nobody leads", |t| t.leader.is_none()).await;
    two.is(1, 200);
    read_until(&mut follower, "the other leads", |t| leads(t, 1)).await;
    one.says("/cluster", 200, cluster(&[&one.base]));
    two.says("/cluster", 200, cluster(&[&one.base]));
    read_until(&mut follower, "it is gone", |t| !t.members.contains_key(&name(1)) && t.leader.is_none())
        .await;
    follower.stop().await;
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let tls = Certificates::make(dir.path());
    let port = free_port();
    let base = format!("https://127.0.0.1:{port}");
    // openssl answers each question with the file of that name.
    for (file, body) in [
        ("primary", status(0, 200).to_string()),
        ("cluster", cluster(&[&base]).to_string()),
        ("config", CONFIG.to_string()),
    ] {
        std::fs::write(dir.path().join(file), format!("HTTP/1.0 200 OK\r\n\r\n{body}")).unwrap();
    }
    let script = format!(
        "cd {} && exec openssl s_server -accept 127.0.0.1:{port} -cert server.crt -key server.key -HTTP",
        dir.path().display()
    );
    let _server = Process::start(As::Me, "sh", &["-c", &script], &dir.path().join("log"));
    until("openssl listens", async || tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok()).await;
    let with = |tls_ca| WorkerConfig {
        tls: patroni::WorkerConfig { tls_ca, ..patroni::WorkerConfig::default() },
        ..config(vec![base.clone()])
    };
    let mut follower = follow(with(Some(tls.ca)));
    read_until(&mut follower, "it leads", |t| leads(t, 0)).await;
    follower.stop().await;

    let strange = tempfile::tempdir().unwrap();
    for (ca, what) in [
        (Some(Certificates::make(strange.path()).ca), "certificate"),
        (None, "certificate"),
        (Some("/no/such.crt".into()), "/no/such.crt"),
    ] {
        let mut follower = follow(with(ca));
        let why = next_failure(&mut follower).await;
        assert!(why.contains(&base) && why.contains(what), "{why}");
        follower.stop().await;
    }
}
