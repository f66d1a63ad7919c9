//! What we know, how fresh it is, how new it is.

pub use crate::candidate::Candidate;
use crate::config::{ClusterConfig, Config};
use crate::event::{LocalServer, StoreChange, StoreRead};
pub use crate::fact::Fact;
use crate::patroni::{Keys, MemberStatus, read_topology};
use crate::rule::{Reason, Rule};
use crate::switch::records::MemberWord;
use crate::time::{Human, Time};
use crate::topology::{Member, Role, Topology};
use crate::wal::{Term, Timeline};
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

/// The local server is unknown after this long without an answer, whatever `max_fact_age`.
pub const LOCAL_PROBE_AGE: Duration = Duration::from_secs(2);
/// For "primary: up" its word counts for less: a graceful switchover may have another primary a second after this one
/// stopped (`patroni/ha.py`), and a driver that hangs goes on showing its last verdict until that ends.
pub const PRIMARY_PROBE_AGE: Duration = Duration::from_secs(1);

/// A promotion that lasts longer is no longer watched closely.
const PROMOTION_PATIENCE: Duration = Duration::from_secs(60);

/// What we know of one cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterView {
    /// Keys in force.
    keys: Keys,
    /// While there are none: where the store holds some.
    pub beside: Vec<String>,
    /// Them, understood.
    pub topology: Topology,
    /// Store id, consensus term and revision of the view in force.
    pub version: Option<(String, u64, u64)>,
    /// When the newest full read was begun.
    pub seen: Option<Time>,
    /// When the store was last heard of: a read, or a change.
    heard: Time,
    /// Why the last attempt to read failed; cleared by a success.
    pub failed: Option<String>,
    /// Start of the read that proved it, and time the leader key had left then.
    pub lease: Option<(Time, Duration)>,
    /// How new our view is; never goes back by itself.
    pub term: Option<Term>,
    /// The term that a next run on this boot of the machine would begin with.
    pub kept: Option<Term>,
    /// The term that a next run after a power cut would begin with.
    pub durable: Option<Term>,
    /// When and why the term could not be kept on disk.
    pub keep_failed: Option<(Time, String)>,
    /// A read that we refuse to follow for now.
    pub candidate: Option<Candidate>,
    /// Answers of members' REST APIs.
    pub asked: BTreeMap<String, Fact<MemberStatus>>,
    /// When the present leader key was first seen.
    pub leader_since: Time,
    /// Its holder has been proved writable since.
    pub was_writable: bool,
    /// When the timeline last rose, and what it was before.
    pub promoted: Option<(Time, Timeline)>,
    /// Who led before.
    pub former: Option<String>,
    /// Its key as it stood while it led: in failsafe mode a primary may lose that with the leader key.
    pub former_member: Option<Member>,
    /// The member that is being let go of: it serves no reader that has another place.
    pub leaving: Option<String>,
    /// What the agent beside the leader says of its server, and when we heard it.
    pub word: Option<(MemberWord, Time)>,
}

impl ClusterView {
    /// Knows nothing but the term of an earlier run.
    pub fn new(term: Option<Term>) -> Self {
        ClusterView {
            keys: Keys::new(),
            beside: Vec::new(),
            topology: Topology::default(),
            version: None,
            seen: None,
            heard: Time::ZERO,
            failed: None,
            lease: None,
            kept: term.clone(),
            durable: term.clone(),
            term,
            keep_failed: None,
            candidate: None,
            asked: BTreeMap::new(),
            leader_since: Time::ZERO,
            was_writable: false,
            promoted: None,
            former: None,
            former_member: None,
            leaving: None,
            word: None,
        }
    }

    /// The store has answered, and it holds nothing of this cluster.
    pub fn is_nowhere(&self) -> bool {
        self.version.is_some() && self.keys.is_empty()
    }

    /// The Citus groups below a scope that is followed as if it had none.
    pub fn groups(&self) -> BTreeSet<u32> {
        let group = |key: &String| key.split_once('/')?.0.parse().ok();
        let groups: BTreeSet<u32> = self.keys.keys().filter_map(group).collect();
        if self.topology.members.is_empty() { groups } else { BTreeSet::new() }
    }

