//! What people do to the files: half-written and unreadable ones, a wrong console, an edit in the wrong moment.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use pgsquire_lab::Pooler;
use pgsquire_lab::pgbouncer::console_conninfo;

use crate::site::{PATIENCE, Site, fact, small, with};

#[tokio::test(flavor = "multi_thread")]
async fn what_people_do_to_the_files_is_survived() -> Result<()> {
    with(small().pooler(Pooler::write()), async |site| {
        site.recorded("write", "order", "keep a copy of the loaded files: done").await?;
        half_written(site).await?;
        unreadable(site).await?;
        wrong_console(site).await?;
        edited_meanwhile(site).await
    })
    .await
}

/// The file on disk cannot be loaded, and then the primary changes: the last good one goes back with the new target,
/// what the operator wrote stays beside it, and the mended file is the operator's own.
async fn half_written(site: &Site) -> Result<()> {
    let whole = site.edit_ini("write", |text| text + "; before the accident\n")?;
    let half = site.edit_ini("write", |text| {
        let cut = text.find("listen_port").unwrap_or(text.len());
        text[..cut].to_string() + "listen_po"
    })?;
    site.troubled("write", "pgbouncer.ini:").await?;
    ensure!(site.ini("write")? == half, "the broken file was touched, though nothing had to move");
    site.switch_and_follow().await.context("with a broken ini")?;
    let rejected = site.ini_path("write")?.with_file_name("pgbouncer.ini.pgsquire-rejected");
    ensure!(fs::read_to_string(&rejected)? == half, "{} is not what was written", rejected.display());
    site.step("it moved with the last good file");

    // The operator mends: the whole file, with a target that is history by now.
    site.edit_ini("write", |_| whole.clone())?;
    let leader = site.leader().await?;
    site.followed(&leader).await?;
    fact("the mended file leads to the leader", || async {
        let wanted = format!("host={} ", site.address(&leader)?);
        let text = site.ini("write")?;
        ensure!(text.contains(&wanted) && text.ends_with("; before the accident\n"), "the ini is\n{text}");
        Ok(())
    })
    .await?;
    site.untroubled("write").await
}

/// The agent may not read the file while the primary changes: nothing is touched until it may.
async fn unreadable(site: &Site) -> Result<()> {
    let old = site.leader().await?;
    let (path, before) = (site.ini_path("write")?, site.ini("write")?);
    let mode = fs::metadata(&path)?.permissions();
    fs::set_permissions(&path, Permissions::from_mode(0o000))?;
    site.troubled("write", "ermission denied").await?;
    let leader = site.switchover(None).await?;
    site.wait_healthy(PATIENCE).await?;
    fact("the agent knows the new leader", || async {
        let status = site.status("write").await?;
        ensure!(status["clusters"][0]["leader"] == leader.as_str(), "{}", status["clusters"]);
        Ok(())
    })
    .await?;
    site.leads("write", "app", &[old]).await.context("the file is unreadable, and yet")?;
    // Its clients wait for the target that cannot be written.
    site.holds("write").await?;
    fs::set_permissions(&path, mode.clone())?;
    ensure!(site.ini("write")? == before, "an unreadable file was written");
    site.followed(&leader).await?;
    site.untroubled("write").await?;
    ensure!(fs::metadata(&path)?.permissions() == mode, "the mode changed");
    site.step("it moved once the file was readable");
    Ok(())
}

/// A console on a wrong socket, then one with a wrong password, then with the right one.
async fn wrong_console(site: &Site) -> Result<()> {
    let (host, leader) = (site.host("write")?, site.leader().await?);
    let right = console_conninfo(site.state(), host, site.pooler("write")?);
    let wrong = right.replace(&host.sockets().display().to_string(), "/nonexistent");
    site.reconfigure("write", |text| text.replace(&right, &wrong))?;
    site.troubled("write", "/nonexistent").await?;
    fact("the pool is red", || site.answers("write", "/pool/write", 503)).await?;

    let users = host.file("userlist.txt");
    fs::write(&users, fs::read_to_string(&users)? + "\"pgbouncer\" \"console-secret\"\n")?;
    site.console("write", "RELOAD").await?;
    let password = host.file("console.password");
    fs::write(&password, "not-the-secret\n")?;
    let address = site.pooler_address("write")?;
    let by_tcp = format!("host={} port={} user=pgbouncer", address.ip(), address.port());
    let with_password = format!("{by_tcp}\"\npassword_file = \"{}", password.display());
    site.reconfigure("write", |text| text.replace(&wrong, &with_password))?;
    site.troubled("write", "authentication failed").await?;
    let (_, status) = site.command("write", &["status", "--json"]).await?;
    ensure!(!status.contains("not-the-secret"), "the password is shown: {status}");

    fs::write(&password, "console-secret\n")?;
    site.followed(&leader).await?;
    site.untroubled("write").await?;
    site.reconfigure("write", |text| text.replace(&with_password, &right))?;
    site.followed(&leader).await?;
    site.step("the console is mended");
    Ok(())
}

/// An operator saves the file again and again while the primary changes: every line of theirs is kept.
async fn edited_meanwhile(site: &Site) -> Result<()> {
    let path = site.ini_path("write")?;
    let mut notes = 0;
    let leader = {
        let switching = site.switch_and_follow();
        tokio::pin!(switching);
        loop {
            tokio::select! {
                leader = &mut switching => break leader?,
                () = tokio::time::sleep(Duration::from_millis(3)) => {
                    save(&path, notes)?;
                    notes += 1;
                }
            }
        }
    };
    site.followed(&leader).await?;
    site.untroubled("write").await?;
    let text = site.ini("write")?;
    let kept: Vec<usize> = text.lines().filter_map(|l| l.strip_prefix("; note ")?.parse().ok()).collect();
    ensure!(kept == (0..notes).collect::<Vec<_>>(), "of {notes} notes these are there: {kept:?}");
    site.step(&format!("{notes} edits were kept"));
    Ok(())
}

/// Adds a line as editors do: a new file takes the place of the old one.
fn save(path: &Path, note: usize) -> Result<()> {
    let (text, access) = (fs::read_to_string(path)?, fs::metadata(path)?);
    let new = path.with_extension("ini.saving");
    fs::write(&new, format!("{text}; note {note}\n"))?;
    fs::set_permissions(&new, access.permissions())?;
    std::os::unix::fs::chown(&new, Some(access.uid()), Some(access.gid()))?;
    fs::rename(&new, path).context("saving the ini")
}
