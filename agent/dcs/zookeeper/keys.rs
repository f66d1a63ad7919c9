//! Our own keys in ZooKeeper, for the publisher. A lease is a session of its own: its keys are ephemeral nodes.

use super::ZooKeeperConfig;
use super::client::{Purpose, at};
use super::tree::top;
use crate::dcs::failover::{Answered, Clients, Failure};
use crate::dcs::publish::{Change, Done, Kept, KeyStore, WriteError};
use futures_util::future::join_all;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::timeout;
use zookeeper_client::{
    Acls, Client, CreateMode, CreateOptions, Error, MultiWriteError, SessionInfo, SessionState, Stat,
};

/// A server that has not taken a change by then is passed over, if there is another one.
const PATIENCE: Duration = Duration::from_millis(500);
/// The only one may take longer.
const PATIENCE_ALONE: Duration = Duration::from_millis(1_500);
/// A connection that is let go ends within this, or by itself some time later.
const GOODBYE: Duration = Duration::from_millis(50);
/// While others change the same nodes a change is tried so many times.
const TRIES: u32 = 5;
/// More than this a server with default settings does not take in one request: it cuts the connection instead of saying
/// so, and the library would go on connecting and sending.
const LARGEST: usize = 1_000_000;

/// The keys below one prefix.
pub(in crate::dcs) struct ZooKeeperKeys {
    prefix: String,
    clients: Clients<ZooKeeperConfig>,
    sessions: Mutex<BTreeMap<i64, Session>>,
}

/// A session with ephemeral nodes, and the connection it is used on now. Two connections of one session drive each other
/// out: the old one is let go before there is a new one. So it is not one of the clients that [`Clients`] keeps and makes
/// anew by itself; only the order of the servers is shared, and files that changed are read with the next connection.
#[derive(Clone)]
struct Session {
    info: SessionInfo,
    timeout: Duration,
    client: Option<Client>,
    endpoint: usize,
}

impl ZooKeeperKeys {
    pub(in crate::dcs) fn new(config: ZooKeeperConfig, prefix: String) -> Self {
        ZooKeeperKeys { prefix, clients: Clients::new(config), sessions: Mutex::new(BTreeMap::new()) }
    }

