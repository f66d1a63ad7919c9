//! The shell of pgsquire: it asks the world, and does what the core orders. `app` spawns, `driver` is the loop, every
//! other room has one neighbour.

pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod dcs;
pub mod driver;
#[cfg(test)]
mod example;
pub mod files;
pub mod http;
pub mod https;
pub mod journal;
pub mod page;
pub mod patroni;
pub mod pgbouncer;
pub mod postgres;
pub mod probe;
pub mod report;
pub mod session;
pub mod state;
pub mod systemd;
pub mod telemetry;
pub mod watcher;
pub mod worker;
