//! Patroni's REST API in the place of a store: what the members answer becomes the keys that a store would hold.
//!
//! The shell asks each member `GET /primary` again and again (its code is the lock, its body the server) and now and then
//! one of them `GET /cluster` and `GET /config` (who is there and where; that one reads the store). There is no revision to
//! go by: what orders two views is the timeline, which every agent sees alike and the term keeps. So all revisions are
//! [`REVISION`], and [`claims`] says which of two members that claim the lock holds it.

mod claims;
mod directory;

use crate::event::StoreRead;
use crate::patroni::{Keys, MemberStatus, StoredValue, read_member_status};
use crate::rule::{Mutants, Rule};
use crate::time::Time;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use claims::{Claim, outdoes};
use core::time::Duration;
pub(crate) use directory::api_base;
use directory::{Directory, Listed};
use serde_json::{Map, Value, json};

/// Identity of the "store". One name for all: what tells two databases apart is their system identifier.
pub const STORE: &str = "patroni";
/// The revision of everything.
pub const REVISION: u64 = 0;
/// Key of what is wrong with the answers, as a list of sentences. Only here is it written, and never into a store.
pub const PROBLEMS: &str = "problems";

/// The newest answer of a member.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    status: MemberStatus,
    started: Time,
    /// It says that it holds the lock.
    claim: Option<Claim>,
}

/// What became of the newest attempt at an address.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Attempt {
    /// This member answered.
    Member(String),
    /// Why nobody did.
    Failed(String),
}

/// What the members of one cluster say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Members {
    scope: String,
    max_age: Duration,
    directory: Option<Directory>,
    /// Why it could not be read the last time.
    unlisted: Option<String>,
    answers: BTreeMap<String, Answer>,
    /// By base address.
    attempts: BTreeMap<String, Attempt>,
    /// System identifier of the cluster: what most members said last.
    system: Option<String>,
}

impl Members {
    /// Of the cluster with this scope; an answer counts for so long.
    pub fn new(scope: &str, max_age: Duration) -> Self {
        Members {
            scope: scope.into(),
            max_age,
            directory: None,
            unlisted: None,
            answers: BTreeMap::new(),
            attempts: BTreeMap::new(),
            system: None,
        }
    }

    /// `GET /cluster` and `GET /config` were answered. Who is listed no more is forgotten.
    ///
    /// # Errors
    /// A sentence, when they are not Patroni's, or not this cluster's; what was known before stays.
    pub fn list(&mut self, cluster: &[u8], config: &[u8]) -> Result<(), String> {
        match Directory::read(&self.scope, cluster, config) {
            Ok(directory) => {
                self.answers.retain(|name, _| directory.members.contains_key(name));
                self.directory = Some(directory);
                self.unlisted = None;
                Ok(())
            }
            Err(why) => {
                self.unlisted = Some(why.clone());
                Err(why)
            }
        }
    }

    /// `GET /cluster` or `GET /config` was not answered.
    pub fn not_listed(&mut self, why: String) {
        self.unlisted = Some(why);
    }

    /// The member at this base address answered `GET /primary`, which was asked then and heard now.
    ///
    /// # Errors
    /// A sentence, when it was no member of this cluster that answered.
    pub fn hear(
        &mut self,
        base: &str,
        code: u16,
        body: &[u8],
        started: Time,
        now: Time,
    ) -> Result<(), String> {
        match self.member_of(base, code, body) {
            Err(why) => {
                self.miss(base, why.clone());
                Err(why)
            }
            Ok((name, status)) => {
                self.attempts.insert(base.into(), Attempt::Member(name.clone()));
                let before = self.answers.get(&name);
                // Two addresses may lead to one member.
                if before.is_none_or(|before| before.started <= started) {
                    let claim = Claim::after(before, &status, now);
                    self.answers.insert(name, Answer { status, started, claim });
                }
                Ok(())
            }
        }
    }

    /// Nobody answered at this base address.
    pub fn miss(&mut self, base: &str, why: String) {
        self.attempts.insert(base.into(), Attempt::Failed(why));
    }

    /// This address is not asked any more.
    pub fn leave(&mut self, base: &str) {
        self.attempts.remove(base);
    }

    /// Who answers there, and what.
    fn member_of(&self, base: &str, code: u16, body: &[u8]) -> Result<(String, MemberStatus), String> {
        if code != 200 && code != 503 {
            return Err(format!("it answered HTTP {code}: is this Patroni's REST API?"));
        }
        let status = read_member_status(code, body)?;
        if let Some(other) = status.scope.as_ref().filter(|other| **other != self.scope) {
            return Err(format!("it answers for scope {other}, not {}", self.scope));
        }
        // Old versions (3.0.2) do not say their name.
        let listed = self.directory.as_ref().and_then(|directory| directory.member_at(base));
        let name = status.name.clone().or_else(|| listed.map(Into::into));
        let why = "it does not say its name, and no member has this address in GET /cluster: write the address of its \
                   restapi.connect_address";
        name.map(|name| (name, status)).ok_or_else(|| why.into())
    }

