//! One PostgreSQL server.

use pgsquire_core::time::Time;
use std::time::Duration;

/// Whether it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    /// No process.
    Down,
    /// Not accepting connections yet.
    Starting,
    /// Accepting connections.
    Running,
    /// Shutting down: links that are there live on for a moment, and may commit.
    Stopping,
}

/// A server.
#[derive(Debug, Clone)]
pub struct Postgres {
    /// Whether it runs. Change it by [`turn`](Self::turn).
    pub run: Run,
    /// `pg_is_in_recovery()`.
    pub in_recovery: bool,
    /// Its timeline.
    pub timeline: u32,
    /// Bytes it is behind, as a replica.
    pub lag: u64,
    /// Which start of the server this is.
    pub started: u64,
    /// Since when it is in this state.
    pub since: Time,
    /// Last time at which it accepted writes, before the present state, and its timeline then.
    wrote: Option<(Time, u32)>,
    /// Last time at which it served reads as a replica, before the present state.
    read: Option<Time>,
}

impl Postgres {
    /// A server that runs.
    pub fn new(in_recovery: bool, timeline: u32) -> Self {
        Postgres {
            run: Run::Running,
            in_recovery,
            timeline,
            lag: 0,
            started: 1,
            since: Time::ZERO,
            wrote: None,
            read: None,
        }
    }

    /// Whether a commit may succeed now.
    pub fn is_writable(&self) -> bool {
        matches!(self.run, Run::Running | Run::Stopping) && !self.in_recovery
    }

    /// Whether it takes new connections.
    pub fn accepts(&self) -> bool {
        self.run == Run::Running
    }

    /// Whether it serves reads as a replica.
    pub fn is_replica(&self) -> bool {
        self.run == Run::Running && self.in_recovery
    }

    /// Goes into another state.
    pub fn turn(&mut self, now: Time, run: Run, in_recovery: bool, timeline: u32) {
        if self.is_writable() {
            self.wrote = Some((now, self.timeline));
        }
        if self.is_replica() {
            self.read = Some(now);
        }
        self.started += u64::from(run == Run::Starting);
        (self.run, self.in_recovery, self.timeline, self.since) = (run, in_recovery, timeline, now);
    }

    /// The timeline on which it was writable at some instant of the last `window`.
    pub fn wrote_within(&self, now: Time, window: Duration) -> Option<u32> {
        if self.is_writable() {
            return Some(self.timeline);
        }
        self.wrote.filter(|(at, _)| now.since(*at) <= window).map(|(_, timeline)| timeline)
    }

    /// Whether it was a running replica at some instant of the last `window`.
    pub fn replica_within(&self, now: Time, window: Duration) -> bool {
        self.is_replica() || self.read.is_some_and(|at| now.since(at) <= window)
    }
}
