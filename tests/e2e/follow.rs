//! Pools follow a primary that is switched over.

use std::time::Instant;

use anyhow::{Result, ensure};

use crate::ini::{differs_in_targets_only, hand_written};
use crate::ledger;
use crate::site::{PATIENCE, Site, fact, spec, with, write_and_read};

const CLIENTS: usize = 16;

#[tokio::test(flavor = "multi_thread")]
async fn five_switchovers_under_load() -> Result<()> {
    with(write_and_read(spec()), async |site| follow(site, 5, "primary").await).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the matrix"]
async fn twenty_switchovers_under_load() -> Result<()> {
    with(write_and_read(spec()), async |site| follow(site, 20, "primary").await).await
}

/// Switchovers with everything that must hold during and after them. `word` is what Patroni calls a primary.
pub async fn follow(site: &mut Site, switchovers: usize, word: &str) -> Result<()> {
    let before =
        [("write", site.edit_ini("write", hand_written)?), ("read", site.edit_ini("read", hand_written)?)];
    let login_retry = site.setting("write", "server_login_retry").await?;
    let start = Instant::now();
    let load = site.load("write", CLIENTS).await?;
    let mut leaders = Vec::new();
    for _ in 0..switchovers {
        let leader = site.switch_and_follow().await?;
        let server = site.address(&leader)?;
        load.wait_all_committed(Instant::now(), Some(server), PATIENCE).await?;
        for (pooler, before) in &before {
            differs_in_targets_only(before, &site.ini(pooler)?, &["app"])?;
        }
        leaders.push(leader);
    }
    let rows = ledger::complete(site, &site.leader().await?, &load, start).await?;
    site.step(&format!("all {rows} acknowledged rows are there"));
    for leader in &leaders {
        site.recorded(leader, "callback", &format!("on_role_change {word}")).await?;
    }
    // It was lowered, and is back at the end.
    site.recorded("write", "order", "SET server_login_retry = 0").await?;
    fact("server_login_retry is back", || async {
        let now = site.setting("write", "server_login_retry").await?;
        ensure!(now == login_retry, "server_login_retry is {now}, not {login_retry}");
        Ok(())
    })
    .await
}
