//! The rules of the core, by name. Every decision names the rule that made it; every rule has a switch that breaks it,
//! which only the simulation can turn (`tests/sim`).

use alloc::string::String;
use core::fmt;
use serde::Serialize;

macro_rules! rules {
    ($($(#[doc = $doc:literal])+ $variant:ident => $word:literal,)+) => {
        /// One rule. [`Rule::word`] is stable: it is shown in status, explain, events and logs.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(rename_all = "kebab-case")]
        pub enum Rule { $($(#[doc = $doc])+ $variant,)+ }

        impl Rule {
            /// All rules.
            pub const ALL: &'static [Rule] = &[$(Rule::$variant,)+];

            /// The rule's name.
            pub fn word(self) -> &'static str {
                match self { $(Rule::$variant => $word,)+ }
            }

            /// What the rule says, as one sentence.
            pub fn sentence(self) -> &'static str {
                match self { $(Rule::$variant => concat!($($doc,)+),)+ }
            }
        }
    };
}

rules! {
    /// A view of the store that is older than one already seen is refused.
    OlderView => "older-view",
    /// Another store or another system identifier is not followed until someone confirms it.
    StrangeStore => "strange-store",
    /// A write route moves only to a leader that is proved writable.
    WritableLeader => "writable-leader",
    /// A write route never moves to a timeline below the term.
    TermTimeline => "term-timeline",
    /// The term is on disk before a write route moves to it.
    TermKept => "term-kept",
    /// While two members claim to be primary on one timeline, nothing moves.
    TwoPrimaries => "two-primaries",
    /// A fact older than `max_fact_age` is unknown.
    FactAge => "fact-age",
    /// What is unknown moves nothing.
    HandsOff => "hands-off",
    /// A read route leads to running replicas within `max_lag`, without `noloadbalance`.
    EligibleReplica => "eligible-replica",
    /// A route without an eligible replica uses its fallback, or stays where it is.
    Fallback => "fallback",
    /// A local route leads to this host's PostgreSQL.
    LocalServer => "local-server",
    /// The file is written only when it differs from what is wanted, and only over the content the decision saw.
    WriteDifference => "write-difference",
    /// PgBouncer is told to RELOAD only when what it has loaded differs from the file.
    ReloadDifference => "reload-difference",
    /// After RELOAD of a moved route, server_login_retry is 0 until the route is verified.
    LoginRetry => "login-retry",
    /// A route is done only when no server link of its database leads anywhere else.
    VerifyLinks => "verify-links",
    /// Links that stay on a target that is no longer valid are reconnected, then cut.
    StaleLadder => "stale-ladder",
    /// A file that PgBouncer would not load is replaced by the last good one, with the routes of now.
    LastGood => "last-good",
    /// Failed work is repeated with growing pauses.
    BackOff => "back-off",
    /// A verdict ends with the facts it rests on.
    VerdictEnds => "verdict-ends",
    /// "primary: up" needs the leader key, a lease that has not ended, and a local server out of recovery.
    PrimaryUp => "primary-up",
    /// While the store is away a verdict needs the word of the members (`on_dcs_loss`).
    StoreAway => "store-away",
    /// In observe mode nothing is changed.
    ObserveMode => "observe-mode",
    /// A result that nobody waits for changes nothing.
    OnceOnly => "once-only",
    /// Pools that lead to a member that announces its stop wait instead of failing.
    DrainPlanned => "drain-planned",
    /// Pools wait while the primary is proved to be lost, for as long as clients can bear it.
    HoldLost => "hold-lost",
    /// A hold starts on the word of the server itself: a missing leader key never starts one.
    HoldOnProof => "hold-on-proof",
    /// `before_stop` returns when every live pooler has drained.
    AckDrained => "ack-drained",
    /// A pooler says that it has drained only when no server link leads to the old address.
    AckGone => "ack-gone",
    /// Before a promotion no pooler can write to the old primary any more.
    Fenced => "fenced",
    /// A strict fence asks the registry, not the leases: who is silent may still write.
    StrictFence => "strict-fence",
    /// Only a pool that waits is led to a leader that is not proved writable yet.
    PointAhead => "point-ahead",
    /// Clients go on when the new leader is proved writable, not when it has the lock.
    ResumeWhenWritable => "resume-when-writable",
    /// Clients do not go on into the member that is being stopped.
    NotIntoTheDrained => "not-into-the-drained",
    /// A pause ends only when what it waited for is loaded.
    ResumeVerified => "resume-verified",
    /// While databases are paused PgBouncer opens no links for them.
    NoRefill => "no-refill",
    /// No pause outlives its deadline, whoever dies.
    DeadMan => "dead-man",
    /// Of members that all say they hold the lock, the one that took it last leads; while nobody can tell, nobody does.
    NewestClaim => "newest-claim",
    /// A member that answers for another database system than most of them counts for nothing.
    OneSystem => "one-system",
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Why something is so: the rule that decided and the facts in one sentence.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reason {
    /// The rule.
    pub rule: Rule,
    /// The facts, for people.
    pub text: String,
}

impl Reason {
    /// A reason.
    pub fn new(rule: Rule, text: impl Into<String>) -> Self {
        Reason { rule, text: text.into() }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} [{}]", self.text, self.rule)
    }
}

/// Rules that are switched off. Empty and unchangeable unless the crate is built with the `mutants` feature.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mutants {
    #[cfg(feature = "mutants")]
    broken: Option<Rule>,
}

impl Mutants {
    /// Breaks one rule.
    #[cfg(feature = "mutants")]
    pub fn breaking(rule: Rule) -> Self {
        Mutants { broken: Some(rule) }
    }

    /// Whether the rule is to be obeyed.
    #[cfg(feature = "mutants")]
    pub fn obey(&self, rule: Rule) -> bool {
        self.broken != Some(rule)
    }

    /// Whether the rule is to be obeyed: always.
    #[cfg(not(feature = "mutants"))]
    pub fn obey(&self, _rule: Rule) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_unique() {
        let mut words: Vec<_> = Rule::ALL.iter().map(|r| r.word()).collect();
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Rule::ALL.len());
        assert!(Rule::ALL.iter().all(|r| !r.sentence().is_empty()));
    }
}
