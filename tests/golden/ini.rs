//! `ini/<case>`: the files of `in/` and the endpoints of `want.toml` give the files of `out/`: those that
//! change, and `report.txt` with what was found. `tests/contract` starts a real PgBouncer on the same cases.

pub mod case;

use std::collections::BTreeMap;
use std::fmt::Write;

use pgsquire_core::pgbouncer::ini::Files;

use case::Case;

#[test]
fn ini() {
    for case in Case::all() {
        let files = case.files("/etc/pgbouncer");
        let mut out = BTreeMap::new();
        let mut report = String::new();
        describe(&mut report, "found", &files);
        match files.retarget(&case.wanted) {
            Err(errors) => {
                writeln!(report, "refused:").unwrap();
                errors.0.iter().for_each(|problem| writeln!(report, "  {problem}").unwrap());
            }
            Ok(changed) => {
                for (path, bytes) in &changed {
                    out.insert(path.rsplit('/').next().unwrap().to_string(), bytes.clone());
                }
                let mut after = files.clone();
                after.parts.extend(changed);
                describe(&mut report, "retargeted", &after);
                assert_eq!(
                    after.retarget(&case.wanted),
                    Ok(BTreeMap::new()),
                    "{}: not idempotent",
                    case.name
                );
            }
        }
        out.insert("report.txt".into(), report.into_bytes());
        crate::check(&case::folder().join(&case.name).join("out"), &out);
    }
}

fn describe(report: &mut String, title: &str, files: &Files) {
    writeln!(report, "{title}:").unwrap();
    for entry in files.entries().values() {
        let host = entry.host.as_deref().unwrap_or("(socket)");
        let dbname = entry.dbname.as_deref().unwrap_or("(same)");
        let (name, port) = (&entry.name, entry.port);
        writeln!(report, "  {name} -> {host} port {port} dbname {dbname}, {}:{}", entry.file, entry.line)
            .unwrap();
    }
    for problem in files.problems() {
        writeln!(report, "  {}{problem}", if problem.is_fatal() { "" } else { "remark: " }).unwrap();
    }
}
