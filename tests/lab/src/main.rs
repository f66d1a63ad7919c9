//! `lab`: real Patroni clusters and poolers on this machine, to look at and to break.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand, ValueEnum};
use pgsquire_lab::bench::{self, Bench, Group, SwitchoverBench};
use pgsquire_lab::{
    Dcs, Follow, HostRole, Lab, Load, LoadSpec, Part, PgBouncerBuild, Pooler, Progress, Spec, Watcher, demo,
};

/// Real Patroni clusters and poolers on this machine.
#[derive(Parser)]
#[command(
    name = "lab",
    after_help = "Example: lab up --agent target/release/pgsquire; lab switchover; lab down"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring a lab up; it stays up
    Up(Up),
    /// End a lab and remove its folder
    Down(Place),
    /// Who leads, what runs, where the pools lead
    Status(Place),
    /// Planned switchover
    Switchover {
        /// To this member; else to the first replica
        to: Option<String>,
        #[command(flatten)]
        place: Place,
    },
    /// SIGKILL
    Kill(Fault),
    /// SIGSTOP
    Freeze(Fault),
    /// SIGCONT
    Thaw(Fault),
    /// Start what does not run on a host
    Start {
        /// The host
        host: String,
        #[command(flatten)]
        place: Place,
    },
    /// Cut a host off: from all, or from one other host, or from the store (`store`)
    Partition {
        /// The host
        host: String,
        /// From whom
        #[arg(long)]
        from: Option<String>,
        #[command(flatten)]
        place: Place,
    },
    /// End all partitions
    Heal(Place),
    /// Commit through a pooler and report
    Load {
        /// The pooler
        #[arg(long, default_value = "write")]
        pooler: String,
        /// How many clients
        #[arg(long, default_value_t = 20)]
        clients: usize,
        /// How long
        #[arg(long, default_value_t = 10)]
        seconds: u64,
        #[command(flatten)]
        place: Place,
    },
    /// A switchover and a kill under load, the agent beside the classic callback
    Demo {
        /// The agent's binary
        #[arg(long)]
        agent: PathBuf,
        /// The store
        #[arg(long, value_enum, default_value_t = Dcs::Etcd)]
        dcs: Dcs,
        /// Clients on each pooler
        #[arg(long, default_value_t = 20)]
        clients: usize,
        /// The demo's folder
        #[arg(long, default_value_os_t = demo_dir())]
        dir: PathBuf,
    },
    /// End the demo
    DemoDown {
        /// The demo's folder
        #[arg(long, default_value_os_t = demo_dir())]
        dir: PathBuf,
    },
    /// Every figure beside its baseline, in one table
    Bench {
        /// The agent's binary
        #[arg(long)]
        agent: PathBuf,
        /// How many switchovers under load
        #[arg(long, default_value_t = 20)]
        rounds: usize,
        /// Clients in the runs of planned changes
        #[arg(long, default_value_t = 50)]
        clients: usize,
        /// Only these rows; can be given several times
        #[arg(long, value_enum)]
        only: Vec<Group>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Many switchovers: writable -> first commit
    BenchSwitchover {
        /// The agent's binary
        #[arg(long)]
        agent: PathBuf,
        /// How many
        #[arg(long, default_value_t = 20)]
        rounds: usize,
        /// Clients of each way to move a pooler
        #[arg(long, default_value_t = 50)]
        clients: usize,
        /// Leave the classic callback out
        #[arg(long)]
        no_classic: bool,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args)]
struct Place {
    /// The lab's folder
    #[arg(long, default_value_os_t = lab_dir())]
    dir: PathBuf,
}

#[derive(Args)]
struct Fault {
    /// The host; else the primary
    host: Option<String>,
    /// Which part of it
    #[arg(long, value_enum, default_value_t = What::Both)]
    what: What,
    #[command(flatten)]
    place: Place,
}

