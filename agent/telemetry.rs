//! Logs: to the journal under systemd, else as text on standard error.

use std::io::IsTerminal;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, fmt, reload};

/// Changes the filter of a running agent.
#[derive(Debug, Clone)]
pub struct Filter(reload::Handle<EnvFilter, Registry>);

impl Filter {
    /// Logs by this directive from now on.
    ///
    /// # Errors
    /// When it is no directive; the configuration has checked it before.
    pub fn set(&self, directive: &str) -> Result<(), ParseError> {
        let filter = EnvFilter::try_new(directive)?;
        // Fails only without a subscriber, and then there is nothing to change.
        let _ = self.0.reload(filter);
        Ok(())
    }
}

/// Begins to log by this directive (`[telemetry] log`).
///
/// # Errors
/// When it is no directive.
pub fn init(directive: &str) -> Result<Filter, ParseError> {
    let (filter, handle) = reload::Layer::new(EnvFilter::try_new(directive)?);
    let journald = std::env::var_os("JOURNAL_STREAM").and_then(|_| tracing_journald::layer().ok());
    let text = journald.is_none().then(|| {
        fmt::layer()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .with_target(false)
    });
    let journald = journald.map(|layer| layer.with_syslog_identifier("pgsquire".to_owned()));
    // A second call in one process keeps the first subscriber.
    let _ = tracing_subscriber::registry().with(filter).with(journald).with(text).try_init();
    Ok(Filter(handle))
}
