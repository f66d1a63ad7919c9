//! Points in time as the core sees them.
//!
//! The core has no clock: the shell tells it what time it is with every event. The shell takes `CLOCK_BOOTTIME`, so a
//! stepped wall clock changes nothing and a suspended host ages its facts.

use core::fmt;
use core::ops::{Add, Sub};
use core::time::Duration;
use serde::{Deserialize, Serialize};

/// Microseconds on the monotonic clock of this host. Only differences mean anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Time(u64);

impl Time {
    /// The beginning of the clock.
    pub const ZERO: Time = Time(0);
    /// Later than everything: "never".
    pub const NEVER: Time = Time(u64::MAX);

    /// From microseconds since the clock's beginning.
    pub const fn from_micros(micros: u64) -> Self {
        Time(micros)
    }

    /// Microseconds since the clock's beginning.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// How long ago `earlier` was; zero if it lies ahead.
    pub fn since(self, earlier: Time) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Time {
    type Output = Time;
    fn add(self, d: Duration) -> Time {
        Time(self.0.saturating_add(u64::try_from(d.as_micros()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Time {
    type Output = Time;
    fn sub(self, d: Duration) -> Time {
        Time(self.0.saturating_sub(u64::try_from(d.as_micros()).unwrap_or(u64::MAX)))
    }
}

/// A duration for people: `350ms`, `2.4s`, `3m20s`.
pub struct Human(pub Duration);

impl fmt::Display for Human {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        match ms {
            0..1_000 => write!(f, "{ms}ms"),
            1_000..60_000 => write!(f, "{}.{}s", ms / 1_000, ms % 1_000 / 100),
            60_000..3_600_000 => write!(f, "{}m{:02}s", ms / 60_000, ms / 1_000 % 60),
            _ => write!(f, "{}h{:02}m", ms / 3_600_000, ms / 60_000 % 60),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_does_not_overflow() {
        assert_eq!(Time::NEVER + Duration::from_secs(1), Time::NEVER);
        assert_eq!(Time::ZERO - Duration::from_secs(1), Time::ZERO);
        assert_eq!(Time::ZERO.since(Time::from_micros(5)), Duration::ZERO);
    }

    #[test]
    fn people_read_durations() {
        let say = |ms| Human(Duration::from_millis(ms)).to_string();
        assert_eq!(say(350), "350ms");
        assert_eq!(say(2_450), "2.4s");
        assert_eq!(say(200_000), "3m20s");
        assert_eq!(say(3_720_000), "1h02m");
    }
}
