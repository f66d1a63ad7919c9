//! `pgsquire hook` as Patroni runs it: it never keeps Patroni waiting for longer than it said, whatever the daemon does.

use crate::host::{Host, LONG, Ran};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// For a hook that does not wait: 100 ms, the guard's half second, and the start on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(1);
const HOOKS: [&str; 2] = ["before-stop", "pre-promote"];

fn hook(host: &Host, kind: &str) -> (Ran, Duration) {
    let begin = Instant::now();
    let ran = host.run(&["hook", kind]);
    let took = begin.elapsed();
    assert_eq!(ran.out, "", "{kind}");
    assert_eq!(ran.err.lines().count(), 1, "{kind}: {}", ran.err);
    assert!(ran.err.starts_with(&format!("pgsquire hook {kind}: ")), "{}", ran.err);
    (ran, took)
}

fn hook_at_once(host: &Host, kind: &str) -> Ran {
    let (ran, took) = hook(host, kind);
    assert!(took < AT_ONCE, "{kind}: {took:?}");
    ran
}

/// A daemon that says what the test wants.
struct Daemon {
    listener: UnixListener,
}

impl Daemon {
    fn new(host: &Host) -> Self {
        Daemon { listener: UnixListener::bind(host.path("control.sock")).expect("bound") }
    }

    /// Takes one question.
    fn asked(&self) -> UnixStream {
        let (stream, _) = self.listener.accept().expect("accepted");
        stream.set_read_timeout(Some(LONG)).expect("set");
        let mut line = String::new();
        BufReader::new(&stream).read_line(&mut line).expect("a question");
        assert!(line.starts_with("{\"do\":\"hook\",\"kind\":\""), "{line}");
        stream
    }
}

fn wait(mut stream: &UnixStream, ms: u64) {
    let line = format!("{{\"hook\":{{\"wait\":{{\"at_most_ms\":{ms},\"why\":\"2 poolers\"}}}}}}\n");
    stream.write_all(line.as_bytes()).expect("sent");
}

fn go_on(mut stream: &UnixStream, go_on: bool) {
    let line = format!("{{\"hook\":{{\"return\":{{\"go_on\":{go_on},\"why\":\"the word of\\nall\"}}}}}}\n");
    stream.write_all(line.as_bytes()).expect("sent");
}

/// Comes back when the other end is closed, whether or not it had read everything.
fn hung_up(mut stream: &UnixStream) {
    match stream.read(&mut [0]) {
        Ok(length) => assert_eq!(length, 0),
        Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset),
    }
}

fn start(host: &Host, kind: &str) -> Child {
    host.command(&["hook", kind]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("started")
}

fn ended(child: Child) -> Ran {
    child.wait_with_output().expect("ended").into()
}

#[test]
fn without_a_daemon_patroni_goes_on_at_once_unless_the_fence_is_strict() {
    let host = Host::new();
    for (fence, code) in [("off", 0), ("advisory", 0), ("strict", 1)] {
        host.configure(&format!("[switch]\nfence = '{fence}'\n"));
        let ran = hook_at_once(&host, "before-stop");
        assert_eq!(ran.code, Some(0), "{fence}");
        assert!(ran.err.contains("systemctl status pgsquire"), "{}", ran.err);
        assert!(ran.err.contains("the stop goes on"), "{}", ran.err);
        let ran = hook_at_once(&host, "pre-promote");
        assert_eq!(ran.code, Some(code), "{fence}");
        assert!(ran.err.contains(["the promotion goes on", "no promotion"][code as usize]), "{}", ran.err);
    }
}

#[test]
fn a_configuration_that_cannot_be_read_is_advisory_and_a_broken_one_may_still_say_strict() {
    let host = Host::new();
    for kind in HOOKS {
        let ran = host.run(&["hook", kind, "--config", "/nonexistent/config.toml"]);
        assert_eq!(ran.code, Some(0), "{kind}");
        assert!(ran.err.contains("cannot read the configuration /nonexistent/config.toml"), "{}", ran.err);
    }
    host.configure("[switch]\nfence = 'strict'\ncolour = 1\n[broken\n");
    assert_eq!(hook_at_once(&host, "before-stop").code, Some(0));
    let ran = hook_at_once(&host, "pre-promote");
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("is not TOML"), "{}", ran.err);
}

