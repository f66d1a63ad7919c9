//! What we know of one PgBouncer process: the files on disk, what it has loaded, where its links go, and the work that
//! is under way.

use super::disk::Disk;
use super::ini::Files;
use super::own_pause::OwnPause;
use super::seen::Seen;
use crate::effect::{EffectId, PoolerOrder};
use crate::event::Outcome;
use crate::observed::Fact;
use crate::time::{Human, Time};
use crate::topology::Endpoint;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::time::Duration;

/// A console that is silent for this long is unknown.
pub const CONSOLE_AGE: Duration = Duration::from_secs(3);
/// The longest pause between two attempts at failed work.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// An order without an answer after this long is given up: its worker died or hangs.
pub const LOST_AFTER: Duration = Duration::from_secs(20);
/// At most this many RELOADs …
pub const RELOADS: usize = 20;
/// … in this time, …
const RELOAD_WINDOW: Duration = Duration::from_secs(60);
/// … and so many of them are kept for write routes: replicas that come and go must not hold up a failover.
const RELOADS_KEPT: usize = 5;

/// An order under way.
#[derive(Debug, Clone, PartialEq)]
pub struct InFlight {
    /// Its id.
    pub id: EffectId,
    /// It.
    pub order: PoolerOrder,
    /// Since when.
    pub since: Time,
}

/// Pauses after failures.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BackOff {
    /// Nothing is changed before this.
    pub until: Time,
    failures: u32,
    /// What failed last, for people.
    pub why: Option<String>,
}

impl BackOff {
    /// The next pause is twice as long as the last.
    pub fn fail(&mut self, now: Time, why: String) {
        let pause = Duration::from_millis(250).saturating_mul(1 << self.failures.min(10)).min(LONGEST_PAUSE);
        self.failures += 1;
        self.until = now + pause;
        self.why = Some(why);
    }

    /// It worked.
    pub fn succeed(&mut self) {
        *self = BackOff::default();
    }
}

/// How far a route with links elsewhere has been pushed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ladder {
    /// Links lead elsewhere since.
    pub since: Option<Time>,
    /// RECONNECT was sent at.
    pub reconnected: Option<Time>,
    /// They were cut at.
    pub cut: Option<Time>,
}

/// One PgBouncer process.
#[derive(Debug, Clone, PartialEq)]
pub struct Pooler {
    /// The files on disk.
    pub disk: Fact<Disk>,
    /// A worker found other files than the decision had seen: nothing is decided before they were read again.
    pub disk_outdated: bool,
    /// Why they could not be read last time.
    pub disk_failed: Option<String>,
    /// The console.
    pub console: Fact<Seen>,
    /// Why it did not answer last time.
    pub console_failed: Option<String>,
    /// The order under way.
    pub in_flight: Option<InFlight>,
    /// Pauses after failures.
    pub back_off: BackOff,
    /// Read the files no later than this.
    pub files_due: Time,
    /// Look at the console no later than this.
    pub look_due: Time,
    /// Pause between looks while something is to be verified.
    pub look_pause: Duration,
    /// What `*` leads to as loaded, if we know.
    pub star_loaded: Option<Endpoint>,
    /// Last RELOADs.
    pub reloads: VecDeque<Time>,
    /// A RELOAD was answered, and nobody has looked since.
    pub reload_unseen: bool,
    /// RELOADs in a row after which the file was still not loaded.
    pub refused_reloads: u32,
    /// Last files seen loaded.
    pub good: Option<Files>,
    /// They may not be in the state folder.
    pub good_unkept: bool,
    /// Value of `server_login_retry` to give back, and since when it is lowered.
    pub borrowed: Option<(String, Time)>,
    /// A RELOAD undid the lowered value.
    pub borrow_undone: bool,
    /// Entries that were moved and are not verified yet.
    pub moved: BTreeMap<String, Time>,
    /// Databases whose cut did not come to its end.
    pub unfinished_cuts: Vec<String>,
    /// By entry, and by database for those opened through `*`.
    pub ladders: BTreeMap<String, Ladder>,
    /// A pause of ours.
    pub pause: Option<OwnPause>,
    /// When a pause failed last.
    pub pause_failed: Option<Time>,
    /// How often it has failed in a row.
    pub pause_failures: u32,
    /// When links were last cut under a pause.
    pub pause_cut: Option<Time>,
    /// The look that the notes were last brought up to date with.
    pub noted: Option<Time>,
    /// A RELOAD was seen to have loaded the files as they are on disk: they are worth keeping.
    pub proved_good: bool,
}

