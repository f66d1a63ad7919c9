//! What agents tell each other: JSON values below our own prefix, `/pgsquire/<namespace>/<scope>[/<group>]/`.
//!
//! ```text
//!   switch            by the agent of a member that is about to stop          leased
//!   fence             by the agent of a member that is about to be promoted   leased
//!   poolers/<node>    by each agent with routes into the cluster: I live, and how far I am    leased
//!   members/<member>  by the agent of a leader: its server is writable        leased
//!   registry/<node>   who has to give his word under `fence = "strict"`       stays until `pgsquire forget NODE`
//! ```
//!
//! Every value carries `v`. Unknown fields are ignored; a newer `v` is unknown and never acknowledged, because every
//! rolling upgrade is a mixed version.

use crate::wal::Timeline;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// The version of these records.
pub const VERSION: u32 = 1;
/// Key of [`Switch`].
pub const SWITCH: &str = "switch";
/// Key of [`Fencing`].
pub const FENCE: &str = "fence";
/// Prefix of the keys of [`PoolerWord`].
pub const POOLERS: &str = "poolers/";
/// Prefix of the keys of [`MemberWord`].
pub const MEMBERS: &str = "members/";
/// Prefix of the keys of [`Registered`].
pub const REGISTRY: &str = "registry/";

/// Why a member stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SwitchKind {
    /// Another member will lead.
    Switchover,
    /// It will come back as the leader.
    Restart,
}

/// How far the stop is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// `before_stop` waits for the poolers.
    Drain,
    /// `before_stop` has returned: the server is being stopped.
    Stop,
    /// The hook was lost: the stop may not happen.
    Aborted,
}

/// The switch record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switch {
    /// [`VERSION`].
    pub v: u32,
    /// Names this stop: no two are alike.
    pub epoch: String,
    /// The member that stops.
    pub from: String,
    /// Why.
    pub kind: SwitchKind,
    /// How far it is.
    pub phase: Phase,
    /// Start time of its server in Patroni's words, as it was before the stop.
    pub started: Option<String>,
    /// The hook waits at most this long, counted from the first sight of the record.
    pub drain_ms: u64,
    /// Trace context of the switch (W3C `traceparent`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
}

/// The fence record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fencing {
    /// [`VERSION`].
    pub v: u32,
    /// Names this promotion: no two are alike.
    pub epoch: String,
    /// The member that is about to be promoted.
    pub member: String,
    /// Who led before, if its agent knows.
    pub former: Option<String>,
    /// The promotion waits for everybody's word.
    pub strict: bool,
}

/// What an agent says of its poolers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolerWord {
    /// [`VERSION`].
    pub v: u32,
    /// Its node name.
    pub node: String,
    /// The member on its host.
    pub member: Option<String>,
    /// It drains when it is asked to; one that does not is not waited for.
    #[serde(default = "yes")]
    pub drains: bool,
    /// Epoch of the switch for which it has drained: no link leads to the member any more.
    #[serde(default)]
    pub drained: Option<String>,
    /// Links of session pools that stay until their clients leave.
    #[serde(default)]
    pub links_left: u32,
    /// Epoch of the fence record for which none of its links can write to anybody but the new leader.
    #[serde(default)]
    pub fenced: Option<String>,
    /// The member whose links it has let go of, while it holds its pools.
    #[serde(default)]
    pub holds: Option<String>,
}

fn yes() -> bool {
    true
}

/// What the agent beside a leader says of its server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberWord {
    /// [`VERSION`].
    pub v: u32,
    /// The member.
    pub member: String,
    /// Revision of the leader key that it speaks under: a word of an earlier leadership says nothing.
    pub leader_revision: u64,
    /// Its server is out of recovery on this timeline.
    pub timeline: Timeline,
}

/// An entry of the registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// [`VERSION`].
    pub v: u32,
    /// The agent's node name.
    pub node: String,
}