#[test]
fn a_configuration_that_hangs_is_left_alone() {
    let host = Host::new();
    std::fs::remove_file(host.config()).expect("removed");
    nix::unistd::mkfifo(&host.config(), nix::sys::stat::Mode::from_bits_truncate(0o644)).expect("made");
    for kind in HOOKS {
        let (ran, took) = hook(&host, kind);
        assert_eq!(ran.code, Some(0), "{kind}");
        assert!(ran.err.contains("gave up after 500 ms"), "{}", ran.err);
        assert!(took < 2 * AT_ONCE, "{took:?}");
    }
}

#[test]
fn a_daemon_without_a_server_lets_patroni_go_on_at_once() {
    let mut host = Host::new();
    host.configure("[switch]\nfence = 'strict'\n");
    host.start();
    let mut stream = host.connect();
    let begin = Instant::now();
    stream.write_all(b"{\"do\":\"hook\",\"kind\":\"before-stop\"}\n").expect("sent");
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).expect("a line");
    assert!(line.starts_with("{\"hook\":{\"return\":{\"go_on\":true,"), "{line}");
    assert!(begin.elapsed() < AT_ONCE, "{:?}", begin.elapsed());
    assert_eq!(hook_at_once(&host, "before-stop").code, Some(0));
    assert_eq!(host.stop(), Some(0));
}

#[test]
fn a_frozen_daemon_costs_little() {
    for (fence, code) in [("advisory", 0), ("strict", 1)] {
        let mut host = Host::new();
        host.configure(&format!("[switch]\nfence = '{fence}'\n"));
        host.start();
        host.signal("STOP");
        let ran = hook_at_once(&host, "before-stop");
        assert_eq!(ran.code, Some(0));
        assert!(ran.err.contains("it does not answer"), "{}", ran.err);
        assert_eq!(hook_at_once(&host, "pre-promote").code, Some(code));
        host.signal("CONT");
    }
}

#[test]
fn it_waits_for_the_word_to_go_on() {
    let host = Host::new();
    let daemon = Daemon::new(&host);
    for (kind, word, code) in [
        ("before-stop", true, 0),
        // Whatever the daemon says: a stop is never refused.
        ("before-stop", false, 0),
        ("pre-promote", true, 0),
        ("pre-promote", false, 1),
    ] {
        let child = start(&host, kind);
        let stream = daemon.asked();
        wait(&stream, 1500);
        wait(&stream, 1500);
        go_on(&stream, word);
        let ran = ended(child);
        assert_eq!((ran.code, ran.out.as_str()), (Some(code), ""), "{kind} {word}");
        assert_eq!(ran.err, format!("pgsquire hook {kind}: the word of all\n"));
    }
}

#[test]
fn it_waits_no_longer_than_it_was_told_or_the_configuration_says() {
    let host = Host::new();
    let daemon = Daemon::new(&host);
    let hour = 3_600_000;
    for (config, at_most_ms) in
        [("", 50), ("[switch]\ndrain_timeout = '50ms'\nfence_timeout = '50ms'\nfence = 'strict'\n", hour)]
    {
        host.configure(config);
        for kind in HOOKS {
            let begin = Instant::now();
            let child = start(&host, kind);
            let stream = daemon.asked();
            // However often it is told to.
            (0..3).for_each(|_| wait(&stream, at_most_ms));
            hung_up(&stream);
            let took = begin.elapsed();
            let ran = ended(child);
            let refused = kind == "pre-promote" && at_most_ms == hour;
            assert_eq!(ran.code, Some(i32::from(refused)), "{kind}: {}", ran.err);
            assert!(ran.err.contains("ms of waiting"), "{}", ran.err);
            assert!(took >= Duration::from_millis(150) && took < 2 * AT_ONCE, "{kind}: {took:?}");
        }
    }
}

