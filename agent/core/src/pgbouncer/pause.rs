//! PAUSE without poison: which databases wait, when it may be sent, and when it ends.
//!
//! A pool whose link was closed in login carries a mark, and cuts every client that asks before the next login succeeds.
//! So a planned pause waits for logins to end, and keeps PgBouncer from opening links behind it (`min_pool_size`).

use super::console::LoadedDatabase;
use super::let_go::leads_there;
use super::own_pause::OwnPause;
use super::pools::{CONSOLE_AGE, Pooler};
use super::reconcile::Decisions;
use crate::config::{Config, Mode, PoolerConfig, Route};
use crate::desired::Decision;
use crate::effect::{Pause, PauseScope, PoolerOrder};
use crate::rule::{Reason, Rule};
use crate::switch::hold::{Cause, Hold};
use crate::time::Time;
use crate::topology::Endpoint;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

/// Clients that wait get their answer this long before their own limit.
const MARGIN: Duration = Duration::from_secs(5);
/// A pause that failed is tried again after this; it doubles twice.
const AGAIN: Duration = Duration::from_millis(250);
/// Links that could write to a primary that was replaced are cut after this share of `fence_timeout`.
const CUT_SHARE: u32 = 4;

/// Databases of a pooler that lead to the held server and have nowhere else to go.
fn waiting(
    config: &PoolerConfig,
    cluster: &str,
    pooler: &Pooler,
    decisions: &Decisions,
    hold: &Hold,
) -> BTreeSet<String> {
    let mut list = BTreeSet::new();
    // What already leads to the next leader waits as before.
    let ahead = pooler.pause.iter().flat_map(|own| &own.ahead);
    let places: Vec<&Endpoint> = [&hold.endpoint].into_iter().chain(ahead).collect();
    for (entry, _) in config.routes.iter().filter(|(_, route)| route.cluster == cluster) {
        // The next leader is none to go on to yet.
        let decision = decisions.get(entry).filter(|d| d.reason.rule != Rule::PointAhead);
        let target = decision.and_then(|d| d.target.as_ref());
        if target.is_some_and(|target| target.endpoint != hold.endpoint) {
            continue;
        }
        for endpoint in places.iter().filter(|endpoint| leads_there(pooler, entry, endpoint)) {
            let databases = pooler.databases_of(entry).into_iter();
            // What is not named in a file that is not known may have nothing to do with `*`.
            let there = |db: &&str| {
                let listed = pooler.row(db).is_some_and(|row| row.is_at(endpoint));
                listed || pooler.links_of_database(db, endpoint) > 0
            };
            list.extend(databases.filter(there).map(String::from));
        }
    }
    // The login of clients needs it.
    let auth = pooler.console.last().and_then(|seen| seen.settings.get("auth_dbname"));
    if let Some(row) = auth.and_then(|name| pooler.row(name)).filter(|_| !list.is_empty())
        && row.is_at(&hold.endpoint)
    {
        list.insert(row.name.clone());
    }
    list
}

/// The shortest limit that PgBouncer itself sets to clients that wait, less a margin; none: it has none, or is unknown.
pub fn waiting_limit(pooler: &Pooler) -> Option<Duration> {
    let settings = &pooler.console.last()?.settings;
    let limit = |key: &str| {
        let seconds = settings.get(key)?.trim().parse::<f64>().ok()?;
        (seconds > 0.0 && seconds < 1e9).then(|| Duration::from_secs_f64(seconds))
    };
    let limits =
        ["query_wait_timeout", "query_timeout", "client_login_timeout"].into_iter().filter_map(limit);
    limits.min().map(|limit| limit.saturating_sub(MARGIN))
}

/// The next order that begins or keeps a pause, before everything else.
pub fn begin(
    config: &Config,
    pooler_config: &PoolerConfig,
    pooler: &Pooler,
    decisions: &Decisions,
    holds: &BTreeMap<&str, &Hold>,
    now: Time,
) -> Option<(PoolerOrder, Reason)> {
    if config.mode != Mode::Enforce || must_wait(pooler, now) {
        return None;
    }
    for (cluster, hold) in holds {
        if let Some(order) = hold_one(config, pooler_config, cluster, pooler, decisions, hold, now) {
            return Some(order);
        }
    }
    let own = pooler.pause.as_ref()?;
    // After its time the guard has ended it, and its note is gone.
    let lasts = now < own.pause.until;
    let zero = own.refills && own.sure && lasts && own.pause.min_pool_size.is_some();
    (zero && config.mutants.obey(Rule::NoRefill)).then(|| {
        let text = "a RELOAD gave min_pool_size back: its links would be closed in login";
        (PoolerOrder::ZeroMinPoolSize, Reason::new(Rule::NoRefill, text))
    })
}

