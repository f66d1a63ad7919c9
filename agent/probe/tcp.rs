//! Bare TCP connections to a server.

use nix::sys::socket::{setsockopt, sockopt};
use pgsquire_core::topology::Endpoint;
use std::io;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A connection that is not made by then is missed.
pub(super) const DEADLINE: Duration = Duration::from_millis(500);
/// An idle connection is asked after so many seconds of silence whether it lives, and again so often,
const KEEPALIVE_SECONDS: u32 = 1;
/// so many times at most,
const KEEPALIVE_COUNT: u32 = 2;
/// and is dead after so much silence once it was asked: one question without an answer.
const SILENCE_MILLIS: u32 = 2_000;

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum NoConnection {
    /// Nobody answered. It may be the network.
    Silent,
    /// Somebody, or our own kernel, said no.
    Refused(io::Error),
}

/// Connects, and asks the kernel to notice a dead far side.
pub(super) async fn connect(endpoint: &Endpoint) -> Result<TcpStream, NoConnection> {
    let address = (endpoint.host.as_str(), endpoint.port);
    let stream = match timeout(DEADLINE, TcpStream::connect(address)).await {
        Err(_) => return Err(NoConnection::Silent),
        Ok(Err(e)) if e.kind() == io::ErrorKind::TimedOut => return Err(NoConnection::Silent),
        Ok(Err(e)) => return Err(NoConnection::Refused(e)),
        Ok(Ok(stream)) => stream,
    };
    keep_alive(&stream).map_err(|e| NoConnection::Refused(e.into()))?;
    Ok(stream)
}

fn keep_alive(stream: &TcpStream) -> nix::Result<()> {
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &KEEPALIVE_SECONDS)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &KEEPALIVE_SECONDS)?;
    setsockopt(stream, sockopt::TcpKeepCount, &KEEPALIVE_COUNT)?;
    setsockopt(stream, sockopt::TcpUserTimeout, &SILENCE_MILLIS)
}

/// Waits until the connection ends and says how. What comes over it is of no interest.
pub(super) async fn ended(stream: &TcpStream) -> String {
    let mut nothing = [0; 512];
    loop {
        if let Err(e) = stream.readable().await {
            return e.to_string();
        }
        match stream.try_read(&mut nothing) {
            Ok(0) => return "it was closed".into(),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) => return e.to_string(),
        }
    }
}
