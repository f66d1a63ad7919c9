//! Routes of every kind, several PgBouncers on one host, two clusters followed by one agent.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::chown;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use pgsquire_lab::etcd;
use pgsquire_lab::pgbouncer::{self, APP_PASSWORD, APP_USER};
use pgsquire_lab::{Component, Lab, Load, LoadSpec, Pooler, Progress, Spec, Store, Target, sql};
use std::os::unix::fs::MetadataExt;

use crate::ini::differs_in_targets_only;
use crate::site::{PATIENCE, Site, fact, small, spec, value, with};

/// One PgBouncer with an entry of each kind. The last one serves whatever is not named.
fn every_kind() -> Pooler {
    let mut pooler = Pooler::write();
    let more = [("reports", Target::Replica), ("all", Target::Any), ("*", Target::Primary)];
    pooler.routes.extend(more.map(|(name, to)| (name.to_string(), to)));
    pooler
}

#[tokio::test(flavor = "multi_thread")]
async fn each_route_of_each_pgbouncer_follows_its_own_rule() -> Result<()> {
    let spec = Spec { store: Store::Etcd(1), ..spec() }.pooler(every_kind());
    with(spec, async |site| {
        let unnamed =
            LoadSpec { database: "whatever".into(), ..LoadSpec::writes(site.pooler_address("write")?, 3) };
        let unnamed = Load::start(unnamed).await?;
        let second = Second::start(site).await?;
        missing_entry(site).await?;
        let before = site.ini("write")?;
        let leader = site.switch_and_follow().await?;
        served_by(site, &unnamed, &leader).await?;
        fact("the added entry follows", || leads_to(site, "write", "added", &leader)).await?;
        fact("the second PgBouncer follows", || second.leads_to(site, &leader)).await?;
        differs_in_targets_only(&before, &site.ini("write")?, &["app", "reports", "all", "*", "added"])?;
        site.step("two PgBouncers on one host and an added entry follow");
        lagging(site, &leader).await?;
        no_replica(site, &leader).await
    })
    .await
}

/// What the ini does not name goes through `*`: its clients commit on the leader.
async fn served_by(site: &Site, unnamed: &Load, leader: &str) -> Result<()> {
    unnamed
        .wait_all_committed(Instant::now(), Some(site.address(leader)?), PATIENCE)
        .await
        .context("through `*`")?;
    fact("the database opened through `*` leads to the leader", || {
        leads_to(site, "write", "whatever", leader)
    })
    .await
}

async fn leads_to(site: &Site, pooler: &str, database: &str, leader: &str) -> Result<()> {
    site.leads(pooler, database, &[leader.to_string()]).await
}

/// A route without an entry in the file gets one.
async fn missing_entry(site: &Site) -> Result<()> {
    let before = site.ini("write")?;
    site.reconfigure("write", |text| text.replacen("\"app\" =", "added = \"primary\"\n\"app\" =", 1))?;
    let leader = site.leader().await?;
    fact("the added entry leads to the leader", || leads_to(site, "write", "added", &leader)).await?;
    let after = site.ini("write")?;
    let others: Vec<&str> = after.lines().filter(|line| !line.starts_with("added")).collect();
    ensure!(
        others == before.lines().collect::<Vec<_>>(),
        "more than an entry was added: {before} became {after}"
    );
    ensure!(commits_through(site, "added").await? == site.address(&leader)?, "it serves elsewhere");
    Ok(())
}

/// The server that answers through a database of the write pooler. The entry was added without `dbname`: it asks for
/// a database of its own name.
async fn commits_through(site: &Site, database: &str) -> Result<Ipv4Addr> {
    let admin = site.superuser(&site.leader().await?, "postgres").await?;
    admin.batch_execute(&format!("CREATE DATABASE {database} OWNER {APP_USER}")).await?;
    let address = site.pooler_address("write")?;
    let client = sql::by_address(address, APP_USER, APP_PASSWORD, database, PATIENCE).await?;
    let server = sql::value(&client, "SELECT host(inet_server_addr())").await?;
    server.context("no answer")?.parse().context("the server's address")
}

/// A replica that does not receive what the primary writes leaves the list at `max_lag`, and comes back.
async fn lagging(site: &Site, leader: &str) -> Result<()> {
    let detailed = "\"reports\" = { to = \"replica\", max_lag = \"1MB\", fallback = \"primary\" }";
    site.reconfigure("write", |text| text.replace("\"reports\" = \"replica\"", detailed))?;
    site.followed(leader).await?;
    if let Err(why) = &site.state().cuts {
        eprintln!("no lag is made, the network cannot be cut here: {why}");
        return Ok(());
    }
    let mut replicas = site.replicas().await?;
    replicas.sort();
    site.cut(&replicas[0], leader)?;
    let client = site.superuser(leader, "app").await?;
    client
        .batch_execute("CREATE TABLE bulk AS SELECT repeat('x', 1000) FROM generate_series(1, 4000)")
        .await?;
    fact("the lagging replica is left out", || site.leads("write", "reports", &replicas[1..])).await?;
    site.leads("write", "all", &with_leader(&replicas, leader)).await.context("`all` has no max_lag")?;
    site.heal()?;
    fact("it caught up and is back", || site.leads("write", "reports", &replicas)).await?;
    site.step(&format!("{} was left out while it lagged", replicas[0]));
    Ok(())
}

