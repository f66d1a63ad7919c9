//! The shell of pgsquire: it asks the world, and does what the core orders.

pub mod clock;
pub mod config;
