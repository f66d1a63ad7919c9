//! One switchover or kill under load, measured for several poolers at once.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::faults::Part;
use crate::lab::Lab;
use crate::load::{Load, LoadSpec};
use crate::report::Report;
use crate::watcher::Watcher;

/// What happens to the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Happening {
    /// A planned switchover by Patroni.
    Switchover,
    /// SIGKILL to the primary's PostgreSQL and Patroni at once.
    Kill,
}

/// What one event looked like.
#[derive(Clone, Debug)]
pub struct Event {
    /// What happened.
    pub happening: Happening,
    /// The old primary.
    pub from: String,
    /// The new primary.
    pub to: String,
    /// When it was ordered.
    pub ordered: Instant,
    /// When the new primary was seen to be writable.
    pub writable: Instant,
    /// The last commit of a client that was connected to the old primary itself: what Patroni takes begins here.
    pub last_direct: Option<Instant>,
    /// What the clients of each load saw, in the order the loads were given.
    pub seen: Vec<Seen>,
}

/// What the clients of one load saw of an event.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The load's name.
    pub load: String,
    /// All figures from the order until the last client of all loads had recovered.
    pub report: Report,
    /// From the moment the new primary was writable to the first commit there.
    pub writable_to_first_commit: Duration,
    /// From that moment until every client had committed there.
    pub writable_to_all_clients: Duration,
}

/// Lets it happen, waits until every client of every load has committed on the new primary, and measures.
pub async fn measure(
    lab: &mut Lab,
    happening: Happening,
    loads: &[(&str, &Load)],
    limit: Duration,
) -> Result<Event> {
    let from = lab.leader().await?;
    let mut watcher = Watcher::start(lab)?;
    // The old primary must have been seen first, or it would be taken for a new one.
    let long_ago = Instant::now() - Duration::from_millis(1);
    let (first, _) =
        watcher.writable_after(long_ago, None, limit).await.context("watching the old primary")?;
    if first != from {
        bail!("{first} is writable, but {from} leads");
    }
    let direct = Load::start(direct_client(lab, &from)?).await.context("a client beside the poolers")?;
    let ordered = Instant::now();
    let (order, writable) =
        tokio::join!(order(lab, happening, &from), watcher.writable_after(ordered, Some(&from), limit));
    order?;
    let last_direct = direct.stop(DIRECT_END).await.commits.last().map(|c| c.at);
    let (to, writable) = writable.with_context(|| format!("after {happening:?} of {from}"))?;
    let server = lab.address(&to)?;
    let mut recovered = Vec::new();
    for (name, load) in loads {
        let all = load.wait_all_committed(writable, Some(server), limit).await;
        recovered.push(all.with_context(|| format!("clients of {name} after {happening:?} of {from}"))?);
    }
    let end = recovered.iter().copied().max().unwrap_or(writable);
    let mut seen = Vec::new();
    for ((name, load), all) in loads.iter().zip(recovered) {
        let report = load.report(ordered, end);
        let first = report.writable_to_first_commit(server, writable);
        seen.push(Seen {
            load: name.to_string(),
            writable_to_first_commit: first.with_context(|| format!("no commit by {name} on {to}"))?,
            writable_to_all_clients: all.saturating_duration_since(writable),
            report,
        });
    }
    Ok(Event { happening, from, to, ordered, writable, last_direct, seen })
}

/// The number of the client beside the poolers: none of a load has it.
const DIRECT: usize = 1_000_000;
/// It may be waiting for a server that is gone.
const DIRECT_END: Duration = Duration::from_millis(100);

/// A client that shows when a server took its last commit.
fn direct_client(lab: &Lab, member: &str) -> Result<LoadSpec> {
    let spec = LoadSpec::writes(lab.postgres_address(member)?, 1);
    // Once the server has ended it is history: nobody asks it again.
    let (pause, reconnect_pause) = (Duration::from_millis(2), Duration::from_secs(3600));
    Ok(LoadSpec { first: DIRECT, pause, reconnect_pause, ..spec })
}

impl Event {
    /// From the last commit on the old primary to the new one being writable: what Patroni takes with nobody between.
    pub fn own_gap(&self) -> Option<Duration> {
        Some(self.writable.saturating_duration_since(self.last_direct?))
    }
}

async fn order(lab: &mut Lab, happening: Happening, from: &str) -> Result<()> {
    match happening {
        Happening::Switchover => lab.switchover(None).await.map(|_| ()),
        Happening::Kill => lab.kill(from, Part::Both).await,
    }
}