fn hold_one(
    config: &Config,
    pooler_config: &PoolerConfig,
    cluster: &str,
    pooler: &Pooler,
    decisions: &Decisions,
    hold: &Hold,
    now: Time,
) -> Option<(PoolerOrder, Reason)> {
    let list = waiting(pooler_config, cluster, pooler, decisions, hold);
    if list.is_empty() || pooler.console.fresh(now, CONSOLE_AGE).is_err() {
        return None;
    }
    let free: Vec<String> = list.iter().filter(|db| !is_paused_by_others(pooler, db)).cloned().collect();
    let rule = match hold.cause {
        Cause::Planned => Rule::DrainPlanned,
        Cause::Lost => Rule::HoldLost,
        Cause::Fenced => Rule::Fenced,
    };
    let reason = || Reason::new(rule, hold.why.clone());
    if let Some(own) = pooler.pause.as_ref().filter(|own| own.sure) {
        let last = own.began + config.switch.hold_timeout + config.switch.failover_hold;
        let until = own.pause.until.max(hold.until.min(last));
        if own.pause.until < until {
            return Some((PoolerOrder::ExtendPause(Pause { until, ..own.pause.clone() }), reason()));
        }
        if covers(&own.pause.scope, &free) {
            return cut(config, pooler, hold, &list, now);
        }
    }
    if free.is_empty() || is_in_login(config, pooler, hold, &list, now) {
        return None;
    }
    Some((PoolerOrder::Pause(build(config, pooler, hold, free)), reason()))
}

fn covers(scope: &PauseScope, list: &[String]) -> bool {
    match scope {
        PauseScope::Process => true,
        PauseScope::Databases(paused) => list.iter().all(|db| paused.contains(db)),
    }
}

/// An order about a pause failed lately.
fn must_wait(pooler: &Pooler, now: Time) -> bool {
    let pause = AGAIN.saturating_mul(1 << pooler.pause_failures.saturating_sub(1).min(2));
    pooler.pause_failed.is_some_and(|at| now.since(at) < pause)
}

/// An operator's pause is his: it is neither joined nor lifted.
fn is_paused_by_others(pooler: &Pooler, database: &str) -> bool {
    let ours = |own: &OwnPause| matches!(&own.pause.scope, PauseScope::Databases(list) if list.iter().any(|d| d == database));
    let paused = pooler.row(database).is_some_and(|row| row.paused);
    let whole = pooler.console.last().is_some_and(|seen| seen.paused == Some(true)) && pooler.pause.is_none();
    whole || paused && !pooler.pause.as_ref().is_some_and(ours)
}

/// A planned pause waits for logins to end, for a while: a closed one marks its pool.
fn is_in_login(config: &Config, pooler: &Pooler, hold: &Hold, list: &BTreeSet<String>, now: Time) -> bool {
    let patience = config.switch.drain_timeout / 2;
    if hold.cause != Cause::Planned || now.since(hold.since) >= patience {
        return false;
    }
    let seen = pooler.console.last();
    seen.is_some_and(|seen| list.iter().any(|db| seen.links_of(db).iter().any(|link| link.state == "login")))
}

/// The pause to order. The whole process, where all of it leads to the member; else each database, with refills off.
fn build(config: &Config, pooler: &Pooler, hold: &Hold, list: Vec<String>) -> Pause {
    let setting = pooler.console.last().and_then(|seen| seen.settings.get("min_pool_size"));
    let refills = setting.filter(|value| value.trim().parse::<u32>().is_ok_and(|n| n > 0)).cloned();
    let own_refills =
        list.iter().any(|db| pooler.row(db).and_then(|row| row.min_pool_size).is_some_and(|n| n > 0));
    let seen = pooler.console.last();
    let there = |row: &LoadedDatabase| row.is_at(&hold.endpoint) && !row.paused;
    let all = seen.is_some_and(|seen| seen.databases.values().all(there));
    let earlier = pooler.pause.as_ref().map(|own| &own.pause.scope);
    let whole = match earlier {
        // What was paused stays paused in the same way.
        Some(PauseScope::Process) => true,
        Some(PauseScope::Databases(_)) => false,
        None => all || own_refills,
    };
    let keep = pooler.pause.as_ref().and_then(|own| own.pause.min_pool_size.clone());
    let zero = refills.filter(|_| !whole && config.mutants.obey(Rule::NoRefill));
    let mut databases = list;
    if let Some(PauseScope::Databases(before)) = earlier {
        databases.extend(before.iter().cloned());
        databases.sort();
        databases.dedup();
    }
    Pause {
        scope: if whole { PauseScope::Process } else { PauseScope::Databases(databases) },
        until: if config.mutants.obey(Rule::DeadMan) { hold.until } else { Time::NEVER },
        min_pool_size: keep.or(zero),
        cause: format!("{}{}", hold.why, hold.epoch.as_ref().map(|e| format!(" [{e}]")).unwrap_or_default()),
    }
}

