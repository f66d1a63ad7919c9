//! Each rule of the core is broken once, and the simulation must notice.

use crate::runs::Run;
use crate::scenarios;
use pgsquire_core::rule::Rule;

/// Worlds by chance that are tried for one rule, after the scenarios.
const WORLDS: u64 = 200;

/// The first run in which an invariant does not hold with the rule broken.
fn found(rule: Rule) -> Option<Run> {
    let directed = scenarios::all().flat_map(|scenario| (1..=3).map(move |seed| (scenario, seed)));
    let mut directed = directed.map(|(scenario, seed)| Run::scenario(scenario, seed, Some(rule)));
    let noticed = |run: &Run| run.violation.is_some();
    directed.find(noticed).or_else(|| (1..=WORLDS).map(|seed| Run::random(seed, Some(rule))).find(noticed))
}

macro_rules! mutants {
    ($($name:ident => $rule:ident,)+) => {
        $(#[test]
        fn $name() {
            let run = found(Rule::$rule).expect("nobody noticed");
            println!("{:<18} {}", Rule::$rule.word(), run.headline());
        })+

        #[test]
        fn every_rule_has_a_mutant() {
            assert_eq!([$(Rule::$rule),+], Rule::ALL);
        }
    };
}

mutants! {
    older_view => OlderView,
    strange_store => StrangeStore,
    writable_leader => WritableLeader,
    term_timeline => TermTimeline,
    term_kept => TermKept,
    two_primaries => TwoPrimaries,
    fact_age => FactAge,
    hands_off => HandsOff,
    eligible_replica => EligibleReplica,
    fallback => Fallback,
    local_server => LocalServer,
    write_difference => WriteDifference,
    reload_difference => ReloadDifference,
    login_retry => LoginRetry,
    verify_links => VerifyLinks,
    stale_ladder => StaleLadder,
    last_good => LastGood,
    back_off => BackOff,
    verdict_ends => VerdictEnds,
    primary_up => PrimaryUp,
    store_away => StoreAway,
    observe_mode => ObserveMode,
    once_only => OnceOnly,
    drain_planned => DrainPlanned,
    hold_lost => HoldLost,
    hold_on_proof => HoldOnProof,
    ack_drained => AckDrained,
    ack_gone => AckGone,
    fenced => Fenced,
    strict_fence => StrictFence,
    point_ahead => PointAhead,
    resume_when_writable => ResumeWhenWritable,
    not_into_the_drained => NotIntoTheDrained,
    resume_verified => ResumeVerified,
    no_refill => NoRefill,
    dead_man => DeadMan,
    newest_claim => NewestClaim,
    one_system => OneSystem,
}
