//! One configuration file: its bytes, and where the things PgBouncer reads stand in them.
//!
//! PgBouncer reads its file as a stream, not line by line: after the `]` of a section header it goes on
//! reading on the same line, so `[databases] app = host=a` is a header and an entry. The reader here does the
//! same, therefore both see the same entries. It only notes places; the bytes stay as they are, which is what
//! makes an edit lossless.

use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

/// A configuration file. Any bytes are a document; what PgBouncer would not accept is an [`ItemKind::Junk`].
#[derive(Clone, PartialEq, Eq)]
pub struct Document {
    bytes: Vec<u8>,
    items: Vec<Item>,
    nul: Option<usize>,
}

/// One thing in a file that is neither blank nor comment. It never spans lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// What it is.
    pub kind: ItemKind,
    /// Its line, counted from 1.
    pub line: usize,
    /// Its bytes, from the first that belongs to it to the last that matters (trailing blanks are not in it).
    pub span: Range<usize>,
}

/// The kinds of items. The ranges are places in the document's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ItemKind {
    /// `[name]`
    Section {
        /// The text between the brackets. PgBouncer does not trim it.
        name: Range<usize>,
    },
    /// `%include FILE`
    Include {
        /// The file's name: the rest of the line, without quotes or comments.
        file: Range<usize>,
    },
    /// `key = value`
    Entry {
        /// The key. PgBouncer accepts an empty one.
        key: Range<usize>,
        /// The rest of the line without blanks around it. `;` and `#` are part of it.
        value: Range<usize>,
        /// The key stands in single quotes: accepted by the newest PgBouncer only.
        quoted: bool,
    },
    /// A line, or the rest of one, that PgBouncer calls a syntax error.
    Junk,
}

impl Document {
    /// Reads a file. Never fails.
    pub fn parse(bytes: &[u8]) -> Self {
        let end = bytes.iter().position(|&b| b == 0);
        // PgBouncer takes a NUL for the end of the file.
        let mut reader = Reader { text: &bytes[..end.unwrap_or(bytes.len())], at: 0, line: 1 };
        let mut items = Vec::new();
        while let Some(item) = reader.next_item() {
            items.push(item);
        }
        let nul = end.map(|end| 1 + bytes[..end].iter().filter(|&&b| b == b'\n').count());
        Self { bytes: bytes.to_vec(), items, nul }
    }

    /// The file's bytes, exactly as they came.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.bytes.clone()
    }

    /// The items in file order.
    pub fn items(&self) -> &[Item] {
        &self.items
    }

    /// The bytes at a place that one of this document's items names.
    pub fn text(&self, range: &Range<usize>) -> &[u8] {
        &self.bytes[range.clone()]
    }

    /// The line of the first NUL byte, where PgBouncer stops reading.
    pub fn nul_line(&self) -> Option<usize> {
        self.nul
    }

    /// The place after the end of the line that holds `at`, that is: where the next line begins.
    pub(crate) fn next_line(&self, at: usize) -> usize {
        let rest = &self.bytes[at..];
        rest.iter().position(|&b| b == b'\n').map_or(self.bytes.len(), |n| at + n + 1)
    }

    /// The line ending in use just before `at`; where there is none, the file's first one.
    pub(crate) fn line_ending(&self, at: usize) -> &'static str {
        let upto = |end: usize| if self.bytes[..end].ends_with(b"\r\n") { "\r\n" } else { "\n" };
        if self.bytes[..at].ends_with(b"\n") { upto(at) } else { upto(self.next_line(0)) }
    }

    /// Whether `at` is the beginning of a line.
    pub(crate) fn at_line_start(&self, at: usize) -> bool {
        at == 0 || self.bytes[at - 1] == b'\n'
    }

    /// The number of bytes.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }
}

/// Says how long the file is and not what is in it: its entries hold passwords.
impl fmt::Debug for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Document({} bytes, {} items)", self.bytes.len(), self.items.len())
    }
}

/// C's `isspace`.
fn is_space(b: u8) -> bool {
    matches!(b, b' ' | b'\t'..=b'\r')
}

/// C's `isblank`.
fn is_blank(b: u8) -> bool {
    matches!(b, b' ' | b'\t')
}

/// Whether a key may hold this byte without quotes.
pub(crate) fn is_key_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-' | b'*')
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
    line: usize,
}

