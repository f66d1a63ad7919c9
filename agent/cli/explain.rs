//! `pgsquire explain`.

use super::failure::Failure;
use super::page::{Cluster, Page, Pooler, Reason, Route, place};
use super::paint::Paint;
use super::status::wanted;
use super::table::{labelled, wrap};
use super::{ask, say};
use crate::control::Request;
use serde_json::json;
use std::path::Path;

/// Says why traffic goes where it goes.
pub(super) fn run(config: &Path, pool: Option<&str>, json: bool) -> Result<(), Failure> {
    let mut daemon = ask(config, &Request::Status { watch: false })?;
    let (page, _) = Page::read(&mut daemon)?;
    let page = choose(page, pool)?;
    if json {
        let clusters = &page.clusters;
        return say(&format!("{:#}\n", json!({ "clusters": clusters, "poolers": page.poolers })));
    }
    say(&show(&page, Paint::for_stdout()))
}

/// Leaves only what was asked for: a pool, or one entry of it, and the clusters it leads into.
fn choose(mut page: Page, pool: Option<&str>) -> Result<Page, Failure> {
    let Some(pool) = pool else { return Ok(page) };
    let (name, entry) = match pool.split_once('/') {
        Some((name, entry)) => (name, Some(entry)),
        None => (pool, None),
    };
    let known: Vec<String> = page.poolers.iter().map(|p| p.name.clone()).collect();
    page.poolers.retain(|p| p.name == name);
    for pooler in &mut page.poolers {
        pooler.routes.retain(|r| entry.is_none_or(|entry| r.database == entry));
    }
    if page.poolers.is_empty() {
        let known = if known.is_empty() { "none is configured".to_owned() } else { known.join(", ") };
        return Err(Failure::Failed(format!("there is no pool `{name}` here: {known}")));
    }
    if let Some(entry) = entry.filter(|_| page.poolers.iter().all(|p| p.routes.is_empty())) {
        return Err(Failure::Failed(format!("pool `{name}` has no route `{entry}`")));
    }
    let poolers = &page.poolers;
    page.clusters.retain(|c| poolers.iter().flat_map(|p| &p.routes).any(|r| r.cluster == c.name));
    Ok(page)
}

fn show(page: &Page, paint: Paint) -> String {
    let mut lines = Vec::new();
    for cluster in &page.clusters {
        self::cluster(page, cluster, paint, &mut lines);
        lines.push(String::new());
    }
    for pooler in &page.poolers {
        for route in &pooler.routes {
            self::route(page, pooler, route, paint, &mut lines);
            lines.push(String::new());
        }
        if pooler.routes.is_empty() {
            lines.push(format!("{}: no route is configured, nothing is managed", paint.bold(&pooler.name)));
            lines.push(String::new());
        }
    }
    if page.poolers.is_empty() {
        lines.push("no [[pgbouncer]] is configured: there is no traffic to explain".to_owned());
        lines.push(String::new());
    }
    lines.join("\n")
}

fn cluster(page: &Page, cluster: &Cluster, paint: Paint, lines: &mut Vec<String>) {
    lines.push(paint.bold(&format!("cluster {}", cluster.name)));
    let leader = cluster.leader.as_deref().unwrap_or("nobody");
    lines.extend(labelled(2, "leader", &format!("{leader} holds the leader key")));
    because(&cluster.writable_reason, lines);
    if let Some(reason) = &cluster.holding {
        lines.extend(labelled(2, "holding", &reason.text));
        because(reason, lines);
    }
    if let Some(away) = &cluster.away {
        lines.extend(labelled(2, "verdicts", &away.sentence()));
        because(&away.reason, lines);
    }
    if let Some(hold) = &cluster.switch.hold {
        lines.extend(labelled(2, "waiting", &hold.sentence()));
    }
    for trouble in &cluster.switch.troubles {
        lines.extend(wrap(2, trouble).iter().map(|line| paint.warn(line)));
    }
    lines.extend(labelled(2, "facts", &format!("store {}", page.age(&cluster.store))));
}

