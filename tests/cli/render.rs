//! `pgsquire render`, byte for byte. After a wanted change run `UPDATE_GOLDEN=1 cargo test --test cli` and read the diff.

use crate::host::{Host, PROGRAM, Ran};
use std::path::Path;
use std::process::Command;

/// Compares with the file that is kept, or writes it.
fn check(name: &str, made: &str) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/render").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&golden, made).expect("written");
    }
    let kept = std::fs::read_to_string(&golden).unwrap_or_default();
    assert_eq!(made, kept, "{} (made, kept)", golden.display());
    assert!(made.lines().all(|line| !line.ends_with(' ')), "{made}");
}

/// Renders with a configuration of that name in the host's folder; the folder is written as /etc/pgsquire.
fn render(host: &Host, config: &str, args: &[&str]) -> String {
    std::fs::copy(host.config(), host.path(config)).expect("copied");
    let mut command = Command::new(PROGRAM);
    // Relative, as an operator may write it; Patroni is somewhere else.
    command.args(["render", "patroni", "--config", config]).args(args);
    command.env_remove("PGSQUIRE_CONFIG").current_dir(host.path("."));
    let ran = Ran::from(command.output().expect("ran"));
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{args:?}");
    let folder = host.path("").display().to_string();
    ran.out.replace(folder.trim_end_matches('/'), "/etc/pgsquire")
}

#[test]
fn patroni() {
    let host = Host::new();
    let cluster = "[[cluster]]\nscope = 'main'\nendpoints = ['127.0.0.1:1']\n[patroni]\n";
    host.configure(cluster);
    check("unknown.yml", &render(&host, "other.toml", &[]));
    check("old.yml", &render(&host, "other.toml", &["--patroni-version", "3.0.2"]));
    host.configure(&format!("{cluster}[switch]\nfence = 'strict'\ndrain_timeout = '1500ms'\n"));
    check("strict.yml", &render(&host, "it's # one.toml", &["--patroni-version", "4.1.5"]));
    host.configure("[[cluster]]\nscope = 'main'\npatroni_hosts = ['127.0.0.1:1']\n[patroni]\n");
    check("rest.yml", &render(&host, "other.toml", &[]));
    host.configure("[switch]\nfence = 'off'\ndrain = false\n");
    check("off.yml", &render(&host, "other.toml", &["--patroni-version", "3.0.3"]));
}

#[test]
fn a_running_daemon_that_has_not_seen_patroni_is_no_failure() {
    let mut host = Host::new();
    host.configure(
        "[[cluster]]\nscope = 'main'\nendpoints = ['127.0.0.1:1']\n[patroni]\nurl = 'http://127.0.0.1:1'\n",
    );
    let down = host.run(&["render", "patroni"]);
    host.start();
    let up = host.run(&["render", "patroni"]);
    assert_eq!((up.code, up.err.as_str()), (Some(0), ""));
    assert_eq!(up.out, down.out);
}

#[test]
fn what_cannot_be_rendered_is_said() {
    let host = Host::new();
    for args in [
        &["render"][..],
        &["render", "haproxy"],
        &["render", "patroni", "--patroni-version", "new"],
        &["render", "patroni", "--config", "/nonexistent/config.toml"],
    ] {
        let ran = host.run(args);
        assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""), "{args:?}");
        assert!(!ran.err.is_empty());
    }
    host.configure("[switch]\ncolour = 1\n");
    let ran = host.run(&["render", "patroni"]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(2), ""));
    assert!(ran.err.contains("unknown key `colour`"), "{}", ran.err);
}
