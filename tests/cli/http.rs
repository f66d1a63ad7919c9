//! The HTTP listener as load balancers and people meet it.

use crate::host::{Host, http};
use std::net::{TcpListener, TcpStream};

const POOL: &str = "[[cluster]]\nscope = 'main'\nendpoints = ['127.0.0.1:1']\n[[pgbouncer]]\nname = 'write'\n\
                    ini = '/nonexistent/pgbouncer.ini'\nconsole = 'host=/nonexistent port=6432'\n\
                    [pgbouncer.routes]\napp = 'primary'\n";

fn json(body: &str) -> serde_json::Value {
    serde_json::from_str(body).unwrap_or_else(|e| panic!("{body:?}: {e}"))
}

#[test]
fn paths_and_methods() {
    let mut host = Host::new();
    host.configure(POOL);
    host.start();
    for (path, code) in [
        ("/status", 200),
        ("/liveness", 200),
        ("/readiness", 200),
        ("/", 503),
        ("/primary", 503),
        ("/master", 503),
        ("/read-write", 503),
        ("/primary?x=1", 503),
        ("/pool/write", 503),
        ("/pool/nosuch", 404),
        ("/pool/", 404),
        ("/nosuch", 404),
        ("/replica", 404),
        ("//", 404),
    ] {
        for method in ["GET", "HEAD", "OPTIONS"] {
            let (got, head, body) = host.http(method, path);
            assert_eq!(got, code, "{method} {path}: {body}");
            assert!(head.contains("content-type: application/json"), "{head}");
            assert_eq!(body.is_empty(), method == "HEAD", "{method} {path}");
            if method != "HEAD" {
                let body = json(&body);
                assert!(
                    code == 200 || body["reason"].is_string() || body["error"].is_string(),
                    "{path}: {body}"
                );
            }
        }
        if code != 404 {
            let (got, head, _) = host.http("POST", path);
            assert_eq!(got, 405, "{path}");
            assert!(head.contains("allow: get, head, options"), "{head}");
        }
    }
    let (_, head, body) = host.http("GET", "/pool/write");
    assert!(head.contains("x-envoy-upstream-healthchecked-cluster: main"), "{head}");
    assert_eq!(json(&body)["up"], false);
    let (_, head, body) = host.http("GET", "/primary");
    assert!(head.contains("x-envoy-upstream-healthchecked-cluster: main"), "{head}");
    assert!(json(&body)["reason"].as_str().is_some_and(|reason| reason.contains("[postgres]")), "{body}");
    let (_, _, body) = host.http("GET", "/status");
    assert_eq!(json(&body)["node"], "host1");
}

#[test]
fn an_address_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("bound");
    let mut host = Host::new();
    host.port = taken.local_addr().expect("address").port();
    host.configure("");
    let ran = host.run(&["run"]);
    assert_eq!(ran.code, Some(1));
    assert!(
        ran.err.contains(&format!("127.0.0.1:{}", host.port)) && ran.err.contains("[http] listen"),
        "{}",
        ran.err
    );
}

#[test]
fn ipv6() {
    let free = TcpListener::bind("[::1]:0").expect("a host with IPv6");
    let address = free.local_addr().expect("address").to_string();
    drop(free);
    let mut host = Host::new();
    let config = std::fs::read_to_string(host.config()).expect("read");
    let config = config.replace(&format!("127.0.0.1:{}", host.port), &address);
    std::fs::write(host.config(), config).expect("written");
    host.start();
    assert_eq!(http(&address, "GET", "/liveness").0, 200);
}

#[test]
fn a_listener_of_a_socket_unit_is_taken_over() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = listener.local_addr().expect("address").to_string();
    let mut host = Host::new();
    host.start_with_listener(listener);
    assert_eq!(http(&address, "GET", "/liveness").0, 200);
    assert!(TcpStream::connect(("127.0.0.1", host.port)).is_err());
}

#[test]
fn the_end_is_told_and_does_not_wait_for_idle_connections() {
    let mut host = Host::new();
    host.start();
    let _idle = TcpStream::connect(("127.0.0.1", host.port)).expect("connected");
    let begin = std::time::Instant::now();
    assert_eq!(host.stop(), Some(0));
    assert!(begin.elapsed() < std::time::Duration::from_secs(5), "{:?}", begin.elapsed());
    host.told("STOPPING=1");
}
