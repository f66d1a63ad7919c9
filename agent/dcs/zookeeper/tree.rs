//! All nodes below a prefix as they were at one moment.

use super::DEADLINE;
use super::client::at;
use crate::dcs::beside;
use crate::dcs::failover::Failure;
use futures_util::future::{join_all, try_join_all};
use pgsquire_core::patroni::{Keys, StoredValue};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use tokio::time::timeout;
use zookeeper_client::{Client, Error, Stat};

/// While nodes change faster than they are read, they are read so many times.
const READS_AT_MOST: u32 = 5;
/// So many nodes are asked for at once.
const AT_ONCE: usize = 500;
/// Our own keys stand below a node of this name, beside Patroni's.
const OURS: &str = "/pgsquire";

/// What a prefix holds.
#[derive(Debug)]
pub(super) struct Tree {
    pub(super) keys: Keys,
    /// Nodes that are no keys.
    pub(super) folders: BTreeSet<String>,
    /// The newest change that the read has seen.
    pub(super) revision: u64,
    /// What names this ensemble.
    pub(super) store: String,
}

/// Reads it. ZooKeeper has no read of many nodes that is a picture of one moment on every version we know, so they are
/// read, and then looked at again: what is the same both times was so in between.
pub(super) async fn read(client: &Client, prefix: &str) -> Result<Tree, Failure> {
    for _ in 0..READS_AT_MOST {
        if let Some(tree) = read_once(client, prefix).await? {
            return Ok(tree);
        }
    }
    Err(Failure::sure(format!("{prefix} changed faster than it could be read")))
}

/// The node that a prefix means.
pub(super) fn top(prefix: &str) -> &str {
    prefix.trim_end_matches('/')
}

/// The nodes above it, from the root on.
pub(super) fn above(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').map(|(at, _)| if at == 0 { "/" } else { &path[..at] })
}

/// The node that names the ensemble: the first one on the way to Patroni's keys, for its keys as for ours.
fn namesake(prefix: &str) -> &str {
    let theirs =
        prefix.strip_prefix(OURS).filter(|rest| rest.starts_with('/') && rest.len() > 1).unwrap_or(prefix);
    match theirs[1..].find('/') {
        Some(end) => &theirs[..=end],
        None => theirs,
    }
}

/// Where there are nodes, if there are none of ours. Nodes without others below them are values.
pub(super) async fn beside(client: &Client, prefix: &str) -> Vec<String> {
    for folder in beside::folders(prefix) {
        let Ok(names) = client.list_children(if folder == "/" { folder } else { top(folder) }).await else {
            continue;
        };
        let paths =
            names.into_iter().filter(|name| beside::counts(name)).map(|name| format!("{folder}{name}"));
        let paths: Vec<String> = paths.take(beside::MANY).collect();
        let stats = join_all(paths.iter().map(|path| client.check_stat(path))).await;
        let is_folder = |stat: Result<Option<Stat>, Error>| {
            stat.is_ok_and(|stat| stat.is_some_and(|s| s.num_children > 0))
        };
        let found = paths.into_iter().zip(stats).filter_map(|(path, stat)| is_folder(stat).then_some(path));
        let mut found: Vec<String> = found.collect();
        found.sort_unstable();
        if !found.is_empty() {
            return found;
        }
    }
    Vec::new()
}

fn newest(stat: &Stat) -> i64 {
    stat.czxid.max(stat.mzxid).max(stat.pzxid)
}

/// Asks the same of each, so many at once that a server which says nothing is told from one that has much to say. Such a
/// one is not asked again on another connection.
async fn each<T, F: Future>(of: &[T], ask: impl Fn(&T) -> F) -> Result<Vec<F::Output>, Failure> {
    let mut answers = Vec::with_capacity(of.len());
    for block in of.chunks(AT_ONCE) {
        answers.extend(answered(join_all(block.iter().map(&ask))).await?);
    }
    Ok(answers)
}

async fn answered<T>(question: impl Future<Output = T>) -> Result<T, Failure> {
    let answer = timeout(DEADLINE, question).await;
    answer.map_err(|_| Failure { broken: false, ..Failure::silent(DEADLINE) })
}

/// None: something changed meanwhile.
async fn read_once(client: &Client, prefix: &str) -> Result<Option<Tree>, Failure> {
    let stat_of = |path: String| async move {
        let stat = client.check_stat(&path).await;
        stat.map_err(|e| at(&path, &e))
    };
    // The server catches up with the leader first: what was confirmed to anybody before this read began is in it.
    answered(client.sync("/")).await?.map_err(|e| at("sync", &e))?;
    let path = top(prefix);
    // Before the nodes below: the revision must not promise what they do not hold.
    let ancestors = answered(try_join_all(above(path).map(|path| stat_of(path.to_owned())))).await??;
    if let Some(None) = ancestors.first() {
        return Err(Failure::sure("the chroot of the endpoints does not exist"));
    }
    let store = answered(stat_of(namesake(prefix).to_owned())).await??.as_ref().map_or_else(unnamed, name);
    let Some(nodes) = nodes_of(client, path).await? else { return Ok(None) };
    let paths: Vec<&String> = nodes.keys().collect();
    let again = each(&paths, |path| stat_of((*path).clone())).await?;
    let again = again.into_iter().collect::<Result<Vec<_>, Failure>>()?;
    let same = nodes.values().zip(&again).all(|((stat, _), again)| *again == Some(*stat));
    if !same || (nodes.is_empty() && answered(stat_of(path.to_owned())).await??.is_some()) {
        return Ok(None);
    }
    let stats = ancestors.iter().flatten().chain(nodes.values().map(|(stat, _)| stat));
    let revision = positive(stats.map(newest).max().unwrap_or(0));
    let (keys, folders) = sort(nodes, prefix);
    Ok(Some(Tree { keys, folders, revision, store }))
}

