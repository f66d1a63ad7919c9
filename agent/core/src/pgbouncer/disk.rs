//! The files on disk, understood once per change.

use super::ini::Files;
use crate::topology::Endpoint;
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// PgBouncer's default of `server_login_retry`, in seconds.
const DEFAULT_LOGIN_RETRY: &str = "15";

/// Files and what they mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// Them.
    pub files: Files,
    /// Where each entry of `[databases]` leads; entries without a host (a unix socket) are missing here.
    pub entries: BTreeMap<String, Endpoint>,
    /// The file in which each entry stands.
    pub places: BTreeMap<String, String>,
    /// What PgBouncer would refuse; nothing is written while there is any.
    pub problems: Vec<String>,
    /// `server_login_retry` as the file has it, else PgBouncer's default.
    pub login_retry: String,
}

impl Disk {
    /// Understands the files.
    pub fn new(files: Files) -> Self {
        let mut entries = BTreeMap::new();
        let mut places = BTreeMap::new();
        for (name, entry) in files.entries() {
            if let (Some(host), Ok(port)) = (entry.host, u16::try_from(entry.port)) {
                entries.insert(name.clone(), Endpoint { host, port });
            }
            places.insert(name, entry.file);
        }
        let problems = files.problems();
        Disk {
            entries,
            places,
            problems: problems.iter().filter(|p| p.is_fatal()).map(ToString::to_string).collect(),
            login_retry: files.setting("server_login_retry").unwrap_or_else(|| DEFAULT_LOGIN_RETRY.into()),
            files,
        }
    }

    /// New bytes of the files that change when these entries are led to these endpoints.
    ///
    /// # Errors
    /// What speaks against it, each with file and line.
    pub fn retarget(&self, wanted: &BTreeMap<String, Endpoint>) -> Result<BTreeMap<String, Vec<u8>>, String> {
        self.files.retarget(wanted).map_err(|e| e.to_string())
    }
}
