//! What must outlive the agent: settings we borrowed, databases we cut, the last good files. One folder per pooler,
//! private to the agent because ini files hold passwords.

use crate::files::{self, Access};
use pgsquire_core::event::Restored;
use pgsquire_core::pgbouncer::ini::Files;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// The notes of one pooler.
#[derive(Debug, Clone)]
pub struct Notes {
    pooler: String,
    debts: PathBuf,
    good: PathBuf,
}

/// What we owe to a pooler.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
struct Debts {
    pooler: String,
    /// Value of `server_login_retry` to give back.
    login_retry: Option<String>,
    /// Databases that were cut and are to be resumed.
    cut: Vec<String>,
}

/// Which copy is which file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct GoodIndex {
    pooler: String,
    root: String,
    /// Folder that relative includes are taken from.
    cwd: String,
    /// Original path -> name of the copy in this folder.
    parts: BTreeMap<String, String>,
}

const GOOD: &str = "good";
const DEBTS: &str = "poolers";
const INDEX: &str = "index.json";

impl Notes {
    /// The notes of a pooler in a state folder.
    pub fn new(state_dir: &Path, pooler: &str) -> Self {
        let name = file_name(pooler);
        Notes {
            pooler: pooler.into(),
            debts: state_dir.join(DEBTS).join(format!("{name}.json")),
            good: state_dir.join(GOOD).join(name),
        }
    }

    /// Notes a value before it is changed.
    ///
    /// # Errors
    /// A sentence, when it is not on disk.
    pub fn borrow_login_retry(&self, value: &str) -> Result<(), String> {
        self.change(|debts| debts.login_retry = Some(value.into()))
    }

    /// Drops the note of the value.
    ///
    /// # Errors
    /// A sentence, when it is still on disk.
    pub fn return_login_retry(&self) -> Result<(), String> {
        self.change(|debts| debts.login_retry = None)
    }

    /// Whether a cut of this database has begun and not ended.
    ///
    /// # Errors
    /// A sentence, when the notes cannot be read.
    pub fn has_cut(&self, database: &str) -> Result<bool, String> {
        Ok(self.read_debts()?.cut.iter().any(|d| d == database))
    }

    /// Notes a database before it is cut.
    ///
    /// # Errors
    /// A sentence, when it is not on disk.
    pub fn begin_cut(&self, database: &str) -> Result<(), String> {
        self.change(|debts| {
            if !debts.cut.iter().any(|d| d == database) {
                debts.cut.push(database.into());
            }
        })
    }

    /// Drops the note of a cut.
    ///
    /// # Errors
    /// A sentence, when it is still on disk.
    pub fn end_cut(&self, database: &str) -> Result<(), String> {
        self.change(|debts| debts.cut.retain(|d| d != database))
    }

    fn read_debts(&self) -> Result<Debts, String> {
        let empty = || Debts { pooler: self.pooler.clone(), ..Debts::default() };
        match files::read(&self.debts) {
            Ok(content) => parse(&self.debts, &content),
            Err(e) if e.is_not_found() => Ok(empty()),
            Err(e) => Err(e.to_string()),
        }
    }

    fn change(&self, change: impl FnOnce(&mut Debts)) -> Result<(), String> {
        let before = self.read_debts()?;
        let mut debts = before.clone();
        change(&mut debts);
        if debts == before {
            return Ok(());
        }
        if debts.login_retry.is_none() && debts.cut.is_empty() {
            return files::remove(&self.debts).map_err(|e| e.to_string());
        }
        write_json(&self.debts, &debts)
    }

    /// Keeps these files as the last good ones. The index is replaced last: a crash leaves the ones of before.
    ///
    /// # Errors
    /// A sentence, when they are not all on disk.
    pub fn keep_good(&self, files: &Files) -> Result<(), String> {
        files::private_folder(&self.good).map_err(|e| e.to_string())?;
        let taken = self.read_index().ok().flatten().map(|index| index.parts).unwrap_or_default();
        let mut index = GoodIndex {
            pooler: self.pooler.clone(),
            root: files.root.clone(),
            cwd: files.cwd.clone(),
            parts: BTreeMap::new(),
        };
        for (path, content) in &files.parts {
            let name = self.copy_name(path, |name| {
                taken.values().any(|t| t == name) || index.parts.values().any(|t| t == name)
            });
            files::put(&self.good.join(&name), content, &Access::PRIVATE).map_err(|e| e.to_string())?;
            index.parts.insert(path.clone(), name);
        }
        write_json(&self.good.join(INDEX), &index)?;
        self.remove_other_copies(&index);
        Ok(())
    }

