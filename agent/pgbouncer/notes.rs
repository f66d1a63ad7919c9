//! What must outlive the agent: settings we borrowed, databases we cut, the last good files. One folder per pooler,
//! private to the agent because ini files hold passwords.

use super::pauses;
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
    console: Option<(String, Option<PathBuf>)>,
    debts: PathBuf,
    good: PathBuf,
}

/// What we owe to a pooler.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Debts {
    /// The pooler's name.
    pub pooler: String,
    /// Connection string of its console, for who pays without a configuration.
    #[serde(default)]
    pub console: Option<String>,
    /// Holds the console's password.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// Value of `server_login_retry` to give back.
    pub login_retry: Option<String>,
    /// Databases that were cut and are to be resumed.
    pub cut: Vec<String>,
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
            console: None,
            debts: state_dir.join(DEBTS).join(format!("{name}.json")),
            good: state_dir.join(GOOD).join(name),
        }
    }

    /// Notes the console too, so that the debts can be paid without a configuration.
    pub fn of_console(mut self, conninfo: &str, password_file: Option<&Path>) -> Self {
        self.console = Some((conninfo.into(), password_file.map(Path::to_path_buf)));
        self
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
        if let Some((console, password_file)) = &self.console {
            debts.console = Some(console.clone());
            debts.password_file = password_file.clone();
        }
        // All of it is about a running PgBouncer, which does not outlive a power cut either.
        if debts.login_retry.is_none() && debts.cut.is_empty() {
            return files::remove_until_boot(&self.debts).map(|_| ()).map_err(|e| e.to_string());
        }
        write_json_until_boot(&self.debts, &debts)
    }

    /// Keeps these files as the last good ones. The index is replaced last: a crash leaves the ones of before.
    ///
    /// # Errors
    /// A sentence, when they are not all on disk.
    pub fn keep_good(&self, files: &Files) -> Result<(), String> {
        files::private_folder(&self.good).map_err(|e| e.to_string())?;
        let mut index = GoodIndex {
            pooler: self.pooler.clone(),
            root: files.root.clone(),
            cwd: files.cwd.clone(),
            parts: BTreeMap::new(),
        };
        for (path, content) in &files.parts {
            let name = self.copy_name(path);
            files::put(&self.good.join(&name), content, &Access::PRIVATE).map_err(|e| e.to_string())?;
            index.parts.insert(path.clone(), name);
        }
        write_json(&self.good.join(INDEX), &index)?;
        self.remove_other_copies(&index);
        Ok(())
    }

    /// A name that says which file this is, and that no copy has yet.
    fn copy_name(&self, path: &str) -> String {
        let base =
            Path::new(path).file_name().map_or_else(|| "ini".into(), |n| n.to_string_lossy().into_owned());
        let mut number = 0_u64;
        while self.good.join(format!("{number}-{base}")).exists() {
            number += 1;
        }
        format!("{number}-{base}")
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
}

