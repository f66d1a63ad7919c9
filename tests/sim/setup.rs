//! How a world is built: by chance, or as a scenario wants it.

use crate::agent_host::{Host, Trouble};
use crate::dcs::Store;
use crate::memory::Memory;
use crate::patroni::{Patroni, Step};
use crate::pgbouncer::PgBouncer;
use crate::postgres::Postgres;
use crate::rng::Rng;
use crate::watch::Follow;
use crate::world::{Cluster, Member, Thing, World};
use pgsquire_core::config::{
    ClusterConfig, Config, Fence, LocalConfig, Mode, OnDcsLoss, PoolerConfig, Route, RouteTo, SwitchConfig,
    Truth,
};
use pgsquire_core::event::Restored;
use pgsquire_core::pgbouncer::ini::Files;
use pgsquire_core::rule::{Mutants, Rule};
use pgsquire_core::time::Time;
use std::collections::BTreeMap;
use std::time::Duration;

/// A cluster.
#[derive(Debug, Clone)]
pub struct ClusterSetup {
    /// How many members.
    pub members: usize,
    /// Members have the tag `noloadbalance`.
    pub noloadbalance: bool,
    /// Members are known by names, not addresses.
    pub names: bool,
    /// The second member listens on another port.
    pub mixed_ports: bool,
    /// Lifetime of leases, in seconds.
    pub ttl: u64,
    /// Pause of Patroni's loop, in seconds.
    pub loop_wait: u64,
    /// Roles are written as `master`.
    pub old_words: bool,
    /// Patroni 3.0.2, which has no `before_stop`.
    pub old_patroni: bool,
    /// `failsafe_mode` is on.
    pub failsafe: bool,
    /// The store tells how long the leader key lives (etcd does).
    pub tells_leases: bool,
    /// The agents ask the members, not the store.
    pub rest: bool,
}

/// A pooler.
#[derive(Debug, Clone)]
pub struct PoolerSetup {
    /// Its version.
    pub version: (u32, u32),
    /// Its routes.
    pub routes: BTreeMap<String, Route>,
    /// Databases stand in an included file.
    pub include: bool,
    /// The clients of write routes hold their links.
    pub sessions: bool,
    /// At first, routes lead to this member of the first cluster; none: to nowhere.
    pub leads_to: Option<usize>,
    /// `min_pool_size` in its file.
    pub min_pool_size: u32,
}

/// A host.
#[derive(Debug, Clone)]
pub struct HostSetup {
    /// Member of the first cluster that is on it.
    pub local: Option<usize>,
    /// Mode of its agent.
    pub mode: Mode,
    /// Its poolers.
    pub poolers: Vec<PoolerSetup>,
}

/// A world.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The rule that is broken, if one is.
    pub broken: Option<Rule>,
    /// Clusters.
    pub clusters: Vec<ClusterSetup>,
    /// Hosts.
    pub hosts: Vec<HostSetup>,
    /// Links that stay on an old target are cut after this many seconds.
    pub stale_after: u64,
    /// Nothing fails by chance.
    pub calm: bool,
    /// Clients of a lost primary wait at most this many seconds.
    pub failover_hold: u64,
    /// What `pre_promote` waits for.
    pub fence: Fence,
    /// What verdicts rest on while the store is away.
    pub on_dcs_loss: OnDcsLoss,
    /// Clients ask at most so many milliseconds apart.
    pub pace: u64,
}

/// A route of the first cluster.
pub fn route(to: RouteTo) -> Route {
    Route { to, cluster: "main".into(), max_lag: None, fallback_primary: false }
}

/// Names of the clusters and of their members.
const NAMES: [(&str, &str); 2] = [("main", "pg"), ("second", "db")];

