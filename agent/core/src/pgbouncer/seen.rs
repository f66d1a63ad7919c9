//! One look at the console, ordered for the questions that are asked of it at every turn.

use super::console::{ConsoleView, LoadedDatabase, ServerLink};
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

/// A look.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Seen {
    /// Major and minor version.
    pub version: (u32, u32),
    /// Loaded databases by name.
    pub databases: BTreeMap<String, LoadedDatabase>,
    /// Server links by database.
    pub links: BTreeMap<String, Vec<ServerLink>>,
    /// Clients that wait for a server link, by database.
    pub waiting: BTreeMap<String, u64>,
    /// Settings in force.
    pub settings: BTreeMap<String, String>,
    /// The process is paused, where the version tells.
    pub paused: Option<bool>,
    /// Addresses by host name.
    pub resolved: BTreeMap<String, Vec<String>>,
}

impl From<ConsoleView> for Seen {
    fn from(view: ConsoleView) -> Self {
        let mut links: BTreeMap<String, Vec<ServerLink>> = BTreeMap::new();
        for link in view.servers {
            links.entry(link.database.clone()).or_default().push(link);
        }
        Seen {
            version: view.version,
            databases: view.databases.into_iter().map(|row| (row.name.clone(), row)).collect(),
            links,
            waiting: view.waiting,
            settings: view.settings,
            paused: view.paused,
            resolved: view.resolved,
        }
    }
}

impl Seen {
    /// Server links of a database.
    pub fn links_of(&self, database: &str) -> &[ServerLink] {
        self.links.get(database).map_or(&[], Vec::as_slice)
    }
}
