//! The last files that PgBouncer was seen to have loaded: kept, and put back when a newer one cannot be.

use super::disk::Disk;
use super::pools::{CONSOLE_AGE, Pooler};
use super::reconcile::{Decisions, wanted};
use crate::config::Config;
use crate::desired::Decision;
use crate::effect::PoolerOrder;
use crate::rule::{Reason, Rule};
use crate::time::Time;
use crate::topology::Endpoint;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

/// Somebody's edit is broken: PgBouncer refused the file twice although our part of it is right, or we see ourselves
/// that it must while a route has to move. The last file that it did load goes back, with the routes of now; the refused
/// one stays beside it.
pub(super) fn put_last_good_back(
    config: &Config,
    pooler: &Pooler,
    disk: &Disk,
    decisions: &Decisions,
) -> Option<(PoolerOrder, Reason)> {
    let wanted = wanted(decisions);
    let stuck = is_broken(disk) && wanted.iter().any(|(entry, to)| !pooler.is_loaded(entry, to));
    if pooler.refused_reloads < 2 && !stuck || !config.mutants.obey(Rule::LastGood) {
        return None;
    }
    let mut good = Disk::new(pooler.good.clone()?);
    for (path, bytes) in good.retarget(&routes_of_now(pooler, disk, &good, decisions)?).ok()? {
        good.files.parts.insert(path, bytes);
    }
    let mut files = BTreeMap::new();
    for (path, bytes) in &good.files.parts {
        let there = disk.files.parts.get(path);
        if there != Some(bytes) {
            files.insert(path.clone(), (there.cloned().unwrap_or_default(), bytes.clone()));
        }
    }
    let text = format!("PgBouncer did not load {}: the last good one goes back", disk.files.root);
    (!files.is_empty())
        .then(|| (PoolerOrder::Write { files, keep_rejected: true }, Reason::new(Rule::LastGood, text)))
}

/// Where the entries of an old file must lead when it comes back: where they are wanted, else where the refused file led
/// them (our last word), else where they are loaded. What is unknown moves nothing, and nothing moves back in time: no
/// file goes back whose entry would lead where nobody knows any more. An entry that it does not have stays away.
fn routes_of_now(
    pooler: &Pooler,
    disk: &Disk,
    good: &Disk,
    decisions: &Decisions,
) -> Option<BTreeMap<String, Endpoint>> {
    let now = |(entry, decision): (&String, &Decision)| {
        let wanted = decision.target.as_ref().map(|target| target.endpoint.clone());
        let known = wanted.or_else(|| disk.entries.get(entry).cloned()).or_else(|| pooler.loaded(entry));
        match known {
            Some(endpoint) => Some(Some((entry.clone(), endpoint))),
            None => (!good.entries.contains_key(entry)).then_some(None),
        }
    };
    Some(decisions.iter().map(now).collect::<Option<Vec<_>>>()?.into_iter().flatten().collect())
}

/// Whether PgBouncer cannot load what is on disk. A file that only we cannot read is no such thing.
fn is_broken(disk: &Disk) -> bool {
    !disk.problems.is_empty() && disk.files.missing().is_empty()
}

pub(super) fn keep_good(pooler: &Pooler, decisions: &Decisions, now: Time) -> Option<(PoolerOrder, Reason)> {
    let disk = pooler.disk.last()?;
    let is_loaded = |entry: &String| match disk.entries.get(entry) {
        Some(endpoint) => pooler.is_loaded(entry, endpoint),
        None => pooler.loaded(entry).is_none(),
    };
    let worth = pooler.proved_good || pooler.good.is_none() || pooler.good_unkept;
    if !worth
        || pooler.reload_unseen
        || pooler.look_due <= now
        || pooler.console.fresh(now, CONSOLE_AGE).is_err()
        || pooler.good.as_ref() == Some(&disk.files) && !pooler.good_unkept
        || !disk.problems.is_empty()
    {
        return None;
    }
    let text = "this file is loaded: it is what a broken one would be replaced with";
    let keep = PoolerOrder::KeepGood { files: disk.files.clone() };
    decisions.keys().all(is_loaded).then(|| (keep, Reason::new(Rule::LastGood, text)))
}
