//! `pgsquire render`: ready configuration for the neighbours.

use super::failure::Failure;
use super::page::Page;
use super::table::wrap;
use super::{PATIENCE, check_config, say};
use crate::config::{self, DEFAULT_FILE, LoadError, Settings};
use crate::control::Request;
use crate::control::client::Client;
use clap::Subcommand;
use pgsquire_core::config::{Fence, SwitchConfig};
use pgsquire_core::time::Human;
use std::fmt;
use std::path::{Path, PathBuf};

/// The oldest Patroni that runs `before_stop`.
const BEFORE_STOP: PatroniVersion = PatroniVersion(3, 0, 3);
const CALLBACKS: [&str; 5] = ["on_start", "on_stop", "on_restart", "on_reload", "on_role_change"];

/// For whom.
#[derive(Debug, Subcommand)]
pub(super) enum What {
    /// The lines of patroni.yml that let Patroni tell the agent what it does
    #[command(after_help = "Example:\n  pgsquire render patroni --patroni-version 3.0.2")]
    Patroni {
        /// Version of the Patroni on this host; without it, as the running daemon sees it
        #[arg(long, value_name = "VERSION", value_parser = patroni_version)]
        patroni_version: Option<PatroniVersion>,
    },
}

/// Prints it.
pub(super) fn run(config: &Path, What::Patroni { patroni_version }: What) -> Result<(), Failure> {
    let settings = match config::load(config) {
        Ok(loaded) => loaded.settings,
        Err(LoadError::Refused(report)) => {
            check_config::show(&report);
            return Err(Failure::Said);
        }
        Err(e) => return Err(Failure::Usage(e.to_string())),
    };
    let version = patroni_version.or_else(|| seen_version(&settings));
    let option = match config == Path::new(DEFAULT_FILE) {
        true => String::new(),
        false => format!(" --config {}", shell_word(&whole_path(config)?)),
    };
    say(&patroni_yml(&settings, version, &option))
}

/// `major.minor.patch` of a Patroni.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PatroniVersion(u32, u32, u32);

impl fmt::Display for PatroniVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// Reads `3.0.2`, and what stands behind it (`rc1`, `.dev2`) not.
fn patroni_version(text: &str) -> Result<PatroniVersion, String> {
    let bad = || "write it like 3.0.2".to_owned();
    let number = |part: Option<&str>| {
        let part = part?;
        let digits = part.bytes().take_while(u8::is_ascii_digit).count();
        part[..digits].parse::<u32>().ok()
    };
    let mut parts = text.trim().split('.');
    let major = number(parts.next()).ok_or_else(bad)?;
    let minor = number(parts.next()).ok_or_else(bad)?;
    Ok(PatroniVersion(major, minor, number(parts.next()).unwrap_or(0)))
}

/// The version of the local member as the daemon sees it. None is no failure: the lines are right for every newer one.
fn seen_version(settings: &Settings) -> Option<PatroniVersion> {
    let mut daemon =
        Client::ask(&settings.control_socket, &Request::Status { watch: false }, PATIENCE).ok()?;
    let (page, _) = Page::read(&mut daemon).ok()?;
    let (name, cluster) = (page.local?.member?, &settings.core.local.as_ref()?.cluster);
    let cluster = page.clusters.into_iter().find(|c| c.name == *cluster)?;
    let member = cluster.members.into_iter().find(|m| m.name == name)?;
    patroni_version(&member.version?).ok()
}

/// Patroni runs it from another folder.
fn whole_path(config: &Path) -> Result<String, Failure> {
    let path: PathBuf = std::path::absolute(config).unwrap_or_else(|_| config.to_owned());
    path.into_os_string()
        .into_string()
        .map_err(|path| Failure::Usage(format!("the path {} is not UTF-8: name another", path.display())))
}

