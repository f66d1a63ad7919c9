//! One row for each figure: what was measured, its target, and what it is compared with.

use std::fmt::Write;
use std::fs;
use std::thread;

use serde::Serialize;

/// All figures of one run.
#[derive(Clone, Debug, Serialize)]
pub struct Table {
    /// Processor cores of the machine.
    pub cores: usize,
    /// The kernel's load averages when the run began.
    pub load: String,
    /// In the order in which they are printed.
    pub rows: Vec<Row>,
}

/// One figure.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was measured.
    pub what: String,
    /// Its unit; empty for a count.
    pub unit: &'static str,
    /// The agent's.
    pub figure: Figure,
    /// It ought not to be above this. None: it is only shown.
    pub target: Option<f64>,
    /// What it is compared with.
    pub baselines: Vec<Baseline>,
}

/// The same measured for something else, in the same run.
#[derive(Clone, Debug, Serialize)]
pub struct Baseline {
    /// For what.
    pub of: String,
    /// What came out.
    pub figure: Figure,
}

/// A value, or many.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Figure {
    /// One value.
    Value(f64),
    /// How many values are spread.
    Spread {
        /// The value in the middle; this is what a target is for.
        median: f64,
        /// 95 of 100 are not above this.
        p95: f64,
        /// The highest.
        max: f64,
    },
}

impl Figure {
    /// The spread of these values; zeros if there are none.
    pub fn of(values: &[f64]) -> Self {
        let value = |share| Self::percentile(values, share);
        Self::Spread { median: value(50), p95: value(95), max: value(100) }
    }

    /// So many of 100 of these values are not above it; zero if there are none.
    pub fn percentile(values: &[f64], share: usize) -> f64 {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = (sorted.len() * share / 100).min(sorted.len().saturating_sub(1));
        sorted.get(at).copied().unwrap_or_default()
    }

    /// The value, or the one in the middle.
    pub fn typical(&self) -> f64 {
        match self {
            Self::Value(value) | Self::Spread { median: value, .. } => *value,
        }
    }

    /// The value, or the highest.
    pub fn maximum(&self) -> f64 {
        match self {
            Self::Value(value) | Self::Spread { max: value, .. } => *value,
        }
    }

    fn text(&self, unit: &str) -> String {
        let text = match self {
            Self::Value(value) => short(*value),
            Self::Spread { median, p95, max } => {
                format!("{} / {} / {}", short(*median), short(*p95), short(*max))
            }
        };
        format!("{text} {unit}").trim_end().to_string()
    }
}

/// Three digits or so: `0.23`, `1.5`, `147`.
fn short(value: f64) -> String {
    match value.abs() {
        _ if value.fract() == 0.0 => format!("{value:.0}"),
        size if size < 10.0 => format!("{value:.2}"),
        size if size < 100.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}

impl Row {
    /// A row without baselines.
    pub fn new(what: impl Into<String>, unit: &'static str, figure: Figure, target: Option<f64>) -> Self {
        Self { what: what.into(), unit, figure, target, baselines: Vec::new() }
    }

    /// Adds what it is compared with.
    pub fn beside(mut self, of: impl Into<String>, figure: Figure) -> Self {
        self.baselines.push(Baseline { of: of.into(), figure });
        self
    }

    /// Is the target reached? None: there is none.
    pub fn reached(&self) -> Option<bool> {
        self.target.map(|target| self.figure.typical() <= target)
    }

    fn cells(&self) -> [String; 5] {
        let target = self.target.map(|t| format!("<= {} {}", short(t), self.unit));
        let reached = self.reached().map(|r| if r { "ok" } else { "MISSED" });
        let baselines = self.baselines.iter().map(|b| format!("{} {}", b.of, b.figure.text(self.unit)));
        [
            self.what.clone(),
            self.figure.text(self.unit),
            target.unwrap_or_default(),
            reached.unwrap_or_default().into(),
            baselines.collect::<Vec<_>>().join("; "),
        ]
    }
}

impl Table {
    /// An empty table of this machine as it is now.
    pub fn new() -> Self {
        let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
        let load = load.split_whitespace().take(3).collect::<Vec<_>>().join(" ");
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self { cores, load, rows: Vec::new() }
    }

    /// As Markdown that can be read as it stands. Three figures with strokes: median / 95th percentile / maximum.
    pub fn text(&self) -> String {
        let head = ["what", "pgsquire", "target", "", "baseline, same run"].map(String::from);
        let lines: Vec<[String; 5]> = [head].into_iter().chain(self.rows.iter().map(Row::cells)).collect();
        let width = |column: usize| lines.iter().map(|l| l[column].chars().count()).max().unwrap_or_default();
        let widths: [usize; 5] = std::array::from_fn(width);
        let mut text = String::new();
        for (number, line) in lines.iter().enumerate() {
            for (cell, width) in line.iter().zip(widths) {
                // Writing to a string cannot fail.
                let _ = write!(text, "| {cell:<width$} ");
            }
            text += "|\n";
            if number == 0 {
                text.extend(widths.map(|width| format!("|{}", "-".repeat(width + 2))));
                text += "|\n";
            }
        }
        let _ = write!(
            text,
            "\nWith strokes: median / 95th percentile / maximum; a target is for the median.\n\
             {} cores; load averages at the start: {}.\n",
            self.cores, self.load
        );
        text
    }
}

impl Default for Table {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_tells_its_middle_and_its_ends() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        let Figure::Spread { median, p95, max } = Figure::of(&values) else { panic!("a spread") };
        assert_eq!((median, p95, max), (101.0, 191.0, 200.0));
        assert_eq!(Figure::percentile(&values, 99), 199.0);
        assert_eq!(Figure::of(&[]).typical(), 0.0);
    }

    #[test]
    fn a_target_is_reached_or_missed() {
        let row = |value| Row::new("time", "ms", Figure::Value(value), Some(2.0));
        let table = Table { cores: 2, load: String::new(), rows: vec![row(2.0), row(2.01)] };
        let text = table.text();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[2].contains("| 2 ms     | <= 2 ms | ok     |"), "{text}");
        assert!(lines[3].contains("| 2.01 ms  | <= 2 ms | MISSED |"), "{text}");
        let json = serde_json::to_value(&table).expect("JSON");
        assert_eq!(json["rows"][1]["figure"], 2.01);
    }
}
