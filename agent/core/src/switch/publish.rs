//! What this host says to the others: level, not edge. The keys that ought to stand in the store are worked out at every
//! turn, and ordered when they differ from what was last confirmed.

use super::SwitchState;
use super::hold::{Cause, Hold};
use super::records::{FENCE, MEMBERS, MemberWord, POOLERS, PoolerWord, SWITCH, VERSION, to_bytes};
use crate::config::{ClusterConfig, Config, Mode, Route};
use crate::observed::{LOCAL_PROBE_AGE, Observed};
use crate::pgbouncer::let_go::{LetGo, let_go};
use crate::pgbouncer::pools::Pooler;
use crate::time::Time;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

/// Keys and values below our own prefix.
pub type OwnKeys = BTreeMap<String, Vec<u8>>;

/// First pause after a failure; it doubles.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest one.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What the store was told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Published {
    /// It has these.
    confirmed: OwnKeys,
    /// It may have others, or none of them.
    unsure: bool,
    /// These are on their way.
    pub sending: Option<OwnKeys>,
    /// Nothing is sent before this.
    not_before: Time,
    failures: u32,
    /// Why the last attempt failed.
    pub why: Option<String>,
    /// Our entry of the registry is on its way.
    pub registering: bool,
    /// It is not put again before this: until then it may only not have been heard of.
    pub register_after: Time,
}

impl Published {
    /// Whether the store has this key with this value from us.
    pub fn has(&self, key: &str, value: &[u8]) -> bool {
        self.confirmed.get(key).is_some_and(|confirmed| confirmed == value)
    }

    /// What to send now, if anything.
    pub fn due(&self, wanted: &OwnKeys, now: Time) -> bool {
        self.sending.is_none() && (*wanted != self.confirmed || self.unsure) && now >= self.not_before
    }

    /// When to try again after a failure.
    pub fn next(&self) -> Time {
        self.not_before
    }

    /// The store answered, or did not.
    pub fn answered(&mut self, now: Time, result: Result<(), String>) {
        let Some(sent) = self.sending.take() else { return };
        match result {
            Ok(()) => {
                self.confirmed = sent;
                self.unsure = false;
                self.failures = 0;
                self.not_before = now;
                self.why = None;
            }
            Err(why) => {
                // Part of it may be there: everything is sent again.
                self.confirmed.clear();
                self.unsure = true;
                let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(10)).min(LONGEST_PAUSE);
                self.failures += 1;
                self.not_before = now + pause;
                self.why = Some(why);
            }
        }
    }

    /// Nothing is on its way any more: the workers were replaced.
    pub fn start_over(&mut self) {
        *self = Published::default();
    }
}

/// What is known of this host.
pub struct Facts<'a> {
    /// The configuration.
    pub config: &'a Config,
    /// The cluster.
    pub cluster: &'a ClusterConfig,
    /// What is known.
    pub observed: &'a Observed,
    /// This host's PgBouncer processes.
    pub poolers: &'a BTreeMap<String, Pooler>,
    /// Now.
    pub now: Time,
}

/// The keys that ought to stand in the store.
pub fn wanted(facts: &Facts<'_>, state: &SwitchState) -> OwnKeys {
    let mut keys = OwnKeys::new();
    if let Some(stop) = &state.stop
        && let Some(record) = &stop.record
    {
        keys.insert(SWITCH.into(), to_bytes(record));
    }
    if let Some(promotion) = &state.promotion {
        keys.insert(FENCE.into(), to_bytes(&promotion.record));
    }
    if let Some(word) = member_word(facts) {
        keys.insert(format!("{MEMBERS}{}", word.member), to_bytes(&word));
    }
    if let Some(word) = pooler_word(facts, state) {
        keys.insert(format!("{POOLERS}{}", facts.config.node), to_bytes(&word));
    }
    keys
}

