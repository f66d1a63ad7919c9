//! The steps of a planned switchover, recognised from outside by what Patroni and the agents write into etcd.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::keys::{Changes, Keys, own_prefix, patroni_prefix};
use crate::lab::Lab;
use crate::watcher::Watcher;

/// Where a switchover is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// Patroni has its order; the agents have no record yet.
    Ordered,
    /// The record is there, the poolers drain.
    Draining,
    /// A pooler has said that it is drained.
    Drained,
    /// The hook has returned: PostgreSQL is stopped.
    Stopping,
    /// The new primary takes writes.
    Promoted,
}

impl Step {
    /// In their order.
    pub const ALL: [Self; 5] = [Self::Ordered, Self::Draining, Self::Drained, Self::Stopping, Self::Promoted];
}

/// Eyes on a switchover that has not begun yet.
#[derive(Debug)]
pub struct Steps {
    own: (String, Changes),
    patroni: (String, Changes),
    watcher: Watcher,
    old: String,
    start: Instant,
}

impl Steps {
    /// Begins to watch.
    pub async fn watch(lab: &Lab) -> Result<Self> {
        // The last server: tests that kill some begin with the first.
        let keys = Keys::of(lab.state(), lab.state().spec.store.servers().saturating_sub(1))?;
        let (own, patroni) = (own_prefix(lab.state()), patroni_prefix(lab.state()));
        let mut watcher = Watcher::start(lab)?;
        let long_ago = Instant::now() - Duration::from_millis(1);
        let watching = watcher.writable_after(long_ago, None, Duration::from_secs(30)).await;
        let (old, _) = watching.context("watching the old primary")?;
        Ok(Self {
            own: (own.clone(), keys.watch(&own).await?),
            patroni: (patroni.clone(), keys.watch(&patroni).await?),
            watcher,
            old,
            start: Instant::now(),
        })
    }

    /// Returns as soon as the switchover is that far. `pooler` names the agent whose word counts as the drained one;
    /// none: anybody's does.
    pub async fn reach(&mut self, step: Step, pooler: Option<&str>, limit: Duration) -> Result<()> {
        let (prefix, own) = &mut self.own;
        let what = format!("waiting for the step {step:?} of a switchover");
        match step {
            Step::Ordered => {
                let key = format!("{}failover", self.patroni.0);
                let found = self.patroni.1.wait(&what, limit, |c| c.key == key && c.value.is_some());
                found.await.map(|_| ())
            }
            Step::Draining | Step::Stopping => {
                let (key, phase) =
                    (format!("{prefix}switch"), if step == Step::Draining { "drain" } else { "stop" });
                let is_it =
                    |c: &crate::keys::Change| c.key == key && c.field("phase").as_deref() == Some(phase);
                own.wait(&what, limit, is_it).await.map(|_| ())
            }
            Step::Drained => {
                let key = format!("{prefix}poolers/{}", pooler.unwrap_or_default());
                let named = |of: &str| if pooler.is_some() { of == key } else { of.starts_with(&key) };
                let found = own.wait(&what, limit, |c| named(&c.key) && c.field("drained").is_some());
                found.await.map(|_| ())
            }
            Step::Promoted => self
                .watcher
                .writable_after(self.start, Some(&self.old), limit)
                .await
                .context(what)
                .map(|_| ()),
        }
    }
}