/// Everything below our own prefix, understood.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Peers {
    /// The switch record.
    pub switch: Option<Switch>,
    /// The fence record.
    pub fence: Option<Fencing>,
    /// By node name.
    pub poolers: BTreeMap<String, PoolerWord>,
    /// By member name.
    pub members: BTreeMap<String, MemberWord>,
    /// Node names.
    pub registry: Vec<String>,
    /// Live poolers whose word cannot be understood (a newer version): they count, and never agree.
    pub strangers: Vec<String>,
    /// What could not be understood, for people.
    pub problems: Vec<String>,
}

#[derive(Deserialize)]
struct Versioned {
    v: u32,
}

/// Reads one record.
///
/// # Errors
/// A sentence, when it is not ours or of a newer version.
fn read_record<T: DeserializeOwned>(key: &str, value: &[u8]) -> Result<T, String> {
    let bad = |e: serde_json::Error| format!("our key {key} is not understood ({e})");
    let Versioned { v } = serde_json::from_slice(value).map_err(bad)?;
    if v != VERSION {
        return Err(format!("our key {key} has version {v}, this agent knows {VERSION}: upgrade it"));
    }
    serde_json::from_slice(value).map_err(bad)
}

/// Reads all keys below our own prefix.
pub fn read_peers(keys: &crate::patroni::Keys) -> Peers {
    let mut peers = Peers::default();
    for (key, stored) in keys {
        let value = stored.value.as_slice();
        let result = if key == SWITCH {
            read_record(key, value).map(|record| peers.switch = Some(record))
        } else if key == FENCE {
            read_record(key, value).map(|record| peers.fence = Some(record))
        } else if let Some(node) = key.strip_prefix(POOLERS) {
            let read = read_record(key, value);
            if read.is_err() {
                peers.strangers.push(node.into());
            }
            read.map(|word| {
                peers.poolers.insert(node.into(), word);
            })
        } else if let Some(member) = key.strip_prefix(MEMBERS) {
            read_record(key, value).map(|word| {
                peers.members.insert(member.into(), word);
            })
        } else if let Some(node) = key.strip_prefix(REGISTRY) {
            // Whatever it says: somebody was registered.
            peers.registry.push(node.into());
            Ok(())
        } else {
            Ok(())
        };
        peers.problems.extend(result.err());
    }
    peers
}

/// A record as bytes.
pub fn to_bytes<T: Serialize>(record: &T) -> Vec<u8> {
    // Strings, numbers and options only: it cannot fail.
    serde_json::to_vec(record).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patroni::{Keys, StoredValue};

    fn keys(list: &[(&str, &str)]) -> Keys {
        let stored = |v: &str| StoredValue { value: v.into(), revision: 1 };
        list.iter().map(|(k, v)| ((*k).into(), stored(v))).collect()
    }

    #[test]
    fn a_newer_version_is_unknown_and_a_new_field_is_not() {
        let peers = read_peers(&keys(&[
            ("switch", r#"{"v":2,"whole":"new"}"#),
            ("poolers/a", r#"{"v":1,"node":"a","member":null,"colour":"red"}"#),
            ("poolers/b", r#"{"v":2,"node":"b"}"#),
            ("poolers/c", "nonsense"),
            ("registry/gone", ""),
            ("else/where", "x"),
        ]));
        assert_eq!(peers.switch, None);
        assert_eq!(peers.poolers.keys().collect::<Vec<_>>(), ["a"]);
        assert_eq!(peers.strangers, ["b", "c"]);
        assert_eq!(peers.registry, ["gone"]);
        assert_eq!(peers.problems.len(), 3);
        assert!(peers.problems[2].contains("version 2"), "{:?}", peers.problems);
    }

    #[test]
    fn a_record_survives_the_way() {
        let switch = Switch {
            v: VERSION,
            epoch: "7-8".into(),
            from: "pg1".into(),
            kind: SwitchKind::Switchover,
            phase: Phase::Drain,
            started: Some("2026-01-01".into()),
            drain_ms: 3000,
            traceparent: None,
        };
        let text = String::from_utf8(to_bytes(&switch)).unwrap();
        assert_eq!(read_peers(&keys(&[(SWITCH, &text)])).switch, Some(switch));
    }
}
