//! `pgsquire forget`.

use super::failure::Failure;
use super::{ask, say};
use crate::control::{Answer, Request};
use clap::Subcommand;
use std::path::Path;

/// What to let go of.
#[derive(Debug, Subcommand)]
pub(super) enum What {
    /// Adopt a rebuilt store or a restored cluster: believe what the store says now
    #[command(after_help = "Example:\n  pgsquire forget term --cluster main")]
    Term {
        /// Name of the cluster: its scope, or scope/group; needed when several are followed
        #[arg(long, value_name = "NAME")]
        cluster: Option<String>,
    },
}

/// Tells the daemon.
pub(super) fn run(config: &Path, what: What) -> Result<(), Failure> {
    let What::Term { cluster } = what;
    let mut daemon = ask(config, &Request::ForgetTerm { cluster })?;
    match daemon.answer()? {
        Answer::Done(text) => say(&format!("{text}\n")),
        other => Err(Failure::Failed(format!("the daemon's answer is strange: {other:?}"))),
    }
}
