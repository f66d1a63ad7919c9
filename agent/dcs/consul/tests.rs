//! What the real Consul does not show on demand: nonsense, indexes that go back, values that are too long.

use super::*;
use crate::dcs::follow::Watch;
use crate::dcs::publish::{Change, KeyStore, WriteError};
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

/// Code, index and body.
type Said = (u16, Option<u64>, String);
/// What a question begins with, and the answers to it.
type Script = Vec<(&'static str, VecDeque<Said>)>;

/// A server that answers each kind of question from a script; its last answer stays.
#[derive(Clone, Default)]
struct Fake {
    answers: Arc<Mutex<Script>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Fake {
    /// Answers to what begins with this method and path.
    fn says(self, to: &'static str, answers: impl IntoIterator<Item = Said>) -> Self {
        self.answers.lock().unwrap().push((to, answers.into_iter().collect()));
        self
    }

    /// One that knows its datacenter and has a leader.
    fn new() -> Self {
        Fake::default()
            .says("GET /v1/agent/self", [(200, None, r#"{"Config":{"Datacenter":"here"}}"#.into())])
            .says("GET /v1/status/leader", [(200, None, r#""127.0.0.1:8300""#.into())])
            .says("GET /v1/kv/service/main/pgsquire/absent", [(404, Some(7), String::new())])
    }

    fn answer(&self, line: &str) -> Said {
        self.asked.lock().unwrap().push(line.to_owned());
        let mut answers = self.answers.lock().unwrap();
        let Some((_, queue)) = answers.iter_mut().find(|(to, _)| line.starts_with(to)) else {
            return (404, None, "nobody wrote an answer".into());
        };
        if queue.len() > 1 { queue.pop_front().unwrap() } else { queue[0].clone() }
    }

    async fn start(self) -> ConsulConfig {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoints = vec![format!("http://{}", listener.local_addr().unwrap())];
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let fake = self.clone();
                tokio::spawn(async move {
                    let mut request = Vec::new();
                    while !request.windows(4).any(|four| four == b"\r\n\r\n") {
                        let mut more = [0; 4096];
                        let read = stream.read(&mut more).await.unwrap_or(0);
                        if read == 0 {
                            return;
                        }
                        request.extend_from_slice(&more[..read]);
                    }
                    let line = String::from_utf8_lossy(&request).lines().next().unwrap().to_owned();
                    let (code, index, body) = fake.answer(&line);
                    let index = index.map_or(String::new(), |index| format!("X-Consul-Index: {index}\r\n"));
                    let head = format!(
                        "HTTP/1.1 {code} said\r\n{index}Content-Length: {}\r\nConnection: close\r\n\r\n",
                        body.len()
                    );
                    let _ = stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).await;
                    let _ = stream.shutdown().await;
                    // What is left of the request is read, so that the answer is not lost with it.
                    while stream.read(&mut [0; 4096]).await.is_ok_and(|read| read > 0) {}
                });
            }
        });
        ConsulConfig { endpoints, ..ConsulConfig::default() }
    }
}

const LIST: &str = "GET /v1/kv/service/main/?recurse";

fn entry(key: &str, value: &[u8], revision: u64) -> String {
    let value = BASE64.encode(value);
    format!(r#"{{"Key":"service/main/{key}","Value":"{value}","ModifyIndex":{revision},"Flags":0}}"#)
}

fn listing(index: u64, entries: &[(&str, u64)]) -> Said {
    let entries: Vec<_> = entries.iter().map(|(key, revision)| entry(key, b"v", *revision)).collect();
    (200, Some(index), format!("[{}]", entries.join(",")))
}

async fn read(fake: Fake) -> Result<StoreRead, String> {
    Consul::new(fake.start().await, "/service/main/").read().await.map(|reading| reading.read)
}

#[tokio::test]
async fn nonsense_is_an_error_that_names_what_said_it() {
    let html = || (200, Some(9), "<html>\n<body>hello".to_owned());
    let why = read(Fake::new().says(LIST, [html()])).await.unwrap_err();
    assert!(why.contains("http://127.0.0.1:") && why.contains("<html>"), "{why}");
    let why = read(Fake::new().says(LIST, [(200, None, "[]".into())])).await.unwrap_err();
    assert!(why.contains("no index"), "{why}");
    let why = read(Fake::new().says(LIST, [(502, None, "<h1>Bad Gateway</h1>".into())])).await.unwrap_err();
    assert!(why.contains("502: <h1>Bad Gateway"), "{why}");
    let why = read(Fake::new().says(LIST, [(403, None, "Permission denied".into())])).await.unwrap_err();
    assert!(why.contains("token_file"), "{why}");
    let text = r#"[{"Key":"service/main/config","Value":"%%%","ModifyIndex":3}]"#;
    let why = read(Fake::new().says(LIST, [(200, Some(9), text.into())])).await.unwrap_err();
    assert!(why.contains("service/main/config is not base64"), "{why}");
    let long = format!("[{}]", entry("history", &vec![b'x'; 5 << 20], 3));
    let why = read(Fake::new().says(LIST, [(200, Some(9), long)])).await.unwrap_err();
    assert!(why.contains("service/main/history holds 5242880 bytes"), "{why}");
}

#[tokio::test]
async fn a_read_has_a_revision_that_tombstones_do_not_lower() {
    let keys = [("leader", 3), ("", 4), ("status", 5)];
    let known = read(Fake::new().says(LIST, [listing(5, &keys)])).await.unwrap();
    assert_eq!((known.revision, known.store.as_str(), known.raft_term), (7, "consul/here", 0));
    assert_eq!(known.keys.keys().collect::<Vec<_>>(), ["leader", "status"], "a folder is no key");
    let newer = read(Fake::new().says(LIST, [listing(9, &keys)])).await.unwrap();
    assert_eq!(newer.revision, 9);
    let empty = read(Fake::new().says(LIST, [(404, Some(8), String::new())])).await.unwrap();
    assert_eq!((empty.revision, empty.keys.len(), empty.leader_ttl), (8, 0, None));
    let zero = read(Fake::new().says(LIST, [(404, Some(0), String::new())])).await.unwrap();
    assert_eq!(zero.revision, 7);
}

#[test]
fn durations_of_go() {
    let ms = |text: &str| duration(text).map(|duration| duration.as_millis());
    assert_eq!(ms("15s"), Some(15_000));
    assert_eq!(ms("15.5s"), Some(15_500));
    assert_eq!(ms("1h2m3s4ms"), Some(3_723_004));
    for bad in ["", "15", "s", "15x", "-1s", "1..5s", "99999999999999999999999h"] {
        assert_eq!(ms(bad), None, "{bad}");
    }
}

async fn watching(fake: Fake) -> ConsulWatch {
    let store = Consul::new(fake.start().await, "/service/main/");
    let first = store.read().await.unwrap();
    store.watch(&first).await.unwrap()
}

#[tokio::test]
async fn only_real_changes_are_told_and_in_their_order() {
    let before = [("leader", 3), ("members/a", 4), ("members/b", 5)];
    let fake = Fake::new().says(
        LIST,
        [
            listing(5, &before),
            listing(5, &before),
            listing(8, &before),
            // The leader key was written, a member was deleted.
            listing(12, &[("leader", 11), ("members/a", 4), ("status", 10)]),
        ],
    );
    let asked = fake.asked.clone();
    let mut watch = watching(fake).await;
    let changes = watch.next().await.unwrap();
    let short: Vec<_> = changes
        .iter()
        .map(|change| {
            (change.revision, change.changes.iter().map(|(k, v)| (k.as_str(), v.is_some())).collect())
        })
        .collect::<Vec<(u64, Vec<_>)>>();
    assert_eq!(
        short,
        [(10, vec![("status", true)]), (11, vec![("leader", true)]), (12, vec![("members/b", false)])]
    );
    let asked: Vec<_> =
        asked.lock().unwrap().iter().filter(|line| line.contains("recurse")).cloned().collect();
    assert!(asked[1].contains("?recurse HTTP"), "the first query does not wait: {asked:?}");
    assert!(asked[2].contains("index=5&wait=30s") && asked[3].contains("index=8"), "{asked:?}");
}

#[tokio::test]
async fn an_index_that_goes_back_begins_anew_and_another_history_ends_the_watch() {
    let before = [("leader", 3), ("status", 5)];
    let fake = Fake::new().says(
        LIST,
        [
            listing(6, &before),
            listing(6, &before),
            // A tombstone was reaped.
            listing(5, &before),
            listing(5, &before),
            listing(9, &[("leader", 9), ("status", 5)]),
            // A snapshot was restored.
            listing(4, &[("leader", 3)]),
        ],
    );
    let asked = fake.asked.clone();
    let mut watch = watching(fake).await;
    let changes = watch.next().await.unwrap();
    assert_eq!((changes.len(), changes[0].revision), (1, 9));
    let end = watch.next().await.unwrap_err();
    assert!(end.why.contains("its history is another") && !end.endpoint_failed, "{}", end.why);
    let asked: Vec<_> =
        asked.lock().unwrap().iter().filter(|line| line.contains("recurse")).cloned().collect();
    assert!(asked[3].contains("?recurse HTTP") && asked[4].contains("index=5"), "{asked:?}");
}

#[tokio::test]
async fn a_server_that_never_waits_is_not_asked_without_pause() {
    let fake = Fake::new().says(LIST, [listing(6, &[("leader", 3)])]);
    let asked = fake.asked.clone();
    let mut watch = watching(fake).await;
    let idle = tokio::time::timeout(Duration::from_millis(1500), watch.next()).await;
    assert!(idle.is_err(), "{idle:?}");
    let count = asked.lock().unwrap().len();
    assert!(count < 20, "{count} questions in 1.5 s");
}

#[tokio::test]
async fn a_store_without_a_leader_ends_the_watch() {
    let fake = Fake::default()
        .says("GET /v1/status/leader", [(200, None, "\"\"".into())])
        .says("GET /v1/agent/self", [(403, None, "Permission denied".into())])
        .says("GET /v1/kv/service/main/pgsquire/absent", [(404, Some(7), String::new())])
        .says(LIST, [listing(6, &[("leader", 3)])]);
    let mut watch = watching(fake).await;
    let end = watch.next().await.unwrap_err();
    assert!(end.why.contains("has no leader") && end.endpoint_failed, "{}", end.why);
}

#[tokio::test]
async fn an_endpoint_that_does_not_tell_its_leader_lives() {
    let blocked = (403, None, "Endpoint is blocked by agent configuration".into());
    let fake = Fake::default()
        .says("GET /v1/status/leader", [blocked])
        .says("GET /v1/agent/self", [(403, None, "Permission denied".into())])
        .says("GET /v1/kv/service/main/pgsquire/absent", [(404, Some(7), String::new())])
        .says(LIST, [listing(6, &[("leader", 3)])]);
    let asked = fake.asked.clone();
    let mut watch = watching(fake).await;
    let idle = tokio::time::timeout(Duration::from_millis(4_500), watch.next()).await;
    assert!(idle.is_err(), "{idle:?}");
    assert!(asked.lock().unwrap().iter().any(|line| line.contains("status")));
}

fn change(key: &str) -> Change {
    Change { put: [(key.to_owned(), b"1".to_vec())].into(), delete: ["gone".to_owned()].into() }
}

#[tokio::test]
async fn a_refused_transaction_is_understood() {
    let keys = async |fake: Fake| ConsulKeys::new(fake.start().await, "/pgsquire/service/main/");
    let session = "abc".to_owned();
    let no = |index: usize, what: &str| {
        (409, None, format!(r#"{{"Results":null,"Errors":[{{"OpIndex":{index},"What":"{what}"}}]}}"#))
    };
    // Another session holds the key, and what is to be deleted is not ours.
    let fake = Fake::default().says(
        "PUT /v1/txn",
        [
            no(0, "failed to lock key, lock is already held"),
            no(2, "failed session check for key"),
            (200, None, "{}".into()),
        ],
    );
    let asked = fake.asked.clone();
    let done = keys(fake).await.change(&session, &change("poolers/a")).await.unwrap();
    assert_eq!((done.unsure, asked.lock().unwrap().len()), (false, 3));

    let gone = keys(Fake::default().says("PUT /v1/txn", [no(0, "invalid session 'abc'")])).await;
    assert_eq!(gone.change(&session, &change("a")).await, Err(WriteError::LeaseLost));

    let denied = keys(Fake::default().says("PUT /v1/txn", [no(0, "Permission denied")])).await;
    let Err(WriteError::Failed { why, unsure: false }) = denied.change(&session, &change("a")).await else {
        panic!("it was denied")
    };
    assert!(why.contains("pgsquire/service/main/a: Permission denied"), "{why}");

    let names = keys(Fake::default().says("PUT /v1/txn", [(400, None, "Invalid key name".into())])).await;
    let Err(WriteError::Failed { why, .. }) =
        names.change(&session, &change("poolers/db1.example.com")).await
    else {
        panic!("it was refused")
    };
    assert!(why.contains("poolers/db1.example.com") && why.contains("[node] name"), "{why}");
}

#[tokio::test]
async fn a_change_of_many_keys_is_split() {
    let fake = Fake::default().says("PUT /v1/txn", [(200, None, "{}".into())]);
    let asked = fake.asked.clone();
    let keys = ConsulKeys::new(fake.start().await, "/p/");
    let put = (0..70).map(|n| (format!("k{n:02}"), b"1".to_vec())).collect();
    keys.change(&"abc".to_owned(), &Change { put, delete: Default::default() }).await.unwrap();
    assert_eq!(asked.lock().unwrap().len(), 3, "32 keys at a time");
}

#[tokio::test]
async fn a_longer_shortest_session_is_taken() {
    let fake = Fake::default().says(
        "PUT /v1/session/create",
        [
            (500, None, "Invalid Session TTL '10000000000', must be between [30s=24h0m0s]".into()),
            (200, None, r#"{"ID":"abc"}"#.into()),
        ],
    );
    let keys = ConsulKeys::new(fake.start().await, "/p/");
    let granted = keys.grant(Duration::from_secs(10)).await.unwrap();
    assert_eq!(granted, ("abc".to_owned(), Duration::from_secs(30)));
    assert_eq!(keys.longest(granted.1), Duration::from_secs(60));
}