    fn sessions(&self) -> MutexGuard<'_, BTreeMap<i64, Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn session(&self, lease: i64) -> Option<Session> {
        self.sessions().get(&lease).cloned()
    }

    fn patience(&self) -> Duration {
        if self.clients.opener().endpoints.len() > 1 { PATIENCE } else { PATIENCE_ALONE }
    }

    async fn connect(&self, endpoint: usize, purpose: Purpose) -> Result<Client, Failure> {
        self.clients.opener().connect(self.clients.name(endpoint), purpose).await
    }

    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    /// Who has a login keeps the nodes for those with the same login.
    fn acls(&self) -> Acls<'static> {
        if self.clients.opener().username.is_some() { Acls::creator_all() } else { Acls::anyone_all() }
    }

    fn folders(&self) -> CreateOptions<'static> {
        CreateMode::Persistent.with_acls(self.acls())
    }

    /// Asks in the session of a lease; if its server does not answer, then through the next ones: the session goes with
    /// us, and what the first server still holds of it is refused from then on.
    async fn in_session<T, F>(&self, lease: i64, ask: impl Fn(Client) -> F) -> Result<(T, bool), Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let Some(Session { info, timeout: agreed, client, endpoint }) = self.session(lease) else {
            return Err(Failure { gone: true, ..Failure::sure("the session is not there") });
        };
        let patience = self.patience();
        // The only server need not be asked twice, except whether a session is gone.
        let (mut unsure, mut asked) = (false, false);
        let mut whys = Vec::new();
        if let Some(client) = client.filter(|client| client.state() == SessionState::SyncConnected) {
            match timeout(patience, ask(client)).await.unwrap_or_else(|_| Err(Failure::silent(patience))) {
                Ok(answer) => return Ok((answer, false)),
                Err(failure) if !failure.broken => return Err(failure),
                Err(failure) => {
                    (unsure, asked) = (failure.unsure, !failure.gone);
                    whys.push(format!("{}: {}", self.clients.name(endpoint), failure.why));
                }
            }
        }
        if !asked || self.clients.opener().endpoints.len() > 1 {
            self.clients.avoid(endpoint);
            self.let_go(lease).await;
            let moved =
                |endpoint| self.ask_elsewhere(lease, endpoint, Purpose::Resume(info.clone(), agreed), &ask);
            match self.clients.each(patience, moved).await {
                Ok(answered) => return Ok((answered.answer, unsure || answered.unsure)),
                Err(failure) => {
                    unsure |= failure.unsure;
                    whys.push(failure.why);
                    if failure.gone {
                        return Err(Failure { gone: true, ..Failure::sure(whys.join("; ")) });
                    }
                }
            }
        }
        Err(Failure { unsure, ..Failure::sure(whys.join("; ")) })
    }

    async fn ask_elsewhere<T, F>(
        &self,
        lease: i64,
        endpoint: usize,
        purpose: Purpose,
        ask: &impl Fn(Client) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let client = self.connect(endpoint, purpose).await?;
        // Unless it was given back meanwhile.
        if let Some(session) = self.sessions().get_mut(&lease) {
            (session.client, session.endpoint) = (Some(client.clone()), endpoint);
        }
        ask(client).await
    }

    /// Ends the connection of a session, and not the session. One that is idle and not lost ends at once.
    async fn let_go(&self, lease: i64) {
        let client = self.sessions().get_mut(&lease).and_then(|session| session.client.take());
        if let Some(client) = client {
            let mut state = client.state_watcher();
            drop(client);
            let gone = async { while !state.changed().await.is_terminated() {} };
            let _ = timeout(GOODBYE, gone).await;
        }
    }

    /// Makes a change: looks who holds the keys, and writes all of it if that is still so.
    async fn make(&self, client: &Client, lease: i64, change: &Change) -> Result<(), Failure> {
        for _ in 0..TRIES {
            match self.try_make(client, lease, change).await? {
                Made::Yes => return Ok(()),
                Made::NotYet => {}
                Made::NoFolder => {
                    for key in change.put.keys() {
                        self.make_folder(client, &self.full(key)).await?;
                    }
                }
            }
        }
        Err(Failure::sure("others changed the same nodes all the time"))
    }

    async fn try_make(&self, client: &Client, lease: i64, change: &Change) -> Result<Made, Failure> {
        let keys: Vec<&String> = change.put.keys().chain(&change.delete).collect();
        let looks = keys.iter().map(|key| async {
            let path = self.full(key);
            client.check_stat(&path).await.map_err(|e| at(&path, &e))
        });
        let mut stats = BTreeMap::new();
        for (key, stat) in keys.iter().zip(join_all(looks).await) {
            stats.insert(key.as_str(), stat?);
        }
        let steps = steps(change, lease, |key| stats.get(key).copied().flatten());
        if steps.is_empty() {
            return Ok(Made::Yes);
        }
        let leased = CreateMode::Ephemeral.with_acls(self.acls());
        let mut writer = client.new_multi_writer();
        for step in &steps {
            let path = self.full(step.key);
            match step.what {
                What::Create(value) => writer.add_create(&path, value, &leased),
                What::Set(value) => writer.add_set_data(&path, value, None),
                What::Delete(version) => writer.add_delete(&path, Some(version)),
            }
            .map_err(|e| at(&path, &e))?;
        }
        match writer.commit().await {
            Ok(_) => Ok(Made::Yes),
            Err(MultiWriteError::OperationFailed { source: Error::NoNode, .. }) => Ok(Made::NoFolder),
            Err(MultiWriteError::OperationFailed {
                source: Error::NodeExists | Error::BadVersion, ..
            }) => Ok(Made::NotYet),
            Err(MultiWriteError::OperationFailed { index, source }) => {
                let key = steps.get(index).map_or("", |step| step.key);
                Err(at(&self.full(key), &source))
            }
            Err(MultiWriteError::RequestFailed { source }) => Err(at(top(&self.prefix), &source)),
        }
    }

    async fn make_folder(&self, client: &Client, path: &str) -> Result<(), Failure> {
        let Some((folder, _)) = path.rsplit_once('/') else { return Ok(()) };
        client.mkdir(folder, &self.folders()).await.map_err(|e| at(folder, &e))
    }

    /// Puts a node without a lease.
    async fn put_lasting(&self, client: &Client, path: &str, value: &[u8]) -> Result<(), Failure> {
        let mut last = Error::NoNode;
        for _ in 0..TRIES {
            match client.set_data(path, value, None).await {
                Ok(_) => return Ok(()),
                Err(Error::NoNode) => {}
                Err(e) => return Err(at(path, &e)),
            }
            match client.create(path, value, &self.folders()).await {
                Ok(_) => return Ok(()),
                Err(Error::NoNode) => self.make_folder(client, path).await?,
                Err(e @ Error::NodeExists) => last = e,
                Err(e) => return Err(at(path, &e)),
            }
        }
        Err(at(path, &last))
    }

    /// Ends a session and waits for the server's word.
    async fn end(&self, lease: i64) -> Result<(), Failure> {
        let Some(Session { info, timeout: agreed, .. }) = self.session(lease) else { return Ok(()) };
        self.let_go(lease).await;
        let end = |endpoint| {
            let purpose = Purpose::End(info.clone(), agreed);
            async move {
                let client = self.connect(endpoint, purpose).await?;
                let mut state = client.state_watcher();
                drop(client);
                while !state.changed().await.is_terminated() {}
                Ok(())
            }
        };
        match self.clients.each(self.patience(), end).await {
            Err(failure) if !failure.gone => Err(failure),
            _ => {
                self.sessions().remove(&lease);
                Ok(())
            }
        }
    }

    fn too_large(&self, key: &str, size: usize) -> Option<String> {
        (size > LARGEST).then(|| {
            format!("our key {} has {size} bytes: ZooKeeper takes no more than {LARGEST}", self.full(key))
        })
    }
}

