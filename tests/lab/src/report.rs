//! What clients saw in a stretch of time.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use crate::load::{Commit, Log};

/// The figures of one stretch.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Acknowledged commits.
    pub commits: usize,
    /// Errors seen by clients.
    pub errors: usize,
    /// Each text with how often it was seen.
    pub error_texts: BTreeMap<String, usize>,
    /// Clients that saw at least one error.
    pub clients_with_errors: usize,
    /// The errors of the client that saw most of them.
    pub most_errors_of_a_client: usize,
    /// The longest time without a commit by anybody.
    pub outage: Duration,
    /// The last commit before that time.
    pub outage_start: Option<Instant>,
    /// The first commit after it; none if it lasted to the end.
    pub outage_end: Option<Instant>,
    /// The longest time in which nobody had any answer, be it an error.
    pub silence: Duration,
    /// The first commit on each server that had any.
    pub first_on: BTreeMap<Ipv4Addr, Instant>,
    /// The last commit on each server that had any.
    pub last_on: BTreeMap<Ipv4Addr, Instant>,
}

impl Report {
    /// Counts what happened from `from` to `to`.
    pub fn of(log: &Log, from: Instant, to: Instant) -> Self {
        let inside = |at: Instant| at >= from && at <= to;
        let commits: Vec<&Commit> = log.commits.iter().filter(|c| inside(c.at)).collect();
        let mut report = Self { commits: commits.len(), ..Self::default() };
        let mut clients: BTreeMap<usize, usize> = BTreeMap::new();
        for failure in log.failures.iter().filter(|f| inside(f.at)) {
            report.errors += 1;
            *report.error_texts.entry(failure.text.clone()).or_default() += 1;
            *clients.entry(failure.client).or_default() += 1;
        }
        report.clients_with_errors = clients.len();
        report.most_errors_of_a_client = clients.into_values().max().unwrap_or_default();
        for commit in &commits {
            report.first_on.entry(commit.server).or_insert(commit.at);
            report.last_on.insert(commit.server, commit.at);
        }
        report.find_outage(&commits, from, to);
        let mut answers: Vec<Instant> = log.failures.iter().map(|f| f.at).filter(|at| inside(*at)).collect();
        answers.extend(commits.iter().map(|c| c.at));
        answers.extend([from, to]);
        answers.sort();
        report.silence = answers.windows(2).map(|w| w[1] - w[0]).max().unwrap_or_default();
        report
    }

    fn find_outage(&mut self, commits: &[&Commit], from: Instant, to: Instant) {
        let mut last = None;
        let ends = commits.iter().map(|c| Some(c.at)).chain([None]);
        for end in ends {
            let length = end.unwrap_or(to).saturating_duration_since(last.unwrap_or(from));
            if length > self.outage {
                (self.outage, self.outage_start, self.outage_end) = (length, last, end);
            }
            last = end;
        }
    }

    /// Time from `writable` to the first commit on `server`; none if there was no commit there. A commit that was seen
    /// before the server was seen writable counts as no time at all.
    pub fn writable_to_first_commit(&self, server: Ipv4Addr, writable: Instant) -> Option<Duration> {
        Some(self.first_on.get(&server)?.saturating_duration_since(writable))
    }
}

/// The value in the middle.
pub fn median(values: &[Duration]) -> Option<Duration> {
    let mut sorted = values.to_vec();
    sorted.sort();
    sorted.get(sorted.len() / 2).copied()
}

/// `3 ms`, `850 ms`, `12.8 s`
pub fn human(time: Duration) -> String {
    match time.as_millis() {
        ms @ 0..1000 => format!("{ms} ms"),
        _ => format!("{:.1} s", time.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Failure;

    const OLD: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
    const NEW: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 12);

    fn log(start: Instant, commits: &[(u64, Ipv4Addr)], errors: &[(u64, usize, &str)]) -> Log {
        let at = |ms: u64| start + Duration::from_millis(ms);
        let commit = |(ms, server): &(u64, Ipv4Addr)| {
            let at = at(*ms);
            Commit { sent: at, at, client: 0, number: 0, server: *server, timeline: 1 }
        };
        let commits = commits.iter().map(commit);
        let failures = errors.iter().map(|(ms, client, text)| Failure {
            at: at(*ms),
            client: *client,
            text: text.to_string(),
        });
        Log { commits: commits.collect(), failures: failures.collect() }
    }

    #[test]
    fn the_longest_gap_is_the_outage() {
        let start = Instant::now();
        let log = log(
            start,
            &[(10, OLD), (20, OLD), (2000, NEW), (2010, NEW)],
            &[(30, 1, "closed"), (40, 1, "closed"), (50, 2, "refused")],
        );
        let report = Report::of(&log, start, start + Duration::from_millis(2500));
        assert_eq!((report.commits, report.errors, report.clients_with_errors), (4, 3, 2));
        assert_eq!(report.most_errors_of_a_client, 2);
        assert_eq!(report.silence, Duration::from_millis(1950), "from the last error on");
        assert_eq!(report.outage, Duration::from_millis(1980));
        assert_eq!(report.error_texts["closed"], 2);
        let writable = start + Duration::from_millis(1990);
        assert_eq!(report.writable_to_first_commit(NEW, writable), Some(Duration::from_millis(10)));
    }

    #[test]
    fn an_outage_that_lasts_has_no_end() {
        let start = Instant::now();
        let log = log(start, &[(10, OLD), (20, OLD)], &[]);
        let report = Report::of(&log, start, start + Duration::from_millis(500));
        assert_eq!(report.outage, Duration::from_millis(480));
        assert!(report.outage_start.is_some() && report.outage_end.is_none());
        assert_eq!(report.writable_to_first_commit(NEW, start), None);
    }

    #[test]
    fn only_the_stretch_counts() {
        let start = Instant::now();
        let log = log(start, &[(10, OLD), (20, OLD)], &[(10, 0, "early")]);
        let report = Report::of(&log, start + Duration::from_millis(15), start + Duration::from_millis(30));
        assert_eq!((report.commits, report.errors), (1, 0));
    }

    #[test]
    fn times_for_people() {
        assert_eq!(human(Duration::from_millis(7)), "7 ms");
        assert_eq!(human(Duration::from_millis(12_840)), "12.8 s");
        assert_eq!(median(&[]), None);
    }
}
