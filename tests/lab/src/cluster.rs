//! What one asks of a running lab: who leads, is it healthy, switch over.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tokio::task::JoinHandle;

use crate::lab::Lab;
use crate::patroni::{Member, POSTGRES_PORT, Rest};
use crate::pgbouncer;
use crate::spec::{Pooler, Store};
use crate::sql;
use crate::state::{Component, HostRole};
use crate::wait;

const STEP: Duration = Duration::from_millis(100);
/// What Patroni calls the member whose copy a commit waits for.
const SYNC_STANDBY: &str = "sync_standby";

impl Lab {
    /// Patroni's REST interfaces.
    pub fn rest(&self) -> Result<Rest> {
        Rest::new(&self.state)
    }

    /// The members as Patroni sees them.
    pub async fn members(&self) -> Result<Vec<Member>> {
        self.rest()?.members().await
    }

    /// The member that holds the leader lock.
    pub async fn leader(&self) -> Result<String> {
        let members = self.members().await?;
        let leader = members.into_iter().find(Member::leads).context("the cluster has no leader")?;
        Ok(leader.name)
    }

    /// The members that do not lead.
    pub async fn replicas(&self) -> Result<Vec<String>> {
        let members = self.members().await?;
        Ok(members.into_iter().filter(|m| !m.leads()).map(|m| m.name).collect())
    }

    /// Waits until one member leads and accepts writes, and every member whose Patroni runs is up on its timeline.
    pub async fn wait_healthy(&self, limit: Duration) -> Result<String> {
        wait::answer("a healthy cluster", limit, STEP, || self.healthy_leader()).await
    }

    async fn healthy_leader(&self) -> Result<String> {
        let members = self.members().await?;
        let leader = members.iter().find(|m| m.leads() && m.is_up());
        let leader = leader.with_context(|| format!("no running leader among {}", named(&members)))?;
        for host in self.state.hosts_of(HostRole::Member) {
            let expected = self.state.process(&host.name, Component::Patroni).is_some_and(|p| p.alive());
            let healthy = |m: &Member| m.name == host.name && m.is_up() && m.timeline == leader.timeline;
            ensure!(!expected || members.iter().any(healthy), "{} is not up: {}", host.name, named(&members));
        }
        let client = self.superuser(&leader.name, "postgres").await?;
        let in_recovery = sql::value(&client, "SELECT pg_is_in_recovery()").await?;
        ensure!(in_recovery.as_deref() == Some("f"), "{} leads, but is in recovery", leader.name);
        let streaming =
            sql::value(&client, "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'");
        let streaming: usize = streaming.await?.unwrap_or_default().parse()?;
        let replicas = members.iter().filter(|m| !m.leads() && m.is_up()).count();
        ensure!(streaming >= replicas, "{streaming} of {replicas} replicas stream from {}", leader.name);
        Ok(leader.name.clone())
    }

    /// A planned switchover to `to`, or to the first replica; returns the new leader's name when Patroni says it is done.
    pub async fn switchover(&self, to: Option<&str>) -> Result<String> {
        let leader = self.leader().await?;
        let to = match to {
            Some(to) => to.to_string(),
            None => self.candidate().await?,
        };
        let what = || format!("switching over from {leader} to {to}");
        let doubt = match self.rest()?.switchover(&leader, &to).await {
            // Patroni reads ZooKeeper key by key: if the new leader takes the lock and deletes the `failover` key in
            // between, it sees neither and calls a switchover failed that was made. Who leads then tells.
            Err(e)
                if matches!(self.state().spec.store, Store::ZooKeeper)
                    && format!("{e:#}").contains("Switchover failed") =>
            {
                Some(e)
            }
            other => other.map(|_| None).with_context(what)?,
        };
        let led = || async {
            let leader = self.leader().await?;
            ensure!(leader == to, "{leader} leads");
            Ok(())
        };
        let led = wait::answer(&what(), Duration::from_secs(30), STEP, led).await;
        match (led, doubt) {
            (Err(why), Some(doubt)) => Err(doubt.context(why)),
            (led, _) => led.map(|()| to),
        }
    }

    /// Orders a switchover and does not wait for it; the handle has what Patroni says at its end.
    pub async fn order_switchover(&self) -> Result<JoinHandle<Result<String>>> {
        let (leader, to, rest) = (self.leader().await?, self.candidate().await?, self.rest()?);
        Ok(tokio::spawn(async move { rest.switchover(&leader, &to).await }))
    }

    /// Whom to switch over to: with `synchronous_mode` on, Patroni takes nobody but the synchronous one.
    pub async fn candidate(&self) -> Result<String> {
        let mut replicas = self.members().await?;
        replicas.retain(|m| !m.leads());
        replicas.sort_by_key(|m| m.role != SYNC_STANDBY);
        Ok(replicas.into_iter().next().context("no replica to switch to")?.name)
    }

