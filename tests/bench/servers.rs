//! Real servers of each store with a cluster in it, one of them followed and another one written to.

use crate::consul_server;
use crate::etcd_server;
use crate::patronis::{keys, leader_key};
use crate::processes::until;
use crate::store::{Access, RealStore};
use crate::zookeeper_server::{Ensemble, write};
use anyhow::{Context, Result};
use etcd_client::PutOptions;
use nix::sys::signal::Signal;
use pgsquire::dcs::StoreConfig;
use pgsquire_lab::ProcessId;

/// A store with its servers.
pub trait Servers: Sized {
    /// What it is called.
    const NAME: &'static str;
    /// How many servers there must be for one to be frozen.
    const SEVERAL: usize;
    /// A decision takes at most so long after the write, in ms.
    const LIMIT: f64;

    /// Starts one server, or [`Servers::SEVERAL`], and puts the keys of the cluster.
    async fn start(servers: usize) -> Result<Self>;
    /// How an agent reaches all of them: the first one is not needed by the others, and not the one that is written to.
    fn store(&self) -> StoreConfig;
    /// Has this member hold the leader key. Comes back when the store has it.
    async fn lead(&mut self, member: &str) -> Result<()>;
    /// Sends a signal to the server that is followed first.
    fn signal_followed(&self, signal: Signal);
}

/// etcd.
pub struct Etcd {
    cluster: etcd_server::Cluster,
    writer: etcd_client::Client,
    lease: i64,
    /// Numbers of the servers as they are followed.
    order: Vec<usize>,
}

impl Etcd {
    /// The process of the server that is followed first.
    pub fn process(&self) -> Result<ProcessId> {
        let process = self.cluster.nodes[self.order[0]].process.as_ref();
        process
            .and_then(|process| ProcessId::of(process.pid().as_raw()))
            .context("etcd has ended: look whether the disk is full, and run it again")
    }
}

impl Servers for Etcd {
    const NAME: &'static str = "etcd";
    const SEVERAL: usize = 3;
    const LIMIT: f64 = 10.0;

    async fn start(servers: usize) -> Result<Self> {
        let cluster = etcd_server::Cluster::start(servers).await;
        cluster.put(&keys()).await;
        // Frozen is one whose loss needs no election: that would be a figure about etcd.
        let mut leads = 0;
        for n in 0..servers {
            let status = cluster.client(n).await.status().await?;
            if status.header().is_some_and(|header| header.member_id() == status.leader()) {
                leads = n;
            }
        }
        let mut order: Vec<usize> = (0..servers).filter(|n| *n != leads).collect();
        order.push(leads);
        let mut writer = cluster.client(leads).await;
        let lease = writer.lease_grant(3600, None).await?.id();
        Ok(Etcd { cluster, writer, lease, order })
    }

    fn store(&self) -> StoreConfig {
        let endpoints = self.cluster.endpoints(&self.order);
        etcd_server::Cluster::config(Access { endpoints, ..Access::default() })
    }

    async fn lead(&mut self, member: &str) -> Result<()> {
        let options = PutOptions::new().with_lease(self.lease);
        self.writer.put(leader_key(), member, Some(options)).await?;
        Ok(())
    }

    fn signal_followed(&self, signal: Signal) {
        self.cluster.signal(self.order[0], signal);
    }
}

/// Consul. The server is written to; followed is an agent that leads to it, or the server itself when it is alone.
pub struct Consul {
    consul: consul_server::Consul,
    writer: consul_server::Api,
    session: String,
    order: Vec<usize>,
}

impl Servers for Consul {
    const NAME: &'static str = "Consul";
    const SEVERAL: usize = 2;
    const LIMIT: f64 = 15.0;

    async fn start(servers: usize) -> Result<Self> {
        let consul = consul_server::Consul::start(servers - 1).await;
        consul.put(&keys()).await;
        let writer = consul.api(0);
        let session = writer.session("3600s").await;
        Ok(Consul { consul, writer, session, order: (0..servers).rev().collect() })
    }

    fn store(&self) -> StoreConfig {
        let endpoints = self.consul.endpoints(&self.order);
        consul_server::Consul::config(Access { endpoints, ..Access::default() })
    }

    async fn lead(&mut self, member: &str) -> Result<()> {
        self.writer.acquire(leader_key().trim_start_matches('/'), member, &self.session).await;
        Ok(())
    }

    fn signal_followed(&self, signal: Signal) {
        self.consul.signal(self.order[0], signal);
    }
}

/// ZooKeeper.
pub struct ZooKeeper {
    ensemble: Ensemble,
    writer: zookeeper_client::Client,
}

impl Servers for ZooKeeper {
    const NAME: &'static str = "ZooKeeper";
    const SEVERAL: usize = 3;
    const LIMIT: f64 = 15.0;

    async fn start(servers: usize) -> Result<Self> {
        let ensemble = Ensemble::start(servers).await;
        ensemble.put(&keys()).await;
        // The first one to start never leads: the highest number of those that are there is chosen.
        let writer = ensemble.client(servers - 1).await;
        write(&writer, &leader_key(), "nobody").await;
        Ok(ZooKeeper { ensemble, writer })
    }

    fn store(&self) -> StoreConfig {
        let all: Vec<usize> = (0..self.ensemble.nodes.len()).collect();
        self.ensemble.store(&all)
    }

    async fn lead(&mut self, member: &str) -> Result<()> {
        let (writer, key) = (&self.writer, leader_key());
        until("ZooKeeper takes a write", async || writer.set_data(&key, member.as_bytes(), None).await.ok())
            .await;
        Ok(())
    }

    fn signal_followed(&self, signal: Signal) {
        self.ensemble.signal(0, signal);
    }
}
