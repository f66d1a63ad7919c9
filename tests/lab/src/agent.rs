//! The agent: its configuration on each host, how it is started, what it says.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::http::Http;
use crate::patroni::{POSTGRES_PORT, REST_PORT};
use crate::pgbouncer;
use crate::state::{Host, HostRole, State};
use crate::store;

/// Where its HTTP listener is, usually.
pub const HTTP_PORT: u16 = 8009;

/// The lab's own copy of the binary: readable by the service user wherever the original lies, and not replaced by the
/// next build.
pub fn program(state: &State) -> PathBuf {
    state.dir.join("bin/pgsquire")
}

/// Its configuration on this host.
pub fn config(host: &Host) -> PathBuf {
    host.file("agent.toml")
}

/// `pgsquire --config FILE`, to put a subcommand behind.
pub fn program_line(state: &State, host: &Host) -> String {
    format!("{} --config {}", program(state).display(), config(host).display())
}

/// The command that runs it.
pub fn command(state: &State, host: &Host) -> Vec<String> {
    let config = config(host).display().to_string();
    vec![program(state).display().to_string(), "--config".into(), config, "run".into()]
}

/// Its HTTP address on this host.
pub fn url(state: &State, host: &Host) -> String {
    format!("http://{}", state.socket(host, HTTP_PORT))
}

/// Writes its configuration.
pub fn configure(state: &State, host: &Host) -> Result<()> {
    let file = config(host);
    fs::write(&file, config_text(state, host)).with_context(|| format!("writing {}", file.display()))
}

fn config_text(state: &State, host: &Host) -> String {
    let folder = host.folder.display();
    let mut text = format!(
        "[node]\nname = \"{}\"\nmode = \"enforce\"\nstate_dir = \"{folder}/agent\"\n\n\
         [control]\nsocket = \"{folder}/control.sock\"\n\n[http]\nlisten = \"{}\"\n\n{}",
        host.name,
        state.socket(host, HTTP_PORT),
        cluster_table(state),
    );
    text += &match host.role {
        HostRole::Member => member_tables(state, host),
        _ => pooler_tables(state, host),
    };
    text += &format!("\n{}", state.spec.switch.table());
    if !state.spec.agent_settings.is_empty() {
        text += &format!("\n{}\n", state.spec.agent_settings);
    }
    text
}

fn cluster_table(state: &State) -> String {
    let quoted = |list: Vec<String>| list.iter().map(|s| format!("\"{s}\"")).collect::<Vec<_>>().join(", ");
    let members = state.hosts_of(HostRole::Member).map(|h| format!("http://{}", state.socket(h, REST_PORT)));
    let store = store::agent_lines(state);
    format!(
        "[[cluster]]\nscope = \"{}\"\n{store}\npatroni_hosts = [{}]\n{}\n",
        state.spec.scope,
        quoted(members.collect()),
        state.spec.agent_cluster_settings,
    )
}

fn member_tables(state: &State, host: &Host) -> String {
    format!(
        "[patroni]\nurl = \"http://{}\"\n\n[postgres]\nconninfo = \"host={} port={} dbname=postgres user=postgres\"\n",
        state.socket(host, REST_PORT),
        host.sockets().display(),
        state.network.port(POSTGRES_PORT),
    )
}

fn pooler_tables(state: &State, host: &Host) -> String {
    let mut text = String::new();
    for pooler in state.spec.poolers.iter().filter(|p| p.name == host.name) {
        text += &format!(
            "[[pgbouncer]]\nname = \"{}\"\nini = \"{}\"\nconsole = \"{}\"\n[pgbouncer.routes]\n",
            pooler.name,
            pgbouncer::ini(host).display(),
            pgbouncer::console_conninfo(state, host, pooler),
        );
        text += &pooler
            .routes
            .iter()
            .map(|(db, to)| format!("\"{db}\" = \"{}\"\n", to.word()))
            .collect::<String>();
    }
    text
}

/// One GET on its HTTP listener.
pub async fn get(state: &State, host: &Host, path: &str) -> Result<(u16, String)> {
    Http::new(Duration::from_secs(2))?.get(&format!("{}{path}", url(state, host))).await
}
