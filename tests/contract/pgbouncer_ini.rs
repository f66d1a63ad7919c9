//! The grammar of `pgbouncer.ini`: our reading equals that of the real PgBouncer, before and after our
//! rewrite.
//!
//! The inputs are the cases of `tests/golden/ini`, and random files (`PGBOUNCER_INI_FILES=2000` for more of
//! them, and `PGBOUNCER_INI_SEED` for others). Needs PgBouncer 1.18 or later; `PGBOUNCER` names another one
//! than that of `PATH`.

#[path = "../golden/ini/case.rs"]
mod case;

use std::collections::BTreeMap;
use std::os::unix::fs::chown;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use nix::unistd::{User, geteuid};
use pgsquire_core::pgbouncer::document::{Document, ItemKind};
use pgsquire_core::pgbouncer::ini::{Endpoint, Entry, Files};
use pgsquire_core::pgbouncer::problem::ProblemKind;
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage, SimpleQueryRow};

use case::Case;

/// Nothing here takes a hundredth of it; it is for a machine that is busy with something else.
const PATIENCE: Duration = Duration::from_secs(20);

/// A PgBouncer of our own. It listens on a unix socket in its own folder only, so there is no port to collide
/// on.
struct Bouncer {
    dir: tempfile::TempDir,
    process: Child,
}

impl Bouncer {
    /// Starts with these files; an error is what PgBouncer said before it gave up.
    async fn start(files: impl FnOnce(&str) -> Files) -> Result<(Self, Client), String> {
        let dir = tempfile::Builder::new().prefix("pgbouncer-ini").tempdir().unwrap();
        let path = dir.path().to_str().unwrap().to_string();
        let files = files(&path);
        write(&files, &path);
        let mut command = command(&path);
        command.arg(&files.root).current_dir(&path);
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let process = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut bouncer = Bouncer { dir, process };
        match bouncer.ready().await {
            Some(console) => Ok((bouncer, console)),
            None => {
                Err(String::from_utf8_lossy(&std::fs::read(bouncer.dir.path().join("log")).unwrap())
                    .into_owned())
            }
        }
    }

    /// The console, as soon as there is one; none if the process ended before.
    async fn ready(&mut self) -> Option<Client> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if self.process.try_wait().unwrap().is_some() {
                return None;
            }
            if let Ok(console) = connect(self.dir.path().to_str().unwrap(), "pgbouncer").await {
                return Some(console);
            }
            assert!(Instant::now() < deadline, "PgBouncer neither answers nor ends");
            sleep(Duration::from_millis(5)).await;
        }
    }

    fn path(&self) -> &str {
        self.dir.path().to_str().unwrap()
    }

    async fn stop(mut self) {
        self.process.kill().await.unwrap();
    }
}

/// PgBouncer refuses to run as root.
fn command(dir: &str) -> Command {
    let program = std::env::var_os("PGBOUNCER").map_or(PathBuf::from("pgbouncer"), PathBuf::from);
    let mut command = if geteuid().is_root() {
        let user = User::from_name("postgres").unwrap().expect("no user postgres on this host");
        chown(dir, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "postgres", "--regid", "postgres", "--init-groups"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    // Debian keeps it where not every PATH looks.
    command.env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default()));
    command
}

/// Writes the files with the settings that this test needs put behind each `[pgbouncer]`: a second header
/// would bring the defaults back. What follows on the header's line continues on the next one, which means
/// the same.
fn write(files: &Files, dir: &str) {
    let ours = format!(
        "\nlisten_addr =\nunix_socket_dir = {dir}\nlisten_port = 6432\nauth_type = trust\nauth_file = {dir}/users\n\
         admin_users = pgbouncer\n"
    );
    std::fs::write(format!("{dir}/users"), "\"pgbouncer\" \"\"\n\"client\" \"\"\n").unwrap();
    for (path, bytes) in &files.parts {
        let doc = Document::parse(bytes);
        let mut text = bytes.clone();
        for item in doc.items().iter().rev() {
            if matches!(&item.kind, ItemKind::Section { name } if doc.text(name) == b"pgbouncer") {
                text.splice(item.span.end..item.span.end, ours.bytes());
            }
        }
        std::fs::write(path, text).unwrap();
    }
}

