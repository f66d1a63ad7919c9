//! The value of one `[databases]` entry: `key=value key='it''s'`.
//!
//! PgBouncer's reader differs from libpq's: only the space separates (a tab is part of a value), a quote
//! counts only at the beginning of a value and is doubled inside, there is no backslash, and the byte after a
//! closing quote is dropped whatever it is. Unknown parameters are kept: which ones exist depends on
//! PgBouncer's version.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

/// A connection string, with the place of each parameter in it.
#[derive(Clone, PartialEq, Eq)]
pub struct ConnString {
    params: Vec<Param>,
    end: usize,
}

/// One `key=value`.
#[derive(Clone, PartialEq, Eq)]
struct Param {
    key: Vec<u8>,
    /// Without quotes.
    value: Vec<u8>,
    /// Where the value stands, with its quotes.
    span: Range<usize>,
    quoted: bool,
}

/// Why PgBouncer would not take a connection string. None of these holds text of it: it may be a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConnStringError {
    /// A word without `=`.
    #[error(
        "a parameter without '=' or without a name; write key=value, and quote values with spaces: key='a b'"
    )]
    NoKey,
    /// `key=` at the end, or `key=''`.
    #[error("a parameter without a value; remove it or give it one")]
    NoValue,
    /// `key='...` without the closing quote.
    #[error("a quote that is never closed; close it (a quote inside a quoted value is written twice)")]
    UnterminatedQuote,
}

/// Replace the bytes at `at` by `with`. An empty range inserts.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Edit {
    pub(crate) at: Range<usize>,
    pub(crate) with: Vec<u8>,
}

impl ConnString {
    /// Reads an entry's value, as PgBouncer does.
    pub fn parse(text: &[u8]) -> Result<Self, ConnStringError> {
        let mut reader = Reader { text, at: 0 };
        let mut params = Vec::new();
        while let Some(param) = reader.param()? {
            params.push(param);
        }
        Ok(Self { params, end: text.len() })
    }

    /// The value of a parameter, without its quotes. The last one counts.
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        self.params.iter().rev().find(|p| p.key == key.as_bytes()).map(|p| p.value.as_slice())
    }

    /// All parameters in order, duplicates included.
    pub fn params(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.params.iter().map(|p| (p.key.as_slice(), p.value.as_slice()))
    }

    /// The least edits after which `host` and `port` are these: every occurrence is set (PgBouncer takes the
    /// last), what is not there is added at the end, what is right already stays.
    pub(crate) fn point_to(&self, host: &str, port: u16) -> Vec<Edit> {
        let mut edits = Vec::new();
        let mut added = String::new();
        // A port may be written in ways that mean the same, such as 05432.
        let is_port = |value: &[u8]| atoi(value) == i32::from(port);
        self.set("host", host, |value| value == host.as_bytes(), &mut edits, &mut added);
        self.set("port", &alloc::format!("{port}"), is_port, &mut edits, &mut added);
        if !added.is_empty() {
            let with = if self.end == 0 { added.trim_start() } else { &added };
            edits.push(Edit { at: self.end..self.end, with: with.into() });
        }
        edits
    }

    fn set(
        &self,
        key: &str,
        value: &str,
        same: impl Fn(&[u8]) -> bool,
        edits: &mut Vec<Edit>,
        added: &mut String,
    ) {
        let mut found = false;
        for param in self.params.iter().filter(|p| p.key == key.as_bytes()) {
            found = true;
            if !same(&param.value) {
                // A quoted value stays quoted: the byte after its closing quote is dropped, whatever it is.
                edits.push(Edit { at: param.span.clone(), with: write_value(value, param.quoted).into() });
            }
        }
        if !found {
            added.push(' ');
            added.push_str(key);
            added.push('=');
            added.push_str(&write_value(value, false));
        }
    }
}

/// Names the parameters, but never their values.
impl fmt::Debug for ConnString {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.params.iter().map(|p| String::from_utf8_lossy(&p.key))).finish()
    }
}

/// Writes a value, in quotes where it needs them or where they are wanted.
pub(crate) fn write_value(value: &str, quoted: bool) -> String {
    if quoted || value.contains([' ', '\'']) || !value.is_ascii() {
        alloc::format!("'{}'", value.replace('\'', "''"))
    } else {
        value.into()
    }
}