impl Pooler {
    /// Knows what an earlier run left behind.
    pub fn new(good: Option<Files>, borrowed: Option<String>, cuts: Vec<String>, now: Time) -> Self {
        Pooler {
            disk: Fact::never(),
            disk_outdated: false,
            disk_failed: None,
            console: Fact::never(),
            console_failed: None,
            in_flight: None,
            back_off: BackOff::default(),
            files_due: now,
            look_due: now,
            look_pause: FIRST_LOOK,
            star_loaded: None,
            reloads: VecDeque::new(),
            reload_unseen: false,
            refused_reloads: 0,
            good,
            good_unkept: false,
            borrowed: borrowed.map(|value| (value, now)),
            borrow_undone: false,
            moved: BTreeMap::new(),
            unfinished_cuts: cuts,
            ladders: BTreeMap::new(),
            pause: None,
            pause_failed: None,
            pause_failures: 0,
            pause_cut: None,
            noted: None,
            proved_good: false,
        }
    }

    /// An order ended.
    pub fn observe_done(&mut self, now: Time, started: Time, order: PoolerOrder, outcome: Outcome) {
        match (order, outcome) {
            (PoolerOrder::ReadFiles, outcome) => self.observe_files(now, started, outcome),
            (PoolerOrder::Look, outcome) => self.observe_console(now, started, outcome),
            (order, Outcome::Done) => self.succeeded(now, order),
            (_, Outcome::ChangedMeanwhile) => {
                self.files_due = now;
                self.disk_outdated = true;
            }
            (order, outcome) => {
                let why = match outcome {
                    Outcome::Failed { why } => why,
                    other => format!("unexpected answer {other:?}"),
                };
                if matches!(order, PoolerOrder::Reload) {
                    // It may have been done all the same.
                    self.reloads.push_back(now);
                    self.star_loaded = None;
                    self.borrow_undone = self.borrowed.is_some();
                }
                if let PoolerOrder::BorrowLoginRetry { value } = &order {
                    // The same: it has to be given back in any case.
                    self.borrowed = Some((value.clone(), now));
                    self.borrow_undone = true;
                }
                if let PoolerOrder::Cut { database, .. } = &order {
                    self.note_cut(database);
                }
                if let PoolerOrder::KeepGood { files } = &order {
                    // This run knows them all the same.
                    (self.good, self.good_unkept) = (Some(files.clone()), true);
                }
                let about_pause = self.pause_order_failed(now, &order);
                if !about_pause {
                    self.back_off.fail(now, format!("{order}: {why}"));
                }
                self.look_soon(now);
                self.files_due = now;
            }
        }
    }

    fn observe_files(&mut self, now: Time, started: Time, outcome: Outcome) {
        self.files_due = now + FILES_PAUSE;
        self.disk_outdated = false;
        match outcome {
            Outcome::Files(files) => {
                if self.disk.last().is_none_or(|disk| disk.files != files) {
                    // Not our own write, that is noted as it is done: somebody edited, which may mend what was refused.
                    self.refused_reloads = 0;
                    self.reload_unseen = false;
                    self.proved_good = false;
                    self.disk.learn(Disk::new(files), started);
                } else if let Fact::Known { seen, .. } = &mut self.disk {
                    *seen = started;
                }
                self.disk_failed = None;
            }
            Outcome::Failed { why } => {
                self.disk_failed = Some(why.clone());
                self.disk = Fact::Unknown { why };
                self.files_due = now + Duration::from_secs(1);
            }
            _ => self.files_due = now + Duration::from_secs(1),
        }
    }

    fn observe_console(&mut self, now: Time, started: Time, outcome: Outcome) {
        self.look_due = now + LOOK_PAUSE;
        match outcome {
            Outcome::Console(view) => {
                if let Some(own) = self.pause.as_mut().filter(|own| started > own.since && own.is_over(&view))
                {
                    own.sure = false;
                }
                self.console.learn(Seen::from(view), started);
                self.console_failed = None;
            }
            Outcome::Failed { why } => {
                self.console_failed = Some(why.clone());
                if let Some(own) = &mut self.pause {
                    // PgBouncer may have been restarted, which ends every pause.
                    own.sure = false;
                }
                if self.console.fresh(now, CONSOLE_AGE).is_err() {
                    self.console = Fact::Unknown { why };
                }
            }
            _ => {}
        }
    }

