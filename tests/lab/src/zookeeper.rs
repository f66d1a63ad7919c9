//! ZooKeeper: one server on its host.

use std::fs;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::state::{Host, State};

/// Where clients connect, usually.
pub const CLIENT_PORT: u16 = 2181;
/// Debian puts the server and all it needs there.
const CLASS_PATH: &str = "/usr/share/java/zookeeper.jar:/usr/share/java/*";

/// The command that runs the server.
pub fn command(host: &Host) -> Vec<String> {
    let small = ["-Xmx96m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"];
    // Else it leaves a file outside of the lab's folder when it is killed.
    let java = ["java", "-XX:-UsePerfData"];
    let server = ["-cp", CLASS_PATH, "org.apache.zookeeper.server.quorum.QuorumPeerMain"];
    let config = host.file("zoo.cfg").display().to_string();
    let words = java.into_iter().chain(small).chain(server).chain([config.as_str()]);
    words.map(String::from).collect()
}

/// Writes its configuration.
pub fn configure(state: &State, host: &Host) -> Result<()> {
    let text = format!(
        "dataDir={data}\nclientPortAddress={address}\nclientPort={port}\nmaxClientCnxns=0\n\
         tickTime=1000\nmaxSessionTimeout=60000\nadmin.enableServer=false\n",
        data = host.file("data").display(),
        address = host.address,
        port = state.network.port(CLIENT_PORT),
    );
    let file = host.file("zoo.cfg");
    fs::write(&file, text).with_context(|| format!("writing {}", file.display()))
}

/// Fails unless the server says that it serves.
pub async fn answers(state: &State, host: &Host) -> Result<()> {
    let address = state.socket(host, CLIENT_PORT);
    let mut server = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
    server.write_all(b"srvr").await?;
    let mut said = String::new();
    server.read_to_string(&mut said).await.with_context(|| format!("reading from {address}"))?;
    ensure!(said.contains("Mode: standalone"), "{address} does not serve: {}", said.trim());
    Ok(())
}
