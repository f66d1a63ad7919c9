//! Our own keys in etcd, for the publisher.

use super::{DEADLINE, EtcdConfig};
use crate::dcs::failover::{Answered, Clients, Failure};
use crate::dcs::publish::{Change, Done, Kept, KeyStore, WriteError};
use etcd_client::{Client, Compare, CompareOp, DeleteOptions, Error, PutOptions, Txn, TxnOp};
use std::time::Duration;

/// An endpoint that has not taken a change by then is passed over: a dead one must cost little.
const PATIENCE: Duration = Duration::from_millis(500);

/// The keys below one prefix.
pub(in crate::dcs) struct EtcdKeys {
    prefix: String,
    clients: Clients<EtcdConfig>,
}

impl EtcdKeys {
    pub(in crate::dcs) fn new(config: EtcdConfig, prefix: String) -> Self {
        EtcdKeys { prefix, clients: Clients::new(config) }
    }

    /// All of it in one transaction. Only what is bound to the lease is deleted: another run of the agent may have put
    /// the same key since.
    fn transaction(&self, lease: i64, change: &Change) -> Txn {
        let full = |key: &String| format!("{}{key}", self.prefix);
        let leased = || Some(PutOptions::new().with_lease(lease));
        let puts = change.put.iter().map(|(key, value)| TxnOp::put(full(key), value.as_slice(), leased()));
        let deletes = change.delete.iter().map(|key| {
            let ours = [Compare::lease(full(key), CompareOp::Equal, lease)];
            TxnOp::txn(Txn::new().when(ours).and_then([TxnOp::delete(full(key), None)]))
        });
        Txn::new().and_then(puts.chain(deletes).collect::<Vec<_>>())
    }
}

/// Whether etcd does not know the lease.
fn no_lease(error: &Error) -> bool {
    match error {
        Error::GRpcStatus(status) => status.message().contains("lease not found"),
        Error::LeaseKeepAliveError(why) => why.contains("lease not found"),
        _ => false,
    }
}

/// A lost lease is an answer: no other endpoint would know more.
fn unless_lost<T>(answer: Result<T, Error>) -> Result<Option<T>, Failure> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(e) if no_lease(&e) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

impl KeyStore for EtcdKeys {
    type Lease = i64;

    async fn grant(&self, ttl: Duration) -> Result<(i64, Duration), String> {
        let seconds = i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX);
        let ask = |mut client: Client| async move { Ok(client.lease_grant(seconds, None).await?) };
        match self.clients.ask(PATIENCE, ask).await {
            // etcd raises a time to live that is too short for its elections.
            Ok(Answered { answer, .. }) => {
                Ok((answer.id(), Duration::from_secs(u64::try_from(answer.ttl()).unwrap_or(0))))
            }
            Err(Failure { why, .. }) => Err(format!("no etcd endpoint granted a lease: {why}")),
        }
    }

    async fn renew(&self, lease: &i64) -> Result<Kept, String> {
        let lease = *lease;
        // A stream for one renewal: its first answer is the whole answer.
        let ask =
            |mut client: Client| async move { unless_lost(client.lease_keep_alive(lease).await.map(drop)) };
        match self.clients.ask(DEADLINE / 2, ask).await {
            Ok(Answered { answer: Some(()), .. }) => Ok(Kept::Yes),
            Ok(Answered { answer: None, .. }) => Ok(Kept::Lost),
            Err(Failure { why, .. }) => Err(format!("no etcd endpoint renewed the lease of our keys: {why}")),
        }
    }

    async fn change(&self, lease: &i64, change: &Change) -> Result<Done, WriteError> {
        let transaction = self.transaction(*lease, change);
        let ask = |mut client: Client| {
            let transaction = transaction.clone();
            async move { unless_lost(client.txn(transaction).await) }
        };
        match self.clients.ask(PATIENCE, ask).await {
            Ok(Answered { answer: Some(_), unsure, .. }) => Ok(Done { unsure }),
            Ok(Answered { answer: None, .. }) => Err(WriteError::LeaseLost),
            Err(Failure { why, unsure, .. }) => {
                let why = format!("no etcd endpoint took our keys below {}: {why}", self.prefix);
                Err(WriteError::Failed { why, unsure })
            }
        }
    }

    async fn put(&self, key: &str, value: Option<&[u8]>) -> Result<(), String> {
        let full = format!("{}{key}", self.prefix);
        let ask = |mut client: Client| {
            let full = full.as_str();
            async move {
                match value {
                    Some(value) => client.put(full, value, None).await.map(drop)?,
                    None => client.delete(full, Some(DeleteOptions::new())).await.map(drop)?,
                }
                Ok(())
            }
        };
        match self.clients.ask(PATIENCE, ask).await {
            Ok(_) => Ok(()),
            Err(Failure { why, .. }) => Err(format!("no etcd endpoint took our key {full}: {why}")),
        }
    }

    async fn revoke(&self, lease: &i64) -> Result<(), String> {
        let lease = *lease;
        let ask = |mut client: Client| async move { unless_lost(client.lease_revoke(lease).await) };
        match self.clients.ask(PATIENCE, ask).await {
            Ok(_) => Ok(()),
            Err(Failure { why, .. }) => Err(format!("no etcd endpoint revoked the lease of our keys: {why}")),
        }
    }
}
