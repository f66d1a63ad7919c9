//! Any bytes are printed as they were read; a rewrite changes what it must, and a second one nothing.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgsquire_core::pgbouncer::document::Document;
use pgsquire_core::pgbouncer::ini::{Endpoint, Files};
use std::collections::BTreeMap;

fuzz_target!(|bytes: &[u8]| {
    assert_eq!(Document::parse(bytes).to_bytes(), bytes);
    let mut files = Files::new("a.ini", "", bytes);
    let to = Endpoint { host: "10.0.0.9".into(), port: 5433 };
    let wanted = BTreeMap::from([("app".to_string(), to.clone()), ("*".to_string(), to.clone())]);
    let Ok(new) = files.retarget(&wanted) else { return };
    files.parts.extend(new);
    let entries = files.entries();
    for name in wanted.keys() {
        let entry = &entries[name];
        assert_eq!((entry.host.as_deref(), entry.port), (Some(to.host.as_str()), i32::from(to.port)));
    }
    assert_eq!(files.retarget(&wanted), Ok(BTreeMap::new()));
});
