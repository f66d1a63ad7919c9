//! Without a store: ten agents ask the REST API of three members. The members are played, for the figure is about how often
//! we ask: they answer at once, and a change of the leader shows in all of them in one moment.

use crate::agent::{Agent, MAX_FACT_AGE, Source};
use crate::patronis::{CLUSTER, MEMBERS, name};
use crate::timing::{Limit, milliseconds, rows as rows_of};
use anyhow::Result;
use pgsquire::dcs::rest::{PACE, WorkerConfig};
use pgsquire::patroni;
use pgsquire_lab::Progress;
use pgsquire_lab::bench::Row;
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

/// In ms.
const LIMIT: f64 = 250.0;
/// So many hosts ask.
const POLLERS: u32 = 10;
/// Changes between two words about them.
const STEP: u32 = 25;

/// So many changes of the leader; each agent's decision counts.
pub async fn rows(changes: u32, progress: &Progress) -> Result<Vec<Row>> {
    progress.step(&format!("no store: {POLLERS} agents ask {MEMBERS} members"));
    let members = Members::start().await?;
    let mut agents: Vec<Agent> =
        (0..POLLERS).map(|n| Agent::start(&format!("pool{n}"), Source::Members(members.config()))).collect();
    for agent in &mut agents {
        agent.knows(&name(0)).await?;
    }
    let mut times = Vec::new();
    for turn in 1..=changes {
        // Each change meets the agents elsewhere between two questions.
        sleep(PACE * (turn % 10) / 10).await;
        let began = Instant::now();
        members.turn.store(turn as usize, Ordering::SeqCst);
        for agent in &mut agents {
            let decided = agent.knows(&name(turn as usize)).await?;
            times.push(milliseconds(decided.saturating_duration_since(began)));
        }
        if turn % STEP == 0 {
            progress.step(&format!("no store: {turn} of {changes} changes of the leader"));
        }
    }
    for agent in agents {
        agent.stop().await;
    }
    let what = format!("no store, {POLLERS} poolers: new leader -> each agent's decision, {changes} changes");
    Ok(rows_of(&what, &times, Limit::Percentile99(LIMIT)).into())
}

/// Members that answer as Patroni does: HTTP/1.0, one answer per connection. Dropped, they are gone.
struct Members {
    bases: Arc<Vec<String>>,
    /// How often the leader has changed: it says who leads, and on which timeline.
    turn: Arc<AtomicUsize>,
    _serving: JoinSet<()>,
}

impl Members {
    async fn start() -> Result<Members> {
        let (mut listeners, mut bases) = (Vec::new(), Vec::new());
        for _ in 0..MEMBERS {
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            bases.push(format!("http://{}", listener.local_addr()?));
            listeners.push(listener);
        }
        let (bases, turn) = (Arc::new(bases), Arc::new(AtomicUsize::new(0)));
        let mut serving = JoinSet::new();
        for (n, listener) in listeners.into_iter().enumerate() {
            let (bases, turn) = (bases.clone(), turn.clone());
            serving.spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(answer(stream, n, bases.clone(), turn.clone()));
                }
            });
        }
        Ok(Members { bases, turn, _serving: serving })
    }

    fn config(&self) -> WorkerConfig {
        WorkerConfig {
            cluster: CLUSTER.into(),
            scope: CLUSTER.into(),
            hosts: self.bases.to_vec(),
            pollers: POLLERS,
            max_fact_age: MAX_FACT_AGE,
            tls: patroni::WorkerConfig::default(),
        }
    }
}

/// Answers one question to a member. One that breaks off is asked again.
async fn answer(mut stream: TcpStream, n: usize, bases: Arc<Vec<String>>, turn: Arc<AtomicUsize>) {
    let mut question = vec![0; 2048];
    let Ok(length) = stream.read(&mut question).await else { return };
    let text = String::from_utf8_lossy(&question[..length]);
    let turn = turn.load(Ordering::SeqCst);
    let (code, body) = match text.split(' ').nth(1) {
        Some("/primary") => (if turn % MEMBERS == n { 200 } else { 503 }, status(n, turn)),
        Some("/cluster") => (200, cluster(&bases, turn)),
        Some("/config") => (200, json!({ "ttl": 30, "loop_wait": 10 })),
        _ => (404, Value::Null),
    };
    let answer = format!("HTTP/1.0 {code} x\r\nServer: BaseHTTP/0.6\r\n\r\n{body}");
    let _ = stream.write_all(answer.as_bytes()).await;
}

fn status(n: usize, turn: usize) -> Value {
    let (role, xlog) = match turn % MEMBERS == n {
        true => ("primary", json!({ "location": 7 })),
        false => ("replica", json!({ "replayed_location": 7 })),
    };
    json!({ "state": "running", "role": role, "timeline": turn + 1, "xlog": xlog, "server_version": 150_000,
            "database_system_identifier": "777",
            "patroni": { "version": "4.1.5", "scope": CLUSTER, "name": name(n) } })
}

fn cluster(bases: &[String], turn: usize) -> Value {
    let line = |(n, base): (usize, &String)| {
        let role = if turn % MEMBERS == n { "leader" } else { "replica" };
        json!({ "name": name(n), "role": role, "state": "running", "timeline": turn + 1,
                "host": format!("10.0.0.{}", n + 1), "port": 5432, "api_url": format!("{base}/patroni") })
    };
    json!({ "scope": CLUSTER, "members": bases.iter().enumerate().map(line).collect::<Vec<_>>() })
}
