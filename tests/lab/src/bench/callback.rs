//! `pgsquire callback`: how long Patroni's child lives, beside programs that do nothing.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::table::{Figure, Row};
use crate::agent;
use crate::lab::Lab;
use crate::progress::Progress;

/// With the daemon up, in ms.
const UP: f64 = 2.0;
/// With the daemon down, in ms.
const DOWN: f64 = 3.0;

/// A command and how long its runs took, in ms.
struct Timed {
    command: Command,
    times: Vec<f64>,
}

/// Runs the callback with a daemon that is up and one that is not, alternating with `bash -c true` and `true`.
pub(super) async fn rows(lab: &Lab, runs: usize, progress: &Progress) -> Result<Vec<Row>> {
    progress.step(&format!("callback: {runs} runs, with the daemon up and down, beside bash and true"));
    let nobody = tempfile::tempdir().context("making a folder for a daemon that is not there")?;
    let absent = nobody.path().join("config.toml");
    std::fs::write(&absent, absent_text(nobody.path())).context("writing its configuration")?;
    let member = lab.replicas().await?.into_iter().next().context("no replica")?;
    let host = lab.state().host(&member)?;
    let (present, missed) = (agent::config(host), host.file("agent/callbacks.journal"));
    let program = agent::program(lab.state());
    let timed = [
        Timed::new(callback(&program, &present)),
        Timed::new(callback(&program, &absent)),
        Timed::new(command(Path::new("/bin/bash"), &["-c", "true"])),
        Timed::new(command(Path::new("/bin/true"), &[])),
    ];
    let timed = tokio::task::spawn_blocking(move || alternate(timed, runs)).await??;
    let kept = std::fs::read_to_string(nobody.path().join("callbacks.journal")).unwrap_or_default();
    ensure!(kept.lines().count() == runs, "{} of {runs} callbacks were kept", kept.lines().count());
    ensure!(!missed.exists(), "the agent of {member} did not take all callbacks");
    let [up, down, bash, nothing] = timed.map(|t| Figure::of(&t.times));
    let row = |what, figure, target| {
        let row = Row::new(format!("callback, daemon {what}: start to exit"), "ms", figure, Some(target));
        row.beside("bash -c true", bash.clone()).beside("/bin/true", nothing.clone())
    };
    Ok(vec![row("up", up, UP), row("down", down, DOWN)])
}

fn absent_text(folder: &Path) -> String {
    let folder = folder.display();
    format!("[node]\nstate_dir = \"{folder}\"\n\n[control]\nsocket = \"{folder}/control.sock\"\n")
}

fn callback(program: &Path, config: &Path) -> Command {
    let config = config.display().to_string();
    command(program, &["--config", &config, "callback", "on_role_change", "replica", "main"])
}

fn command(program: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// One after the other, each time another one first: whatever else happens on the machine hits all alike.
fn alternate<const N: usize>(mut timed: [Timed; N], runs: usize) -> Result<[Timed; N]> {
    for run in 0..runs {
        for turn in 0..N {
            timed[(run + turn) % N].run()?;
        }
    }
    Ok(timed)
}

impl Timed {
    fn new(command: Command) -> Self {
        Self { command, times: Vec::new() }
    }

    fn run(&mut self) -> Result<()> {
        let start = Instant::now();
        let status = self.command.status().with_context(|| format!("running {:?}", self.command))?;
        self.times.push(start.elapsed().as_secs_f64() * 1000.0);
        ensure!(status.success(), "{:?}: {status}", self.command);
        Ok(())
    }
}
