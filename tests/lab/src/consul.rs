//! Consul: one server on its host.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use crate::http::Http;
use crate::state::{Host, State};

/// Where clients connect, usually.
pub const HTTP_PORT: u16 = 8500;
/// Where agents find each other, usually.
pub const SERF_PORT: u16 = 8301;
/// Where servers are asked by agents, usually.
pub const SERVER_PORT: u16 = 8300;

/// The lab's own copy of the binary: the service user need not get into the cache.
pub fn program(state: &State) -> PathBuf {
    state.dir.join("bin/consul")
}

/// The command that runs the server.
pub fn command(state: &State, host: &Host) -> Vec<String> {
    let config = format!("-config-file={}", host.file("consul.json").display());
    vec![program(state).display().to_string(), "agent".into(), config]
}

/// Writes its configuration: a server that is a cluster by itself.
pub fn configure(state: &State, host: &Host) -> Result<()> {
    let config = json!({
        "node_name": host.name,
        "server": true,
        "bootstrap_expect": 1,
        "data_dir": host.file("data"),
        "bind_addr": host.address,
        "client_addr": host.address,
        "ports": {
            "http": state.network.port(HTTP_PORT),
            "serf_lan": state.network.port(SERF_PORT),
            "server": state.network.port(SERVER_PORT),
            "dns": -1, "grpc": -1, "serf_wan": -1,
        },
        "performance": { "raft_multiplier": 1 },
        "disable_update_check": true,
    });
    let file = host.file("consul.json");
    fs::write(&file, config.to_string()).with_context(|| format!("writing {}", file.display()))
}

/// Fails unless the server leads itself and knows its own node: before that it makes no sessions.
pub async fn answers(state: &State, host: &Host, http: &Http) -> Result<()> {
    let url = format!("http://{}/v1/catalog/nodes", state.socket(host, HTTP_PORT));
    let nodes = http.json(&url).await?;
    let known = nodes.as_array().into_iter().flatten().any(|node| node["Node"] == host.name.as_str());
    ensure!(known, "{url} does not know {}: {nodes}", host.name);
    Ok(())
}
