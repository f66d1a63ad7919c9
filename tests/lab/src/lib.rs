//! Real Patroni clusters and PgBouncers on loopback addresses, for the demo, the tests and the benchmarks.
//!
//! ```no_run
//! # async fn example() -> anyhow::Result<()> {
//! use pgsquire_lab::{Lab, Pooler, Progress, Spec};
//!
//! let spec = Spec { agent: Some("target/release/pgsquire".into()), ..Spec::default() }.pooler(Pooler::write());
//! let lab = Lab::up(spec, &Progress::shown()).await?;
//! let leader = lab.switchover(None).await?;
//! assert_eq!(lab.pool_targets("write", "app").await?, [leader]);
//! lab.down().await
//! # }
//! ```
//!
//! A lab belongs to the program that made it and ends with it, unless [`Spec::stays_up`] is set. Each host has a loopback
//! address, a folder and a group of its own; the programs on it are real and run as the user `postgres` when the lab is
//! started by root.

pub mod agent;
pub mod bench;
mod classic;
mod cluster;
mod consul;
pub mod demo;
pub mod etcd;
pub mod event;
mod faults;
mod guard;
pub mod hooks;
pub mod http;
pub mod keys;
mod lab;
mod layout;
pub mod load;
mod network;
pub mod patroni;
mod pauses;
pub mod pgbouncer;
mod process;
mod progress;
pub mod report;
mod setup;
pub mod simulated;
mod spec;
pub mod sql;
mod state;
pub mod step;
mod store;
mod teardown;
mod usage;
pub mod wait;
mod watcher;
mod zookeeper;

pub use faults::Part;
pub use lab::Lab;
pub use load::{Load, LoadSpec, Work};
pub use network::Network;
pub use process::ProcessId;
pub use progress::Progress;
pub use report::Report;
pub use spec::{
    Fence, Follow, PATRONI, PATRONI_OLD, PgBouncerBuild, PoolMode, Pooler, Spec, Store, Switch, Target,
};
pub use state::{Component, Host, HostRole, State};
pub use store::Dcs;
pub use usage::Usage;
pub use watcher::Watcher;
