//! What `tests/setup` put into the cache, and how the service user gets to it.
//!
//! The cache lies in a home folder that other users often cannot enter, so a lab takes its own copy.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Folder of Debian 13's PgBouncer, in the cache and in a lab.
pub const PGBOUNCER_13: &str = "pgbouncer-debian13";

/// Consul's version; Debian 11 has it.
const CONSUL: &str = "1.8.7";

/// `${XDG_CACHE_HOME:-~/.cache}/pgsquire`
pub fn cache() -> Result<PathBuf> {
    let base = match env::var_os("XDG_CACHE_HOME").filter(|v| !v.is_empty()) {
        Some(folder) => PathBuf::from(folder),
        None => PathBuf::from(env::var_os("HOME").context("HOME is not set")?).join(".cache"),
    };
    Ok(base.join("pgsquire"))
}

/// Copies Patroni's packages of this version into the lab's folder.
pub fn copy_patroni(version: &str, into: &Path) -> Result<()> {
    copy(&format!("patroni-{version}"), if version == crate::spec::PATRONI { "" } else { " matrix" }, into)
}

/// Copies the Consul binary into the lab.
pub fn copy_consul(to: &Path) -> Result<()> {
    let from = cache()?.join(format!("consul-{CONSUL}/usr/bin/consul"));
    if !from.exists() {
        bail!("{} is missing: run tests/setup", from.display());
    }
    copy_program(&from, to)
}

/// Copies Debian 13's PgBouncer into the lab's folder.
pub fn copy_pgbouncer_13(into: &Path) -> Result<()> {
    copy(PGBOUNCER_13, " matrix", into)
}

fn copy(what: &str, setup_argument: &str, into: &Path) -> Result<()> {
    let from = cache()?.join(what);
    if !from.exists() {
        bail!("{} is missing: run tests/setup{setup_argument}", from.display());
    }
    let done = Command::new("cp").arg("-rL").arg(&from).arg(into).status().context("starting cp")?;
    if !done.success() {
        bail!("copying {} to {} failed", from.display(), into.display());
    }
    readable_by_all(into)
}

fn readable_by_all(folder: &Path) -> Result<()> {
    let done = Command::new("chmod").args(["-R", "a+rX"]).arg(folder).status().context("starting chmod")?;
    if !done.success() {
        bail!("making {} readable failed", folder.display());
    }
    Ok(())
}

/// Copies a program, the agent's for one, into the lab.
pub fn copy_program(from: &Path, to: &Path) -> Result<()> {
    let folder = to.parent().context("a program needs a folder")?;
    fs::create_dir_all(folder)
        .and_then(|()| fs::copy(from, to))
        .with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    readable_by_all(folder)
}

/// A program of another Debian runs with the loader and the libraries that came with it.
pub fn with_own_loader(folder: &Path, program: &str) -> Vec<String> {
    let path = |name: &str| folder.join(name).display().to_string();
    vec![path("lib/ld.so"), "--library-path".into(), path("lib"), path(&format!("bin/{program}"))]
}
