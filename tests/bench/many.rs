//! Many agents on one etcd. All of them and etcd share this machine.

use crate::agent::{Agent, Source};
use crate::patronis::name;
use crate::servers::{Etcd, Servers};
use crate::timing::{Limit, milliseconds, rows as rows_of};
use anyhow::{Result, ensure};
use pgsquire_lab::bench::{Figure, Row};
use pgsquire_lab::{ProcessId, Progress, Usage};
use std::time::Duration;
use tokio::time::{Instant, sleep};

/// In ms.
const LIMIT: f64 = 300.0;
/// How often the leader changes.
const WRITES: usize = 20;
/// Between two changes: each agent reads the whole cluster after each.
const PACE: Duration = Duration::from_secs(1);
/// etcd is watched for so long while nothing changes.
const IDLE: Duration = Duration::from_secs(20);
/// Agents that start between two words about them.
const STEP: usize = 100;

/// The rows of so many agents.
pub async fn rows(count: usize, progress: &Progress) -> Result<Vec<Row>> {
    enough_files(count)?;
    progress.step("etcd: alone");
    let mut etcd = Etcd::start(1).await?;
    let process = etcd.process()?;
    etcd.lead(&name(0)).await?;
    let (cpu_alone, memory_alone) = idle(process).await?;
    let mut agents = Vec::new();
    for n in 0..count {
        let mut agent = Agent::start(&format!("pool{n}"), Source::Store(etcd.store()));
        agent.knows(&name(0)).await?;
        agents.push(agent);
        if agents.len() % STEP == 0 {
            progress.step(&format!("etcd: {} of {count} agents follow it", agents.len()));
        }
    }
    let (cpu, memory) = idle(process).await?;
    progress.step(&format!("etcd: {cpu:.0} % of a core, {memory:.0} MB while nothing changes"));
    let before = Usage::of(process)?.cpu;
    let mut times = Vec::new();
    for turn in 1..=WRITES {
        sleep(PACE).await;
        let leader = name(turn);
        let began = Instant::now();
        etcd.lead(&leader).await?;
        let mut last = began;
        for agent in &mut agents {
            last = last.max(agent.knows(&leader).await?);
        }
        let took = milliseconds(last - began);
        progress.step(&format!("etcd: all {count} agents know after {took:.0} ms, {turn} of {WRITES}"));
        times.push(took);
    }
    sleep(PACE).await;
    let per_write = milliseconds(Usage::of(process)?.cpu - before) / WRITES as f64;
    for agent in agents {
        agent.stop().await;
    }
    let what = format!("{count} agents on one etcd: leader key written -> all have decided, {WRITES} writes");
    let [all, worst] = rows_of(&what, &times, Limit::Maximum(LIMIT));
    let of = |what: &str| format!("{count} agents on one etcd: {what}");
    let value = |what: &str, unit, value| Row::new(of(what), unit, Figure::Value(value), None);
    Ok(vec![
        all,
        worst,
        value("its CPU while nothing changes, of one core", "%", cpu)
            .beside("without agents", Figure::Value(cpu_alone)),
        value("its CPU time from one change of the leader to the next", "ms", per_write),
        value("its resident memory", "MB", memory).beside("without agents", Figure::Value(memory_alone)),
    ])
}

/// Processor time of a process over a while, in percent of one core, and its memory then, in MB.
async fn idle(process: ProcessId) -> Result<(f64, f64)> {
    let (began, before) = (Instant::now(), Usage::of(process)?);
    sleep(IDLE).await;
    let after = Usage::of(process)?;
    let cpu = (after.cpu - before.cpu).as_secs_f64() / began.elapsed().as_secs_f64() * 100.0;
    Ok((cpu, after.resident as f64 / 1e6))
}

/// Each agent has a few connections, and etcd the other end of each.
fn enough_files(agents: usize) -> Result<()> {
    let limits = std::fs::read_to_string("/proc/self/limits")?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
    let limit = line.and_then(|line| line.split_whitespace().next()?.parse::<usize>().ok());
    let needed = agents * 6 + 500;
    ensure!(
        limit.is_none_or(|limit| limit >= needed),
        "{agents} agents need {needed} open files: run `ulimit -n {needed}` first, or give fewer --agents"
    );
    Ok(())
}
