//! The pause that is ours: how far it can be relied on, and what became of the orders about it.

use super::let_go::leads_there;
use super::pools::Pooler;
use crate::effect::{Pause, PauseScope, PoolerOrder};
use crate::time::Time;
use crate::topology::Endpoint;
use alloc::vec::Vec;

/// A pause of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnPause {
    /// As it is journalled.
    pub pause: Pause,
    /// When its first part began: no later hold makes it longer than one may be.
    pub began: Time,
    /// Since when.
    pub since: Time,
    /// PgBouncer took it, and has not been away since.
    pub sure: bool,
    /// No link was in login, so no pool carries a mark.
    pub clean: bool,
    /// It is from an earlier run of the agent: the protocol has to be heard before it is ended.
    pub inherited: bool,
    /// A RELOAD gave `min_pool_size` back.
    pub refills: bool,
    /// The server that was let go of, if this run knows.
    pub left: Option<Endpoint>,
    /// Next leaders, to which the pools that wait were led before they were writable.
    pub ahead: Vec<Endpoint>,
}

impl OwnPause {
    /// PgBouncer has just taken it.
    fn taken(pause: Pause, now: Time) -> Self {
        OwnPause {
            pause,
            began: now,
            since: now,
            sure: true,
            clean: true,
            inherited: false,
            refills: false,
            left: None,
            ahead: Vec::new(),
        }
    }

    /// PgBouncer may have taken it.
    fn unsure(pause: Pause, now: Time) -> Self {
        let refills = pause.min_pool_size.is_some();
        OwnPause { sure: false, clean: false, refills, ..Self::taken(pause, now) }
    }

    /// Whether this entry's clients may wait because of it: one of its databases was paused by its name, or it leads to a
    /// server to which those that wait have led since it began. If this run does not know that, every entry's may.
    pub(super) fn holds(&self, pooler: &Pooler, entry: &str) -> bool {
        let named = |database: &&str| match &self.pause.scope {
            PauseScope::Process => false,
            PauseScope::Databases(list) => list.iter().any(|d| d == database),
        };
        self.left.is_none()
            || pooler.databases_of(entry).iter().any(named)
            || self.left.iter().chain(&self.ahead).any(|place| leads_there(pooler, entry, place))
    }

    /// What an earlier run left.
    pub fn inherited(pause: Pause, now: Time) -> Self {
        OwnPause { inherited: true, refills: true, ..Self::unsure(pause, now) }
    }
}

impl Pooler {
    /// An order about our pause was carried out.
    pub(super) fn pause_order_done(&mut self, now: Time, order: PoolerOrder) {
        match order {
            PoolerOrder::Pause(pause) => {
                let taken = OwnPause::taken(pause, now);
                self.pause = Some(match self.pause.take() {
                    // It goes on. A login that it closed has marked its pool: only a planned pause waits for logins to end.
                    Some(OwnPause { began, clean, left, ahead, .. }) => {
                        OwnPause { began, clean, left, ahead, ..taken }
                    }
                    None => taken,
                });
                self.pause_worked();
            }
            PoolerOrder::ExtendPause(pause) => {
                if let Some(own) = &mut self.pause {
                    own.pause = pause;
                }
            }
            PoolerOrder::ZeroMinPoolSize => {
                if let Some(own) = &mut self.pause {
                    own.refills = false;
                }
            }
            PoolerOrder::CutPaused { databases, .. } => {
                self.pause_cut = Some(now);
                let kills_clients = self.console.last().is_some_and(|seen| seen.version >= (1, 24));
                if let Some(own) = self.pause.as_mut().filter(|_| !kills_clients) {
                    own.pause.scope = PauseScope::Databases(databases);
                    own.clean = false;
                }
            }
            PoolerOrder::EndPause => {
                self.pause = None;
                self.pause_worked();
            }
            PoolerOrder::ReadFiles
            | PoolerOrder::Look
            | PoolerOrder::Write { .. }
            | PoolerOrder::KeepGood { .. }
            | PoolerOrder::Reload
            | PoolerOrder::BorrowLoginRetry { .. }
            | PoolerOrder::ReturnLoginRetry { .. }
            | PoolerOrder::Reconnect { .. }
            | PoolerOrder::Cut { .. }
            | PoolerOrder::Resume { .. } => {}
        }
    }

    fn pause_worked(&mut self) {
        self.pause_failed = None;
        self.pause_failures = 0;
    }

    fn pause_did_not_work(&mut self, now: Time) {
        self.pause_failed = Some(now);
        self.pause_failures += 1;
    }

    /// An order about our pause failed: it may have had its effect all the same, so it is still to be ended.
    /// Returns whether it was about a pause.
    pub(super) fn pause_order_failed(&mut self, now: Time, order: &PoolerOrder) -> bool {
        match order {
            PoolerOrder::Pause(pause) => {
                // It may have been done all the same, and it says all that an earlier one said.
                let known = self.pause.get_or_insert_with(|| OwnPause::unsure(pause.clone(), now));
                known.sure = false;
                known.pause.clone_from(pause);
                self.pause_did_not_work(now);
            }
            PoolerOrder::CutPaused { .. } => self.pause_cut = Some(now),
            PoolerOrder::ExtendPause(_) | PoolerOrder::ZeroMinPoolSize | PoolerOrder::EndPause => {
                if let (PoolerOrder::EndPause, Some(own)) = (order, &mut self.pause) {
                    // It may be over, and its note gone: nothing is done in its name any more but to end it.
                    own.sure = false;
                }
                self.pause_did_not_work(now);
            }
            _ => return false,
        }
        true
    }
}
