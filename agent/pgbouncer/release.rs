//! Ends pauses by the journal: what the worker does when it is told to, and others when the worker is gone.

use super::console::Console;
use super::pauses::{Entry, Journal};
use super::{CONSOLE_DATABASE, console_name};
use crate::session::{SessionError, Target};
use std::path::Path;

/// Resumes all that an entry says and gives back what was borrowed for it. What is not paused is success.
///
/// # Errors
/// When the console refuses or has no answer.
pub async fn let_go(console: &mut Console, entry: &Entry) -> Result<(), SessionError> {
    console.resume_all(&entry.scopes()).await?;
    match &entry.pause.min_pool_size {
        Some(value) => console.give_back("min_pool_size", value).await,
        None => Ok(()),
    }
}

/// The console of a pooler, for who has no configuration.
pub fn console(pooler: &str, conninfo: &str, password_file: Option<&Path>) -> Console {
    Console::new(Target {
        what: console_name(pooler),
        conninfo: conninfo.into(),
        default_dbname: CONSOLE_DATABASE.into(),
        password_file: password_file.map(Path::to_path_buf),
    })
}

/// Ends the pause of a journal if it is `due`, by a console connection of its own, and drops the entry. Gives the entry
/// that was ended.
///
/// # Errors
/// A sentence that names the pooler, when the pause may still be on: then the entry stays.
pub async fn release(journal: &Journal, due: impl Fn(&Entry) -> bool) -> Result<Option<Entry>, String> {
    let _lock = journal.lock();
    let Some(entry) = journal.read()? else { return Ok(None) };
    if !due(&entry) {
        return Ok(None);
    }
    let mut console = console(&entry.pooler, &entry.console, entry.password_file.as_deref());
    let_go(&mut console, &entry).await.map_err(|e| e.to_string())?;
    journal.remove()?;
    Ok(Some(entry))
}
