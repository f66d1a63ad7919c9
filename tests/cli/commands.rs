//! Commands, their help, and their exit statuses: 0 done, 1 failed, 2 usage or configuration, 3 no daemon.

use crate::host::{Host, PROGRAM};
use std::process::{Command, Stdio};

const COMMANDS: [&[&str]; 12] = [
    &["run"],
    &["callback"],
    &["hook"],
    &["check-config"],
    &["status"],
    &["explain"],
    &["plan"],
    &["events"],
    &["forget"],
    &["forget", "term"],
    &["render"],
    &["render", "patroni"],
];

/// Commands that ask the daemon.
const ASKING: [&[&str]; 6] =
    [&["status"], &["explain"], &["plan"], &["events"], &["forget", "term"], &["forget", "web3"]];

#[test]
fn every_command_has_help_with_an_example() {
    let host = Host::new();
    for command in COMMANDS.iter().chain([&[][..]].iter()) {
        let ran = host.run(&[command, &["--help"][..]].concat());
        assert_eq!(ran.code, Some(0), "{command:?}");
        assert!(ran.out.contains("Example"), "{command:?}: {}", ran.out);
        assert!(ran.out.contains("--config <FILE>"), "{command:?}: {}", ran.out);
    }
    let ran = host.run(&["--help"]);
    for command in COMMANDS {
        assert!(ran.out.contains(&format!("  {} ", command[0])), "{command:?} is not in the list");
    }
}

#[test]
fn commands_of_later_versions_are_not_there() {
    let host = Host::new();
    for command in ["archive-push", "archive-get", "drain", "undrain", "backup", "restore"] {
        let ran = host.run(&[command]);
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{command}");
    }
}

#[test]
fn without_a_daemon_the_exit_status_is_3() {
    let host = Host::new();
    for command in ASKING {
        let ran = host.run(command);
        assert_eq!((ran.code, ran.out.as_str()), (Some(3), ""), "{command:?}");
        assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
        let socket = host.path("control.sock").display().to_string();
        assert!(ran.err.contains(&socket) && ran.err.contains("systemctl status pgsquire"), "{}", ran.err);
    }
}

#[test]
fn config_stands_before_or_after_the_command() {
    let host = Host::new();
    let config = host.config().display().to_string();
    let socket = host.path("control.sock").display().to_string();
    let other = format!("--config={config}");
    for command in ASKING {
        let before = [&["--config", &config][..], command].concat();
        let after = [command, &["--config", &config][..]].concat();
        let joined = [command, &[other.as_str()][..]].concat();
        for args in [before, after, joined] {
            let output =
                Command::new(PROGRAM).args(&args).env_remove("PGSQUIRE_CONFIG").output().expect("ran");
            let err = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(err.contains(&socket), "{args:?}: {err}");
        }
    }
    for args in [
        ["--config", &config, "check-config"],
        ["check-config", "--config", &config],
        ["check-config", &config, "-q"],
    ] {
        let args: Vec<_> = args.iter().filter(|arg| **arg != "-q").collect();
        let output = Command::new(PROGRAM).args(&args).env_remove("PGSQUIRE_CONFIG").output().expect("ran");
        assert_eq!(output.status.code(), Some(0), "{args:?}");
    }
}

#[test]
fn usage_and_configuration_errors_are_2() {
    let host = Host::new();
    for args in [
        &["nosuch"][..],
        &["status", "--nosuch"],
        &["status", "extra"],
        &[],
        &["forget"],
        &["hook"],
        &["hook", "nosuch"],
    ] {
        let ran = host.run(args);
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{args:?}");
        assert!(!ran.err.is_empty());
    }
    for command in [&["run"][..], &["check-config"], &["status"]] {
        let ran = host.run(&[command, &["--config", "/nonexistent/config.toml"]].concat());
        assert_eq!(ran.code, Some(2), "{command:?}");
        assert!(ran.err.contains("/nonexistent/config.toml") && ran.err.contains("--config"), "{}", ran.err);
    }
    host.configure("[switch]\ncolour = 1\n");
    for command in ["run", "check-config"] {
        let ran = host.run(&[command]);
        assert_eq!(ran.code, Some(2), "{command}");
        assert!(ran.err.contains("unknown key `colour`"), "{}", ran.err);
    }
    // The daemon may run on its last good configuration: commands still look for it.
    assert_eq!(host.run(&["status"]).code, Some(3));
}