#[derive(Args)]
struct Up {
    /// The agent's binary
    #[arg(long)]
    agent: Option<PathBuf>,
    /// No agents, whatever `--agent` says
    #[arg(long)]
    no_agents: bool,
    /// A write pooler moved by the classic callback as well
    #[arg(long)]
    classic: bool,
    /// PostgreSQL members
    #[arg(long, default_value_t = 3)]
    members: usize,
    /// The store
    #[arg(long, value_enum, default_value_t = Dcs::Etcd)]
    dcs: Dcs,
    /// etcd servers, where there is etcd
    #[arg(long, default_value_t = 3)]
    etcd: usize,
    /// Patroni's version
    #[arg(long, default_value = pgsquire_lab::PATRONI)]
    patroni: String,
    /// Debian 13's PgBouncer
    #[arg(long)]
    pgbouncer_13: bool,
    /// Have Patroni run the agent's hooks (`before_stop`, `pre_promote`)
    #[arg(long)]
    hooks: bool,
    #[command(flatten)]
    place: Place,
}

#[derive(Clone, Copy, ValueEnum)]
enum What {
    Patroni,
    Postgres,
    Both,
    Agent,
    Pgbouncer,
    #[value(alias = "etcd")]
    Store,
    Host,
}

impl What {
    fn part(self) -> Part {
        match self {
            Self::Patroni => Part::Patroni,
            Self::Postgres => Part::Postgres,
            Self::Both => Part::Both,
            Self::Agent => Part::Agent,
            Self::Pgbouncer => Part::PgBouncer,
            Self::Store => Part::Store,
            Self::Host => Part::Host,
        }
    }
}

fn lab_dir() -> PathBuf {
    std::env::temp_dir().join("pgsquire-lab")
}

