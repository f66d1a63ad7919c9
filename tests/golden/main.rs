//! Golden tests: files in, files out.
//!
//! A case is a folder; what the code makes of its input is compared, byte for byte, with what the folder
//! holds. After a wanted change run `UPDATE_GOLDEN=1 cargo test --test golden` and read the diff before it is
//! committed.

mod ini;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Compares the files of a folder with what was made, or writes them if `UPDATE_GOLDEN` is set.
fn check(folder: &Path, made: &BTreeMap<String, Vec<u8>>) {
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        return update(folder, made);
    }
    let mut kept: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let entry = entry.unwrap();
        kept.insert(entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap());
    }
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(made), names(&kept), "files in {}", folder.display());
    for (name, bytes) in made {
        // As text with escapes: line endings and single bytes are what these tests are about.
        let show = |bytes: &[u8]| bytes.split_inclusive(|&b| b == b'\n').map(escape).collect::<Vec<_>>();
        assert_eq!(show(bytes), show(&kept[name]), "{} (made, kept)", folder.join(name).display());
    }
}

fn escape(line: &[u8]) -> String {
    line.escape_ascii().to_string()
}

fn update(folder: &Path, made: &BTreeMap<String, Vec<u8>>) {
    if folder.exists() {
        fs::remove_dir_all(folder).unwrap();
    }
    fs::create_dir_all(folder).unwrap();
    for (name, bytes) in made {
        fs::write(folder.join(name), bytes).unwrap();
    }
}
