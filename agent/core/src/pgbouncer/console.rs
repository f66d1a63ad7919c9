//! What PgBouncer's admin console says, read by column name by the shell (`agent/pgbouncer`).

use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use serde::Serialize;

/// One look at a PgBouncer process.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct ConsoleView {
    /// Major and minor version, for instance `(1, 18)`.
    pub version: (u32, u32),
    /// `SHOW DATABASES`, without PgBouncer's own.
    pub databases: Vec<LoadedDatabase>,
    /// `SHOW SERVERS`.
    pub servers: Vec<ServerLink>,
    /// `SHOW POOLS`: clients that wait for a server link, summed by database (`cl_waiting`).
    pub waiting: BTreeMap<String, u64>,
    /// `SHOW CONFIG`: `server_login_retry` as it is in force now.
    pub login_retry: Option<String>,
    /// `SHOW DNS_HOSTS`: addresses by host name.
    pub resolved: BTreeMap<String, Vec<String>>,
}

/// A row of `SHOW DATABASES`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LoadedDatabase {
    /// Entry of `[databases]`.
    pub name: String,
    /// Host or host list; none: a unix socket.
    pub host: Option<String>,
    /// TCP port.
    pub port: u16,
    /// Paused by itself (a global pause does not show here).
    pub paused: bool,
}

/// A row of `SHOW SERVERS`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServerLink {
    /// Entry of `[databases]`.
    pub database: String,
    /// PgBouncer's state word (`active`, `idle`, `used`, `tested`, `login`, …).
    pub state: String,
    /// Address of the server as resolved; `unix` for a unix socket.
    pub addr: String,
    /// Port of the server.
    pub port: u16,
}
