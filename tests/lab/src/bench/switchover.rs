//! Many planned switchovers in a row: the agents with their barrier, beside the classic callback, and beside the classic
//! callback on a pooler that tries its logins again after a second.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;

use super::table::{Figure, Row};
use super::{milliseconds, own_loads, own_spec, readers, writers};
use crate::event::{self, Event, Happening, Seen};
use crate::lab::Lab;
use crate::load::{Load, LoadSpec};
use crate::progress::Progress;
use crate::report::human;
use crate::spec::{Pooler, Spec};

const RECOVERY: Duration = Duration::from_secs(120);
/// From writable to the first commit, in ms: the median ought not to be above this …
const MEDIAN: f64 = 50.0;
/// … nor any round above this.
const MAXIMUM: f64 = 25.0;
/// By how much the time without a commit may be longer than what Patroni takes, in %.
const OUTAGE: f64 = 5.0;

/// The pooler of the classic callback, and the same with `server_login_retry = 1`.
const CLASSIC: &str = "classic";
const RETRY: &str = "retry";
/// A round with these is 15 s longer, and each is like the other.
const BASELINE_ROUNDS: usize = 5;
/// Their clients wait longer after an error: else their logins would take the processor from everything else.
const BASELINE_RECONNECT: Duration = Duration::from_millis(500);

/// What to run.
#[derive(Clone, Debug)]
pub struct SwitchoverBench {
    /// The agent's binary.
    pub agent: PathBuf,
    /// How many switchovers.
    pub rounds: usize,
    /// How many clients: half of them on each of the agents' two poolers, all of them on each of the classic ones.
    pub clients: usize,
    /// Measure the classic callback beside it? It makes a round about 15 s longer.
    pub classic: bool,
}

/// All rounds.
#[derive(Clone, Debug, Serialize)]
pub struct SwitchoverFigures {
    /// Each switchover.
    pub rounds: Vec<Round>,
    /// For each way to move a pooler.
    pub summary: Vec<Summary>,
}

/// One switchover as seen by the clients of one way; times in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Round {
    /// Counted from 1.
    pub round: usize,
    /// How the poolers were moved.
    pub way: String,
    /// From writable to the first commit, on the pooler that was later.
    pub writable_to_first_commit_ms: f64,
    /// From writable until all clients had committed.
    pub writable_to_all_clients_ms: f64,
    /// The longest time without a commit, on the pooler where it was longer.
    pub outage_ms: f64,
    /// From the last commit of a client of the old primary itself to the new one being writable.
    pub own_gap_ms: f64,
    /// Errors seen by clients.
    pub errors: usize,
}

/// All rounds of one way; times in milliseconds.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// How the poolers were moved.
    pub way: String,
    /// How many rounds there were with it.
    pub rounds: usize,
    /// Writable to first commit.
    pub first_commit: Figure,
    /// Longest time without a commit.
    pub outage: Figure,
    /// What Patroni took.
    pub own_gap: Figure,
    /// By how much the first was longer than the second, in %.
    pub outage_over_own_gap: Figure,
    /// All errors of all rounds.
    pub errors: usize,
}

/// Runs it in a lab of its own, which is gone afterwards.
pub async fn switchovers(bench: &SwitchoverBench, progress: &Progress) -> Result<SwitchoverFigures> {
    let mut lab = Lab::up(spec(bench), progress).await?;
    let figures = rounds(&mut lab, bench, progress).await;
    lab.down().await?;
    figures
}

/// A cluster with two write poolers of the agents' and, if wanted, two moved the classic way.
pub(super) fn spec(bench: &SwitchoverBench) -> Spec {
    let spec = own_spec(bench.agent.clone());
    match bench.classic {
        true => spec.pooler(Pooler::classic()).pooler(Pooler::classic().named(RETRY).login_retry(1)),
        false => spec,
    }
}

/// Runs it in a lab that is up, for the table. The loads have ended when it returns.
pub(super) async fn rows(lab: &mut Lab, bench: &SwitchoverBench, progress: &Progress) -> Result<Vec<Row>> {
    let summary = rounds(lab, bench, progress).await?.summary;
    let own = summary.first().context("no rounds")?;
    let row = |what: &str, unit, target, of: fn(&Summary) -> Figure| {
        let row = Row::new(format!("switchover: {what}"), unit, of(own), target);
        summary.iter().skip(1).fold(row, |row, s| row.beside(&s.way, of(s)))
    };
    let many = format!("median of {} rounds, {} clients", bench.rounds, bench.clients);
    let first = "new primary writable -> first commit";
    let errors = if own.rounds == bench.rounds { "all rounds" } else { "rounds that were measured" };
    Ok(vec![
        row(&format!("{first}, {many}"), "ms", Some(MEDIAN), |s| Figure::Value(s.first_commit.typical())),
        row(&format!("{first}, maximum"), "ms", Some(MAXIMUM), |s| Figure::Value(s.first_commit.maximum())),
        row("longest time without a commit", "ms", None, |s| s.outage.clone()),
        row("last commit of a direct client -> writable: Patroni's own", "ms", None, |s| s.own_gap.clone()),
        row("the former over the latter", "%", Some(OUTAGE), |s| s.outage_over_own_gap.clone()),
        row(&format!("errors that clients saw, {errors}"), "", Some(0.0), |s| Figure::Value(s.errors as f64)),
    ])
}

/// The clients of one way.
struct Way {
    name: String,
    loads: Vec<(String, Load)>,
    rounds: Vec<Round>,
}