    /// Base addresses of the members' REST APIs.
    pub fn addresses(&self) -> impl Iterator<Item = &str> {
        let members = self.directory.iter().flat_map(|directory| directory.members.values());
        members.filter_map(|listed| listed.api_url.as_deref().map(api_base))
    }

    /// Addresses at which a member answered the last time.
    pub fn answering(&self) -> impl Iterator<Item = &str> {
        let answers = |attempt: &Attempt| matches!(attempt, Attempt::Member(_));
        self.attempts.iter().filter(move |(_, attempt)| answers(attempt)).map(|(base, _)| base.as_str())
    }

    /// Whether the member at this address answers at the one that it names itself.
    pub fn is_alias(&self, base: &str) -> bool {
        let Some(Attempt::Member(name)) = self.attempts.get(base) else { return false };
        let listed = self.directory.as_ref().and_then(|directory| directory.members.get(name));
        let own = listed.and_then(|listed| listed.api_url.as_deref()).map(api_base);
        own.is_some_and(|own| {
            own != base && self.attempts.get(own).is_some_and(|a| *a == Attempt::Member(name.clone()))
        })
    }

    /// Who answered without being listed (yet).
    pub fn strangers(&self) -> impl Iterator<Item = &str> {
        let listed = |name: &String| self.directory.as_ref().is_some_and(|d| d.members.contains_key(name));
        self.answers.keys().filter(move |name| !listed(name)).map(String::as_str)
    }

    /// The keys that a store would hold now.
    ///
    /// # Errors
    /// When no member answers: a sentence that names each address and says why.
    pub fn read(&mut self, mutants: &Mutants, now: Time) -> Result<StoreRead, String> {
        let view = self.view(mutants, now)?;
        Ok(StoreRead {
            store: STORE.into(),
            raft_term: 0,
            revision: REVISION,
            keys: view.keys(true),
            leader_ttl: None,
            beside: Vec::new(),
            // The word of the leader is what decisions rest on: they end with it.
            started: view.leader.map_or(view.newest, |(_, answer)| answer.started),
        })
    }

    /// The same without positions in the log, which always change: what is worth telling at once.
    ///
    /// # Errors
    /// As [`Members::read`].
    pub fn outline(&mut self, mutants: &Mutants, now: Time) -> Result<Keys, String> {
        Ok(self.view(mutants, now)?.keys(false))
    }

    fn view(&mut self, mutants: &Mutants, now: Time) -> Result<View<'_>, String> {
        if self.answering().next().is_none() {
            return Err(format!("no member of {} answers: {}", self.scope, self.failures().join("; ")));
        }
        let Some(directory) = &self.directory else {
            let why = self.unlisted.as_deref().unwrap_or("it has not answered yet");
            return Err(format!("who the members of {} are is not known: {why}", self.scope));
        };
        let max_age = if mutants.obey(Rule::FactAge) { self.max_age } else { Duration::MAX };
        let is_listed = |name: &&String| directory.members.contains_key(*name);
        let fresh = |answer: &&Answer| now.since(answer.started) <= max_age;
        let mut answers: BTreeMap<&String, &Answer> =
            self.answers.iter().filter(|(name, answer)| is_listed(name) && fresh(answer)).collect();
        let newest = answers.values().map(|answer| answer.started).max();
        let Some(newest) = newest else {
            return Err(format!("nobody who answers is a member of {} in GET /cluster", self.scope));
        };
        let mut problems = self.failures();
        let leads = |answer: &&Answer| answer.claim.is_some();
        match mutants.obey(Rule::OneSystem) {
            true => {
                self.system = most_said(&answers, self.system.take());
                problems.extend(leave_out_strangers(&mut answers, self.system.as_ref()));
            }
            false => {
                let first = answers.values().copied().find(leads);
                self.system = first.and_then(|answer| answer.status.system_id.clone());
            }
        }
        let (leader, contested) = leader(&answers, mutants);
        problems.extend(contested);
        Ok(View { directory, answers, leader, newest, system: self.system.as_ref(), problems })
    }

    /// Each address that fails, and why.
    fn failures(&self) -> Vec<String> {
        let why = |(base, attempt): (&String, &Attempt)| match attempt {
            Attempt::Failed(why) => Some(format!("{base}: {why}")),
            Attempt::Member(_) => None,
        };
        self.attempts.iter().filter_map(why).chain(self.unlisted.clone()).collect()
    }
}