    /// A name that says which file this is, and that is not taken.
    fn copy_name(&self, path: &str, taken: impl Fn(&str) -> bool) -> String {
        let base =
            Path::new(path).file_name().map_or_else(|| "ini".into(), |n| n.to_string_lossy().into_owned());
        let numbered = (0..).map(|n: u64| format!("{n}-{base}"));
        numbered.into_iter().find(|name| !taken(name)).unwrap_or(base)
    }

    fn remove_other_copies(&self, index: &GoodIndex) {
        let Ok(entries) = fs::read_dir(&self.good) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name != INDEX && !index.parts.values().any(|kept| *kept == name) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    fn read_index(&self) -> Result<Option<GoodIndex>, String> {
        let path = self.good.join(INDEX);
        match files::read(&path) {
            Ok(content) => parse(&path, &content).map(Some),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e.to_string()),
        }
    }
}

/// Reads what earlier runs left about all poolers. What cannot be read is left out and said.
pub fn load(state_dir: &Path, restored: &mut Restored, problems: &mut Vec<String>) {
    for path in entries(&state_dir.join(DEBTS), problems) {
        match read_json_or_set_aside::<Debts>(&path) {
            Ok(Some(debts)) => {
                if let Some(value) = debts.login_retry {
                    restored.borrowed_login_retry.insert(debts.pooler.clone(), value);
                }
                if !debts.cut.is_empty() {
                    restored.cut.insert(debts.pooler, debts.cut);
                }
            }
            Ok(None) => {}
            Err(why) => problems.push(why),
        }
    }
    for folder in entries(&state_dir.join(GOOD), problems) {
        match load_good(&folder) {
            Ok(Some((pooler, files))) => {
                restored.last_good.insert(pooler, files);
            }
            Ok(None) => {}
            Err(why) => problems.push(why),
        }
    }
}

fn load_good(folder: &Path) -> Result<Option<(String, Files)>, String> {
    let Some(index) = read_json_or_set_aside::<GoodIndex>(&folder.join(INDEX))? else { return Ok(None) };
    let mut good = Files { root: index.root, cwd: index.cwd, parts: BTreeMap::new() };
    for (path, copy) in index.parts {
        let content =
            files::read(&folder.join(copy)).map_err(|e| format!("the last good files are lost: {e}"))?;
        good.parts.insert(path, content);
    }
    Ok(Some((index.pooler, good)))
}

/// Names of files and folders, without those set aside and the temporary ones.
fn entries(folder: &Path, problems: &mut Vec<String>) -> Vec<PathBuf> {
    let found = match fs::read_dir(folder) {
        Ok(found) => found,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(e) => {
            problems.push(format!("cannot read the folder {}: {e}", folder.display()));
            return Vec::new();
        }
    };
    let ours = |path: &PathBuf| {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        !name.starts_with('.') && !name.ends_with(CORRUPT)
    };
    let mut paths: Vec<PathBuf> = found.flatten().map(|entry| entry.path()).filter(ours).collect();
    paths.sort();
    paths
}

/// Ends the name of a file that could not be understood.
pub const CORRUPT: &str = ".corrupt";

/// Reads a JSON file of ours; none: there is none. One that is not what it should be is renamed to `….corrupt`, so that
/// it is neither lost nor in the way.
///
/// # Errors
/// A sentence that says what is lost.
pub fn read_json_or_set_aside<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, String> {
    let content = match files::read(path) {
        Ok(content) => content,
        Err(e) if e.is_not_found() => return Ok(None),
        Err(e) => return Err(e.to_string()),
    };
    let why = match parse(path, &content) {
        Ok(value) => return Ok(Some(value)),
        Err(why) => why,
    };
    let mut aside = path.as_os_str().to_owned();
    aside.push(CORRUPT);
    match fs::rename(path, &aside) {
        Ok(()) => Err(format!("{why}; it is kept as {}", Path::new(&aside).display())),
        Err(e) => Err(format!("{why}; and it could not be set aside: {e}")),
    }
}

fn parse<T: DeserializeOwned>(path: &Path, content: &[u8]) -> Result<T, String> {
    serde_json::from_slice(content)
        .map_err(|e| format!("{} is not what was written there: {e}", path.display()))
}

/// Writes a JSON file of ours, and its folder.
///
/// # Errors
/// A sentence, when it is not on disk.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), String> {
    let json =
        serde_json::to_vec_pretty(value).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    if let Some(folder) = path.parent() {
        files::private_folder(folder).map_err(|e| e.to_string())?;
    }
    files::put(path, &json, &Access::PRIVATE).map_err(|e| e.to_string())
}

/// A pooler's name as a file name: other bytes than letters, digits, `_` and `-` as `%XX`.
fn file_name(pooler: &str) -> String {
    let mut name = String::new();
    for byte in pooler.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-') {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!("%{byte:02X}"));
        }
    }
    name
}
