//! Notices what changed, for the flight recorder. Nothing is decided here.

use crate::effect::Entry;
use crate::time::Time;
use alloc::collections::BTreeMap;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

/// What was last said about each subject.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recorder {
    said: BTreeMap<(&'static str, String), String>,
    new: Vec<Entry>,
}

impl Recorder {
    /// Says something whether or not it was said before.
    pub fn say(&mut self, at: Time, kind: &'static str, subject: &str, text: impl Into<String>) {
        self.new.push(Entry { at, kind: kind.into(), subject: subject.into(), text: text.into() });
    }

    /// Says `text` if `key` is not what it was the last time for this kind and subject. The first `quiet` value of a
    /// subject is nothing new.
    pub fn say_change(
        &mut self,
        at: Time,
        kind: &'static str,
        subject: &str,
        key: &str,
        quiet: &str,
        text: &str,
    ) {
        let slot = (kind, subject.to_string());
        let before = self.said.get(&slot).map_or(quiet, String::as_str);
        if before == key {
            return;
        }
        self.said.insert(slot, key.into());
        self.say(at, kind, subject, text);
    }

    /// What is new.
    pub fn take(&mut self) -> Vec<Entry> {
        core::mem::take(&mut self.new)
    }
}
