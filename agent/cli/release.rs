//! `pgsquire release`: ends the pauses of this host's agent. `ExecStopPost=` runs it, so it works when the daemon is dead
//! and the configuration broken.

use super::{Failure, say};
use crate::config;
use crate::pgbouncer::notes::{self, Debts, Notes};
use crate::pgbouncer::pauses::{Journal, said};
use crate::pgbouncer::{guard, release};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What was done for one pooler.
#[derive(Debug, Default, Serialize)]
struct Line {
    /// What was undone, for people.
    released: Vec<String>,
    /// What was not, and why.
    failed: Vec<String>,
}

type Lines = BTreeMap<String, Line>;

/// Does it.
pub(super) fn run(
    config: &Path,
    state_dir: Option<PathBuf>,
    json: bool,
    is_guard: bool,
) -> Result<(), Failure> {
    let state_dir = state_dir.unwrap_or_else(|| config::glance(config).state_dir);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::Failed(format!("cannot start the runtime: {e}")))?;
    if is_guard {
        runtime.block_on(guard::watch(&state_dir));
        return Ok(());
    }
    let mut lines = Lines::new();
    runtime.block_on(async {
        pauses(&state_dir, &mut lines).await;
        debts(&state_dir, &mut lines).await;
    });
    say(&if json { as_json(&lines) } else { as_text(&lines) })?;
    let failed: Vec<String> = lines.into_values().flat_map(|line| line.failed).collect();
    if failed.is_empty() { Ok(()) } else { Err(Failure::Failed(failed.join("; "))) }
}

/// A pooler that does not run is not paused; but a silent one may be, so both are said.
const ADVICE: &str =
    "run `pgsquire release` again when its console answers (PgBouncer that was started anew is not paused)";

async fn pauses(state_dir: &Path, lines: &mut Lines) {
    let (journals, problems) = Journal::all(state_dir);
    for why in problems {
        lines.entry("?".into()).or_default().failed.push(why);
    }
    for journal in journals {
        // Before it is ended: the name in the entry is the pooler's, the one of the file is written differently.
        let name = match journal.read() {
            Ok(Some(entry)) => entry.pooler,
            Ok(None) => continue,
            Err(why) => {
                let advice =
                    "look at SHOW DATABASES on the consoles of this host and RESUME what nobody wants paused";
                lines.entry("?".into()).or_default().failed.push(format!("{why}; {advice}"));
                continue;
            }
        };
        let line = lines.entry(name).or_default();
        match release::release(&journal, |_| true).await {
            Ok(Some(entry)) => {
                let scopes: Vec<String> = entry.scopes().iter().map(said).collect();
                line.released.push(format!("resumed {}", scopes.join(", ")));
                if let Some(value) = entry.pause.min_pool_size {
                    line.released.push(format!("min_pool_size is {value} again"));
                }
            }
            // The daemon or the guard ended it meanwhile.
            Ok(None) => {}
            Err(why) => line.failed.push(format!("{why}; {ADVICE}")),
        }
    }
}

async fn debts(state_dir: &Path, lines: &mut Lines) {
    let (all, problems) = notes::debts(state_dir);
    for why in problems {
        lines.entry("?".into()).or_default().failed.push(why);
    }
    for debts in all {
        let line = lines.entry(debts.pooler.clone()).or_default();
        if let Err(why) = pay(state_dir, &debts, &mut line.released).await {
            line.failed.push(format!("{why}; {ADVICE}"));
        }
    }
}

/// A cut that did not come to its end left its database paused.
async fn pay(state_dir: &Path, debts: &Debts, released: &mut Vec<String>) -> Result<(), String> {
    let Some(console) = &debts.console else {
        let pooler = &debts.pooler;
        return Err(format!(
            "what is owed to pooler {pooler} does not say where its console is: start the daemon"
        ));
    };
    let notes = Notes::new(state_dir, &debts.pooler);
    let mut console = release::console(&debts.pooler, console, debts.password_file.as_deref());
    for database in &debts.cut {
        console.resume(database).await.map_err(|e| e.to_string())?;
        notes.end_cut(database)?;
        released.push(format!("resumed {database}"));
    }
    if let Some(value) = &debts.login_retry {
        console.give_back("server_login_retry", value).await.map_err(|e| e.to_string())?;
        notes.return_login_retry()?;
        released.push(format!("server_login_retry is {value} again"));
    }
    Ok(())
}

fn as_text(lines: &Lines) -> String {
    if lines.is_empty() {
        return "nothing is paused by us\n".into();
    }
    let one = |(pooler, line): (&String, &Line)| {
        let mut parts = line.released.clone();
        if !line.failed.is_empty() {
            parts.push("NOT RELEASED".into());
        } else if parts.is_empty() {
            parts.push("nothing was left to do".into());
        }
        format!("{pooler}: {}\n", parts.join(", "))
    };
    lines.iter().map(one).collect()
}

fn as_json(lines: &Lines) -> String {
    let poolers = serde_json::json!({ "poolers": lines });
    format!("{poolers}\n")
}
