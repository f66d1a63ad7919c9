//! The state folder: the terms of the clusters, and what [`crate::pgbouncer::notes`] keeps there.
//!
//! A term is written twice: first so that it outlives this process, which takes microseconds and is all that a pool waits
//! for, then so that it outlives a power cut. The first writing has a file of its own, because a power cut may empty it.

use crate::files::{self, Disk};
use crate::pgbouncer::notes::{self, read_json_or_set_aside, write_json, write_json_until_boot};
use crate::worker::{Worker, work};
use pgsquire_core::effect::{Effect, Order};
use pgsquire_core::event::{Event, Outcome, Restored};
use pgsquire_core::wal::Term;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tokio::sync::mpsc::{Receiver, Sender};
use tokio_util::sync::CancellationToken;

/// What the worker must know.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// Our state folder.
    pub state_dir: PathBuf,
    /// The terms as [`load_restored`] found them.
    pub terms: BTreeMap<String, Term>,
}

const TERMS: &str = "terms.json";
/// Newer than [`TERMS`] where it is there and can be read.
const NEXT_TERMS: &str = "terms.next.json";

/// Reads what earlier runs left. What cannot be read is left out, set aside where it was not what it should be, and
/// said in the second value.
pub fn load_restored(state_dir: &Path) -> (Restored, Vec<String>) {
    let mut restored = Restored::default();
    let mut problems = Vec::new();
    let next = files::read(&state_dir.join(NEXT_TERMS)).ok();
    if let Some(next) = next.and_then(|content| serde_json::from_slice(&content).ok()) {
        restored.terms = next;
    } else {
        match read_json_or_set_aside(&state_dir.join(TERMS)) {
            Ok(terms) => restored.terms = terms.unwrap_or_default(),
            Err(why) => problems.push(format!("the terms of earlier runs are lost: {why}")),
        }
    }
    notes::load(state_dir, &mut restored, &mut problems);
    (restored, problems)
}

/// Keeps terms on disk until `stop`, or until nobody listens.
pub async fn run(
    config: WorkerConfig,
    orders: Receiver<Effect>,
    events: Sender<Event>,
    stop: CancellationToken,
) {
    let WorkerConfig { state_dir, terms } = config;
    work(Keeper { state_dir, terms, disk: Disk::default() }, orders, events, stop).await;
}

struct Keeper {
    state_dir: PathBuf,
    terms: BTreeMap<String, Term>,
    disk: Disk,
}

