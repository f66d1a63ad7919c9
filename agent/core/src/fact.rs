//! Something we asked for, and how fresh the answer is.

use crate::time::{Human, Time};
use alloc::format;
use alloc::string::String;
use core::time::Duration;

/// Something we asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fact<T> {
    /// Never answered, or the newest answer was a failure.
    Unknown {
        /// Why, for people.
        why: String,
    },
    /// Answered.
    Known {
        /// The answer.
        value: T,
        /// When the question was put: the answer is at least as new.
        seen: Time,
    },
}

impl<T> Fact<T> {
    /// Nobody asked yet.
    pub fn never() -> Self {
        Fact::Unknown { why: "not asked yet".into() }
    }

    /// The value, if it is no older than `max_age`.
    ///
    /// # Errors
    /// Why it is unknown, for people.
    pub fn fresh(&self, now: Time, max_age: Duration) -> Result<&T, String> {
        match self {
            Fact::Unknown { why } => Err(why.clone()),
            Fact::Known { value, seen } if now.since(*seen) <= max_age => Ok(value),
            Fact::Known { seen, .. } => Err(format!("the last answer is {} old", Human(now.since(*seen)))),
        }
    }

    /// The value, however old.
    pub fn last(&self) -> Option<&T> {
        match self {
            Fact::Unknown { .. } => None,
            Fact::Known { value, .. } => Some(value),
        }
    }

    /// When the question for the newest answer was put.
    pub fn seen(&self) -> Option<Time> {
        match self {
            Fact::Unknown { .. } => None,
            Fact::Known { seen, .. } => Some(*seen),
        }
    }

    /// Takes an answer, unless a newer one is there.
    pub fn learn(&mut self, value: T, started: Time) {
        if self.seen().is_none_or(|seen| seen <= started) {
            *self = Fact::Known { value, seen: started };
        }
    }
}
