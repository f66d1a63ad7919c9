//! The configuration file: TOML in, checked [`Settings`] or everything that is wrong with it out.
//!
//! [`parse`] is pure; [`load`] reads the file and looks at the secret files it names. Secrets themselves are read where
//! they are used, each time, and never kept here.

mod cluster;
mod file;
mod glance;
mod later;
mod mask;
mod pooler;
mod problem;
mod reader;
mod rest_only;
mod settings;
pub mod units;

pub use glance::{Glance, glance};
pub use problem::{Problem, Report, Severity, Span};
pub use settings::*;

use problem::Problems;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use toml::de::DeTable;

/// Where the configuration is when nobody says otherwise.
pub const DEFAULT_FILE: &str = "/etc/pgsquire/config.toml";

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file could not be read.
    #[error("cannot read the configuration {} ({why}): name another file with --config", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        why: std::io::Error,
    },
    /// The file was read and is refused.
    #[error("{0}")]
    Refused(Box<Report>),
}

/// Settings, and the warnings about the file they came from.
#[derive(Debug)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// Warnings; no errors are in it.
    pub report: Report,
}

/// Reads and checks the configuration file.
///
/// # Errors
/// When the file cannot be read or anything in it is wrong; the report then holds all errors and warnings.
pub fn load(path: &Path) -> Result<Loaded, LoadError> {
    let unreadable = |why| LoadError::Unreadable { path: path.to_owned(), why };
    let text = String::from_utf8(std::fs::read(path).map_err(unreadable)?)
        .map_err(|e| unreadable(std::io::Error::other(format!("it is not UTF-8 text ({e})"))))?;
    let (settings, mut problems) = parse(&text, &host_name());
    problems.extend(settings.iter().flat_map(|s| secret_files(s, &text)));
    problems.sort_by_key(|p| p.span.start);
    for problem in &mut problems {
        problem.message = mask::secrets(&problem.message);
    }
    let report = Report::new(path.display().to_string(), mask::secrets(&text), problems);
    match settings {
        Some(settings) => Ok(Loaded { settings, report }),
        None => Err(LoadError::Refused(Box::new(report))),
    }
}

/// Checks the text of a configuration file. There are settings unless one of the problems is an error.
pub fn parse(text: &str, host_name: &str) -> (Option<Settings>, Vec<Problem>) {
    let (document, syntax) = DeTable::parse_recoverable(text);
    if syntax.is_empty() {
        let problems = Problems::default();
        let settings = file::read(&document, host_name, &problems);
        let problems = problems.into_sorted();
        let refused = problems.iter().any(|p| p.severity == Severity::Error);
        return ((!refused).then_some(settings), problems);
    }
    // What is left of a document after syntax errors may lack anything, so only these are sure.
    let problem = |e: &toml::de::Error| Problem {
        severity: Severity::Error,
        key: String::new(),
        span: e.span().unwrap_or(0..0),
        message: format!("this is not TOML: {}", e.message()),
        help: None,
    };
    let mut problems: Vec<Problem> = syntax.iter().map(problem).collect();
    problems.sort_by_key(|p| p.span.start);
    (None, problems)
}

/// Secret files that are missing, or that others may read.
fn secret_files(settings: &Settings, text: &str) -> Vec<Problem> {
    let mut found = Vec::new();
    for path in settings.secret_files() {
        let (message, help) = match std::fs::metadata(path) {
            Err(e) => (format!("cannot look at the secret file {}: {e}", path.display()), None),
            Ok(meta) if meta.permissions().mode() & 0o007 != 0 => {
                let help = format!("chmod o= {}", path.display());
                (format!("the secret file {} is readable by others", path.display()), Some(help))
            }
            Ok(_) => continue,
        };
        let path = path.display().to_string();
        let start = text.find(&path).unwrap_or(0);
        let severity = Severity::Warning;
        found.push(Problem { severity, key: String::new(), span: start..start + path.len(), message, help });
    }
    found
}

/// This host's name as the kernel knows it.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let name = name.trim();
    if name.is_empty() { "localhost".to_owned() } else { name.to_owned() }
}

#[cfg(test)]
mod tests;
