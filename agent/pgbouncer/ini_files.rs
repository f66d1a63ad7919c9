//! The ini file and the files it includes, on disk.

use crate::files::{self, Access, FileError};
use pgsquire_core::event::Outcome;
use pgsquire_core::pgbouncer::ini::Files;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// PgBouncer refuses includes that are nested deeper than this.
const DEEPEST_INCLUDE: usize = 10;

/// Ends the name of the copy of a file that PgBouncer would not load.
pub const REJECTED: &str = ".pgsquire-rejected";

/// Reads the ini file and all that it includes.
///
/// PgBouncer takes a relative include from the folder it was started in, which nobody outside can know: we take it from
/// the folder of the ini file.
///
/// # Errors
/// A sentence, when one of them cannot be read or includes are nested too deep (in a circle, most likely).
pub fn read_all(root: &Path) -> Result<Files, String> {
    let folder = root.parent().unwrap_or(Path::new("/"));
    let mut found = Files { root: root.display().to_string(), parts: BTreeMap::new() };
    let mut open = vec![(root.to_path_buf(), 0, None::<PathBuf>)];
    while let Some((path, depth, includer)) = open.pop() {
        let name = path.display().to_string();
        if depth > DEEPEST_INCLUDE {
            return Err(format!("{}: includes are nested more than {DEEPEST_INCLUDE} deep", root.display()));
        }
        let known = found.parts.get(&name).cloned();
        let content = match known {
            Some(content) => content,
            None => files::read(&path).map_err(|e| reading(&path, includer.as_deref(), folder, &e))?,
        };
        for include in includes(&content) {
            open.push((folder.join(include), depth + 1, Some(path.clone())));
        }
        found.parts.insert(name, content);
    }
    Ok(found)
}

fn reading(path: &Path, includer: Option<&Path>, folder: &Path, error: &FileError) -> String {
    match includer {
        None => error.to_string(),
        Some(includer) => format!(
            "{error}, which {} includes (a relative path is taken from {}; {} is the result)",
            includer.display(),
            folder.display(),
            path.display()
        ),
    }
}

/// The paths that one file includes, as written.
fn includes(content: &[u8]) -> Vec<String> {
    let path = |line: &[u8]| {
        let rest = line.trim_ascii_start().strip_prefix(b"%include")?;
        let blank = rest.first().is_some_and(|b| matches!(b, b' ' | b'\t'));
        blank.then(|| String::from_utf8_lossy(rest.trim_ascii()).into_owned())
    };
    content.split(|b| *b == b'\n').filter_map(path).filter(|path| !path.is_empty()).collect()
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