type Nodes = BTreeMap<String, (Stat, Vec<u8>)>;

/// All nodes from `path` on down, one level after the other. None: one vanished on the way.
async fn nodes_of(client: &Client, path: &str) -> Result<Option<Nodes>, Failure> {
    let mut nodes = Nodes::new();
    let mut level = vec![path.to_owned()];
    while !level.is_empty() {
        let read = each(&level, |path| {
            let path = path.clone();
            async move {
                let (data, stat) = client.get_data(&path).await?;
                let some = stat.num_children > 0;
                let children = if some { client.list_children(&path).await? } else { Vec::new() };
                Ok::<_, Error>((data, stat, children))
            }
        })
        .await?;
        let mut next = Vec::new();
        for (path, read) in level.into_iter().zip(read) {
            match read {
                Ok((data, stat, children)) => {
                    next.extend(children.iter().map(|child| format!("{path}/{child}")));
                    nodes.insert(path, (stat, data));
                }
                Err(Error::NoNode) if nodes.is_empty() => return Ok(Some(nodes)),
                Err(Error::NoNode) => return Ok(None),
                Err(e) => return Err(at(&path, &e)),
            }
        }
        level = next;
    }
    Ok(Some(nodes))
}

/// A node without a value is a folder, except Patroni's `initialize`, which is empty during a bootstrap.
fn sort(nodes: Nodes, prefix: &str) -> (Keys, BTreeSet<String>) {
    let (mut keys, mut folders) = (Keys::new(), BTreeSet::new());
    for (path, (stat, value)) in nodes {
        let Some(key) = path.strip_prefix(prefix).map(str::to_owned) else { continue };
        if value.is_empty() && key != "initialize" {
            folders.insert(key);
        } else {
            keys.insert(key, StoredValue { value, revision: positive(stat.mzxid) });
        }
    }
    (keys, folders)
}

/// An ensemble has no name of its own. When one of its oldest nodes was created, by its own count and by the clock,
/// tells it from others, and outlives restarts.
fn name(stat: &Stat) -> String {
    format!("{:x}-{:x}", stat.czxid, stat.ctime)
}

/// Patroni has never been here.
fn unnamed() -> String {
    "unnamed".to_owned()
}

fn positive(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_to_a_node() {
        assert_eq!(top("/service/main/"), "/service/main");
        assert_eq!(above("/service/main").collect::<Vec<_>>(), ["/", "/service"]);
        assert_eq!(above("/main").collect::<Vec<_>>(), ["/"]);
    }

    #[test]
    fn both_prefixes_of_a_cluster_have_one_namesake() {
        for (prefix, node) in [
            ("/service/main/", "/service"),
            ("/pgsquire/service/main/", "/service"),
            ("/a/b/main/0/", "/a"),
            ("/pgsquire/a/b/main/0/", "/a"),
            ("/main/", "/main"),
            ("/pgsquire/main/", "/main"),
            ("/pgsquire/", "/pgsquire"),
            ("/pgsquire2/main/", "/pgsquire2"),
        ] {
            assert_eq!(namesake(prefix), node, "{prefix}");
        }
    }

    #[test]
    fn folders_are_no_keys() {
        let stat = |mzxid| Stat {
            czxid: 1,
            mzxid,
            pzxid: 9,
            ctime: 0,
            mtime: 0,
            version: 0,
            cversion: 0,
            aversion: 0,
            ephemeral_owner: 0,
            data_length: 0,
            num_children: 0,
        };
        let node =
            |path: &str, mzxid, value: &str| (path.to_owned(), (stat(mzxid), value.as_bytes().to_vec()));
        let nodes = Nodes::from([
            node("/service/main", 1, ""),
            node("/service/main/initialize", 2, ""),
            node("/service/main/members", 3, ""),
            node("/service/main/members/pg1", 4, "{}"),
        ]);
        let (keys, folders) = sort(nodes, "/service/main/");
        assert_eq!(folders, BTreeSet::from(["members".to_owned()]));
        let revisions: Vec<_> = keys.iter().map(|(key, stored)| (key.as_str(), stored.revision)).collect();
        assert_eq!(revisions, [("initialize", 2), ("members/pg1", 4)]);
        assert_eq!(newest(&stat(12)), 12);
        assert_eq!(newest(&stat(2)), 9, "a child that is gone is seen by its parent");
    }
}
