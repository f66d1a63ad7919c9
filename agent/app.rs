//! Wiring: the one place where tasks are begun, and where all of them are awaited.

use crate::config::Settings;
use crate::page::Pages;
use crate::{clock, control, http, journal, systemd};
use anyhow::Context;
use pgsquire_core::status::Status;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// When a listener cannot be bound.
pub fn run(settings: Settings, config_path: PathBuf) -> anyhow::Result<()> {
    tracing::info!("configuration: {}", config_path.display());
    tokio::runtime::Runtime::new().context("cannot start the runtime")?.block_on(serve(settings))
}

async fn serve(settings: Settings) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let inherited = systemd::inherited_listener();
    let web = http::bind(&settings.http.listen, inherited).await?;
    let socket = control::bind(&settings.control_socket)?;
    let empty = |at| {
        Arc::new(Status {
            at,
            node: settings.core.node.clone(),
            mode: settings.core.mode,
            clusters: Vec::new(),
            local: None,
            poolers: Vec::new(),
            contradictions: Vec::new(),
        })
    };
    let (status, shown) = watch::channel(empty(clock::now()));
    let (_notes, notes) = watch::channel(Vec::new());
    let (journal, writer) = journal::open(&settings.state_dir);
    let (events, mut facts) = mpsc::channel(64);
    let pages = Pages::new(shown, notes, journal.clone());
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn_blocking(move || writer.run());
    tasks.spawn(http::serve(web, pages.clone(), stop.clone()));
    tasks.spawn(control::serve(socket, control::Context::new(pages, events.clone()), stop.clone()));
    let folder = settings.state_dir.clone();
    tasks.spawn(journal::callbacks::import(folder, journal.clone(), events, stop.clone()));
    systemd::ready();
    journal.record("agent", &settings.core.node, "started");
    let mut term = signal(SignalKind::terminate())?;
    let mut tick = tokio::time::interval(Duration::from_millis(500));
    loop {
        tokio::select! {
            _ = term.recv() => break,
            _ = facts.recv() => {}
            _ = tick.tick() => { status.send_replace(empty(clock::now())); }
        }
    }
    systemd::stopping();
    stop.cancel();
    journal.close();
    while tasks.join_next().await.is_some() {}
    Ok(())
}
