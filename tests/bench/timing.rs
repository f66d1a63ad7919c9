//! Times and the rows that are made of them.

use pgsquire_lab::bench::{Figure, Row};
use std::time::Duration;

/// The time of which a limit is for.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    /// 99 of 100 are not above it.
    Percentile99(f64),
    /// None is above it.
    Maximum(f64),
}

/// In ms.
pub fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

/// How the times, in ms, are spread, and the one that has a limit.
pub fn rows(what: &str, times: &[f64], limit: Limit) -> [Row; 2] {
    let (name, share, limit) = match limit {
        Limit::Percentile99(limit) => ("99th percentile", 99, limit),
        Limit::Maximum(limit) => ("maximum", 100, limit),
    };
    let one = Figure::Value(Figure::percentile(times, share));
    [
        Row::new(what, "ms", Figure::of(times), None),
        Row::new(format!("{what}: {name}"), "ms", one, Some(limit)),
    ]
}