fn demo_dir() -> PathBuf {
    std::env::temp_dir().join("pgsquire-demo")
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse().command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("lab: {e:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<()> {
    match command {
        Command::Up(up) => bring_up(up).await,
        Command::Down(place) => end(place.dir).await,
        Command::DemoDown { dir } => end(dir).await,
        Command::Status(place) => status(&Lab::attach(&place.dir)?).await,
        Command::Switchover { to, place } => switchover(&Lab::attach(&place.dir)?, to.as_deref()).await,
        Command::Kill(fault) => {
            let (mut lab, host) = fault.find().await?;
            lab.kill(&host, fault.what.part()).await
        }
        Command::Freeze(fault) => {
            let (lab, host) = fault.find().await?;
            lab.freeze(&host, fault.what.part())
        }
        Command::Thaw(fault) => {
            let (lab, host) = fault.find().await?;
            lab.thaw(&host, fault.what.part())
        }
        Command::Start { host, place } => Lab::attach(&place.dir)?.start_host(&host),
        Command::Partition { host, from, place } => {
            partition(&Lab::attach(&place.dir)?, &host, from.as_deref())
        }
        Command::Heal(place) => Lab::attach(&place.dir)?.heal(),
        Command::Load { pooler, clients, seconds, place } => {
            load(&Lab::attach(&place.dir)?, &pooler, clients, Duration::from_secs(seconds)).await
        }
        Command::Demo { agent, dcs, clients, dir } => demo::run(demo::spec(agent, dcs), &dir, clients).await,
        Command::Bench { agent, rounds, clients, only, json } => {
            let table = bench::run(&Bench { agent, rounds, clients, only }, &Progress::shown()).await?;
            print(json, &table, || table.text())
        }
        Command::BenchSwitchover { agent, rounds, clients, no_classic, json } => {
            bench_switchover(&SwitchoverBench { agent, rounds, clients, classic: !no_classic }, json).await
        }
    }
}

impl Fault {
    async fn find(&self) -> Result<(Lab, String)> {
        let lab = Lab::attach(&self.place.dir)?;
        let host = match &self.host {
            Some(host) => host.clone(),
            None => lab.leader().await.context("name a host: the primary is not known")?,
        };
        println!("{host}");
        Ok((lab, host))
    }
}

async fn bring_up(up: Up) -> Result<()> {
    let agent = up.agent.filter(|_| !up.no_agents);
    let mut spec = Spec {
        store: up.dcs.store(up.etcd),
        members: up.members,
        agent,
        patroni: up.patroni,
        hooks: up.hooks,
        dir: Some(up.place.dir),
        stays_up: true,
        ..Spec::default()
    };
    if up.pgbouncer_13 {
        spec.pgbouncer = PgBouncerBuild::Debian13;
    }
    spec = spec.pooler(Pooler::write()).pooler(Pooler::read());
    if up.classic {
        spec = spec.pooler(Pooler::classic());
    }
    let lab = Lab::up(spec, &Progress::shown()).await?;
    println!("\n{}  lab down --dir {}   # ends it", demo::how_to_look(&lab)?, lab.dir().display());
    Ok(())
}

async fn end(dir: PathBuf) -> Result<()> {
    Lab::attach(&dir)?.down().await?;
    println!("{} is gone", dir.display());
    Ok(())
}

async fn status(lab: &Lab) -> Result<()> {
    match lab.members().await {
        Ok(members) => {
            for m in members {
                let timeline = m.timeline.map_or_else(|| "?".into(), |t| t.to_string());
                println!("{:<8} {:<14} {:<12} timeline {timeline}", m.name, m.role, m.state);
            }
        }
        Err(e) => println!("cluster: {e:#}"),
    }
    for pooler in &lab.state().spec.poolers {
        for (database, to) in &pooler.routes {
            let targets = lab.pool_targets(&pooler.name, database).await;
            let target = targets.map_or_else(|e| format!("{e:#}"), |names| names.join(", "));
            let by = match pooler.follow {
                Follow::Agent if lab.state().spec.agent.is_some() => "agent",
                Follow::Classic => "classic callback",
                _ => "nobody",
            };
            println!("{:<8} {database} -> {target} (wants {}, moved by {by})", pooler.name, to.word());
        }
    }
    for (name, process) in &lab.state().processes {
        println!(
            "{name:<20} {}",
            if process.alive() { format!("process {}", process.pid) } else { "ended".into() }
        );
    }
    Ok(())
}

async fn switchover(lab: &Lab, to: Option<&str>) -> Result<()> {
    let (old, mut watcher) = (lab.leader().await?, Watcher::start(lab)?);
    let ordered = Instant::now();
    let limit = Duration::from_secs(60);
    let (to, seen) = tokio::join!(lab.switchover(to), watcher.writable_after(ordered, Some(&old), limit));
    let (to, (_, writable)) = (to?, seen?);
    let at = std::time::SystemTime::now() - writable.elapsed();
    println!(
        "{to} leads, writable after {:.3} s, {:?}",
        (writable - ordered).as_secs_f64(),
        at.duration_since(std::time::UNIX_EPOCH)?
    );
    Ok(())
}

fn partition(lab: &Lab, host: &str, from: Option<&str>) -> Result<()> {
    match from {
        None => lab.isolate(host),
        Some("store") => lab.cut_from_store(host),
        Some(other) => lab.cut(host, other),
    }
}

async fn load(lab: &Lab, pooler: &str, clients: usize, time: Duration) -> Result<()> {
    let load = Load::start(LoadSpec::writes(lab.pooler_address(pooler)?, clients)).await?;
    let from = Instant::now();
    tokio::time::sleep(time).await;
    let report = load.report(from, Instant::now());
    println!("{} commits, longest time without one {} ms", report.commits, report.outage.as_millis());
    println!("{} errors, seen by {} clients", report.errors, report.clients_with_errors);
    for (text, count) in &report.error_texts {
        println!("{count:>8}  {text}");
    }
    for member in lab.state().hosts_of(HostRole::Member) {
        if let Some(first) = report.first_on.get(&member.address) {
            println!("first commit on {} after {:.3} s", member.name, (*first - from).as_secs_f64());
        }
    }
    load.stop(Duration::from_secs(5)).await;
    Ok(())
}

async fn bench_switchover(bench: &SwitchoverBench, json: bool) -> Result<()> {
    let figures = bench::switchovers(bench, &Progress::shown()).await?;
    print(json, &figures, || figures.text())
}

fn print(json: bool, figures: &impl serde::Serialize, text: impl FnOnce() -> String) -> Result<()> {
    match json {
        true => println!("{}", serde_json::to_string_pretty(figures)?),
        false => print!("{}", text()),
    }
    Ok(())
}