impl Setup {
    /// Three members with an agent each, and one pooler host with a write route.
    pub fn plain() -> Self {
        let cluster = ClusterSetup {
            members: 3,
            noloadbalance: false,
            names: false,
            mixed_ports: false,
            ttl: 20,
            loop_wait: 5,
            old_words: false,
            old_patroni: false,
            failsafe: false,
            tells_leases: true,
            rest: false,
        };
        let member = |m| HostSetup { local: Some(m), mode: Mode::Enforce, poolers: Vec::new() };
        let mut hosts: Vec<HostSetup> = (0..3).map(member).collect();
        let routes = BTreeMap::from([("app".to_string(), route(RouteTo::Primary))]);
        let pooler = PoolerSetup {
            version: (1, 18),
            routes,
            include: false,
            sessions: false,
            leads_to: Some(0),
            min_pool_size: 0,
        };
        hosts.push(HostSetup { local: None, mode: Mode::Enforce, poolers: vec![pooler] });
        Setup {
            broken: None,
            clusters: vec![cluster],
            hosts,
            stale_after: 10,
            calm: true,
            failover_hold: 45,
            fence: Fence::Advisory,
            on_dcs_loss: OnDcsLoss::Confirm,
            pace: 400,
        }
    }

    /// A world by chance.
    pub fn random(rng: &mut Rng) -> Self {
        let mut clusters = vec![Self::random_cluster(rng)];
        if rng.one_in(5) {
            clusters.push(ClusterSetup { members: 1 + rng.below(2), ..Self::random_cluster(rng) });
        }
        let two = clusters.len() > 1;
        let member = |m, rng: &mut Rng| HostSetup {
            local: Some(m),
            mode: if rng.one_in(12) { Mode::Observe } else { Mode::Enforce },
            poolers: if rng.one_in(3) { vec![Self::random_pooler(rng, true, two)] } else { Vec::new() },
        };
        let mut hosts: Vec<HostSetup> = (0..clusters[0].members).map(|m| member(m, rng)).collect();
        for _ in 0..1 + usize::from(rng.one_in(3)) {
            let poolers = (0..1 + rng.below(5) / 3).map(|_| Self::random_pooler(rng, false, two)).collect();
            let mode = if rng.one_in(10) { Mode::Observe } else { Mode::Enforce };
            hosts.push(HostSetup { local: None, mode, poolers });
        }
        let stale_after = *rng.pick(&[2, 5, 10]);
        let fence = *rng.pick(&[Fence::Off, Fence::Advisory, Fence::Advisory, Fence::Advisory]);
        // The last that is drawn: worlds with a store are what they always were.
        clusters[0].rest = rng.one_in(6);
        let on_dcs_loss = *rng.pick(&[OnDcsLoss::Confirm, OnDcsLoss::Hold, OnDcsLoss::FailClosed]);
        Setup {
            broken: None,
            clusters,
            hosts,
            stale_after,
            failover_hold: 45,
            calm: false,
            fence,
            on_dcs_loss,
            pace: 400,
        }
    }

    fn random_cluster(rng: &mut Rng) -> ClusterSetup {
        let (ttl, loop_wait) = *rng.pick(&[(20, 5), (20, 8), (30, 10)]);
        ClusterSetup {
            members: *rng.pick(&[2, 3, 3]),
            noloadbalance: rng.one_in(6),
            names: rng.one_in(4),
            mixed_ports: rng.one_in(8),
            ttl,
            loop_wait,
            old_words: rng.one_in(4),
            old_patroni: rng.one_in(8),
            failsafe: rng.one_in(3),
            tells_leases: !rng.one_in(3),
            rest: false,
        }
    }

    fn random_pooler(rng: &mut Rng, local: bool, two: bool) -> PoolerSetup {
        let mut routes = BTreeMap::new();
        let name = if rng.one_in(6) { "*" } else { "app" };
        routes.insert(name.to_string(), route(RouteTo::Primary));
        if rng.one_in(2) {
            let to = *rng.pick(&[RouteTo::Replica, RouteTo::Replica, RouteTo::Any]);
            let max_lag = rng.one_in(2).then_some(16 << 20);
            let fallback_primary = rng.one_in(2);
            let cluster = "main".to_string();
            routes.insert("reports".into(), Route { to, cluster, max_lag, fallback_primary });
        }
        if local && rng.one_in(2) {
            routes.insert("here".into(), route(RouteTo::Local));
        }
        if two && !local && rng.one_in(2) {
            routes.insert("other".into(), Route { cluster: "second".into(), ..route(RouteTo::Primary) });
        }
        PoolerSetup {
            version: *rng.pick(&[(1, 16), (1, 18), (1, 18), (1, 23), (1, 24), (1, 25)]),
            routes,
            include: rng.one_in(4),
            sessions: rng.one_in(4),
            leads_to: (!rng.one_in(4)).then(|| rng.below(2)),
            min_pool_size: if rng.one_in(4) { 2 } else { 0 },
        }
    }
}

