//! Decisions about PgBouncer.

pub mod console;
pub mod ini;
