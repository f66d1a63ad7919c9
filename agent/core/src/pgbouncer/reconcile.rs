//! From what is wanted and what is there to the one next order for a pooler.
//!
//! Level, not edge: nothing here remembers that "the leader changed". Wanted, file, loaded and links are compared each
//! time, so an order that failed, was lost, or was half done is simply found missing again.

use super::last_good::{keep_good, put_last_good_back};
use super::pools::{CONSOLE_AGE, FIRST_LOOK, LOOK_PAUSE, Pooler};
use crate::config::{Config, Mode, SwitchConfig};
use crate::desired::Decision;
use crate::effect::PoolerOrder;
use crate::rule::{Reason, Rule};
use crate::time::{Human, Time};
use crate::topology::Endpoint;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

/// Decisions by entry.
pub type Decisions = BTreeMap<String, Decision>;

/// A lowered `server_login_retry` is given back after its own value at the latest, but never later than this: a target
/// that is away would be hammered.
const LONGEST_BORROW: Duration = Duration::from_secs(30);
/// Slack on top of it.
const BORROW_SLACK: Duration = Duration::from_secs(1);
/// Links close when they are released; only those that stay longer are worth a RECONNECT.
const RECONNECT_AFTER: Duration = Duration::from_millis(200);

/// What to change next, and why; `Err`: nothing, for the reason given to people, or because all is settled.
pub fn next_change(
    config: &Config,
    pooler: &Pooler,
    decisions: &Decisions,
    now: Time,
) -> Option<(PoolerOrder, Reason)> {
    if let Some(database) = pooler.unfinished_cuts.first() {
        let text = format!("a cut of {database} did not come to its end: it may still be paused");
        return Some((
            PoolerOrder::Resume { database: database.clone() },
            Reason::new(Rule::StaleLadder, text),
        ));
    }
    if pooler.disk_outdated {
        return None;
    }
    write(config, pooler, decisions)
        .or_else(|| reload(config, pooler, decisions, now))
        .or_else(|| lower_login_retry(config, pooler, decisions, now))
        .or_else(|| ladder(config, pooler, decisions, now))
        .or_else(|| return_login_retry(pooler, now))
        .or_else(|| keep_good(pooler, decisions, now))
}

/// What to find out next: the files, then the console. A change has to wait for neither of them.
pub fn next_question(pooler: &Pooler, now: Time) -> Option<(PoolerOrder, Reason)> {
    if pooler.files_due <= now {
        return Some((
            PoolerOrder::ReadFiles,
            Reason::new(Rule::WriteDifference, "what the file says decides what is written"),
        ));
    }
    if pooler.look_due <= now {
        return Some((
            PoolerOrder::Look,
            Reason::new(Rule::VerifyLinks, "what is loaded decides what is done"),
        ));
    }
    None
}

/// Endpoints wanted by entry, where they are known.
pub(super) fn wanted(decisions: &Decisions) -> BTreeMap<String, Endpoint> {
    let known = |(entry, d): (&String, &Decision)| Some((entry.clone(), d.target.as_ref()?.endpoint.clone()));
    decisions.iter().filter_map(known).collect()
}

fn write(config: &Config, pooler: &Pooler, decisions: &Decisions) -> Option<(PoolerOrder, Reason)> {
    let disk = pooler.disk.last()?;
    let wanted = wanted(decisions);
    if let Some(order) = put_last_good_back(config, pooler, disk, decisions) {
        return Some(order);
    }
    let differs = |(entry, endpoint): &(&String, &Endpoint)| disk.entries.get(*entry) != Some(endpoint);
    let obey = config.mutants.obey(Rule::WriteDifference);
    let moved: Vec<_> = wanted.iter().filter(|pair| !obey || differs(pair)).collect();
    if moved.is_empty() {
        return None;
    }
    let new = disk.retarget(&wanted).ok()?;
    let expected = |path: &String| disk.files.parts.get(path).cloned().unwrap_or_default();
    let mut files: BTreeMap<_, _> =
        new.into_iter().map(|(path, bytes)| (path.clone(), (expected(&path), bytes))).collect();
    if !obey {
        let root = &disk.files.root;
        files.entry(root.clone()).or_insert_with(|| (expected(root), expected(root)));
    }
    let text = match moved.as_slice() {
        [(entry, endpoint)] => format!("{entry} must lead to {endpoint}: {}", decisions[*entry].reason.text),
        [(entry, endpoint), rest @ ..] => {
            format!(
                "{entry} must lead to {endpoint} (and {} more entries): {}",
                rest.len(),
                decisions[*entry].reason.text
            )
        }
        [] => String::new(),
    };
    (!files.is_empty()).then(|| {
        (PoolerOrder::Write { files, keep_rejected: false }, Reason::new(Rule::WriteDifference, text))
    })
}

