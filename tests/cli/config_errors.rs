//! What `check-config` says about a broken file, byte for byte. After a wanted change run
//! `UPDATE_GOLDEN=1 cargo test --test cli` and read the diff.

use crate::host::PROGRAM;
use std::path::{Path, PathBuf};
use std::process::Command;

fn cases() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/cases");
    let entries = std::fs::read_dir(folder).expect("cases");
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("entry").path()).collect();
    files.retain(|file| file.extension().is_some_and(|ext| ext == "toml"));
    files.sort();
    assert!(!files.is_empty());
    files
}

#[test]
fn errors_are_shown_where_they_are() {
    for case in cases() {
        let (folder, name) = (case.parent().expect("folder"), case.file_name().expect("name"));
        let ran =
            Command::new(PROGRAM).arg("check-config").arg(name).current_dir(folder).output().expect("ran");
        let made = String::from_utf8(ran.stderr).expect("UTF-8");
        let golden = case.with_extension("stderr");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&golden, &made).expect("written");
        }
        let kept = std::fs::read_to_string(&golden).unwrap_or_default();
        assert_eq!(made, kept, "{} (made, kept)", golden.display());
        let refused = made.lines().any(|line| line.starts_with("error"));
        assert_eq!(ran.status.code(), Some(if refused { 2 } else { 0 }), "{}", case.display());
    }
}

#[test]
fn the_example_is_good() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("config.example.toml");
    let ran = Command::new(PROGRAM).arg("check-config").arg(&example).output().expect("ran");
    assert_eq!(String::from_utf8_lossy(&ran.stderr), "");
    assert_eq!(String::from_utf8_lossy(&ran.stdout), format!("{}: good\n", example.display()));
    assert_eq!(ran.status.code(), Some(0));
}