fn with_leader(replicas: &[String], leader: &str) -> Vec<String> {
    let mut all = [replicas, &[leader.to_string()]].concat();
    all.sort();
    all
}

/// Without any replica the fallback takes over, and the replicas get their route back.
async fn no_replica(site: &mut Site, leader: &str) -> Result<()> {
    let replicas = site.replicas().await?;
    for replica in &replicas {
        site.stop(replica, Component::Patroni, Duration::from_secs(30)).await?;
    }
    site.step("the replicas are stopped");
    fact("reports falls back to the primary", || leads_to(site, "write", "reports", leader)).await?;
    fact("nobody else is left for all", || leads_to(site, "write", "all", leader)).await?;
    fact("the pool is green with its fallback", || site.answers("write", "/pool/write", 200)).await?;
    site.step("reports fell back to the primary");
    for replica in &replicas {
        site.start(replica, Component::Patroni)?;
    }
    site.followed(leader).await?;
    site.step("it came back");
    Ok(())
}

/// A second PgBouncer on the host of the write pooler, followed by the same agent.
struct Second(Pooler);

impl Second {
    async fn start(site: &mut Site) -> Result<Self> {
        let host = site.host("write")?.clone();
        let (pooler, first) = (Pooler::new("second", 6439, Target::Primary), site.pooler("write")?.clone());
        let port = |usual: u16| site.state().network.port(usual).to_string();
        let old = site.replicas().await?.remove(0);
        let text = format!(
            "[databases]\nsecond = host={} port={} dbname=app\n[pgbouncer]{}",
            site.address(&old)?,
            site.postgres_address(&old)?.port(),
            site.ini("write")?.split_once("[pgbouncer]").context("no [pgbouncer]")?.1
        );
        let ini = host.file("second.ini");
        fs::write(&ini, text.replace(&port(first.port), &port(pooler.port)))?;
        let owner = fs::metadata(pgbouncer::ini(&host))?;
        chown(&ini, Some(owner.uid()), Some(owner.gid()))?;
        let mut command = pgbouncer::command(site.state(), &host);
        command.pop();
        command.push(ini.display().to_string());
        site.launch(&host, "second", command, Vec::new())?;
        let table = format!(
            "\n[[pgbouncer]]\nname = \"second\"\nini = \"{}\"\nconsole = \"{}\"\nroutes.second = \"primary\"\n",
            ini.display(),
            pgbouncer::console_conninfo(site.state(), &host, &pooler),
        );
        site.reconfigure("write", |text| text + &table)?;
        let (second, leader) = (Self(pooler), site.leader().await?);
        fact("the second PgBouncer leads to the leader", || second.leads_to(site, &leader)).await?;
        Ok(second)
    }

    /// By its own console and by the health answer of the agent.
    async fn leads_to(&self, site: &Site, leader: &str) -> Result<()> {
        let rows = pgbouncer::console(site.state(), site.host("write")?, &self.0, "SHOW DATABASES").await?;
        let row = rows.iter().find(|row| value(row, "name") == "second").context("no entry `second`")?;
        ensure!(site.member_at(value(row, "host"))? == leader, "it leads to {}", value(row, "host"));
        site.answers("write", "/pool/second", 200).await
    }
}

/// One agent, one PgBouncer, two clusters with a store each.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the matrix"]
async fn one_agent_follows_two_clusters() -> Result<()> {
    let other = Spec { scope: "other".into(), agent: None, ..small() };
    let other = Lab::up(other, &Progress::quiet()).await?;
    let outcome = with(small().pooler(Pooler::write()), async |site| two_clusters(site, &other).await).await;
    other.down().await?;
    outcome
}

async fn two_clusters(site: &Site, other: &Lab) -> Result<()> {
    let endpoint = etcd::endpoints(other.state())[0];
    let table =
        format!("[[cluster]]\nscope = \"other\"\nendpoints = [\"http://{endpoint}\"]\n\n[[pgbouncer]]");
    site.reconfigure("write", |text| {
        let text = text.replacen("[[pgbouncer]]", &table, 1);
        text.replacen(
            "\"app\" = \"primary\"",
            "app = { to = \"primary\", cluster = \"main\" }\n\
            theirs = { to = \"primary\", cluster = \"other\" }",
            1,
        )
    })?;
    both_followed(site, other).await?;
    let ours = site.ini("write")?;
    other.switchover(None).await?;
    other.wait_healthy(PATIENCE).await?;
    both_followed(site, other).await?;
    differs_in_targets_only(&ours, &site.ini("write")?, &["theirs"])?;
    let theirs = site.ini("write")?;
    site.switchover(None).await?;
    site.wait_healthy(PATIENCE).await?;
    both_followed(site, other).await?;
    differs_in_targets_only(&theirs, &site.ini("write")?, &["app"])
}

async fn both_followed(site: &Site, other: &Lab) -> Result<()> {
    let (ours, theirs) = (site.leader().await?, other.leader().await?);
    let address = other.address(&theirs)?.to_string();
    fact(&format!("app follows {ours} and theirs follows the other {theirs}"), || async {
        site.leads("write", "app", std::slice::from_ref(&ours)).await?;
        let rows = site.console("write", "SHOW DATABASES").await?;
        let row = rows.iter().find(|row| value(row, "name") == "theirs").context("no entry `theirs`")?;
        ensure!(value(row, "host") == address, "theirs leads to {}", value(row, "host"));
        site.answers("write", "/pool/write", 200).await
    })
    .await
}