/// The server on this host leads and is out of recovery: said once per leadership, and taken back when that ends.
fn member_word(facts: &Facts<'_>) -> Option<MemberWord> {
    let local = facts.config.local.as_ref().filter(|l| l.cluster == facts.cluster.name && l.probe)?;
    let view = &facts.observed.clusters[&local.cluster];
    let leader = view.topology.leader.as_ref()?;
    let member = facts.observed.local_member(facts.config)?;
    let server = facts.observed.local.fresh(facts.now, LOCAL_PROBE_AGE).ok()?;
    let asked_since = facts.observed.local.seen() >= Some(view.leader_since);
    if leader.name != member || server.in_recovery || !asked_since || facts.config.mode != Mode::Enforce {
        return None;
    }
    let word = MemberWord {
        v: VERSION,
        member: member.into(),
        leader_revision: leader.revision,
        timeline: server.timeline?,
    };
    (!view.topology.config.standby_cluster).then_some(word)
}

/// Whether this host has pools to speak for: a host that only shows, or whose PgBouncers are all away, is not waited for.
pub fn speaks(facts: &Facts<'_>) -> bool {
    let routed = |pooler: &crate::config::PoolerConfig| {
        let lives =
            facts.poolers.get(&pooler.name).is_some_and(|p| p.console.last().is_some() || p.pause.is_some());
        lives && pooler.routes.values().any(|route| route.cluster == facts.cluster.name)
    };
    facts.config.mode == Mode::Enforce && facts.config.poolers.iter().any(routed)
}

fn pooler_word(facts: &Facts<'_>, state: &SwitchState) -> Option<PoolerWord> {
    if !speaks(facts) {
        return None;
    }
    let here = facts.config.local.as_ref().is_some_and(|local| local.cluster == facts.cluster.name);
    let mut word = PoolerWord {
        v: VERSION,
        node: facts.config.node.clone(),
        member: here.then(|| facts.observed.local_member(facts.config)).flatten().map(Into::into),
        drains: facts.config.switch.drain,
        drained: None,
        links_left: 0,
        fenced: None,
        holds: None,
    };
    match &state.hold {
        Some(hold) => say_held(facts, hold, &mut word),
        None => word.fenced = nothing_elsewhere(facts, state),
    }
    Some(word)
}

/// How far the hold is.
fn say_held(facts: &Facts<'_>, hold: &Hold, word: &mut PoolerWord) {
    let far = |console_must_answer: bool| {
        let mut left = 0;
        for (name, pooler) in facts.poolers {
            match let_go(facts.config, facts.cluster, name, pooler, hold, facts.now) {
                LetGo::Not => return None,
                LetGo::Unknown if console_must_answer => return None,
                LetGo::Unknown => {}
                LetGo::Done { session_links } => left += session_links,
            }
        }
        Some(left)
    };
    if let Some(left) = far(false) {
        word.links_left = left;
        if hold.cause == Cause::Planned {
            word.drained.clone_from(&hold.epoch);
        }
    }
    if far(true) == Some(0) {
        word.holds = Some(hold.from.clone());
        word.fenced = hold.fence.as_ref().map(|(epoch, _)| epoch.clone());
    }
}

/// Without a hold there is nothing to let go of if every write pool leads to the member that is to be promoted.
fn nothing_elsewhere(facts: &Facts<'_>, state: &SwitchState) -> Option<String> {
    let record = state.view.peers.fence.as_ref()?;
    let view = &facts.observed.clusters[&facts.cluster.name];
    let endpoint = view.topology.members.get(&record.member)?.endpoint.as_ref()?;
    for config in &facts.config.poolers {
        let pooler = facts.poolers.get(&config.name)?;
        let writes = |route: &Route| route.cluster == facts.cluster.name && route.is_write();
        let mut entries = config.routes.iter().filter(|(_, route)| writes(route));
        if entries.any(|(entry, _)| !pooler.is_loaded(entry, endpoint)) {
            return None;
        }
    }
    Some(record.epoch.clone())
}
