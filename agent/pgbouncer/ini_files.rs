//! The ini file and the files it includes, on disk.

use crate::files::{self, Access, FileError};
use pgsquire_core::event::Outcome;
use pgsquire_core::pgbouncer::ini::Files;
use std::collections::BTreeMap;
use std::path::Path;

/// Ends the name of the copy of a file that PgBouncer would not load.
pub const REJECTED: &str = ".pgsquire-rejected";

/// Reads the ini file and all that it includes. PgBouncer takes a relative include from the folder it was started in.
///
/// # Errors
/// A sentence, when one of them cannot be read.
pub fn read_all(root: &Path, cwd: &Path) -> Result<Files, String> {
    let content = files::read(root).map_err(|e| e.to_string())?;
    let mut found = Files::new(root.display().to_string(), cwd.display().to_string(), content);
    loop {
        let missing = found.missing();
        if missing.is_empty() {
            return Ok(found);
        }
        for path in missing {
            let content = files::read(Path::new(&path)).map_err(|e| reading(root, cwd, &e))?;
            found.parts.insert(path, content);
        }
    }
}

fn reading(root: &Path, cwd: &Path, error: &FileError) -> String {
    format!(
        "{error}; {} includes it (relative includes are taken from {}, where PgBouncer is thought to run)",
        root.display(),
        cwd.display()
    )
}

/// Replaces files whose content is still the expected one. When one of several cannot be replaced, those before it are
/// put back.
///
/// # Errors
/// A sentence, when a file cannot be compared or replaced.
pub fn write_all(
    wanted: &BTreeMap<String, (Vec<u8>, Vec<u8>)>,
    keep_rejected: bool,
) -> Result<Outcome, String> {
    for (path, (expected, _)) in wanted {
        match files::read(Path::new(path)) {
            Ok(found) if found == *expected => {}
            Ok(_) => return Ok(Outcome::ChangedMeanwhile),
            Err(e) if e.is_not_found() => return Ok(Outcome::ChangedMeanwhile),
            Err(e) => return Err(e.to_string()),
        }
    }
    let mut done = Vec::new();
    for (path, (expected, content)) in wanted {
        if let Err(why) = write_one(Path::new(path), expected, content, keep_rejected) {
            return Err(format!("{why}{}", put_back(&done)));
        }
        done.push((path, expected));
    }
    Ok(Outcome::Done)
}

fn write_one(path: &Path, expected: &[u8], content: &[u8], keep_rejected: bool) -> Result<(), FileError> {
    if expected == content {
        return Ok(());
    }
    if keep_rejected {
        let mut beside = path.as_os_str().to_owned();
        beside.push(REJECTED);
        files::put(Path::new(&beside), expected, &Access::of(path)?)?;
    }
    files::replace(path, content)
}

fn put_back(done: &[(&String, &Vec<u8>)]) -> String {
    let mut text = String::new();
    for (path, expected) in done {
        if let Err(e) = files::replace(Path::new(path), expected) {
            text = format!("{text}; and {path} could not be put back: {e}");
        }
    }
    text
}