/// Entries that lead where they must on disk, but not as loaded.
pub fn unloaded(pooler: &Pooler, decisions: &Decisions) -> Vec<String> {
    let Some(disk) = pooler.disk.last() else { return Vec::new() };
    let stands = |(entry, wanted): &(String, Endpoint)| disk.entries.get(entry) == Some(wanted);
    let differs = |(entry, wanted): &(String, Endpoint)| !pooler.is_loaded(entry, wanted);
    wanted(decisions).into_iter().filter(stands).filter(differs).map(|(entry, _)| entry).collect()
}

fn reload(
    config: &Config,
    pooler: &Pooler,
    decisions: &Decisions,
    now: Time,
) -> Option<(PoolerOrder, Reason)> {
    let seen =
        pooler.console.fresh(now, CONSOLE_AGE).is_ok() && pooler.look_due > now || just_written(pooler);
    if !seen || pooler.reload_unseen && config.mutants.obey(Rule::ReloadDifference) {
        return None;
    }
    let unloaded = unloaded(pooler, decisions);
    let always = !config.mutants.obey(Rule::ReloadDifference);
    if unloaded.is_empty() && !always {
        return None;
    }
    if reload_must_wait(pooler, decisions, now) && config.mutants.obey(Rule::BackOff) {
        return None;
    }
    let list = unloaded.first().map_or("nothing", String::as_str);
    let text = format!("the file leads elsewhere than what is loaded ({list}{})", more(&unloaded));
    Some((PoolerOrder::Reload, Reason::new(Rule::ReloadDifference, text)))
}

/// Whether something is to be loaded that has to wait, because there were so many RELOADs lately.
pub fn reload_must_wait(pooler: &Pooler, decisions: &Decisions, now: Time) -> bool {
    let unloaded = unloaded(pooler, decisions);
    let for_writes = unloaded.iter().any(|entry| decisions[entry].reason.rule == Rule::WritableLeader);
    !unloaded.is_empty() && pooler.must_not_reload(for_writes, now)
}

fn more(list: &[String]) -> String {
    match list.len() {
        0 | 1 => String::new(),
        n => format!(" and {} more", n - 1),
    }
}

/// The file was written after the console was last seen: what is loaded is known to differ, no look is needed.
fn just_written(pooler: &Pooler) -> bool {
    match (pooler.disk.seen(), pooler.console.seen()) {
        (Some(disk), Some(console)) => disk >= console && !pooler.reload_unseen,
        _ => false,
    }
}

/// A pool may carry the mark of a failed login, which makes it wait up to server_login_retry. It cannot be seen.
fn lower_login_retry(
    config: &Config,
    pooler: &Pooler,
    decisions: &Decisions,
    now: Time,
) -> Option<(PoolerOrder, Reason)> {
    if !config.mutants.obey(Rule::LoginRetry) || !unloaded_but_for_looking(pooler, decisions) {
        return None;
    }
    let in_force = pooler.borrowed.is_some() && !pooler.borrow_undone;
    let value = match &pooler.borrowed {
        Some((value, _)) => value.clone(),
        None => pooler.disk.last().map(|disk| disk.login_retry.clone())?,
    };
    let fresh_move = pooler.moved.values().any(|at| now.since(*at) < borrow_time(&value));
    if in_force || !fresh_move || borrow_time(&value).is_zero() {
        return None;
    }
    let text = "moved pools may carry a failed-login mark, which only a login clears";
    Some((PoolerOrder::BorrowLoginRetry { value }, Reason::new(Rule::LoginRetry, text)))
}

