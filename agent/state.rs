//! The state folder: the terms of the clusters, and what [`crate::pgbouncer::notes`] keeps there.

use crate::clock;
use crate::files::Disk;
use crate::pgbouncer::notes::{self, read_json_or_set_aside, write_json};
use crate::report::{Report, outcome};
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

/// Reads what earlier runs left. What cannot be read is left out, set aside where it was not what it should be, and
/// said in the second value.
pub fn load_restored(state_dir: &Path) -> (Restored, Vec<String>) {
    let mut restored = Restored::default();
    let mut problems = Vec::new();
    match read_json_or_set_aside(&state_dir.join(TERMS)) {
        Ok(terms) => restored.terms = terms.unwrap_or_default(),
        Err(why) => problems.push(format!("the terms of earlier runs are lost: {why}")),
    }
    notes::load(state_dir, &mut restored, &mut problems);
    (restored, problems)
}

/// Keeps terms on disk until `stop`, or until nobody listens.
pub async fn run(
    config: WorkerConfig,
    mut orders: Receiver<Effect>,
    events: Sender<Event>,
    stop: CancellationToken,
) {
    let report = Report::new(events, stop.clone());
    let mut terms = config.terms;
    let mut disk = Disk::default();
    loop {
        let effect = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            effect = orders.recv() => effect,
        };
        let Some(Effect { id, order, .. }) = effect else { return };
        let started = clock::now();
        let kept = keep(&config.state_dir, &mut terms, &mut disk, order).await;
        if report.done(id, started, outcome(kept.map(|()| Outcome::Done))).await.is_err() {
            return;
        }
    }
}

async fn keep(
    state_dir: &Path,
    terms: &mut BTreeMap<String, Term>,
    disk: &mut Disk,
    order: Order,
) -> Result<(), String> {
    let Order::KeepTerm { cluster, term } = order else {
        return Err(format!("this is no order for the state folder: {order:?}"));
    };
    let mut wanted = terms.clone();
    match term {
        Some(term) => wanted.insert(cluster, term),
        None => wanted.remove(&cluster),
    };
    let path = state_dir.join(TERMS);
    let written = wanted.clone();
    disk.run(move || write_json(&path, &written)).await?;
    *terms = wanted;
    Ok(())
}
