//! What an operator meets where a cluster is followed by its members' REST API alone.

use crate::host::Host;

const CLUSTER: &str =
    "[[cluster]]\nscope = 'main'\npatroni_hosts = ['127.0.0.1:1']\n[patroni]\nurl = 'http://127.0.0.1:1'\n";

#[test]
fn the_configuration_is_good_without_a_word_about_what_is_not_there() {
    let host = Host::new();
    host.configure(CLUSTER);
    let ran = host.run(&["check-config", host.config().to_str().expect("UTF-8")]);
    assert_eq!((ran.code, ran.err.as_str()), (Some(0), ""), "{}", ran.out);
}

#[test]
fn hooks_return_at_once_and_status_says_what_is_not_there() {
    let mut host = Host::new();
    host.configure(CLUSTER);
    host.start();
    for kind in ["before-stop", "pre-promote"] {
        let ran = host.run(&["hook", kind]);
        assert_eq!(ran.code, Some(0), "{kind}: {}", ran.err);
        assert!(ran.err.contains("without a store nobody can tell the poolers"), "{kind}: {}", ran.err);
    }
    host.wait_for_line(&["status", "--watch"], "no member of main answers");
    let page = host.run(&["status"]).out;
    let words = page.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("followed by its members' REST API alone"), "{page}");
    assert!(words.contains("http://127.0.0.1:1"), "{page}");
    let ran = host.run(&["forget", "web3"]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(1), ""));
    assert!(ran.err.contains("main has no registry of poolers"), "{}", ran.err);
    assert_eq!(host.run(&["forget", "term"]).code, Some(0));
}
