//! SIGKILL of the primary, with PostgreSQL and Patroni at once: what clients see that wait a little before they try again,
//! and those that do not, beside the classic callback.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use super::table::{Figure, Row};
use super::{OWN, milliseconds, own_spec, readers, writers};
use crate::event::{self, Happening};
use crate::lab::Lab;
use crate::load::{Load, LoadSpec};
use crate::progress::Progress;
use crate::report::human;
use crate::spec::{Pooler, Spec};

const ROUNDS: usize = 10;
const CLIENTS: usize = 20;
const RECOVERY: Duration = Duration::from_secs(180);
/// The errors that one client may see.
const ERRORS: f64 = 1.0;
/// From writable to the first commit, in ms, in any round.
const MAXIMUM: f64 = 60.0;
/// What a client waits before it tries again, on the first pooler and on the classic one. On the second own one it waits
/// for nothing.
const WAIT: Duration = Duration::from_millis(50);
const CLASSIC: &str = "classic";

/// Commits wait for a standby, as where nothing may be lost.
pub(super) fn spec(agent: PathBuf) -> Spec {
    let dynamic = vec![("synchronous_mode".to_string(), true.into())];
    Spec { dynamic, ..own_spec(agent) }.pooler(Pooler::classic())
}

/// Kills so many primaries, each a lease of 20 s long.
pub(super) async fn rows(lab: &mut Lab, rounds: usize, progress: &Progress) -> Result<Vec<Row>> {
    let rounds = rounds.min(ROUNDS);
    lab.wait_synchronous(RECOVERY).await?;
    let _readers = readers(lab).await?;
    let load = async |pooler: &str, reconnect_pause| {
        Load::start(LoadSpec { reconnect_pause, ..writers(lab, pooler, CLIENTS)? }).await
    };
    let loads = [
        (OWN[0], load(OWN[0], WAIT).await?),
        (OWN[1], load(OWN[1], Duration::ZERO).await?),
        (CLASSIC, load(CLASSIC, WAIT).await?),
    ];
    let named: Vec<(&str, &Load)> = loads.iter().map(|(name, load)| (*name, load)).collect();
    let mut totals: [Total; 3] = Default::default();
    for round in 1..=rounds {
        let event = event::measure(lab, Happening::Kill, &named, RECOVERY).await?;
        let mut line = Vec::new();
        for (total, seen) in totals.iter_mut().zip(&event.seen) {
            total.errors += seen.report.errors;
            total.most = total.most.max(seen.report.most_errors_of_a_client);
            total.first.push(milliseconds(seen.writable_to_first_commit));
            let first = human(seen.writable_to_first_commit);
            line.push(format!("{} {first} ({} errors)", seen.load, seen.report.errors));
        }
        progress.step(&format!("kill {round}: writable -> first commit: {}", line.join(", ")));
        lab.start_host(&event.from)?;
        lab.wait_healthy(RECOVERY).await.context("after the killed one came back")?;
        lab.wait_synchronous(RECOVERY).await?;
    }
    let [waiting, hasty, classic] = &totals;
    let what = |figure| format!("SIGKILL of the primary, {CLIENTS} clients, {rounds} rounds: {figure}");
    let maximum = |total: &Total| Figure::Value(Figure::of(&total.first).maximum());
    let errors = |total: &Total| Figure::Value(total.errors as f64);
    let most = |total: &Total| Figure::Value(total.most as f64);
    Ok(vec![
        Row::new(what("most errors of one client in one round"), "", most(waiting), Some(ERRORS))
            .beside(CLASSIC, most(classic)),
        Row::new(what("errors, all rounds"), "", errors(waiting), None)
            .beside("clients that try again at once", errors(hasty))
            .beside(CLASSIC, errors(classic)),
        Row::new(what("writable -> first commit, maximum"), "ms", maximum(waiting), Some(MAXIMUM))
            .beside("clients that try again at once", maximum(hasty))
            .beside(CLASSIC, maximum(classic)),
    ])
}

/// What the clients of one pooler saw in all rounds.
#[derive(Default)]
struct Total {
    errors: usize,
    most: usize,
    first: Vec<f64>,
}
