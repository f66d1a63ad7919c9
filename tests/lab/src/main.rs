//! The lab program.
#[tokio::main]
async fn main() -> anyhow::Result<()> {
    use pgsquire_lab::*;
    let spec = Spec::default().pooler(Pooler::classic());
    let p = Progress::shown();
    let lab = Lab::up(spec, &p).await?;
    let to = lab.switchover(None).await?;
    p.step(&format!("{to} leads"));
    lab.wait_healthy(std::time::Duration::from_secs(30)).await?;
    p.step(&format!("{}", lab.pool_target("classic", "app").await?));
    let r = lab.down().await;
    p.step("down");
    r
}
