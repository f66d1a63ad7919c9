//! Many switchovers in a row, the agent beside the classic callback.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::demo;
use crate::event::{self, Event, Happening};
use crate::lab::Lab;
use crate::load::{Load, LoadSpec};
use crate::progress::Progress;
use crate::report::{human, median};

const RECOVERY: Duration = Duration::from_secs(120);

/// What to run.
#[derive(Clone, Debug)]
pub struct SwitchoverBench {
    /// The agent's binary.
    pub agent: PathBuf,
    /// How many switchovers.
    pub rounds: usize,
    /// How many clients on each pooler.
    pub clients: usize,
    /// Measure the classic callback beside it? It makes a round about 15 s longer.
    pub classic: bool,
}

/// All rounds.
#[derive(Clone, Debug, Serialize)]
pub struct SwitchoverFigures {
    /// Each switchover, for each load.
    pub rounds: Vec<Round>,
    /// For each load.
    pub summary: Vec<Summary>,
}

/// One switchover as seen by one load; times in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Round {
    /// Counted from 1.
    pub round: usize,
    /// The load's name.
    pub load: String,
    /// From writable to the first commit.
    pub writable_to_first_commit_ms: f64,
    /// From writable until all clients had committed.
    pub writable_to_all_clients_ms: f64,
    /// The longest time without a commit.
    pub outage_ms: f64,
    /// Errors seen by clients.
    pub errors: usize,
}

/// All rounds of one load; times in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// The load's name.
    pub load: String,
    /// Median of writable to first commit.
    pub median_ms: f64,
    /// Maximum of writable to first commit.
    pub maximum_ms: f64,
    /// Median of the longest time without a commit.
    pub outage_median_ms: f64,
    /// All errors of all rounds.
    pub errors: usize,
}

/// Runs it in a lab of its own, which is gone afterwards.
pub async fn switchovers(bench: &SwitchoverBench, progress: &Progress) -> Result<SwitchoverFigures> {
    let mut spec = demo::spec(bench.agent.clone());
    spec.poolers.retain(|p| p.name == "write" || (bench.classic && p.name == "classic"));
    let mut lab = Lab::up(spec, progress).await?;
    let events = rounds(&mut lab, bench, progress).await;
    lab.down().await?;
    Ok(figures(&events?))
}

async fn rounds(lab: &mut Lab, bench: &SwitchoverBench, progress: &Progress) -> Result<Vec<Event>> {
    let mut loads =
        vec![("pgsquire", Load::start(LoadSpec::writes(lab.pooler_address("write")?, bench.clients)).await?)];
    if bench.classic {
        let address = lab.pooler_address("classic")?;
        loads.push(("classic", Load::start(LoadSpec::writes(address, bench.clients)).await?));
    }
    let named: Vec<(&str, &Load)> = loads.iter().map(|(name, load)| (*name, load)).collect();
    let mut events = Vec::new();
    for round in 1..=bench.rounds {
        let event = event::measure(lab, Happening::Switchover, &named, RECOVERY).await?;
        let seen = event.seen.iter();
        let line = seen.map(|s| {
            format!("{} {} ({} errors)", s.load, human(s.writable_to_first_commit), s.report.errors)
        });
        progress.step(&format!(
            "round {round}: writable -> first commit: {}",
            line.collect::<Vec<_>>().join(", ")
        ));
        events.push(event);
        lab.wait_healthy(RECOVERY).await?;
    }
    Ok(events)
}

fn figures(events: &[Event]) -> SwitchoverFigures {
    let rounds: Vec<Round> = (1..).zip(events).flat_map(|(n, event)| rounds_of(n, event)).collect();
    let loads = events.first().map(|e| e.seen.as_slice()).unwrap_or_default();
    let summary = loads.iter().map(|s| summary(&s.load, events)).collect();
    SwitchoverFigures { rounds, summary }
}

fn rounds_of(round: usize, event: &Event) -> Vec<Round> {
    let line = |s: &event::Seen| Round {
        round,
        load: s.load.clone(),
        writable_to_first_commit_ms: milliseconds(s.writable_to_first_commit),
        writable_to_all_clients_ms: milliseconds(s.writable_to_all_clients),
        outage_ms: milliseconds(s.report.outage),
        errors: s.report.errors,
    };
    event.seen.iter().map(line).collect()
}

fn summary(load: &str, events: &[Event]) -> Summary {
    let seen: Vec<_> = events.iter().flat_map(|e| &e.seen).filter(|s| s.load == load).collect();
    let first: Vec<Duration> = seen.iter().map(|s| s.writable_to_first_commit).collect();
    let outages: Vec<Duration> = seen.iter().map(|s| s.report.outage).collect();
    Summary {
        load: load.into(),
        median_ms: milliseconds(median(&first).unwrap_or_default()),
        maximum_ms: milliseconds(first.into_iter().max().unwrap_or_default()),
        outage_median_ms: milliseconds(median(&outages).unwrap_or_default()),
        errors: seen.iter().map(|s| s.report.errors).sum(),
    }
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

impl SwitchoverFigures {
    /// For people.
    pub fn text(&self) -> String {
        let mut text =
            String::from("writable -> first commit      median   maximum   outage (median)   errors\n");
        for s in &self.summary {
            text += &format!(
                "{:<26}{:>7.0} ms{:>7.0} ms{:>15.0} ms{:>9}\n",
                s.load, s.median_ms, s.maximum_ms, s.outage_median_ms, s.errors
            );
        }
        text
    }
}
