//! The questions. Each has its own deadline, so that a member that hangs delays nobody else.

use crate::clock;
use crate::patroni::get;
use pgsquire_core::time::Time;
use reqwest::Client;
use tokio::time::{Instant, sleep_until};

/// What became of a question.
pub(super) struct Heard {
    /// Who was asked.
    pub base: String,
    /// When.
    pub began: Instant,
    /// When, on the clock of facts.
    pub started: Time,
    /// What.
    pub what: What,
}

/// An answer, or why there is none.
pub(super) enum What {
    /// Code and body of `GET /primary`; which round of questions it belongs to comes first.
    Status(u64, Result<(u16, Vec<u8>), String>),
    /// Bodies of `GET /cluster` and `GET /config`.
    List(Result<(Vec<u8>, Vec<u8>), String>),
}

/// Asks a member at that time whether it leads, and how its server is: one answer says both.
pub(super) async fn status(client: Result<Client, String>, base: String, round: u64, at: Instant) -> Heard {
    sleep_until(at).await;
    let (began, started) = (Instant::now(), clock::now());
    let answer = match client {
        Ok(client) => get(&client, &format!("{base}/primary")).await,
        Err(why) => Err(why),
    };
    Heard { base, began, started, what: What::Status(round, answer) }
}

/// Asks a member who is there, and for the dynamic configuration.
pub(super) async fn list(client: Result<Client, String>, base: String) -> Heard {
    let (began, started) = (Instant::now(), clock::now());
    let answer = match client {
        Ok(client) => both(&client, &base).await,
        Err(why) => Err(why),
    };
    Heard { base, began, started, what: What::List(answer) }
}

async fn both(client: &Client, base: &str) -> Result<(Vec<u8>, Vec<u8>), String> {
    Ok((page(client, base, "cluster").await?, page(client, base, "config").await?))
}

async fn page(client: &Client, base: &str, name: &str) -> Result<Vec<u8>, String> {
    match get(client, &format!("{base}/{name}")).await {
        Ok((200, body)) => Ok(body),
        Ok((code, _)) => Err(format!("GET /{name} answered HTTP {code}")),
        Err(why) => Err(format!("GET /{name}: {why}")),
    }
}
