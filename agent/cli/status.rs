//! `pgsquire status`.

use super::failure::Failure;
use super::page::{Cluster, Page, Pooler, Route, place};
use super::paint::{self, Paint};
use super::table::{cut, labelled, table, wrap};
use super::{ask, say};
use crate::control::Request;
use std::path::Path;
use std::time::{Duration, Instant};

/// A watched page is drawn again after this, so that ages grow even when nothing changes.
const REDRAW: Duration = Duration::from_secs(1);

/// Prints the whole picture.
pub(super) fn run(config: &Path, json: bool, watch: bool) -> Result<(), Failure> {
    let mut daemon = ask(config, &Request::Status { watch })?;
    let paint = Paint::for_stdout();
    let (mut page, mut raw) = Page::read(&mut daemon)?;
    if !watch {
        return say(&if json { format!("{raw:#}\n") } else { show(&page, paint) });
    }
    daemon.patience(Some(REDRAW));
    let clear = if paint::wanted(&std::io::stdout()) { "\x1b[H\x1b[2J" } else { "" };
    loop {
        let mut age = page.agent.snapshot_age_ms;
        let drawn = Instant::now();
        say(&if json { format!("{raw}\n") } else { format!("{clear}{}", show(&page, paint)) })?;
        (page, raw) = loop {
            if let Some(next) = Page::poll(&mut daemon)? {
                break next;
            }
            if !json && !clear.is_empty() {
                age += u64::try_from(drawn.elapsed().as_millis()).unwrap_or(0);
                page.agent.snapshot_age_ms = age;
                break (page, raw);
            }
        };
    }
}

/// The page in at most 80 columns.
pub(super) fn show(page: &Page, paint: Paint) -> String {
    let mut lines = Vec::new();
    header(page, paint, &mut lines);
    for cluster in &page.clusters {
        lines.push(String::new());
        self::cluster(page, cluster, paint, &mut lines);
    }
    if let Some(local) = &page.local {
        lines.push(String::new());
        let up = page.is_up(&local.primary);
        let word = paint.judge(up, if up { "up" } else { "down" });
        lines.push(format!("{} primary: {word}", paint.bold("THIS HOST")));
        lines.extend(wrap(2, &local.primary.reason.to_string()));
        lines.extend(wrap(2, &format!("server: {}", page.age(&local.server))));
    }
    for pooler in &page.poolers {
        lines.push(String::new());
        self::pooler(page, pooler, paint, &mut lines);
    }
    lines.push(String::new());
    lines.join("\n")
}

fn header(page: &Page, paint: Paint, lines: &mut Vec<String>) {
    let name = format!("pgsquire {} on {}", page.agent.version, page.node);
    let mode =
        if page.mode == "observe" { paint.warn(" (observe: nothing is changed)") } else { String::new() };
    lines.push(format!("{}{mode}", paint.bold(&cut(&name, 48))));
    let mut warn = |text: &str| lines.extend(wrap(2, text).iter().map(|line| paint.warn(line)));
    if !page.agent.alive {
        warn("the agent has not come to a decision lately: what follows is old");
    }
    for text in page.agent.notes.iter().chain(&page.contradictions) {
        warn(text);
    }
    if page.agent.journal.lost > 0 {
        warn(&format!("{} events are not in the flight recorder's file", page.agent.journal.lost));
    }
    if let Some(trouble) = &page.agent.journal.trouble {
        warn(trouble);
    }
    if page.clusters.is_empty() && page.poolers.is_empty() {
        warn("no [[cluster]] and no [[pgbouncer]] is configured: there is nothing to follow");
    }
}

