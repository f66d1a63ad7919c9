//! How far a PgBouncer process has let go of a server: its clients wait, and no link leads there.

use super::pools::{CONSOLE_AGE, LOOK_PAUSE, Pooler};
use crate::config::{ClusterConfig, Config, Fence, PoolerConfig};
use crate::effect::PauseScope;
use crate::rule::Rule;
use crate::switch::hold::Hold;
use crate::time::Time;
use crate::topology::Endpoint;
use alloc::string::String;
use core::time::Duration;

/// Pause between looks while links are to be let go of.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// … which grows with the hold: this share of its age.
const LOOK_SHARE: u32 = 16;

/// How far a process has let go of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LetGo {
    /// It waits and has no link there, but for those of session pools.
    Done {
        /// They stay until their clients leave.
        session_links: u32,
    },
    /// Not yet.
    Not,
    /// Its console has been silent for so long that nothing can be said.
    Unknown,
}

pub(super) fn leads_there(pooler: &Pooler, entry: &str, endpoint: &Endpoint) -> bool {
    pooler.loaded(entry).is_some_and(|loaded| loaded == *endpoint)
        || pooler.links_to(entry, endpoint) != (0, 0)
}

/// How far a pooler has let go of the held server.
pub fn let_go(
    config: &Config,
    cluster: &ClusterConfig,
    name: &str,
    pooler: &Pooler,
    hold: &Hold,
    now: Time,
) -> LetGo {
    let Some(pooler_config) = config.pooler(name) else { return LetGo::Done { session_links: 0 } };
    if pooler.console.fresh(now, CONSOLE_AGE).is_err() && pooler.pause.is_none() {
        return LetGo::Unknown;
    }
    if pooler.console.seen() <= Some(hold.since) {
        return LetGo::Not;
    }
    let (mut held, mut session_links) = (false, 0);
    for (entry, route) in pooler_config.routes.iter().filter(|(_, route)| route.cluster == cluster.name) {
        let (links, session) = pooler.links_to(entry, &hold.endpoint);
        // A route that is bound to this host, or to readers, leads where it leads; its links are counted below.
        held |= route.is_write() && pooler.loaded(entry).is_some_and(|loaded| loaded == hold.endpoint);
        session_links += session;
        if links > 0 && config.mutants.obey(Rule::AckGone) {
            return LetGo::Not;
        }
    }
    if held && hold.fence.is_some() && config.switch.fence == Fence::Strict {
        // Whoever ends this pause after we are gone must not lead clients back.
        return LetGo::Not;
    }
    match &pooler.pause {
        Some(own) if own.sure && pooler.console.seen() > Some(own.since) => LetGo::Done { session_links },
        None if !held => LetGo::Done { session_links },
        // An operator paused all of it before us.
        None if all_paused_by_others(pooler_config, &cluster.name, pooler) => LetGo::Done { session_links },
        _ => LetGo::Not,
    }
}

/// Whether the clients of all write routes wait, by our pause or by somebody else's.
pub fn all_wait(config: &PoolerConfig, pooler: &Pooler) -> bool {
    let whole = pooler.console.last().is_some_and(|seen| seen.paused == Some(true));
    let all = |entry: &String| {
        let databases = pooler.databases_of(entry);
        !databases.is_empty()
            && databases.iter().all(|db| pooler.row(db).is_some_and(|row| row.paused) || ours(pooler, db))
    };
    whole || config.routes.iter().filter(|(_, route)| route.is_write()).all(|(entry, _)| all(entry))
}

/// Paused by us, and PgBouncer has not been away since.
fn ours(pooler: &Pooler, database: &str) -> bool {
    pooler.pause.as_ref().filter(|own| own.sure).is_some_and(|own| match &own.pause.scope {
        PauseScope::Process => true,
        PauseScope::Databases(list) => list.iter().any(|db| db == database),
    })
}

fn all_paused_by_others(config: &PoolerConfig, cluster: &str, pooler: &Pooler) -> bool {
    let seen = pooler.console.last();
    let whole = seen.is_some_and(|seen| seen.paused == Some(true));
    let mut entries = config.routes.iter().filter(|(_, route)| route.cluster == cluster);
    whole
        || entries.all(|(entry, _)| {
            pooler.databases_of(entry).into_iter().all(|db| pooler.row(db).is_some_and(|row| row.paused))
        })
}

/// While links are to be let go of, looks follow each other closely.
pub fn hurry(
    config: &Config,
    cluster: &ClusterConfig,
    name: &str,
    pooler: &mut Pooler,
    hold: &Hold,
    now: Time,
) {
    // A console that does not answer is asked at its own pace.
    let waits =
        pooler.console_failed.is_none() && let_go(config, cluster, name, pooler, hold, now) == LetGo::Not;
    if waits && let Some(seen) = pooler.console.seen() {
        // A look from before the hold says nothing about it.
        // Links that stay for long are looked at less often.
        let pause = LOOK_AGAIN.max(now.since(hold.since) / LOOK_SHARE).min(LOOK_PAUSE / 4);
        let soon = if seen <= hold.since { now } else { seen + pause };
        pooler.look_due = pooler.look_due.min(soon.max(hold.since));
    }
}
