//! A pooler with a thousand entries follows a switchover: from the agent's decision until all of them are verified, as
//! its flight recorder has it.

use std::collections::BTreeSet;
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::table::{Figure, Row};
use crate::lab::Lab;
use crate::pgbouncer;
use crate::process::{SERVICE_USER, is_root};
use crate::progress::Progress;
use crate::spec::{Follow, Pooler, Spec};
use crate::state::Host;
use crate::wait;

const ENTRIES: usize = 1_000;
/// From the decision to the last verified entry, in ms.
const TARGET: f64 = 100.0;
/// How long one move may take at most.
const LIMIT: Duration = Duration::from_secs(60);
const STEP: Duration = Duration::from_millis(200);

const OWN: &str = "write";
const OTHER: &str = "sed";

/// A cluster with two such poolers: one the agent moves, one that is moved with sed when the agent is done.
pub(super) fn spec(agent: PathBuf) -> Spec {
    let other = Pooler { name: OTHER.into(), ..Pooler::write() }.follow(Follow::Nobody);
    let spec = Spec { agent: Some(agent), ..Spec::default() };
    spec.pooler(Pooler::write().entries(ENTRIES)).pooler(other.entries(ENTRIES))
}

/// Switches over so many times.
pub(super) async fn rows(lab: &mut Lab, moves: usize, progress: &Progress) -> Result<Vec<Row>> {
    let (mut own, mut other) = (Vec::new(), Vec::new());
    lab.wait_agent(OWN).await?;
    for number in 1..=moves {
        let before = records(lab.state().host(OWN)?)?.last().map_or(0, |r| r.number);
        let leader = lab.switchover(None).await?;
        lab.wait_healthy(LIMIT).await?;
        let address = lab.address(&leader)?;
        let ask = || async { Move::find(&records(lab.state().host(OWN)?)?, before, &leader, address) };
        let moved = wait::answer("a pooler with all its entries verified", LIMIT, STEP, ask).await?;
        let by_sed = move_by_sed(lab, address).await?;
        progress.step(&format!(
            "{ENTRIES} entries, move {number}: verified after {} ms ({}); sed and RELOAD {by_sed:.0} ms",
            moved.milliseconds, moved.steps
        ));
        own.push(moved.milliseconds as f64);
        other.push(by_sed);
    }
    let what = format!("{ENTRIES} entries re-pointed: decision -> all verified, {moves} moves");
    let row = Row::new(what, "ms", Figure::of(&own), Some(TARGET));
    Ok(vec![row.beside("sed, RELOAD, nothing verified", Figure::of(&other))])
}

/// An entry of the flight recorder.
#[derive(Clone, Debug, Deserialize)]
struct Record {
    #[serde(rename = "seq")]
    number: u64,
    time: String,
    kind: String,
    subject: String,
    text: String,
}