impl Reader<'_> {
    fn next_item(&mut self) -> Option<Item> {
        self.skip_blanks_and_comments();
        let start = self.at;
        let kind = match self.peek()? {
            b'[' => self.section(),
            b'%' => self.include(),
            _ => self.entry(),
        };
        let kind = kind.unwrap_or_else(|| {
            // PgBouncer gives up here. We go on with the next line to find all errors at once.
            self.at = start;
            self.rest_of_line();
            ItemKind::Junk
        });
        let mut end = self.at;
        while end > start && is_space(self.text[end - 1]) {
            end -= 1;
        }
        Some(Item { kind, line: self.line, span: start..end })
    }

    fn section(&mut self) -> Option<ItemKind> {
        self.at += 1;
        let name = self.take_while(|b| b != b']' && b != b'\n');
        (self.peek()? == b']').then(|| {
            self.at += 1;
            ItemKind::Section { name }
        })
    }

    fn include(&mut self) -> Option<ItemKind> {
        let rest = self.text[self.at..].strip_prefix(b"%include")?;
        if !is_blank(*rest.first()?) {
            return None;
        }
        self.at = self.text.len() - rest.len();
        self.take_while(is_blank);
        Some(ItemKind::Include { file: self.rest_of_line() })
    }

    fn entry(&mut self) -> Option<ItemKind> {
        let quoted = self.peek() == Some(b'\'');
        let key = if quoted { self.quoted_key()? } else { self.take_while(is_key_byte) };
        self.take_while(is_blank);
        if self.peek()? != b'=' {
            return None;
        }
        self.at += 1;
        self.take_while(is_blank);
        Some(ItemKind::Entry { key, value: self.rest_of_line(), quoted })
    }

    fn quoted_key(&mut self) -> Option<Range<usize>> {
        self.at += 1;
        let key = self.take_while(|b| b != b'\'' && b != b'\n');
        if self.peek()? != b'\'' || key.is_empty() {
            return None;
        }
        self.at += 1;
        Some(key)
    }

    fn skip_blanks_and_comments(&mut self) {
        loop {
            match self.peek() {
                Some(b'\n') => {
                    self.line += 1;
                    self.at += 1;
                }
                Some(b) if is_space(b) => self.at += 1,
                Some(b'#' | b';') => drop(self.take_while(|b| b != b'\n')),
                _ => return,
            }
        }
    }

    /// Moves to the end of the line; the range has no blanks at its end.
    fn rest_of_line(&mut self) -> Range<usize> {
        let mut rest = self.take_while(|b| b != b'\n');
        while !rest.is_empty() && is_space(self.text[rest.end - 1]) {
            rest.end -= 1;
        }
        rest
    }

    fn take_while(&mut self, wanted: impl Fn(u8) -> bool) -> Range<usize> {
        let start = self.at;
        while self.peek().is_some_and(&wanted) {
            self.at += 1;
        }
        start..self.at
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The items as text: `[section]`, `<file>`, `key|value`, `?` for junk; with their line.
    fn read(text: &str) -> Vec<String> {
        let doc = Document::parse(text.as_bytes());
        let show = |r: &Range<usize>| String::from_utf8_lossy(doc.text(r)).into_owned();
        let items = doc.items().iter().map(|item| {
            let text = match &item.kind {
                ItemKind::Section { name } => format!("[{}]", show(name)),
                ItemKind::Include { file } => format!("<{}>", show(file)),
                ItemKind::Entry { key, value, .. } => format!("{}|{}", show(key), show(value)),
                ItemKind::Junk => "?".into(),
            };
            format!("{} {text}", item.line)
        });
        items.collect()
    }

    #[test]
    fn the_five_kinds_of_lines() {
        let text = "; c\n  # c\n\n[databases]\n a\t=\thost=x;y #z \n%include\tb c.ini ; d \n";
        assert_eq!(read(text), ["4 [databases]", "5 a|host=x;y #z", "6 <b c.ini ; d>"]);
    }

    #[test]
    fn a_header_does_not_end_its_line() {
        assert_eq!(read("[a][b] k = v [c]\n[d];k = v\n"), ["1 [a]", "1 [b]", "1 k|v [c]", "2 [d]"]);
        assert_eq!(read("[a]%include x\r\n"), ["1 [a]", "1 <x>"]);
    }

    #[test]
    fn blanks_are_those_of_c() {
        assert_eq!(read("\x0b\x0c[a]\r\n k = v\x0b\r\n"), ["1 [a]", "2 k|v"]);
        assert_eq!(read("[a]\rk = v\rl = w"), ["1 [a]", "1 k|v\rl = w"]);
    }

    #[test]
    fn empty_keys_and_values_are_entries() {
        assert_eq!(read("k=\n=v\n"), ["1 k|", "2 |v"]);
    }

    #[test]
    fn junk_ends_with_its_line() {
        let junk =
            ["[a", "k", "k v = w", "\"k\" = v", "'k = v", "'' = v", "%include", "%includes x", "\u{feff}[a]"];
        for line in junk {
            assert_eq!(read(&format!("{line}\nk=v\n")), ["1 ?", "2 k|v"], "{line}");
        }
    }

    #[test]
    fn a_nul_ends_the_file() {
        let doc = Document::parse(b"k=v\n\0l=w\n");
        assert_eq!((doc.items().len(), doc.nul_line()), (1, Some(2)));
        assert_eq!(doc.to_bytes(), b"k=v\n\0l=w\n");
    }

    #[test]
    fn debug_shows_no_content() {
        let doc = Document::parse(b"[databases]\na = password=secret\n");
        assert_eq!(format!("{doc:?}"), "Document(32 bytes, 2 items)");
    }

    proptest! {
        #[test]
        fn any_bytes_come_back(bytes: Vec<u8>) {
            prop_assert_eq!(Document::parse(&bytes).to_bytes(), bytes);
        }

        #[test]
        fn items_stand_in_order_and_on_one_line(text in "[a\\[\\]%=';#\\n\\r\\t \0]{0,60}|(%include |k = |\\[s\\]|'q'|\\n){0,9}") {
            let doc = Document::parse(text.as_bytes());
            let mut last = 0;
            for item in doc.items() {
                prop_assert!(last <= item.span.start && item.span.start < item.span.end);
                prop_assert!(!doc.text(&item.span).contains(&b'\n'));
                let before = &text.as_bytes()[..item.span.start];
                prop_assert_eq!(item.line, 1 + before.iter().filter(|&&b| b == b'\n').count());
                last = item.span.end;
            }
        }
    }
}