    /// Has Patroni note a switchover for this time tomorrow, and returns the candidate.
    pub async fn switchover_tomorrow(&self) -> Result<String> {
        let (leader, to) = (self.leader().await?, self.candidate().await?);
        let client = self.superuser(&leader, "postgres").await?;
        let tomorrow = sql::value(&client, "SELECT date_trunc('second', now()) + '1 day'").await?;
        let tomorrow = tomorrow.context("the server does not know the time")?;
        let noted = self.rest()?.schedule_switchover(&leader, &to, &tomorrow).await;
        noted.with_context(|| format!("scheduling a switchover from {leader} to {to} for {tomorrow}"))?;
        Ok(to)
    }

    /// Changes Patroni's dynamic configuration.
    pub async fn configure_patroni(&self, change: &serde_json::Value) -> Result<()> {
        self.rest()?.patch_config(change).await
    }

    /// Switches `synchronous_mode` on and waits until commits wait for a standby: then no kill may lose one.
    pub async fn synchronous(&self, limit: Duration) -> Result<()> {
        self.configure_patroni(&serde_json::json!({ "synchronous_mode": true })).await?;
        self.wait_synchronous(limit).await
    }

    /// Waits until commits wait for a standby that Patroni would promote.
    pub async fn wait_synchronous(&self, limit: Duration) -> Result<()> {
        let asked = || async {
            let members = self.members().await?;
            let standby = members.iter().find(|m| m.role == SYNC_STANDBY);
            let standby = standby.with_context(|| format!("none among {}", named(&members)))?;
            let client = self.superuser(&self.leader().await?, "postgres").await?;
            let names = sql::value(&client, "SHOW synchronous_standby_names").await?.unwrap_or_default();
            ensure!(names.contains(&standby.name), "{} is not in `{names}`", standby.name);
            Ok(())
        };
        wait::answer("a synchronous standby", limit, STEP, asked).await
    }

    /// A host's address.
    pub fn address(&self, host: &str) -> Result<Ipv4Addr> {
        Ok(self.state.host(host)?.address)
    }

    /// Where PostgreSQL of a member listens.
    pub fn postgres_address(&self, member: &str) -> Result<SocketAddrV4> {
        Ok(self.state.socket(self.state.host(member)?, POSTGRES_PORT))
    }

    /// Connects to PostgreSQL on a member as superuser, by its unix socket: cuts do not touch it.
    pub async fn superuser(&self, member: &str, database: &str) -> Result<tokio_postgres::Client> {
        let host = self.state.host(member)?;
        let port = self.state.network.port(POSTGRES_PORT);
        sql::by_socket(&host.sockets(), port, "postgres", database).await
    }

    /// The plan of a pooler.
    pub fn pooler(&self, name: &str) -> Result<&Pooler> {
        match self.state.spec.poolers.iter().find(|p| p.name == name) {
            Some(pooler) => Ok(pooler),
            None => bail!("the lab has no pooler `{name}`"),
        }
    }

    /// Where a pooler listens.
    pub fn pooler_address(&self, name: &str) -> Result<SocketAddrV4> {
        Ok(self.state.socket(self.state.host(name)?, self.pooler(name)?.port))
    }

    /// A command on a pooler's console, with its rows as name and value.
    pub async fn console(&self, pooler: &str, command: &str) -> Result<Vec<Vec<(String, String)>>> {
        let host = self.state.host(pooler)?;
        pgbouncer::console(&self.state, host, self.pooler(pooler)?, command).await
    }

    /// The members a database of a pooler leads to, as PgBouncer itself says.
    pub async fn pool_targets(&self, pooler: &str, database: &str) -> Result<Vec<String>> {
        let rows = self.console(pooler, "SHOW DATABASES").await?;
        let value = |row: &[(String, String)], name: &str| {
            row.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone()).unwrap_or_default()
        };
        let row = rows.iter().find(|r| value(r, "name") == database);
        let hosts = value(row.with_context(|| format!("{pooler} has no database `{database}`"))?, "host");
        let member = |address: &str| {
            let found = self.state.hosts_of(HostRole::Member).find(|h| h.address.to_string() == address);
            let name = found.map(|h| h.name.clone());
            name.with_context(|| format!("{database} of {pooler} leads to {address}, which is no member"))
        };
        hosts.split(',').map(|address| member(address.trim())).collect()
    }
}

fn named(members: &[Member]) -> String {
    let line = |m: &Member| {
        let timeline = m.timeline.map_or_else(|| "?".to_string(), |t| t.to_string());
        format!("{} {} {} {timeline}", m.name, m.role, m.state)
    };
    members.iter().map(line).collect::<Vec<_>>().join(", ")
}
