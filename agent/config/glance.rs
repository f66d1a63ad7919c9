//! The few settings that a command must know to find the daemon, and a hook to end without it. It works on a file that is otherwise wrong, so that
//! `status` and the callback still reach a daemon that runs on its last good configuration.

use super::units;
use pgsquire_core::config::{Fence, SwitchConfig};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::de::{DeTable, DeValue};

/// Default of `[control] socket`.
pub const DEFAULT_SOCKET: &str = "/run/pgsquire/control.sock";
/// Default of `[node] state_dir`.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/pgsquire";

/// Where to find the daemon and its folder, and how long a hook may wait.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glance {
    /// `[control] socket`.
    pub control_socket: PathBuf,
    /// `[node] state_dir`.
    pub state_dir: PathBuf,
    /// `[switch] fence`.
    pub fence: Fence,
    /// `[switch] drain_timeout`.
    pub drain_timeout: Duration,
    /// `[switch] fence_timeout`.
    pub fence_timeout: Duration,
    /// Why the defaults are used, if the file could not be read.
    pub trouble: Option<String>,
}

/// Looks only for these settings; what is wrong with one of them reads as its default. A missing file is trouble only when it was asked for by name.
pub fn glance(path: &Path) -> Glance {
    let read = std::fs::read_to_string(path);
    let (text, trouble) = match read {
        Ok(text) => (text, None),
        Err(e) if e.kind() == ErrorKind::NotFound && path == Path::new(super::DEFAULT_FILE) => {
            (String::new(), None)
        }
        Err(e) => (String::new(), Some(format!("cannot read the configuration {}: {e}", path.display()))),
    };
    let (document, errors) = DeTable::parse_recoverable(&text);
    let broken = errors.first().map(|e| format!("{} is not TOML: {}", path.display(), e.message()));
    let get = |table: &str, key: &str| {
        let table = document.get_ref().get(table).map(|t| t.get_ref());
        let value = match table {
            Some(DeValue::Table(entries)) => entries.get(key).map(|v| v.get_ref()),
            _ => None,
        };
        match value {
            Some(DeValue::String(text)) => Some(text.as_ref()),
            _ => None,
        }
    };
    let path = |table, key, default: &str| PathBuf::from(get(table, key).unwrap_or(default));
    let duration =
        |key, default| get("switch", key).and_then(|text| units::duration(text).ok()).unwrap_or(default);
    let switch = SwitchConfig::default();
    let fence = match get("switch", "fence") {
        Some("off") => Fence::Off,
        Some("strict") => Fence::Strict,
        _ => switch.fence,
    };
    Glance {
        control_socket: path("control", "socket", DEFAULT_SOCKET),
        state_dir: path("node", "state_dir", DEFAULT_STATE_DIR),
        fence,
        drain_timeout: duration("drain_timeout", switch.drain_timeout),
        fence_timeout: duration("fence_timeout", switch.fence_timeout),
        trouble: trouble.or(broken),
    }
}