fn cluster(page: &Page, cluster: &Cluster, paint: Paint, lines: &mut Vec<String>) {
    let leader = match &cluster.leader {
        Some(name) => format!("leader {name}"),
        None => "no leader".to_owned(),
    };
    let writable = paint.judge(cluster.writable, if cluster.writable { "writable" } else { "not writable" });
    let timeline = cluster.term.as_ref().and_then(|t| t.timeline);
    let term = timeline.map(|t| format!(", timeline {t}")).unwrap_or_default();
    let name = paint.bold(&format!("CLUSTER {}", cut(&cluster.name, 24)));
    lines.push(format!("{name} {}, {writable}{term}", cut(&leader, 24)));
    lines.extend(wrap(2, &cluster.writable_reason.to_string()));
    lines.extend(wrap(2, &format!("store: {}", page.age(&cluster.store))));
    if let Some(without) = &cluster.switch.without {
        lines.extend(wrap(2, without));
    }
    let mut warn = |text: &str| lines.extend(wrap(2, text).iter().map(|line| paint.warn(line)));
    if cluster.pause {
        warn("Patroni is paused: no failover will come");
    }
    if cluster.standby_cluster {
        warn("standby cluster: nobody accepts writes");
    }
    if let Some(reason) = &cluster.holding {
        warn(&format!("nothing moves: {reason}"));
    }
    if let Some(away) = &cluster.away {
        warn(&away.sentence());
    }
    for problem in cluster.problems.iter().chain(&cluster.switch.troubles) {
        warn(problem);
    }
    if let Some(hold) = &cluster.switch.hold {
        warn(&hold.sentence());
    }
    if let Some(stopping) = &cluster.switch.stopping {
        warn(&format!("this host's member: {stopping}"));
    }
    if !cluster.switch.poolers.is_empty() {
        let ready = |peer: &&super::page::Peer| peer.says == "ready";
        let names = |list: Vec<&super::page::Peer>| {
            list.iter().map(|p| p.node.as_str()).collect::<Vec<_>>().join(", ")
        };
        let (ready, busy): (Vec<_>, Vec<_>) = cluster.switch.poolers.iter().partition(ready);
        if !ready.is_empty() {
            lines.extend(wrap(2, &format!("poolers ready to drain: {}", names(ready))));
        }
        for peer in busy {
            lines.extend(wrap(2, &format!("pooler {}: {}", peer.node, peer.says)));
        }
    }
    if cluster.members.is_empty() {
        return;
    }
    let text = |value: Option<u64>| value.map(|n| n.to_string()).unwrap_or_default();
    let row = |m: &super::page::Member| {
        let role = m.role.clone().unwrap_or_else(|| "-".to_owned());
        let timeline = text(m.timeline.map(u64::from));
        let lag = m.lag.map(bytes).unwrap_or_default();
        vec![
            m.name.clone(),
            role,
            m.state.clone(),
            place(m.endpoint.as_ref()),
            timeline,
            lag,
            m.tags.join(","),
        ]
    };
    let rows: Vec<_> = cluster.members.iter().map(row).collect();
    let heading = ["MEMBER", "ROLE", "STATE", "ADDRESS", "TL", "LAG", "TAGS"];
    lines.extend(with_heading(table(2, &heading, &rows), paint));
}

fn pooler(page: &Page, pooler: &Pooler, paint: Paint, lines: &mut Vec<String>) {
    let up = page.is_up(&pooler.pool);
    let word = paint.judge(up, if up { "up" } else { "down" });
    let version = pooler.version.as_ref().map(|v| format!(" (PgBouncer {v})")).unwrap_or_default();
    lines.push(format!("{}{version}: {word}", paint.bold(&format!("POOL {}", cut(&pooler.name, 40)))));
    lines.extend(wrap(2, &pooler.pool.reason.to_string()));
    let (files, console) = (page.age(&pooler.files), page.age(&pooler.console));
    lines.extend(wrap(2, &format!("file: {files}, console: {console}")));
    for trouble in &pooler.troubles {
        lines.extend(wrap(2, trouble).iter().map(|line| paint.warn(line)));
    }
    if let Some(doing) = &pooler.doing {
        lines.extend(labelled(2, "doing", doing));
    }
    if !pooler.next.is_empty() {
        let next: Vec<&str> = pooler.next.iter().map(|planned| planned.order.as_str()).collect();
        lines.extend(labelled(2, "next", &next.join("; ")));
    }
    if !pooler.routes.is_empty() {
        let row = |r: &Route| {
            let links = match r.stale_links {
                0 => r.links.to_string(),
                stale => format!("{} ({stale} stale)", r.links),
            };
            vec![
                r.database.clone(),
                r.to.clone(),
                wanted(r),
                place(r.loaded.as_ref()),
                links,
                state(r).to_owned(),
            ]
        };
        let rows: Vec<_> = pooler.routes.iter().map(row).collect();
        let heading = ["ENTRY", "TO", "WANTED", "LOADED", "LINKS", "STATE"];
        lines.extend(with_heading(table(2, &heading, &rows), paint));
    }
}

/// The member and its address, or several members.
pub(super) fn wanted(route: &Route) -> String {
    match (&route.target, route.members.as_slice()) {
        (Some(target), _) => target.to_string(),
        (None, []) => "stays".to_owned(),
        (None, members) => members.join(","),
    }
}

fn state(route: &Route) -> &'static str {
    match (route.paused, route.verified) {
        (true, _) => "paused",
        (false, true) => "verified",
        (false, false) => "not yet",
    }
}

fn with_heading(mut lines: Vec<String>, paint: Paint) -> Vec<String> {
    if let Some(first) = lines.first_mut() {
        *first = paint.dim(first);
    }
    lines
}

/// A number of bytes for people.
fn bytes(n: u64) -> String {
    const UNITS: [(&str, u64); 4] = [("TB", 1 << 40), ("GB", 1 << 30), ("MB", 1 << 20), ("kB", 1 << 10)];
    match UNITS.iter().find(|(_, unit)| n >= *unit) {
        Some((word, unit)) => format!("{}.{}{word}", n / unit, n % unit * 10 / unit),
        None => format!("{n}B"),
    }
}
