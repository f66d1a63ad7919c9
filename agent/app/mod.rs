//! The whole daemon put together. The only place that spawns; every task is awaited, and a task that ends unasked ends
//! the process: systemd starts it again.

mod workers;

use crate::config::{self, Settings};
use crate::control::hooks::Hooks;
use crate::driver::{self, Ends, Hands};
use crate::page::Pages;
use crate::{clock, control, files, http, journal, state, systemd, telemetry, watcher};
use anyhow::{Context, anyhow};
use pgsquire_core::agent::Agent;
use pgsquire_core::config::Fence;
use pgsquire_core::event::Event;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{self, Sender};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use workers::Workers;

/// Facts that may wait for the driver.
const EVENTS: usize = 1024;
/// What is under way at the end gets this long.
const GRACE: Duration = Duration::from_secs(10);
/// The core has this long to hear that we stop, and to tell the hooks that wait.
const FAREWELL: Duration = Duration::from_secs(1);

/// A named task: its end is an error unless we are stopping.
type Crew = JoinSet<&'static str>;

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// When a listener cannot be bound, the state folder cannot be used, or a task ends unasked.
pub fn run(settings: Settings, config_path: PathBuf, filter: telemetry::Filter) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("pgsquire")
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(daemon(settings, config_path, filter))
}

async fn daemon(settings: Settings, config_path: PathBuf, filter: telemetry::Filter) -> anyhow::Result<()> {
    let web = http::bind(&settings.http.listen, systemd::inherited_listener()).await?;
    let socket = control::bind(&settings.control_socket)?;
    files::private_folder(&settings.state_dir).context("[node] state_dir")?;
    let (journal, writer) = journal::open(&settings.state_dir);
    let (restored, troubles) = state::load_restored(&settings.state_dir);
    let agent = Agent::new(settings.core.clone(), restored.clone(), clock::now());

    let (status, shown) = watch::channel(Arc::new(agent.status(clock::now())));
    let (notes, noted) = watch::channel(troubles.clone());
    let (events, facts) = mpsc::channel(EVENTS);
    let (new_hands, hands) = mpsc::channel(1);
    let pages = Pages::new(shown, noted, journal.clone());
    let stop = CancellationToken::new();
    let mut workers = Workers::spawn(&settings, &restored.terms, &events);
    let hooks = Hooks::default();
    hooks.set_strict(settings.core.switch.fence == Fence::Strict);
    let stopping_heard = CancellationToken::new();
    let ends = Ends {
        events: facts,
        hands,
        status,
        journal: journal.clone(),
        hooks: hooks.clone(),
        stopping_heard: stopping_heard.clone(),
    };

    let mut crew = Crew::new();
    crew.spawn_blocking(move || {
        writer.run();
        "the flight recorder's writer"
    });
    let import =
        journal::callbacks::import(settings.state_dir.clone(), journal.clone(), events.clone(), stop.clone());
    add(&mut crew, "the reader of kept callbacks", import);
    add(&mut crew, "the driver", driver::run(agent, workers.take_hands(), ends, stop.clone()));
    add(&mut crew, "the HTTP listener", http::serve(web, pages.clone(), stop.clone()));
    let context = control::Context::new(pages, events.clone(), hooks.clone());
    add(&mut crew, "the control socket", control::serve(socket, context, stop.clone()));
    for trouble in &troubles {
        tracing::warn!("{trouble}");
    }
    let started = format!("version {} runs with {}", env!("CARGO_PKG_VERSION"), config_path.display());
    tracing::info!(node = %settings.core.node, "{started}");
    journal.record("agent", &settings.core.node, &started);
    // Before READY=1: who waits for it may stop us at once, and must find somebody who listens.
    let signals = Signals::listen()?;
    systemd::ready();

    let mut reload =
        Reload { config_path, settings, events, hands: new_hands, hooks, notes, troubles, filter };
    let ended = supervise(&mut crew, &mut workers, &mut reload, signals).await;
    systemd::stopping();
    // First the core, which lets go of what it holds and answers the hooks that wait; then those who do it; then the rest.
    let farewell = async {
        if reload.events.send(Event::Stopping).await.is_ok() {
            stopping_heard.cancelled().await;
            reload.hooks.all_left().await;
        }
    };
    if tokio::time::timeout(FAREWELL, farewell).await.is_err() {
        let heard = stopping_heard.is_cancelled();
        let who =
            if heard { "a hook of Patroni still waits" } else { "the driver did not hear that we stop" };
        tracing::warn!("{who} after {} s: it is left alone", FAREWELL.as_secs());
    }
    workers.end().await;
    journal.record("agent", &reload.settings.core.node, "stopped");
    stop.cancel();
    journal.close();
    let all = async { while crew.join_next().await.is_some() {} };
    if tokio::time::timeout(GRACE, all).await.is_err() {
        tracing::warn!("some tasks did not end within {} s", GRACE.as_secs());
    }
    ended
}

