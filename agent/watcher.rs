//! Notices that a file changed. Folders are watched, not files: an editor replaces files, and a watch of the old one
//! would see nothing any more. A notice is a hint; whoever gets it compares the content.

use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::sync::mpsc::{Receiver, channel};

/// Changes that follow one another this closely are one.
const QUIET: Duration = Duration::from_millis(50);

/// Watches some files until it is dropped.
pub struct Watcher {
    files: BTreeSet<PathBuf>,
    changed: Receiver<PathBuf>,
    pending: BTreeSet<PathBuf>,
    /// Watches as long as it lives; none where the system refused: then the periodic reads must do.
    _watcher: Option<RecommendedWatcher>,
}

impl Watcher {
    /// Watches these files. What cannot be watched is logged: it is read from time to time all the same.
    pub fn new(files: &[PathBuf]) -> Self {
        let (tx, changed) = channel(256);
        let notice = move |event: notify::Result<Event>| {
            let Ok(event) = event else { return };
            // Reading a file makes events too.
            if event.kind.is_access() || matches!(event.kind, EventKind::Other) {
                return;
            }
            for path in event.paths {
                // A full channel holds enough to look at everything.
                let _ = tx.try_send(path);
            }
        };
        let watcher = notify::recommended_watcher(notice).map(|mut watcher| {
            let folders: BTreeSet<&Path> = files.iter().filter_map(|file| file.parent()).collect();
            for folder in folders {
                if let Err(e) = watcher.watch(folder, RecursiveMode::NonRecursive) {
                    tracing::warn!(
                        "cannot watch {}: {e}; changes there are seen within seconds",
                        folder.display()
                    );
                }
            }
            watcher
        });
        let watcher = watcher.inspect_err(|e| tracing::warn!("cannot watch files: {e}")).ok();
        Watcher {
            files: files.iter().cloned().collect(),
            changed,
            pending: BTreeSet::new(),
            _watcher: watcher,
        }
    }

    /// The next file of ours that changed. Safe to drop and call again.
    pub async fn next(&mut self) -> PathBuf {
        loop {
            if self.pending.is_empty() {
                match self.changed.recv().await {
                    Some(path) => self.note(path),
                    None => std::future::pending().await,
                }
                continue;
            }
            match tokio::time::timeout(QUIET, self.changed.recv()).await {
                Ok(Some(path)) => self.note(path),
                _ => {
                    if let Some(path) = self.pending.pop_first() {
                        return path;
                    }
                }
            }
        }
    }

    fn note(&mut self, path: PathBuf) {
        if self.files.contains(&path) {
            self.pending.insert(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_replaced_file_is_noticed_and_its_neighbours_are_not() {
        let folder = tempfile::tempdir().unwrap();
        let (file, neighbour) = (folder.path().join("a.ini"), folder.path().join("b.ini"));
        std::fs::write(&file, "1").unwrap();
        let mut watcher = Watcher::new(std::slice::from_ref(&file));
        std::fs::write(&neighbour, "x").unwrap();
        std::fs::write(folder.path().join("tmp"), "2").unwrap();
        std::fs::rename(folder.path().join("tmp"), &file).unwrap();
        let seen = tokio::time::timeout(Duration::from_secs(10), watcher.next()).await.unwrap();
        assert_eq!(seen, file);
    }
}
