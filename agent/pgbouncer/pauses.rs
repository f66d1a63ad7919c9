//! The journal of our pauses: one file per pooler, written before PgBouncer is told. It holds all that is needed to end
//! the pause, because whoever ends it may have no configuration: the guard process, `pgsquire release`, the next run.
//!
//! It outlives every process, but is not made durable: a power cut ends PgBouncer, and the pause with it.

use super::notes::{self, file_name, read_json_or_set_aside, write_json_until_boot};
use crate::{clock, files};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use pgsquire_core::effect::{Pause, PauseScope};
use pgsquire_core::event::Restored;
use pgsquire_core::time::Time;
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// After the end of a pause its owner has this long to end it.
const GRACE: Duration = Duration::from_secs(1);
/// Who holds the lock for longer is frozen or waits for a console that is: no reason to leave a pause on.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// A pause of ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// The pooler's name.
    pub pooler: String,
    /// The boot that [`Pause::until`] belongs to.
    pub boot_id: String,
    /// Connection string of the console.
    pub console: String,
    /// Holds the console's password.
    pub password_file: Option<PathBuf>,
    /// The pause.
    pub pause: Pause,
    /// What was paused before the scope changed, until that is resumed: a crash in between must leave nothing paused.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub before: Vec<PauseScope>,
}

impl Entry {
    /// All that may be paused by us.
    pub fn scopes(&self) -> Vec<PauseScope> {
        std::iter::once(&self.pause.scope).chain(&self.before).cloned().collect()
    }

    /// Whether the whole process may be paused by us.
    pub fn has_process(&self) -> bool {
        self.scopes().contains(&PauseScope::Process)
    }

    /// Whether this database may be paused by us, by itself.
    pub fn names(&self, database: &str) -> bool {
        let names = |scope: &PauseScope| match scope {
            PauseScope::Process => false,
            PauseScope::Databases(list) => list.iter().any(|d| d == database),
        };
        self.scopes().iter().any(names)
    }

    /// When somebody else than its owner ends it. The clock of another boot says nothing: that pause is over.
    pub fn end(&self, boot_id: &str) -> Time {
        if self.boot_id == boot_id { self.pause.until + GRACE } else { Time::ZERO }
    }
}

/// What is paused, for people.
pub fn said(scope: &PauseScope) -> String {
    match scope {
        PauseScope::Process => "the whole process".into(),
        PauseScope::Databases(list) => list.join(", "),
    }
}

