//! The cases, as golden and contract tests read them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use pgsquire_core::pgbouncer::ini::{Endpoint, Files};

/// One folder.
pub struct Case {
    /// Its name.
    pub name: String,
    /// `want.toml`: the entries and where they are to lead.
    pub wanted: BTreeMap<String, Endpoint>,
    parts: BTreeMap<String, Vec<u8>>,
}

impl Case {
    /// All of them.
    pub fn all() -> Vec<Case> {
        let folders = children(&folder()).into_iter().filter(|path| path.is_dir());
        let mut cases: Vec<_> = folders.map(Case::read).collect();
        cases.sort_by(|a, b| a.name.cmp(&b.name));
        assert!(!cases.is_empty(), "no case found in {}", folder().display());
        cases
    }

    /// The configuration as it is when its files stand in `dir`, which is PgBouncer's working directory too.
    pub fn files(&self, dir: &str) -> Files {
        let parts = self.parts.iter().map(|(name, bytes)| (format!("{dir}/{name}"), bytes.clone()));
        Files { root: format!("{dir}/pgbouncer.ini"), cwd: dir.into(), parts: parts.collect() }
    }

    fn read(folder: PathBuf) -> Case {
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_string();
        let parts = children(&folder.join("in")).into_iter().map(|p| (name(&p), fs::read(&p).unwrap()));
        let wanted: toml::Table = fs::read_to_string(folder.join("want.toml")).unwrap().parse().unwrap();
        let endpoint = |value: &toml::Value| Endpoint {
            host: value["host"].as_str().unwrap().into(),
            port: value["port"].as_integer().unwrap().try_into().unwrap(),
        };
        Case {
            name: name(&folder),
            wanted: wanted.iter().map(|(entry, value)| (entry.clone(), endpoint(value))).collect(),
            parts: parts.collect(),
        }
    }
}

/// Where the cases are.
pub fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/ini")
}

fn children(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    entries.map(|entry| entry.unwrap().path()).collect()
}
