//! The shell of pgsquire: it asks the world, and does what the core orders.

pub mod clock;
pub mod dcs;
pub mod files;
pub mod patroni;
pub mod pgbouncer;
pub mod postgres;
pub mod report;
pub mod session;
pub mod state;
