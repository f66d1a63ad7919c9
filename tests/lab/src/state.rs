//! What a lab knows about itself, kept in its folder so that another process can look after it.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::network::Network;
use crate::process::ProcessId;
use crate::spec::Spec;

/// Name of the file in the lab's folder.
pub const STATE_FILE: &str = "lab.json";

/// Everything needed to look after a lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// The lab's folder.
    pub dir: PathBuf,
    /// How it was ordered.
    pub spec: Spec,
    /// Its addresses.
    pub network: Network,
    /// Its hosts, in the order they were made.
    pub hosts: Vec<Host>,
    /// The folder with PostgreSQL's programs.
    pub postgres_bin: PathBuf,
    /// The folder with Patroni's Python packages.
    pub patroni_packages: PathBuf,
    /// Can hosts be cut from each other? If not, why.
    pub cuts: Result<(), String>,
    /// The components that were started, as `host/component`.
    pub processes: BTreeMap<String, ProcessId>,
}

/// One host of the lab.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// What it is there for.
    pub role: HostRole,
    /// Its folder.
    pub folder: PathBuf,
}

/// What a host is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostRole {
    /// An etcd server.
    Etcd,
    /// A Consul server.
    Consul,
    /// A ZooKeeper server.
    ZooKeeper,
    /// Patroni and PostgreSQL.
    Member,
    /// A PgBouncer.
    Pooler,
}

/// A program on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Component {
    /// etcd.
    Etcd,
    /// Consul.
    Consul,
    /// ZooKeeper.
    ZooKeeper,
    /// Patroni (which starts PostgreSQL itself).
    Patroni,
    /// PgBouncer.
    PgBouncer,
    /// pgsquire.
    Agent,
}

impl Component {
    /// All there are.
    pub const ALL: [Self; 6] =
        [Self::Etcd, Self::Consul, Self::ZooKeeper, Self::Patroni, Self::PgBouncer, Self::Agent];

    /// Its name, as in log files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::Consul => "consul",
            Self::ZooKeeper => "zookeeper",
            Self::Patroni => "patroni",
            Self::PgBouncer => "pgbouncer",
            Self::Agent => "agent",
        }
    }
}

impl State {
    /// Reads the state of the lab in this folder.
    pub fn read(dir: &Path) -> Result<Self> {
        let file = dir.join(STATE_FILE);
        let text = fs::read_to_string(&file).with_context(|| format!("no lab in {}", dir.display()))?;
        serde_json::from_str(&text).with_context(|| format!("reading {}", file.display()))
    }

    /// Writes it, whole or not at all.
    pub fn write(&self) -> Result<()> {
        let (new, file) = (self.dir.join("lab.json.new"), self.dir.join(STATE_FILE));
        fs::write(&new, serde_json::to_vec_pretty(self)?)
            .and_then(|()| fs::rename(&new, &file))
            .with_context(|| format!("writing {}", file.display()))
    }

    /// The host with this name.
    pub fn host(&self, name: &str) -> Result<&Host> {
        let found = self.hosts.iter().find(|h| h.name == name);
        let Some(host) = found else {
            let names: Vec<&str> = self.hosts.iter().map(|h| h.name.as_str()).collect();
            bail!("the lab has no host `{name}`; it has {}", names.join(", "));
        };
        Ok(host)
    }

    /// The hosts of one kind.
    pub fn hosts_of(&self, role: HostRole) -> impl Iterator<Item = &Host> {
        self.hosts.iter().filter(move |h| h.role == role)
    }

    /// The servers of the store.
    pub fn stores(&self) -> impl Iterator<Item = &Host> {
        self.hosts.iter().filter(|h| h.role.is_store())
    }

    /// An address and the lab's port for what usually listens on `usual`.
    pub fn socket(&self, host: &Host, usual: u16) -> SocketAddrV4 {
        SocketAddrV4::new(host.address, self.network.port(usual))
    }

    /// The process of a component, if it was started.
    pub fn process(&self, host: &str, component: Component) -> Option<ProcessId> {
        self.processes.get(&key(host, component)).copied()
    }

    /// Does this host have an agent?
    pub fn has_agent(&self, host: &Host) -> bool {
        use crate::spec::Follow;
        let followed =
            |name: &str| self.spec.poolers.iter().any(|p| p.name == name && p.follow == Follow::Agent);
        self.spec.agent.is_some()
            && match host.role {
                HostRole::Etcd | HostRole::Consul | HostRole::ZooKeeper => false,
                HostRole::Member => self.spec.member_agents,
                HostRole::Pooler => followed(&host.name),
            }
    }
}

/// How a component's process is called in the state.
pub fn key(host: &str, component: Component) -> String {
    format!("{host}/{}", component.name())
}

impl Host {
    /// A file or folder of this host.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Where its PostgreSQL or PgBouncer has its unix socket.
    pub fn sockets(&self) -> PathBuf {
        self.folder.join("sockets")
    }

    /// The log of a component.
    pub fn log(&self, component: Component) -> PathBuf {
        self.folder.join(format!("{}.log", component.name()))
    }

    /// The last lines of a component's log, for error messages.
    pub fn log_tail(&self, component: Component, lines: usize) -> String {
        let text = fs::read(self.log(component)).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let mut tail: Vec<&str> = text.lines().rev().take(lines).collect();
        tail.reverse();
        tail.join("\n")
    }
}
