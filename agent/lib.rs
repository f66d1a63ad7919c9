//! The shell of pgsquire: it asks the world, and does what the core orders.

pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod http;
pub mod journal;
pub mod page;
pub mod systemd;
pub mod telemetry;