fn route(page: &Page, pooler: &Pooler, route: &Route, paint: Paint, lines: &mut Vec<String>) {
    let name = paint.bold(&format!("{}/{}", pooler.name, route.database));
    lines.push(format!("{name} must lead to {} of {}", route.to, route.cluster));
    let members =
        if route.members.is_empty() { String::new() } else { format!(" ({})", route.members.join(", ")) };
    let target = match &route.target {
        Some(target) => format!("{target}{members}"),
        None if route.members.is_empty() => "not known: it stays where it is".to_owned(),
        None => wanted(route),
    };
    lines.extend(labelled(2, "wanted", &target));
    lines.extend(labelled(2, "on disk", &place(route.on_disk.as_ref())));
    let links = match route.stale_links {
        0 => format!("{} server links", route.links),
        stale => format!("{} server links, {stale} of them elsewhere", route.links),
    };
    let state = match (route.paused, route.verified) {
        (true, _) => "paused",
        (_, true) => "verified",
        _ => "not verified yet",
    };
    lines.extend(labelled(2, "loaded", &format!("{}, {links}, {state}", place(route.loaded.as_ref()))));
    because(&route.reason, lines);
    let ages: Vec<String> = page
        .clusters
        .iter()
        .filter(|c| c.name == route.cluster)
        .map(|c| format!("store {}", page.age(&c.store)))
        .chain([
            format!("file {}", page.age(&pooler.files)),
            format!("console {}", page.age(&pooler.console)),
        ])
        .collect();
    lines.extend(labelled(2, "facts", &ages.join(", ")));
    for trouble in &pooler.troubles {
        lines.extend(wrap(2, trouble).iter().map(|line| paint.warn(line)));
    }
}

/// The facts that decided, and the rule.
fn because(reason: &Reason, lines: &mut Vec<String>) {
    lines.extend(labelled(2, "because", &reason.text));
    lines.extend(labelled(2, "rule", &format!("{}: {}", reason.rule, reason.sentence())));
}

#[cfg(test)]
mod tests {
    use super::*;
    use pgsquire_core::config::{Mode, OnDcsLoss, RouteTo};
    use pgsquire_core::rule::{Reason, Rule};
    use pgsquire_core::status::*;
    use pgsquire_core::time::Time;
    use pgsquire_core::topology::{Endpoint, Role};
    use pgsquire_core::wal::{Lsn, Timeline};

    fn known(age_ms: u64) -> Knowledge {
        Knowledge { known: true, age_ms: Some(age_ms), why: None }
    }

    fn verdict(up: bool) -> Verdict {
        let reason = Reason::new(Rule::PrimaryUp, "pg1 holds the leader key");
        Verdict { up, reason, valid_until: Time::from_micros(9_000_000), holding: None }
    }