    /// A full read of the store came in.
    pub fn observe_read(&mut self, config: &Config, now: Time, read: StoreRead) {
        self.failed = None;
        let topology = read_topology(&read.keys);
        match self.objection(config, &read, &topology) {
            // It was begun before something newer was heard: the two crossed on their way.
            Some(reason) if reason.rule == Rule::OlderView && read.started <= self.heard => {}
            Some(reason) => {
                let before = self
                    .candidate
                    .take()
                    .filter(|c| c.read.store == read.store && c.topology.leader == topology.leader);
                let asked = before.map(|c| c.asked).unwrap_or_default();
                self.candidate = Some(Candidate { read, topology, reason, asked });
            }
            None => self.adopt(now, read, topology),
        }
    }

    /// Why a read must not be followed.
    fn objection(&self, config: &Config, read: &StoreRead, topology: &Topology) -> Option<Reason> {
        if let Some((store, raft_term, revision)) = &self.version
            && *store == read.store
            && (read.revision < *revision || read.raft_term < *raft_term)
            && config.mutants.obey(Rule::OlderView)
        {
            let text = format!(
                "the store answered revision {} (consensus term {}), but {revision} ({raft_term}) was already seen",
                read.revision, read.raft_term
            );
            return Some(Reason::new(Rule::OlderView, text));
        }
        let term = self.term.as_ref()?;
        if !config.mutants.obey(Rule::StrangeStore) {
            return None;
        }
        if let (Some(known), Some(read)) = (&term.system_id, &topology.system_id)
            && known != read
        {
            let text = format!("the store now describes system {read}, not {known}");
            return Some(Reason::new(Rule::StrangeStore, text));
        }
        if term.store != read.store {
            let text = format!("the store's identity is {}, not {}", read.store, term.store);
            return Some(Reason::new(Rule::StrangeStore, text));
        }
        if read.revision < term.revision && config.mutants.obey(Rule::OlderView) {
            let text = format!(
                "the store is at revision {}, before revision {} of the term",
                read.revision, term.revision
            );
            return Some(Reason::new(Rule::OlderView, text));
        }
        None
    }

    /// Takes a read as the view in force.
    fn adopt(&mut self, now: Time, read: StoreRead, topology: Topology) {
        self.candidate = None;
        self.lease = read.leader_ttl.map(|ttl| (read.started, ttl));
        self.seen = Some(self.seen.map_or(read.started, |seen| seen.max(read.started)));
        self.heard = now;
        self.version = Some((read.store, read.raft_term, read.revision));
        self.keys = read.keys;
        self.beside = read.beside;
        self.take_topology(now, topology);
    }

    /// Takes the refused read after all: a majority confirmed it. What was known of another store's revisions is void,
    /// but the timelines belong to the database system: among those there is no way back.
    pub fn follow_candidate(&mut self, now: Time) {
        let Some(candidate) = &self.candidate else { return };
        let same_system = self.term.take().filter(|term| term.system_id == candidate.topology.system_id);
        self.adopt_candidate(now);
        if let (Some(old), Some(new)) = (same_system, &mut self.term) {
            new.timeline = old.timeline;
        }
    }

    /// Takes the refused read after all: the operator asked for it. The old term is void.
    pub fn adopt_candidate(&mut self, now: Time) {
        if let Some(candidate) = self.candidate.take() {
            self.term = None;
            self.asked.clear();
            self.adopt(now, candidate.read, candidate.topology);
        }
    }

    /// The watch reported changes. Returns whether the leader key changed.
    pub fn observe_change(&mut self, config: &Config, now: Time, change: StoreChange) -> bool {
        let Some((store, _, revision)) = &mut self.version else { return false };
        let older = change.revision <= *revision && config.mutants.obey(Rule::OlderView);
        if *store != change.store || older {
            return false;
        }
        *revision = change.revision;
        self.heard = now;
        let leader_changed = change.changes.iter().any(|(key, _)| key == "leader");
        for (key, value) in change.changes {
            match value {
                Some(value) => self.keys.insert(key, value),
                None => self.keys.remove(&key),
            };
        }
        if leader_changed {
            // Its lease is known again after the next read.
            self.lease = None;
        }
        self.take_topology(now, read_topology(&self.keys));
        leader_changed
    }

