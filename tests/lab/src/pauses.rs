//! How long a PgBouncer was paused, by its own log: clients without an answer may as well wait for a server that is away.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::lab::Lab;
use crate::state::Component;

impl Lab {
    /// The longest time between a `PAUSE` and the next `RESUME` of the same name (or of none) that this pooler logged.
    ///
    /// # Errors
    /// Nothing was paused, or something still is.
    pub fn longest_pause(&self, pooler: &str) -> Result<Duration> {
        let log = self.state().host(pooler)?.log(Component::PgBouncer);
        let text = std::fs::read(&log).with_context(|| format!("reading {}", log.display()))?;
        longest(&String::from_utf8_lossy(&text)).with_context(|| format!("pauses in {}", log.display()))
    }
}

fn longest(log: &str) -> Result<Duration> {
    let mut open: Vec<(&str, Duration)> = Vec::new();
    let mut longest = None;
    for (time, word, name) in log.lines().filter_map(command) {
        match word {
            "PAUSE" if open.iter().all(|(n, _)| *n != name) => open.push((name, time_of_day(time)?)),
            "RESUME" => {
                let (ended, rest) = open.into_iter().partition(|(n, _)| *n == name);
                open = rest;
                let ended: Vec<(&str, Duration)> = ended;
                for (_, since) in ended {
                    longest = longest.max(Some(between(since, time_of_day(time)?)));
                }
            }
            _ => {}
        }
    }
    if let Some((name, _)) = open.first() {
        bail!("PAUSE {name} has no end");
    }
    longest.context("no pause at all")
}

/// When, `PAUSE` or `RESUME`, and the database's name in quotes or nothing: of `DATE TIME UTC [PID] LOG PAUSE 'app' command issued`.
fn command(line: &str) -> Option<(&str, &str, &str)> {
    let words = line.strip_suffix(" command issued")?;
    let (head, said) = words.split_once(" LOG ")?;
    let (word, name) = said.split_once(' ').unwrap_or((said, ""));
    Some((head.split(' ').nth(1)?, word, name))
}

fn time_of_day(text: &str) -> Result<Duration> {
    let seconds = text.split(':').try_fold(0.0, |sum, part| part.parse().map(|n: f64| sum * 60.0 + n));
    let seconds = seconds.with_context(|| format!("time {text}"))?;
    Duration::try_from_secs_f64(seconds).with_context(|| format!("time {text}"))
}

fn between(from: Duration, to: Duration) -> Duration {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    if to < from { to + DAY - from } else { to - from }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_ends_with_the_resume_of_its_own_name() -> Result<()> {
        let log = "\
2026-11-21 23:59:58.000 UTC [7] LOG PAUSE 'app' command issued
2026-11-21 23:59:58.500 UTC [7] LOG PAUSE command issued
2026-11-21 23:59:59.250 UTC [7] LOG RESUME command issued
2026-11-21 23:59:59.300 UTC [7] LOG PAUSE 'app' command issued
2026-11-21 23:59:59.400 UTC [7] LOG C-0x55: app/app@127.0.0.1:5 login attempt: db=app user=app tls=no
2026-11-22 00:00:01.125 UTC [7] LOG RESUME 'app' command issued
";
        assert_eq!(longest(log)?, Duration::from_millis(3125));
        Ok(())
    }

    #[test]
    fn a_pause_without_an_end_and_none_at_all_are_errors() {
        let log = "2026-11-21 23:59:58.000 UTC [7] LOG PAUSE 'app' command issued\n";
        assert_eq!(longest(log).unwrap_err().to_string(), "PAUSE 'app' has no end");
        assert_eq!(longest("").unwrap_err().to_string(), "no pause at all");
    }
}
