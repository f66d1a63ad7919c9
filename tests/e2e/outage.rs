//! The store is away, and Patroni's `failsafe_mode` keeps the primary.

use std::time::Instant;

use anyhow::{Result, ensure};
use pgsquire_lab::Component;
use pgsquire_lab::keys::{Keys, patroni_prefix};
use serde_json::json;

use crate::site::{PATIENCE, Site, fact, spec, with, write_and_read};

const CLIENTS: usize = 5;
/// The store is away for this long, in ms: every fact from it is too old by then, and every lease has ended.
const AWAY: u64 = 30_000;

/// In failsafe mode the primary goes on without its store: no client sees anything, and no verdict about it turns red.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "part of the matrix"]
async fn a_primary_in_failsafe_mode_stays_green() -> Result<()> {
    with(write_and_read(spec()), async |site| {
        let leader = site.leader().await?;
        failsafe(site).await?;
        let load = site.load("write", CLIENTS).await?;
        let from = Instant::now();
        let dead = site.kill_quorum().await?;
        site.step(&format!("{} are dead", dead.join(", ")));
        loop {
            for (host, path) in [("write", "/pool/write"), ("read", "/pool/read"), (&*leader, "/primary")] {
                site.answers(host, path, 200).await?;
            }
            let cluster = site.status("write").await?["clusters"][0].clone();
            if cluster["store"]["age_ms"].as_u64() > Some(AWAY) {
                ensure!(cluster["away"]["leader"] == leader.as_str(), "who is vouched for: {cluster}");
                break;
            }
            tokio::task::yield_now().await;
        }
        let (_, explained) = site.command("write", &["explain"]).await?;
        ensure!(explained.contains("failsafe mode"), "{explained}");
        let errors = load.report(from, Instant::now()).errors;
        ensure!(errors == 0, "{errors} errors of clients");
        site.step("the store is away, everything is green");
        for etcd in dead {
            site.start(&etcd, Component::Etcd)?;
        }
        let leader = site.wait_healthy(PATIENCE).await?;
        site.followed(&leader).await
    })
    .await
}

/// Turns `failsafe_mode` on, and waits until the leader has written whom it must ask.
async fn failsafe(site: &Site) -> Result<()> {
    site.configure_patroni(&json!({ "failsafe_mode": true })).await?;
    let members = site.member_names();
    fact("the leader has noted the members", || async {
        let keys = Keys::of(site.state(), 0)?.below(&patroni_prefix(site.state())).await?;
        let noted = keys.iter().find(|(key, _)| key.ends_with("/failsafe"));
        let all = noted.is_some_and(|(_, value)| members.iter().all(|name| value.contains(name)));
        ensure!(all, "{noted:?}");
        Ok(())
    })
    .await
}