/// Whether clients that go on now are likely to meet a failed-login mark that is not provided for.
pub fn needs_login_retry(config: &Config, pooler: &Pooler, decisions: &Decisions, now: Time) -> bool {
    let is_clean = pooler.pause.as_ref().is_some_and(|own| own.clean);
    !is_clean && lower_login_retry(config, pooler, decisions, now).is_some()
}

/// Whether the RELOAD is behind us: answered, or seen to be loaded.
fn unloaded_but_for_looking(pooler: &Pooler, decisions: &Decisions) -> bool {
    pooler.reload_unseen || unloaded(pooler, decisions).is_empty()
}

/// How long a lowered value is needed: a mark that was set before the move makes a pool wait for no longer than the value
/// itself (in seconds), counted from its last attempt. Idle clients have nobody waiting for them, so a verified route is
/// no reason to give it back sooner. Zero: it need not be lowered.
fn borrow_time(value: &str) -> Duration {
    match value.trim().parse::<f64>() {
        Ok(seconds) if seconds <= 0.0 => Duration::ZERO,
        Ok(seconds) if seconds < LONGEST_BORROW.as_secs_f64() => {
            Duration::from_secs_f64(seconds) + BORROW_SLACK
        }
        _ => LONGEST_BORROW,
    }
}

fn return_login_retry(pooler: &Pooler, now: Time) -> Option<(PoolerOrder, Reason)> {
    let (value, since) = pooler.borrowed.as_ref()?;
    if now.since(*since) < borrow_time(value) {
        return None;
    }
    let text = "marks of before the move cannot hold anybody up any more";
    Some((PoolerOrder::ReturnLoginRetry { value: value.clone() }, Reason::new(Rule::LoginRetry, text)))
}

/// RELOAD -> RECONNECT -> cut, for links that stay elsewhere.
fn ladder(
    config: &Config,
    pooler: &Pooler,
    decisions: &Decisions,
    now: Time,
) -> Option<(PoolerOrder, Reason)> {
    if !config.mutants.obey(Rule::StaleLadder)
        || pooler.look_due <= now
        || !unloaded(pooler, decisions).is_empty()
        // Before version 1.24 a cut takes the clients that wait with it.
        || pooler.pause.is_some()
    {
        return None;
    }
    let SwitchConfig { stale_after, .. } = config.switch;
    for (entry, decision) in decisions {
        let Some(target) = &decision.target else { continue };
        if !leads_to(pooler, entry, &target.endpoint) {
            // New links would lead to the old place again.
            continue;
        }
        let (_, stale) = pooler.links(entry, target);
        let Some(since) = pooler.ladders.get(entry).and_then(|l| l.since) else { continue };
        if stale.is_empty() {
            continue;
        }
        for database in stale_databases(pooler, entry, &stale) {
            let ladder = pooler.ladders.get(&database).cloned().unwrap_or_default();
            let age = now.since(since);
            if ladder.reconnected.is_none() && age >= RECONNECT_AFTER {
                let text = format!(
                    "{} links of {database} still lead to {} after {}",
                    stale.len(),
                    stale[0],
                    Human(age)
                );
                return Some((PoolerOrder::Reconnect { database }, Reason::new(Rule::StaleLadder, text)));
            }
            let last = ladder.cut.unwrap_or(since);
            let stale: Vec<Endpoint> = stale.iter().filter(|e| !target.spared.contains(e)).cloned().collect();
            if ladder.reconnected.is_some() && now.since(last) >= stale_after && !stale.is_empty() {
                let text = format!(
                    "{} links of {database} still lead to {} after {}",
                    stale.len(),
                    stale[0],
                    Human(age)
                );
                return Some((PoolerOrder::Cut { database, stale }, Reason::new(Rule::StaleLadder, text)));
            }
        }
    }
    None
}

/// Whether an entry leads there on disk and as loaded.
fn leads_to(pooler: &Pooler, entry: &str, endpoint: &Endpoint) -> bool {
    pooler.disk.last().is_some_and(|disk| disk.entries.get(entry) == Some(endpoint))
        && pooler.is_loaded(entry, endpoint)
}

