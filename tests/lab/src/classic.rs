//! The classic way: Patroni's `on_role_change` edits the pooler's file with sed and sends RELOAD. What the demo and the
//! benchmark compare with.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::agent;
use crate::pgbouncer;
use crate::spec::Follow;
use crate::state::{Host, State};

/// The script on this member.
pub fn script(member: &Host) -> PathBuf {
    member.file("on-role-change.sh")
}

/// Writes the script that moves all classic poolers to this member when it becomes primary.
pub fn write_script(state: &State, member: &Host) -> Result<()> {
    let file = script(member);
    fs::write(&file, text(state, member)?)
        .and_then(|()| fs::set_permissions(&file, Permissions::from_mode(0o755)))
        .with_context(|| format!("writing {}", file.display()))
}

fn text(state: &State, member: &Host) -> Result<String> {
    let mut text = String::from("#!/bin/sh\n# Patroni appends: action, role, scope.\n");
    if state.has_agent(member) {
        text += &format!("{} callback \"$@\"\n", agent::program_line(state, member));
    }
    text += "case $2 in master|primary) ;; *) exit 0 ;; esac\n";
    for pooler in state.spec.poolers.iter().filter(|p| p.follow == Follow::Classic) {
        let host = state.host(&pooler.name)?;
        text += &format!(
            "sed -i 's/host=[0-9.]* port/host={} port/' {}\npsql -qX -h {} -p {} -U pgbouncer pgbouncer -c RELOAD\n",
            member.address,
            pgbouncer::ini(host).display(),
            host.sockets().display(),
            state.network.port(pooler.port),
        );
    }
    Ok(text)
}
