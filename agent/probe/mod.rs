//! The server that leads: one connection that is kept to it, and what that says.
//!
//! The signal that matters is a reset followed by a refused connect: clients can wait instead of fail if it is told
//! within milliseconds. So nothing pauses between the end of a connection and the next one. A login proves more than a
//! bare connection: a frozen postmaster still completes TCP connects from its backlog.

mod ping;
mod tcp;
mod watch;

use crate::clock;
use crate::report::{NobodyListens, Report};
use crate::session::Target;
use pgsquire_core::effect::{Effect, Order};
use pgsquire_core::event::{Event, Outcome};
use pgsquire_core::topology::Endpoint;
use std::future::pending;
use std::path::PathBuf;
use tokio::sync::mpsc::{Receiver, Sender};
use tokio_util::sync::CancellationToken;
use watch::Watch;

/// What the worker must know.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// Name of the cluster.
    pub cluster: String,
    /// How to log in; none: a bare TCP connection.
    pub login: Option<Login>,
}

/// How to log in.
#[derive(Debug, Clone)]
pub struct Login {
    /// Connection string; its hosts do not matter.
    pub conninfo: String,
    /// Holds the password; read again for each connection.
    pub password_file: Option<PathBuf>,
}

/// Watches the server that it was told to watch last, until `stop`, or until nobody listens.
pub async fn run(
    config: WorkerConfig,
    mut orders: Receiver<Effect>,
    events: Sender<Event>,
    stop: CancellationToken,
) {
    let report = Report::new(events, stop.clone());
    let mut server: Option<Endpoint> = None;
    loop {
        // Only an order for another server ends this: an order for the same one changes nothing.
        let next = tokio::select! {
            biased;
            () = stop.cancelled() => return report.refuse(&mut orders).await,
            next = next_server(&config.cluster, server.as_ref(), &mut orders, &report) => next,
            gone = watch(&config, server.as_ref(), &report) => Err(gone),
        };
        match next {
            Ok(next) => server = next,
            Err(NobodyListens) => return,
        }
    }
}

/// Answers orders until one names another server.
async fn next_server(
    cluster: &str,
    server: Option<&Endpoint>,
    orders: &mut Receiver<Effect>,
    report: &Report,
) -> Result<Option<Endpoint>, NobodyListens> {
    loop {
        let Some(Effect { id, order, .. }) = orders.recv().await else { return Err(NobodyListens) };
        let started = clock::now();
        match order {
            Order::WatchServer { cluster: whose, endpoint } if whose == cluster => {
                report.done(id, started, Outcome::Done).await?;
                if endpoint.as_ref() != server {
                    return Ok(endpoint);
                }
            }
            other => {
                let why = format!("this is no order for the probe of cluster {cluster}: {other:?}");
                report.done(id, started, Outcome::Failed { why }).await?;
            }
        }
    }
}

/// Watches one server until nobody listens.
async fn watch(config: &WorkerConfig, server: Option<&Endpoint>, report: &Report) -> NobodyListens {
    let Some(endpoint) = server else { return pending().await };
    let login = config.login.as_ref().map(|login| Target {
        what: format!("the server at {endpoint}"),
        conninfo: login.conninfo.clone(),
        default_dbname: "postgres".into(),
        password_file: login.password_file.clone(),
    });
    let (cluster, endpoint) = (config.cluster.clone(), endpoint.clone());
    Watch::new(cluster, endpoint, login, report.clone()).run().await
}
