//! What `pg_isready` does: the first words of a login, and whether the server would go on with it.
//!
//! A postmaster that shuts down still takes connections, and starts a process for each that says so to whoever speaks
//! first. It does not end before all of those have: a bare connection that says nothing would hold up the shutdown, and
//! with it a switchover, until `authentication_timeout`. So no bare connection is kept before the server has said that it
//! is not shutting down.

use super::tcp::{self, DEADLINE, NoConnection};
use pgsquire_core::topology::Endpoint;
use std::io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Length, protocol 3.0, parameters. Nobody logs in: any name will do, and the server does not say which exist.
const HELLO: &[u8] =
    b"\0\0\0\x43\0\x03\0\0user\0pgsquire\0database\0postgres\0application_name\0pgsquire\0\0";
/// No answer to it is longer; of a longer one the beginning does.
const ANSWER_AT_MOST: usize = 4096;

/// What the server said.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pong {
    /// It would go on, or does not want us: it serves.
    Serves,
    /// It starts, stops, or is told to: it serves nobody now.
    NotNow(String),
    /// The connection ended first.
    Ended(String),
}

/// Asks on a connection of its own.
pub(super) async fn ping(endpoint: &Endpoint) -> Result<Pong, NoConnection> {
    let mut stream = tcp::connect(endpoint).await?;
    match timeout(DEADLINE, talk(&mut stream)).await {
        Err(_) => Err(NoConnection::Silent),
        Ok(Ok(pong)) => Ok(pong),
        Ok(Err(e)) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(Pong::Ended("it was closed".into())),
        Ok(Err(e)) => Ok(Pong::Ended(e.to_string())),
    }
}

async fn talk(stream: &mut TcpStream) -> io::Result<Pong> {
    stream.write_all(HELLO).await?;
    let kind = stream.read_u8().await?;
    let length = usize::try_from(stream.read_u32().await?).unwrap_or(usize::MAX);
    // To the end even if it does not matter: what is left unread makes a reset of the close, and the server logs that.
    let mut body = vec![0; length.saturating_sub(4).min(ANSWER_AT_MOST)];
    stream.read_exact(&mut body).await?;
    Ok(if kind == b'E' { read_error(&body) } else { Pong::Serves })
}

/// Class 57 is operator intervention: `cannot_connect_now` and its like. Every other error is about us.
fn read_error(fields: &[u8]) -> Pong {
    let field = |letter: u8| {
        let mut all = fields.split(|byte| *byte == 0);
        all.find_map(|field| field.strip_prefix(&[letter]))
    };
    match field(b'C') {
        Some(code) if code.starts_with(b"57") => {
            Pong::NotNow(String::from_utf8_lossy(field(b'M').unwrap_or(code)).into_owned())
        }
        _ => Pong::Serves,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_words_carry_their_length() {
        assert_eq!(HELLO[..4], u32::try_from(HELLO.len()).unwrap().to_be_bytes());
    }

    #[test]
    fn only_operator_intervention_means_that_it_serves_nobody() {
        let stopping = b"SFATAL\0VFATAL\0C57P03\0Mthe database system is shutting down\0\0";
        assert_eq!(read_error(stopping), Pong::NotNow("the database system is shutting down".into()));
        assert_eq!(read_error(b"SFATAL\0C28000\0Mno pg_hba.conf entry\0\0"), Pong::Serves);
        assert_eq!(read_error(b"C57P02"), Pong::NotNow("57P02".into()));
        assert_eq!(read_error(b""), Pong::Serves);
    }
}
