//! The configuration as an operator writes it.

use super::*;
use pgsquire_core::config::{Fence, Mode, RouteTo, Truth};
use std::time::Duration;

const EXAMPLE: &str = include_str!("../../config.example.toml");

fn read(text: &str) -> Settings {
    let (settings, problems) = parse(text, "host1");
    let errors: Vec<_> = problems.iter().filter(|p| p.severity == Severity::Error).collect();
    settings.unwrap_or_else(|| panic!("refused: {errors:#?}"))
}

/// `key: message` of each error.
fn errors(text: &str) -> Vec<String> {
    let (settings, problems) = parse(text, "host1");
    let errors = problems.iter().filter(|p| p.severity == Severity::Error);
    let found: Vec<_> = errors.map(|p| format!("{}: {}", p.key, p.message)).collect();
    assert_eq!(settings.is_none(), !found.is_empty());
    found
}

fn assert_error(text: &str, want: &str) {
    let found = errors(text);
    assert!(found.iter().any(|e| e.contains(want)), "{want:?} is not in {found:#?}");
}

#[test]
fn an_empty_file_is_the_defaults() {
    let s = read("");
    assert_eq!(s.core.node, "host1");
    assert_eq!(s.core.mode, Mode::Enforce);
    assert_eq!(s.http.listen, "0.0.0.0:8009");
    assert_eq!(s.control_socket, Path::new("/run/pgsquire/control.sock"));
    assert_eq!(s.state_dir, Path::new("/var/lib/pgsquire"));
    assert_eq!(s.core.switch.failover_hold, Duration::from_secs(45));
    assert!(s.core.clusters.is_empty() && s.core.poolers.is_empty() && s.core.local.is_none());
}

/// As it is, the example changes nothing but the mode; with every option written out, it still says the defaults.
#[test]
fn the_example_is_the_defaults() {
    let (settings, problems) = parse(EXAMPLE, "host1");
    assert_eq!(problems, []);
    let mut settings = settings.expect("accepted");
    assert_eq!(settings.core.mode, Mode::Observe);
    settings.core.mode = Mode::Enforce;
    assert_eq!(settings, read(""));
}