impl World {
    /// Builds what the setup says.
    pub fn build(&mut self) {
        let setup = self.setup.clone();
        for (c, cluster) in setup.clusters.iter().enumerate() {
            let built = self.build_cluster(c, cluster);
            self.clusters.push(built);
            self.begin_cluster(c);
        }
        for (h, host) in setup.hosts.iter().enumerate() {
            let built = self.build_host(h, host);
            self.hosts.push(built);
            let after = self.rng.millis(0, 400);
            self.later(after, Thing::StartAgent(h));
            for p in 0..host.poolers.len() {
                self.later(after, Thing::Clients(h, p));
            }
        }
    }

    fn build_cluster(&mut self, c: usize, setup: &ClusterSetup) -> Cluster {
        let (name, prefix) = NAMES[c];
        let member = |m: usize| {
            let ip = format!("10.{c}.0.{}", m + 1);
            let name = format!("{prefix}{}", m + 1);
            Member {
                host: if setup.names { format!("{name}.example.org") } else { ip.clone() },
                name,
                ip,
                port: if setup.mixed_ports && m == 1 { 5433 } else { 5432 },
                noloadbalance: setup.noloadbalance,
                pg: Postgres::new(m > 0, 1),
                patroni: Patroni::new(m == 0),
                store_cut: false,
                rest_dead: false,
                isolated: false,
                claims: false,
                stranger: false,
            }
        };
        Cluster {
            name: name.into(),
            system: format!("723{c}"),
            store: Store::new(&format!("store-{name}")),
            own: Store::new(&format!("own of store-{name}")),
            old_patroni: setup.old_patroni,
            rest: setup.rest,
            noticed: (Time::ZERO, BTreeMap::new()),
            by_hand: false,
            commits: BTreeMap::new(),
            members: (0..setup.members).map(member).collect(),
            ttl: Duration::from_secs(setup.ttl),
            loop_wait: Duration::from_secs(setup.loop_wait),
            paused: false,
            failsafe: setup.failsafe,
            tells_leases: setup.tells_leases,
            old_words: setup.old_words,
            rebuilt: None,
            key_deleted: None,
            holder: None,
            promoted: None,
            lost: BTreeMap::new(),
        }
    }

    /// The first keys of a cluster, and its members' loops.
    fn begin_cluster(&mut self, c: usize) {
        let until = self.now + self.clusters[c].ttl;
        let (system, leader) = (self.clusters[c].system.clone(), self.clusters[c].members[0].name.clone());
        self.clusters[c].store.put("initialize", &system, None);
        self.write_config(c);
        for m in 0..self.clusters[c].members.len() {
            let (text, name) = (self.member_json(c, m), self.clusters[c].members[m].name.clone());
            self.clusters[c].store.renew(m, until);
            self.clusters[c].store.put(&format!("members/{name}"), &text, Some(m));
            let after = self.rng.millis(0, 3000);
            self.later(after, Thing::Member(c, m, 0, Step::Loop));
        }
        self.clusters[c].store.put("leader", &leader, Some(0));
        self.clusters[c].members[0].patroni.lock_until = until;
        self.clusters[c].store.base = self.clusters[c].store.revision;
        self.store_changed(c);
    }

    /// Writes the dynamic configuration of a cluster.
    pub fn write_config(&mut self, c: usize) {
        let cluster = &mut self.clusters[c];
        let text = format!(
            "{{\"ttl\":{},\"loop_wait\":{},\"pause\":{}}}",
            cluster.ttl.as_secs(),
            cluster.loop_wait.as_secs(),
            cluster.paused
        );
        cluster.store.put("config", &text, None);
        self.store_changed(c);
    }

