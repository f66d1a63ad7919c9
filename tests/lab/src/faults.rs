//! What goes wrong: processes killed or frozen, hosts cut off.

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use std::time::Duration;

use crate::lab::Lab;
use crate::patroni;
use crate::process::{self, ProcessId};
use crate::state::Component;
use crate::wait;

/// Which part of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Part {
    /// Patroni alone.
    Patroni,
    /// PostgreSQL alone, with all its processes.
    Postgres,
    /// Patroni and PostgreSQL.
    Both,
    /// The agent's own process: what it has started (the guard of a pause) lives on.
    Agent,
    /// PgBouncer alone.
    PgBouncer,
    /// The server of the store alone.
    Store,
    /// Everything on the host.
    Host,
}

impl Lab {
    /// SIGKILL, and returns when the processes are gone. Patroni is hit before PostgreSQL, so that it cannot react.
    pub async fn kill(&mut self, host: &str, part: Part) -> Result<()> {
        // What is frozen starts nothing any more: else a backend that is just being forked would survive its server and
        // hold its shared memory for good. An agent is to be hit at a certain moment, and is one process.
        if part != Part::Agent {
            signal_all(&self.processes_of(host, part)?, Signal::SIGSTOP)?;
        }
        let victims = self.processes_of(host, part)?;
        signal_all(&victims, Signal::SIGKILL)?;
        let gone = wait::until(Duration::from_secs(10), || victims.iter().all(|p| !p.alive())).await;
        ensure!(gone, "{part:?} on {host} does not end after SIGKILL");
        let living: Vec<_> =
            self.state.processes.iter().filter(|(_, p)| p.alive()).map(|(k, _)| k.clone()).collect();
        self.state.processes.retain(|key, _| living.contains(key));
        self.state.write()
    }

    /// SIGSTOP to every process of the part: it keeps its connections and says nothing.
    pub fn freeze(&self, host: &str, part: Part) -> Result<()> {
        signal_all(&self.processes_of(host, part)?, Signal::SIGSTOP)
    }

    /// SIGCONT to what was frozen.
    pub fn thaw(&self, host: &str, part: Part) -> Result<()> {
        signal_all(&self.processes_of(host, part)?, Signal::SIGCONT)
    }

    /// Starts everything on a host that does not run, after a kill.
    pub fn start_host(&mut self, host: &str) -> Result<()> {
        let found = self.state.host(host)?.clone();
        let mut components = vec![found.role.component()];
        if self.state.has_agent(&found) {
            components.push(Component::Agent);
        }
        for component in components {
            if !self.state.process(host, component).is_some_and(|p| p.alive()) {
                self.start(host, component)?;
            }
        }
        Ok(())
    }

    fn processes_of(&self, host: &str, part: Part) -> Result<Vec<ProcessId>> {
        let found = self.state.host(host)?;
        let component = |c: Component| {
            let process = self.state.process(host, c).filter(ProcessId::alive);
            process.map(|p| p.tree()).with_context(|| format!("{} does not run on {host}", c.name()))
        };
        let server = || {
            let process = patroni::postmaster(found).map(|p| p.tree());
            process.with_context(|| format!("PostgreSQL does not run on {host}"))
        };
        let mut processes = match part {
            Part::Patroni => component(Component::Patroni)?,
            Part::Postgres => server()?,
            Part::Both => [component(Component::Patroni)?, server()?].concat(),
            Part::Agent => {
                let process = self.state.process(host, Component::Agent).filter(ProcessId::alive);
                vec![process.with_context(|| format!("no agent runs on {host}"))?]
            }
            Part::PgBouncer => component(Component::PgBouncer)?,
            Part::Store => {
                ensure!(found.role.is_store(), "{host} is no server of the store");
                component(found.role.component())?
            }
            Part::Host => process::marked(&self.state.dir, Some(host)),
        };
        if part == Part::Patroni {
            // The server may be a child of Patroni or not; it is not meant here.
            let server = patroni::postmaster(found).map(|p| p.tree()).unwrap_or_default();
            processes.retain(|p| !server.contains(p));
        }
        if processes.is_empty() {
            bail!("nothing runs on {host}");
        }
        Ok(processes)
    }

    /// The host is unreachable for everybody, and reaches nobody: the network of the lab drops its traffic.
    pub fn isolate(&self, host: &str) -> Result<()> {
        self.network_can_be_cut()?;
        self.state.network.isolate(self.address(host)?)
    }

    /// Two hosts do not reach each other.
    pub fn cut(&self, one: &str, other: &str) -> Result<()> {
        self.network_can_be_cut()?;
        self.state.network.cut(self.address(one)?, self.address(other)?)
    }

    /// A host does not reach the store; it reaches everybody else.
    pub fn cut_from_store(&self, host: &str) -> Result<()> {
        self.state.stores().try_for_each(|store| self.cut(host, &store.name))
    }

    /// Patroni and PostgreSQL of a member do not reach the store; its agent and everybody else do.
    pub fn cut_patroni_from_store(&self, member: &str) -> Result<()> {
        self.network_can_be_cut()?;
        let from = self.address(member)?;
        let mut stores = self.state.stores();
        stores.try_for_each(|store| self.state.network.cut_without_agent(from, store.address))
    }

    /// SIGKILL to so many servers of the store that the rest is no majority; says which.
    pub async fn kill_quorum(&mut self) -> Result<Vec<String>> {
        let mut names: Vec<String> = self.state.stores().map(|h| h.name.clone()).collect();
        names.truncate(names.len().div_ceil(2));
        for name in &names {
            self.kill(name, Part::Store).await?;
        }
        Ok(names)
    }

    /// Ends all cuts.
    pub fn heal(&self) -> Result<()> {
        self.network_can_be_cut()?;
        self.state.network.heal()
    }

    fn network_can_be_cut(&self) -> Result<()> {
        match &self.state.cuts {
            Ok(()) => Ok(()),
            Err(why) => bail!("hosts cannot be cut from each other here: {why}"),
        }
    }
}

fn signal_all(processes: &[ProcessId], signal: Signal) -> Result<()> {
    processes.iter().try_for_each(|p| p.signal(signal))
}