/// C's `atoi` on 64 bits: what PgBouncer makes of a port. It takes 0 for "not a number".
pub(crate) fn atoi(text: &[u8]) -> i32 {
    let text = text.trim_ascii_start();
    let (negative, digits) = match text.split_first() {
        Some((b'-', rest)) => (true, rest),
        Some((b'+', rest)) => (false, rest),
        _ => (false, text),
    };
    let digits = digits.iter().take_while(|b| b.is_ascii_digit());
    let number = digits.fold(0i64, |n, b| n.saturating_mul(10).saturating_add(i64::from(b - b'0')));
    // The wrap is intended: PgBouncer opens the port that this gives.
    (if negative { -number } else { number }) as i32
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn param(&mut self) -> Result<Option<Param>, ConnStringError> {
        self.skip_spaces();
        if self.peek().is_none() {
            return Ok(None);
        }
        let start = self.at;
        while self.peek().is_some_and(|b| b != b'=' && b != b' ') {
            self.at += 1;
        }
        let key = self.text[start..self.at].to_vec();
        self.skip_spaces();
        if key.is_empty() || self.peek() != Some(b'=') {
            return Err(ConnStringError::NoKey);
        }
        self.at += 1;
        self.skip_spaces();
        self.value(key).map(Some)
    }

    fn value(&mut self, key: Vec<u8>) -> Result<Param, ConnStringError> {
        let start = self.at;
        let quoted = self.peek() == Some(b'\'');
        let value = if quoted { self.quoted()? } else { self.word() };
        if value.is_empty() {
            return Err(ConnStringError::NoValue);
        }
        let span = start..self.at;
        // The byte after a value ends it, be it a space or not.
        self.at = self.text.len().min(self.at + 1);
        Ok(Param { key, value, span, quoted })
    }

    fn word(&mut self) -> Vec<u8> {
        let start = self.at;
        while self.peek().is_some_and(|b| b != b' ') {
            self.at += 1;
        }
        self.text[start..self.at].to_vec()
    }

    fn quoted(&mut self) -> Result<Vec<u8>, ConnStringError> {
        let mut value = Vec::new();
        self.at += 1;
        loop {
            match (self.peek(), self.text.get(self.at + 1)) {
                (None, _) => return Err(ConnStringError::UnterminatedQuote),
                (Some(b'\''), Some(b'\'')) => self.at += 1,
                (Some(b'\''), _) => break,
                _ => {}
            }
            value.push(self.text[self.at]);
            self.at += 1;
        }
        self.at += 1;
        Ok(value)
    }

    fn skip_spaces(&mut self) {
        while self.peek() == Some(b' ') {
            self.at += 1;
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn get(text: &str, key: &str) -> Option<String> {
        let parsed = ConnString::parse(text.as_bytes()).unwrap();
        parsed.get(key).map(|v| String::from_utf8(v.to_vec()).unwrap())
    }

    fn pointed(text: &str, host: &str, port: u16) -> String {
        let mut bytes = text.as_bytes().to_vec();
        let mut edits = ConnString::parse(&bytes).unwrap().point_to(host, port);
        edits.sort_by_key(|edit| edit.at.start);
        for edit in edits.into_iter().rev() {
            bytes.splice(edit.at, edit.with);
        }
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn reads_as_pgbouncer_does() {
        for (text, key, value) in [
            ("host=a port=1", "port", "1"),
            ("host = a   port =  1 ", "port", "1"),
            ("host=a host=b", "host", "b"),
            ("password=a;b#c host=d", "password", "a;b#c"),
            ("password='it''s' host=d", "password", "it's"),
            ("password=it's host=d", "host", "d"),
            ("password=a\\'b host=d", "password", "a\\'b"),
            ("password='p'Xhost=k", "host", "k"),
            ("host=a\tport=1", "host", "a\tport=1"),
            ("host= port=1", "host", "port=1"),
            ("password='a=b c''' host=d", "password", "a=b c'"),
        ] {
            assert_eq!(get(text, key).as_deref(), Some(value), "{text}");
        }
        assert_eq!(get("", "host"), None);
    }

    #[test]
    fn refuses_what_pgbouncer_refuses() {
        use ConnStringError::{NoKey, NoValue, UnterminatedQuote};
        for (text, error) in [
            ("host", NoKey),
            ("= a", NoKey),
            ("host a=b", NoKey),
            ("host=", NoValue),
            ("host='' port=1", NoValue),
            ("host='a", UnterminatedQuote),
            ("host='a''", UnterminatedQuote),
            ("host='", UnterminatedQuote),
        ] {
            assert_eq!(ConnString::parse(text.as_bytes()), Err(error), "{text}");
        }
    }

    #[test]
    fn points_with_the_least_change() {
        for (before, after) in [
            ("", "host=n port=5"),
            ("dbname=x", "dbname=x host=n port=5"),
            ("host=a  port = 1 user=u", "host=n  port = 5 user=u"),
            ("port=05 user=u host=n", "port=05 user=u host=n"),
            ("host='a'Xport='1'", "host='n'Xport='5'"),
            ("host=a host=b port=1 port=5", "host=n host=n port=5 port=5"),
            ("password='host=a' host=b", "password='host=a' host=n port=5"),
            ("host=a\tport=1", "host=n port=5"),
        ] {
            assert_eq!(pointed(before, "n", 5), after, "{before}");
        }
    }

    #[test]
    fn quotes_what_needs_it() {
        assert_eq!(pointed("host=a port=1", "/run/it's here", 1), "host='/run/it''s here' port=1");
    }

    #[test]
    fn ports_as_c_reads_them() {
        for (text, port) in
            [("12abc", 12), ("-3", -3), ("+7", 7), ("010", 10), ("x", 0), ("", 0), ("4294967297", 1)]
        {
            assert_eq!(atoi(text.as_bytes()), port, "{text}");
        }
        assert_eq!(atoi(b"99999999999"), 1_215_752_191);
        assert_eq!(atoi(b"99999999999999999999"), -1);
    }

    #[test]
    fn debug_shows_no_values() {
        let parsed = ConnString::parse(b"host=a password=secret").unwrap();
        assert_eq!(format!("{parsed:?}"), "{\"host\", \"password\"}");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = ConnString::parse(&bytes);
        }

        #[test]
        fn pointing_sets_host_and_port_and_nothing_else(
            text in "((host|port|password|user) ?= {0,2}([a-z;#0-9']{1,5}|'([a-z =;#]|''){1,6}')[ x]{1,3}){0,5}",
            host in "[a-z/]([a-z ']{0,5}[a-z])?",
            port: u16,
        ) {
            let text = text.trim_end();
            prop_assume!(ConnString::parse(text.as_bytes()).is_ok());
            let after = pointed(text, &host, port);
            prop_assert_eq!(get(&after, "host"), Some(host.clone()));
            prop_assert_eq!(atoi(get(&after, "port").unwrap().as_bytes()), i32::from(port));
            prop_assert_eq!(get(&after, "password"), get(text, "password"));
            prop_assert_eq!(get(&after, "user"), get(text, "user"));
            prop_assert_eq!(pointed(&after, &host, port), after);
        }
    }
}