#[test]
fn the_guard_ends_it_when_answers_never_come_to_an_end() {
    let host = Host::new();
    host.configure("[switch]\nfence_timeout = '10ms'\nfence = 'strict'\n");
    let daemon = Daemon::new(&host);
    let begin = Instant::now();
    let child = start(&host, "pre-promote");
    let mut stream = daemon.asked();
    wait(&stream, 10);
    // One letter every now and then, so that no read ever takes long.
    let (_never, ticks) = std::sync::mpsc::channel::<()>();
    while stream.write_all(b"x").is_ok() {
        assert!(begin.elapsed() < LONG, "it still waits");
        let _ = ticks.recv_timeout(Duration::from_millis(10));
    }
    let ran = ended(child);
    assert_eq!(ran.code, Some(1));
    assert!(ran.err.contains("gave up after"), "{}", ran.err);
}

#[test]
fn a_log_that_nobody_reads_does_not_hold_it_up() {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let host = Host::new();
    let (_reader, mut log) = std::io::pipe().expect("pipe");
    fcntl(&log, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("set");
    while log.write(b"full").is_ok() {}
    fcntl(&log, FcntlArg::F_SETFL(OFlag::empty())).expect("set");
    for args in [&["hook", "before-stop"][..], &["callback", "on_start", "primary", "main"]] {
        let mut child = host.command(args).stderr(log.try_clone().expect("cloned")).spawn().expect("started");
        let begin = Instant::now();
        let ended = loop {
            match child.try_wait().expect("waited") {
                Some(ended) => break ended,
                None if begin.elapsed() > LONG => {
                    child.kill().expect("killed");
                    panic!("{args:?} still runs");
                }
                None => std::thread::yield_now(),
            }
        };
        assert_eq!(ended.code(), Some(0), "{args:?}");
        assert!(begin.elapsed() < 2 * AT_ONCE, "{args:?}: {:?}", begin.elapsed());
    }
}

#[test]
fn it_dies_at_once_when_patroni_changes_its_mind() {
    let host = Host::new();
    let daemon = Daemon::new(&host);
    for kind in HOOKS {
        let mut child = start(&host, kind);
        let stream = daemon.asked();
        wait(&stream, 1900);
        let begin = Instant::now();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("sent");
        hung_up(&stream);
        assert_eq!(child.wait().expect("ended").signal(), Some(15));
        assert!(begin.elapsed() < AT_ONCE, "{:?}", begin.elapsed());
    }
}

#[test]
fn a_strange_answer_and_a_closed_connection_are_no_answer() {
    let host = Host::new();
    host.configure("[switch]\nfence = 'strict'\n");
    let daemon = Daemon::new(&host);
    for answer in ["", "{\"done\":\"\"}\n", "nonsense\n", "{\"refused\":\"no\"}\n"] {
        for (kind, code) in [("before-stop", 0), ("pre-promote", 1)] {
            let child = start(&host, kind);
            let mut stream = daemon.asked();
            stream.write_all(answer.as_bytes()).expect("sent");
            drop(stream);
            let ran = ended(child);
            assert_eq!(ran.code, Some(code), "{kind} {answer:?}: {}", ran.err);
            assert_eq!(ran.err.lines().count(), 1, "{kind} {answer:?}: {}", ran.err);
        }
    }
}

#[test]
fn a_hook_says_nothing_to_systemd_and_more_words_do_not_matter() {
    let host = Host::new();
    let mut command = host.command(&["hook", "before-stop", "more", "--nosuch"]);
    let output = command.env("NOTIFY_SOCKET", host.path("notify")).output().expect("ran");
    assert_eq!(output.status.code(), Some(0));
    assert!(host.told_nothing());
    assert_eq!(std::fs::read_dir(host.path("state")).expect("there").count(), 0, "it writes nothing");
}

#[test]
fn it_is_quick() {
    let host = Host::new();
    let mut times: Vec<Duration> = (0..15).map(|_| hook(&host, "before-stop").1).collect();
    times.sort();
    // Generous, as for a callback; a runtime or TLS would still show.
    assert!(times[7] < Duration::from_millis(50), "{times:?}");
}

#[test]
fn a_hook_that_waits_when_the_daemon_stops_is_told() {
    let mut host = Host::new();
    host.configure("[switch]\nfence = 'strict'\n");
    host.start();
    let child = start(&host, "before-stop");
    assert_eq!(host.stop(), Some(0));
    assert_eq!(ended(child).code, Some(0));
}