    fn take_topology(&mut self, now: Time, topology: Topology) {
        if topology.leader != self.topology.leader {
            self.leader_since = now;
            self.was_writable = false;
            let before = self.topology.leader.as_ref().map(|leader| &leader.name);
            if let Some(before) =
                before.filter(|name| topology.leader.as_ref().map(|l| &l.name) != Some(*name))
            {
                self.former = Some(before.clone());
                self.former_member = self.topology.leader_member().cloned();
            }
            if let Some(leader) = &topology.leader {
                // An answer from before this leadership proves nothing about it.
                self.asked.remove(&leader.name);
            }
        }
        self.topology = topology;
        let (Some(leader), Some((store, ..))) = (&self.topology.leader, &self.version) else { return };
        let (revision, store) = (leader.revision, store.clone());
        let system_id = self.topology.system_id.clone();
        match &mut self.term {
            Some(term) => {
                term.revision = term.revision.max(revision);
                term.system_id = system_id.or(term.system_id.take());
            }
            None => self.term = Some(Term { system_id, timeline: None, store, revision }),
        }
    }

    /// A member's REST API answered, or did not.
    pub fn observe_member(&mut self, name: &str, started: Time, answer: Result<MemberStatus, String>) {
        // Who is asked by an address of the configuration says who it is.
        let told = answer.as_ref().ok().and_then(|status| status.name.clone());
        let name = match told {
            Some(told) if !self.topology.members.contains_key(name) => told,
            _ => name.into(),
        };
        let name = name.as_str();
        if let (Some(candidate), Ok(status)) = (&mut self.candidate, &answer) {
            candidate.asked.entry(name.into()).or_insert_with(Fact::never).learn(status.clone(), started);
        }
        let leads = self.topology.leader.as_ref().is_some_and(|l| l.name == name);
        if leads && started < self.leader_since {
            return;
        }
        let fact = self.asked.entry(name.into()).or_insert_with(Fact::never);
        match answer {
            Ok(status) => fact.learn(status, started),
            Err(why) if fact.seen().is_none() => *fact = Fact::Unknown { why },
            // A failure does not wipe out an answer: that ages by itself.
            Err(_) => {}
        }
    }

    /// The view in force, if it may be acted on.
    ///
    /// # Errors
    /// Why not.
    pub fn usable(&self, config: &Config, cluster: &ClusterConfig, now: Time) -> Result<&Topology, Reason> {
        if let Some(candidate) = &self.candidate
            && candidate.reason.rule == Rule::StrangeStore
        {
            return Err(candidate.reason.clone());
        }
        let Some(seen) = self.seen else {
            let why = match (&self.candidate, &self.failed) {
                (Some(candidate), _) => return Err(candidate.reason.clone()),
                (None, Some(why)) => format!("the store of {} was never read: {why}", cluster.name),
                (None, None) => format!("the store of {} has not answered yet", cluster.name),
            };
            return Err(Reason::new(Rule::HandsOff, why));
        };
        let age = now.since(seen);
        if age > cluster.max_fact_age && config.mutants.obey(Rule::FactAge) {
            let text = format!(
                "the store of {} last answered {} ago{}",
                cluster.name,
                Human(age),
                self.failed.as_ref().map(|why| format!(": {why}")).unwrap_or_default()
            );
            return Err(Reason::new(Rule::FactAge, text));
        }
        Ok(&self.topology)
    }

    /// Members other than the leader that claim to be primary on the leader's timeline or a newer one.
    pub fn claimants(&self, now: Time, max_age: Duration, timeline: Timeline) -> Vec<String> {
        let leader = self.topology.leader.as_ref().map(|l| l.name.as_str());
        let claims = |member: &&Member| {
            let asked = self.asked.get(&member.name).and_then(|fact| fact.fresh(now, max_age).ok());
            match asked {
                Some(status) => status.claims_primary() && status.timeline.is_none_or(|t| t >= timeline),
                None => {
                    member.role == Some(Role::Primary)
                        && member.is_running()
                        && member.timeline.is_some_and(|t| t >= timeline)
                }
            }
        };
        let others = self.topology.members.values().filter(|m| Some(m.name.as_str()) != leader);
        others.filter(claims).map(|m| m.name.clone()).collect()
    }