/// What became of a change.
enum Made {
    Yes,
    /// Somebody else was faster.
    NotYet,
    /// A node to put has no parent yet, or one to delete vanished.
    NoFolder,
}

/// One write of a transaction.
#[derive(Debug, PartialEq)]
struct Step<'a> {
    key: &'a str,
    what: What<'a>,
}

#[derive(Debug, PartialEq)]
enum What<'a> {
    Create(&'a [u8]),
    Set(&'a [u8]),
    /// If it still has this version.
    Delete(i32),
}

/// The writes that make a change, from who holds its keys now. A node of another session is replaced by one of ours, and
/// only what is ours is deleted: another run of the agent may have put the same key since.
fn steps<'a>(change: &'a Change, lease: i64, stat: impl Fn(&str) -> Option<Stat>) -> Vec<Step<'a>> {
    let mut steps = Vec::new();
    for (key, value) in &change.put {
        let step = |what| Step { key, what };
        match stat(key) {
            Some(stat) if stat.ephemeral_owner == lease => steps.push(step(What::Set(value))),
            Some(stat) => steps.extend([step(What::Delete(stat.version)), step(What::Create(value))]),
            None => steps.push(step(What::Create(value))),
        }
    }
    for key in &change.delete {
        if let Some(stat) = stat(key).filter(|stat| stat.ephemeral_owner == lease) {
            steps.push(Step { key, what: What::Delete(stat.version) });
        }
    }
    steps
}

/// What may be promised of an agreed timeout. A server that we talk to tells its leader only now and then whom it heard;
/// if it is cut off in between, the leader counts from what it was told before.
fn promised(agreed: Duration) -> Duration {
    agreed * 3 / 4
}

impl KeyStore for ZooKeeperKeys {
    /// The number of a session.
    type Lease = i64;

    async fn grant(&self, ttl: Duration) -> Result<(i64, Duration), String> {
        let begin = |endpoint| self.connect(endpoint, Purpose::Lease(ttl));
        match self.clients.each(self.patience(), begin).await {
            Ok(Answered { answer: client, endpoint, .. }) => {
                let (lease, agreed) = (client.session_id().0, client.session_timeout());
                let info = client.session().clone();
                let session = Session { info, timeout: ttl, client: Some(client), endpoint };
                self.sessions().insert(lease, session);
                Ok((lease, promised(agreed)))
            }
            Err(Failure { why, .. }) => Err(format!("no ZooKeeper server gave us a session: {why}")),
        }
    }

    async fn renew(&self, lease: &i64) -> Result<Kept, String> {
        // The library keeps the session by itself; this asks the leader whether it knows it.
        let ask = |client: Client| async move {
            client.sync("/").await.map_err(|e| at("the session of our keys", &e))
        };
        match self.in_session(*lease, ask).await {
            Ok(_) => Ok(Kept::Yes),
            Err(Failure { gone: true, .. }) => {
                self.sessions().remove(lease);
                Ok(Kept::Lost)
            }
            Err(Failure { why, .. }) => {
                Err(format!("no ZooKeeper server kept the session of our keys: {why}"))
            }
        }
    }

