//! `pgsquire release` on a host where nothing works any more.

use crate::host::Host;

#[test]
fn nothing_to_release_is_success_whatever_the_configuration_is() {
    let host = Host::new();
    for args in [&["release"][..], &["release", "--config", "/nonexistent"]] {
        let ran = host.run(args);
        assert_eq!(
            (ran.code, ran.out.as_str(), ran.err.as_str()),
            (Some(0), "nothing is paused by us\n", "")
        );
    }
    std::fs::write(host.config(), "[node\n").expect("written");
    let ran = host.run(&["release", "--json"]);
    assert_eq!((ran.code, ran.out.as_str()), (Some(0), "{\"poolers\":{}}\n"));
    assert!(!host.path("state/pauses").exists(), "it leaves no traces");
}

#[test]
fn what_cannot_be_resumed_stays_noted() {
    let host = Host::new();
    let folder = host.path("state/pauses");
    std::fs::create_dir(&folder).expect("folder made");
    let journal = folder.join("write.json");
    let entry = r#"{"pooler": "write", "boot_id": "x", "console": "host=/nonexistent port=1 user=boss",
        "password_file": null,
        "pause": {"scope": "process", "until": 1, "min_pool_size": null, "cause": "a test"}}"#;
    std::fs::write(&journal, entry).expect("written");
    std::fs::write(folder.join("broken.json"), "{").expect("written");
    let ran = host.run(&["release"]);
    assert_eq!(ran.code, Some(1));
    assert_eq!(ran.out, "?: NOT RELEASED\nwrite: NOT RELEASED\n");
    assert_eq!(ran.err.lines().count(), 1, "{}", ran.err);
    for part in
        ["broken.json", "RESUME what nobody wants paused", "cannot connect to the console of pooler write"]
    {
        assert!(ran.err.contains(part), "{part}: {}", ran.err);
    }
    assert!(journal.exists());
    let again = host.run(&["release"]);
    assert_eq!((again.code, again.out.as_str()), (Some(1), "write: NOT RELEASED\n"));
}
