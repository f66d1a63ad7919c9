//! `pgsquire check-config`.

use super::failure::Failure;
use super::{paint, say};
use crate::config::{self, LoadError, Severity};
use std::io::Write;
use std::path::Path;

/// Shows everything that is wrong with the file.
pub(super) fn run(path: &Path) -> Result<(), Failure> {
    let report = match config::load(path) {
        Ok(loaded) => loaded.report,
        Err(LoadError::Refused(report)) => *report,
        Err(e) => return Err(Failure::Usage(e.to_string())),
    };
    if !report.problems().is_empty() {
        show(&report);
    }
    match report.count(Severity::Error) {
        0 => say(&format!("{}: good\n", path.display())),
        _ => Err(Failure::Said),
    }
}

/// On standard error, as a compiler does.
pub(super) fn show(report: &config::Report) {
    let text = report.render(paint::wanted(&std::io::stderr()));
    // With standard error closed the exit status still says it.
    let _ = std::io::stderr().write_all(text.as_bytes());
}
