//! The shell of pgsquire: it asks the world, and does what the core orders. `app` spawns, `driver` is the loop, every
//! other room has one neighbour.

pub mod clock;
pub mod config;
pub mod dcs;
pub mod files;
pub mod patroni;
pub mod pgbouncer;
pub mod postgres;
pub mod report;
pub mod session;
pub mod state;
