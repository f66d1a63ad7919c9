//! The control socket among strangers, slow peers and its own left-overs.

use crate::host::{Host, LONG, is_root};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

/// Nobody's user.
const STRANGER: u32 = 65534;

/// The one line of an answer.
fn answer(stream: UnixStream) -> String {
    let mut line = String::new();
    let _ = BufReader::new(stream).read_line(&mut line);
    line
}

/// The daemon serves others without delay.
fn serves(host: &Host) {
    let begin = Instant::now();
    let ran = host.run(&["status"]);
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
}

#[test]
fn strangers_are_refused() {
    // Only root can be somebody else.
    if !is_root() {
        return;
    }
    let mut host = Host::new();
    host.start();
    for command in [&["status"][..], &["events"], &["forget", "term"], &["forget", "web3"]] {
        let ran = host.run_as(STRANGER, command);
        assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""), "{command:?}");
        assert!(ran.err.contains("user 65534 may not use the control socket"), "{}", ran.err);
    }
    let ran = host.run_as(STRANGER, &["callback", "on_start", "primary", "main"]);
    assert_eq!(ran.code, Some(0));
    assert!(!host.run(&["events"]).out.contains("on_start"));
    // A hook goes on without the daemon's word, and says that it was refused.
    let ran = host.run_as(STRANGER, &["hook", "before-stop"]);
    assert_eq!(ran.code, Some(0));
    assert!(ran.err.contains("user 65534 may not use the control socket"), "{}", ran.err);
    // Patroni's user is no stranger.
    if let Ok(Some(postgres)) = nix::unistd::User::from_name("postgres") {
        let ran = host.run_as(postgres.uid.as_raw(), &["callback", "on_stop", "primary", "main"]);
        assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
        host.wait_for_line(&["events", "--follow"], "on_stop");
    }
}

#[test]
fn a_line_of_a_megabyte_is_refused() {
    let mut host = Host::new();
    host.start();
    let mut stream = host.connect();
    // The daemon stops listening before the end.
    let _ = stream.write_all(&vec![b'x'; 1024 * 1024]);
    let said = answer(stream);
    assert!(said.is_empty() || said.contains("longer than 64 kB"), "{said}");
    serves(&host);
}

#[test]
fn a_line_without_an_end_is_refused_in_time_and_holds_up_nobody() {
    let mut host = Host::new();
    host.start();
    let mut stream = host.connect();
    stream.write_all(b"{\"do\":\"sta").expect("sent");
    serves(&host);
    let begin = Instant::now();
    assert!(answer(stream).contains("no whole line within 2 s"));
    assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
}

#[test]
fn nonsense_is_refused() {
    let mut host = Host::new();
    host.start();
    for line in ["", "status", "{}", "{\"do\":\"nosuch\"}", "{\"do\":\"callback\"}", "[1,2", "\u{0}"] {
        let mut stream = host.connect();
        stream.write_all(format!("{line}\n").as_bytes()).expect("sent");
        let said = answer(stream);
        assert!(said.starts_with("{\"refused\":\"this is not a request"), "{line:?}: {said}");
    }
    let half = host.connect();
    half.shutdown(std::net::Shutdown::Write).expect("shut");
    assert!(answer(half).contains("has no end"));
    serves(&host);
}

#[test]
fn silent_peers_use_up_their_slots_only_for_a_while() {
    let mut host = Host::new();
    host.start();
    let silent: Vec<UnixStream> = (0..64).map(|_| host.connect()).collect();
    let mut one_more = host.connect();
    let _ = one_more.write_all(b"{\"do\":\"ping\"}\n");
    assert!(answer(one_more).contains("64 connections are open already"));
    // What Patroni waits for has places of its own.
    let ran = host.run(&["callback", "on_start", "primary", "main"]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""));
    let mut hook = host.connect();
    hook.write_all(b"{\"do\":\"hook\",\"kind\":\"before-stop\"}\n").expect("sent");
    assert!(answer(hook).starts_with("{\"hook\":{\"return\":"));
    for stream in silent {
        assert!(answer(stream).contains("no whole line"));
    }
    serves(&host);
}

#[test]
fn followers_leave_room_for_callbacks() {
    let mut host = Host::new();
    host.start();
    let follow = || {
        let mut stream = host.connect();
        stream.write_all(b"{\"do\":\"events\",\"follow\":true}\n").expect("sent");
        BufReader::new(stream)
    };
    let mut lines = Vec::new();
    let mut followers: Vec<_> = (0..17).map(|_| follow()).collect();
    for follower in &mut followers {
        let mut line = String::new();
        follower.read_line(&mut line).expect("a line");
        lines.push(line);
    }
    assert_eq!(lines.iter().filter(|line| line.contains("too many follow")).count(), 1, "{lines:?}");
    drop(followers);
    // Their places are free once the daemon has noticed.
    let begin = Instant::now();
    loop {
        let mut line = String::new();
        follow().read_line(&mut line).expect("a line");
        if !line.contains("refused") {
            break;
        }
        assert!(begin.elapsed() < LONG, "{line}");
    }
}

#[test]
fn a_socket_left_over_from_a_crash_is_replaced() {
    let mut host = Host::new();
    host.start();
    host.crash();
    assert!(host.path("control.sock").exists());
    host.start();
    serves(&host);
    assert_eq!(host.stop(), Some(0));
    assert!(!host.path("control.sock").exists());
}

#[test]
fn a_second_agent_does_not_start() {
    let mut host = Host::new();
    host.start();
    let config = std::fs::read_to_string(host.config()).expect("read");
    let other =
        config.replace(&format!(":{}'", host.port), ":0'").replace(":0'", &format!(":{}'", free_port()));
    std::fs::write(host.path("other.toml"), other).expect("written");
    let ran = host.run(&["run", "--config", &host.path("other.toml").display().to_string()]);
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    assert!(ran.err.contains("another agent runs on the control socket"), "{}", ran.err);
    serves(&host);
}

fn free_port() -> u16 {
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    free.local_addr().expect("address").port()
}

#[test]
fn what_is_not_a_socket_is_not_removed() {
    let host = Host::new();
    std::fs::write(host.path("control.sock"), "precious").expect("written");
    let ran = host.run(&["run"]);
    assert_eq!(ran.code, Some(1), "{}", ran.err);
    assert!(ran.err.contains("[control] socket"), "{}", ran.err);
    assert_eq!(std::fs::read_to_string(host.path("control.sock")).expect("there"), "precious");
}

#[test]
fn a_follower_that_reads_nothing_holds_up_nobody() {
    let mut host = Host::new();
    host.start();
    let kind = std::fs::metadata(host.path("control.sock")).expect("there").file_type();
    assert!(kind.is_socket());
    let mut deaf = host.connect();
    deaf.write_all(b"{\"do\":\"events\",\"follow\":true}\n").expect("sent");
    let word = "x".repeat(100);
    for _ in 0..300 {
        let mut stream = host.connect();
        let call = format!(
            "{{\"do\":\"callback\",\"action\":\"{word}\",\"role\":\"{word}\",\"scope\":\"{word}\"}}\n"
        );
        stream.write_all(call.as_bytes()).expect("sent");
        assert!(answer(stream).contains("done"));
    }
    serves(&host);
    let mut some = [0; 10];
    deaf.set_read_timeout(Some(LONG)).expect("set");
    deaf.read_exact(&mut some).expect("what was sent is there");
}
