//! `pgsquire callback` as Patroni calls it: quick, exit status 0, and nothing is lost, whatever state the daemon is in.

use crate::host::{Host, LONG, Ran, lines};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

/// What Patroni waits at most.
const BOUND: Duration = Duration::from_millis(500);

fn call(host: &Host) -> Ran {
    host.run(&["callback", "on_role_change", "primary", "main"])
}

fn kept(host: &Host) -> Vec<String> {
    lines(&host.path("state").join("callbacks.journal"))
}

#[test]
fn the_daemon_is_told() {
    let mut host = Host::new();
    host.start();
    let ran = call(&host);
    assert_eq!((ran.code, ran.out.as_str(), ran.err.as_str()), (Some(0), "", ""));
    host.wait_for_line(&["events", "--follow"], "main: on_role_change primary");
    assert!(kept(&host).is_empty());
}

#[test]
fn a_callback_without_a_daemon_is_kept_and_taken_in_later() {
    let mut host = Host::new();
    let ran = call(&host);
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), ""));
    assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
    assert!(kept(&host)[0].contains("\"action\":\"on_role_change\""), "{:?}", kept(&host));
    host.start();
    let line = host.wait_for_line(&["events", "--follow"], "main: on_role_change primary");
    assert!(line.contains("while the daemon was away"), "{line}");
    assert!(kept(&host).is_empty());
}

#[test]
fn nonsense_is_no_failure() {
    let host = Host::new();
    for args in [
        &["callback"][..],
        &["callback", "one"],
        &["callback", "1", "2", "3", "4"],
        &["callback", "--nosuch", "x", "y"],
        &["callback", "on_start", "primary", "main", "--config"],
        &["callback", "on_start", "primary", "main", "--config", "/nonexistent"],
        &["callback", "", "", ""],
        &["--config", "/nonexistent", "callback", "on_start", "primary", "main"],
    ] {
        let ran = host.run(args);
        assert_eq!((ran.code, ran.out.as_str()), (Some(0), ""), "{args:?}");
        assert_eq!(ran.err.lines().count(), 1, "{args:?}: {}", ran.err);
    }
}

#[test]
fn a_broken_configuration_still_finds_the_daemon() {
    let mut host = Host::new();
    host.start();
    let config = std::fs::read_to_string(host.config()).expect("read");
    for (action, broken) in [("on_start", "[switch]\ncolour = 1\n"), ("on_stop", "[switch]\nfence =\n")] {
        std::fs::write(host.config(), format!("{config}{broken}")).expect("written");
        assert_eq!(host.run(&["callback", action, "primary", "main"]).code, Some(0));
        assert!(kept(&host).is_empty());
    }
    // Other commands say that the file is broken.
    assert_eq!(host.run(&["events"]).code, Some(2));
    std::fs::write(host.config(), config).expect("written");
    for action in ["on_start", "on_stop"] {
        host.wait_for_line(&["events", "--follow"], action);
    }
}

#[test]
fn a_frozen_daemon_costs_half_a_second_at_most() {
    let mut host = Host::new();
    host.start();
    host.signal("STOP");
    let begin = Instant::now();
    let ran = call(&host);
    let took = begin.elapsed();
    assert_eq!(ran.code, Some(0));
    assert!(took < 2 * BOUND, "{took:?}");
    assert_eq!(kept(&host).len(), 1, "{}", ran.err);
    host.signal("CONT");
}

#[test]
fn a_full_backlog_costs_nothing() {
    let host = Host::new();
    let path = host.path("control.sock");
    let listener = UnixListener::bind(&path).expect("bound");
    let mut queued = Vec::new();
    // Each of these fits into the queue of a listener that never accepts, until one does not.
    loop {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
        use std::os::fd::AsRawFd;
        let fd =
            socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_NONBLOCK, None).expect("socket");
        match connect(fd.as_raw_fd(), &UnixAddr::new(&path).expect("address")) {
            Ok(()) => queued.push(fd),
            Err(e) => break assert_eq!(e, nix::errno::Errno::EAGAIN),
        }
    }
    let begin = Instant::now();
    let ran = call(&host);
    assert_eq!(ran.code, Some(0));
    assert!(begin.elapsed() < BOUND, "{:?}", begin.elapsed());
    assert_eq!(kept(&host).len(), 1, "{}", ran.err);
    let ran = host.run(&["status"]);
    assert_eq!(ran.code, Some(3), "{}", ran.err);
    drop(listener);
}

#[test]
fn a_state_folder_that_is_away_or_full_is_no_failure() {
    let host = Host::new();
    let journal = host.path("state").join("callbacks.journal");
    std::fs::write(&journal, vec![b'x'; 1024 * 1024]).expect("written");
    let ran = call(&host);
    assert_eq!(ran.code, Some(0));
    assert!(ran.err.contains("full"), "{}", ran.err);
    assert_eq!(std::fs::metadata(&journal).expect("there").len(), 1024 * 1024);
    std::fs::remove_dir_all(host.path("state")).expect("removed");
    assert_eq!(call(&host).code, Some(0));
}

#[test]
fn a_callback_never_says_that_the_daemon_is_ready() {
    let host = Host::new();
    let mut command = host.command(&["callback", "on_start", "primary", "main"]);
    command.env("NOTIFY_SOCKET", host.path("notify")).output().expect("ran");
    assert!(host.told_nothing());
}

#[test]
fn callbacks_at_the_same_time_do_not_mix() {
    let host = Host::new();
    std::thread::scope(|scope| {
        for i in 0..8 {
            let host = &host;
            scope.spawn(move || {
                for j in 0..5 {
                    host.run(&["callback", &format!("on_{i}_{j}"), "primary", "main"]);
                }
            });
        }
    });
    let lines = kept(&host);
    assert_eq!(lines.len(), 40);
    for line in lines {
        serde_json::from_str::<serde_json::Value>(&line).unwrap_or_else(|e| panic!("{line}: {e}"));
    }
}

#[test]
fn it_is_quick() {
    let mut host = Host::new();
    let median = |host: &Host| {
        let mut times: Vec<Duration> = (0..15)
            .map(|_| {
                let begin = Instant::now();
                call(host);
                begin.elapsed()
            })
            .collect();
        times.sort();
        times[times.len() / 2]
    };
    let down = median(&host);
    host.start();
    let up = median(&host);
    // Generous, for a build without optimisation on a busy machine; a runtime or TLS would still show.
    assert!(up < Duration::from_millis(50) && down < Duration::from_millis(50), "up {up:?}, down {down:?}");
    assert!(LONG > BOUND);
}
