//! What a process has taken so far.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::process::ProcessId;

/// The kernel counts processor time for `/proc` in hundredths of a second, on every Linux.
const TICK: Duration = Duration::from_millis(10);

/// Memory now, processor time since the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Resident memory, in bytes.
    pub resident: u64,
    /// Processor time of all its threads, in user and kernel mode.
    pub cpu: Duration,
}

impl Usage {
    /// Of a process that runs.
    pub fn of(process: ProcessId) -> Result<Self> {
        let pid = process.pid;
        ensure!(process.alive(), "process {pid} has ended");
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let resident = resident(&status).with_context(|| format!("no VmRSS of process {pid}"))?;
        let cpu = ticks(&stat).with_context(|| format!("no times of process {pid}"))?;
        Ok(Self { resident, cpu: TICK * cpu })
    }
}

/// `VmRSS:     1234 kB`
fn resident(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

/// `utime` and `stime`. The second field is the program's name in brackets and may hold blanks and brackets itself.
fn ticks(stat: &str) -> Option<u32> {
    let mut fields = stat[stat.rfind(')')? + 1..].split_whitespace().skip(11);
    let user: u32 = fields.next()?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_memory_are_found() {
        assert_eq!(ticks("7 (a) b) S 3 7 7 0 -1 4194560 1 2 3 4 500 60 0 0 20 0 1 0 4242"), Some(560));
        assert_eq!(resident("Name:\tx\nVmRSS:\t    1234 kB\n"), Some(1234 * 1024));
    }

    #[test]
    fn of_ourselves() {
        let own = ProcessId::of(std::process::id() as i32).expect("we run");
        assert!(Usage::of(own).expect("usage").resident > 0);
    }
}