    fn build_host(&mut self, h: usize, setup: &HostSetup) -> Host {
        let name = match setup.local {
            Some(m) => self.clusters[0].members[m].name.clone(),
            None => format!("pool{h}"),
        };
        let poolers: Vec<PgBouncer> =
            setup.poolers.iter().enumerate().map(|(p, pooler)| self.build_pooler(p, pooler)).collect();
        let follows: Vec<Follow> = match setup.local {
            Some(_) => vec![Follow::new(0)],
            None => (0..self.clusters.len()).map(Follow::new).collect(),
        };
        Host {
            config: self.config_of(&name, setup, &poolers, &follows),
            name,
            agent: None,
            run: 0,
            alarm: 0,
            frozen_until: Time::ZERO,
            state: Restored::default(),
            follows,
            local: setup.local.map(|m| (0, m)),
            poolers,
            status: None,
            trouble: Trouble { failing: if self.setup.calm { 0 } else { 3 }, ..Trouble::default() },
            clock: self.rng.millis(0, 900_000),
            workers: 0,
            workers_ready: Time::ZERO,
            keeper_busy: Time::ZERO,
            disturbed: self.now,
            memory: Memory::default(),
            watched: BTreeMap::new(),
            registered: BTreeMap::new(),
            answers: Vec::new(),
        }
    }

    fn config_of(&self, name: &str, setup: &HostSetup, poolers: &[PgBouncer], follows: &[Follow]) -> Config {
        let cluster = |f: &Follow| ClusterConfig {
            name: self.clusters[f.cluster].name.clone(),
            max_fact_age: Duration::from_secs(10),
            on_dcs_loss: self.setup.on_dcs_loss,
            patroni_hosts: Vec::new(),
            truth: match self.clusters[f.cluster].rest {
                true => Truth::Members { pollers: 10 },
                false => Truth::Store,
            },
        };
        let local = setup.local.map(|m| LocalConfig {
            cluster: self.clusters[0].name.clone(),
            patroni_url: Some(format!("http://{}:8008", self.clusters[0].members[m].ip)),
            probe: true,
        });
        let pooler = |(p, pooler): (&PgBouncer, &PoolerSetup)| PoolerConfig {
            name: p.name.clone(),
            ini: p.ini.clone(),
            routes: pooler.routes.clone(),
        };
        Config {
            node: name.into(),
            mode: setup.mode,
            clusters: follows.iter().map(cluster).collect(),
            local,
            poolers: poolers.iter().zip(&setup.poolers).map(pooler).collect(),
            switch: SwitchConfig {
                stale_after: Duration::from_secs(self.setup.stale_after),
                failover_hold: Duration::from_secs(self.setup.failover_hold),
                fence: self.setup.fence,
                ..SwitchConfig::default()
            },
            mutants: self.setup.broken.map_or_else(Mutants::default, Mutants::breaking),
        }
    }

    fn build_pooler(&mut self, p: usize, setup: &PoolerSetup) -> PgBouncer {
        let files = self.ini_files(p, setup);
        let mut pooler = PgBouncer::new(&format!("pool{p}"), files, setup.version);
        if setup.routes.contains_key("*") {
            pooler.opened.extend(["shop".to_string(), "stock".to_string()]);
        }
        if setup.sessions {
            pooler.sessions.extend(["app".to_string(), "shop".to_string()]);
        }
        pooler
    }

    fn ini_files(&mut self, p: usize, setup: &PoolerSetup) -> Files {
        let to = match setup.leads_to {
            Some(m) => {
                let member = &self.clusters[0].members[m.min(self.clusters[0].members.len() - 1)];
                format!("host={} port={}", member.host, member.port)
            }
            None => "host=192.0.2.1".to_string(),
        };
        let mut databases = String::from("; who changes this by hand?\n");
        for name in setup.routes.keys() {
            if self.setup.calm || !self.rng.one_in(10) {
                databases.push_str(&format!("{name} =  {to} pool_size=20\n"));
            }
        }
        databases.push_str("legacy = host=192.0.2.77 port=6000 dbname=old\n");
        let retry = *self.rng.pick(&["", "", "server_login_retry = 15\n", "server_login_retry = 3.5\n"]);
        let min = match setup.min_pool_size {
            0 => String::new(),
            n => format!("min_pool_size = {n}\n"),
        };
        let settings = format!("[pgbouncer]\nlisten_port = 6432\n{retry}{min}pool_mode = transaction\n");
        let root = format!("/etc/pgbouncer/pool{p}.ini");
        if !setup.include {
            return Files::new(root, "/etc/pgbouncer", format!("[databases]\n{databases}\n{settings}"));
        }
        let included = format!("/etc/pgbouncer/pool{p}.databases.ini");
        let text = format!("[databases]\n%include {included}\n\n{settings}");
        let mut files = Files::new(root, "/etc/pgbouncer", text);
        files.parts.insert(included, databases.into_bytes());
        files
    }
}
