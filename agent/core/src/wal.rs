//! Where a server is in the write-ahead log, and how new a view of the cluster is.

use alloc::string::String;
use core::fmt;
use core::str::FromStr;
use serde::{Deserialize, Serialize};

/// A position in the write-ahead log, in bytes. Prints as PostgreSQL does: `16/B374D848`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lsn(pub u64);

impl Lsn {
    /// Bytes from `earlier` to here; zero if `earlier` is ahead.
    pub fn bytes_since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// The text is not a write-ahead log position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a log position: expected two hexadecimal numbers like 16/B374D848")]
pub struct BadLsn(pub String);

impl FromStr for Lsn {
    type Err = BadLsn;
    fn from_str(text: &str) -> Result<Self, BadLsn> {
        let bad = || BadLsn(text.into());
        let (high, low) = text.split_once('/').ok_or_else(bad)?;
        let part = |hex: &str| {
            let plain = !hex.is_empty() && hex.bytes().all(|b| b.is_ascii_hexdigit());
            plain.then(|| u32::from_str_radix(hex, 16).ok()).flatten().ok_or_else(bad)
        };
        Ok(Lsn(u64::from(part(high)?) << 32 | u64::from(part(low)?)))
    }
}

/// A PostgreSQL timeline: one more with every promotion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timeline(pub u32);

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How new a view of the cluster is. It never goes back.
///
/// Revisions compare only within one store: a store that was rebuilt from a snapshot starts lower.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Term {
    /// PostgreSQL's system identifier, from Patroni's `initialize` key.
    pub system_id: Option<String>,
    /// Highest timeline on which the leader was seen writable.
    pub timeline: Option<Timeline>,
    /// Identity of the store (etcd: the cluster id).
    pub store: String,
    /// The store's revision at which the leader key was written.
    pub revision: u64,
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.timeline {
            Some(t) => write!(f, "timeline {t}, ")?,
            None => f.write_str("timeline unknown, ")?,
        }
        write!(f, "revision {} of store {}", self.revision, self.store)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn lsn_survives_print_and_parse(n: u64) {
            prop_assert_eq!(Lsn(n).to_string().parse(), Ok(Lsn(n)));
        }
    }

    #[test]
    fn lsn_refuses_what_is_none() {
        for text in ["", "/", "1/", "/1", "1/2/3", "g/1", "-1/1", "+1/1", "100000000/0", "0/0 "] {
            assert_eq!(text.parse::<Lsn>(), Err(BadLsn(text.into())), "{text}");
        }
        assert_eq!("16/B374D848".parse(), Ok(Lsn(0x16_B374_D848)));
    }
}
