//! The PostgreSQL on this host: is it in recovery, and where is it in the write-ahead log?

use crate::session::{Kept, Rows, Target, column};
use crate::worker::{Worker, work};
use pgsquire_core::effect::{Effect, Order};
use pgsquire_core::event::{Event, LocalServer, Outcome};
use pgsquire_core::wal::Timeline;
use std::path::PathBuf;
use tokio::sync::mpsc::{Receiver, Sender};
use tokio_util::sync::CancellationToken;

/// What the worker must know.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// Connection string; peer authentication on the unix socket needs no password.
    pub conninfo: String,
    /// Holds the password.
    pub password_file: Option<PathBuf>,
}

/// One query, so that its parts belong together. CASE asks the functions of one role only: those of the other are
/// errors. A promotion in between is harmless: the replay position is still known after it. A write-ahead log file's
/// name begins with the timeline.
const QUESTION: &str = "SELECT r.in_recovery, \
     CASE WHEN r.in_recovery THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END AS lsn, \
     CASE WHEN r.in_recovery THEN NULL ELSE substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END AS writing_hex, \
     CASE WHEN r.in_recovery THEN (SELECT received_tli FROM pg_stat_wal_receiver LIMIT 1) END AS received \
     FROM (SELECT pg_is_in_recovery() AS in_recovery OFFSET 0) r";

/// Answers probes until `stop`, or until nobody listens.
pub async fn run(
    config: WorkerConfig,
    orders: Receiver<Effect>,
    events: Sender<Event>,
    stop: CancellationToken,
) {
    let target = Target {
        what: "the local PostgreSQL".into(),
        conninfo: config.conninfo,
        default_dbname: "postgres".into(),
        password_file: config.password_file,
    };
    work(Prober { target, kept: Kept::default() }, orders, events, stop).await;
}

struct Prober {
    target: Target,
    kept: Kept,
}

impl Worker for Prober {
    async fn execute(&mut self, order: Order) -> Result<Outcome, String> {
        match order {
            Order::ProbeLocal => probe(&mut self.kept, &self.target).await.map(Outcome::Local),
            other => Err(format!("this is no order for the local PostgreSQL: {other:?}")),
        }
    }

    async fn watch(&mut self) {
        self.kept.watch().await;
    }
}

async fn probe(kept: &mut Kept, target: &Target) -> Result<LocalServer, String> {
    read_answer(&kept.ask(target, QUESTION).await.map_err(|e| e.to_string())?)
}

fn read_answer(rows: &Rows) -> Result<LocalServer, String> {
    let row = rows.iter().next().ok_or("the local PostgreSQL gave no row to the probe")?;
    let in_recovery = match column(row, "in_recovery") {
        Some("t") => true,
        Some("f") => false,
        other => return Err(format!("the local PostgreSQL gave {other:?} as pg_is_in_recovery()")),
    };
    let writing = column(row, "writing_hex").and_then(|hex| u32::from_str_radix(hex, 16).ok());
    let received = column(row, "received").and_then(|n| n.parse().ok());
    Ok(LocalServer {
        in_recovery,
        timeline: writing.or(received).filter(|n| *n > 0).map(Timeline),
        lsn: column(row, "lsn").and_then(|lsn| lsn.parse().ok()),
    })
}
