//! The benchmark of the stores: how soon an agent knows the new leader, with each of them and with none, in one table.
//! Real servers, the real followers and the real core.

mod agent;
mod frozen;
mod leader_key;
mod many;
mod members;
mod patronis;
mod servers;
mod timing;

#[path = "../contract/certificates.rs"]
#[expect(dead_code, reason = "the contract tests use more of it")]
mod certificates;
#[path = "../contract/consul_server.rs"]
#[expect(dead_code, reason = "the contract tests use more of it")]
mod consul_server;
#[path = "../contract/etcd_server.rs"]
#[expect(dead_code, reason = "the contract tests use more of it")]
mod etcd_server;
#[path = "../contract/processes.rs"]
#[expect(dead_code, reason = "the contract tests use more of it")]
mod processes;
#[path = "../contract/store.rs"]
#[expect(dead_code, reason = "the contract tests use more of it")]
mod store;
#[path = "../contract/worker.rs"]
#[expect(dead_code, reason = "the contract tests use more of it")]
mod worker;
#[path = "../contract/zookeeper_server.rs"]
#[expect(dead_code, reason = "the contract tests use more of it")]
mod zookeeper_server;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use pgsquire_lab::Progress;
use pgsquire_lab::bench::Table;
use servers::{Consul, Etcd, ZooKeeper};

/// Rows that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Group {
    /// From the write of the leader key to the decision, for each store
    LeaderKey,
    /// The same without a store: ten agents ask three members
    Members,
    /// The server that is followed stands still
    Frozen,
    /// Many agents on one etcd
    Many,
}

/// How soon an agent knows the new leader, with each store and with none.
#[derive(Parser)]
struct Cli {
    /// Only these rows; can be given several times
    #[arg(long, value_enum)]
    only: Vec<Group>,
    /// How often the leader changes, for each store and without one
    #[arg(long, default_value_t = 200)]
    writes: u32,
    /// How often a server is frozen, for each store
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// How many are many agents
    #[arg(long, default_value_t = 1000)]
    agents: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Cargo says so
    #[arg(long, hide = true)]
    bench: bool,
}

impl Cli {
    fn wants(&self, group: Group) -> bool {
        self.only.is_empty() || self.only.contains(&group)
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let cli = Cli::parse();
    let table = measure(&cli, &Progress::shown()).await?;
    match cli.json {
        true => println!("{}", serde_json::to_string_pretty(&table)?),
        false => print!("{}", table.text()),
    }
    Ok(())
}

async fn measure(cli: &Cli, progress: &Progress) -> Result<Table> {
    let mut table = Table::new();
    let rows = &mut table.rows;
    if cli.wants(Group::LeaderKey) {
        let what = "writing the leader key";
        rows.extend(leader_key::rows::<Etcd>(cli.writes, progress).await.context(what)?);
        rows.extend(leader_key::rows::<Consul>(cli.writes, progress).await.context(what)?);
        rows.extend(leader_key::rows::<ZooKeeper>(cli.writes, progress).await.context(what)?);
    }
    if cli.wants(Group::Members) {
        rows.extend(members::rows(cli.writes, progress).await.context("asking members")?);
    }
    if cli.wants(Group::Frozen) {
        let what = "freezing a server";
        rows.extend(frozen::rows::<Etcd>(cli.rounds, progress).await.context(what)?);
        rows.extend(frozen::rows::<Consul>(cli.rounds, progress).await.context(what)?);
        rows.extend(frozen::rows::<ZooKeeper>(cli.rounds, progress).await.context(what)?);
    }
    if cli.wants(Group::Many) {
        rows.extend(many::rows(cli.agents, progress).await.context("many agents on one etcd")?);
    }
    Ok(table)
}
