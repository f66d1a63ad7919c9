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
        match write_one(Path::new(path), expected, content, keep_rejected) {
            Ok(true) => {}
            Ok(false) => {
                return match put_back(&done) {
                    failed if failed.is_empty() => Ok(Outcome::ChangedMeanwhile),
                    failed => Err(format!("{path} changed meanwhile{failed}")),
                };
            }
            Err(why) => return Err(format!("{why}{}", put_back(&done))),
        }
        done.push((path, expected));
    }
    Ok(Outcome::Done)
}

/// Says whether it was written: not, when the content is not the expected one any more.
fn write_one(path: &Path, expected: &[u8], content: &[u8], keep_rejected: bool) -> Result<bool, FileError> {
    if expected == content {
        return Ok(true);
    }
    if keep_rejected {
        let mut beside = path.as_os_str().to_owned();
        beside.push(REJECTED);
        files::put(Path::new(&beside), expected, &Access::of(path)?)?;
    }
    files::replace_if(path, content, || files::read(path).is_ok_and(|found| found == expected))
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use tempfile::tempdir;

    fn text(path: &Path) -> String {
        path.display().to_string()
    }

    #[test]
    fn includes_are_followed_from_the_working_directory() {
        let dir = tempdir().unwrap();
        let cwd = dir.path().join("cwd");
        fs::create_dir(&cwd).unwrap();
        let root = dir.path().join("p.ini");
        fs::write(
            &root,
            format!("[pgbouncer]\n%include a.ini\n%include {}\n", text(&dir.path().join("b.ini"))),
        )
        .unwrap();
        fs::write(cwd.join("a.ini"), "%include deep.ini\n").unwrap();
        fs::write(cwd.join("deep.ini"), "x = 1\n").unwrap();
        fs::write(dir.path().join("b.ini"), "y = 2\n").unwrap();
        let files = read_all(&root, &cwd).unwrap();
        assert_eq!(files.root, text(&root));
        let mut expected: Vec<_> =
            [root.clone(), cwd.join("a.ini"), cwd.join("deep.ini"), dir.path().join("b.ini")]
                .map(|p| text(&p))
                .into();
        expected.sort();
        assert_eq!(files.parts.keys().cloned().collect::<Vec<_>>(), expected);
        fs::remove_file(cwd.join("deep.ini")).unwrap();
        let why = read_all(&root, &cwd).unwrap_err();
        assert!(why.contains("cwd/deep.ini") && why.contains("relative includes are taken from"), "{why}");
    }

    #[test]
    fn nothing_is_written_over_what_the_decision_did_not_see() {
        let dir = tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&a, "1").unwrap();
        fs::write(&b, "edited").unwrap();
        let wanted = |path: &Path, expected: &str, content: &str| {
            (text(path), (expected.as_bytes().to_vec(), content.as_bytes().to_vec()))
        };
        let both = BTreeMap::from([wanted(&a, "1", "2"), wanted(&b, "1", "2")]);
        assert_eq!(write_all(&both, false), Ok(Outcome::ChangedMeanwhile));
        assert_eq!(fs::read(&a).unwrap(), b"1");
        let gone = BTreeMap::from([wanted(&dir.path().join("gone"), "", "2")]);
        assert_eq!(write_all(&gone, false), Ok(Outcome::ChangedMeanwhile));
        fs::write(&b, "1").unwrap();
        assert_eq!(write_all(&both, false), Ok(Outcome::Done));
        assert_eq!((fs::read(&a).unwrap(), fs::read(&b).unwrap()), (b"2".to_vec(), b"2".to_vec()));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }

    #[test]
    fn the_rejected_content_is_kept_as_private_as_it_was() {
        let dir = tempdir().unwrap();
        let a = dir.path().join("a.ini");
        fs::write(&a, "bad").unwrap();
        fs::set_permissions(&a, fs::Permissions::from_mode(0o640)).unwrap();
        let files = BTreeMap::from([(text(&a), (b"bad".to_vec(), b"good".to_vec()))]);
        assert_eq!(write_all(&files, true), Ok(Outcome::Done));
        let kept = dir.path().join("a.ini.pgsquire-rejected");
        assert_eq!((fs::read(&a).unwrap(), fs::read(&kept).unwrap()), (b"good".to_vec(), b"bad".to_vec()));
        assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o640);
    }

    #[test]
    fn of_several_files_all_are_written_or_none() {
        let dir = tempdir().unwrap();
        let a = dir.path().join("a");
        let b = dir.path().join("b");
        fs::write(&a, "1").unwrap();
        fs::write(&b, "1").unwrap();
        // The copy of b cannot be put there.
        fs::create_dir(dir.path().join("b.pgsquire-rejected")).unwrap();
        let wanted = (b"1".to_vec(), b"2".to_vec());
        let files = BTreeMap::from([(text(&a), wanted.clone()), (text(&b), wanted)]);
        let why = write_all(&files, true).unwrap_err();
        assert!(why.contains("b.pgsquire-rejected"), "{why}");
        assert_eq!((fs::read(&a).unwrap(), fs::read(&b).unwrap()), (b"1".to_vec(), b"1".to_vec()));
    }
}