impl Worker for Keeper {
    async fn execute(&mut self, order: Order) -> Result<Outcome, String> {
        let Order::KeepTerm { cluster, term, durable } = order else {
            return Err(format!("this is no order for the state folder: {order:?}"));
        };
        let mut wanted = self.terms.clone();
        match term {
            Some(term) => wanted.insert(cluster, term),
            None => wanted.remove(&cluster),
        };
        let (path, next) = (self.state_dir.join(TERMS), self.state_dir.join(NEXT_TERMS));
        let written = wanted.clone();
        let write = move || match durable {
            false => write_json_until_boot(&next, &written),
            true => {
                write_json(&path, &written)?;
                files::remove(&next).map_err(|e| e.to_string())
            }
        };
        self.disk.run(write).await?;
        self.terms = wanted;
        Ok(Outcome::Done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgsquire_core::effect::EffectId;
    use pgsquire_core::rule::{Reason, Rule};
    use pgsquire_core::wal::Timeline;
    use std::fs;
    use tempfile::tempdir;
    use tokio::sync::mpsc;

    fn term(revision: u64) -> Term {
        Term { system_id: Some("7".into()), timeline: Some(Timeline(3)), store: "ab".into(), revision }
    }

    async fn order(config: &WorkerConfig, order: Order) -> Outcome {
        let (orders, received) = mpsc::channel(1);
        let (events, mut told) = mpsc::channel(1);
        let effect = Effect { id: EffectId(9), order, reason: Reason::new(Rule::TermKept, "test") };
        orders.send(effect).await.unwrap();
        let worker = tokio::spawn(run(config.clone(), received, events, CancellationToken::new()));
        let event = told.recv().await.unwrap();
        drop(orders);
        worker.await.unwrap();
        match event {
            Event::Done { id: EffectId(9), outcome, .. } => outcome,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn terms_survive_and_are_forgotten() {
        let dir = tempdir().unwrap();
        let state_dir = dir.path().join("made/when/needed");
        let mut config = WorkerConfig { state_dir: state_dir.clone(), terms: BTreeMap::new() };
        for (cluster, revision) in [("main", 5), ("other", 6)] {
            let keep = Order::KeepTerm { cluster: cluster.into(), term: Some(term(revision)), durable: true };
            assert_eq!(order(&config, keep).await, Outcome::Done);
            config.terms = load_restored(&state_dir).0.terms;
        }
        assert_eq!(config.terms, BTreeMap::from([("main".into(), term(5)), ("other".into(), term(6))]));
        let forget = Order::KeepTerm { cluster: "main".into(), term: None, durable: true };
        assert_eq!(order(&config, forget).await, Outcome::Done);
        let (restored, problems) = load_restored(&state_dir);
        assert_eq!(restored.terms, BTreeMap::from([("other".into(), term(6))]));
        assert!(problems.is_empty());
    }

    #[tokio::test]
    async fn what_is_not_durable_yet_is_newer_unless_a_power_cut_emptied_it() {
        let dir = tempdir().unwrap();
        let mut config = WorkerConfig { state_dir: dir.path().into(), terms: BTreeMap::new() };
        let revision = || load_restored(dir.path()).0.terms["main"].revision;
        for (revision_now, durable) in [(5, true), (6, false)] {
            let term = Some(term(revision_now));
            let keep = Order::KeepTerm { cluster: "main".into(), term, durable };
            assert_eq!(order(&config, keep).await, Outcome::Done);
            config.terms = load_restored(dir.path()).0.terms;
        }
        assert_eq!(revision(), 6);
        fs::write(dir.path().join(NEXT_TERMS), "").unwrap();
        assert_eq!(revision(), 5);
        let keep = Order::KeepTerm { cluster: "main".into(), term: Some(term(7)), durable: true };
        assert_eq!(order(&config, keep).await, Outcome::Done);
        assert_eq!(revision(), 7);
        assert!(!dir.path().join(NEXT_TERMS).exists(), "what is durable is newest");
    }

    #[tokio::test]
    async fn what_cannot_be_kept_is_said_and_not_remembered() {
        let dir = tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let config = WorkerConfig { state_dir: dir.path().join("file/below"), terms: BTreeMap::new() };
        let keep = Order::KeepTerm { cluster: "main".into(), term: Some(term(1)), durable: false };
        let Outcome::Failed { why } = order(&config, keep).await else { panic!("it cannot be kept there") };
        assert!(why.contains("file/below"), "{why}");
        let Outcome::Failed { why } = order(&config, Order::ProbeLocal).await else { panic!("not for us") };
        assert!(why.contains("no order for the state folder"), "{why}");
    }

    #[test]
    fn corrupt_terms_are_set_aside_and_said() {
        let dir = tempdir().unwrap();
        fs::write(dir.path().join(TERMS), "{\"main\": {\"half").unwrap();
        let (restored, problems) = load_restored(dir.path());
        assert_eq!(restored, Restored::default());
        assert!(problems[0].contains("terms.json.corrupt"), "{problems:?}");
        assert!(dir.path().join("terms.json.corrupt").exists());
        let (_, problems) = load_restored(dir.path());
        assert!(problems.is_empty(), "said once: {problems:?}");
    }

    #[test]
    fn a_first_start_has_nothing_to_restore() {
        let dir = tempdir().unwrap();
        let (restored, problems) = load_restored(&dir.path().join("none"));
        assert_eq!((restored, problems), (Restored::default(), Vec::new()));
    }
}
