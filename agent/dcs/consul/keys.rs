//! Our own keys in Consul, for the publisher: a session holds them, and takes them with it when it ends.

use super::client::Door;
use super::{BASE64, ConsulConfig, DEADLINE, duration, without_slash};
use crate::dcs::failover::{Answered, Clients, Failure};
use crate::dcs::publish::{Change, Done, Kept, KeyStore, WriteError};
use base64::Engine;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::Duration;

/// An endpoint that has not taken a change by then is passed over: a dead one must cost little.
const PATIENCE: Duration = Duration::from_millis(500);
/// Consul takes 64 operations in a transaction, and a key needs two at most. A change of more keys is made in several
/// transactions, puts before deletes and each in the order of the names; each of them is whole or not there.
const KEYS_AT_ONCE: usize = 32;
/// A transaction that others got in the way of is made anew so many times.
const TRIES: u32 = 5;

/// The keys below one prefix.
pub(in crate::dcs) struct ConsulKeys {
    prefix: String,
    clients: Clients<ConsulConfig>,
}

/// What is to become of a key.
#[derive(Clone, Copy)]
enum Wish<'a> {
    Put(&'a str, &'a [u8]),
    Delete(&'a str),
}

/// How one transaction ended.
enum Made {
    Yes,
    /// The session is not there.
    NoSession,
}

#[derive(Deserialize)]
struct Refusals {
    #[serde(rename = "Errors")]
    errors: Vec<Refusal>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Refusal {
    op_index: usize,
    what: String,
}

/// A transaction and the key that each of its operations is about.
#[derive(Default)]
struct Transaction<'a> {
    operations: Vec<Value>,
    keys: Vec<&'a str>,
}

impl<'a> Transaction<'a> {
    fn add(&mut self, key: &'a str, operation: Value) {
        self.keys.push(key);
        self.operations.push(json!({ "KV": operation }));
    }
}

impl ConsulKeys {
    pub(in crate::dcs) fn new(config: ConsulConfig, prefix: &str) -> Self {
        ConsulKeys { prefix: without_slash(prefix), clients: Clients::new(config) }
    }

    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// A put takes the key for our session: `taken` ones are held by another session, and Consul moves no lock, so they
    /// are deleted in the same transaction. A delete holds only for a key of our session.
    fn transaction<'a>(
        &self,
        session: &str,
        wishes: &[Wish<'a>],
        taken: &BTreeSet<&str>,
        foreign: &BTreeSet<&str>,
    ) -> Transaction<'a> {
        let mut transaction = Transaction::default();
        for wish in wishes {
            match *wish {
                Wish::Put(key, value) => {
                    let full = self.full(key);
                    if taken.contains(key) {
                        transaction.add(key, json!({ "Verb": "delete", "Key": full }));
                    }
                    let value = BASE64.encode(value);
                    transaction
                        .add(key, json!({ "Verb": "lock", "Key": full, "Value": value, "Session": session }));
                }
                Wish::Delete(key) if foreign.contains(key) => {}
                Wish::Delete(key) => {
                    let full = self.full(key);
                    transaction.add(key, json!({ "Verb": "check-session", "Key": full, "Session": session }));
                    transaction.add(key, json!({ "Verb": "delete", "Key": full }));
                }
            }
        }
        transaction
    }

    /// Makes one transaction. Consul names every operation that it refuses, and has done nothing then.
    async fn make(&self, door: &Door, session: &str, wishes: &[Wish<'_>]) -> Result<Made, Failure> {
        let (mut taken, mut foreign) = (BTreeSet::new(), BTreeSet::new());
        for _ in 0..TRIES {
            let Transaction { operations, keys } = self.transaction(session, wishes, &taken, &foreign);
            if operations.is_empty() {
                return Ok(Made::Yes);
            }
            let answer = door.put("v1/txn", Value::from(operations).to_string().into_bytes()).await?;
            match answer.code {
                200 => return Ok(Made::Yes),
                409 => {}
                code => return Err(Failure::sure(format!("it answered {code}: {}", answer.text()))),
            }
            for Refusal { op_index, what } in answer.json::<Refusals>()?.errors {
                let key = keys.get(op_index).copied().unwrap_or_default();
                if what.contains("invalid session") {
                    return Ok(Made::NoSession);
                } else if what.contains("lock is already held") {
                    taken.insert(key);
                } else if what.contains("failed session check") || what.contains("failed to check session") {
                    foreign.insert(key);
                } else {
                    return Err(Failure::sure(format!("{}: {what}", self.full(key))));
                }
            }
        }
        Err(Failure::sure("others write the same keys all the time"))
    }

    async fn make_all(&self, door: Door, session: &str, change: &Change) -> Result<Made, Failure> {
        let puts = change.put.iter().map(|(key, value)| Wish::Put(key, value));
        let deletes = change.delete.iter().map(|key| Wish::Delete(key));
        let wishes: Vec<_> = puts.chain(deletes).collect();
        for block in wishes.chunks(KEYS_AT_ONCE) {
            if let Made::NoSession = self.make(&door, session, block).await? {
                return Ok(Made::NoSession);
            }
        }
        Ok(Made::Yes)
    }

    /// A sentence about keys that were not taken. Newer versions of Consul refuse names, without saying which.
    fn not_taken<'a>(&self, why: &str, keys: impl Iterator<Item = &'a String>) -> String {
        let mut odd = keys.filter(|key| why.contains("it answered 400") && is_odd(key));
        let advice = odd.next().map(|key| {
            format!(
                "; newer versions of Consul refuse a key like {}: letters, digits and , - _ . / only, and no ending \
                 like that of a file (.com, .json): give this host another [node] name",
                self.full(key)
            )
        });
        format!("{why}{}", advice.unwrap_or_default())
    }
}