    async fn change(&self, lease: &i64, change: &Change) -> Result<Done, WriteError> {
        let size: usize = change.put.iter().map(|(key, value)| key.len() + value.len()).sum();
        let largest = change.put.iter().max_by_key(|(_, value)| value.len());
        if let Some(why) = largest.and_then(|(key, _)| self.too_large(key, size)) {
            return Err(WriteError::Failed { why, unsure: false });
        }
        let ask = |client: Client| async move { self.make(&client, *lease, change).await };
        match self.in_session(*lease, ask).await {
            Ok(((), unsure)) => Ok(Done { unsure }),
            Err(Failure { gone: true, .. }) => {
                self.sessions().remove(lease);
                Err(WriteError::LeaseLost)
            }
            Err(Failure { why, unsure, .. }) => {
                let why = format!("no ZooKeeper server took our keys below {}: {why}", self.prefix);
                Err(WriteError::Failed { why, unsure })
            }
        }
    }

    async fn put(&self, key: &str, value: Option<&[u8]>) -> Result<(), String> {
        if let Some(why) = value.and_then(|value| self.too_large(key, value.len())) {
            return Err(why);
        }
        let full = self.full(key);
        let ask = |client: Client| {
            let full = full.as_str();
            async move {
                match value {
                    Some(value) => self.put_lasting(&client, full, value).await,
                    None => match client.delete(full, None).await {
                        Ok(()) | Err(Error::NoNode) => Ok(()),
                        Err(e) => Err(at(full, &e)),
                    },
                }
            }
        };
        match self.clients.ask(self.patience(), ask).await {
            Ok(_) => Ok(()),
            Err(Failure { why, .. }) => Err(format!("no ZooKeeper server took our key {full}: {why}")),
        }
    }

    async fn revoke(&self, lease: &i64) -> Result<(), String> {
        let ended = self.end(*lease).await;
        ended.map_err(|Failure { why, .. }| {
            format!("no ZooKeeper server ended the session of our keys: {why}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stat(owner: i64, version: i32) -> Stat {
        Stat {
            czxid: 1,
            mzxid: 1,
            pzxid: 1,
            ctime: 0,
            mtime: 0,
            version,
            cversion: 0,
            aversion: 0,
            ephemeral_owner: owner,
            data_length: 0,
            num_children: 0,
        }
    }

    #[test]
    fn what_is_ours_is_set_and_what_is_another_sessions_is_replaced() {
        let change = Change {
            put: [("mine", "1"), ("new", "2"), ("theirs", "3")].map(|(k, v)| (k.into(), v.into())).into(),
            delete: ["gone", "my old", "their old"].map(Into::into).into(),
        };
        let stats = BTreeMap::from([
            ("mine", stat(7, 2)),
            ("theirs", stat(8, 3)),
            ("my old", stat(7, 4)),
            ("their old", stat(8, 5)),
        ]);
        let steps = steps(&change, 7, |key| stats.get(key).copied());
        let step = |key, what| Step { key, what };
        assert_eq!(
            steps,
            [
                step("mine", What::Set(b"1")),
                step("new", What::Create(b"2")),
                step("theirs", What::Delete(3)),
                step("theirs", What::Create(b"3")),
                step("my old", What::Delete(4)),
            ]
        );
    }

    #[test]
    fn less_is_promised_than_was_agreed() {
        assert_eq!(promised(Duration::from_secs(10)), Duration::from_millis(7_500));
    }

    #[tokio::test]
    async fn what_is_too_large_is_said_and_not_sent() {
        let keys = ZooKeeperKeys::new(ZooKeeperConfig::default(), "/pgsquire/service/main/".into());
        let large = vec![b'x'; 5 << 20];
        let why = keys.put("registry/a", Some(&large)).await.unwrap_err();
        assert!(why.contains("/pgsquire/service/main/registry/a") && why.contains("5242880"), "{why}");
        let change = Change { put: [("switch".into(), large)].into(), delete: [].into() };
        let Err(WriteError::Failed { why, unsure: false }) = keys.change(&1, &change).await else { panic!() };
        assert!(why.contains("/pgsquire/service/main/switch"), "{why}");
    }
}
