//! `pgsquire run`.

use super::check_config;
use super::failure::Failure;
use crate::config::{self, LoadError};
use crate::telemetry;
use std::path::PathBuf;

/// Runs the daemon until it is told to stop.
pub(super) fn run(path: PathBuf) -> Result<(), Failure> {
    let loaded = match config::load(&path) {
        Ok(loaded) => loaded,
        Err(LoadError::Refused(report)) => {
            check_config::show(&report);
            return Err(Failure::Said);
        }
        Err(e) => return Err(Failure::Usage(e.to_string())),
    };
    let settings = loaded.settings;
    let filter = telemetry::init(&settings.telemetry.log)
        .map_err(|e| Failure::Usage(format!("[telemetry] log = \"{}\": {e}", settings.telemetry.log)))?;
    for problem in loaded.report.problems() {
        let (line, column) = loaded.report.position(problem);
        tracing::warn!("{}:{line}:{column}: {}", path.display(), problem.message);
    }
    // One provider for every TLS client in the process; a second call would only find it there.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    crate::app::run(settings, path, filter).map_err(|e| Failure::Failed(format!("{e:#}")))
}
