//! Poolers that are only keys: each has a lease and a word in the real etcd, watches for a switch, and says at once that it
//! has drained. They show what it costs to wait for many.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::etcd;
use crate::keys::{Change, Changes, Keys, own_prefix};
use crate::state::State;

/// The lease of each, in seconds, and how often it is renewed.
const LEASE: u32 = 30;
const RENEWAL: Duration = Duration::from_secs(10);

/// Simulated poolers. Dropped, they leave their keys to the end of their leases; `end` takes them away.
#[derive(Debug)]
pub struct SimulatedPoolers {
    tasks: JoinSet<Result<()>>,
    keys: Keys,
    names: Vec<String>,
}

impl SimulatedPoolers {
    /// Registers so many, and returns when all are there.
    pub async fn start(state: &State, count: usize) -> Result<Self> {
        let servers = etcd::endpoints(state).len().max(1);
        let (mut tasks, mut names) = (JoinSet::new(), Vec::new());
        for number in 0..count {
            let pooler = SimulatedPooler {
                prefix: own_prefix(state),
                name: format!("simulated-{number:02}"),
                keys: Keys::of(state, number % servers)?,
                words: BTreeMap::new(),
            };
            names.push(pooler.key());
            let lease = pooler.keys.lease(LEASE).await.context("a lease for a simulated pooler")?;
            let changes = pooler.keys.watch(&pooler.prefix).await?;
            pooler.say(&lease).await?;
            tasks.spawn(pooler.live(lease, changes));
        }
        Ok(Self { tasks, keys: Keys::of(state, 0)?, names })
    }

    /// Ends them and takes their keys away. Fails if one of them did before.
    pub async fn end(mut self) -> Result<()> {
        let failed = self.tasks.try_join_next();
        self.tasks.shutdown().await;
        for name in &self.names {
            self.keys.delete(name).await?;
        }
        failed.map_or(Ok(()), |outcome| outcome?.context("a simulated pooler ended"))
    }
}

struct SimulatedPooler {
    prefix: String,
    name: String,
    keys: Keys,
    /// What it agrees to: `drained` and `fenced`, each with the epoch.
    words: BTreeMap<&'static str, String>,
}

impl SimulatedPooler {
    fn key(&self) -> String {
        format!("{}poolers/{}", self.prefix, self.name)
    }

    async fn say(&self, lease: &str) -> Result<()> {
        self.keys.put(&self.key(), &self.word().to_string(), Some(lease)).await
    }

    /// The record as the agents write it; the lab does not share their code.
    fn word(&self) -> Value {
        json!({
            "v": 1, "node": self.name, "member": null, "drains": true, "drained": self.words.get("drained"), "links_left": 0,
            "fenced": self.words.get("fenced"), "holds": null,
        })
    }

    async fn live(mut self, lease: String, mut changes: Changes) -> Result<()> {
        let mut renewals = tokio::time::interval(RENEWAL);
        loop {
            tokio::select! {
                change = changes.next() => {
                    let change = change.context("its watch has ended")?;
                    if let Some((what, epoch)) = asked(&self.prefix, &change) {
                        self.words.insert(what, epoch);
                        self.say(&lease).await?;
                    }
                }
                _ = renewals.tick() => self.keys.renew(&lease).await?,
            }
        }
    }
}

/// What a record asks the poolers for, and its epoch.
fn asked(prefix: &str, change: &Change) -> Option<(&'static str, String)> {
    let epoch = change.field("epoch")?;
    match change.key.strip_prefix(prefix)? {
        "switch" if change.field("phase").as_deref() == Some("drain") => Some(("drained", epoch)),
        "fence" => Some(("fenced", epoch)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_drain_and_a_fence_ask_for_a_word() {
        let change = |key: &str, value: &str| Change { key: key.into(), value: Some(value.into()) };
        let asked = |key, value| asked("/p/", &change(key, value));
        assert_eq!(asked("/p/switch", r#"{"epoch":"7","phase":"drain"}"#), Some(("drained", "7".into())));
        assert_eq!(asked("/p/switch", r#"{"epoch":"7","phase":"stop"}"#), None);
        assert_eq!(asked("/p/fence", r#"{"epoch":"8"}"#), Some(("fenced", "8".into())));
        assert_eq!(asked("/p/poolers/a", r#"{"epoch":"8","phase":"drain"}"#), None);
    }
}
