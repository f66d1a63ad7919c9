//! `events.jsonl`: one entry per line, appended, and begun anew when it is large.

use super::{Journal, Record};
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;

/// A file does not grow beyond this, in bytes.
pub(super) const LIMIT: u64 = 4 * 1024 * 1024;
/// So much of a file's end is read at a start.
const TAIL: u64 = 1024 * 1024;

const CURRENT: &str = "events.jsonl";
const OLD: &str = "events.jsonl.1";

/// Appends entries to the file.
#[derive(Debug)]
pub struct Writer {
    current: PathBuf,
    old: PathBuf,
    lines: Receiver<String>,
    journal: Journal,
    open: Option<(File, u64)>,
}

impl Writer {
    pub(super) fn new(state_dir: &Path, lines: Receiver<String>, journal: Journal) -> Self {
        Writer { current: state_dir.join(CURRENT), old: state_dir.join(OLD), lines, journal, open: None }
    }

    /// Writes until [`Journal::close`]. Blocks its thread. A failed write loses that entry, and is counted.
    pub fn run(mut self) {
        let mut in_trouble = false;
        while let Ok(line) = self.lines.recv() {
            match self.write(&line) {
                Ok(()) if in_trouble => self.journal.disk_trouble(0, None),
                Ok(()) => {}
                Err(e) => {
                    // Opened again for the next entry: the folder may have come back by then.
                    self.open = None;
                    let why = format!("cannot write {}: {e}", self.current.display());
                    self.journal.disk_trouble(1, Some(why));
                    in_trouble = true;
                    continue;
                }
            }
            in_trouble = false;
        }
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        let length = line.len() as u64;
        let (file, size) = match self.open.take() {
            Some((_, size)) if size > 0 && size + length > LIMIT => {
                std::fs::rename(&self.current, &self.old)?;
                self.append_to()?
            }
            Some(open) => open,
            None => self.append_to()?,
        };
        let (file, size) = self.open.insert((file, size));
        file.write_all(line.as_bytes())?;
        *size += length;
        Ok(())
    }

    /// Opens the file for appending. A line that an earlier run did not finish is ended first.
    fn append_to(&self) -> io::Result<(File, u64)> {
        let mut options = OpenOptions::new();
        let mut file = options.read(true).append(true).create(true).mode(0o640).open(&self.current)?;
        let mut size = file.seek(SeekFrom::End(0))?;
        if size > 0 {
            let mut last = [0];
            file.seek(SeekFrom::End(-1))?;
            file.read_exact(&mut last)?;
            if last != [b'\n'] {
                file.write_all(b"\n")?;
                size += 1;
            }
        }
        Ok((file, size))
    }
}

/// The newest entries of an earlier run, oldest first, and what stood in the way.
pub(super) fn tail(state_dir: &Path, count: usize) -> (VecDeque<Record>, Option<String>) {
    let mut records = VecDeque::new();
    let mut trouble = None;
    for name in [OLD, CURRENT] {
        let path = state_dir.join(name);
        match end_of(&path) {
            Ok(bytes) => records.extend(
                bytes.split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice::<Record>(line).ok()),
            ),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => trouble = Some(format!("cannot read {}: {e}", path.display())),
        }
    }
    while records.len() > count {
        records.pop_front();
    }
    (records, trouble)
}

fn end_of(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(TAIL)))?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes)?;
    Ok(bytes)
}
