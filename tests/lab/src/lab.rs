//! A lab from its first process to its last.

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::agent;
use crate::consul;
use crate::etcd;
use crate::guard::Guard;
use crate::http::Http;
use crate::layout::{give_files, lay_out};
use crate::network::Network;
use crate::patroni::{self, WATCH_USER};
use crate::pgbouncer;
use crate::process::{Launch, ProcessId};
use crate::progress::Progress;
use crate::spec::{Pooler, Spec, Target};
use crate::state::{Component, Host, HostRole, State, key};
use crate::store;
use crate::teardown;
use crate::wait;
use crate::zookeeper;

/// A running lab.
#[derive(Debug)]
pub struct Lab {
    pub(crate) state: State,
    /// Dropping it ends the lab. `down` is better: it says what went wrong, and all has ended when it returns.
    guard: Option<Guard>,
}

impl Lab {
    /// Brings a lab up and waits until its cluster is healthy and its poolers and agents answer.
    ///
    /// If a step fails, what was started is ended again and the error holds the last lines of the logs.
    pub async fn up(spec: Spec, progress: &Progress) -> Result<Self> {
        let stays_up = spec.stays_up;
        let state = lay_out(spec)?;
        state.write()?;
        let guard = if stays_up { None } else { Some(Guard::start(&state.dir, &state.network)?) };
        let mut lab = Self { state, guard };
        progress.step(&format!("lab in {}", lab.dir().display()));
        match lab.start_all(progress).await {
            Ok(()) => Ok(lab),
            Err(e) => {
                let logs = lab.log_tails();
                lab.down().await.context("and the lab could not be ended")?;
                Err(e.context(format!("bringing the lab up\n{logs}")))
            }
        }
    }

    /// A lab that another process brought up.
    pub fn attach(dir: &Path) -> Result<Self> {
        Ok(Self { state: State::read(dir)?, guard: None })
    }

    /// Ends every process of the lab and removes its folder.
    pub async fn down(mut self) -> Result<()> {
        teardown::end(&self.state).await?;
        if let Some(guard) = self.guard.take() {
            guard.dismiss(true).await;
        }
        Ok(())
    }

    /// The lab's folder.
    pub fn dir(&self) -> &Path {
        &self.state.dir
    }

    /// Everything the lab knows about itself.
    pub fn state(&self) -> &State {
        &self.state
    }

    async fn start_all(&mut self, progress: &Progress) -> Result<()> {
        self.start_store(progress).await?;
        self.start_members(progress).await?;
        self.prepare_database().await?;
        progress.step(&format!("database `{}` is there", pgbouncer::DATABASE));
        self.start_poolers(progress).await?;
        self.start_agents(progress).await
    }

    async fn start_store(&mut self, progress: &Progress) -> Result<()> {
        let hosts: Vec<Host> = self.state.stores().cloned().collect();
        for host in &hosts {
            self.start(&host.name, host.role.component())?;
        }
        let http = Http::new(store::QUESTION)?;
        for host in &hosts {
            let what = format!("the store on {}", host.name);
            let ask = || store::answers(&self.state, host, &http);
            wait::answer(&what, self.patience(), HALF_STEP, ask).await?;
        }
        let name = self.state.spec.store.role().component().name();
        progress.step(&format!("{name}: {} of {} healthy", hosts.len(), hosts.len()));
        Ok(())
    }

    async fn start_members(&mut self, progress: &Progress) -> Result<()> {
        let names: Vec<String> = self.state.hosts_of(HostRole::Member).map(|h| h.name.clone()).collect();
        for name in &names {
            self.start(name, Component::Patroni)?;
        }
        progress.step(&format!("Patroni {} started on {}", self.state.spec.patroni, names.join(", ")));
        let leader = self.wait_healthy(self.patience()).await?;
        progress.step(&format!("cluster healthy: {leader} leads {} members", names.len()));
        Ok(())
    }

    /// The database, the logins and the table of the load.
    async fn prepare_database(&self) -> Result<()> {
        let leader = self.leader().await?;
        let admin = self.superuser(&leader, "postgres").await?;
        let logins = format!(
            "CREATE USER {app} PASSWORD '{password}'; CREATE USER {WATCH_USER};",
            app = pgbouncer::APP_USER,
            password = pgbouncer::APP_SECRET
        );
        let database = format!("CREATE DATABASE {} OWNER {}", pgbouncer::DATABASE, pgbouncer::APP_USER);
        admin.batch_execute(&logins).await.context("making the lab's logins")?;
        admin.batch_execute(&database).await.context("making the lab's database")?;
        let app = self.superuser(&leader, pgbouncer::DATABASE).await?;
        let table = format!(
            "CREATE TABLE commits (client int, n bigint, at timestamptz DEFAULT clock_timestamp()); \
             ALTER TABLE commits OWNER TO {}",
            pgbouncer::APP_USER
        );
        app.batch_execute(&table).await.context("making the lab's table")
    }

