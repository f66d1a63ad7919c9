//! The lines of Patroni's two synchronous hooks, and a script around them that writes down how long each took.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::agent;
use crate::state::{Host, State};

const SCRIPT: &str = "hook.sh";
const LOG: &str = "hooks.log";

/// The command for one of the hooks, `before-stop` or `pre-promote`.
pub(crate) fn line(state: &State, member: &Host, hook: &str) -> String {
    match state.spec.time_hooks {
        true => format!("{} {hook}", member.file(SCRIPT).display()),
        false => format!("{} hook {hook}", agent::program_line(state, member)),
    }
}

/// Writes the script that takes the time of the hooks, for a lab that wants it.
pub(crate) fn write_script(state: &State, member: &Host) -> Result<()> {
    if !(state.spec.time_hooks && state.spec.hooks && state.has_agent(member)) {
        return Ok(());
    }
    // The shell's own clock: another process for it would be part of what is measured.
    let text = format!(
        "#!/bin/bash\nfrom=$EPOCHREALTIME\n{} hook \"$@\"\ncode=$?\n\
         echo \"$1 ${{from/./}} ${{EPOCHREALTIME/./}} $code\" >> {}\nexit $code\n",
        agent::program_line(state, member),
        member.file(LOG).display(),
    );
    let file = member.file(SCRIPT);
    fs::write(&file, text)
        .and_then(|()| fs::set_permissions(&file, Permissions::from_mode(0o755)))
        .with_context(|| format!("writing {}", file.display()))
}

/// One run of a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// `before-stop` or `pre-promote`.
    pub hook: String,
    /// When it began, since the epoch.
    pub from: Duration,
    /// When it ended, since the epoch.
    pub to: Duration,
    /// What it ended with.
    pub code: i32,
}

impl Run {
    /// How long it took.
    pub fn took(&self) -> Duration {
        self.to.saturating_sub(self.from)
    }

    fn parse(line: &str) -> Option<Self> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [hook, from, to, code] = words[..] else { return None };
        let time = |word: &str| Some(Duration::from_micros(word.parse().ok()?));
        Some(Self { hook: hook.into(), from: time(from)?, to: time(to)?, code: code.parse().ok()? })
    }
}

/// All runs of a member's hooks that have ended, in order. One that was killed is not among them.
pub fn runs(member: &Host) -> Vec<Run> {
    let text = fs::read_to_string(member.file(LOG)).unwrap_or_default();
    text.lines().filter_map(Run::parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_read() {
        let run = Run::parse("before-stop 1700000000000100 1700000000012400 0").expect("a run");
        assert_eq!((run.hook.as_str(), run.code), ("before-stop", 0));
        assert_eq!(run.took(), Duration::from_micros(12_300));
        assert_eq!(Run::parse("before-stop 17"), None);
    }
}
