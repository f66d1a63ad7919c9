//! Pools follow the primary.

use anyhow::Result;
use pgsquire_lab::{Lab, Pooler, Progress, Spec};
use std::time::Duration;

fn spec() -> Spec {
    Spec {
        agent: Some(env!("CARGO_BIN_EXE_pgsquire").into()),
        hooks: false,
        ..Spec::default().pooler(Pooler::write()).pooler(Pooler::read())
    }
}

#[tokio::test]
async fn five_switchovers() -> Result<()> {
    let progress = Progress::shown();
    let lab = Lab::up(spec(), &progress).await?;
    for _ in 0..5 {
        let to = lab.switchover(None).await?;
        progress.step(&format!("{to} leads"));
        let healthy = lab.wait_healthy(Duration::from_secs(30)).await?;
        progress.step(&format!("{healthy} healthy"));
        lab.wait_agent("write").await?;
        assert_eq!(lab.pool_targets("write", "app").await?, [to.clone()]);
        progress.step("verified");
    }
    lab.down().await
}
