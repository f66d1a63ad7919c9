//! The two settings that a command must know to find the daemon. It works on a file that is otherwise wrong, so that
//! `status` and the callback still reach a daemon that runs on its last good configuration.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use toml::de::{DeTable, DeValue};

/// Default of `[control] socket`.
pub const DEFAULT_SOCKET: &str = "/run/pgsquire/control.sock";
/// Default of `[node] state_dir`.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/pgsquire";

/// Where to find the daemon and its folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glance {
    /// `[control] socket`.
    pub control_socket: PathBuf,
    /// `[node] state_dir`.
    pub state_dir: PathBuf,
    /// Why the defaults are used, if the file could not be read.
    pub trouble: Option<String>,
}

/// Looks only for the two settings. A missing file is trouble only when it was asked for by name.
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
    let get = |table: &str, key: &str, default: &str| {
        let table = document.get_ref().get(table).map(|t| t.get_ref());
        let value = match table {
            Some(DeValue::Table(entries)) => entries.get(key).map(|v| v.get_ref()),
            _ => None,
        };
        match value {
            Some(DeValue::String(text)) => PathBuf::from(text.as_ref()),
            _ => PathBuf::from(default),
        }
    };
    Glance {
        control_socket: get("control", "socket", DEFAULT_SOCKET),
        state_dir: get("node", "state_dir", DEFAULT_STATE_DIR),
        trouble: trouble.or(broken),
    }
}
