//! When did a server become writable? Asked of each member directly, to a millisecond.

use std::net::SocketAddrV4;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;
use tokio_postgres::Client;

use crate::lab::Lab;
use crate::patroni::WATCH_USER;
use crate::sql;
use crate::state::HostRole;

/// How often a member that takes writes is asked whether it still does.
const STEP: Duration = Duration::from_millis(20);
/// One that does not is asked to look at itself every millisecond, and to answer when it is out of recovery or after a
/// short while: questions at that pace from here would take a core from those who are watched. It says when it was so by
/// its own clock, which is the clock of this machine.
const QUESTION: &str = "DO $$ DECLARE deadline timestamptz := clock_timestamp() + '200 ms'; BEGIN \
     WHILE pg_is_in_recovery() AND clock_timestamp() < deadline LOOP PERFORM pg_sleep(0.001); END LOOP; END $$; \
     SELECT CASE WHEN pg_is_in_recovery() THEN '' ELSE (extract(epoch FROM clock_timestamp()) * 1000000)::bigint::text END";
/// A member that says nothing for so long is asked on a new connection.
const SILENCE: Duration = Duration::from_secs(3);

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

    /// The first member seen to become writable after `since`, and when, to a millisecond or two. Not `old`: a primary that
    /// was silent for a moment is no new one.
    pub async fn writable_after(
        &mut self,
        since: Instant,
        old: Option<&str>,
        limit: Duration,
    ) -> Result<(String, Instant)> {
        let newer = |seen: &WritableSince| find_newer(seen, since, old).is_some();
        let waiting = tokio::time::timeout(limit, self.seen.wait_for(newer));
        let seen =
            waiting.await.with_context(|| format!("no member writable within {} s", limit.as_secs()))??;
        find_newer(&seen, since, old).context("the writable member is gone again")
    }
}

fn find_newer(seen: &WritableSince, since: Instant, old: Option<&str>) -> Option<(String, Instant)> {
    let mut others = seen.iter().filter(|(name, _)| Some(name.as_str()) != old);
    others.find_map(|(name, at)| at.filter(|at| *at > since).map(|at| (name.clone(), at)))
}

async fn watch_member(address: SocketAddrV4, index: usize, tell: watch::Sender<WritableSince>) {
    let mut ticks = tokio::time::interval(STEP);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut client: Option<Client> = None;
    loop {
        let Some(connected) = &client else {
            ticks.tick().await;
            client = sql::by_address(address, WATCH_USER, "", "postgres", SILENCE).await.ok();
            continue;
        };
        let writable = match ask(connected).await {
            Some(answer) => answer,
            None => {
                client = None;
                None
            }
        };
        tell.send_if_modified(|seen| update(&mut seen[index].1, writable));
        // One in recovery has taken its time for the answer.
        if writable.is_some() {
            ticks.tick().await;
        }
    }
}

/// None: no answer. Else the moment of being writable, if it is.
async fn ask(client: &Client) -> Option<Option<Instant>> {
    let answer = tokio::time::timeout(SILENCE, sql::value(client, QUESTION)).await.ok()?.ok()??;
    if answer.is_empty() {
        return Some(None);
    }
    let then = UNIX_EPOCH + Duration::from_micros(answer.parse().ok()?);
    // Both clocks are read at the same time: how long ago it was in one is how long ago it was in the other.
    let (now, today) = (Instant::now(), SystemTime::now());
    Some(Some(now - today.duration_since(then).unwrap_or_default()))
}

/// Remembers the first moment of being writable; says whether something changed.
fn update(since: &mut Option<Instant>, writable: Option<Instant>) -> bool {
    if since.is_some() == writable.is_some() {
        return false;
    }
    *since = writable;
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_moment_is_kept() {
        let (first, later) = (Instant::now(), Instant::now() + Duration::from_secs(1));
        let mut since = None;
        assert!(update(&mut since, Some(first)));
        assert!(!update(&mut since, Some(later)));
        assert_eq!(since, Some(first));
        assert!(update(&mut since, None));
        assert_eq!(since, None);
    }

    #[test]
    fn a_member_writable_since_before_is_not_new() {
        let start = Instant::now();
        let later = start + Duration::from_secs(1);
        let seen = vec![("pg1".to_string(), Some(start)), ("pg2".to_string(), None)];
        assert_eq!(find_newer(&seen, start, None), None);
        let seen = vec![("pg1".to_string(), None), ("pg2".to_string(), Some(later))];
        assert_eq!(find_newer(&seen, start, None), Some(("pg2".to_string(), later)));
        assert_eq!(find_newer(&seen, start, Some("pg2")), None);
    }
}