#[test]
fn every_option_of_the_example_is_understood_and_is_the_default() {
    let written_out: String = EXAMPLE
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(option) if !option.is_empty() && !option.starts_with(' ') => format!("{option}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    let s = read(&written_out);
    let bare = read("[[cluster]]\nscope = 'main'\n[patroni]\n[postgres]\n[[pgbouncer]]\n");
    assert_eq!((&s.core.switch, &s.http, &s.telemetry), (&bare.core.switch, &bare.http, &bare.telemetry));
    assert_eq!((&s.patroni, &s.postgres), (&bare.patroni, &bare.postgres));
    assert_eq!(s.clusters, bare.clusters);
    assert_eq!(s.core.clusters, bare.core.clusters);
    assert_eq!(s.core.local, bare.core.local);
    assert_eq!(s.poolers, bare.poolers);
    assert_eq!(
        (&s.state_dir, &s.control_socket, &s.timezone),
        (&bare.state_dir, &bare.control_socket, &bare.timezone)
    );
    assert_eq!(s.core.poolers[0].routes["app"].to, RouteTo::Primary);
}

#[test]
fn everything_wrong_is_found_at_once() {
    let text =
        "[node]\nmode = \"on\"\ncolour = 1\n[switch]\ndrain = \"yes\"\nstale_after = \"10\"\n[nosuch]\n";
    let (settings, problems) = parse(text, "h");
    assert!(settings.is_none());
    let report = Report::new("f".to_owned(), text.to_owned(), problems);
    let errors: Vec<_> = report.problems().iter().filter(|p| p.severity == Severity::Error).collect();
    let places: Vec<_> = errors.iter().map(|p| (p.key.as_str(), report.position(p))).collect();
    let want = [
        ("node.mode", (2, 8)),
        ("node.colour", (3, 1)),
        ("switch.drain", (5, 9)),
        ("switch.stale_after", (6, 15)),
        ("nosuch", (7, 2)),
    ];
    assert_eq!(places, want);
}

#[test]
fn a_drain_must_end_long_before_the_lease() {
    assert_eq!(read("[switch]\ndrain_timeout = '7500ms'\n").core.switch.drain_timeout.as_millis(), 7500);
    assert_error("[switch]\ndrain_timeout = '7501ms'\n", "switch.drain_timeout: this is too long");
    assert_error("[switch]\ndrain_timeout = '0s'\n", "switch.drain_timeout: this is too short");
    // How long a pooler's clients may wait is known when the pooler is asked.
    read("[switch]\nhold_timeout = '10m'\nfailover_hold = '10m'\n");
}

#[test]
fn what_is_in_force_is_no_warning() {
    let text = "[switch]\ndrain = false\ndrain_timeout = '1s'\nhold_timeout = '9s'\nfence = 'off'\nfence_timeout = '1s'\n\
                [[cluster]]\nscope = 'm'\nprobe = 'user=pgsquire dbname=postgres'\n";
    let (settings, problems) = parse(text, "h");
    assert_eq!(problems, []);
    let probe = settings.expect("accepted").clusters[0].probe.clone();
    assert_eq!(probe.expect("a probe").conninfo, "user=pgsquire dbname=postgres");
    let text = "[[cluster]]\nscope = 'm'\non_dcs_loss = 'fail-closed'\npatroni_hosts = ['a:8008']\nendpoints = ['e:2379']\n";
    let (settings, problems) = parse(text, "h");
    assert_eq!(problems, []);
    let cluster = settings.expect("accepted").core.clusters[0].clone();
    assert_eq!(cluster.on_dcs_loss, pgsquire_core::config::OnDcsLoss::FailClosed);
    assert_eq!(cluster.patroni_hosts, ["http://a:8008"]);
}

#[test]
fn a_glance_sees_how_long_a_hook_may_wait_in_any_file() {
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("config.toml");
    let glance_at = |text: &str| {
        std::fs::write(&file, text).expect("written");
        let glance = glance(&file);
        (
            glance.fence,
            glance.drain_timeout.as_millis(),
            glance.fence_timeout.as_millis(),
            glance.trouble.is_some(),
        )
    };
    let switch = "[switch]\nfence = 'strict'\ndrain_timeout = '1s'\nfence_timeout = '250ms'\n";
    assert_eq!(glance_at(switch), (Fence::Strict, 1_000, 250, false));
    assert_eq!(glance_at(&format!("{switch}[broken\n")), (Fence::Strict, 1_000, 250, true));
    assert_eq!(glance_at("[switch]\nfence = 'off'\n").0, Fence::Off);
    let odd = "[switch]\nfence = true\ndrain_timeout = 3\nfence_timeout = '2'\n";
    for text in ["", odd] {
        assert_eq!(glance_at(text), (Fence::Advisory, 3_000, 2_000, false), "{text}");
    }
}

#[test]
fn syntax_errors_have_a_place() {
    let (settings, problems) = parse("[node]\nname = pg1\n", "h");
    assert!(settings.is_none());
    assert_eq!(problems.len(), 1);
    assert_eq!(problems[0].span, 14..17);
    assert_error("[node]\nname = 'a'\nname = 'b'\n", "duplicate key");
}

#[test]
fn clusters() {
    let s = read("[[cluster]]\nscope = 'main'\nnamespace = 'db/prod'\ngroup = 0\n");
    assert_eq!(s.clusters[0].name, "main/0");
    assert_eq!(s.clusters[0].namespace, "/db/prod/");
    let endpoints = |text: &str| {
        let s = read(&format!("[[cluster]]\nscope = 'm'\n{text}\n"));
        match &s.clusters[0].store {
            Store::Etcd(etcd) => etcd.endpoints.clone(),
            Store::Consul(consul) => consul.endpoints.clone(),
            Store::ZooKeeper(zookeeper) => zookeeper.endpoints.clone(),
            Store::Members(_) => s.core.clusters[0].patroni_hosts.clone(),
        }
    };
    assert_eq!(endpoints(""), ["http://127.0.0.1:2379"]);
    assert_eq!(
        endpoints("endpoints = ['a:1', 'https://[::1]:2', '[::1]:3']"),
        ["http://a:1", "https://[::1]:2", "http://[::1]:3"]
    );
    assert_eq!(endpoints("tls_ca = '/ca.pem'\nendpoints = ['a:1']"), ["https://a:1"]);
    assert_eq!(endpoints("dcs = 'consul'"), ["http://127.0.0.1:8500"]);
    assert_eq!(
        endpoints("dcs = 'consul'\ntls_ca = '/ca.pem'\ntoken_file = '/t'\nendpoints = ['a:1', 'http://b:2']"),
        ["https://a:1", "http://b:2"]
    );
    let with = |text: &str| format!("[[cluster]]\nscope = 'm'\n{text}\n");
    assert_error("[[cluster]]\n", "`scope` is missing");
    assert_error(&with("[[cluster]]\nscope = 'm'"), "two clusters `m`");
    assert_error(&with("dcs = 'consul'\nusername = 'u'"), "Consul has no users");
    assert_error(&with("dcs = 'consul'\nendpoints = []"), "no endpoint is given");
    assert_error(&with("dcs = 'redis'"), "`redis` is not known");
    assert_error(&with("endpoints = []"), "no endpoint is given");
    assert_error(&with("endpoints = ['::1:2379']"), "brackets");
    assert_error(&with("endpoints = 'a:1'"), "expected a list");
    assert_error(&with("tls_cert = '/c'"), "`tls_key` is missing");
    assert_error(&with("username = 'u'"), "`password_file` is missing");
    assert_error(&with("max_fact_age = '10ms'"), "too short");
    assert_error("[cluster]\nscope = 'm'\n", "expected [[cluster]]");
}

#[test]
fn zookeeper() {
    let with = |text: &str| format!("[[cluster]]\nscope = 'm'\ndcs = 'zookeeper'\n{text}\n");
    let read = |text: &str| match read(&with(text)).clusters[0].store.clone() {
        Store::ZooKeeper(zookeeper) => zookeeper,
        other => panic!("{other:?}"),
    };
    assert_eq!((read("").endpoints, read("").chroot), (vec!["127.0.0.1:2181".to_owned()], String::new()));
    let both = read("endpoints = ['zk1:2181/db', '[::1]:2181/db']\nusername = 'u'\npassword_file = '/p'");
    assert_eq!(
        (both.endpoints.as_slice(), both.chroot.as_str()),
        (&["zk1:2181", "[::1]:2181"].map(str::to_owned)[..], "/db")
    );
    assert_eq!((both.username.as_deref(), both.password_file), (Some("u"), Some("/p".into())));
    assert_error(&with("endpoints = ['a:1/x', 'b:1']"), "its chroot is none, that of the first one is `/x`");
    assert_error(&with("endpoints = ['http://a:1']"), "no scheme");
    assert_error(&with("endpoints = []"), "no endpoint is given");
    assert_error(&with("username = 'u'"), "`password_file` is missing");
}

#[test]
fn members_instead_of_a_store() {
    let read = |text: &str| read(&format!("[[cluster]]\nscope = 'm'\n{text}\n"));
    for text in ["patroni_hosts = ['a:8008']", "dcs = 'patroni'\npatroni_hosts = ['a:8008']"] {
        let s = read(text);
        assert_eq!(s.clusters[0].store, Store::Members(MembersSettings { pollers: 10 }), "{text}");
        assert_eq!(s.core.clusters[0].patroni_hosts, ["http://a:8008"]);
        assert_eq!(s.core.clusters[0].truth, Truth::Members { pollers: 10 });
    }
    let s = read("patroni_hosts = ['a:8008', 'http://b:8008']\ntls_ca = '/ca.pem'\npollers = 40");
    assert_eq!(s.core.clusters[0].patroni_hosts, ["https://a:8008", "http://b:8008"]);
    assert_eq!(s.core.clusters[0].truth, Truth::Members { pollers: 40 });
    // With a store they are for something else, and its certificates are not theirs.
    let s = read("dcs = 'etcd'\ntls_ca = '/ca.pem'\npatroni_hosts = ['a:8008']");
    assert_eq!(s.core.clusters[0].patroni_hosts, ["http://a:8008"]);
    assert!(s.core.clusters[0].has_store());
    let s = read("endpoints = ['e:2379']\npatroni_hosts = ['a:8008']");
    assert!(s.core.clusters[0].has_store());

    let with = |text: &str| format!("[[cluster]]\nscope = 'm'\n{text}\n");
    assert_error(&with("dcs = 'patroni'"), "`patroni_hosts` is missing");
    assert_error(&with("dcs = 'patroni'\npatroni_hosts = []"), "no member is given");
    assert_error(
        &with("dcs = 'patroni'\npatroni_hosts = ['a:8008']\nendpoints = ['e:1']"),
        "no store whose endpoints",
    );
    assert_error(&with("patroni_hosts = ['a:8008']\ntoken_file = '/t'"), "read without a login");
    assert_error(&with("patroni_hosts = ['a:8008']\npollers = 0"), "the least is 1");
    assert_error(&with("pollers = 5"), "for a cluster without a store");
    assert_error(&with("patroni_hosts = ['a']"), "not host:port");
}

#[test]
fn what_needs_a_store_is_refused_where_there_is_none() {
    let rest = "[[cluster]]\nscope = 'm'\npatroni_hosts = ['a:8008']\n";
    let etcd = "[[cluster]]\nscope = 'n'\n";
    let needs = [
        ("[switch]\ndrain = true\n", "a drain before a planned stop needs a store: m "),
        ("[switch]\nfence = 'strict'\n", "a strict fence needs a store: m "),
        (
            "[archive]\n[[archive.backup]]\nkind = 'full'\nschedule = '0 1 * * 0'\n",
            "electing who makes a backup needs a store: m ",
        ),
    ];
    for (table, why) in needs {
        assert_error(&format!("{rest}{table}"), why);
        // The server on this host belongs to the cluster without a store.
        assert_error(&format!("{rest}{etcd}[node]\ncluster = 'm'\n[patroni]\n{table}"), why);
        // They are for the other cluster.
        for local in ["", "[node]\ncluster = 'n'\n[patroni]\n"] {
            assert_eq!(errors(&format!("{rest}{etcd}{local}{table}")), Vec::<String>::new());
        }
    }
    for fine in ["", "[switch]\ndrain = false\nfence = 'advisory'\n", "[switch]\nfence = 'off'\n"] {
        assert_eq!(errors(&format!("{rest}{fine}")), Vec::<String>::new(), "{fine}");
    }
}

#[test]
fn local_server() {
    let local = |text: &str| read(text).core.local;
    assert!(local("[[cluster]]\nscope = 'm'\n").is_none());
    let l = local("[[cluster]]\nscope = 'm'\n[patroni]\n").expect("local");
    assert_eq!(
        (l.cluster.as_str(), l.patroni_url.as_deref(), l.probe),
        ("m", Some("http://127.0.0.1:8008"), false)
    );
    let two = "[[cluster]]\nscope = 'm'\n[[cluster]]\nscope = 'n'\n[postgres]\n";
    assert_error(two, "which one does this host's server belong to");
    assert_eq!(local(&format!("{two}[node]\ncluster = 'n'\n")).expect("local").cluster, "n");
    assert_error(&format!("{two}[node]\ncluster = 'x'\n"), "no [[cluster]] `x`");
    assert_error("[postgres]\nconninfo = 'dbname=x'\n", "no host");
    assert_error("[postgres]\nconninfo = 'host=x sslmode=maybe'\n", "not a connection string");
}

#[test]
fn routes() {
    let base = "[[cluster]]\nscope = 'm'\n[[pgbouncer]]\n[pgbouncer.routes]\n";
    let route = |text: &str| read(&format!("{base}{text}\n")).core.poolers[0].routes.values().next().cloned();
    let r = route("reports = { to = 'replica', cluster = 'm', max_lag = '16MB', fallback = 'primary' }")
        .expect("route");
    assert_eq!((r.to, r.max_lag, r.fallback_primary), (RouteTo::Replica, Some(16 << 20), true));
    assert!(route("'*' = 'any'").is_some());
    let with = |text: &str| format!("{base}{text}\n");
    assert_error(&with("app = 'master'"), "`master` is not known");
    assert_error(&with("'a b' = 'primary'"), "PgBouncer cannot read an entry named `a b`");
    assert_error(&with("pgbouncer = 'primary'"), "is the console");
    assert_error(&with("app = { to = 'primary', max_lag = 1 }"), "means nothing for a route to \"primary\"");
    assert_error(&with("app = { to = 'local', fallback = 'primary' }"), "means nothing");
    assert_error(&with("app = { to = 'replica', fallback = 'any' }"), "`any` is not known");
    assert_error(&with("app = { cluster = 'm' }"), "`to` is missing");
    assert_error(&with("app = { to = 'replica', cluster = 'x' }"), "no [[cluster]] `x`");
    assert_error(&with("app = { to = 'replica', max_lag = '16mb' }"), "not a size");
    assert_error(&with("app = 'local'"), "no server on this host");
    assert_error("[[pgbouncer]]\n[pgbouncer.routes]\napp = 'primary'\n", "no cluster to lead to");
    let two = base.replacen("[[pgbouncer]]", "[[cluster]]\nscope = 'n'\n[[pgbouncer]]", 1);
    assert_error(&format!("{two}app = 'primary'\n"), "the route must name one");
}

#[test]
fn poolers_do_not_share() {
    let two = |a: &str, b: &str| format!("[[pgbouncer]]\n{a}\n[[pgbouncer]]\n{b}\n");
    let a = "name = 'a'\nini = '/a.ini'\nconsole = 'host=/s port=1 user=x'";
    assert!(errors(&two(a, "name = 'b'\nini = '/b.ini'\nconsole = 'host=/s port=2'")).is_empty());
    assert_error(&two(a, "name = 'a'\nini = '/b.ini'\nconsole = 'host=/s port=2'"), "has this name already");
    assert_error(
        &two(a, "name = 'b'\nini = '//./a.ini'\nconsole = 'host=/s port=2'"),
        "has this ini file already",
    );
    assert_error(
        &two(a, "name = 'b'\nini = '/b.ini'\nconsole = 'host=/s port=1 user=y'"),
        "has this console already",
    );
    assert_error(&two(a, "name = 'b'\nini = 'b.ini'"), "not an absolute path");
    assert_error("[[pgbouncer]]\nconsole = 'host=/s'\n", "no port is named");
    assert_error("[[pgbouncer]]\nname = 'a/b'\n", "is not a name");
}

#[test]
fn secrets_do_not_show() {
    let dir = tempfile::tempdir().expect("folder");
    let file = dir.path().join("config.toml");
    let text = "[[cluster]]\nscope = 'm'\npassword = 'hunter2'\nendpoints = ['http://u:hunter2@h:1']\n\
                [postgres]\nconninfo = 'host=h password=hunter2'\n[patroni]\nurl = 'http://u:hunter2@h:99999'\n";
    std::fs::write(&file, text).expect("written");
    let Err(LoadError::Refused(report)) = load(&file) else { panic!("accepted") };
    assert_eq!(report.count(Severity::Error), 4, "{}", report.render(false));
    let shown = format!("{} {report} {:?}", report.render(false), report);
    assert!(!shown.contains("hunter2"), "{shown}");
}

#[test]
fn secret_files_are_looked_at() {
    let dir = tempfile::tempdir().expect("folder");
    let secret = dir.path().join("secret");
    let file = dir.path().join("config.toml");
    std::fs::write(&secret, "x\n").expect("written");
    let text = format!("[[pgbouncer]]\npassword_file = '{}'\n", secret.display());
    std::fs::write(&file, text).expect("written");
    let warnings = |mode| {
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(mode)).expect("mode set");
        load(&file).expect("accepted").report.problems().iter().map(|p| p.message.clone()).collect::<Vec<_>>()
    };
    assert!(warnings(0o644)[0].contains("readable by others"));
    assert!(warnings(0o640).is_empty());
    std::fs::remove_file(&secret).expect("removed");
    assert!(load(&file).expect("accepted").report.problems()[0].message.contains("cannot look at"));
}

