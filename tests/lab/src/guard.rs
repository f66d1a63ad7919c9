//! A lab must not outlive the program it was made for, however that program ends.
//!
//! The guard is a small shell in a session of its own that reads from a pipe only we hold open. The pipe closes when we
//! end, even by SIGKILL; then the guard ends what carries the lab's mark and removes the folder.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::network::Network;
use crate::process::MARK_LAB;
use crate::wait;

/// Holds the pipe.
#[derive(Debug)]
pub struct Guard {
    pipe: Option<ChildStdin>,
    shell: Child,
}

impl Guard {
    /// Starts to watch over the lab in this folder.
    pub fn start(dir: &Path, network: &Network) -> Result<Self> {
        let file = dir.join("guard.sh");
        fs::write(&file, script(dir, network)).with_context(|| format!("writing {}", file.display()))?;
        let mut shell = Command::new("sh")
            .arg(&file)
            .current_dir("/")
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting the lab's guard")?;
        Ok(Self { pipe: shell.stdin.take(), shell })
    }

    /// Lets the guard go, when the lab is gone or shall stay; it finds nothing of it to end.
    pub async fn dismiss(mut self, dir_is_gone: bool) {
        if !dir_is_gone {
            let _ = self.shell.kill();
        }
        self.pipe.take();
        let gone = || !matches!(self.shell.try_wait(), Ok(None));
        wait::until(Duration::from_secs(20), gone).await;
    }
}

/// PostgreSQL gives its shared memory back on SIGQUIT, not on SIGKILL.
fn script(dir: &Path, network: &Network) -> String {
    format!(
        r#"# Ends the lab in {dir} when the program that made it has ended.
trap '' HUP INT TERM
while read -r _; do :; done
marked() {{ grep -lzxsF '{MARK_LAB}={dir}' /proc/[0-9]*/environ | tr -dc '0-9\n'; }}
signal=QUIT round=0
while [ -d '{dir}' ]; do
    found=$(marked)
    [ -n "$found" ] || break
    kill -CONT $found; kill -$signal $found
    round=$((round + 1))
    [ $round -lt 30 ] || signal=KILL
    [ $round -lt 300 ] || break
    sleep 0.1
done
{forget}
rm -rf '{dir}'
"#,
        dir = dir.display(),
        forget = network.forget_command(),
    )
}
