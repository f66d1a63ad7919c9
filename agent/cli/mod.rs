//! The command line: one file per command.

pub mod callback;
mod check_config;
mod events;
mod explain;
mod failure;
mod forget;
pub mod hook;
mod page;
mod paint;
pub mod patroni_child;
mod plan;
mod release;
mod render;
mod run;
mod status;
mod table;

use crate::config::DEFAULT_FILE;
use crate::control::Request;
use crate::control::client::Client;
use clap::{Parser, Subcommand};
use failure::Failure;
use pgsquire_core::event::HookKind;
use std::ffi::OsString;
use std::io::{self, ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// A command waits so long for the daemon's answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// The node companion of a Patroni cluster: PgBouncer follows the primary, provably.
#[derive(Debug, Parser)]
#[command(name = "pgsquire", version, after_help = "Example:\n  pgsquire check-config && pgsquire status")]
struct Cli {
    /// Configuration file
    #[arg(long, global = true, value_name = "FILE", env = "PGSQUIRE_CONFIG", default_value = DEFAULT_FILE)]
    config: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon in the foreground
    #[command(after_help = "Example:\n  pgsquire run --config /etc/pgsquire/config.toml")]
    Run,
    /// Tell the daemon that Patroni ran a callback
    ///
    /// Patroni appends the three words. Always quick, always exit status 0: when the daemon is away, the callback is
    /// kept in the state folder until it is back.
    #[command(after_help = "Example (in patroni.yml):\n  postgresql:\n    callbacks:\n      \
                            on_role_change: pgsquire callback")]
    Callback {
        /// ACTION ROLE SCOPE, as Patroni appends them
        #[arg(value_name = "ACTION ROLE SCOPE", num_args = 0..)]
        words: Vec<String>,
    },
    /// Hold up Patroni while the poolers let go of the old primary
    ///
    /// Patroni runs both and waits for them. The daemon is asked; without its answer within 100 ms the hook returns.
    /// before-stop always ends with exit status 0; pre-promote ends with 1, and so prevents the promotion, only under
    /// `fence = "strict"` and without the word of every pooler.
    #[command(
        after_help = "Example (in patroni.yml):\n  postgresql:\n    before_stop: pgsquire hook before-stop\n    \
                            pre_promote: pgsquire hook pre-promote"
    )]
    Hook {
        /// Which of them
        #[arg(value_name = "before-stop|pre-promote", value_parser = hook::kind)]
        kind: HookKind,
    },
    /// Check the configuration: all errors at once, exit status 2 if there are any
    #[command(after_help = "Example:\n  pgsquire check-config /etc/pgsquire/config.toml")]
    CheckConfig {
        /// File to check instead of the configuration in use
        file: Option<PathBuf>,
    },
    /// Show the cluster, the pools and the health verdicts
    #[command(after_help = "Example:\n  pgsquire status --watch")]
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Show it again with each change
        #[arg(long)]
        watch: bool,
    },
    /// Say why traffic goes where it goes: the facts, their age, the rule that decided
    #[command(after_help = "Example:\n  pgsquire explain write")]
    Explain {
        /// A pool, or POOL/ENTRY; all of them without it
        pool: Option<String>,
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Say what would be done now, and why, without doing it
    #[command(after_help = "Example:\n  pgsquire plan")]
    Plan {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Show the flight recorder: what happened on this host
    #[command(after_help = "Example:\n  pgsquire events --follow")]
    Events {
        /// Go on with what happens next
        #[arg(long)]
        follow: bool,
        /// Print JSON, one entry per line
        #[arg(long)]
        json: bool,
    },
    /// Resume what the agent paused on this host
    ///
    /// Reads what the agent noted before it paused or changed something in PgBouncer, and undoes that. Needs neither the
    /// daemon nor a valid configuration; safe at any time, and twice. Exit status 1 if something may still be paused.
    #[command(after_help = "Example:\n  pgsquire release")]
    Release {
        /// State folder, instead of the configuration's
        #[arg(long, value_name = "DIR")]
        state_dir: Option<PathBuf>,
        /// Print JSON
        #[arg(long)]
        json: bool,
        /// Watch over pauses until there is none; started by the daemon
        #[arg(long, hide = true)]
        guard: bool,
    },
    /// Let go of a term that the agent remembers, or of a pooler that is gone
    #[command(after_help = "Examples:\n  pgsquire forget term --cluster main\n  pgsquire forget web3")]
    Forget(forget::What),
    /// Print ready configuration for a neighbour
    #[command(subcommand, after_help = "Example:\n  pgsquire render patroni")]
    Render(render::What),
}

/// Runs a command.
pub fn main(args: Vec<OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(args) {
        Ok(cli) => cli,
        // Help goes to standard output with status 0, usage errors to standard error with status 2.
        Err(e) => {
            let _ = e.print();
            return ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(2));
        }
    };
    let config = cli.config;
    let done = match cli.command {
        Command::Run => run::run(config),
        Command::Callback { words } => return callback::Invocation::new(config, words).run(),
        Command::Hook { kind } => return hook::Invocation::new(config, kind).run(),
        Command::CheckConfig { file } => check_config::run(&file.unwrap_or(config)),
        Command::Status { json, watch } => status::run(&config, json, watch),
        Command::Explain { pool, json } => explain::run(&config, pool.as_deref(), json),
        Command::Plan { json } => plan::run(&config, json),
        Command::Events { follow, json } => events::run(&config, follow, json),
        Command::Release { state_dir, json, guard } => release::run(&config, state_dir, json, guard),
        Command::Forget(what) => forget::run(&config, what),
        Command::Render(what) => render::run(&config, what),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Asks the daemon of this configuration.
fn ask(config: &std::path::Path, request: &Request) -> Result<Client, Failure> {
    let glance = crate::config::glance(config);
    match glance.trouble {
        Some(trouble) => Err(Failure::Usage(format!("{trouble}; name the right file with --config"))),
        None => Ok(Client::ask(&glance.control_socket, request, PATIENCE)?),
    }
}

/// Writes to standard output. A reader that has seen enough (`| head`) is no failure.
fn say(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == ErrorKind::BrokenPipe => Err(Failure::Enough),
        Err(e) => Err(Failure::Failed(format!("cannot write to standard output: {e}"))),
        Ok(()) => Ok(()),
    }
}
