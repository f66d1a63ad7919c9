//! The lab itself: it comes up, does what it is asked for, and leaves nothing behind.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use pgsquire_lab::event::{self, Happening};
use pgsquire_lab::keys::{Keys, own_prefix, patroni_prefix};
use pgsquire_lab::simulated::SimulatedPoolers;
use pgsquire_lab::step::{Step, Steps};
use pgsquire_lab::{Component, Lab, Load, LoadSpec, Part, Pooler, Progress, Spec, Store, sql, wait};

const PATIENCE: Duration = Duration::from_secs(120);

fn small() -> Spec {
    Spec { store: Store::Etcd(1), members: 2, patience: PATIENCE, ..Spec::default() }
}

/// PIDs of all processes whose command or environment names the folder.
fn processes_of(dir: &Path) -> Vec<String> {
    let names = |pid: &str, file: &str| {
        let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        bytes.windows(dir.as_os_str().len()).any(|w| w == dir.as_os_str().as_bytes())
    };
    let all = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = all.filter_map(|e| e.file_name().into_string().ok()).filter(|n| n.parse::<i32>().is_ok());
    pids.filter(|pid| names(pid, "environ") || names(pid, "cmdline")).collect()
}

fn assert_nothing_left(dir: &Path) {
    assert!(!dir.exists(), "{} is still there", dir.display());
    assert_eq!(processes_of(dir), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switchover_and_a_kill_are_measured_and_nothing_is_left() -> anyhow::Result<()> {
    let mut lab =
        Lab::up(small().pooler(Pooler::classic().set("server_login_retry", "1")), &Progress::shown()).await?;
    let dir = lab.dir().to_path_buf();
    assert!(!processes_of(&dir).is_empty());
    let load = Load::start(LoadSpec::writes(lab.pooler_address("classic")?, 3)).await?;
    for happening in [Happening::Switchover, Happening::Kill] {
        let event = event::measure(&mut lab, happening, &[("classic", &load)], PATIENCE).await?;
        assert_ne!(event.from, event.to);
        assert_eq!(lab.leader().await?, event.to);
        assert_eq!(lab.pool_targets("classic", "app").await?, [event.to.as_str()]);
        let seen = &event.seen[0];
        assert!(seen.report.outage >= seen.writable_to_first_commit);
        assert!(seen.writable_to_all_clients >= seen.writable_to_first_commit);
        lab.start_host(&event.from)?;
        assert_eq!(lab.wait_healthy(PATIENCE).await?, event.to);
    }
    every_commit_of_the_last_primary_is_there(&lab, load).await?;
    lab.down().await?;
    assert_nothing_left(&dir);
    Ok(())
}

/// The load's own book against the table, for what was acknowledged after the last change of primary.
async fn every_commit_of_the_last_primary_is_there(lab: &Lab, load: Load) -> anyhow::Result<()> {
    let leader = lab.leader().await?;
    let address = lab.address(&leader)?;
    load.wait_all_committed(Instant::now(), Some(address), PATIENCE).await?;
    let log = load.stop(Duration::from_secs(30)).await;
    let client = lab.superuser(&leader, "app").await?;
    let rows: usize =
        sql::value(&client, "SELECT count(*) FROM commits").await?.unwrap_or_default().parse()?;
    let last_change = log.commits.iter().rposition(|c| c.server != address).map_or(0, |i| i + 1);
    assert!(rows >= log.commits.len() - last_change, "{rows} rows, {} acknowledged", log.commits.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn faults_do_what_they_say() -> anyhow::Result<()> {
    let mut lab = Lab::up(small().pooler(Pooler::write()), &Progress::shown()).await?;
    let dir = lab.dir().to_path_buf();
    let leader = lab.leader().await?;
    let replica = lab.replicas().await?.remove(0);

    lab.freeze(&replica, Part::Both)?;
    assert!(watch(&lab, &replica).await.is_err(), "a frozen server answers");
    lab.thaw(&replica, Part::Both)?;
    wait::answer("the thawed server", PATIENCE, Duration::from_millis(50), || watch(&lab, &replica)).await?;

    if let Err(why) = &lab.state().cuts {
        eprintln!("no network cuts here: {why}");
    } else {
        lab.isolate(&replica)?;
        assert!(watch(&lab, &replica).await.is_err(), "an isolated server answers");
        assert!(lab.superuser(&replica, "postgres").await.is_ok(), "its unix socket is not the network");
        lab.heal()?;
        wait::answer("the healed server", PATIENCE, Duration::from_millis(50), || watch(&lab, &replica))
            .await?;
        lab.cut_from_store(&leader)?;
        wait::answer("demotion without the store", PATIENCE, Duration::from_millis(200), || {
            demoted(&lab, &leader)
        })
        .await?;
        assert!(watch(&lab, &leader).await.is_ok(), "only the store is out of reach");
        lab.heal()?;
    }
    lab.wait_healthy(PATIENCE).await?;
    lab.restart("write", Component::PgBouncer).await?;
    wait::answer("the new PgBouncer", PATIENCE, Duration::from_millis(50), || {
        lab.console("write", "SHOW VERSION")
    })
    .await?;
    lab.kill("write", Part::Host).await?;
    assert!(lab.console("write", "SHOW VERSION").await.is_err());
    lab.down().await?;
    assert_nothing_left(&dir);
    Ok(())
}

/// Asks a member's server over the network.
async fn watch(lab: &Lab, member: &str) -> anyhow::Result<()> {
    let to = lab.postgres_address(member)?;
    sql::by_address(to, pgsquire_lab::patroni::WATCH_USER, "", "postgres", Duration::from_secs(2))
        .await
        .map(|_| ())
}

async fn demoted(lab: &Lab, member: &str) -> anyhow::Result<()> {
    let client = lab.superuser(member, "postgres").await?;
    let in_recovery = sql::value(&client, "SELECT pg_is_in_recovery()").await?;
    anyhow::ensure!(in_recovery.as_deref() == Some("t"), "{member} is not in recovery");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lab_that_is_dropped_ends_by_itself() -> anyhow::Result<()> {
    let lab = Lab::up(Spec { members: 1, ..small() }, &Progress::shown()).await?;
    let dir = lab.dir().to_path_buf();
    // What happens as well when the program is killed: the pipe to the guard closes.
    drop(lab);
    let gone = || !dir.exists() && processes_of(&dir).is_empty();
    assert!(wait::until(PATIENCE, gone).await, "left: {:?}", processes_of(&dir));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_switchover_is_seen_in_the_store_and_simulated_poolers_answer() -> anyhow::Result<()> {
    let lab = Lab::up(small(), &Progress::shown()).await?;
    let dir = lab.dir().to_path_buf();
    let (keys, own) = (Keys::of(lab.state(), 0)?, own_prefix(lab.state()));

    let poolers = SimulatedPoolers::start(lab.state(), 3).await?;
    let words = format!("{own}poolers/");
    anyhow::ensure!(keys.below(&words).await?.len() == 3, "{:?}", keys.below(&words).await?);
    let mut changes = keys.watch(&words).await?;
    keys.put(&format!("{own}switch"), r#"{"v":1,"epoch":"7-8","phase":"drain"}"#, None).await?;
    for _ in 0..3 {
        let said = changes.wait("the word of a pooler", PATIENCE, |_| true).await?;
        assert_eq!(said.field("drained").as_deref(), Some("7-8"), "{said:?}");
    }
    poolers.end().await?;
    assert_eq!(keys.below(&words).await?, [], "their keys are left");

    let old = lab.leader().await?;
    let candidate = lab.switchover_tomorrow().await?;
    let noted = keys.below(&format!("{}failover", patroni_prefix(lab.state()))).await?;
    assert!(noted.len() == 1 && noted[0].1.contains("scheduled_at"), "{noted:?}");
    lab.rest()?.forget_switchover(&old).await?;
    lab.rest()?.restart(&old).await?;
    assert_eq!(lab.wait_healthy(PATIENCE).await?, old);

    lab.synchronous(PATIENCE).await?;
    let mut steps = Steps::watch(&lab).await?;
    let ordered = lab.order_switchover().await?;
    steps.reach(Step::Ordered, None, PATIENCE).await?;
    steps.reach(Step::Promoted, None, PATIENCE).await?;
    ordered.await??;
    assert_eq!(lab.wait_healthy(PATIENCE).await?, candidate);

    if lab.state().cuts.is_ok() {
        lab.cut_patroni_from_store(&candidate)?;
        let without_store = || demoted(&lab, &candidate);
        wait::answer("demotion without the store", PATIENCE, Duration::from_millis(200), without_store)
            .await?;
        lab.heal()?;
    }
    lab.wait_healthy(PATIENCE).await?;
    lab.down().await?;
    assert_nothing_left(&dir);
    Ok(())
}
