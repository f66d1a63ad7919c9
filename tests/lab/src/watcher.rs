//! When did a server become writable? Asked of each member directly, every few milliseconds.

use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_postgres::Client;

use crate::lab::Lab;
use crate::patroni::WATCH_USER;
use crate::sql;
use crate::state::HostRole;

/// How often each member is asked.
const STEP: Duration = Duration::from_millis(3);
/// A member that says nothing for so long is asked on a new connection.
const SILENCE: Duration = Duration::from_secs(1);

/// Since when each member is writable.
pub type WritableSince = Vec<(String, Option<Instant>)>;

/// Watches all members of a lab until it is dropped.
#[derive(Debug)]
pub struct Watcher {
    seen: watch::Receiver<WritableSince>,
    _tasks: JoinSet<()>,
}

impl Watcher {
    /// Starts to watch; each member is asked on a connection of its own.
    pub fn start(lab: &Lab) -> Result<Self> {
        let names: Vec<String> = lab.state().hosts_of(HostRole::Member).map(|h| h.name.clone()).collect();
        let (tell, seen) = watch::channel(names.iter().map(|n| (n.clone(), None)).collect());
        let mut tasks = JoinSet::new();
        for (index, name) in names.iter().enumerate() {
            tasks.spawn(watch_member(lab.postgres_address(name)?, index, tell.clone()));
        }
        Ok(Self { seen, _tasks: tasks })
    }

    /// The first member seen to become writable after `since`, and when: the moment the first question that was answered
    /// with "writable" was asked.
    pub async fn writable_after(&mut self, since: Instant, limit: Duration) -> Result<(String, Instant)> {
        let newer = |seen: &WritableSince| find_newer(seen, since).is_some();
        let waiting = tokio::time::timeout(limit, self.seen.wait_for(newer));
        let seen =
            waiting.await.with_context(|| format!("no member writable within {} s", limit.as_secs()))??;
        find_newer(&seen, since).context("the writable member is gone again")
    }
}

fn find_newer(seen: &WritableSince, since: Instant) -> Option<(String, Instant)> {
    seen.iter().find_map(|(name, at)| at.filter(|at| *at > since).map(|at| (name.clone(), at)))
}

async fn watch_member(address: SocketAddrV4, index: usize, tell: watch::Sender<WritableSince>) {
    let mut ticks = tokio::time::interval(STEP);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut client: Option<Client> = None;
    loop {
        ticks.tick().await;
        let asked = Instant::now();
        let writable = match &client {
            Some(connected) => ask(connected).await,
            None => {
                client = sql::by_address(address, WATCH_USER, "", "postgres", SILENCE).await.ok();
                continue;
            }
        };
        if writable.is_none() {
            client = None;
        }
        tell.send_if_modified(|seen| update(&mut seen[index].1, writable == Some(true), asked));
    }
}

async fn ask(client: &Client) -> Option<bool> {
    let answer = tokio::time::timeout(SILENCE, sql::value(client, "SELECT pg_is_in_recovery()")).await;
    answer.ok()?.ok()?.map(|in_recovery| in_recovery == "f")
}

/// Remembers the first moment of being writable; says whether something changed.
fn update(since: &mut Option<Instant>, writable: bool, asked: Instant) -> bool {
    if since.is_some() == writable {
        return false;
    }
    *since = writable.then_some(asked);
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_moment_is_kept() {
        let (first, later) = (Instant::now(), Instant::now() + Duration::from_secs(1));
        let mut since = None;
        assert!(update(&mut since, true, first));
        assert!(!update(&mut since, true, later));
        assert_eq!(since, Some(first));
        assert!(update(&mut since, false, later));
        assert_eq!(since, None);
    }

    #[test]
    fn a_member_writable_since_before_is_not_new() {
        let start = Instant::now();
        let later = start + Duration::from_secs(1);
        let seen = vec![("pg1".to_string(), Some(start)), ("pg2".to_string(), None)];
        assert_eq!(find_newer(&seen, start), None);
        let seen = vec![("pg1".to_string(), None), ("pg2".to_string(), Some(later))];
        assert_eq!(find_newer(&seen, start), Some(("pg2".to_string(), later)));
    }
}
