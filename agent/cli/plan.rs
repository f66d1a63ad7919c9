//! `pgsquire plan`.

use super::failure::Failure;
use super::page::{Page, Pooler};
use super::paint::Paint;
use super::table::{labelled, wrap};
use super::{ask, say};
use crate::control::Request;
use serde_json::json;
use std::path::Path;

/// Says what would be done now.
pub(super) fn run(config: &Path, json: bool) -> Result<(), Failure> {
    let mut daemon = ask(config, &Request::Status { watch: false })?;
    let (page, _) = Page::read(&mut daemon)?;
    if !json {
        return say(&show(&page, Paint::for_stdout()));
    }
    let plan =
        |p: &Pooler| json!({ "pooler": p.name, "doing": p.doing, "next": p.next, "troubles": p.troubles });
    let poolers: Vec<_> = page.poolers.iter().map(plan).collect();
    let contradictions = &page.contradictions;
    say(&format!(
        "{:#}\n",
        json!({ "mode": page.mode, "contradictions": contradictions, "poolers": poolers })
    ))
}

/// The plan in at most 80 columns.
pub(super) fn show(page: &Page, paint: Paint) -> String {
    let mut lines = Vec::new();
    if page.mode == "observe" {
        lines.push(paint.warn("observe mode: this is what would be done; nothing is"));
    }
    for contradiction in &page.contradictions {
        lines.extend(
            wrap(0, &format!("nothing is done: {contradiction}")).iter().map(|line| paint.warn(line)),
        );
    }
    for cluster in &page.clusters {
        if let Some(reason) = &cluster.holding {
            let text = format!("cluster {}: nothing moves: {reason}", cluster.name);
            lines.extend(wrap(0, &text).iter().map(|line| paint.warn(line)));
        }
    }
    for pooler in &page.poolers {
        self::pooler(pooler, paint, &mut lines);
    }
    if page.poolers.is_empty() {
        lines.push("no [[pgbouncer]] is configured: there is nothing to do".to_owned());
    }
    lines.push(String::new());
    lines.join("\n")
}

fn pooler(pooler: &Pooler, paint: Paint, lines: &mut Vec<String>) {
    let settled = pooler.next.is_empty() && pooler.doing.is_none();
    let verified = pooler.routes.iter().all(|route| route.verified);
    let word = match (settled, verified) {
        (true, true) => ": nothing to do, everything is as wanted",
        (true, false) => ": nothing to do now",
        _ => "",
    };
    lines.push(format!("{}{word}", paint.bold(&format!("pool {}", pooler.name))));
    if let Some(doing) = &pooler.doing {
        lines.extend(labelled(2, "now", doing));
    }
    for planned in &pooler.next {
        lines.extend(labelled(2, "then", &planned.order));
        lines.extend(labelled(2, "because", &planned.reason.to_string()));
    }
    for route in pooler.routes.iter().filter(|route| settled && !route.verified) {
        lines.extend(labelled(2, "waiting", &format!("{}: {}", route.database, route.reason)));
    }
    for trouble in &pooler.troubles {
        lines.extend(wrap(2, trouble).iter().map(|line| paint.warn(line)));
    }
}