async fn connect(dir: &str, dbname: &str) -> Result<Client, tokio_postgres::Error> {
    let user = if dbname == "pgbouncer" { "pgbouncer" } else { "client" };
    let mut config = tokio_postgres::Config::new();
    let (client, connection) =
        config.host_path(dir).port(6432).user(user).dbname(dbname).connect(NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

async fn rows(console: &Client, sql: &str) -> Vec<SimpleQueryRow> {
    let messages = timeout(PATIENCE, console.simple_query(sql)).await.expect("no answer").unwrap();
    let row = |message| if let SimpleQueryMessage::Row(row) = message { Some(row) } else { None };
    messages.into_iter().filter_map(row).collect()
}

/// Name, host, port and database as text.
type Row = (String, Option<String>, String, String);

/// What PgBouncer says about its databases.
async fn shown(console: &Client) -> Vec<Row> {
    let row = |row: SimpleQueryRow| {
        let text = |name| row.get(name).map(str::to_string);
        (text("name").unwrap(), text("host"), text("port").unwrap(), text("database").unwrap())
    };
    let rows = rows(console, "SHOW DATABASES").await.into_iter().map(row);
    let mut rows: Vec<_> = rows.filter(|row| row.0 != "pgbouncer").collect();
    rows.sort();
    rows
}

/// The same, as we read the files. `*` is not shown.
fn read(files: &Files) -> Vec<Row> {
    let row = |e: Entry| {
        let dbname = e.dbname.unwrap_or_else(|| e.name.clone());
        (e.name, e.host, e.port.to_string(), dbname)
    };
    files.entries().into_values().filter(|e| e.name != "*").map(row).collect()
}

/// Starts PgBouncer with the files, compares, rewrites, reloads, and compares again. Whether it did start.
async fn agree(name: &str, files: impl Fn(&str) -> Files, wanted: &BTreeMap<String, Endpoint>) -> bool {
    let problems = files("/anywhere").problems();
    // Here we are stricter: PgBouncer loads what stands before the NUL.
    let fatal = problems.iter().any(|problem| problem.is_fatal() && problem.kind != ProblemKind::Nul);
    match Bouncer::start(&files).await {
        Err(log) => {
            assert!(log.contains("cannot load config file"), "{name}: ended for another reason: {log}");
            // Which parameters there are is up to the version; we do not judge that.
            let known = !log.contains("unrecognized") && !log.contains("unknown parameter");
            assert!(!known || !problems.is_empty(), "{name}: we see no problem, PgBouncer does: {log}");
            false
        }
        Ok((bouncer, console)) => {
            assert!(!fatal, "{name}: PgBouncer loads it, we would not: {problems:?}");
            let before = files(bouncer.path());
            assert_eq!(shown(&console).await, read(&before), "{name}: before");
            settings(name, &console, &before).await;
            if let Ok(changed) = before.retarget(wanted) {
                let mut after = before.clone();
                after.parts.extend(changed);
                write(&after, bouncer.path());
                rows(&console, "RELOAD").await;
                let now = shown(&console).await;
                assert_eq!(now, read(&after), "{name}: after");
                for (entry, to) in wanted.iter().filter(|(entry, _)| *entry != "*") {
                    let row = now
                        .iter()
                        .find(|row| row.0 == *entry)
                        .unwrap_or_else(|| panic!("{name}: no {entry}"));
                    assert_eq!((row.1.as_ref(), &row.2), (Some(&to.host), &to.port.to_string()), "{name}");
                }
            }
            bouncer.stop().await;
            true
        }
    }
}

/// The parameters that the inputs set: ours, or the default.
async fn settings(name: &str, console: &Client, files: &Files) {
    let ours =
        ["pool_mode", "server_login_retry", "max_client_conn", "query_timeout", "auth_user", "verbose"];
    for row in rows(console, "SHOW CONFIG").await {
        let key = row.get("key").unwrap();
        if ours.contains(&key) {
            let read = files.setting(key);
            let (value, default) = (row.get("value").unwrap_or(""), row.get("default").unwrap_or(""));
            // Without a default: not set, or 0 for the one that is a number.
            let unset = if key == "verbose" { "0" } else { default };
            assert_eq!(value, read.as_deref().unwrap_or(unset), "{name}: {key}");
        }
    }
}

#[tokio::test]
async fn golden_cases() {
    for case in Case::all() {
        agree(&case.name, |dir| case.files(dir), &case.wanted).await;
    }
}

/// Pieces from which files are made that PgBouncer takes more often than not. Parameters are real ones: which
/// exist depends on the version, and we leave that to PgBouncer.
const PIECES: [&str; 44] = [
    "\n",
    "\n",
    "\n",
    "\n",
    "\r\n",
    " ",
    " ",
    " ",
    "\t",
    "\x0b",
    "\r",
    ";c",
    "# c\n",
    "\n[databases]\n",
    "[databases]",
    "\n[users]\n",
    "[users]",
    "\n[pgbouncer]\n",
    "[pgbouncer]",
    "\n%include i.ini\n",
    "%include i.ini",
    "\napp =",
    "\nb=",
    "\n* = ",
    "\nApp\t=\t",
    "\n",
    " host=a",
    " host = b,c ",
    "host='d'",
    " host='it''s'",
    " host=",
    " port=1",
    " port=2x",
    "port = 3",
    " port='4'",
    " dbname=x",
    " dbname='y z'",
    " auth_user=u",
    " password=p;q#r",
    " password='s''t'",
    "'",
    "=",
    "\n;\u{e9}\n",
    "\nquery_timeout = 7\n",
];

/// Same numbers for the same seed, on every machine.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, n: usize) -> usize {
        // Knuth's MMIX generator; its high bits are the good ones.
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }

    fn text(&mut self, pieces: usize) -> Vec<u8> {
        let text: String = (0..self.below(pieces)).map(|_| PIECES[self.below(PIECES.len())]).collect();
        // Latin-1, as an old file might be; but in comments only, tokio-postgres cannot show other bytes than
        // UTF-8.
        text.chars().map(|c| c as u8).collect()
    }
}

