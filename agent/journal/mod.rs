//! The flight recorder: what happened on this host, for people. The newest entries are in memory; all go to
//! `events.jsonl` in the state folder through a writer of its own, so that a slow or full disk never holds up the agent.

pub mod callbacks;
mod file;
mod stamp;

pub use file::Writer;

use pgsquire_core::effect::Entry;
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::broadcast;

/// So many entries are kept in memory.
pub const KEPT: usize = 1_000;
/// So many entries may wait for the disk.
const WAITING: usize = 4_096;
/// A follower that is further behind than this misses entries.
const FOLLOWING: usize = 1_024;

/// One entry as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Counts up over restarts.
    pub seq: u64,
    /// Wall-clock time, RFC 3339.
    pub time: String,
    /// What kind of thing happened.
    pub kind: String,
    /// What it is about.
    pub subject: String,
    /// What happened.
    pub text: String,
}

/// A handle on the flight recorder; clones write into the same one.
#[derive(Debug, Clone)]
pub struct Journal(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    followers: broadcast::Sender<Record>,
}

#[derive(Debug)]
struct State {
    next: u64,
    ring: VecDeque<Record>,
    /// None once the journal is closed.
    lines: Option<SyncSender<String>>,
    health: Health,
}

/// How well writing to disk goes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Health {
    /// Entries that are not in the file.
    pub lost: u64,
    /// What went wrong last.
    pub trouble: Option<String>,
}

/// Opens the flight recorder in the state folder and loads its newest entries. It always opens; what went wrong is in
/// [`Journal::health`]. The writer's [`Writer::run`] blocks: give it a thread.
pub fn open(state_dir: &Path) -> (Journal, Writer) {
    let (ring, trouble) = file::tail(state_dir, KEPT);
    let (lines, written) = sync_channel(WAITING);
    let state = State {
        next: ring.back().map_or(1, |last| last.seq + 1),
        ring,
        lines: Some(lines),
        health: Health { lost: 0, trouble },
    };
    let shared = Shared { state: Mutex::new(state), followers: broadcast::Sender::new(FOLLOWING) };
    let journal = Journal(Arc::new(shared));
    let writer = Writer::new(state_dir, written, journal.clone());
    (journal, writer)
}

impl Journal {
    /// Records what the core wants recorded.
    pub fn append(&self, entry: Entry) {
        self.record(&entry.kind, &entry.subject, &entry.text);
    }

    /// Records something.
    pub fn record(&self, kind: &str, subject: &str, text: &str) {
        // One lock around all of it: memory, followers and file see the same order.
        let mut state = self.lock();
        let record = Record {
            seq: state.next,
            time: stamp::now(),
            kind: kind.to_owned(),
            subject: subject.to_owned(),
            text: text.to_owned(),
        };
        state.next += 1;
        state.hand_to_writer(&record);
        while state.ring.len() >= KEPT {
            state.ring.pop_front();
        }
        state.ring.push_back(record.clone());
        // Without followers there is nobody to tell.
        let _ = self.0.followers.send(record);
    }

    /// Entries in memory after the one with this number; 0: all.
    pub fn since(&self, seq: u64) -> Vec<Record> {
        self.lock().ring.iter().filter(|r| r.seq > seq).cloned().collect()
    }

    /// [`Journal::since`], and everything that comes after it.
    pub fn follow(&self, seq: u64) -> (Vec<Record>, broadcast::Receiver<Record>) {
        let state = self.lock();
        let so_far = state.ring.iter().filter(|r| r.seq > seq).cloned().collect();
        (so_far, self.0.followers.subscribe())
    }

    /// How well writing goes.
    pub fn health(&self) -> Health {
        self.lock().health.clone()
    }

    /// Lets the writer end once everything is on disk. What is recorded later stays in memory only.
    pub fn close(&self) {
        self.lock().lines = None;
    }

    fn disk_trouble(&self, lost: u64, trouble: Option<String>) {
        let mut state = self.lock();
        state.health.lost += lost;
        state.health.trouble = trouble;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics half-way through a change.
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn hand_to_writer(&mut self, record: &Record) {
        let Some(lines) = &self.lines else { return };
        let Ok(mut line) = serde_json::to_string(record) else { return };
        line.push('\n');
        match lines.try_send(line) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                self.health.lost += 1;
                self.health.trouble = Some("the disk is too slow for the flight recorder".to_owned());
            }
            Err(TrySendError::Disconnected(_)) => self.health.lost += 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(records: &[Record]) -> Vec<&str> {
        records.iter().map(|r| r.text.as_str()).collect()
    }

    /// Records the texts in a run of its own and waits until they are on disk.
    fn run(dir: &Path, what: &[&str]) -> Journal {
        let (journal, writer) = open(dir);
        for text in what {
            journal.record("kind", "subject", text);
        }
        journal.close();
        writer.run();
        journal
    }

    #[test]
    fn entries_survive_a_restart_and_numbers_go_on() {
        let dir = tempfile::tempdir().expect("folder");
        run(dir.path(), &["one", "two"]);
        let journal = run(dir.path(), &["three"]);
        let all = journal.since(0);
        assert_eq!(texts(&all), ["one", "two", "three"]);
        assert_eq!(all.iter().map(|r| r.seq).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(texts(&journal.since(2)), ["three"]);
        assert_eq!(journal.health(), Health::default());
    }

    #[test]
    fn a_torn_last_line_costs_only_itself() {
        let dir = tempfile::tempdir().expect("folder");
        run(dir.path(), &["one"]);
        let file = dir.path().join("events.jsonl");
        let mut text = std::fs::read_to_string(&file).expect("read");
        text.push_str("{\"seq\":2,\"ti");
        std::fs::write(&file, text).expect("written");
        run(dir.path(), &["two"]);
        assert_eq!(texts(&open(dir.path()).0.since(0)), ["one", "two"]);
    }

    #[test]
    fn the_file_is_rotated_and_one_old_one_is_kept() {
        let dir = tempfile::tempdir().expect("folder");
        let long = "x".repeat(100_000);
        let what: Vec<&str> = std::iter::repeat_n(long.as_str(), 100).collect();
        run(dir.path(), &what);
        let size = |name: &str| std::fs::metadata(dir.path().join(name)).map(|m| m.len()).unwrap_or(0);
        assert!(size("events.jsonl") <= file::LIMIT && size("events.jsonl.1") <= file::LIMIT);
        assert!(size("events.jsonl.1") > file::LIMIT / 2);
        assert_eq!(std::fs::read_dir(dir.path()).expect("list").count(), 2);
    }

    #[test]
    fn without_a_folder_it_counts_what_is_lost() {
        let journal = run(Path::new("/proc/nosuch"), &["one", "two"]);
        assert_eq!(texts(&journal.since(0)), ["one", "two"]);
        let health = journal.health();
        assert_eq!(health.lost, 2);
        assert!(health.trouble.expect("trouble").contains("/proc/nosuch/events.jsonl"));
    }

    #[tokio::test]
    async fn followers_miss_nothing_between_the_past_and_the_future() {
        let dir = tempfile::tempdir().expect("folder");
        let (journal, _writer) = open(dir.path());
        journal.record("k", "s", "one");
        let (past, mut future) = journal.follow(0);
        journal.record("k", "s", "two");
        assert_eq!(texts(&past), ["one"]);
        assert_eq!(future.recv().await.expect("entry").text, "two");
    }
}
