//! The crew that has to do with the outside: one worker per outside thing. A part of `app`, and so the other half of the
//! only place that spawns.

use super::{Crew, GRACE, add};
use crate::config::{self, ClusterSettings, MembersSettings, Settings, Store};
use crate::driver::Hands;
use crate::{dcs, patroni, pgbouncer, postgres, probe, state};
use pgsquire_core::config::{ClusterConfig, Route};
use pgsquire_core::effect::Effect;
use pgsquire_core::event::Event;
use std::collections::BTreeMap;
use tokio::sync::mpsc::{self, Receiver, Sender};
use tokio_util::sync::CancellationToken;

/// Orders that may wait for one worker.
const ORDERS: usize = 32;

/// The workers of one configuration. A new configuration gets new ones, after the old ones have brought to an end what
/// they were doing.
pub(super) struct Workers {
    /// Nobody in it ends before [`Workers::end`] unless something is wrong.
    pub crew: Crew,
    stop: CancellationToken,
    hands: Hands,
}

impl Workers {
    /// Spawns all that the settings ask for.
    pub fn spawn(
        settings: &Settings,
        terms: &BTreeMap<String, pgsquire_core::wal::Term>,
        events: &Sender<Event>,
    ) -> Self {
        let mut workers =
            Workers { crew: Crew::new(), stop: CancellationToken::new(), hands: Hands::default() };
        for (cluster, core) in settings.clusters.iter().zip(&settings.core.clusters) {
            workers.follow(cluster, core, events);
            // Readers that may fall back to the primary feel its loss as well.
            if settings.core.routes_into(&cluster.name).any(Route::is_write) {
                workers.watch_servers(cluster, events);
            }
        }
        if let Some(patroni) = &settings.patroni {
            let (orders, inbox) = mpsc::channel(ORDERS);
            workers.hands.local_patroni = Some(orders);
            workers.ask_members("the asker of the local Patroni", &patroni.tls, inbox, events);
        }
        if let Some(postgres) = &settings.postgres {
            let (orders, inbox) = mpsc::channel(ORDERS);
            let config = postgres::WorkerConfig {
                conninfo: postgres.conninfo.clone(),
                password_file: postgres.password_file.clone(),
            };
            workers.hands.postgres = Some(orders);
            workers.add(
                "the prober of PostgreSQL",
                postgres::run(config, inbox, events.clone(), workers.stop.clone()),
            );
        }
        let (orders, inbox) = mpsc::channel(ORDERS);
        let config = state::WorkerConfig { state_dir: settings.state_dir.clone(), terms: terms.clone() };
        workers.hands.state = Some(orders);
        workers.add(
            "the keeper of the state folder",
            state::run(config, inbox, events.clone(), workers.stop.clone()),
        );
        for pooler in &settings.poolers {
            let (orders, inbox) = mpsc::channel(ORDERS);
            let config = pgbouncer::WorkerConfig {
                pooler: pooler.name.clone(),
                ini: pooler.ini.clone(),
                cwd: None,
                console: pooler.console.clone(),
                password_file: pooler.password_file.clone(),
                state_dir: settings.state_dir.clone(),
            };
            workers.hands.poolers.insert(pooler.name.clone(), orders);
            workers.add(
                "a pooler's worker",
                pgbouncer::run(config, inbox, events.clone(), workers.stop.clone()),
            );
        }
        workers
    }

    fn add(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        add(&mut self.crew, name, task);
    }

    fn follow(&mut self, cluster: &ClusterSettings, core: &ClusterConfig, events: &Sender<Event>) {
        match store(cluster) {
            Ok(store) => self.follow_store(cluster, store, events),
            Err(MembersSettings { pollers }) => self.follow_members(cluster, core, *pollers, events),
        }
        let (orders, inbox) = mpsc::channel(ORDERS);
        self.hands.members.insert(cluster.name.clone(), orders);
        self.ask_members("the asker of a cluster's members", &cluster.tls, inbox, events);
    }

    /// Nobody hears of other agents there, so nobody says anything either.
    fn follow_members(
        &mut self,
        cluster: &ClusterSettings,
        core: &ClusterConfig,
        pollers: u32,
        events: &Sender<Event>,
    ) {
        let (orders, inbox) = mpsc::channel(ORDERS);
        let config = dcs::rest::WorkerConfig {
            cluster: cluster.name.clone(),
            scope: cluster.scope.clone(),
            hosts: core.patroni_hosts.clone(),
            pollers,
            max_fact_age: core.max_fact_age,
            tls: rest_tls(&cluster.tls),
        };
        self.hands.stores.insert(cluster.name.clone(), orders);
        self.add(
            "the follower of a cluster's members",
            dcs::rest::run(config, inbox, events.clone(), self.stop.clone()),
        );
    }