fn add(crew: &mut Crew, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
    crew.spawn(async move {
        task.await;
        name
    });
}

/// What we are told from outside.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> anyhow::Result<Self> {
        let listen = |kind, name| signal(kind).with_context(|| format!("cannot listen for {name}"));
        Ok(Signals {
            terminate: listen(SignalKind::terminate(), "SIGTERM")?,
            interrupt: listen(SignalKind::interrupt(), "SIGINT")?,
            hangup: listen(SignalKind::hangup(), "SIGHUP")?,
        })
    }
}

/// Waits for a signal, a changed file, or the end of a task.
async fn supervise(
    crew: &mut Crew,
    workers: &mut Workers,
    reload: &mut Reload,
    mut signals: Signals,
) -> anyhow::Result<()> {
    let mut changes = watcher::Watcher::new(&reload.watched());
    loop {
        tokio::select! {
            _ = signals.terminate.recv() => { tracing::info!("SIGTERM: stopping"); return Ok(()) }
            _ = signals.interrupt.recv() => { tracing::info!("SIGINT: stopping"); return Ok(()) }
            _ = signals.hangup.recv() => {
                if reload.again(workers).await {
                    changes = watcher::Watcher::new(&reload.watched());
                }
            }
            path = changes.next() => {
                if path == reload.config_path {
                    if reload.again(workers).await {
                        changes = watcher::Watcher::new(&reload.watched());
                    }
                } else {
                    reload.hint_files(&path).await;
                }
            }
            ended = crew.join_next() => return Err(unasked(ended)),
            ended = workers.crew.join_next(), if !workers.crew.is_empty() => return Err(unasked(ended)),
        }
    }
}

fn unasked(ended: Option<Result<&'static str, tokio::task::JoinError>>) -> anyhow::Error {
    match ended {
        Some(Ok(name)) => anyhow!("{name} ended unasked"),
        Some(Err(e)) => anyhow!("a task failed: {e}"),
        None => anyhow!("all tasks ended unasked"),
    }
}

/// What a new configuration changes.
struct Reload {
    config_path: PathBuf,
    settings: Settings,
    events: Sender<Event>,
    hands: Sender<Hands>,
    hooks: Hooks,
    notes: watch::Sender<Vec<String>>,
    /// What was wrong with the state folder at the start.
    troubles: Vec<String>,
    filter: telemetry::Filter,
}

impl Reload {
    /// Files whose change matters.
    fn watched(&self) -> Vec<PathBuf> {
        let inis = self.settings.poolers.iter().map(|pooler| pooler.ini.clone());
        inis.chain([self.config_path.clone()]).collect()
    }

    /// Reads the configuration again: all errors, or the new one. Returns whether it is in force.
    async fn again(&mut self, workers: &mut Workers) -> bool {
        let loaded = config::load(&self.config_path);
        let new = match loaded {
            Ok(loaded) => loaded.settings,
            Err(e) => {
                tracing::error!("the configuration stays as it was: {e}");
                self.note(vec![format!(
                    "the configuration file is refused, the old one is in force: {}",
                    first_line(&e)
                )]);
                return false;
            }
        };
        let restart = needs_restart(&self.settings, &new);
        self.note(
            restart.iter().map(|what| format!("{what} changed: restart the agent to use it")).collect(),
        );
        if new == self.settings {
            return false;
        }
        systemd::reloading();
        workers.end().await;
        let _ = self.filter.set(&new.telemetry.log);
        self.hooks.set_strict(new.core.switch.fence == Fence::Strict);
        let (restored, _) = state::load_restored(&self.settings.state_dir);
        *workers = Workers::spawn(&new, &restored.terms, &self.events);
        let _ = self.events.send(Event::Configured(new.core.clone())).await;
        let _ = self.hands.send(workers.take_hands()).await;
        self.settings = new;
        systemd::ready();
        tracing::info!("a new configuration is in force");
        true
    }

    /// What the operator should know, besides what was said at the start.
    fn note(&self, more: Vec<String>) {
        for line in &more {
            tracing::warn!("{line}");
        }
        self.notes.send_replace(self.troubles.iter().cloned().chain(more).collect());
    }

    async fn hint_files(&self, path: &Path) {
        for pooler in self.settings.poolers.iter().filter(|pooler| pooler.ini == path) {
            let hint = pgsquire_core::event::Hint::FilesChanged { pooler: pooler.name.clone() };
            let _ = self.events.send(Event::Hinted(hint)).await;
        }
    }
}

fn first_line(error: &config::LoadError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

/// Settings that only a restart brings into force.
fn needs_restart(old: &Settings, new: &Settings) -> Vec<&'static str> {
    let mut list = Vec::new();
    if old.state_dir != new.state_dir {
        list.push("[node] state_dir");
    }
    if old.control_socket != new.control_socket {
        list.push("[control] socket");
    }
    if old.http != new.http {
        list.push("[http]");
    }
    list
}
