//! `pgsquire forget`.

use super::failure::Failure;
use super::{ask, say};
use crate::control::{Answer, Request};
use clap::Args;
use std::path::Path;

/// What to let go of.
#[derive(Debug, Args)]
pub(super) struct What {
    /// `term`: adopt a rebuilt store or a restored cluster, and believe what the store says now. Anything else is the
    /// node name of an agent that is gone for good: `fence = "strict"` no longer waits for its word
    #[arg(value_name = "term|NAME")]
    what: String,
    /// Name of the cluster: its scope, or scope/group; needed when several are followed
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
}

/// Tells the daemon.
pub(super) fn run(config: &Path, What { what, cluster }: What) -> Result<(), Failure> {
    let request = match what.as_str() {
        "term" => Request::ForgetTerm { cluster },
        _ => Request::ForgetPooler { cluster, node: what },
    };
    let mut daemon = ask(config, &request)?;
    match daemon.answer()? {
        Answer::Done(text) => say(&format!("{text}\n")),
        other => Err(Failure::Failed(format!("the daemon's answer is strange: {other:?}"))),
    }
}
