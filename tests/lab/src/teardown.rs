//! The end of a lab: everything it started, in any depth, then its folder.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::patroni;
use crate::process::{self, ProcessId};
use crate::state::{Component, HostRole, State};
use crate::wait;

/// How long the processes may take to end before they are killed.
const GRACE: Duration = Duration::from_secs(5);

/// Ends the lab: no process with its mark, no shared memory, no rule in the network and no folder is left.
pub async fn end(state: &State) -> Result<()> {
    let _ = state.network.heal();
    for process in process::marked(&state.dir, None) {
        process.signal(Signal::SIGCONT)?;
    }
    let (last, first): (Vec<_>, Vec<_>) = state.processes.iter().partition(|(name, _)| is_ended_last(name));
    // Agents and poolers may end in their own way: the cluster is still there for them.
    first.iter().try_for_each(|(_, p)| p.signal(Signal::SIGTERM))?;
    wait::until(GRACE, || first.iter().all(|(_, p)| !p.alive())).await;
    // Patroni would only try to save its cluster, and the store to find a new leader among the servers that end as well.
    last.iter().try_for_each(|(_, p)| p.signal(Signal::SIGKILL))?;
    stop_servers(state).await?;
    kill_all(&state.dir).await?;
    // Those that are children of ours are collected by being asked.
    wait::until(GRACE, || state.processes.values().all(|p| !p.alive())).await;
    state.network.forget_senders();
    fs::remove_dir_all(&state.dir).with_context(|| format!("removing {}", state.dir.display()))
}

fn is_ended_last(process: &str) -> bool {
    let component = process.rsplit('/').next();
    let last = [Component::Patroni, Component::Etcd, Component::Consul, Component::ZooKeeper];
    last.iter().any(|c| component == Some(c.name()))
}

/// SIGQUIT is PostgreSQL's immediate shutdown: it gives shared memory back, SIGKILL would not.
async fn stop_servers(state: &State) -> Result<()> {
    let hosts: Vec<_> = state.hosts_of(HostRole::Member).collect();
    let servers: Vec<ProcessId> = hosts.iter().filter_map(|h| patroni::postmaster(h)).collect();
    for process in servers.iter().flat_map(ProcessId::tree) {
        process.signal(Signal::SIGCONT)?;
    }
    for server in &servers {
        server.signal(Signal::SIGQUIT)?;
    }
    wait::until(GRACE, || servers.iter().all(|s| !s.alive())).await;
    for host in hosts {
        release_shared_memory(&host.file("data").join("postmaster.pid"));
    }
    Ok(())
}

/// A killed server leaves its segment behind: its lock file names it, in the last number of the line that has two.
fn release_shared_memory(lock_file: &Path) {
    let text = fs::read_to_string(lock_file).unwrap_or_default();
    if let Some(segment) = shared_memory_segment(&text) {
        let _ = Command::new("ipcrm").args(["-m", segment]).output();
    }
}

fn shared_memory_segment(lock_file: &str) -> Option<&str> {
    let mut words = lock_file.lines().nth(6)?.split_whitespace();
    let (_key, segment) = (words.next()?, words.next()?);
    segment.parse::<u64>().ok().map(|_| segment)
}

/// SIGKILL until nothing with the mark is left: one that is just being started may be missed the first time.
async fn kill_all(dir: &Path) -> Result<()> {
    let gone = || {
        let left = process::marked(dir, None);
        left.iter().for_each(|p| {
            let _ = p.signal(Signal::SIGKILL);
        });
        left.is_empty()
    };
    if wait::until(GRACE, gone).await {
        return Ok(());
    }
    let left: Vec<String> = process::marked(dir, None).iter().map(|p| p.pid.to_string()).collect();
    bail!("processes of the lab do not end after SIGKILL: {}", left.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_segment_stands_in_the_seventh_line() {
        let file = "812\n/data\n1700000000\n5432\n/sockets\n127.0.0.11\n  5432001         7\nready\n";
        assert_eq!(shared_memory_segment(file), Some("7"));
        assert_eq!(shared_memory_segment("812\n/data\n"), None);
    }
}
