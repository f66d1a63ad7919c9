//! What `pgsquire render patroni` prints, read as Patroni reads it: PyYAML, and a split into words as by a shell.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

const READ: &str = "
import json, shlex, sys, yaml
found = yaml.safe_load(sys.stdin)['postgresql']
words = {k: shlex.split(v) for k, v in found.pop('callbacks').items()}
words.update((k, shlex.split(v)) for k, v in found.items())
json.dump(words, sys.stdout)
";

fn read(file: &Path) -> serde_json::Value {
    let mut python = Command::new("python3");
    let mut child = python.args(["-c", READ]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(&std::fs::read(file).unwrap()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", file.display());
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn patroni_reads_the_commands_that_were_meant() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cli/render");
    for (file, config, before_stop, pre_promote) in [
        ("unknown.yml", "/etc/pgsquire/other.toml", true, true),
        ("off.yml", "/etc/pgsquire/other.toml", true, true),
        ("old.yml", "/etc/pgsquire/other.toml", false, true),
        ("rest.yml", "/etc/pgsquire/other.toml", false, false),
        ("strict.yml", "/etc/pgsquire/it's # one.toml", true, true),
    ] {
        let mut want = serde_json::Map::new();
        for name in ["on_start", "on_stop", "on_restart", "on_reload", "on_role_change"] {
            want.insert(name.to_owned(), serde_json::json!(["pgsquire", "callback", "--config", config]));
        }
        let hook = |kind| serde_json::json!(["pgsquire", "hook", kind, "--config", config]);
        if before_stop {
            want.insert("before_stop".to_owned(), hook("before-stop"));
        }
        if pre_promote {
            want.insert("pre_promote".to_owned(), hook("pre-promote"));
        }
        assert_eq!(read(&folder.join(file)), serde_json::Value::Object(want), "{file}");
    }
}