/// Says which boot of the machine this is.
pub fn boot_id() -> String {
    // Without it (no /proc) every boot looks the same, and an old entry is ended at its end at the latest.
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// The folder of the journals.
pub fn folder(state_dir: &Path) -> PathBuf {
    state_dir.join("pauses")
}

/// The journal of one pooler.
#[derive(Debug, Clone)]
pub struct Journal {
    path: PathBuf,
}

impl Journal {
    /// The one of this pooler in a state folder.
    pub fn new(state_dir: &Path, pooler: &str) -> Self {
        Journal { path: folder(state_dir).join(format!("{}.json", file_name(pooler))) }
    }

    /// All that are there.
    ///
    /// # Errors
    /// Sentences about what cannot be read, beside those that can.
    pub fn all(state_dir: &Path) -> (Vec<Journal>, Vec<String>) {
        let mut problems = Vec::new();
        let paths = notes::entries(&folder(state_dir), &mut problems);
        (paths.into_iter().map(|path| Journal { path }).collect(), problems)
    }

    /// Its file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The pause of ours that has not ended; none: there is none.
    ///
    /// # Errors
    /// A sentence, when the file cannot be read or understood. What cannot be understood is set aside.
    pub fn read(&self) -> Result<Option<Entry>, String> {
        read_json_or_set_aside(&self.path)
    }

    /// Writes an entry.
    ///
    /// # Errors
    /// A sentence, when it is not there.
    pub fn write(&self, entry: &Entry) -> Result<(), String> {
        let _lock = self.lock();
        write_json_until_boot(&self.path, entry)
    }

    /// Drops the entry.
    ///
    /// # Errors
    /// A sentence, when it is still there.
    pub fn remove(&self) -> Result<(), String> {
        files::remove_until_boot(&self.path).map(|_| ()).map_err(|e| e.to_string())
    }

    /// Keeps others from writing an entry while this one is read and ended: else a pause that begins in between would be
    /// ended with it. None after [`LOCK_PATIENCE`].
    pub fn lock(&self) -> Option<Flock<File>> {
        let name = self.path.file_stem()?.to_str()?;
        files::private_folder(self.path.parent()?).ok()?;
        let path = self.path.with_file_name(format!(".{name}.lock"));
        let mut open = OpenOptions::new();
        let mut file = open.write(true).create(true).truncate(false).mode(0o600).open(path).ok()?;
        let give_up = Instant::now() + LOCK_PATIENCE;
        loop {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Some(lock),
                Err((back, Errno::EAGAIN)) if Instant::now() < give_up => file = back,
                Err(_) => return None,
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
}

/// Reads what earlier runs of this boot left paused. What cannot be read is left out and said.
pub fn load(state_dir: &Path, restored: &mut Restored, problems: &mut Vec<String>) {
    let (journals, mut found) = Journal::all(state_dir);
    problems.append(&mut found);
    let boot_id = boot_id();
    for journal in journals {
        match journal.read() {
            Ok(Some(entry)) if entry.boot_id == boot_id => {
                restored.pauses.insert(entry.pooler, entry.pause);
            }
            Ok(_) => {}
            Err(why) => problems.push(format!(
                "a pause of an earlier run is not known any more ({why}): look at SHOW DATABASES of the poolers on this \
                 host, and RESUME what nobody wants paused"
            )),
        }
    }
}

/// How long until somebody else than its owner ends a pause of this state folder, of the one that ends first; none:
/// there is no pause.
pub fn next_end(state_dir: &Path) -> Option<Duration> {
    let boot_id = boot_id();
    let now = clock::now();
    let entries = Journal::all(state_dir).0.into_iter().filter_map(|journal| journal.read().ok().flatten());
    entries.map(|entry| entry.end(&boot_id).since(now)).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tempfile::tempdir;

    fn entry(pooler: &str, boot_id: String) -> Entry {
        Entry {
            pooler: pooler.into(),
            boot_id,
            console: "host=/run".into(),
            password_file: None,
            pause: Pause {
                scope: PauseScope::Databases(vec!["app".into()]),
                until: Time::from_micros(5_000_000),
                min_pool_size: Some("3".into()),
                cause: "a test".into(),
            },
            before: Vec::new(),
        }
    }

    #[test]
    fn pauses_of_this_boot_are_restored() {
        let dir = tempdir().unwrap();
        let (ours, old) = (entry("a/b", boot_id()), entry("old", "another boot".into()));
        for entry in [&ours, &old] {
            let journal = Journal::new(dir.path(), &entry.pooler);
            journal.write(entry).unwrap();
            assert_eq!(journal.read().unwrap().as_ref(), Some(entry));
        }
        fs::write(folder(dir.path()).join("broken.json"), "{").unwrap();
        let (mut restored, mut problems) = (Restored::default(), Vec::new());
        load(dir.path(), &mut restored, &mut problems);
        assert_eq!(restored.pauses.into_iter().collect::<Vec<_>>(), [("a/b".to_owned(), ours.pause)]);
        assert!(problems.len() == 1 && problems[0].contains("broken.json.corrupt"), "{problems:?}");
        assert_eq!(next_end(dir.path()), Some(Duration::ZERO), "the one of another boot is over");
        for pooler in ["a/b", "old"] {
            Journal::new(dir.path(), pooler).remove().unwrap();
        }
        assert_eq!(next_end(dir.path()), None);
    }

    #[test]
    fn a_changed_scope_forgets_nothing() {
        let mut entry = entry("write", boot_id());
        assert!(entry.names("app") && !entry.names("b") && !entry.has_process());
        entry.before = vec![PauseScope::Process];
        assert!(entry.has_process());
        assert_eq!(entry.scopes(), [PauseScope::Databases(vec!["app".into()]), PauseScope::Process]);
        assert_eq!(entry.end(&boot_id()), Time::from_micros(6_000_000));
    }

    #[test]
    fn one_at_a_time() {
        let dir = tempdir().unwrap();
        let journal = Journal::new(dir.path(), "write");
        let held = journal.lock().expect("free");
        let other = journal.clone();
        let waiting = std::thread::spawn(move || other.lock().is_some());
        drop(held);
        assert!(waiting.join().unwrap());
    }
}