/// Databases of an entry that have a link to one of these endpoints.
fn stale_databases(pooler: &Pooler, entry: &str, stale: &[Endpoint]) -> Vec<String> {
    let Some(view) = pooler.console.last() else { return Vec::new() };
    let is_stale = |database: &str| {
        view.links_of(database).iter().any(|l| stale.iter().any(|e| e.host == l.addr && e.port == l.port))
    };
    pooler.databases_of(entry).into_iter().filter(|d| is_stale(d)).map(Into::into).collect()
}

/// Brings the pooler's own notes up to date with a look: what is verified, which links are stale since when.
pub fn take_notes(pooler: &mut Pooler, decisions: &Decisions, now: Time) {
    if pooler.console.seen().is_none() || pooler.console.seen() == pooler.noted {
        return;
    }
    pooler.noted = pooler.console.seen();
    judge_reload(pooler, decisions, now);
    for (entry, decision) in decisions {
        let stale = decision.target.as_ref().is_some_and(|t| !pooler.links(entry, t).1.is_empty());
        if stale {
            pooler.ladders.entry(entry.clone()).or_default().since.get_or_insert(now);
        } else {
            pooler.ladders.remove(entry);
            if entry == "*" {
                let opened: Vec<String> = pooler.databases_of(entry).into_iter().map(Into::into).collect();
                pooler.ladders.retain(|database, _| !opened.contains(database));
            }
        }
        if pooler.is_verified(entry, decision, now) && !has_waiting(pooler, entry) {
            pooler.moved.remove(entry);
        }
    }
    let unsettled = !pooler.moved.is_empty() || !pooler.ladders.is_empty() || pooler.refused_reloads > 0;
    if unsettled {
        pooler.look_due = pooler.look_due.min(now + pooler.look_pause);
        pooler.look_pause = (pooler.look_pause * 3 / 2).min(LOOK_PAUSE / 4);
    } else {
        pooler.look_pause = FIRST_LOOK;
    }
}

/// The first look after a RELOAD tells whether PgBouncer took the file (its answer tells so from 1.25 on only).
fn judge_reload(pooler: &mut Pooler, decisions: &Decisions, now: Time) {
    if !pooler.reload_unseen {
        return;
    }
    pooler.reload_unseen = false;
    match unloaded(pooler, decisions).as_slice() {
        [] => {
            pooler.refused_reloads = 0;
            pooler.proved_good = true;
            pooler.back_off.succeed();
        }
        list => {
            pooler.refused_reloads += 1;
            let why = format!("RELOAD did not load {}{}", list[0], more(list));
            pooler.back_off.fail(now, why);
        }
    }
}

/// Clients that wait and no link that would serve them: the mark may still be there.
fn has_waiting(pooler: &Pooler, entry: &str) -> bool {
    let Some(view) = pooler.console.last() else { return false };
    pooler.databases_of(entry).into_iter().any(|database| {
        let waits = view.waiting.get(database).is_some_and(|n| *n > 0);
        waits && !view.links_of(database).iter().any(|link| link.state != "login")
    })
}

/// Notes which entries are on their way to another target.
pub fn note_moves(pooler: &mut Pooler, decisions: &Decisions, now: Time) {
    pooler.moved.retain(|entry, _| decisions.contains_key(entry));
    for entry in unloaded(pooler, decisions) {
        if pooler.console.seen().is_some() {
            pooler.moved.entry(entry).or_insert(now);
        }
    }
}

