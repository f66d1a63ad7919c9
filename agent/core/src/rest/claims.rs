//! Which of the members that say they hold the lock does.
//!
//! Only one can hold it, but answers are older than now, and a member whose clock was set back, or whose Patroni is paused
//! without its store, goes on saying so. So it matters who *took* it last, not who spoke last.

use super::Answer;
use crate::patroni::MemberStatus;
use crate::time::Time;
use crate::topology::Role;

/// A member that says it holds the lock, in every answer since then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claim {
    /// When the first answer that says so had come.
    since: Time,
    /// When the answer before it was asked for, which did not say so; none: there was none.
    free: Option<Time>,
}

/// Whether an answer says that its member holds the lock. (`GET /primary` is 503 on the leader of a standby cluster.)
fn claims(status: &MemberStatus) -> bool {
    status.holds_lock || status.role == Some(Role::StandbyLeader) && status.state == "running"
}

impl Claim {
    /// What an answer says, after the one before it, if that was not too long ago.
    pub fn after(before: Option<&Answer>, status: &MemberStatus, heard: Time) -> Option<Claim> {
        let first = Claim { since: heard, free: before.map(|answer| answer.started) };
        claims(status).then(|| before.and_then(|answer| answer.claim).unwrap_or(first))
    }

    /// It was taken when the other member had it already.
    fn is_newer_than(self, other: Claim) -> bool {
        self.free.is_some_and(|free| free >= other.since)
    }
}

/// Whether one claim settles that the other is over. A primary on a newer timeline was promoted after the other one; on one
/// timeline it is the one that took the lock while the other had it.
pub(super) fn outdoes(one: &Answer, other: &Answer) -> bool {
    let (Some(own), Some(its)) = (one.claim, other.claim) else { return one.claim.is_some() };
    match (one.status.timeline, other.status.timeline) {
        (Some(own), Some(its)) if own != its => own > its,
        _ => own.is_newer_than(its) && !its.is_newer_than(own),
    }
}