    async fn start_poolers(&mut self, progress: &Progress) -> Result<()> {
        let (leader, replica) = (self.leader().await?, self.replicas().await?.into_iter().next());
        let (leader, replica) = (self.address(&leader)?, replica.map(|r| self.address(&r)).transpose()?);
        for pooler in self.state.spec.poolers.clone() {
            let host = self.state.host(&pooler.name)?.clone();
            let lead_to: Vec<Ipv4Addr> =
                pooler.routes.iter().map(|(_, to)| first_target(*to, leader, replica)).collect();
            pgbouncer::configure(&self.state, &host, &pooler, &lead_to)?;
            give_files(&host, &["pgbouncer.ini", "userlist.txt"])?;
            self.start(&pooler.name, Component::PgBouncer)?;
            self.wait_pooler(&pooler).await?;
            progress.step(&format!("PgBouncer {} on {}", pooler.name, self.pooler_address(&pooler.name)?));
        }
        Ok(())
    }

    async fn wait_pooler(&self, pooler: &Pooler) -> Result<()> {
        let host = self.state.host(&pooler.name)?;
        let what = format!("PgBouncer {}", pooler.name);
        let ask = || pgbouncer::console(&self.state, host, pooler, "SHOW DATABASES");
        wait::answer(&what, self.patience(), HALF_STEP, ask).await.map(|_| ())
    }

    async fn start_agents(&mut self, progress: &Progress) -> Result<()> {
        let hosts: Vec<Host> = self.state.hosts.iter().filter(|h| self.state.has_agent(h)).cloned().collect();
        for host in &hosts {
            self.start(&host.name, Component::Agent)?;
        }
        for host in &hosts {
            self.wait_agent(&host.name).await?;
        }
        if !hosts.is_empty() {
            let names: Vec<&str> = hosts.iter().map(|h| h.name.as_str()).collect();
            progress.step(&format!("agents answer on {}", names.join(", ")));
        }
        Ok(())
    }

    /// Waits until the agent of a host answers and, on a pooler host, has verified every route.
    pub async fn wait_agent(&self, host: &str) -> Result<()> {
        let host = self.state.host(host)?;
        let path = match host.role {
            HostRole::Pooler => format!("/pool/{}", host.name),
            _ => "/status".to_string(),
        };
        let ask = || async {
            let (code, body) = agent::get(&self.state, host, &path).await?;
            ensure!(code == 200, "{path} answers {code}: {}", body.trim());
            Ok(())
        };
        wait::answer(&format!("agent on {}", host.name), self.patience(), HALF_STEP, ask).await
    }

    /// Starts a component that does not run.
    pub fn start(&mut self, host: &str, component: Component) -> Result<ProcessId> {
        let host = self.state.host(host)?.clone();
        if self.state.process(&host.name, component).is_some_and(|p| p.alive()) {
            bail!("{} runs already on {}", component.name(), host.name);
        }
        let (command, env) = match component {
            Component::Etcd => (etcd::command(&self.state, &host), Vec::new()),
            Component::Consul => (consul::command(&self.state, &host), Vec::new()),
            Component::ZooKeeper => (zookeeper::command(&host), Vec::new()),
            Component::Patroni => (patroni::command(&host), patroni::environment(&self.state)),
            Component::PgBouncer => (pgbouncer::command(&self.state, &host), Vec::new()),
            Component::Agent => (agent::command(&self.state, &host), self.state.spec.agent_env.clone()),
        };
        self.launch(&host, component.name(), command, env)
    }

    /// Starts any program as a part of a host: marked, with the host's group, ended with the lab.
    pub fn launch(
        &mut self,
        host: &Host,
        name: &str,
        command: Vec<String>,
        env: Vec<(String, String)>,
    ) -> Result<ProcessId> {
        let launch = Launch {
            lab: self.state.dir.clone(),
            host: host.name.clone(),
            group: match name == Component::Agent.name() {
                true => Network::agent_group(host.address),
                false => Network::group(host.address),
            },
            command,
            env,
            folder: host.folder.clone(),
            log: host.file(&format!("{name}.log")),
        };
        let process = launch.spawn()?;
        self.state.processes.insert(format!("{}/{name}", host.name), process);
        self.state.write()?;
        Ok(process)
    }

    /// Stops a component in its own time: SIGTERM, then SIGKILL after `grace`.
    pub async fn stop(&mut self, host: &str, component: Component, grace: Duration) -> Result<()> {
        let Some(process) = self.state.process(host, component) else {
            bail!("{} was never started on {host}", component.name());
        };
        process.stop(grace).await.with_context(|| format!("stopping {} on {host}", component.name()))?;
        self.state.processes.remove(&key(host, component));
        self.state.write()
    }

    /// Stops a component and starts it again.
    pub async fn restart(&mut self, host: &str, component: Component) -> Result<()> {
        self.stop(host, component, Duration::from_secs(30)).await?;
        self.start(host, component).map(|_| ())
    }

    fn patience(&self) -> Duration {
        self.state.spec.patience
    }

    /// The last lines of every log, for an error message.
    pub fn log_tails(&self) -> String {
        let mut text = String::new();
        for host in &self.state.hosts {
            for component in Component::ALL {
                let tail = host.log_tail(component, 8);
                if !tail.is_empty() {
                    text += &format!("--- {} on {}\n{tail}\n", component.name(), host.name);
                }
            }
        }
        text
    }
}

const HALF_STEP: Duration = Duration::from_millis(50);

fn first_target(to: Target, leader: Ipv4Addr, replica: Option<Ipv4Addr>) -> Ipv4Addr {
    match to {
        Target::Primary => leader,
        Target::Replica | Target::Any => replica.unwrap_or(leader),
    }
}