    fn follow_store(&mut self, cluster: &ClusterSettings, store: dcs::StoreConfig, events: &Sender<Event>) {
        let (orders, inbox) = mpsc::channel(ORDERS);
        let config =
            |prefix| dcs::WorkerConfig { cluster: cluster.name.clone(), prefix, store: store.clone() };
        let (namespace, scope, group) = (&cluster.namespace, &cluster.scope, cluster.group);
        let theirs = config(dcs::prefix(namespace, scope, group));
        self.hands.stores.insert(cluster.name.clone(), orders);
        self.add("a store's follower", dcs::run(theirs, inbox, events.clone(), self.stop.clone()));
        let ours = config(dcs::own_prefix(namespace, scope, group));
        let peers = dcs::run_peers(ours.clone(), events.clone(), self.stop.clone());
        self.add("the follower of our own keys", peers);
        let (orders, inbox) = mpsc::channel(ORDERS);
        self.hands.publishers.insert(cluster.name.clone(), orders);
        let publisher = dcs::run_publisher(ours, inbox, events.clone(), self.stop.clone());
        self.add("the publisher of our own keys", publisher);
    }

    fn watch_servers(&mut self, cluster: &ClusterSettings, events: &Sender<Event>) {
        let (orders, inbox) = mpsc::channel(ORDERS);
        let login = cluster.probe.as_ref().map(|login| probe::Login {
            conninfo: login.conninfo.clone(),
            password_file: login.password_file.clone(),
        });
        let config = probe::WorkerConfig { cluster: cluster.name.clone(), login };
        self.hands.probes.insert(cluster.name.clone(), orders);
        self.add(
            "the watcher of a leader's server",
            probe::run(config, inbox, events.clone(), self.stop.clone()),
        );
    }

    fn ask_members(
        &mut self,
        name: &'static str,
        tls: &config::TlsFiles,
        inbox: Receiver<Effect>,
        events: &Sender<Event>,
    ) {
        self.add(name, patroni::run(rest_tls(tls), inbox, events.clone(), self.stop.clone()));
    }

    /// The driver's ends of their queues; once.
    pub fn take_hands(&mut self) -> Hands {
        std::mem::take(&mut self.hands)
    }

    /// Stops them and waits: a file replace or a console command that has begun is brought to its end.
    pub async fn end(&mut self) {
        self.stop.cancel();
        let all = async { while self.crew.join_next().await.is_some() {} };
        if tokio::time::timeout(GRACE, all).await.is_err() {
            tracing::warn!("some workers did not end within {} s", GRACE.as_secs());
            self.crew.shutdown().await;
        }
    }
}

fn rest_tls(tls: &config::TlsFiles) -> patroni::WorkerConfig {
    let config::TlsFiles { ca: tls_ca, cert: tls_cert, key: tls_key } = tls.clone();
    patroni::WorkerConfig { tls_ca, tls_cert, tls_key }
}

/// How to reach a cluster's store, or its members where it has none.
fn store(cluster: &ClusterSettings) -> Result<dcs::StoreConfig, &MembersSettings> {
    let config::TlsFiles { ca: tls_ca, cert: tls_cert, key: tls_key } = cluster.tls.clone();
    Ok(match &cluster.store {
        Store::Members(members) => return Err(members),
        Store::Etcd(etcd) => dcs::StoreConfig::Etcd(dcs::etcd::EtcdConfig {
            endpoints: etcd.endpoints.clone(),
            tls_ca,
            tls_cert,
            tls_key,
            username: etcd.username.clone(),
            password_file: etcd.password_file.clone(),
        }),
        Store::Consul(consul) => dcs::StoreConfig::Consul(dcs::consul::ConsulConfig {
            endpoints: consul.endpoints.clone(),
            tls_ca,
            tls_cert,
            tls_key,
            token_file: cluster.token_file.clone(),
        }),
        Store::ZooKeeper(zookeeper) => dcs::StoreConfig::ZooKeeper(dcs::zookeeper::ZooKeeperConfig {
            endpoints: zookeeper.endpoints.clone(),
            chroot: zookeeper.chroot.clone(),
            tls_ca,
            tls_cert,
            tls_key,
            username: zookeeper.username.clone(),
            password_file: zookeeper.password_file.clone(),
            one_shot_watches: false,
        }),
    })
}