#[test]
fn commands_show_what_the_daemon_knows() {
    let mut host = Host::new();
    host.configure(
        "[[cluster]]\nscope = 'main'\nendpoints = ['127.0.0.1:1']\n[[pgbouncer]]\nname = 'write'\n\
                    ini = '/nonexistent/pgbouncer.ini'\nconsole = 'host=/nonexistent port=6432'\n\
                    [pgbouncer.routes]\napp = 'primary'\n",
    );
    host.start();
    let status = host.run(&["status"]);
    assert_eq!((status.code, status.err.as_str()), (Some(0), ""));
    assert!(status.out.contains("CLUSTER main") && status.out.contains("POOL write"), "{}", status.out);
    assert!(!status.out.contains('\x1b'), "colours without a terminal");
    assert!(status.out.lines().all(|line| line.chars().count() <= 80), "{}", status.out);

    let json: serde_json::Value = serde_json::from_str(&host.run(&["status", "--json"]).out).expect("JSON");
    assert_eq!(json["node"], "host1");
    assert_eq!(json["mode"], "enforce");
    assert_eq!(json["clusters"][0]["name"], "main");
    assert_eq!(json["poolers"][0]["routes"][0]["database"], "app");
    assert_eq!(json["agent"]["alive"], true);

    let explain = host.run(&["explain", "write"]);
    assert_eq!(explain.code, Some(0));
    for part in ["write/app must lead to primary of main", "because", "rule", "facts"] {
        assert!(explain.out.contains(part), "{part:?} is not in {}", explain.out);
    }
    let ran = host.run(&["explain", "nosuch"]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("no pool `nosuch`") && ran.err.contains("write"), "{}", ran.err);

    assert_eq!(host.run(&["plan"]).code, Some(0));
    for command in ["plan", "explain"] {
        let ran = host.run(&[command, "--json"]);
        serde_json::from_str::<serde_json::Value>(&ran.out).unwrap_or_else(|e| panic!("{command}: {e}"));
    }
    let events = host.run(&["events", "--json"]);
    let records: Vec<serde_json::Value> =
        events.out.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert!(!records.is_empty() && records.iter().all(|record| record["time"].is_string()), "{records:?}");

    let ran = host.run(&["forget", "term", "--cluster", "nosuch"]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("no cluster `nosuch`") && ran.err.contains("main"), "{}", ran.err);
    let ran = host.run(&["forget", "term"]);
    assert_eq!(ran.code, Some(0));
    assert!(ran.out.contains("main"), "{}", ran.out);
    assert_eq!(host.stop(), Some(0));
}

#[test]
fn forget_term_wants_a_name_when_there_are_several() {
    let mut host = Host::new();
    host.configure("[[cluster]]\nscope = 'a'\nendpoints = ['127.0.0.1:1']\n[[cluster]]\nscope = 'b'\nendpoints = ['127.0.0.1:1']\n");
    host.start();
    let ran = host.run(&["forget", "term"]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("--cluster") && ran.err.contains("a, b"), "{}", ran.err);
    assert_eq!(host.run(&["forget", "term", "--cluster", "b"]).code, Some(0));
    assert!(host.run(&["events"]).out.contains("b: the operator"));
}

#[test]
fn a_pooler_that_is_gone_can_be_forgotten() {
    let mut host = Host::new();
    host.start();
    let ran = host.run(&["forget", "web3"]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("no cluster is followed"), "{}", ran.err);
    host.stop();
    host.configure("[[cluster]]\nscope = 'main'\nendpoints = ['127.0.0.1:1']\n");
    host.start();
    let ran = host.run(&["forget", "web3"]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    assert!(ran.out.contains("main") && ran.out.contains("web3"), "{}", ran.out);
    assert!(host.run(&["events"]).out.contains("takes web3 out of the registry"));
    for (args, why) in [
        (&["forget", "web3", "--cluster", "nosuch"][..], "no cluster `nosuch`"),
        (&["forget", ""], "not the name of a node"),
    ] {
        let ran = host.run(args);
        assert_eq!(ran.code, Some(1), "{args:?}");
        assert!(ran.err.contains(why), "{args:?}: {}", ran.err);
    }
}

#[test]
fn followed_events_go_on_and_end_with_the_daemon() {
    let mut host = Host::new();
    host.start();
    let follower =
        host.command(&["events", "--follow", "--json"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let follower = follower.expect("started");
    assert_eq!(host.run(&["callback", "on_start", "replica", "main"]).code, Some(0));
    host.wait_for_line(&["events", "--follow"], "on_start replica");
    host.stop();
    let ran = crate::host::Ran::from(follower.wait_with_output().expect("ended"));
    assert_eq!(ran.code, Some(3), "{}", ran.err);
    assert!(ran.out.contains("on_start replica"), "{}", ran.out);
}

#[test]
fn a_watched_status_is_drawn_again_and_ends_with_the_daemon() {
    let mut host = Host::new();
    host.start();
    host.wait_for_line(&["status", "--watch"], "pgsquire");
    let mut watcher = host.command(&["status", "--watch", "--json"]);
    let watcher = watcher.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started");
    host.wait_for_line(&["status", "--watch", "--json"], "\"node\":\"host1\"");
    host.stop();
    assert_eq!(watcher.wait_with_output().expect("ended").status.code(), Some(3));
}

#[test]
fn a_reader_that_has_seen_enough_is_no_failure() {
    let mut host = Host::new();
    host.start();
    let mut child = host.command(&["status"]).stdout(Stdio::piped()).spawn().expect("started");
    drop(child.stdout.take());
    assert_eq!(child.wait().expect("ended").code(), Some(0));
}

#[test]
fn a_refused_configuration_is_shown_and_the_old_one_stays() {
    let mut host = Host::new();
    host.configure("[[cluster]]\nscope = 'main'\nendpoints = ['127.0.0.1:1']\n");
    host.start();
    host.configure("[[cluster]]\nscope = 'main'\nendpoint = ['127.0.0.1:1']\n");
    host.signal("HUP");
    host.wait_for_line(&["status", "--watch", "--json"], "endpoint");
    let status = host.run(&["status"]);
    assert!(status.out.contains("CLUSTER main"), "{}", status.out);
}
