//! The asker of Patroni's members against servers that answer as Patroni does: HTTP/1.0, one answer per connection,
//! the same body with 200 and 503.

use crate::certificates::Certificates;
use crate::processes::{As, Process, free_port, until};
use crate::worker::Worker;
use pgsquire::patroni::{self, BODY_LIMIT, WorkerConfig};
use pgsquire_core::effect::Order;
use pgsquire_core::event::{Event, Outcome};
use pgsquire_core::patroni::read_member_status;
use std::collections::BTreeMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::Instant;

/// A leader of Patroni 4.1, as it answers.
const LEADER: &str = r#"{"state": "running", "postmaster_start_time": "2026-01-02 03:04:05.678901+00:00", "role": "primary",
 "server_version": 150010, "xlog": {"location": 67395656}, "timeline": 3, "replication": [{"usename": "replicator",
 "application_name": "pg2", "client_addr": "10.0.0.2", "state": "streaming", "sync_state": "async", "sync_priority": 0}],
 "dcs_last_seen": 1767323045, "tags": {}, "database_system_identifier": "7590000000000000001",
 "patroni": {"version": "4.1.5", "scope": "main", "name": "pg1"}}"#;

/// A replica of Patroni 3.0.
const REPLICA: &str = r#"{"state": "running", "role": "replica", "server_version": 150010, "xlog": {"received_location":
 67395656, "replayed_location": 67395656, "replayed_timestamp": null, "paused": false}, "timeline": 3,
 "dcs_last_seen": 1767323045, "database_system_identifier": "7590000000000000001",
 "patroni": {"version": "3.0.2", "scope": "main"}}"#;

/// Answers every connection with these bytes and closes it; `None` never answers. Returns the base address.
async fn serve(answer: Option<(u16, String)>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut question = [0; 1024];
            let read = stream.read(&mut question).await.unwrap_or(0);
            let Some((code, body)) = &answer else {
                open.push(stream);
                continue;
            };
            let code = if question[..read].starts_with(b"GET /primary HTTP/1.1\r\n") { *code } else { 404 };
            let head = format!(
                "HTTP/1.0 {code} x\r\nServer: BaseHTTP/0.6\r\nContent-Type: application/json\r\n\r\n"
            );
            let _ = stream.write_all(head.as_bytes()).await;
            let _ = stream.write_all(body.as_bytes()).await;
        }
    });
    address
}

fn asker(config: WorkerConfig) -> Worker {
    Worker::start(16, |orders, events, stop| patroni::run(config, orders, events, stop))
}

fn ask(member: &str, url: &str) -> Order {
    Order::AskMember { cluster: "main".into(), member: member.into(), url: url.into() }
}

#[tokio::test]
async fn members_answer_in_their_own_time() {
    let leader = serve(Some((200, LEADER.into()))).await;
    let replica = serve(Some((503, REPLICA.into()))).await;
    let silent = serve(None).await;
    let huge = serve(Some((200, "x".repeat(BODY_LIMIT + 1)))).await;
    let nobody = format!("http://127.0.0.1:{}", free_port());
    let mut worker = asker(WorkerConfig::default());
    let began = Instant::now();
    let mut asked = BTreeMap::new();
    for (member, url) in [
        ("silent", silent.clone()),
        ("silent too", silent),
        ("leader", format!("{leader}/patroni")),
        ("replica", format!("{replica}/")),
        ("huge", huge),
        ("nobody", nobody),
        ("no address", "nonsense".into()),
    ] {
        asked.insert(worker.order(ask(member, &url)).await, member);
    }
    let mut answers = BTreeMap::new();
    while answers.len() < asked.len() {
        let Event::Done { id, outcome, .. } = worker.next().await else { panic!("that is no answer") };
        let member = asked[&id];
        if member != "silent" && member != "silent too" {
            assert!(
                began.elapsed().as_millis() < 900,
                "{member} waited for the silent ones: {:?}",
                began.elapsed()
            );
        }
        answers.insert(member, outcome);
    }
    assert!(began.elapsed().as_millis() < 2000, "one second, side by side: {:?}", began.elapsed());
    let status = |member: &str| match &answers[member] {
        Outcome::Member { code, body, .. } => read_member_status(*code, body).unwrap(),
        other => panic!("{member}: {other:?}"),
    };
    assert!(status("leader").is_writable());
    assert!(!status("replica").holds_lock && !status("replica").is_writable());
    let why = |member: &str| match &answers[member] {
        Outcome::Failed { why } => why.as_str(),
        other => panic!("{member}: {other:?}"),
    };
    assert!(
        why("silent").contains("member silent") && why("silent").contains("silent for 1 s"),
        "{}",
        why("silent")
    );
    assert!(why("huge").contains("longer than 1024 kB"), "{}", why("huge"));
    assert!(why("nobody").contains("refused") && why("nobody").contains("/primary"), "{}", why("nobody"));
    assert!(why("no address").contains("nonsense"), "{}", why("no address"));
    worker.stop().await;
}

#[tokio::test]
async fn a_private_certificate_is_asked_for_and_shown() {
    let dir = tempfile::tempdir().unwrap();
    let tls = Certificates::make(dir.path());
    let port = free_port();
    // Answers `GET /primary` with the file of that name.
    std::fs::write(dir.path().join("primary"), format!("HTTP/1.0 200 OK\r\n\r\n{LEADER}")).unwrap();
    let script = format!(
        "cd {} && exec openssl s_server -accept 127.0.0.1:{port} -cert server.crt -key server.key -CAfile ca.crt \
         -Verify 1 -verify_return_error -HTTP",
        dir.path().display()
    );
    let _server = Process::start(As::Me, "sh", &["-c", &script], &dir.path().join("log"));
    let url = format!("https://127.0.0.1:{port}");
    let with = WorkerConfig { tls_ca: Some(tls.ca), tls_cert: Some(tls.cert), tls_key: Some(tls.key) };
    let mut worker = asker(with.clone());
    let body = until("openssl answers", async || match worker.outcome(ask("pg1", &url)).await {
        Outcome::Member { code: 200, body, .. } => Some(body),
        _ => None,
    })
    .await;
    assert!(read_member_status(200, &body).unwrap().is_writable());
    worker.stop().await;
    let failure = async |config: WorkerConfig| {
        let mut worker = asker(config);
        let Outcome::Failed { why } = worker.outcome(ask("pg1", &url)).await else { panic!("it was let in") };
        worker.stop().await;
        why
    };
    let why = failure(WorkerConfig::default()).await;
    assert!(why.contains("certificate") || why.contains("Issuer"), "{why}");
    let why = failure(WorkerConfig { tls_cert: None, ..with.clone() }).await;
    assert!(why.contains(&url), "{why}");
    let why = failure(WorkerConfig { tls_ca: Some("/no/such.crt".into()), ..with }).await;
    assert!(why.contains("/no/such.crt"), "{why}");
}
