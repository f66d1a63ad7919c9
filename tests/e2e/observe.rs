//! Observe mode decides and shows, and changes nothing.

use std::fs;

use anyhow::{Result, ensure};
use pgsquire_lab::{Component, Pooler};

use crate::site::{PATIENCE, Site, fact, small, value, with};

#[tokio::test(flavor = "multi_thread")]
async fn a_switchover_is_only_shown_until_the_mode_is_enforce() -> Result<()> {
    with(small().pooler(Pooler::write()), async |site| {
        site.reconfigure("write", |text| text.replace("mode = \"enforce\"", "mode = \"observe\""))?;
        mode_is(site, "observe").await?;
        let before = Everything::of(site).await?;
        let leader = site.switchover(None).await?;
        site.wait_healthy(PATIENCE).await?;
        let next = shown(site, &leader).await?;
        site.step(&format!("it would {next}"));
        let (code, plan) = site.command("write", &["plan"]).await?;
        ensure!(code == Some(0), "plan ends with {code:?}: {plan}");
        for word in ["observe mode", "write", "pgbouncer.ini", "because", "must lead to"] {
            ensure!(plan.contains(word), "`{word}` is missing in the plan:\n{plan}");
        }
        site.answers("write", "/pool/write", 503).await?;
        let after = Everything::of(site).await?;
        ensure!(before == after, "observe mode changed something: {before:?} became {after:?}");

        site.reconfigure("write", |text| text.replace("mode = \"observe\"", "mode = \"enforce\""))?;
        mode_is(site, "enforce").await?;
        site.followed(&leader).await?;
        let (code, plan) = site.command("write", &["plan"]).await?;
        ensure!(code == Some(0) && !plan.contains("observe mode"), "plan: {code:?} {plan}");
        Ok(())
    })
    .await
}

async fn mode_is(site: &Site, mode: &str) -> Result<()> {
    fact(&format!("the mode is {mode}"), || async {
        let now = site.status("write").await?["mode"].clone();
        ensure!(now == mode, "it is {now}");
        Ok(())
    })
    .await
}

/// Waits until status says what would be done: the pool written to lead to the new leader.
async fn shown(site: &Site, leader: &str) -> Result<String> {
    let address = site.address(leader)?.to_string();
    fact("status shows what would be done", || async {
        let next = &site.pool("write").await?["next"][0];
        let (order, why) = (next["order"].to_string(), next["reason"]["text"].to_string());
        ensure!(order.contains("write") && why.contains(&address), "next: {next}");
        Ok(())
    })
    .await?;
    Ok(site.pool("write").await?["next"][0]["order"].as_str().unwrap_or_default().to_string())
}

/// All that an agent could change: the folder of the ini, what is loaded, and the commands PgBouncer logged.
#[derive(Debug, PartialEq)]
struct Everything {
    ini: String,
    files: Vec<String>,
    loaded: Vec<String>,
    login_retry: String,
    reloads: usize,
}

impl Everything {
    async fn of(site: &Site) -> Result<Self> {
        let host = site.host("write")?;
        let mut files: Vec<String> = fs::read_dir(&host.folder)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<Result<_>>()?;
        files.sort();
        let rows = site.console("write", "SHOW DATABASES").await?;
        let wanted = ["name", "host", "port", "paused"];
        let loaded = rows.iter().map(|row| wanted.map(|column| value(row, column)).join(" ")).collect();
        let log = fs::read_to_string(host.log(Component::PgBouncer))?;
        Ok(Self {
            ini: site.ini("write")?,
            files,
            loaded,
            login_retry: site.setting("write", "server_login_retry").await?,
            reloads: log.matches("command issued").count(),
        })
    }
}