    /// The agents of the members spoke. A word counts from when it was first heard.
    pub fn observe_words(&mut self, words: &BTreeMap<String, MemberWord>, now: Time) {
        let Some(leader) = &self.topology.leader else { return };
        match words.get(&leader.name).filter(|word| word.leader_revision == leader.revision) {
            Some(word) if self.word.as_ref().is_none_or(|(known, _)| known != word) => {
                self.word = Some((word.clone(), now));
            }
            Some(_) => {}
            None => self.word = None,
        }
    }

    /// A member of the view in force that the store calls primary although it does not lead: worth asking.
    pub fn suspects(&self) -> impl Iterator<Item = &Member> {
        let leader = self.topology.leader.as_ref().map(|l| l.name.as_str());
        self.topology.members.values().filter(move |m| {
            Some(m.name.as_str()) != leader && m.role == Some(Role::Primary) && m.is_running()
        })
    }

    /// The leader was proved writable on this timeline: the term rises with it.
    pub fn raise_timeline(&mut self, now: Time, timeline: Timeline) {
        self.was_writable = true;
        let Some(term) = &mut self.term else { return };
        if term.timeline.is_none_or(|t| t < timeline) {
            if let Some(old) = term.timeline {
                self.promoted = Some((now, old));
            }
            term.timeline = Some(timeline);
        }
    }
}

/// Everything we know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed {
    /// By cluster name.
    pub clusters: BTreeMap<String, ClusterView>,
    /// The server on this host.
    pub local: Fact<LocalServer>,
    /// Answer of this host's Patroni.
    pub local_patroni: Fact<MemberStatus>,
    /// When the Patroni on this host last saw its store, as it last said.
    pub store_seen: Option<Time>,
    /// When the server on this host was started, as its Patroni last said while it was running.
    pub started: Option<String>,
    /// The member on this host is about to stop, or is stopping.
    pub stopping: Option<String>,
}

impl Observed {
    /// Knows nothing but the terms of an earlier run.
    pub fn new(config: &Config, terms: &BTreeMap<String, Term>) -> Self {
        let view = |c: &ClusterConfig| (c.name.clone(), ClusterView::new(terms.get(&c.name).cloned()));
        Observed {
            clusters: config.clusters.iter().map(view).collect(),
            local: Fact::never(),
            local_patroni: Fact::never(),
            store_seen: None,
            started: None,
            stopping: None,
        }
    }

    /// Whether the store says that the member on this host leads.
    pub fn leads_here(&self, config: &Config) -> bool {
        let Some(local) = &config.local else { return false };
        let leader = self.clusters.get(&local.cluster).and_then(|view| view.topology.leader.as_ref());
        leader.is_some_and(|leader| self.local_member(config) == Some(&leader.name))
    }

    /// For how long the server on this host has held the leader key, if it is not out of recovery yet as far as we know.
    pub fn promoting_for(&self, config: &Config, now: Time) -> Option<Duration> {
        let cluster = &config.local.as_ref()?.cluster;
        let since = self.clusters.get(cluster)?.leader_since;
        let waits =
            self.local.last().is_some_and(|server| server.in_recovery || self.local.seen() < Some(since));
        Some(now.since(since)).filter(|age| waits && *age <= PROMOTION_PATIENCE)
    }