#[test]
fn the_interface_page_is_accepted() {
    let text = r#"
[node]
name = "pg1"
mode = "enforce"
state_dir = "/var/lib/pgsquire"
[[cluster]]
scope = "main"
namespace = "/service/"
dcs = "etcd"
endpoints = ["http://127.0.0.1:2379"]
patroni_hosts = []
on_dcs_loss = "confirm"
max_fact_age = "10s"
probe = "user=pgsquire dbname=postgres"
[patroni]
url = "http://127.0.0.1:8008"
[postgres]
conninfo = "host=/var/run/postgresql dbname=postgres user=postgres"
[[pgbouncer]]
name = "write"
ini = "/etc/pgbouncer/pgbouncer.ini"
console = "host=/var/run/postgresql port=6432 user=pgbouncer"
[pgbouncer.routes]
app = "primary"
reports = { to = "replica", cluster = "main", max_lag = "16MB", fallback = "primary" }
[switch]
drain = true
failover_hold = "0s"
fence = "strict"
[http]
listen = "[::]:8009"
agent_check = "0.0.0.0:8010"
[control]
socket = "/run/pgsquire/control.sock"
[archive]
tool = "pgbackrest"
stanza = "main"
config = "/etc/pgbackrest/pgbackrest.conf"
timeout = "60s"
[[archive.backup]]
kind = "full"
schedule = "0 1 * * 0"
from = "prefer-replica"
[metrics]
listen = ""
[[metrics.source]]
name = "postgres"
url = "http://127.0.0.1:9187/metrics"
timeout = "2s"
labels = { }
drop = ["go_.*"]
[telemetry]
log = "info"
otlp_endpoint = ""
"#;
    let s = read(text);
    assert_eq!(s.archive.expect("archive").backups.len(), 1);
    assert_eq!(s.metrics.sources[0].drop, ["go_.*"]);
    let (_, problems) = parse(text, "h");
    let later: Vec<_> = problems.iter().filter(|p| p.severity == Severity::Warning).map(|p| &p.key).collect();
    assert!(
        later.contains(&&"archive".to_owned()) && !later.iter().any(|key| key.starts_with("switch")),
        "{later:?}"
    );
}
