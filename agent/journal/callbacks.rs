//! Callbacks that came while the daemon was away. Each is one line of `callbacks.journal` in the state folder; the
//! daemon takes them in when it is back.

use super::{Journal, stamp};
use pgsquire_core::event::{Event, Hint};
use serde::{Deserialize, Serialize};
use std::fs::OpenOptions;
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::mpsc::Sender;
use tokio_util::sync::CancellationToken;

/// The file does not grow beyond this: callbacks are hints, and a full disk is worse than a lost hint.
pub const LIMIT: u64 = 1024 * 1024;
/// Longer words are cut, in characters.
const LONGEST_WORD: usize = 128;
/// A callback that opened the file before it was taken away has written by then: it lives half a second at most.
const LATE: Duration = Duration::from_millis(600);
/// A daemon that hung for a while finds what it missed within this.
const EACH: Duration = Duration::from_secs(30);

const CURRENT: &str = "callbacks.journal";
const TAKEN: &str = "callbacks.journal.taken";

/// Patroni's three words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// `on_role_change` and so on.
    pub action: String,
    /// Patroni's word for the role.
    pub role: String,
    /// Patroni's scope.
    pub scope: String,
}

impl Call {
    /// A call; words beyond any use are cut.
    pub fn new(action: &str, role: &str, scope: &str) -> Self {
        let cut = |word: &str| word.chars().filter(|c| !c.is_control()).take(LONGEST_WORD).collect();
        Call { action: cut(action), role: cut(role), scope: cut(scope) }
    }

    /// What the core is told.
    pub fn hint(self) -> Event {
        Event::Hinted(Hint::Callback { action: self.action, role: self.role, scope: self.scope })
    }

    /// Puts it into the flight recorder. (The core does not: for it a hint is nothing that happened.)
    pub fn record(&self, journal: &Journal, how: &str) {
        let text = format!("{} {}{how}", self.action, self.role);
        journal.record("callback", &self.scope, &text);
    }
}

/// One line of the file.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    time: String,
    #[serde(flatten)]
    call: Call,
}

/// Appends a call for a daemon that is away. One write, so that lines of several callbacks do not mix.
///
/// # Errors
/// When the file cannot be written, or is full.
pub fn keep(state_dir: &Path, call: &Call) -> io::Result<()> {
    let path = state_dir.join(CURRENT);
    let mut line = serde_json::to_string(&Line { time: stamp::now(), call: call.clone() })?;
    line.push('\n');
    let mut file = OpenOptions::new().append(true).create(true).mode(0o640).open(&path)?;
    if file.metadata()?.len() + line.len() as u64 > LIMIT {
        return Err(io::Error::other("it is full; it is emptied when the daemon starts"));
    }
    file.write_all(line.as_bytes())
}

/// Takes in what was kept, now and every half minute, until `stop`.
pub async fn import(state_dir: PathBuf, journal: Journal, events: Sender<Event>, stop: CancellationToken) {
    let current = state_dir.join(CURRENT);
    let taken = state_dir.join(TAKEN);
    loop {
        let work = import_once(&current, &taken, &journal, &events);
        let result = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            result = work => result,
        };
        if let Err(e) = result {
            tracing::warn!("cannot take in {}: {e}", current.display());
        }
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EACH) => {}
        }
    }
}

/// Takes the file away under its writers, reads it, waits for those that had it open, reads on, and deletes it. After
/// a crash in between the hints come twice, which changes nothing.
async fn import_once(
    current: &Path,
    taken: &Path,
    journal: &Journal,
    events: &Sender<Event>,
) -> io::Result<()> {
    let left_over = tokio::fs::try_exists(taken).await?;
    if !left_over {
        match tokio::fs::rename(current, taken).await {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            other => other?,
        }
    }
    let mut file = tokio::fs::File::open(taken).await?;
    let read = hand_over(&mut file, journal, events).await?;
    tokio::time::sleep(LATE).await;
    file.seek(io::SeekFrom::Start(read)).await?;
    hand_over(&mut file, journal, events).await?;
    tokio::fs::remove_file(taken).await
}

/// Hands over whole lines; gives how many bytes they were.
async fn hand_over(file: &mut tokio::fs::File, journal: &Journal, events: &Sender<Event>) -> io::Result<u64> {
    let mut bytes = Vec::new();
    file.take(2 * LIMIT).read_to_end(&mut bytes).await?;
    let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |last| last + 1);
    let lines =
        bytes[..whole].split(|b| *b == b'\n').filter_map(|line| serde_json::from_slice::<Line>(line).ok());
    for Line { time, call } in lines {
        call.record(journal, &format!(" (at {time}, while the daemon was away)"));
        if events.send(call.hint()).await.is_err() {
            break;
        }
    }
    Ok(whole as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(action: &str) -> Call {
        Call::new(action, "primary", "main")
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_kept_comes_in_and_late_lines_too() {
        let dir = tempfile::tempdir().expect("folder");
        let (journal, _writer) = super::super::open(&dir.path().join("none"));
        let (events, mut told) = tokio::sync::mpsc::channel(10);
        keep(dir.path(), &call("on_start")).expect("kept");
        let mut late =
            OpenOptions::new().append(true).open(dir.path().join(CURRENT)).expect("opened before the import");
        let (current, taken) = (dir.path().join(CURRENT), dir.path().join(TAKEN));
        let importing = import_once(&current, &taken, &journal, &events);
        tokio::pin!(importing);
        let first =
            tokio::select! { _ = &mut importing => panic!("too early"), first = told.recv() => first };
        assert_eq!(first, Some(call("on_start").hint()));
        late.write_all(b"{\"time\":\"t\",\"action\":\"late\",\"role\":\"r\",\"scope\":\"s\"}\n")
            .expect("written");
        importing.await.expect("imported");
        assert_eq!(told.recv().await, Some(Call::new("late", "r", "s").hint()));
        assert_eq!(std::fs::read_dir(dir.path()).expect("list").count(), 0);
        assert_eq!(journal.since(0).len(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_crash_during_the_import_loses_nothing() {
        let dir = tempfile::tempdir().expect("folder");
        let (journal, _writer) = super::super::open(&dir.path().join("none"));
        let (events, mut told) = tokio::sync::mpsc::channel(10);
        let (current, taken) = (dir.path().join(CURRENT), dir.path().join(TAKEN));
        keep(dir.path(), &call("before")).expect("kept");
        std::fs::rename(&current, &taken).expect("taken by the crashed run");
        keep(dir.path(), &call("after")).expect("kept");
        import_once(&current, &taken, &journal, &events).await.expect("imported");
        import_once(&current, &taken, &journal, &events).await.expect("imported");
        assert_eq!(told.recv().await, Some(call("before").hint()));
        assert_eq!(told.recv().await, Some(call("after").hint()));
    }

    #[test]
    fn the_file_never_fills_the_disk() {
        let dir = tempfile::tempdir().expect("folder");
        std::fs::write(dir.path().join(CURRENT), vec![b'x'; LIMIT as usize]).expect("written");
        assert!(keep(dir.path(), &call("on_start")).is_err());
    }

    #[test]
    fn words_are_cut() {
        let call = Call::new(&"x".repeat(10_000), "a\nb", "");
        assert_eq!((call.action.len(), call.role.as_str()), (LONGEST_WORD, "ab"));
    }
}