/// Reads what earlier runs left about all poolers. What cannot be read is left out and said.
pub fn load(state_dir: &Path, restored: &mut Restored, problems: &mut Vec<String>) {
    let (owed, mut found) = debts(state_dir);
    problems.append(&mut found);
    for debts in owed {
        if let Some(value) = debts.login_retry {
            restored.borrowed_login_retry.insert(debts.pooler.clone(), value);
        }
        if !debts.cut.is_empty() {
            restored.cut.insert(debts.pooler, debts.cut);
        }
    }
    pauses::load(state_dir, restored, problems);
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

/// What is owed to all poolers.
///
/// # Errors
/// Sentences about what cannot be read, beside those that can.
pub fn debts(state_dir: &Path) -> (Vec<Debts>, Vec<String>) {
    let mut problems = Vec::new();
    let mut all = Vec::new();
    for path in entries(&state_dir.join(DEBTS), &mut problems) {
        match read_json_or_set_aside::<Debts>(&path) {
            Ok(debts) => all.extend(debts),
            Err(why) => problems.push(why),
        }
    }
    (all, problems)
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
pub(super) fn entries(folder: &Path, problems: &mut Vec<String>) -> Vec<PathBuf> {
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
    let json = to_json(path, value)?;
    files::put(path, &json, &Access::PRIVATE).map_err(|e| e.to_string())
}

/// The same for what means nothing after the next boot (see [`files::put_until_boot`]).
///
/// # Errors
/// A sentence, when it is not there.
pub fn write_json_until_boot<T: Serialize>(path: &Path, value: &T) -> Result<(), String> {
    let json = to_json(path, value)?;
    files::put_until_boot(path, &json, &Access::PRIVATE).map_err(|e| e.to_string())
}

fn to_json<T: Serialize>(path: &Path, value: &T) -> Result<Vec<u8>, String> {
    if let Some(folder) = path.parent() {
        files::private_folder(folder).map_err(|e| e.to_string())?;
    }
    serde_json::to_vec_pretty(value).map_err(|e| format!("cannot write {}: {e}", path.display()))
}

/// A pooler's name as a file name: other bytes than letters, digits, `_` and `-` as `%XX`.
pub(super) fn file_name(pooler: &str) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use tempfile::tempdir;

    fn loaded(dir: &Path) -> (Restored, Vec<String>) {
        let (mut restored, mut problems) = (Restored::default(), Vec::new());
        load(dir, &mut restored, &mut problems);
        (restored, problems)
    }

    fn files(root: &str, parts: &[(&str, &str)]) -> Files {
        let parts = parts.iter().map(|(path, content)| ((*path).into(), content.as_bytes().to_vec()));
        Files { root: root.into(), cwd: "/run".into(), parts: parts.collect() }
    }

    #[test]
    fn debts_survive_until_they_are_paid() {
        let dir = tempdir().unwrap();
        let write = Notes::new(dir.path(), "write");
        let read = Notes::new(dir.path(), "../read.x");
        write.borrow_login_retry("15").unwrap();
        for database in ["app", "app", "b"] {
            write.begin_cut(database).unwrap();
        }
        read.begin_cut("r").unwrap();
        let (restored, problems) = loaded(dir.path());
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!(restored.borrowed_login_retry, BTreeMap::from([("write".into(), "15".into())]));
        let cut = BTreeMap::from([
            ("write".into(), vec!["app".into(), "b".into()]),
            ("../read.x".into(), vec!["r".into()]),
        ]);
        assert_eq!(restored.cut, cut);
        assert_eq!((write.has_cut("app"), write.has_cut("x")), (Ok(true), Ok(false)));
        write.return_login_retry().unwrap();
        write.end_cut("app").unwrap();
        write.end_cut("b").unwrap();
        read.end_cut("r").unwrap();
        assert_eq!(loaded(dir.path()), (Restored::default(), Vec::new()));
        assert_eq!(fs::read_dir(dir.path().join(DEBTS)).unwrap().count(), 0);
    }

    #[test]
    fn the_last_good_files_replace_the_ones_of_before() {
        let dir = tempdir().unwrap();
        let notes = Notes::new(dir.path(), "write");
        let first = files("/etc/p/p.ini", &[("/etc/p/p.ini", "1"), ("/etc/q/p.ini", "2"), ("/x/dbs", "3")]);
        let second = files("/etc/p/p.ini", &[("/etc/p/p.ini", "4")]);
        for good in [&first, &second, &second] {
            notes.keep_good(good).unwrap();
            let (restored, problems) = loaded(dir.path());
            assert!(problems.is_empty(), "{problems:?}");
            assert_eq!(restored.last_good, BTreeMap::from([("write".into(), good.clone())]));
            let copies: Vec<_> = fs::read_dir(dir.path().join("good/write")).unwrap().flatten().collect();
            assert_eq!(copies.len(), good.parts.len() + 1);
            assert!(
                copies.iter().all(|copy| copy.metadata().unwrap().mode() & 0o077 == 0),
                "they hold passwords"
            );
        }
    }

    #[test]
    fn a_crash_between_the_copies_and_the_index_keeps_the_old_ones() {
        let dir = tempdir().unwrap();
        let notes = Notes::new(dir.path(), "write");
        let old = files("/p.ini", &[("/p.ini", "old")]);
        notes.keep_good(&old).unwrap();
        // The index cannot be written: that is where the crash is.
        let index = dir.path().join("good/write/index.json");
        let content = fs::read(&index).unwrap();
        fs::remove_file(&index).unwrap();
        fs::create_dir(&index).unwrap();
        assert!(notes.keep_good(&files("/p.ini", &[("/p.ini", "new")])).is_err());
        fs::remove_dir(&index).unwrap();
        fs::write(&index, content).unwrap();
        let (restored, problems) = loaded(dir.path());
        assert!(problems.is_empty(), "{problems:?}");
        assert_eq!(restored.last_good["write"].parts, old.parts);
    }

    #[test]
    fn corrupt_notes_are_set_aside_and_said() {
        let dir = tempdir().unwrap();
        Notes::new(dir.path(), "a").borrow_login_retry("15").unwrap();
        fs::create_dir_all(dir.path().join("good/c")).unwrap();
        for path in ["poolers/b.json", "good/c/index.json"] {
            fs::write(dir.path().join(path), "{").unwrap();
        }
        let (restored, problems) = loaded(dir.path());
        assert_eq!(restored.borrowed_login_retry.len(), 1, "the others count");
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems.iter().all(|p| p.contains("it is kept as")), "{problems:?}");
        assert_eq!(loaded(dir.path()).1, Vec::<String>::new());
    }
}
