//! PgBouncer: its files, how it is started, its console.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tokio_postgres::SimpleQueryMessage;

use crate::patroni::POSTGRES_PORT;
use crate::process::{SERVICE_USER, is_root};
use crate::setup;
use crate::spec::{PgBouncerBuild, Pooler};
use crate::sql;
use crate::state::{Host, State};

/// The database behind every route.
pub const DATABASE: &str = "app";
/// The login of the applications.
pub const APP_USER: &str = "app";
/// Its password.
pub const APP_PASSWORD: &str = "app-secret";
/// What PostgreSQL and PgBouncer keep of it, as in production: with the plain password in its file PgBouncer, which has
/// one thread, would compute 4,096 hashes for each login, and the figures would be those of that arithmetic.
pub const APP_SECRET: &str = "SCRAM-SHA-256$4096:cGdzcXVpcmUtbGFiLTAxNg==\
    $xFXV90whQZKhWroeOv/6qj9Czxgvtmc4VKshGB1kJ+0=:Ey3tb0fxam5i2apWXV6K5OJuyAeVHug5oDWrVewUtWw=";

/// The file the agents and the classic callback rewrite.
pub fn ini(host: &Host) -> PathBuf {
    host.file("pgbouncer.ini")
}

/// Writes the ini and the list of users. `lead_to` says where each route leads at first.
pub fn configure(state: &State, host: &Host, pooler: &Pooler, lead_to: &[Ipv4Addr]) -> Result<()> {
    let users = host.file("userlist.txt");
    fs::write(&users, format!("\"{APP_USER}\" \"{APP_SECRET}\"\n"))
        .and_then(|()| fs::write(ini(host), ini_text(state, host, pooler, lead_to)))
        .with_context(|| format!("writing the files of PgBouncer {}", host.name))
}

fn ini_text(state: &State, host: &Host, pooler: &Pooler, lead_to: &[Ipv4Addr]) -> String {
    let listen = state.socket(host, pooler.port);
    let mut text = format!("; PgBouncer {} of the lab\n[databases]\n", pooler.name);
    for ((name, _), address) in pooler.routes.iter().zip(lead_to) {
        let server = SocketAddrV4::new(*address, state.network.port(POSTGRES_PORT));
        text += &format!("{name} = host={} port={} dbname={DATABASE}\n", server.ip(), server.port());
    }
    text += "\n[pgbouncer]\n";
    let own = [
        ("listen_addr", listen.ip().to_string()),
        ("listen_port", listen.port().to_string()),
        ("unix_socket_dir", host.sockets().display().to_string()),
        ("auth_type", "scram-sha-256".into()),
        ("auth_file", host.file("userlist.txt").display().to_string()),
        ("admin_users", "pgbouncer".into()),
        ("pool_mode", "transaction".into()),
        ("max_client_conn", "500".into()),
        ("default_pool_size", "20".into()),
        ("ignore_startup_parameters", "extra_float_digits".into()),
    ];
    let own = own.into_iter().filter(|(name, _)| !pooler.settings.iter().any(|(n, _)| n == name));
    let all = own.map(|(n, v)| (n.to_string(), v)).chain(pooler.settings.iter().cloned());
    text + &all.map(|(name, value)| format!("{name} = {value}\n")).collect::<String>()
}

/// The command that runs PgBouncer on this host.
pub fn command(state: &State, host: &Host) -> Vec<String> {
    let mut command = match state.spec.pgbouncer {
        PgBouncerBuild::System => vec!["pgbouncer".to_string()],
        PgBouncerBuild::Debian13 => setup::with_own_loader(&state.dir.join(setup::PGBOUNCER_13), "pgbouncer"),
    };
    command.push(ini(host).display().to_string());
    command
}

/// What libpq needs to reach the console.
pub fn console_conninfo(state: &State, host: &Host, pooler: &Pooler) -> String {
    let (sockets, port) = (host.sockets(), state.network.port(pooler.port));
    format!("host={} port={port} user=pgbouncer", sockets.display())
}

/// Runs a console command and gives the rows, each as name and value.
///
/// The console opens to the PgBouncer's own system user without a password. Started by root the lab is another user, so
/// it asks through psql as that user.
pub async fn console(
    state: &State,
    host: &Host,
    pooler: &Pooler,
    command: &str,
) -> Result<Vec<Vec<(String, String)>>> {
    let (sockets, port) = (host.sockets(), state.network.port(pooler.port));
    let what = || format!("{command} on the console of {}", host.name);
    if is_root() {
        return console_by_psql(&sockets, port, command).await.with_context(what);
    }
    let client = sql::by_socket(&sockets, port, "pgbouncer", "pgbouncer").await.with_context(what)?;
    let messages = client.simple_query(command).await.with_context(what)?;
    Ok(messages.iter().filter_map(named_row).collect())
}

fn named_row(message: &SimpleQueryMessage) -> Option<Vec<(String, String)>> {
    let SimpleQueryMessage::Row(row) = message else { return None };
    let value = |i: usize| row.get(i).unwrap_or_default().to_string();
    Some(row.columns().iter().enumerate().map(|(i, c)| (c.name().to_string(), value(i))).collect())
}

async fn console_by_psql(sockets: &Path, port: u16, command: &str) -> Result<Vec<Vec<(String, String)>>> {
    let output = tokio::process::Command::new("setpriv")
        .args(["--reuid", SERVICE_USER, "--regid", SERVICE_USER, "--init-groups", "--"])
        .args(["psql", "-qXA", "-F", "\t", "-P", "footer=off", "-U", "pgbouncer", "-p", &port.to_string()])
        .args(["-c", command, "-d", "pgbouncer", "-h"])
        .arg(sockets)
        .kill_on_drop(true)
        .current_dir("/")
        .output();
    let limit = std::time::Duration::from_secs(10);
    let output = tokio::time::timeout(limit, output).await.context("no answer within 10 s")??;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(table(&String::from_utf8_lossy(&output.stdout)))
}

/// psql's unaligned output: names in the first line, then a line for each row.
fn table(text: &str) -> Vec<Vec<(String, String)>> {
    let mut lines = text.lines();
    let names: Vec<&str> = lines.next().unwrap_or_default().split('\t').collect();
    let row = |line: &str| {
        names.iter().zip(line.split('\t')).map(|(n, v)| (n.to_string(), v.to_string())).collect()
    };
    lines.map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_psql_get_their_names() {
        let rows = table("name\thost\napp\t127.0.0.11\npgbouncer\t\n");
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0], [("name".into(), "app".into()), ("host".into(), "127.0.0.11".into())]);
        assert_eq!(rows[1][1].1, "");
    }
}