/// Whether newer versions of Consul may refuse the name of this key.
fn is_odd(key: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || ",-_./".contains(c);
    let last = key.rsplit('/').next().unwrap_or(key);
    !key.chars().all(plain) || last.contains('.')
}

/// A session that no health check ends: only its time to live does, and the keys go with it at once.
async fn create(door: &Door, prefix: &str, ttl: Duration) -> Result<String, Failure> {
    #[derive(Deserialize)]
    struct Created {
        #[serde(rename = "ID")]
        id: String,
    }
    let session = json!({
        "Name": format!("pgsquire {prefix}"),
        "TTL": format!("{}s", ttl.as_secs()),
        "Behavior": "delete",
        "LockDelay": "0s",
        "Checks": [],
        "NodeChecks": [],
    });
    let answer = door.put("v1/session/create", session.to_string().into_bytes()).await?;
    Ok(answer.json::<Created>()?.id)
}

/// The shortest time to live that Consul takes, where it said so: `must be between [10s=24h0m0s]`.
fn shortest(why: &str) -> Option<Duration> {
    let (_, range) = why.split_once("must be between [")?;
    duration(range.split_once('=')?.0)
}

impl KeyStore for ConsulKeys {
    type Lease = String;

    async fn grant(&self, ttl: Duration) -> Result<(String, Duration), String> {
        let prefix = self.prefix.as_str();
        let ask = |door: Door| async move {
            match create(&door, prefix, ttl).await {
                Ok(id) => Ok((id, ttl)),
                Err(Failure { why, .. }) if shortest(&why).is_some_and(|least| least > ttl) => {
                    let least = shortest(&why).unwrap_or(ttl);
                    Ok((create(&door, prefix, least).await?, least))
                }
                Err(failure) => Err(failure),
            }
        };
        match self.clients.ask(PATIENCE, ask).await {
            Ok(Answered { answer, .. }) => Ok(answer),
            Err(Failure { why, .. }) => Err(format!("no Consul endpoint made a session: {why}")),
        }
    }

    /// A session that is not renewed lives for twice its time to live.
    fn longest(&self, ttl: Duration) -> Duration {
        ttl * 2
    }

    async fn renew(&self, lease: &String) -> Result<Kept, String> {
        let path = format!("v1/session/renew/{lease}");
        let ask = |door: Door| {
            let path = path.as_str();
            async move {
                let answer = door.put(path, Vec::new()).await?;
                match answer.code {
                    200 => answer.json::<Vec<Value>>().map(|_| Kept::Yes),
                    404 if answer.text().contains(lease.as_str()) => Ok(Kept::Lost),
                    code => Err(Failure::sure(format!("it answered {code}: {}", answer.text()))),
                }
            }
        };
        match self.clients.ask(DEADLINE / 2, ask).await {
            Ok(Answered { answer, .. }) => Ok(answer),
            Err(Failure { why, .. }) => {
                Err(format!("no Consul endpoint renewed the session of our keys: {why}"))
            }
        }
    }

    async fn change(&self, lease: &String, change: &Change) -> Result<Done, WriteError> {
        match self.clients.ask(PATIENCE, |door| self.make_all(door, lease, change)).await {
            Ok(Answered { answer: Made::Yes, unsure, .. }) => Ok(Done { unsure }),
            Ok(Answered { answer: Made::NoSession, .. }) => Err(WriteError::LeaseLost),
            Err(Failure { why, unsure, .. }) => {
                let why = format!("no Consul endpoint took our keys below {}: {why}", self.prefix);
                let keys = change.put.keys().chain(&change.delete);
                Err(WriteError::Failed { why: self.not_taken(&why, keys), unsure })
            }
        }
    }

    async fn put(&self, key: &str, value: Option<&[u8]>) -> Result<(), String> {
        let full = self.full(key);
        let path = format!("v1/kv/{full}");
        let ask = |door: Door| {
            let path = path.as_str();
            async move {
                let answer = match value {
                    Some(value) => door.put(path, value.to_vec()).await?,
                    None => door.delete(path).await?,
                };
                match answer.json::<bool>()? {
                    true => Ok(()),
                    false => Err(Failure::sure("it did not take it")),
                }
            }
        };
        match self.clients.ask(PATIENCE, ask).await {
            Ok(_) => Ok(()),
            Err(Failure { why, .. }) => {
                let why = format!("no Consul endpoint took our key {full}: {why}");
                Err(self.not_taken(&why, [key.to_owned()].iter()))
            }
        }
    }

    async fn revoke(&self, lease: &String) -> Result<(), String> {
        let path = format!("v1/session/destroy/{lease}");
        let ask = |door: Door| {
            let path = path.as_str();
            async move { door.put(path, Vec::new()).await?.json::<bool>() }
        };
        match self.clients.ask(PATIENCE, ask).await {
            Ok(_) => Ok(()),
            Err(Failure { why, .. }) => {
                Err(format!("no Consul endpoint ended the session of our keys: {why}"))
            }
        }
    }
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn odd_names_and_shortest_sessions() {
        assert!(is_odd("poolers/db1.example.com") && is_odd("poolers/db 1"));
        assert!(!is_odd("poolers/db1") && !is_odd("registry/web_3-a"));
        assert_eq!(
            shortest("Invalid Session TTL '5', must be between [10s=24h0m0s]"),
            Some(Duration::from_secs(10))
        );
        assert_eq!(shortest("no cluster leader"), None);
    }
}
