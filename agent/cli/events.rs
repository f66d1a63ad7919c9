//! `pgsquire events`.

use super::failure::Failure;
use super::paint::Paint;
use super::{ask, say};
use crate::control::{Answer, Request};
use crate::journal::Record;
use std::path::Path;

/// Prints the flight recorder.
pub(super) fn run(config: &Path, follow: bool, json: bool) -> Result<(), Failure> {
    let mut daemon = ask(config, &Request::Events { since: 0, follow })?;
    let paint = Paint::for_stdout();
    if follow {
        daemon.patience(None);
    }
    loop {
        match daemon.answer()? {
            Answer::Event(record) if json => say(&format!("{}\n", line(&record)?))?,
            Answer::Event(record) => say(&show(&record, paint))?,
            Answer::Missed(n) if json => say(&format!("{{\"missed\":{n}}}\n"))?,
            Answer::Missed(n) => say(&format!("… {n} entries were too fast for this screen\n"))?,
            Answer::Done(_) => return Ok(()),
            Answer::Status(_) | Answer::Hook(_) | Answer::Refused(_) => {}
        }
    }
}

fn line(record: &Record) -> Result<String, Failure> {
    serde_json::to_string(record).map_err(|e| Failure::Failed(e.to_string()))
}

fn show(record: &Record, paint: Paint) -> String {
    let Record { time, kind, subject, text, .. } = record;
    format!("{} {} {subject}: {text}\n", paint.dim(time), paint.bold(&format!("{kind:<9}")))
}