/// Whether orders that change something may be given now.
pub fn may_change(config: &Config, pooler: &Pooler, now: Time) -> bool {
    let enforce = config.mode == Mode::Enforce || !config.mutants.obey(Rule::ObserveMode);
    enforce && (pooler.back_off.until <= now || !config.mutants.obey(Rule::BackOff))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::Agent;
    use crate::effect::{EffectId, Order};
    use crate::event::{Event, Outcome, Restored};
    use crate::example::{at, config, keys, read};
    use crate::pgbouncer::console::{ConsoleView, LoadedDatabase, ServerLink};
    use crate::pgbouncer::ini::Files;

    const INI: &str = "[databases]\napp = host=10.0.0.9 port=5432\n[pgbouncer]\nserver_login_retry = 4\n";

    /// An agent whose world is played by the test, one order at a time.
    struct Play {
        agent: Agent,
        now: u64,
        waiting: Vec<(EffectId, Order)>,
    }

    impl Play {
        /// The write route must lead to 10.0.0.1; nothing is known of the pooler yet.
        fn new() -> Self {
            let mut config = config();
            config.poolers[0].routes.remove("reports");
            let agent = Agent::new(config, Restored::default(), at(0));
            let mut play = Play { agent, now: 0, waiting: Vec::new() };
            play.tell(Event::StoreRead { cluster: "main".into(), read: read(10, at(1), keys(1)) });
            play
        }

        fn tell(&mut self, event: Event) {
            self.now += 1;
            let effects = self.agent.handle(at(self.now), event);
            self.waiting.extend(effects.into_iter().map(|effect| (effect.id, effect.order)));
            let body = br#"{"state":"running","role":"primary","timeline":1,"xlog":{"location":9}}"#.to_vec();
            let others = self.waiting.extract_if(.., |(_, order)| !matches!(order, Order::Pooler { .. }));
            for (id, order) in others.collect::<Vec<_>>() {
                let outcome = match order {
                    Order::AskMember { .. } => Outcome::Member { code: 200, body: body.clone() },
                    Order::Record(_) => continue,
                    Order::ReadStore { cluster } => {
                        let read = read(10, at(self.now), keys(1));
                        self.tell(Event::StoreRead { cluster, read });
                        Outcome::Done
                    }
                    _ => Outcome::Done,
                };
                self.tell(Event::Done { id, started: at(self.now), outcome });
            }
        }

        /// Time passes until the pooler gets an order; it is to be answered by [`answer`](Self::answer).
        fn next(&mut self) -> PoolerOrder {
            for _ in 0..3000 {
                if let [(_, Order::Pooler { order, .. }), ..] = self.waiting.as_slice() {
                    return order.clone();
                }
                self.now += 10;
                self.tell(Event::Tick);
            }
            panic!("there is no order for the pooler");
        }

        fn answer(&mut self, outcome: Outcome) {
            let (id, _) = self.waiting.remove(0);
            self.tell(Event::Done { id, started: at(self.now), outcome });
        }

        /// The next order that changes something. Questions before it are answered.
        fn next_change(&mut self, ini: &str, loaded: &str) -> PoolerOrder {
            for _ in 0..40 {
                match self.next() {
                    PoolerOrder::ReadFiles => self.answer(Outcome::Files(Files::new("/p.ini", "/", ini))),
                    PoolerOrder::Look => self.answer(Outcome::Console(console(loaded, loaded))),
                    order => return order,
                }
            }
            panic!("no change");
        }
    }

    fn console(loaded: &str, link: &str) -> ConsoleView {
        let row = LoadedDatabase {
            name: "app".into(),
            host: Some(loaded.into()),
            port: 5432,
            ..LoadedDatabase::default()
        };
        let (database, state) = ("app".into(), "idle".into());
        let link = ServerLink { database, state, addr: link.into(), port: 5432, session: false };
        ConsoleView {
            version: (1, 18),
            databases: [row].into(),
            servers: [link].into(),
            ..Default::default()
        }
    }

    fn written(order: &PoolerOrder) -> String {
        let PoolerOrder::Write { files, .. } = order else { panic!("no write, but {order}") };
        String::from_utf8(files["/p.ini"].1.clone()).expect("it is text")
    }

    #[test]
    fn a_move_is_write_reload_lower_look_keep_and_give_back() {
        let mut play = Play::new();
        let new = INI.replace("10.0.0.9", "10.0.0.1");
        let write = play.next_change(INI, "10.0.0.9");
        assert_eq!(written(&write), new);
        play.answer(Outcome::Done);
        assert_eq!(play.next_change(&new, "10.0.0.9"), PoolerOrder::Reload);
        play.answer(Outcome::Done);
        assert_eq!(play.next(), PoolerOrder::BorrowLoginRetry { value: "4".into() });
        play.answer(Outcome::Done);
        assert_eq!(play.next(), PoolerOrder::Look);
        let lowered = play.now;
        let keep = play.next_change(&new, "10.0.0.1");
        assert!(matches!(keep, PoolerOrder::KeepGood { .. }), "{keep}");
        play.answer(Outcome::Done);
        let back = play.next_change(&new, "10.0.0.1");
        assert_eq!(back, PoolerOrder::ReturnLoginRetry { value: "4".into() });
        assert!(play.now - lowered >= 5_000, "a mark may hold a pool up for so long");
    }

    #[test]
    fn a_file_that_changed_meanwhile_is_read_before_it_is_written() {
        let mut play = Play::new();
        play.next_change(INI, "10.0.0.9");
        play.answer(Outcome::ChangedMeanwhile);
        assert_eq!(play.next(), PoolerOrder::ReadFiles);
        let edited = format!("; by hand\n{INI}");
        let write = play.next_change(&edited, "10.0.0.9");
        assert!(written(&write).starts_with("; by hand\n"));
    }

    #[test]
    fn a_lowered_login_retry_without_an_answer_is_given_back() {
        let mut play = Play::new();
        let new = INI.replace("10.0.0.9", "10.0.0.1");
        let first = play.next_change(&new, "10.0.0.9");
        assert_eq!(first, PoolerOrder::Reload);
        play.answer(Outcome::Done);
        assert!(matches!(play.next(), PoolerOrder::BorrowLoginRetry { .. }));
        play.answer(Outcome::Failed { why: "no answer".into() });
        let mut orders = Vec::new();
        while !matches!(orders.last(), Some(PoolerOrder::ReturnLoginRetry { .. })) {
            orders.push(play.next_change(&new, "10.0.0.1"));
            play.answer(Outcome::Done);
        }
        assert_eq!(orders.last(), Some(&PoolerOrder::ReturnLoginRetry { value: "4".into() }));
    }

    #[test]
    fn a_broken_file_is_replaced_when_a_route_must_move_and_only_then() {
        let mut play = Play::new();
        let good = INI.replace("10.0.0.9", "10.0.0.1");
        let keep = play.next_change(&good, "10.0.0.1");
        assert!(matches!(keep, PoolerOrder::KeepGood { .. }), "{keep}");
        play.answer(Outcome::Done);
        let broken = format!("{good}this is no line\n");
        for _ in 0..30 {
            match play.next() {
                PoolerOrder::ReadFiles => {
                    play.answer(Outcome::Files(Files::new("/p.ini", "/", broken.as_str())))
                }
                PoolerOrder::Look => play.answer(Outcome::Console(console("10.0.0.1", "10.0.0.1"))),
                order => panic!("{order}, although the route leads where it must"),
            }
        }
        let moved = play.next_change(&broken, "10.0.0.9");
        assert!(matches!(moved, PoolerOrder::Write { keep_rejected: true, .. }), "{moved}");
        assert_eq!(written(&moved), good);
    }

    #[test]
    fn links_that_stay_are_reconnected_then_cut_but_not_before_the_route_is_loaded() {
        let mut play = Play::new();
        let new = INI.replace("10.0.0.9", "10.0.0.1");
        let mut orders = Vec::new();
        while orders.len() < 4 {
            match play.next() {
                PoolerOrder::ReadFiles => {
                    play.answer(Outcome::Files(Files::new("/p.ini", "/", new.as_str())))
                }
                PoolerOrder::Look => play.answer(Outcome::Console(console("10.0.0.1", "10.0.0.9"))),
                order => {
                    orders.extend((!matches!(order, PoolerOrder::KeepGood { .. })).then_some(order));
                    play.answer(Outcome::Done);
                }
            }
        }
        let stale = [Endpoint { host: "10.0.0.9".into(), port: 5432 }];
        assert_eq!(orders[0], PoolerOrder::Reconnect { database: "app".into() });
        assert_eq!(orders[1], PoolerOrder::Cut { database: "app".into(), stale: stale.into() });
        // Level, not edge: what is still there is cut again.
        assert_eq!(orders[2], orders[1]);
        assert!(play.now >= 30_000, "each time after `stale_after`");
    }

    #[test]
    fn an_order_without_an_answer_counts_as_failed() {
        let mut play = Play::new();
        assert!(matches!(play.next_change(INI, "10.0.0.9"), PoolerOrder::Write { .. }));
        play.waiting.clear();
        let asked = play.now;
        assert_eq!(play.next(), PoolerOrder::ReadFiles);
        assert!(play.now - asked >= 20_000);
    }
}