fn patroni_yml(settings: &Settings, version: Option<PatroniVersion>, option: &str) -> String {
    let switch = &settings.core.switch;
    let local = settings.core.local.as_ref().map(|local| &local.cluster);
    let cluster = local.and_then(|name| settings.clusters.iter().find(|c| c.name == *name));
    let scope = cluster.map_or("SCOPE", |c| &c.scope);
    let mut lines = Vec::new();
    comment(
        &mut lines,
        0,
        &format!(
            "Made by `pgsquire render patroni` on {}. Merge it into this host's patroni.yml, then run `patronictl \
             reload {scope} MEMBER`.",
            settings.core.node
        ),
    );
    lines.push("postgresql:".to_owned());
    comment(
        &mut lines,
        2,
        "Hints: the agent looks at once when something happens here. Always quick and never a failure; while the agent \
         is away they are kept for its return.",
    );
    lines.push("  callbacks:".to_owned());
    let callback = yaml_text(format!("pgsquire callback{option}"));
    lines.extend(CALLBACKS.iter().map(|name| format!("    {name}: {callback}")));
    let core = local.and_then(|name| settings.core.cluster(name));
    if core.is_some_and(|cluster| !cluster.has_store()) {
        comment(
            &mut lines,
            2,
            &format!(
                "before_stop and pre_promote are left out: {scope} is followed by its members' REST API alone, and without \
                 a store no agent can tell the poolers what is about to happen. Lines of theirs that are there already do \
                 no harm: both return at once."
            ),
        );
        lines.push(String::new());
        return lines.join("\n");
    }
    hooks(&mut lines, switch, version, option);
    lines.push(String::new());
    lines.join("\n")
}

/// The two hooks that Patroni waits for.
fn hooks(lines: &mut Vec<String>, switch: &SwitchConfig, version: Option<PatroniVersion>, option: &str) {
    match version {
        Some(old) if old < BEFORE_STOP => comment(
            lines,
            2,
            &format!(
                "before_stop is left out: it needs Patroni {BEFORE_STOP}, and this is {old}. Without it nobody tells the \
                 poolers that a switchover begins: clients see their connections break, and the pools follow as after \
                 the loss of a primary."
            ),
        ),
        version => {
            let drain = match switch.drain {
                true => format!("at most drain_timeout ({})", Human(switch.drain_timeout)),
                false => "but not now: drain = false".to_owned(),
            };
            let needs = match version {
                Some(_) => String::new(),
                None => format!(
                    " It needs Patroni {BEFORE_STOP}, and which one runs here is not known: the agent does not run, or \
                     has not seen it yet."
                ),
            };
            comment(
                lines,
                2,
                &format!(
                    "Patroni waits for this before it stops PostgreSQL: in a switchover, and in a restart of the primary, \
                     until the poolers have paused ({drain}), so that clients wait instead of failing. In every other \
                     stop, and without the agent, it returns at once.{needs}"
                ),
            );
            lines.push(format!("  before_stop: {}", yaml_text(format!("pgsquire hook before-stop{option}"))));
        }
    }
    let fence = match switch.fence {
        Fence::Off => "but not now: fence = \"off\"".to_owned(),
        Fence::Advisory => {
            format!("at most fence_timeout ({}); then the promotion goes on", Human(switch.fence_timeout))
        }
        Fence::Strict => format!(
            "at most fence_timeout ({}); fence = \"strict\": without the word of each there is no promotion",
            Human(switch.fence_timeout)
        ),
    };
    comment(
        lines,
        2,
        &format!(
            "Patroni waits for this before it promotes this server: until the poolers cannot write to the old primary \
             any more ({fence})."
        ),
    );
    lines.push(format!("  pre_promote: {}", yaml_text(format!("pgsquire hook pre-promote{option}"))));
}

fn comment(lines: &mut Vec<String>, indent: usize, text: &str) {
    let wrapped = wrap(indent + 2, text);
    lines.extend(wrapped.iter().map(|line| format!("{:indent$}# {}", "", line.trim_start())));
}

/// Patroni splits a command as a shell does.
fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+@%,=".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// A plain scalar where that is safe, else in double quotes. (JSON's text is YAML's.)
fn yaml_text(text: String) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || " /._-+@%,=".contains(c);
    match text.chars().all(plain) {
        true => text,
        false => serde_json::Value::String(text).to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(patroni_version("3.0.2"), Ok(PatroniVersion(3, 0, 2)));
        assert_eq!(patroni_version("4.1"), Ok(PatroniVersion(4, 1, 0)));
        assert_eq!(patroni_version("4.0.0rc1"), Ok(PatroniVersion(4, 0, 0)));
        assert!(
            patroni_version("3.0.2").unwrap() < BEFORE_STOP && patroni_version("3.1").unwrap() > BEFORE_STOP
        );
        for bad in ["", "3", "x.y", "three.0", "3.x"] {
            assert!(patroni_version(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn words_are_quoted_where_they_must_be() {
        assert_eq!(shell_word("/etc/a-b_c.toml"), "/etc/a-b_c.toml");
        assert_eq!(shell_word("/it's here"), r"'/it'\''s here'");
        assert_eq!(yaml_text("pgsquire hook".to_owned()), "pgsquire hook");
        assert_eq!(yaml_text(r"x '/it'\''s: #'".to_owned()), r#""x '/it'\\''s: #'""#);
    }
}
