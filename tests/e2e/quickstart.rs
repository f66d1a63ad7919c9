//! The README's eight commands and its snippets, as they stand there, on a real cluster.
//!
//! They run in a mount namespace with folders of its own in place of `/etc`, `/run`, `/var/lib` and `/usr/local/bin`.
//! What differs from the text: the addresses, and the first two commands, which would clone and build what is tested.

use anyhow::{Context, Result, ensure};
use pgsquire_lab::{Component, Lab, Progress, Spec, wait};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

/// The fenced blocks of one language below a heading.
fn blocks(text: &str, heading: &str, language: &str) -> Vec<String> {
    let section = text.split("\n## ").find(|s| s.starts_with(heading)).unwrap_or_default();
    let fence = format!("```{language}\n");
    section.split(&fence).skip(1).filter_map(|rest| Some(rest.split_once("```")?.0.to_owned())).collect()
}

/// A host made of a mount namespace; it ends with this value.
struct Namespace {
    holder: std::process::Child,
    dir: tempfile::TempDir,
}

impl Namespace {
    fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("pgsquire-readme-").tempdir()?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        let script = r#"set -e
            for place in etc run var-lib bin clone; do mkdir -p "$1/$place"; done
            cp -a /etc/. "$1/etc"
            mount --make-rprivate /
            mount --bind "$1/etc" /etc
            mount --bind "$1/run" /run
            mount --bind "$1/var-lib" /var/lib
            mount --bind "$1/bin" /usr/local/bin
            install -d -o postgres -g postgres /run/postgresql /etc/pgbouncer
            touch "$1/ready"
            exec tail -f /dev/null"#;
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "unshare", "--mount", "bash", "-c", script, "holder"])
            .arg(dir.path());
        Ok(Namespace { holder: command.spawn().context("unshare --mount")?, dir })
    }

    async fn ready(&self) -> Result<()> {
        ensure!(wait::until(PATIENCE, || self.path("ready").exists()).await, "the namespace did not come up");
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs a script inside, in the folder of the clone.
    fn run(&self, script: &str) -> Result<Output> {
        let clone = self.path("clone");
        let entered = format!("cd '{}' && set -e\n{script}", clone.display());
        let pid = self.holder.id().to_string();
        let output = Command::new("nsenter").args(["-t", &pid, "-m", "bash", "-c", &entered]).output()?;
        Ok(output)
    }

    fn must(&self, script: &str) -> Result<String> {
        let output = self.run(script)?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "{script}\nended with {}: {out}{err}", output.status);
        Ok(out.into_owned())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // What was started inside is nobody's child: it is ended by its noted PID, and waited for.
        let end = "for f in /run/*.pid; do p=$(cat \"$f\"); kill \"$p\" || continue; tail --pid \"$p\" -f /dev/null; done";
        let _ = self.run(&format!("timeout 10 bash -c '{end}'"));
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Replaces the README's addresses by those of the lab.
fn localize(text: &str, lab: &Lab) -> Result<String> {
    let mut text = text.to_owned();
    for (n, (etcd, member)) in [("etcd1", "pg1"), ("etcd2", "pg2"), ("etcd3", "pg3")].into_iter().enumerate()
    {
        let readme = format!("10.0.0.1{}", n + 1);
        let store = pgsquire_lab::etcd::endpoints(lab.state())[n].to_string();
        text = text.replace(&format!("{readme}:2379"), &store);
        text = text.replace(&format!("host={readme}"), &format!("host={}", lab.address(member)?));
        ensure!(lab.state().host(etcd).is_ok(), "the lab has no {etcd}");
    }
    let own = lab.address("pg1")?.octets();
    Ok(text.replace("127.0.0.1", &format!("127.{}.{}.99", own[1], own[2])))
}

#[tokio::test]
async fn eight_commands_and_a_following_pooler() -> Result<()> {
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md"))?;
    let heading = "A pooler of yours, in eight commands";
    let commands = blocks(&readme, heading, "sh").pop().context("no commands in the README")?;
    let ini = blocks(&readme, heading, "ini").pop().context("no pgbouncer.ini in the README")?;
    let yaml = blocks(&readme, heading, "yaml").pop().context("no patroni.yml in the README")?;

    let mut lab = Lab::up(Spec::default(), &Progress::shown()).await?;
    let host = Namespace::new()?;
    host.ready().await?;
    start_pgbouncer(&host, &localize(&ini, &lab)?).await?;
    run_commands(&host, &localize(&commands, &lab)?).await?;
    leads_to_leader(&host, &lab).await?;

    // A leader whose Patroni is restarted loses its lock; a replica keeps its role until the switchover makes it primary.
    let member = lab.replicas().await?.into_iter().next().context("the lab has no replica")?;
    call_from_patroni(&host, &mut lab, &member, &yaml).await?;
    lab.switchover(Some(&member)).await?;
    lab.wait_healthy(PATIENCE).await?;
    leads_to_leader(&host, &lab).await?;
    let called =
        || host.must("pgsquire events").is_ok_and(|events| events.contains("on_role_change primary"));
    assert!(wait::until(PATIENCE, called).await, "Patroni's callback did not arrive");
    drop(host);
    lab.down().await
}

async fn start_pgbouncer(host: &Namespace, ini: &str) -> Result<()> {
    fs::write(host.path("etc/pgbouncer/pgbouncer.ini"), ini)?;
    fs::write(host.path("etc/pgbouncer/userlist.txt"), "")?;
    host.must(
        "chown -R postgres:postgres /etc/pgbouncer\n\
         setpriv --reuid postgres --regid postgres --init-groups pgbouncer -q /etc/pgbouncer/pgbouncer.ini \
         >/dev/null 2>&1 &\n\
         echo $! > /run/pgbouncer.pid",
    )?;
    let socket = host.path("run/postgresql/.s.PGSQL.6432");
    ensure!(
        wait::until(PATIENCE, || socket.exists()).await,
        "PgBouncer did not come up with the README's ini"
    );
    Ok(())
}

async fn run_commands(host: &Namespace, commands: &str) -> Result<()> {
    let rest = commands
        .strip_prefix("git clone \"$REPOSITORY\" pgsquire && cd pgsquire\nmake build\n")
        .context("the first two commands are not what this test replaces")?;
    let binary = host.path("clone/target/release/pgsquire");
    fs::create_dir_all(binary.parent().context("a folder")?)?;
    fs::copy(env!("CARGO_BIN_EXE_pgsquire"), &binary)?;
    let (before, after) =
        rest.split_once("runuser -u postgres -- pgsquire run &\n").context("no `pgsquire run &`")?;
    host.must(before)?;
    host.must("runuser -u postgres -- pgsquire run >/dev/null 2>&1 &\necho $! > /run/pgsquire.pid")?;
    let up = || host.run("pgsquire status").is_ok_and(|o| o.status.success());
    ensure!(wait::until(PATIENCE, up).await, "the agent did not come up with the README's configuration");
    host.must(after)?;
    Ok(())
}

/// The route is verified, and PgBouncer itself says that it leads to the leader.
async fn leads_to_leader(host: &Namespace, lab: &Lab) -> Result<()> {
    let wanted = format!("{}", lab.address(&lab.leader().await?)?);
    let verified = || {
        let status = host.must("pgsquire status --json").unwrap_or_default();
        let status: serde_json::Value = serde_json::from_str(&status).unwrap_or_default();
        let route = &status["poolers"][0]["routes"][0];
        route["verified"] == true && route["loaded"]["host"] == wanted.as_str()
    };
    ensure!(wait::until(PATIENCE, verified).await, "{}", host.must("pgsquire status")?);
    let rows = host.must(
        "runuser -u postgres -- psql -XAt -h /var/run/postgresql -p 6432 -U pgbouncer pgbouncer -c 'SHOW DATABASES'",
    )?;
    ensure!(rows.contains(&format!("app|{wanted}|5432")), "{rows}");
    Ok(())
}

/// Puts the README's snippet into `patroni.yml` of a member. Its `pgsquire` reaches the agent of the namespace.
async fn call_from_patroni(host: &Namespace, lab: &mut Lab, member: &str, yaml: &str) -> Result<()> {
    let program = host.path("bin/from-outside");
    let config = host.path("outside.toml");
    fs::write(
        &config,
        format!("[control]\nsocket = \"{}\"\n", host.path("run/pgsquire/control.sock").display()),
    )?;
    let script = format!(
        "#!/bin/sh\nPGSQUIRE_CONFIG='{}' exec '{}' \"$@\"\n",
        config.display(),
        host.path("bin/pgsquire").display()
    );
    fs::write(&program, script)?;
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
    let callbacks =
        yaml.strip_prefix("postgresql:\n").context("the snippet does not begin with postgresql:")?;
    let file = lab.state().host(member)?.file("patroni.yml");
    let text = fs::read_to_string(&file)?;
    ensure!(!text.contains("callbacks:"), "the lab has set callbacks of its own");
    fs::write(&file, text + &callbacks.replace(": pgsquire ", &format!(": {} ", program.display())))?;
    lab.restart(member, Component::Patroni).await?;
    lab.wait_healthy(PATIENCE).await?;
    Ok(())
}
