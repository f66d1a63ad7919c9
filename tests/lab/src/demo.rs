//! The demo: one cluster, two write poolers, the same switchover and the same kill. An agent moves one of the poolers,
//! Patroni's classic callback the other.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::agent;
use crate::event::{self, Event, Happening, Seen};
use crate::lab::Lab;
use crate::load::{Load, LoadSpec};
use crate::pgbouncer::{APP_PASSWORD, APP_USER, DATABASE};
use crate::progress::Progress;
use crate::report::human;
use crate::spec::{Pooler, Spec, Store};
use crate::store::Dcs;

/// How long clients may take to recover. The classic way needs PgBouncer's back-off of 15 s beside the failover itself.
const RECOVERY: Duration = Duration::from_secs(120);

/// The store (etcd has three servers), three members, a write and a read pooler with agents, and a write pooler moved
/// the classic way.
pub fn spec(agent: PathBuf, dcs: Dcs) -> Spec {
    let store = dcs.store(3);
    let spec = Spec { agent: Some(agent), hooks: store.has_agents_keys(), store, ..Spec::default() };
    spec.pooler(Pooler::write()).pooler(Pooler::read()).pooler(Pooler::classic())
}

/// Plays the demo with this plan in this folder, prints the table, and leaves the lab up. A demo that is there already is ended first.
pub async fn run(spec: Spec, dir: &Path, clients: usize) -> Result<()> {
    let progress = Progress::shown();
    if dir.exists() {
        progress.step(&format!("ending the demo that is up in {}", dir.display()));
        Lab::attach(dir)?.down().await?;
    }
    let spec = Spec { dir: Some(dir.to_path_buf()), stays_up: true, ..spec };
    let mut lab = Lab::up(spec, &progress).await?;
    let events = play(&mut lab, clients, &progress).await.with_context(|| {
        format!("the demo failed; the lab is still up in {} (end it with `make demo-down`)", dir.display())
    })?;
    println!(
        "\n{}{}\n{}To end it: make demo-down",
        table(&events),
        note(&lab.state().spec.store),
        how_to_look(&lab)?
    );
    Ok(())
}

async fn play(lab: &mut Lab, clients: usize, progress: &Progress) -> Result<Vec<Event>> {
    let write = Load::start(LoadSpec::writes(lab.pooler_address("write")?, clients)).await?;
    let classic = Load::start(LoadSpec::writes(lab.pooler_address("classic")?, clients)).await?;
    progress
        .step(&format!("{clients} clients commit through `write` (pgsquire), {clients} through `classic`"));
    let loads = [("pgsquire", &write), ("classic", &classic)];
    let mut events = Vec::new();
    for happening in [Happening::Switchover, Happening::Kill] {
        progress.step(match happening {
            Happening::Switchover => "planned switchover ...",
            Happening::Kill => {
                "SIGKILL to the primary and its Patroni (its lease of 20 s must end first) ..."
            }
        });
        let event = event::measure(lab, happening, &loads, RECOVERY).await?;
        progress.step(&format!("{} follows {}; all clients commit again", event.to, event.from));
        lab.start_host(&event.from)?;
        lab.wait_healthy(RECOVERY).await?;
        progress.step("cluster healthy again");
        events.push(event);
    }
    write.stop(Duration::from_secs(5)).await;
    classic.stop(Duration::from_secs(5)).await;
    Ok(events)
}

/// What one has to know to read the table; nothing where Patroni's hooks are in use.
fn note(store: &Store) -> String {
    if store.has_agents_keys() {
        return format!("Store: {}\n", store.label());
    }
    format!(
        "Store: {}. So agents cannot drain and there are no hooks:\nclients may see errors at a planned switchover, too.\n",
        store.label()
    )
}

/// One line of the table.
type Figure = fn(&Seen) -> String;

/// What the clients saw, the loads side by side.
pub fn table(events: &[Event]) -> String {
    let mut text = String::from("What the clients saw\n");
    for event in events {
        let what = match event.happening {
            Happening::Switchover => "Planned switchover",
            Happening::Kill => "SIGKILL of the primary",
        };
        let title = format!("{what}, {} -> {}", event.from, event.to);
        row(&mut text, &title, event.seen.iter().map(|s| s.load.clone()));
        let lines: [(&str, Figure); 4] = [
            ("  longest time without a commit", |s| human(s.report.outage)),
            ("  new primary writable -> first commit", |s| human(s.writable_to_first_commit)),
            ("  new primary writable -> every client served", |s| human(s.writable_to_all_clients)),
            ("  errors (clients that saw any)", |s| {
                format!("{} ({})", s.report.errors, s.report.clients_with_errors)
            }),
        ];
        for (name, value) in lines {
            row(&mut text, name, event.seen.iter().map(value));
        }
    }
    text
}

fn row(text: &mut String, name: &str, values: impl Iterator<Item = String>) {
    let values: String = values.map(|v| format!("{v:>16}")).collect();
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{name:<46}{values}");
}

/// Commands to look at a lab that is up.
pub fn how_to_look(lab: &Lab) -> Result<String> {
    let mut text = format!("The lab is up in {}. To look at it:\n", lab.dir().display());
    let state = lab.state();
    for pooler in &state.spec.poolers {
        let address = lab.pooler_address(&pooler.name)?;
        let _ = writeln!(
            text,
            "  psql 'host={} port={} user={APP_USER} password={APP_PASSWORD} dbname={DATABASE}'   # through `{}`",
            address.ip(),
            address.port(),
            pooler.name,
        );
    }
    for host in state.hosts.iter().filter(|h| state.has_agent(h)) {
        let line = agent::program_line(state, host);
        let words = if state.spec.poolers.iter().any(|p| p.name == host.name) {
            "status | explain | events"
        } else {
            "status"
        };
        let _ = writeln!(text, "  {line} {words}");
    }
    let leader = state.hosts_of(crate::state::HostRole::Member).next().context("the lab has no members")?;
    let _ = writeln!(text, "  curl -s http://{}/cluster", state.socket(leader, crate::patroni::REST_PORT));
    Ok(text)
}