    /// Name of the member on this host: as its Patroni says, else the node's name.
    pub fn local_member<'a>(&'a self, config: &'a Config) -> Option<&'a str> {
        config.local.as_ref()?;
        let told = self.local_patroni.last().and_then(|status| status.name.as_deref());
        Some(told.unwrap_or(&config.node))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::{at, config, keys, member, observed, read, rest, view};
    use crate::patroni::StoredValue;

    fn leader(observed: &mut Observed) -> Option<String> {
        view(observed).topology.leader.as_ref().map(|leader| leader.name.clone())
    }

    #[test]
    fn an_older_read_is_refused() {
        let config = config();
        let mut known = observed(&config, at(1_000));
        view(&mut known).observe_read(&config, at(2_000), read(9, at(1_900), keys(2)));
        assert_eq!(leader(&mut known), Some("pg1".into()));
        assert_eq!(view(&mut known).candidate.as_ref().map(|c| c.reason.rule), Some(Rule::OlderView));
        // Still followed: what is known is no worse for it.
        assert!(view(&mut known).usable(&config, &config.clusters[0], at(2_000)).is_ok());
    }

    #[test]
    fn a_read_of_an_older_consensus_term_is_refused() {
        let config = config();
        let mut known = observed(&config, at(1_000));
        let isolated = StoreRead { raft_term: 1, ..read(99, at(1_900), keys(2)) };
        view(&mut known).observe_read(&config, at(2_000), isolated);
        assert_eq!(leader(&mut known), Some("pg1".into()));
        assert_eq!(view(&mut known).candidate.as_ref().map(|c| c.reason.rule), Some(Rule::OlderView));
    }

    #[test]
    fn a_read_that_crossed_a_change_is_no_candidate() {
        let config = config();
        let mut known = observed(&config, at(1_000));
        let change =
            StoreChange { store: "s".into(), revision: 12, changes: [("leader".into(), None)].into() };
        assert!(view(&mut known).observe_change(&config, at(2_000), change));
        view(&mut known).observe_read(&config, at(2_100), read(11, at(1_990), keys(1)));
        assert_eq!(leader(&mut known), None);
        assert_eq!(view(&mut known).candidate, None);
    }

    #[test]
    fn an_older_view_without_a_lease_is_never_confirmed() {
        let config = config();
        for (ttl, confirmed) in [(None, false), (Some(Duration::from_secs(9)), true)] {
            let mut known = observed(&config, at(1_000));
            let old = StoreRead { leader_ttl: ttl, ..read(9, at(1_900), keys(1)) };
            view(&mut known).observe_read(&config, at(2_000), old);
            for (name, code, role) in
                [("pg1", 200, "primary"), ("pg2", 503, "replica"), ("pg3", 503, "replica")]
            {
                view(&mut known).observe_member(name, at(2_100), Ok(rest(code, role, "running", 1)));
            }
            let view = view(&mut known);
            let candidate = view.candidate.as_ref().expect("it was refused");
            assert_eq!(candidate.is_confirmed(&view.topology, at(2_200), Duration::from_secs(10)), confirmed);
        }
    }

    #[test]
    fn a_stranger_does_not_vouch_for_himself() {
        let config = config();
        let mut known = observed(&config, at(1_000));
        let mut strange = keys(1);
        strange.remove("members/pg1");
        strange.insert("leader".into(), StoredValue { value: b"db9".to_vec(), revision: 3 });
        let text = member(9, "primary", "running", 1, "").into_bytes();
        strange.insert("members/db9".into(), StoredValue { value: text, revision: 3 });
        let read = StoreRead { store: "other".into(), ..read(9, at(1_900), strange) };
        view(&mut known).observe_read(&config, at(2_000), read);
        view(&mut known).observe_member("db9", at(2_100), Ok(rest(200, "primary", "running", 1)));
        let view = view(&mut known);
        let candidate = view.candidate.as_ref().expect("it was refused");
        assert!(!candidate.is_confirmed(&view.topology, at(2_200), Duration::from_secs(10)));
        assert_eq!(
            view.usable(&config, &config.clusters[0], at(2_200)).unwrap_err().rule,
            Rule::StrangeStore
        );
    }

    #[test]
    fn another_store_of_the_same_system_keeps_the_timeline() {
        let config = config();
        for (system, timeline) in [("777", Some(Timeline(4))), ("888", None)] {
            let mut known = observed(&config, at(1_000));
            view(&mut known).raise_timeline(at(1_000), Timeline(4));
            let mut new = keys(2);
            new.insert("initialize".into(), StoredValue { value: system.into(), revision: 2 });
            let read = StoreRead { store: "new".into(), ..read(3, at(1_900), new) };
            view(&mut known).observe_read(&config, at(2_000), read);
            view(&mut known).follow_candidate(at(2_100));
            let term = view(&mut known).term.clone().expect("there is a leader");
            assert_eq!((term.store.as_str(), term.timeline), ("new", timeline));
        }
    }
}
