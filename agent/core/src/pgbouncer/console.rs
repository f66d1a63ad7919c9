//! What PgBouncer's admin console says, read by column name by the shell (`agent/pgbouncer`).

use crate::topology::Endpoint;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;
use serde::Serialize;

/// Settings that decisions need.
pub const SETTINGS: [&str; 8] = [
    "server_login_retry",
    "min_pool_size",
    "pool_mode",
    "query_wait_timeout",
    "query_timeout",
    "client_login_timeout",
    "auth_dbname",
    "max_client_conn",
];

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
    /// `SHOW CONFIG`: settings as they are in force now, as far as decisions need them ([`SETTINGS`]). A version that does
    /// not know one leaves it out.
    pub settings: BTreeMap<String, String>,
    /// `SHOW STATE`: the process is paused; none: this version (before 1.19) does not tell.
    pub paused: Option<bool>,
    /// `SHOW DNS_HOSTS`: addresses by host name.
    pub resolved: BTreeMap<String, Vec<String>>,
}

/// A row of `SHOW DATABASES`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct LoadedDatabase {
    /// Entry of `[databases]`.
    pub name: String,
    /// Host or host list; none: a unix socket.
    pub host: Option<String>,
    /// TCP port.
    pub port: u16,
    /// Paused by itself (a global pause does not show here).
    pub paused: bool,
    /// Its own `min_pool_size`, where the version tells one (1.16) and it has one.
    pub min_pool_size: Option<u32>,
    /// Its own `pool_mode`, where it has one.
    pub pool_mode: Option<String>,
}

impl LoadedDatabase {
    /// Whether it is loaded with exactly this host and port.
    pub fn is_at(&self, endpoint: &Endpoint) -> bool {
        self.host.as_ref() == Some(&endpoint.host) && self.port == endpoint.port
    }
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
    /// Its pool is in session mode (`SHOW POOLS`): the link stays until its client leaves.
    pub session: bool,
}
