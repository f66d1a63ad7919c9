//! An ini that an operator has written, and what of it may change.

use anyhow::{Result, ensure};

/// Adds what hand-written files have: comments, odd blanks, entries that are nobody's business, no last newline.
pub fn hand_written(text: String) -> String {
    let extra = "[databases]\n; ask the team before you touch this: host=10.0.0.1 port=1\n\
        legacy   =  host=10.1.2.3   port=5433 dbname='old one'  \n\
        \tlocal_copy = dbname = app\n\
        # app = host=10.9.9.9 port=9\n";
    let text = text.replacen("[databases]\n", extra, 1);
    // With blanks in places where only a person puts them.
    let text = text.replacen("\napp = host=", "\napp\t=   connect_query='select 1'  host=", 1);
    text + "log_connections   =   0\n;; the end, without a newline"
}

/// Only the values of `host=` and `port=` of these entries may differ between two contents of a file.
pub fn differs_in_targets_only(before: &str, after: &str, entries: &[&str]) -> Result<()> {
    let (before, after): (Vec<&str>, Vec<&str>) = (before.split('\n').collect(), after.split('\n').collect());
    ensure!(before.len() == after.len(), "{} lines became {}: {after:?}", before.len(), after.len());
    for (old, new) in before.iter().zip(&after) {
        let routed = entries.iter().any(|e| old.split_once('=').is_some_and(|(name, _)| name.trim() == *e));
        let same = if routed { masked(old) == masked(new) } else { old == new };
        ensure!(same, "`{old}` became `{new}`");
    }
    Ok(())
}

/// A line without the values of `host=` and `port=`.
fn masked(line: &str) -> String {
    ["host=", "port="].iter().fold(line.to_string(), |line, key| match line.split_once(key) {
        Some((head, tail)) => {
            let rest = tail.find(char::is_whitespace).map_or("", |end| &tail[end..]);
            format!("{head}{key}…{rest}")
        }
        None => line,
    })
}

#[test]
fn targets_are_told_from_the_rest() {
    let before = "[databases]\napp = host=a port=1 dbname=x\nb = host=a\n";
    let moved = before.replacen("host=a port=1", "host=b,c port=22", 1);
    differs_in_targets_only(before, &moved, &["app"]).expect("only the target");
    for broken in [moved.replace("dbname=x", "dbname=y"), moved.replace("b = host=a", "b = host=c"), {
        moved.replace("dbname=x\n", "dbname=x \n")
    }] {
        assert!(differs_in_targets_only(before, &broken, &["app"]).is_err(), "{broken}");
    }
}
