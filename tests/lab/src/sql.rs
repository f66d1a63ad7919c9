//! Connections to PostgreSQL and to PgBouncer.

use std::net::SocketAddrV4;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

/// How long a connection by unix socket may take to be made.
const SOCKET_LIMIT: Duration = Duration::from_secs(5);

/// Connects to a unix socket.
pub async fn by_socket(folder: &Path, port: u16, user: &str, database: &str) -> Result<Client> {
    let mut config = Config::new();
    config.host_path(folder).port(port).user(user).dbname(database);
    connect(&config, SOCKET_LIMIT).await.with_context(|| format!("connecting to {}", folder.display()))
}

/// Connects to an address; without a password if that is empty. Gives up after `limit`.
pub async fn by_address(
    to: SocketAddrV4,
    user: &str,
    password: &str,
    database: &str,
    limit: Duration,
) -> Result<Client> {
    let mut config = Config::new();
    config.host(to.ip().to_string()).port(to.port()).user(user).dbname(database);
    if !password.is_empty() {
        config.password(password);
    }
    connect(&config, limit).await.with_context(|| format!("connecting to {to}"))
}

async fn connect(config: &Config, limit: Duration) -> Result<Client> {
    let connecting = config.connect(NoTls);
    let (client, connection) = tokio::time::timeout(limit, connecting)
        .await
        .map_err(|_| anyhow!("no answer in {} s", limit.as_secs()))??;
    // Ends by itself when the client is dropped or the server is gone.
    tokio::spawn(connection);
    Ok(client)
}

/// The first column of the first row.
pub async fn value(client: &Client, query: &str) -> Result<Option<String>> {
    Ok(first_value(&client.simple_query(query).await?))
}

/// The first column of the first row among these messages.
pub fn first_value(messages: &[SimpleQueryMessage]) -> Option<String> {
    messages.iter().find_map(|m| match m {
        SimpleQueryMessage::Row(row) => row.get(0).map(String::from),
        _ => None,
    })
}

/// What a server or a socket said, without the chain around it.
pub fn reason(error: &tokio_postgres::Error) -> String {
    match (error.as_db_error(), std::error::Error::source(error)) {
        (Some(db), _) => db.message().to_string(),
        (None, Some(source)) => source.to_string(),
        (None, None) => error.to_string(),
    }
}
