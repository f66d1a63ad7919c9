//! Health answers: a function of the last snapshot and the time at which somebody asks.

use super::Answer;
use axum::http::StatusCode;
use pgsquire_core::rule::Rule;
use pgsquire_core::status::{Status, Verdict};
use pgsquire_core::time::Time;
use serde_json::{Value, json};

/// The answer of a path that is a verdict; none: it is no such path.
pub(super) fn verdict(path: &str, status: &Status, now: Time) -> Option<Answer> {
    match path {
        "/" | "/primary" | "/master" | "/read-write" => Some(primary(status, now)),
        path => path.strip_prefix("/pool/").map(|name| pool(name, status, now)),
    }
}

/// `/liveness` and `/readiness`: about the agent alone, so that an outage of the store restarts no agent.
pub(super) fn agent(alive: bool) -> Answer {
    match alive {
        true => Answer::plain(StatusCode::OK, json!({ "up": true, "reason": "the agent works" })),
        false => {
            let body = json!({ "up": false, "reason": "the agent has not come to a decision lately" });
            Answer::plain(StatusCode::SERVICE_UNAVAILABLE, body)
        }
    }
}

fn primary(status: &Status, now: Time) -> Answer {
    match &status.local {
        Some(local) => {
            let mut answer = judge(&local.primary, now);
            answer.body["member"] = json!(local.member);
            answer.scope = status.clusters.first().map(|c| scope_of(&c.name));
            answer
        }
        None => {
            let body =
                json!({ "up": false, "reason": "this host has no PostgreSQL: [postgres] is not configured" });
            let scope = status.clusters.first().map(|c| scope_of(&c.name));
            Answer { code: StatusCode::SERVICE_UNAVAILABLE, body, scope }
        }
    }
}

fn pool(name: &str, status: &Status, now: Time) -> Answer {
    let Some(pooler) = status.poolers.iter().find(|p| p.name == name) else {
        let names: Vec<&str> = status.poolers.iter().map(|p| p.name.as_str()).collect();
        let known = if names.is_empty() { "none is configured".to_owned() } else { names.join(", ") };
        return Answer::sentence(
            StatusCode::NOT_FOUND,
            format!("there is no pool `{name}` on this host: {known}"),
        );
    };
    let mut answer = judge(&pooler.pool, now);
    answer.body["pool"] = json!(pooler.name);
    answer.scope = pooler.routes.first().map(|r| scope_of(&r.cluster));
    answer
}

/// A verdict as it stands now: past its end it is red, and says that this is why.
fn judge(verdict: &Verdict, now: Time) -> Answer {
    let up = verdict.is_up(now);
    let ended = verdict.up && !up;
    let reason: Value = match ended {
        true => format!("the facts are too old; they said: {}", verdict.reason.text).into(),
        false => verdict.reason.text.as_str().into(),
    };
    let rule = if ended { Rule::VerdictEnds } else { verdict.reason.rule };
    let mut body = json!({ "up": up, "reason": reason, "rule": rule.word() });
    if up && verdict.valid_until < Time::NEVER {
        body["valid_for_ms"] = json!(verdict.valid_until.since(now).as_millis() as u64);
    }
    if let Some(end) = verdict.holding.filter(|_| up) {
        body["holding"] = json!(true);
        body["holding_for_ms"] = json!(end.since(now).as_millis() as u64);
    }
    let code = if up { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Answer::plain(code, body)
}

/// The scope in a cluster's name: a Citus group stands behind a slash.
fn scope_of(cluster: &str) -> String {
    cluster.split('/').next().unwrap_or(cluster).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgsquire_core::config::{Mode, RouteTo};
    use pgsquire_core::rule::Reason;
    use pgsquire_core::status::{ClusterStatus, Knowledge, LocalStatus, PoolerStatus, RouteStatus};
    use std::time::Duration;

    const MADE: Time = Time::from_micros(10_000_000);
    const END: Time = Time::from_micros(12_000_000);

    fn verdict(up: bool) -> Verdict {
        Verdict {
            up,
            reason: Reason::new(Rule::PrimaryUp, "pg1 holds the key"),
            valid_until: END,
            holding: None,
        }
    }

    fn known() -> Knowledge {
        Knowledge { known: true, age_ms: Some(0), why: None }
    }

    fn status(up: bool) -> Status {
        let route = RouteStatus {
            database: "app".to_owned(),
            to: RouteTo::Primary,
            cluster: "main/0".to_owned(),
            members: Vec::new(),
            target: None,
            reason: Reason::new(Rule::HandsOff, ""),
            on_disk: None,
            loaded: None,
            links: 0,
            stale_links: 0,
            verified: false,
            paused: false,
        };
        let cluster = ClusterStatus {
            name: "main/0".to_owned(),
            store: known(),
            term: None,
            leader: None,
            writable: false,
            writable_reason: Reason::new(Rule::HandsOff, ""),
            pause: false,
            standby_cluster: false,
            members: Vec::new(),
            away: None,
            holding: None,
            problems: Vec::new(),
            switch: Default::default(),
        };
        Status {
            at: MADE,
            node: "host1".to_owned(),
            mode: Mode::Enforce,
            clusters: vec![cluster],
            local: Some(LocalStatus {
                server: known(),
                member: Some("pg1".to_owned()),
                in_recovery: Some(!up),
                timeline: None,
                primary: verdict(up),
            }),
            poolers: vec![PoolerStatus {
                name: "write".to_owned(),
                ini: String::new(),
                files: known(),
                console: known(),
                version: None,
                pool: verdict(up),
                routes: vec![route],
                doing: None,
                next: Vec::new(),
                troubles: Vec::new(),
            }],
            contradictions: Vec::new(),
        }
    }

    fn ask(path: &str, up: bool, now: Time) -> Answer {
        super::verdict(path, &status(up), now).expect("a verdict")
    }

    #[test]
    fn a_verdict_is_up_until_its_end_and_not_longer() {
        for path in ["/", "/primary", "/master", "/read-write", "/pool/write"] {
            assert_eq!(ask(path, true, MADE).code, StatusCode::OK, "{path}");
            assert_eq!(ask(path, true, END).code, StatusCode::OK, "{path}");
            let late = ask(path, true, END + Duration::from_micros(1));
            assert_eq!(late.code, StatusCode::SERVICE_UNAVAILABLE, "{path}");
            assert_eq!(late.body["rule"], "verdict-ends");
            assert_eq!(late.body["reason"], "the facts are too old; they said: pg1 holds the key");
            assert_eq!(ask(path, false, MADE).code, StatusCode::SERVICE_UNAVAILABLE, "{path}");
        }
        assert_eq!(ask("/", true, MADE).body["valid_for_ms"], 2_000);
    }

    #[test]
    fn envoy_is_told_the_scope_without_the_group() {
        assert_eq!(ask("/primary", true, MADE).scope.as_deref(), Some("main"));
        assert_eq!(ask("/pool/write", true, MADE).scope.as_deref(), Some("main"));
    }

    #[test]
    fn other_paths_are_no_verdicts() {
        for path in ["/replica", "/Primary", "/primary/", "", "/pool"] {
            assert_eq!(super::verdict(path, &status(true), MADE), None, "{path}");
        }
        assert_eq!(ask("/pool/other", true, MADE).code, StatusCode::NOT_FOUND);
    }
}