#[tokio::test]
async fn random_files() {
    let number = |name, default| std::env::var(name).map_or(default, |text| text.parse().unwrap());
    let seed = number("PGBOUNCER_INI_SEED", 1);
    let app = Endpoint { host: "new,hosts".into(), port: 5433 };
    let wanted = BTreeMap::from([("app".to_string(), app.clone()), ("new".to_string(), app)]);
    let (count, mut loaded) = (number("PGBOUNCER_INI_FILES", 100), 0);
    for n in 0..count {
        let mut numbers = Numbers(seed + n);
        let included = numbers.text(6);
        let root = [b"[pgbouncer]\n[databases]\n".to_vec(), numbers.text(12)].concat();
        let files = |dir: &str| {
            let mut files = Files::new(format!("{dir}/pgbouncer.ini"), dir, root.clone());
            files.parts.insert(format!("{dir}/i.ini"), included.clone());
            files
        };
        let name = format!("seed {}: {} with {}", seed + n, root.escape_ascii(), included.escape_ascii());
        loaded += u64::from(agree(&name, files, &wanted).await);
    }
    assert!(loaded * 10 > count, "only {loaded} of {count} files could be compared");
}

/// A database that a client made through `*` follows it: neither a restart nor an entry of its own is needed.
#[tokio::test]
async fn databases_of_the_star_follow_it() {
    let files = |text: &'static str| {
        move |dir: &str| {
            Files::new(format!("{dir}/pgbouncer.ini"), dir, format!("[databases]\n{text}\n[pgbouncer]\n"))
        }
    };
    let (bouncer, console) = Bouncer::start(files("* = host=127.0.0.1 port=1")).await.unwrap();
    let path = bouncer.path().to_string();
    // The client waits for a server that is not there. Its database is there at once.
    let client = tokio::spawn(async move { connect(&path, "made").await.map(drop) });
    let deadline = Instant::now() + PATIENCE;
    while shown(&console).await.is_empty() {
        assert!(Instant::now() < deadline, "no database came from *");
        sleep(Duration::from_millis(5)).await;
    }
    let row = |host: &str, port: &str| vec![("made".into(), Some(host.into()), port.into(), "made".into())];
    assert_eq!(shown(&console).await, row("127.0.0.1", "1"));
    for (text, expected) in [
        ("* = host=127.0.0.2 port=2", row("127.0.0.2", "2")),
        ("* = host=127.0.0.2 port=2\nmade = host=127.0.0.3 port=3", row("127.0.0.3", "3")),
        // An entry that goes takes the database and its clients along; the next client makes a new one.
        ("* = host=127.0.0.4 port=4", vec![]),
    ] {
        write(&files(text)(bouncer.path()), bouncer.path());
        rows(&console, "RELOAD").await;
        assert_eq!(shown(&console).await, expected, "{text}");
    }
    let ended = timeout(PATIENCE, client).await.expect("its database went, but the client stays").unwrap();
    assert!(ended.is_err());
    bouncer.stop().await;
}