    fn succeeded(&mut self, now: Time, order: PoolerOrder) {
        match order {
            PoolerOrder::Write { files, keep_rejected } => {
                // A RELOAD of before says nothing about this content.
                self.reload_unseen = false;
                if keep_rejected {
                    self.refused_reloads = 0;
                }
                if let Fact::Known { value: disk, seen } = &mut self.disk {
                    for (path, (_, wanted)) in files {
                        disk.files.parts.insert(path, wanted);
                    }
                    *disk = Disk::new(disk.files.clone());
                    *seen = now;
                    self.proved_good = false;
                }
            }
            PoolerOrder::KeepGood { files } => (self.good, self.good_unkept) = (Some(files), false),
            PoolerOrder::Reload => {
                self.reloads.push_back(now);
                while self.reloads.len() > RELOADS {
                    self.reloads.pop_front();
                }
                self.moved.values_mut().for_each(|at| *at = now);
                self.reload_unseen = true;
                self.star_loaded = self.disk.last().and_then(|disk| disk.entries.get("*").cloned());
                self.borrow_undone = self.borrowed.is_some();
                if let Some(own) = &mut self.pause {
                    own.refills = own.pause.min_pool_size.is_some();
                }
            }
            PoolerOrder::BorrowLoginRetry { value } => {
                self.borrow_undone = false;
                self.borrowed = Some((value, now));
            }
            PoolerOrder::ReturnLoginRetry { .. } => self.borrowed = None,
            PoolerOrder::Reconnect { database } => {
                self.ladders.entry(database).or_default().reconnected = Some(now);
            }
            PoolerOrder::Cut { database, .. } => {
                self.ladders.entry(database).or_default().cut = Some(now);
            }
            PoolerOrder::Resume { database } => self.unfinished_cuts.retain(|d| *d != database),
            PoolerOrder::Pause(_)
            | PoolerOrder::ExtendPause(_)
            | PoolerOrder::ZeroMinPoolSize
            | PoolerOrder::CutPaused { .. }
            | PoolerOrder::EndPause => self.pause_order_done(now, order),
            PoolerOrder::ReadFiles | PoolerOrder::Look => {}
        }
        self.look_soon(now);
    }

    /// Whether there were so many RELOADs lately that the next one has to wait.
    pub fn must_not_reload(&self, for_writes: bool, now: Time) -> bool {
        let recent = self.reloads.iter().filter(|at| now.since(**at) < RELOAD_WINDOW).count();
        recent >= if for_writes { RELOADS } else { RELOADS - RELOADS_KEPT }
    }

    /// A database may still be paused by our KILL.
    fn note_cut(&mut self, database: &str) {
        if !self.unfinished_cuts.iter().any(|d| d == database) {
            self.unfinished_cuts.push(database.to_string());
        }
    }

    /// Nothing is under way any more; whatever was, is found out by looking.
    pub fn start_over(&mut self, now: Time) {
        if let Some(lost) = self.in_flight.take() {
            let why = "the configuration was read again meanwhile".into();
            self.observe_done(now, lost.since, lost.order, Outcome::Failed { why });
        }
        if let Some(own) = &mut self.pause {
            // The worker of before let go of it: it is paused again, or ended.
            own.sure = false;
        }
        self.pause_failed = None;
        self.pause_failures = 0;
        self.files_due = now;
        self.look_soon(now);
    }

    /// Something was changed: what we saw of the console before is history.
    fn look_soon(&mut self, now: Time) {
        self.look_due = now;
        self.look_pause = FIRST_LOOK;
    }

    /// What stands in the way, for people.
    pub fn troubles(&self, now: Time) -> Vec<String> {
        let mut troubles = Vec::new();
        if let Some(why) = &self.disk_failed {
            troubles.push(why.clone());
        }
        if let Some(disk) = self.disk.last() {
            troubles.extend(disk.problems.iter().cloned());
        }
        if let Some(why) = &self.console_failed {
            troubles.push(why.clone());
        }
        if let Some(why) = &self.back_off.why {
            let wait = self.back_off.until.since(now);
            troubles.push(format!("{why}; next attempt in {}", Human(wait)));
        }
        if self.refused_reloads > 0 {
            troubles.push(format!(
                "PgBouncer did not load the file on disk ({} RELOADs): see its log",
                self.refused_reloads
            ));
        }
        troubles
    }
}

/// First pause between looks while something is to be verified; it grows by half each time.
pub const FIRST_LOOK: Duration = Duration::from_millis(5);
/// Pause between looks of a settled pooler.
pub const LOOK_PAUSE: Duration = Duration::from_secs(1);
/// Pause between reads of the files of a settled pooler; changes are hinted as they happen.
const FILES_PAUSE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reloads_for_readers_leave_some_for_writers() {
        let mut pooler = Pooler::new(None, None, Vec::new(), Time::ZERO);
        let second = |n: usize| Time::ZERO + Duration::from_secs(n as u64);
        for n in 0..RELOADS {
            let kept_back = n >= RELOADS - RELOADS_KEPT;
            assert_eq!(pooler.must_not_reload(false, second(n)), kept_back, "after {n}");
            assert!(!pooler.must_not_reload(true, second(n)), "after {n}");
            pooler.succeeded(second(n), PoolerOrder::Reload);
        }
        assert!(pooler.must_not_reload(true, second(RELOADS)));
        assert!(!pooler.must_not_reload(false, second(RELOADS) + RELOAD_WINDOW));
    }
}
