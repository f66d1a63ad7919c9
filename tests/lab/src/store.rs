//! The stores a lab can run: their servers, and how Patroni and the agents are told of them.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::consul;
use crate::etcd;
use crate::http::Http;
use crate::setup;
use crate::spec::{Spec, Store};
use crate::state::{Component, Host, HostRole, State};
use crate::zookeeper;

/// A store by the word that the agents' `dcs` has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
pub enum Dcs {
    /// etcd
    Etcd,
    /// Consul, one server
    Consul,
    /// ZooKeeper, one server
    Zookeeper,
    /// Patroni keeps its state in etcd, and the agents know its REST API only
    Patroni,
}

impl Dcs {
    /// The lab's store of this kind, with so many servers where it is etcd.
    pub fn store(self, etcd: usize) -> Store {
        match self {
            Self::Etcd => Store::Etcd(etcd),
            Self::Consul => Store::Consul,
            Self::Zookeeper => Store::ZooKeeper,
            Self::Patroni => Store::RestOnly(etcd),
        }
    }
}

impl Store {
    /// What its servers are.
    pub fn role(&self) -> HostRole {
        match self {
            Self::Etcd(_) | Self::RestOnly(_) => HostRole::Etcd,
            Self::Consul => HostRole::Consul,
            Self::ZooKeeper => HostRole::ZooKeeper,
        }
    }

    /// How many servers it has.
    pub fn servers(&self) -> usize {
        match self {
            Self::Etcd(count) | Self::RestOnly(count) => *count,
            Self::Consul | Self::ZooKeeper => 1,
        }
    }

    /// Have the agents a place in it for keys of their own? Without one they cannot drain, and their hooks return at once.
    pub fn has_agents_keys(&self) -> bool {
        !matches!(self, Self::RestOnly(_))
    }

    /// What each of its servers listens on, usually.
    pub(crate) fn ports(&self) -> &'static [u16] {
        match self.role() {
            HostRole::Consul => &[consul::HTTP_PORT, consul::SERF_PORT, consul::SERVER_PORT],
            HostRole::ZooKeeper => &[zookeeper::CLIENT_PORT],
            _ => &[etcd::CLIENT_PORT, etcd::PEER_PORT],
        }
    }

    /// For people.
    pub fn label(&self) -> &'static str {
        match self {
            Self::Etcd(_) => "etcd",
            Self::Consul => "Consul",
            Self::ZooKeeper => "ZooKeeper",
            Self::RestOnly(_) => "none for the agents (REST only), etcd for Patroni",
        }
    }
}

/// Fails for a plan that cannot be.
pub(crate) fn check(spec: &Spec) -> Result<()> {
    ensure!(
        spec.store.servers() > 0,
        "the lab's {} needs a server at least",
        spec.store.role().component().name()
    );
    if spec.hooks && !spec.store.has_agents_keys() {
        bail!(
            "agents without a store cannot drain: leave the hooks out, or take another store than `patroni`"
        );
    }
    Ok(())
}

/// The copies of what the store's servers run.
pub(crate) fn copy_programs(state: &State) -> Result<()> {
    match state.spec.store {
        Store::Consul => setup::copy_consul(&consul::program(state)),
        Store::Etcd(_) | Store::RestOnly(_) | Store::ZooKeeper => Ok(()),
    }
}

/// Writes the configuration of a store's server; a host that is none has none.
pub(crate) fn configure(state: &State, host: &Host) -> Result<()> {
    match host.role {
        HostRole::Consul => consul::configure(state, host),
        HostRole::ZooKeeper => zookeeper::configure(state, host),
        HostRole::Etcd | HostRole::Member | HostRole::Pooler => Ok(()),
    }
}

/// Fails unless the server of this host answers as a healthy one does.
pub(crate) async fn answers(state: &State, host: &Host, http: &Http) -> Result<()> {
    match host.role {
        HostRole::Consul => consul::answers(state, host, http).await,
        HostRole::ZooKeeper => zookeeper::answers(state, host).await,
        _ => etcd::answers(state, host, http).await,
    }
}

/// How long one question to a server may take while it starts.
pub(crate) const QUESTION: Duration = Duration::from_secs(1);

/// Where clients reach the servers.
fn endpoints(state: &State) -> Vec<String> {
    let port = state.spec.store.ports()[0];
    state.stores().map(|h| state.socket(h, port).to_string()).collect()
}

/// The store's block in Patroni's configuration.
pub(crate) fn patroni_block(state: &State) -> String {
    let section = match state.spec.store.role() {
        HostRole::Consul => return format!("consul:\n  host: {}\n", endpoints(state).join(",")),
        HostRole::ZooKeeper => "zookeeper",
        _ => "etcd3",
    };
    let lines: String = endpoints(state).into_iter().map(|e| format!("  - '{e}'\n")).collect();
    format!("{section}:\n  hosts:\n{lines}")
}

/// The store's lines in the agents' `[[cluster]]` table.
pub(crate) fn agent_lines(state: &State) -> String {
    let quoted = |scheme: &str| {
        let all: Vec<String> = endpoints(state).iter().map(|e| format!("\"{scheme}{e}\"")).collect();
        format!("endpoints = [{}]", all.join(", "))
    };
    match state.spec.store {
        Store::Etcd(_) => format!("dcs = \"etcd\"\n{}", quoted("http://")),
        Store::Consul => format!("dcs = \"consul\"\n{}", quoted("http://")),
        Store::ZooKeeper => format!("dcs = \"zookeeper\"\n{}", quoted("")),
        Store::RestOnly(_) => "dcs = \"patroni\"".into(),
    }
}

impl HostRole {
    /// Is it a server of the store?
    pub fn is_store(self) -> bool {
        matches!(self, Self::Etcd | Self::Consul | Self::ZooKeeper)
    }

    /// The program a host of this kind is there for.
    pub fn component(self) -> Component {
        match self {
            Self::Etcd => Component::Etcd,
            Self::Consul => Component::Consul,
            Self::ZooKeeper => Component::ZooKeeper,
            Self::Member => Component::Patroni,
            Self::Pooler => Component::PgBouncer,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_that_cannot_be_is_refused() {
        let hooked = |store| Spec { store, hooks: true, ..Spec::default() };
        for store in [Store::Etcd(1), Store::Consul, Store::ZooKeeper] {
            check(&hooked(store)).expect("a plan");
        }
        let error = check(&hooked(Store::RestOnly(1))).expect_err("no place to drain").to_string();
        assert!(error.contains("leave the hooks out"), "{error}");
        let error =
            check(&Spec { store: Store::Etcd(0), ..Spec::default() }).expect_err("no server").to_string();
        assert!(error.contains("etcd"), "{error}");
    }
}
