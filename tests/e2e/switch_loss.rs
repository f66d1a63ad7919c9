//! The primary is lost without notice, in each way, under 50 clients with Patroni's hooks in use.

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use pgsquire_lab::keys::{Keys, own_prefix};
use pgsquire_lab::{Component, Fence, Part, Spec, Switch, hooks, sql, wait};

use crate::clients::Clients;
use crate::site::{PATIENCE, Site, fact, with};
use crate::switch::{EACH, POOLERS, primary_killed, switching};

fn fenced(fence: Fence) -> Spec {
    Spec { switch: Switch { fence: Some(fence), ..Switch::default() }, ..switching() }
}

/// Two pooler hosts with clients, and commits that wait for a standby: then nothing that was acknowledged may be lost.
async fn with_clients(spec: Spec, test: impl AsyncFnOnce(&mut Site, &Clients) -> Result<()>) -> Result<()> {
    with(spec, async |site| {
        if let Err(why) = &site.state().cuts {
            bail!("hosts cannot be cut off here: {why}");
        }
        site.synchronous(PATIENCE).await?;
        let clients = Clients::start(site, &POOLERS, EACH).await?;
        test(site, &clients).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "matrix: PostgreSQL alone, Patroni alone, both are killed"]
async fn each_kind_of_kill_costs_one_error_at_most() -> Result<()> {
    with_clients(switching(), async |site, clients| {
        postgres_killed(site, clients).await?;
        site.wait_synchronous(PATIENCE).await?;
        patroni_lost(site, clients, false).await?;
        site.wait_synchronous(PATIENCE).await?;
        primary_killed(site, clients).await
    })
    .await
}

/// PostgreSQL of the primary dies alone: Patroni starts it again, or another member takes over.
async fn postgres_killed(site: &mut Site, clients: &Clients) -> Result<()> {
    let (old, from) = (site.leader().await?, Instant::now());
    site.step(&format!("PostgreSQL of {old} is killed"));
    site.kill(&old, Part::Postgres).await?;
    let leader = site.wait_healthy(PATIENCE).await?;
    site.followed(&leader).await?;
    clients.served(site, &leader).await?;
    site.step(&format!("{leader} leads: {}", clients.errors(from)));
    clients.saw_one_error_at_most(from)?;
    clients.book(site, &leader).await.map(|_| ())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "matrix: Patroni is frozen, fence advisory"]
async fn a_frozen_patroni_with_an_advisory_fence() -> Result<()> {
    with_clients(fenced(Fence::Advisory), async |site, clients| patroni_lost(site, clients, true).await).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "matrix: Patroni is frozen, fence strict"]
async fn a_frozen_patroni_with_a_strict_fence() -> Result<()> {
    with_clients(fenced(Fence::Strict), async |site, clients| {
        patroni_lost(site, clients, true).await?;
        let leader = site.leader().await?;
        ensure!(clients.book(site, &leader).await? == 0, "the old side took commits after the new one");
        Ok(())
    })
    .await
}

/// Patroni of the primary is killed or frozen, and its PostgreSQL goes on taking writes from whoever asks it.
async fn patroni_lost(site: &mut Site, clients: &Clients, frozen: bool) -> Result<()> {
    let (old, from) = (site.leader().await?, Instant::now());
    match frozen {
        true => site.freeze(&old, Part::Patroni)?,
        false => site.kill(&old, Part::Patroni).await?,
    }
    site.step(&format!("Patroni of {old} is {}", if frozen { "frozen" } else { "killed" }));
    let leader = taken_over(site, &old).await?;
    ensure!(writable(site, &old).await?, "{old} takes no writes: this tests nothing");
    clients.served(site, &leader).await?;
    site.step(&format!("{leader} leads: {}", clients.errors(from)));
    match frozen {
        true => site.thaw(&old, Part::Patroni)?,
        false => site.start_host(&old)?,
    }
    site.wait_healthy(PATIENCE).await?;
    site.followed(&leader).await?;
    clients.served(site, &leader).await?;
    clients.book(site, &leader).await.map(|_| ())
}

/// Waits until the agents of the poolers follow another leader. (Patroni of the old one may not answer.)
async fn taken_over(site: &Site, old: &str) -> Result<String> {
    let leader = || async {
        let status = site.status(POOLERS[0]).await?;
        let cluster = &status["clusters"][0];
        let leader = cluster["leader"].as_str().unwrap_or_default().to_string();
        ensure!(cluster["writable"] == true && leader != old, "leader: `{leader}`, {cluster}");
        Ok(leader)
    };
    let step = std::time::Duration::from_millis(100);
    wait::answer(&format!("another leader than {old}"), PATIENCE, step, leader).await
}

async fn writable(site: &Site, member: &str) -> Result<bool> {
    let client = site.superuser(member, "postgres").await?;
    Ok(sql::value(&client, "SELECT pg_is_in_recovery()").await?.as_deref() == Some("f"))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "matrix: the old primary is cut off from the store, fence advisory"]
async fn the_store_is_lost_to_the_primary_alone_with_an_advisory_fence() -> Result<()> {
    with_clients(fenced(Fence::Advisory), cut_from_the_store).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "matrix: the old primary is cut off from the store, fence strict"]
async fn the_store_is_lost_to_the_primary_alone_with_a_strict_fence() -> Result<()> {
    with_clients(fenced(Fence::Strict), async |site, clients| {
        cut_from_the_store(site, clients).await?;
        let leader = site.leader().await?;
        ensure!(clients.book(site, &leader).await? == 0, "the old side took commits after the new one");
        Ok(())
    })
    .await
}

/// The poolers reach the old primary, which does not reach the store: first with a Patroni that demotes it, then with
/// a frozen one, so that it goes on taking writes.
async fn cut_from_the_store(site: &mut Site, clients: &Clients) -> Result<()> {
    for frozen in [false, true] {
        let (old, from) = (site.leader().await?, Instant::now());
        if frozen {
            site.freeze(&old, Part::Patroni)?;
        }
        site.cut_from_store(&old)?;
        let state = if frozen { "frozen" } else { "live" };
        site.step(&format!("{old} with a {state} Patroni is cut off from the store"));
        let leader = taken_over(site, &old).await?;
        ensure!(writable(site, &old).await.unwrap_or(false) == frozen, "{old} is not what it should be");
        clients.served(site, &leader).await?;
        site.step(&format!("{leader} leads: {}", clients.errors(from)));
        site.heal()?;
        if frozen {
            site.thaw(&old, Part::Patroni)?;
        }
        site.wait_healthy(PATIENCE).await?;
        site.followed(&leader).await?;
        clients.served(site, &leader).await?;
        clients.book(site, &leader).await?;
        site.wait_synchronous(PATIENCE).await?;
    }
    Ok(())
}

/// Under `strict` nobody is promoted while a registered pooler is silent, until an operator takes it out of the registry.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "matrix: a strict fence and a silent pooler"]
async fn a_silent_pooler_stops_a_promotion_under_strict_until_it_is_forgotten() -> Result<()> {
    with_clients(fenced(Fence::Strict), async |site, clients| {
        let (keys, prefix) = (Keys::of(site.state(), 0)?, own_prefix(site.state()));
        let registered = format!("{prefix}registry/{}", POOLERS[1]);
        fact("the second pooler is registered", || async {
            let all = keys.below(&registered).await?;
            ensure!(!all.is_empty(), "nothing below {registered}");
            Ok(())
        })
        .await?;
        let old = site.leader().await?;
        site.kill(POOLERS[1], Part::Agent).await?;
        site.kill(&old, Part::Both).await?;
        site.step(&format!("{old} and the agent of {} are killed", POOLERS[1]));
        let others: Vec<String> = site.member_names().into_iter().filter(|m| *m != old).collect();
        let refusal = || async {
            for member in &others {
                let runs = hooks::runs(site.host(member)?);
                if let Some(run) = runs.iter().find(|r| r.hook == "pre-promote" && r.code != 0) {
                    return Ok(format!("{member} was refused after {:?}", run.took()));
                }
            }
            bail!("no pre-promote was refused")
        };
        let step = std::time::Duration::from_millis(200);
        site.step(&wait::answer("a refusal", PATIENCE, step, refusal).await?);
        for member in &others {
            ensure!(!writable(site, member).await?, "{member} was promoted, though {} is silent", POOLERS[1]);
        }
        let (code, text) = site.command(&others[0], &["forget", POOLERS[1]]).await?;
        ensure!(code == Some(0), "forget ends with {code:?}: {text}");
        // Each refusal has cost its member a lease.
        let leader = taken_over(site, &old).await?;
        site.step(&format!("{leader} leads since {} is forgotten", POOLERS[1]));
        site.start_host(&old)?;
        site.start(POOLERS[1], Component::Agent)?;
        site.wait_healthy(PATIENCE).await?;
        site.followed(&leader).await?;
        clients.served(site, &leader).await?;
        clients.book(site, &leader).await.map(|_| ())
    })
    .await
}

/// The store is lost to a primary whose daemon hangs: the hook runs inside Patroni's loop there and must return by itself.
/// The times are shown beside those without the hook.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "matrix: the store is lost and the daemon hangs"]
async fn a_daemon_that_hangs_does_not_hold_up_a_demotion() -> Result<()> {
    with_clients(switching(), async |site, clients| {
        let hooked = demotion_without_store(site, clients, true).await?;
        for member in site.member_names() {
            without_before_stop(site, &member).await?;
        }
        let bare = demotion_without_store(site, clients, false).await?;
        site.step(&format!("from the lost lock on: with the hook {hooked:?}, without it {bare:?}"));
        Ok(())
    })
    .await
}

/// Since Patroni gave its lock up, in ms.
#[derive(Debug)]
#[expect(dead_code, reason = "shown to people")]
struct Demotion {
    stop_ordered: u64,
    stopped: u64,
}

/// Cuts the primary's Patroni off from the store while its agent hangs.
async fn demotion_without_store(site: &mut Site, clients: &Clients, hook: bool) -> Result<Demotion> {
    let old = site.leader().await?;
    let log = site.host(&old)?.log(Component::Patroni);
    let before = std::fs::read_to_string(&log)?.len();
    let runs = hooks::runs(site.host(&old)?).len();
    site.freeze(&old, Part::Agent)?;
    site.cut_patroni_from_store(&old)?;
    site.step(&format!("the agent of {old} hangs, its Patroni is cut off from the store"));
    let times = || async {
        let text = std::fs::read_to_string(&log)?.split_off(before);
        let line =
            |words: &str| text.lines().find(|l| l.contains(words)).with_context(|| format!("no `{words}`"));
        let begun = millis(line("Demoting self")?)?;
        let since = |words: &str| Ok::<_, anyhow::Error>(millis(line(words)?)?.saturating_sub(begun));
        let stopped = since("database system is shut down")?;
        Ok((Demotion { stop_ordered: since("received fast shutdown request")?, stopped }, text.clone()))
    };
    let step = std::time::Duration::from_millis(100);
    let (demotion, text) = wait::answer("the demotion", PATIENCE, step, times).await?;
    let ran = hooks::runs(site.host(&old)?).split_off(runs);
    if hook {
        let run = ran.iter().find(|r| r.hook == "before-stop").context("before-stop did not run")?;
        site.step(&format!("before-stop took {:?}", run.took()));
        let alone = "the stop goes on without waiting for the poolers";
        ensure!(text.contains(alone), "the hook did not say `{alone}`:\n{text}");
    } else {
        ensure!(ran.is_empty(), "there is no hook, and yet: {ran:?}");
    }
    site.heal()?;
    site.thaw(&old, Part::Agent)?;
    let leader = site.wait_healthy(PATIENCE).await?;
    site.followed(&leader).await?;
    clients.served(site, &leader).await?;
    clients.book(site, &leader).await?;
    Ok(demotion)
}

/// Takes the hook out of Patroni's configuration.
async fn without_before_stop(site: &Site, member: &str) -> Result<()> {
    let file = site.host(member)?.file("patroni.yml");
    let text = std::fs::read_to_string(&file)?;
    let kept: Vec<&str> = text.lines().filter(|l| !l.contains("before_stop:")).collect();
    std::fs::write(&file, kept.join("\n") + "\n")?;
    let log = site.host(member)?.log(Component::Patroni);
    let before = std::fs::read_to_string(&log)?.len();
    let patroni = site.state().process(member, Component::Patroni).context("no Patroni")?;
    patroni.signal(nix::sys::signal::Signal::SIGHUP)?;
    fact(&format!("Patroni of {member} has read its file"), || async {
        let text = std::fs::read_to_string(&log)?.split_off(before);
        ensure!(text.contains("configuration"), "its log says: {text}");
        Ok(())
    })
    .await
}

/// The time of day of a line of Patroni's or PostgreSQL's log: `2026-11-21 07:22:33,123 …` or with a point.
fn millis(line: &str) -> Result<u64> {
    let number = |from: usize, to: usize| line.get(from..to).and_then(|digits| digits.parse::<u64>().ok());
    let parts = (number(11, 13), number(14, 16), number(17, 19), number(20, 23));
    let (Some(h), Some(m), Some(s), Some(ms)) = parts else { bail!("no time in `{line}`") };
    Ok(((h * 60 + m) * 60 + s) * 1000 + ms)
}

#[test]
fn both_logs_have_the_same_time() -> Result<()> {
    assert_eq!(millis("2026-11-21 00:00:01,123 INFO: Demoting self (offline)")?, 1123);
    assert_eq!(millis("2026-11-21 00:01:00.007 UTC [1] LOG:  database system is shut down")?, 60_007);
    assert!(millis("no time").is_err());
    Ok(())
}