/// The system identifier of more than half of the answers that tell one, or the one that was known, while nobody has a
/// majority against it.
fn most_said(answers: &BTreeMap<&String, &Answer>, known: Option<String>) -> Option<String> {
    let mut count: BTreeMap<&String, usize> = BTreeMap::new();
    for id in answers.values().filter_map(|answer| answer.status.system_id.as_ref()) {
        *count.entry(id).or_default() += 1;
    }
    let all: usize = count.values().sum();
    let most = count.into_iter().find(|(_, n)| n * 2 > all).map(|(id, _)| id.clone());
    most.or(known)
}

/// Leaves out who answers for another system, and says so.
fn leave_out_strangers(answers: &mut BTreeMap<&String, &Answer>, system: Option<&String>) -> Vec<String> {
    let mut said = Vec::new();
    answers.retain(|name, answer| match &answer.status.system_id {
        Some(other) if Some(other) != system => {
            said.push(match system {
                Some(ours) => format!("{name} answers for system {other}, but the cluster is {ours}"),
                None => format!("{name} answers for system {other}, and others for another one"),
            });
            false
        }
        _ => true,
    });
    said
}

/// Who leads, and what is to be said if nobody can tell.
fn leader<'a>(
    answers: &BTreeMap<&'a String, &'a Answer>,
    mutants: &Mutants,
) -> (Option<(&'a String, &'a Answer)>, Option<String>) {
    let claiming: Vec<(&String, &Answer)> =
        answers.iter().filter(|(_, answer)| answer.claim.is_some()).map(|(name, a)| (*name, *a)).collect();
    if !mutants.obey(Rule::NewestClaim) {
        return (claiming.first().copied(), None);
    }
    let wins = |(name, answer): &&(&String, &Answer)| {
        claiming.iter().all(|(other, its)| other == name || outdoes(answer, its))
    };
    let leader = claiming.iter().find(wins).copied();
    let names: Vec<&str> = claiming.iter().map(|(name, _)| name.as_str()).collect();
    let contested = (names.len() > 1).then(|| match leader {
        Some((name, _)) => {
            format!("{} all say that they hold the lock: {name} took it last", names.join(", "))
        }
        None => {
            format!("{} all say that they hold the lock, and who took it last is not known", names.join(", "))
        }
    });
    (leader, contested)
}

/// What is known at one moment.
struct View<'a> {
    directory: &'a Directory,
    /// Those that count.
    answers: BTreeMap<&'a String, &'a Answer>,
    leader: Option<(&'a String, &'a Answer)>,
    newest: Time,
    system: Option<&'a String>,
    problems: Vec<String>,
}

impl View<'_> {
    fn keys(&self, positions: bool) -> Keys {
        let mut keys: BTreeMap<String, Vec<u8>> = BTreeMap::new();
        for (name, listed) in &self.directory.members {
            let value = member(listed, self.answers.get(name).copied(), positions);
            keys.insert(format!("members/{name}"), value.to_string().into_bytes());
        }
        if let Some((name, answer)) = self.leader {
            keys.insert("leader".into(), name.clone().into_bytes());
            if let Some(at) = answer.status.location.filter(|_| positions) {
                keys.insert("status".into(), json!({ "optime": at.0 }).to_string().into_bytes());
            }
        }
        if let Some(system) = self.system {
            keys.insert("initialize".into(), system.clone().into_bytes());
        }
        if !self.directory.sync.is_empty() {
            let list = json!({ "sync_standby": self.directory.sync.join(",") });
            keys.insert("sync".into(), list.to_string().into_bytes());
        }
        keys.insert("config".into(), self.directory.config.clone());
        if !self.problems.is_empty() {
            keys.insert(PROBLEMS.into(), json!(self.problems).to_string().into_bytes());
        }
        let stored = |value| StoredValue { value, revision: REVISION };
        keys.into_iter().map(|(key, value)| (key, stored(value))).collect()
    }
}

/// A member's key: what it says of itself, or what the others know of it while it is silent. Then its role is unknown.
fn member(listed: &Listed, answer: Option<&Answer>, positions: bool) -> Value {
    let mut key = Map::new();
    let mut put = |name: &str, value: Option<Value>| {
        key.extend(value.filter(|value| !value.is_null()).map(|value| (name.to_string(), value)));
    };
    put("conn_url", listed.conn_url.clone().map(Value::from));
    put("api_url", listed.api_url.clone().map(Value::from));
    put("tags", Some(listed.tags.clone()));
    match answer.map(|answer| &answer.status) {
        Some(status) => {
            put("state", Some(status.state.clone().into()));
            put("role", status.role.map(|role| role.word().into()));
            put("timeline", status.timeline.map(|timeline| timeline.0.into()));
            put("version", status.version.clone().map(Value::from));
            let position = status.location.or(status.replayed).filter(|_| positions);
            put("xlog_location", position.map(|at| at.0.into()));
        }
        None => {
            put("state", Some(listed.state.clone().into()));
            put("timeline", listed.timeline.map(Value::from));
        }
    }
    Value::Object(key)
}

#[cfg(test)]
mod tests;
