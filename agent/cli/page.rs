//! The status page as the commands read it. Only what they show, and forgiving: during an upgrade the daemon is
//! older than the command for a while.

use super::failure::Failure;
use crate::control::Answer;
use crate::control::client::Client;
use pgsquire_core::rule::Rule;
use pgsquire_core::time::Human;
use serde::{Deserialize, Serialize};
use std::time::Duration;

macro_rules! page {
    ($($(#[doc = $doc:literal])+ $name:ident { $($field:ident: $type:ty,)+ })+) => {
        $($(#[doc = $doc])+
        #[derive(Debug, Clone, Default, Deserialize, Serialize)]
        #[serde(default)]
        pub(super) struct $name { $(pub $field: $type,)+ })+
    };
}

page! {
    /// All of it.
    Page {
        at: u64,
        node: String,
        mode: String,
        clusters: Vec<Cluster>,
        local: Option<Local>,
        poolers: Vec<Pooler>,
        contradictions: Vec<String>,
        agent: Agent,
    }
    /// The shell about itself.
    Agent {
        version: String,
        snapshot_age_ms: u64,
        alive: bool,
        notes: Vec<String>,
        journal: Journal,
    }
    /// The flight recorder's file.
    Journal { lost: u64, trouble: Option<String>, }
    /// Why something is so.
    Reason { rule: String, text: String, }
    /// An answer that carries its own end.
    Verdict { up: bool, reason: Reason, valid_until: u64, }
    /// How well something is known.
    Knowledge { known: bool, age_ms: Option<u64>, why: Option<String>, }
    /// A server's address.
    Endpoint { host: String, port: u16, }
    /// How new the view is.
    Term { timeline: Option<u32>, }
    /// One cluster.
    Cluster {
        name: String,
        store: Knowledge,
        term: Option<Term>,
        leader: Option<String>,
        writable: bool,
        writable_reason: Reason,
        pause: bool,
        standby_cluster: bool,
        members: Vec<Member>,
        away: Option<Away>,
        holding: Option<Reason>,
        problems: Vec<String>,
        switch: Switch,
    }
    /// What verdicts rest on while the store is away.
    Away { policy: String, leader: Option<String>, reason: Reason, ends_in_ms: Option<u64>, }
    /// What happens around a switch.
    Switch {
        hold: Option<Hold>,
        stopping: Option<String>,
        poolers: Vec<Peer>,
        registry: Vec<String>,
        without: Option<String>,
        lease_ms: Option<u64>,
        troubles: Vec<String>,
    }
    /// This host's pools wait.
    Hold { from: String, why: String, since_ms: u64, ends_in_ms: u64, }
    /// Another agent.
    Peer { node: String, member: Option<String>, says: String, }
    /// One member.
    Member {
        name: String,
        role: Option<String>,
        state: String,
        endpoint: Option<Endpoint>,
        timeline: Option<u32>,
        lag: Option<u64>,
        tags: Vec<String>,
        version: Option<String>,
    }
    /// The server on this host.
    Local { server: Knowledge, member: Option<String>, in_recovery: Option<bool>, primary: Verdict, }
    /// One PgBouncer process.
    Pooler {
        name: String,
        ini: String,
        files: Knowledge,
        console: Knowledge,
        version: Option<String>,
        pool: Verdict,
        routes: Vec<Route>,
        doing: Option<String>,
        next: Vec<Planned>,
        troubles: Vec<String>,
    }
    /// One route.
    Route {
        database: String,
        to: String,
        cluster: String,
        members: Vec<String>,
        target: Option<Endpoint>,
        reason: Reason,
        on_disk: Option<Endpoint>,
        loaded: Option<Endpoint>,
        links: u32,
        stale_links: u32,
        verified: bool,
        paused: bool,
    }
    /// An order that would be given.
    Planned { order: String, reason: Reason, }
}

impl Away {
    /// Which branch of `on_dcs_loss` is in force.
    pub fn sentence(&self) -> String {
        let policy = &self.policy;
        match (&self.leader, self.ends_in_ms) {
            (Some(leader), Some(ms)) => {
                let left = Human(Duration::from_millis(ms));
                format!(
                    "the store is away (on_dcs_loss = {policy}): {leader} is vouched for, {left} at a time"
                )
            }
            _ => {
                format!("the store is away (on_dcs_loss = {policy}): nobody is vouched for, verdicts are red")
            }
        }
    }
}

impl Page {
    /// The daemon's next page; none when there is nothing new within the client's patience.
    pub fn poll(daemon: &mut Client) -> Result<Option<(Page, serde_json::Value)>, Failure> {
        match daemon.poll()? {
            None => Ok(None),
            Some(Answer::Status(json)) => match serde_json::from_value(without_nulls(json.clone())) {
                Ok(page) => Ok(Some((page, json))),
                Err(e) => Err(Failure::Failed(format!(
                    "the daemon's status cannot be read ({e}): is it of another version? restart it"
                ))),
            },
            Some(other) => Err(Failure::Failed(format!("the daemon's answer is strange: {other:?}"))),
        }
    }

    /// The daemon's page.
    pub fn read(daemon: &mut Client) -> Result<(Page, serde_json::Value), Failure> {
        let silent =
            || Failure::Unreachable("the daemon does not answer; see `journalctl -u pgsquire`".to_owned());
        Page::poll(daemon)?.ok_or_else(silent)
    }

    /// Whether a verdict is up now.
    pub fn is_up(&self, verdict: &Verdict) -> bool {
        let now = self.at.saturating_add(self.agent.snapshot_age_ms.saturating_mul(1_000));
        verdict.up && now <= verdict.valid_until
    }

    /// How old a fact is now, or why it is not known.
    pub fn age(&self, known: &Knowledge) -> String {
        let age = known.age_ms.map(|ms| Human(Duration::from_millis(ms + self.agent.snapshot_age_ms)));
        match (known.known, age, &known.why) {
            (true, Some(age), _) => format!("{age} old"),
            (true, None, _) => "known".to_owned(),
            (false, Some(age), Some(why)) => format!("unknown ({why}; last answer {age} ago)"),
            (false, _, Some(why)) => format!("unknown ({why})"),
            (false, _, None) => "unknown".to_owned(),
        }
    }
}

impl Hold {
    /// The hold in one sentence.
    pub fn sentence(&self) -> String {
        let human = |ms: u64| Human(Duration::from_millis(ms));
        let (since, left) = (human(self.since_ms), human(self.ends_in_ms));
        format!("clients of {} wait since {since}, at most {left} more: {}", self.from, self.why)
    }
}

impl Reason {
    /// What the rule says, if this version knows it.
    pub fn sentence(&self) -> &'static str {
        Rule::ALL.iter().find(|rule| rule.word() == self.rule).map_or("", |rule| rule.sentence().trim())
    }
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} [{}]", self.text, self.rule)
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&crate::config::units::authority(&self.host, self.port))
    }
}

/// What is not known is left out, so that it reads as the empty value whatever its type.
fn without_nulls(mut value: serde_json::Value) -> serde_json::Value {
    match &mut value {
        serde_json::Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(|value| *value = without_nulls(value.take()));
        }
        serde_json::Value::Array(list) => {
            list.iter_mut().for_each(|value| *value = without_nulls(value.take()));
        }
        _ => {}
    }
    value
}

/// An address, or a sign that there is none.
pub(super) fn place(endpoint: Option<&Endpoint>) -> String {
    endpoint.map_or_else(|| "-".to_owned(), Endpoint::to_string)
}