/// Links that may write to a primary that is being replaced are cut while everybody waits for our word.
fn cut(
    config: &Config,
    pooler: &Pooler,
    hold: &Hold,
    list: &BTreeSet<String>,
    now: Time,
) -> Option<(PoolerOrder, Reason)> {
    let (_, since) = hold.fence.as_ref()?;
    let patience = config.switch.fence_timeout / CUT_SHARE;
    if now.since(*since) < patience
        || pooler.look_due <= now
        || pooler.pause_cut.is_some_and(|at| now.since(at) < patience)
    {
        return None;
    }
    let has_links = |db: &&String| pooler.links_of_database(db, &hold.endpoint) > 0;
    let count = list.iter().filter(has_links).count();
    (count > 0).then(|| {
        let text = format!("{}: {count} databases still have links to {}", hold.why, hold.endpoint);
        let stale = [hold.endpoint.clone()].into();
        (
            PoolerOrder::CutPaused { databases: list.iter().cloned().collect(), stale },
            Reason::new(Rule::Fenced, text),
        )
    })
}

/// The order that ends a pause for which there is no hold any more: after the new target is loaded, or when its time is
/// over.
pub fn finish(
    config: &Config,
    routed: &PoolerConfig,
    pooler: &Pooler,
    decisions: &Decisions,
    facts: &Ending<'_>,
) -> Option<(PoolerOrder, Reason)> {
    let own = pooler.pause.as_ref()?;
    if must_wait(pooler, facts.now) {
        return None;
    }
    let resume = |text: String| Some((PoolerOrder::EndPause, Reason::new(Rule::ResumeVerified, text)));
    if facts.stopping {
        return resume("the agent stops".into());
    }
    if facts.now >= own.pause.until && config.mutants.obey(Rule::DeadMan) {
        return resume("the pause has lasted for as long as it may".into());
    }
    if facts.held || own.inherited && !facts.heard {
        return None;
    }
    if pooler.console.fresh(facts.now, CONSOLE_AGE).is_err() && config.mutants.obey(Rule::ResumeVerified) {
        // Where its routes lead now is not known.
        return None;
    }
    let is_known = |(entry, decision): (&String, &Decision)| {
        // Readers without a place stay where they are: the writers do not wait for them.
        let route = routed.routes.get(entry);
        let writes = route.is_none_or(Route::is_write);
        let given_up = route.is_some_and(|route| facts.given_up.contains(&route.cluster.as_str()));
        decision.target.is_some() || !own.holds(pooler, entry) || !writes || given_up
    };
    let known = decisions.iter().all(is_known);
    let is_loaded = |(entry, decision): (&String, &Decision)| match &decision.target {
        Some(target) => !own.holds(pooler, entry) || pooler.is_loaded(entry, &target.endpoint),
        None => true,
    };
    let loaded = decisions.iter().all(is_loaded) && !pooler.reload_unseen && !facts.needs_retry;
    let text = match facts.given_up.is_empty() {
        true => "clients may go on: every route is loaded as it must be",
        false => "nobody became writable for as long as clients may wait",
    };
    (known && loaded || !config.mutants.obey(Rule::ResumeVerified)).then(|| resume(text.into())).flatten()
}

/// What the end of a pause is decided by.
pub struct Ending<'a> {
    /// The agent was told to stop.
    pub stopping: bool,
    /// Some hold still wants it.
    pub held: bool,
    /// Clusters whose clients have waited for as long as they may.
    pub given_up: Vec<&'a str>,
    /// The other agents were heard since the start.
    pub heard: bool,
    /// Pools may carry a failed-login mark, and `server_login_retry` is not lowered yet.
    pub needs_retry: bool,
    /// Now.
    pub now: Time,
}