async fn rounds(lab: &mut Lab, bench: &SwitchoverBench, progress: &Progress) -> Result<SwitchoverFigures> {
    let _readers = readers(lab).await?;
    let mut ways = vec![Way::own(lab, bench.clients).await?];
    if bench.classic {
        ways.push(Way::classic(lab, CLASSIC, CLASSIC.into(), bench.clients).await?);
        let name = format!("{CLASSIC}, server_login_retry = 1");
        ways.push(Way::classic(lab, RETRY, name, bench.clients).await?);
    }
    let mut done = Vec::new();
    for round in 1..=bench.rounds {
        let named: Vec<(&str, &Load)> =
            ways.iter().flat_map(|w| &w.loads).map(|(name, load)| (name.as_str(), load)).collect();
        let event = event::measure(lab, Happening::Switchover, &named, RECOVERY).await?;
        for way in &mut ways {
            way.count(round, &event);
        }
        let line = ways.iter().filter_map(|w| w.rounds.last()).map(Round::text).collect::<Vec<_>>();
        progress.step(&format!("switchover {round}: writable -> first commit: {}", line.join("; ")));
        lab.wait_healthy(RECOVERY).await?;
        while round == BASELINE_ROUNDS && ways.len() > 1 {
            done.extend(ways.pop().map(Way::end));
        }
    }
    // The own way first, then the others in the order in which they were made.
    done.extend(ways.into_iter().rev().map(Way::end));
    done.reverse();
    let summary = done.iter().map(|(name, rounds)| summary(name, rounds)).collect();
    Ok(SwitchoverFigures { rounds: done.into_iter().flat_map(|(_, rounds)| rounds).collect(), summary })
}

impl Way {
    async fn own(lab: &Lab, clients: usize) -> Result<Self> {
        let loads = own_loads(lab, clients).await?;
        Ok(Self { name: "pgsquire".into(), loads, rounds: Vec::new() })
    }

    async fn classic(lab: &Lab, pooler: &str, name: String, clients: usize) -> Result<Self> {
        let spec = writers(lab, pooler, clients)?;
        // Twice the clients of an own pooler: half as often each.
        let spec = LoadSpec { reconnect_pause: BASELINE_RECONNECT, pause: spec.pause * 2, ..spec };
        Ok(Self { name, loads: vec![(pooler.into(), Load::start(spec).await?)], rounds: Vec::new() })
    }

    fn count(&mut self, round: usize, event: &Event) {
        let mine = |s: &&Seen| self.loads.iter().any(|(name, _)| *name == s.load);
        let seen: Vec<&Seen> = event.seen.iter().filter(mine).collect();
        let latest = |of: fn(&Seen) -> Duration| seen.iter().map(|s| of(s)).max().unwrap_or_default();
        self.rounds.push(Round {
            round,
            way: self.name.clone(),
            writable_to_first_commit_ms: milliseconds(latest(|s| s.writable_to_first_commit)),
            writable_to_all_clients_ms: milliseconds(latest(|s| s.writable_to_all_clients)),
            outage_ms: milliseconds(latest(|s| s.report.outage)),
            own_gap_ms: milliseconds(event.own_gap().unwrap_or_default()),
            errors: seen.iter().map(|s| s.report.errors).sum(),
        });
    }

    /// Its clients go; what they saw stays.
    fn end(self) -> (String, Vec<Round>) {
        (self.name, self.rounds)
    }
}

impl Round {
    fn text(&self) -> String {
        let first = human(Duration::from_secs_f64(self.writable_to_first_commit_ms / 1000.0));
        let over = self.outage_ms - self.own_gap_ms;
        format!("{} {first} ({} errors, outage {over:+.0} ms over Patroni's own)", self.way, self.errors)
    }
}

fn summary(way: &str, rounds: &[Round]) -> Summary {
    let spread = |of: fn(&Round) -> f64| Figure::of(&rounds.iter().map(of).collect::<Vec<_>>());
    Summary {
        way: match rounds.len() {
            _ if way == "pgsquire" => way.into(),
            count => format!("{way} ({count} rounds)"),
        },
        rounds: rounds.len(),
        first_commit: spread(|r| r.writable_to_first_commit_ms),
        outage: spread(|r| r.outage_ms),
        own_gap: spread(|r| r.own_gap_ms),
        outage_over_own_gap: spread(|r| (r.outage_ms / r.own_gap_ms.max(1.0) - 1.0) * 100.0),
        errors: rounds.iter().map(|r| r.errors).sum(),
    }
}

impl SwitchoverFigures {
    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::from(
            "writable -> first commit                  median   maximum   outage (median)   errors\n",
        );
        for s in &self.summary {
            text += &format!(
                "{:<38}{:>7.0} ms{:>7.0} ms{:>15.0} ms{:>9}\n",
                s.way,
                s.first_commit.typical(),
                s.first_commit.maximum(),
                s.outage.typical(),
                s.errors
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_patroni_takes_is_not_ours() {
        let round = |outage_ms: f64, errors| Round {
            round: 1,
            way: "pgsquire".into(),
            writable_to_first_commit_ms: 7.0,
            writable_to_all_clients_ms: 9.0,
            outage_ms,
            own_gap_ms: 2000.0,
            errors,
        };
        let summary = summary("pgsquire", &[round(2040.0, 0), round(2060.0, 0), round(2200.0, 1)]);
        assert_eq!(summary.errors, 1);
        assert!((summary.outage_over_own_gap.typical() - 3.0).abs() < 0.01);
        assert!((summary.outage_over_own_gap.maximum() - 10.0).abs() < 0.01);
    }
}