/// All that is on disk; in memory it keeps no more than the last thousand.
fn records(host: &Host) -> Result<Vec<Record>> {
    let read = |name: &str| fs::read_to_string(host.file("agent").join(name));
    let text =
        read("events.jsonl.1").unwrap_or_default() + &read("events.jsonl").context("no flight recorder")?;
    // The last line may not be whole yet.
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// How one switchover went.
struct Move {
    milliseconds: u64,
    /// What came when, for people.
    steps: String,
}

impl Move {
    /// From the first entry that says where a route must lead now to the one with which the last of them is verified there.
    fn find(records: &[Record], before: u64, leader: &str, address: Ipv4Addr) -> Result<Self> {
        let decided = format!("must lead to {address}");
        let mut new = records.iter().filter(|r| r.number > before);
        let start = new.by_ref().find(|r| r.kind == "route" && r.text.starts_with(&decided));
        let start = start.with_context(|| format!("no route was to lead to {leader}"))?;
        let there = format!("leads to {address}");
        let (mut verified, mut end, mut steps) = (BTreeSet::new(), start, Vec::new());
        for record in new {
            let at = millis_between(&start.time, &record.time)?;
            match record.kind.as_str() {
                "order" if record.text.ends_with(": done") => {
                    let order = record.text.split(' ').next().unwrap_or_default();
                    steps.push(format!("{} {at}", order.trim_end_matches(':')));
                }
                "verified" if record.text.starts_with(&there) => {
                    verified.insert(&record.subject);
                    end = record;
                }
                _ => {}
            }
            if verified.len() == ENTRIES {
                let milliseconds = millis_between(&start.time, &end.time)?;
                return Ok(Self { milliseconds, steps: steps.join(", ") });
            }
        }
        anyhow::bail!("{} of {ENTRIES} entries are verified", verified.len())
    }
}

fn millis_between(from: &str, to: &str) -> Result<u64> {
    const DAY: u64 = 86_400_000;
    Ok((millis_of_day(to)? + DAY - millis_of_day(from)?) % DAY)
}

/// `2026-11-21T04:15:38.123Z`
fn millis_of_day(time: &str) -> Result<u64> {
    let number =
        |range: std::ops::Range<usize>| time.get(range).and_then(|digits| digits.parse::<u64>().ok());
    let parts = (number(11..13), number(14..16), number(17..19), number(20..23));
    let (Some(h), Some(m), Some(s), Some(ms)) = parts else { anyhow::bail!("`{time}` is no time") };
    Ok(((h * 60 + m) * 60 + s) * 1000 + ms)
}

/// What the classic callback does, timed by the shell itself; in ms. Nobody looks whether it worked.
async fn move_by_sed(lab: &Lab, address: Ipv4Addr) -> Result<f64> {
    let host = lab.state().host(OTHER)?;
    let script = format!(
        "from=$EPOCHREALTIME; sed -i 's/host=[0-9.]* port/host={address} port/' {}; \
         psql -qX -h {} -p {} -U pgbouncer pgbouncer -c RELOAD || exit; to=$EPOCHREALTIME; \
         echo $((${{to/./}} - ${{from/./}}))",
        pgbouncer::ini(host).display(),
        host.sockets().display(),
        lab.pooler_address(OTHER)?.port(),
    );
    let mut command = match is_root() {
        true => Command::new("setpriv"),
        false => Command::new("bash"),
    };
    if is_root() {
        command.args(["--reuid", SERVICE_USER, "--regid", SERVICE_USER, "--init-groups", "--", "bash"]);
    }
    command.args(["-c", &script]).current_dir(&host.folder).env("LC_ALL", "C.UTF-8");
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "sed and RELOAD: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(said.trim().parse::<f64>().with_context(|| format!("`{said}` is no time"))? / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_day_are_counted_over_midnight() {
        let between = |from: &str, to: &str| {
            millis_between(&format!("2026-11-21T{from}Z"), &format!("2026-11-22T{to}Z")).expect("times")
        };
        assert_eq!(between("04:15:38.123", "04:15:39.003"), 880);
        assert_eq!(between("23:59:59.990", "00:00:00.010"), 20);
        assert!(millis_of_day("yesterday").is_err());
    }

    #[test]
    fn a_move_ends_with_the_last_entry() {
        let record = |number: u64, kind: &str, subject: String, text: &str| Record {
            number,
            time: format!("2026-11-21T04:15:38.{number:03}Z").chars().take(24).collect(),
            kind: kind.into(),
            subject,
            text: text.into(),
        };
        let mut all = vec![
            record(1, "route", "write/app".into(), "must lead to 127.0.0.2:5432: …"),
            record(2, "leader", "main".into(), "pg1 holds the leader key"),
            record(3, "route", "write/app".into(), "must lead to 127.0.0.1:5432: …"),
            record(4, "order", "write".into(), "RELOAD: done"),
        ];
        let to = Ipv4Addr::LOCALHOST;
        let verified =
            |n: usize| record(5, "verified", format!("write/app_{n}"), "leads to 127.0.0.1:5432: file, …");
        all.extend((1..ENTRIES).map(verified));
        assert!(Move::find(&all, 0, "pg1", to).is_err(), "one is missing");
        all.push(verified(ENTRIES));
        let found = Move::find(&all, 0, "pg1", to).expect("all are there");
        assert_eq!((found.milliseconds, found.steps.as_str()), (2, "RELOAD 1"));
        assert!(Move::find(&all, 3, "pg1", to).is_err(), "before that it was another switchover");
    }
}
