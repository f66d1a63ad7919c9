//! etcd: one server on each of its hosts.

use std::net::SocketAddrV4;

use anyhow::{Result, ensure};

use crate::http::Http;
use crate::state::{Host, HostRole, State};

/// Where clients connect, usually.
pub const CLIENT_PORT: u16 = 2379;
/// Where its servers talk to each other, usually.
pub const PEER_PORT: u16 = 2380;

/// The client addresses of all servers.
pub fn endpoints(state: &State) -> Vec<SocketAddrV4> {
    state.hosts_of(HostRole::Etcd).map(|h| state.socket(h, CLIENT_PORT)).collect()
}

/// Fails unless the server of this host says that it is healthy.
pub async fn answers(state: &State, host: &Host, http: &Http) -> Result<()> {
    let url = format!("http://{}/health", state.socket(host, CLIENT_PORT));
    let health = http.json(&url).await?;
    ensure!(health["health"] == "true", "{url} says {health}");
    Ok(())
}

/// The command that runs the server of this host.
pub fn command(state: &State, host: &Host) -> Vec<String> {
    let client = format!("http://{}", state.socket(host, CLIENT_PORT));
    let peer = |h: &Host| format!("http://{}", state.socket(h, PEER_PORT));
    let cluster: Vec<String> =
        state.hosts_of(HostRole::Etcd).map(|h| format!("{}={}", h.name, peer(h))).collect();
    let own = peer(host);
    let data = host.file("data").display().to_string();
    let pairs = [
        ("--name", host.name.as_str()),
        ("--data-dir", &data),
        ("--listen-client-urls", &client),
        ("--advertise-client-urls", &client),
        ("--listen-peer-urls", &own),
        ("--initial-advertise-peer-urls", &own),
        ("--initial-cluster", &cluster.join(",")),
        ("--initial-cluster-state", "new"),
        ("--initial-cluster-token", &state.spec.scope),
    ]
    .map(|(k, v)| [k.to_string(), v.to_string()]);
    std::iter::once("etcd".to_string()).chain(pairs.into_iter().flatten()).collect()
}