    /// A page as the daemon of this version sends it.
    pub(crate) fn page() -> Page {
        let endpoint = || Some(Endpoint { host: "fd00::17".to_owned(), port: 5432 });
        let route = RouteStatus {
            database: "app".to_owned(),
            to: RouteTo::Primary,
            cluster: "main".to_owned(),
            members: vec!["pg1".to_owned()],
            target: endpoint(),
            reason: Reason::new(Rule::WritableLeader, "pg1 answers that it accepts writes on timeline 3"),
            on_disk: endpoint(),
            loaded: endpoint(),
            links: 12,
            stale_links: 2,
            verified: false,
            paused: false,
        };
        let planned = PlannedOrder {
            order: "write /etc/pgbouncer/pgbouncer.ini".to_owned(),
            reason: Reason::new(Rule::WriteDifference, "app leads to 10.0.0.2, wanted is 10.0.0.1"),
        };
        let status = Status {
            at: Time::from_micros(1_000_000),
            node: "pg1".to_owned(),
            mode: Mode::Observe,
            clusters: vec![ClusterStatus {
                name: "main".to_owned(),
                store: known(300),
                term: None,
                leader: Some("pg1".to_owned()),
                writable: true,
                writable_reason: Reason::new(Rule::WritableLeader, "pg1 said so 0.3s ago"),
                pause: true,
                standby_cluster: false,
                members: vec![MemberLine {
                    name: "pg1".to_owned(),
                    role: Some(Role::Primary),
                    state: "running".to_owned(),
                    endpoint: endpoint(),
                    timeline: Some(Timeline(3)),
                    lsn: Some(Lsn(77)),
                    lag: Some(17_000_000),
                    version: None,
                    tags: vec!["nofailover=true".to_owned()],
                }],
                away: Some(AwayStatus {
                    policy: OnDcsLoss::Confirm,
                    leader: Some("pg1".to_owned()),
                    reason: Reason::new(Rule::StoreAway, "2 of 3 members' word vouches for pg1"),
                    ends_in_ms: Some(2_400),
                }),
                holding: None,
                problems: vec![],
                switch: Default::default(),
            }],
            local: Some(LocalStatus {
                server: known(100),
                member: Some("pg1".to_owned()),
                in_recovery: Some(false),
                timeline: Some(Timeline(3)),
                primary: verdict(true),
            }),
            poolers: vec![PoolerStatus {
                name: "write".to_owned(),
                ini: "/etc/pgbouncer/pgbouncer.ini".to_owned(),
                files: known(2_000),
                console: Knowledge { known: false, age_ms: None, why: Some("never answered".to_owned()) },
                version: Some("1.18".to_owned()),
                pool: verdict(false),
                routes: vec![route],
                doing: None,
                next: vec![planned],
                troubles: vec!["the console refuses our user: add it to admin_users".to_owned()],
            }],
            contradictions: vec![],
        };
        let mut page: Page =
            serde_json::from_value(serde_json::to_value(status).expect("json")).expect("page");
        page.agent.version = "0.1.0".to_owned();
        page.agent.alive = true;
        page
    }

    #[test]
    fn the_reason_is_there_with_its_rule_and_the_age_of_its_facts() {
        let text = show(&choose(page(), Some("write/app")).expect("chosen"), Paint::none());
        for part in [
            "write/app must lead to primary of main",
            "wanted   [fd00::17]:5432 (pg1)",
            "12 server links, 2 of them elsewhere",
            "pg1 answers that it accepts writes on timeline 3",
            "writable-leader: A write route moves only to a leader",
            "store 300ms old, file 2.0s old, console unknown",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        assert!(choose(page(), Some("nosuch")).is_err() && choose(page(), Some("write/nosuch")).is_err());
    }

    #[test]
    fn everything_fits_80_columns() {
        let paint = Paint::none();
        let texts = [
            show(&page(), paint),
            super::super::status::show(&page(), paint),
            super::super::plan::show(&page(), paint),
        ];
        for line in texts.iter().flat_map(|text| text.lines()) {
            assert!(line.chars().count() <= 80, "{line}");
        }
    }

    #[test]
    fn the_picture_shows_what_matters() {
        let text = super::super::status::show(&page(), Paint::none());
        for part in [
            "observe: nothing is changed",
            "CLUSTER main leader pg1, writable",
            "Patroni is paused",
            "16.2MB",
            "primary: up",
            "POOL write (PgBouncer 1.18): down",
            "12 (2 stale)",
            "admin_users",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }

    #[test]
    fn a_page_of_another_version_is_read_as_far_as_it_goes() {
        let page: Page =
            serde_json::from_str(r#"{"node":"x","new":1,"clusters":[{"name":"m"}]}"#).expect("page");
        assert!(super::super::status::show(&page, Paint::none()).contains("CLUSTER m"));
    }
}
