//! STAND-IN until the branch `store` is merged: take its version of this file. It watches nothing.

use crate::report::Report;
use pgsquire_core::effect::Effect;
use pgsquire_core::event::Event;
use std::path::PathBuf;
use tokio::sync::mpsc::{Receiver, Sender};
use tokio_util::sync::CancellationToken;

/// What the watcher must know.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// Name of the cluster in our words.
    pub cluster: String,
    /// Connection parameters and the file of the password.
    pub login: Option<(String, Option<PathBuf>)>,
}

/// Takes nothing until `stop`.
pub async fn run(
    _config: WorkerConfig,
    mut orders: Receiver<Effect>,
    events: Sender<Event>,
    stop: CancellationToken,
) {
    Report::new(events, stop.clone()).refuse(&mut orders).await;
    stop.cancelled().await;
}
