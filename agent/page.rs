//! What `pgsquire status` and `/status` show: the core's snapshot, and beside it what the shell knows about itself.

use crate::clock;
use crate::journal::{Health, Journal};
use pgsquire_core::status::Status;
use pgsquire_core::time::Time;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// A driver that has not published for this long is not alive.
pub const ALIVE: Duration = Duration::from_secs(5);

/// Read access to everything that is shown. Cheap to clone; no read waits for the driver.
#[derive(Debug, Clone)]
pub struct Pages {
    status: watch::Receiver<Arc<Status>>,
    notes: watch::Receiver<Vec<String>>,
    journal: Journal,
    started: Time,
}

/// The shell about itself.
#[derive(Debug, Clone, Serialize)]
pub struct About {
    /// Our version.
    pub version: &'static str,
    /// Process id.
    pub pid: u32,
    /// Milliseconds since the start.
    pub uptime_ms: u64,
    /// Milliseconds since the snapshot was made.
    pub snapshot_age_ms: u64,
    /// The driver works.
    pub alive: bool,
    /// What the operator should know: a refused configuration, unreadable state.
    pub notes: Vec<String>,
    /// The flight recorder's file.
    pub journal: Health,
}

#[derive(Serialize)]
struct Page<'a> {
    #[serde(flatten)]
    status: &'a Status,
    agent: About,
}

impl Pages {
    /// `notes` holds what the shell itself has to say, newest value only.
    pub fn new(
        status: watch::Receiver<Arc<Status>>,
        notes: watch::Receiver<Vec<String>>,
        journal: Journal,
    ) -> Self {
        Pages { status, notes, journal, started: clock::now() }
    }

    /// The newest snapshot.
    pub fn status(&self) -> Arc<Status> {
        self.status.borrow().clone()
    }

    /// The flight recorder.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Waits for a snapshot that this handle has not seen; false: there will be none.
    pub async fn changed(&mut self) -> bool {
        self.status.changed().await.is_ok()
    }

    /// Whether the driver has published lately. Depends on nothing outside this process.
    pub fn alive(&self, now: Time) -> bool {
        let at = self.status.borrow().at;
        at > Time::ZERO && now.since(at) <= ALIVE
    }

    /// The whole page.
    ///
    /// # Errors
    /// When a part of it has no JSON, which would be a mistake of ours.
    pub fn json(&self) -> serde_json::Result<serde_json::Value> {
        let status = self.status();
        let now = clock::now();
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let agent = About {
            version: env!("CARGO_PKG_VERSION"),
            pid: std::process::id(),
            uptime_ms: millis(now.since(self.started)),
            snapshot_age_ms: millis(now.since(status.at)),
            alive: self.alive(now),
            notes: self.notes.borrow().clone(),
            journal: self.journal.health(),
        };
        serde_json::to_value(Page { status: &status, agent })
    }
}
