//! `pgsquire callback`: how long Patroni's child lives, beside programs that do nothing.

use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::process::Child;
use tokio::time::MissedTickBehavior;

use super::table::{Figure, Row};
use crate::agent::HTTP_PORT;
use crate::network::Network;
use crate::progress::Progress;
use crate::wait;

/// How long the agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);
const HALF_STEP: Duration = Duration::from_millis(50);
/// The end of the agent's address.
const LAST: u8 = 11;
/// With the daemon up, in ms.
const UP: f64 = 2.0;
/// With the daemon down, in ms.
const DOWN: f64 = 3.0;

/// Between two runs. What a callback makes the daemon do is to be over by then.
const PAUSE: Duration = Duration::from_millis(25);

/// A command and how long its runs took, in ms.
struct Timed {
    command: Command,
    times: Vec<f64>,
}

/// Runs the callback with a daemon that is up and one that is not, alternating with `bash -c true` and `true`.
///
/// The daemon is alone on the machine: beside a cluster that shares a few cores one would measure the wait for a core.
pub(super) async fn rows(program: &Path, runs: usize, progress: &Progress) -> Result<Vec<Row>> {
    progress.step(&format!("callback: {runs} runs, with a daemon and without, beside bash and true"));
    let (here, away) = (Place::new()?, Place::new()?);
    let mut daemon = here.daemon(program)?;
    let answers = || async { Ok(tokio::net::UnixStream::connect(here.file("control.sock")).await?) };
    drop(wait::answer("an agent on its control socket", PATIENCE, HALF_STEP, answers).await?);
    let timed = [
        Timed::new(callback(program, &here)),
        Timed::new(callback(program, &away)),
        Timed::new(command(Path::new("/bin/bash"), &["-c", "true"])),
        Timed::new(command(Path::new("/bin/true"), &[])),
    ];
    let timed = alternate(timed, runs).await?;
    daemon.kill().await.context("ending the agent")?;
    ensure!(here.kept() == 0, "the agent did not take {} of {runs} callbacks", here.kept());
    ensure!(away.kept() == runs, "{} of {runs} callbacks were kept", away.kept());
    let [up, down, bash, nothing] = timed.map(|t| Figure::of(&t.times));
    let row = |what, figure, target| {
        let row = Row::new(format!("callback, daemon {what}: start to exit"), "ms", figure, Some(target));
        row.beside("bash -c true", bash.clone()).beside("/bin/true", nothing.clone())
    };
    Ok(vec![row("up", up, UP), row("down", down, DOWN)])
}

/// A folder with all that one agent needs; nobody is in the cluster it asks for.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Result<Self> {
        let place = Self(tempfile::tempdir().context("making a folder for an agent")?);
        let folder = place.0.path().display().to_string();
        let network = Network::pick(&[(LAST, HTTP_PORT)]).context("finding an address for an agent")?;
        let listen = SocketAddrV4::new(network.host(LAST), network.port(HTTP_PORT));
        let text = format!(
            "[node]\nstate_dir = \"{folder}/state\"\n\n[control]\nsocket = \"{folder}/control.sock\"\n\n\
             [http]\nlisten = \"{listen}\"\n\n\
             [[cluster]]\nscope = \"main\"\ndcs = \"etcd\"\nendpoints = [\"http://127.0.0.1:1\"]\n"
        );
        std::fs::create_dir(place.file("state"))
            .and_then(|()| std::fs::write(place.file("config.toml"), text))
            .context("writing an agent's configuration")?;
        Ok(place)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Starts an agent here, which ends with the handle.
    fn daemon(&self, program: &Path) -> Result<Child> {
        let mut command = tokio::process::Command::new(program);
        command.arg("--config").arg(self.file("config.toml")).arg("run").kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.spawn().with_context(|| format!("starting {}", program.display()))
    }

    /// How many callbacks wait for an agent to come back.
    fn kept(&self) -> usize {
        std::fs::read_to_string(self.file("state/callbacks.journal")).map_or(0, |text| text.lines().count())
    }
}

fn callback(program: &Path, place: &Place) -> Command {
    let config = place.file("config.toml").display().to_string();
    command(program, &["--config", &config, "callback", "on_role_change", "replica", "main"])
}

fn command(program: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// One after the other, each time another one first: whatever else happens on the machine hits all alike.
async fn alternate<const N: usize>(mut timed: [Timed; N], runs: usize) -> Result<[Timed; N]> {
    let mut ticks = tokio::time::interval(PAUSE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    for run in 0..runs {
        for turn in 0..N {
            ticks.tick().await;
            tokio::task::block_in_place(|| timed[(run + turn) % N].run())?;
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
