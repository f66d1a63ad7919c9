//! What clients were told is committed, against what is there.

use std::collections::{BTreeMap, HashMap};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use pgsquire_lab::load::Commit;
use pgsquire_lab::{Lab, Load};
use tokio_postgres::SimpleQueryMessage;

/// Fails unless every row that was acknowledged until now (after `since`: an unplanned loss of the primary may lose what
/// came before) is in the table on `member`. Says how many there are.
pub async fn complete(lab: &Lab, member: &str, load: &Load, since: Instant) -> Result<usize> {
    all_there(lab, member, &told(std::slice::from_ref(load), since)).await
}

/// The commits that clients of these loads were told of since then.
pub fn told(loads: &[Load], since: Instant) -> Vec<Commit> {
    let mut told = Vec::new();
    for load in loads {
        told.extend(load.log().commits.iter().filter(|c| c.at > since).copied());
    }
    told
}

/// Fails unless each of these rows is in the table on `member`, and none of its rows is there twice. Says how many.
pub async fn all_there(lab: &Lab, member: &str, told: &[Commit]) -> Result<usize> {
    ensure!(!told.is_empty(), "nothing was acknowledged");
    let client = lab.superuser(member, "app").await?;
    let rows = client.simple_query("SELECT client, n FROM commits").await.context("reading the table")?;
    let mut there: HashMap<(usize, u64), usize> = HashMap::new();
    rows.iter().filter_map(row).for_each(|row| *there.entry(row).or_default() += 1);
    let missing: Vec<_> = told.iter().filter(|c| !there.contains_key(&(c.client, c.number))).collect();
    ensure!(
        missing.is_empty(),
        "{} of {} acknowledged rows are missing on {member}: {:?}",
        missing.len(),
        told.len(),
        &missing[..missing.len().min(10)]
    );
    let twice: Vec<_> = there.iter().filter(|(_, count)| **count > 1).take(10).collect();
    ensure!(twice.is_empty(), "rows that are on {member} more than once: {twice:?}");
    Ok(told.len())
}

/// Fails if two servers acknowledged commits on one timeline.
pub fn one_server_for_each_timeline(told: &[Commit]) -> Result<()> {
    let mut servers = BTreeMap::new();
    for commit in told {
        let server = *servers.entry(commit.timeline).or_insert(commit.server);
        let timeline = commit.timeline;
        ensure!(server == commit.server, "timeline {timeline}: {server} and {} took writes", commit.server);
    }
    Ok(())
}

/// How many commits were sent to, and acknowledged by, a server on an older timeline when a newer one had already
/// acknowledged one.
pub fn late(told: &[Commit]) -> usize {
    let mut first: BTreeMap<u32, Instant> = BTreeMap::new();
    for commit in told {
        let at = first.entry(commit.timeline).or_insert(commit.at);
        *at = commit.at.min(*at);
    }
    let is_late = |c: &&Commit| first.range(c.timeline + 1..).any(|(_, begun)| c.sent > *begun);
    told.iter().filter(is_late).count()
}

fn row(message: &SimpleQueryMessage) -> Option<(usize, u64)> {
    let SimpleQueryMessage::Row(row) = message else { return None };
    Some((row.get(0)?.parse().ok()?, row.get(1)?.parse().ok()?))
}

#[test]
fn what_an_old_server_takes_after_a_new_one_has_begun_is_late() {
    let start = Instant::now();
    let commit = |timeline: u32, sent: u64, last: u8| {
        let sent = start + std::time::Duration::from_millis(sent);
        let (server, at) =
            (std::net::Ipv4Addr::new(127, 0, 0, last), sent + std::time::Duration::from_millis(5));
        Commit { sent, at, client: 0, number: 0, server, timeline }
    };
    let fine = [commit(1, 0, 11), commit(1, 12, 11), commit(2, 10, 12)];
    // The second of them was on its way when the new one answered.
    assert_eq!(late(&fine), 0);
    assert!(one_server_for_each_timeline(&fine).is_ok());
    let split = [commit(1, 0, 11), commit(2, 10, 12), commit(1, 16, 11)];
    assert_eq!(late(&split), 1);
    assert!(one_server_for_each_timeline(&[commit(1, 0, 11), commit(1, 1, 12)]).is_err());
}
