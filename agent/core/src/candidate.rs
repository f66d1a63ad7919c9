//! A view of the store that is not followed before somebody vouches for it.

use crate::event::StoreRead;
use crate::fact::Fact;
use crate::patroni::MemberStatus;
use crate::rule::{Reason, Rule};
use crate::time::Time;
use crate::topology::Topology;
use alloc::collections::BTreeMap;
use alloc::string::String;
use core::time::Duration;

/// A read that was not adopted, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// What was read.
    pub read: StoreRead,
    /// Its keys, understood.
    pub topology: Topology,
    /// Why it is not followed.
    pub reason: Reason,
    /// What its members say by REST.
    pub asked: BTreeMap<String, Fact<MemberStatus>>,
}

impl Candidate {
    /// Whether a majority of the members confirms it: they belong to the same system, and the only writable one is its
    /// leader. Those count that were `known` before, else a stranger would vouch for himself; who knows none, has to take
    /// those that it names. An older view of a known store must prove the leader's lease besides: a store that
    /// came back from a snapshot can, a member of it that fell behind cannot.
    pub fn is_confirmed(&self, known: &Topology, now: Time, max_age: Duration) -> bool {
        let Some(leader) = &self.topology.leader else { return false };
        if self.reason.rule == Rule::OlderView && self.read.leader_ttl.is_none() {
            return false;
        }
        let fresh = |name: &String| self.asked.get(name).and_then(|fact| fact.fresh(now, max_age).ok());
        let voters = if known.members.is_empty() { &self.topology.members } else { &known.members };
        let agrees = |name: &&String| fresh(name).is_some_and(|s| s.system_id == self.topology.system_id);
        let agreeing = voters.keys().filter(agrees).count();
        let writable = |name: &&String| fresh(name).is_some_and(MemberStatus::is_writable);
        let mut writable = self.asked.keys().filter(writable);
        agreeing * 2 > voters.len()
            && writable.next().is_some_and(|name| *name == leader.name)
            && writable.next().is_none()
    }
}
