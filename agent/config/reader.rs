//! Walks a parsed TOML document by hand, so that one run finds everything that is wrong and each finding has its place.
//! (`serde` stops at the first.)

use super::problem::{Problems, Severity, Span};
use super::units;
use std::cell::RefCell;
use std::path::PathBuf;
use std::time::Duration;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// One table of the file. Every key that is asked for is known; [`Table::finish`] reports the rest.
pub(super) struct Table<'a> {
    path: String,
    span: Span,
    entries: &'a DeTable<'a>,
    asked: RefCell<Vec<&'static str>>,
    problems: &'a Problems,
}

/// One value of the file.
pub(super) struct Item<'a> {
    /// Path of its key.
    pub path: String,
    /// Where it is.
    pub span: Span,
    value: &'a DeValue<'a>,
    problems: &'a Problems,
}

impl<'a> Table<'a> {
    /// The document itself.
    pub fn root(document: &'a Spanned<DeTable<'a>>, problems: &'a Problems) -> Self {
        Table {
            path: String::new(),
            span: document.span(),
            entries: document.get_ref(),
            asked: RefCell::default(),
            problems,
        }
    }

    /// The value of a key.
    pub fn item(&self, key: &'static str) -> Option<Item<'a>> {
        let mut asked = self.asked.borrow_mut();
        if !asked.contains(&key) {
            asked.push(key);
        }
        self.entries.get(key).map(|value| self.wrap(key, value))
    }

    /// Whether the key is there.
    pub fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// All entries of a table whose keys are names: key, where the key is, value.
    pub fn names(&self) -> impl Iterator<Item = (&'a str, Span, Item<'a>)> {
        self.entries.iter().map(|(key, value)| {
            let name: &'a str = key.get_ref().as_ref();
            (name, key.span(), self.wrap(name, value))
        })
    }

    fn wrap(&self, key: &str, value: &'a Spanned<DeValue<'a>>) -> Item<'a> {
        let path = if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) };
        Item { path, span: value.span(), value: value.get_ref(), problems: self.problems }
    }

    /// A table; one that is missing reads as an empty one.
    pub fn table(&self, key: &'static str) -> Option<Table<'a>> {
        self.item(key)?.table()
    }

    /// An array of tables.
    pub fn tables(&self, key: &'static str) -> Vec<Table<'a>> {
        self.item(key).map(|item| item.tables()).unwrap_or_default()
    }

    /// Text that is not empty.
    pub fn text(&self, key: &'static str) -> Option<String> {
        let item = self.item(key)?;
        let text = item.string()?;
        if text.trim().is_empty() || text.contains(char::is_control) {
            item.error("this must not be empty or hold control characters");
            return None;
        }
        Some(text.to_owned())
    }

    /// Text; the empty text means none.
    pub fn optional_text(&self, key: &'static str) -> Option<String> {
        self.item(key)?.string().filter(|text| !text.is_empty()).map(str::to_owned)
    }

    /// An absolute path.
    pub fn path(&self, key: &'static str) -> Option<PathBuf> {
        let item = self.item(key)?;
        let text = item.string()?;
        if !text.starts_with('/') {
            item.error(format!("`{text}` is not an absolute path: begin it with /"));
            return None;
        }
        Some(PathBuf::from(text))
    }

    /// A yes or no.
    pub fn bool(&self, key: &'static str) -> Option<bool> {
        let item = self.item(key)?;
        match item.value {
            DeValue::Boolean(value) => Some(*value),
            _ => item.expected("true or false"),
        }
    }

    /// A number that is not negative.
    pub fn number(&self, key: &'static str) -> Option<u32> {
        let item = self.item(key)?;
        match item.value {
            DeValue::Integer(n) => match u32::from_str_radix(n.as_str(), n.radix()) {
                Ok(n) => Some(n),
                Err(_) => item.expected("a number from 0 on"),
            },
            _ => item.expected("a number"),
        }
    }

    /// One of some words.
    pub fn word<T: Copy>(&self, key: &'static str, words: &[(&str, T)]) -> Option<T> {
        self.item(key)?.word(words)
    }

    /// Text that `read` understands.
    pub fn parse<T>(&self, key: &'static str, read: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        self.item(key)?.parse(read)
    }

    /// A duration of at least `min`.
    pub fn duration(&self, key: &'static str, min: Duration) -> Option<Duration> {
        let item = self.item(key)?;
        let value = item.parse(units::duration)?;
        if value < min {
            let min = pgsquire_core::time::Human(min);
            item.error(format!("this is too short: the least that works is {min}"));
            return None;
        }
        Some(value)
    }

    /// Several texts.
    pub fn list(&self, key: &'static str) -> Option<Vec<Item<'a>>> {
        let item = self.item(key)?;
        match item.value {
            DeValue::Array(array) => Some(
                array
                    .iter()
                    .enumerate()
                    .map(|(i, value)| Item {
                        path: format!("{}[{i}]", item.path),
                        span: value.span(),
                        value: value.get_ref(),
                        problems: item.problems,
                    })
                    .collect(),
            ),
            _ => item.expected("a list in brackets"),
        }
    }

    /// Reports a key that must be there and is not.
    pub fn missing(&self, key: &str, help: &str) {
        let message = format!("`{key}` is missing");
        self.problems.add(Severity::Error, &self.path, self.span.clone(), message, Some(help.to_owned()));
    }

    /// Reports something wrong with the table as a whole.
    pub fn error(&self, message: impl Into<String>) {
        self.problems.add(Severity::Error, &self.path, self.span.clone(), message.into(), None);
    }

    /// Reports something wrong with a key's name.
    pub fn error_at(&self, key: &str, span: Span, message: String) {
        self.problems.add(Severity::Error, &format!("{}.{key}", self.path), span, message, None);
    }

    /// Says that these keys are understood but do nothing yet.
    pub fn later(&self, keys: &[&str]) {
        self.later_so(keys, "");
    }

    /// The same, with what follows from it.
    pub fn later_so(&self, keys: &[&str], so: &str) {
        for (key, span, item) in self.names().filter(|(key, ..)| keys.contains(key)) {
            let message = format!("`{key}` has no effect in this version{so}");
            self.problems.add(Severity::Warning, &item.path, span, message, None);
        }
    }

    /// Reports every key that nobody asked for.
    pub fn finish(&self) {
        let asked = self.asked.borrow();
        for (name, span, item) in self.names().filter(|(name, ..)| !asked.contains(name)) {
            let known = || format!("known here: {}", asked.join(", "));
            let help = nearest(name, &asked).map_or_else(known, |near| format!("did you mean `{near}`?"));
            self.problems.add(Severity::Error, &item.path, span, format!("unknown key `{name}`"), Some(help));
        }
    }
}

impl<'a> Item<'a> {
    /// Reports something wrong with this value.
    pub fn error(&self, message: impl Into<String>) {
        self.problems.add(Severity::Error, &self.path, self.span.clone(), message.into(), None);
    }

    /// Reports something wrong with this value, and what to do.
    pub fn error_help(&self, message: impl Into<String>, help: impl Into<String>) {
        self.problems.add(Severity::Error, &self.path, self.span.clone(), message.into(), Some(help.into()));
    }

    fn expected<T>(&self, what: &str) -> Option<T> {
        self.error(format!("expected {what}, found {}", kind(self.value)));
        None
    }

    /// As text.
    pub fn string(&self) -> Option<&'a str> {
        match self.value {
            DeValue::String(text) => Some(text.as_ref()),
            _ => self.expected("text in quotes"),
        }
    }

    /// Text that `read` understands.
    pub fn parse<T>(&self, read: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        read(self.string()?).map_err(|why| self.error(why)).ok()
    }

    /// One of some words.
    pub fn word<T: Copy>(&self, words: &[(&str, T)]) -> Option<T> {
        let text = self.string()?;
        let found = words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value);
        if found.is_none() {
            let all: Vec<String> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
            self.error_help(format!("`{text}` is not known here"), format!("write {}", all.join(" or ")));
        }
        found
    }

    /// A size: text with a unit, or a number of bytes.
    pub fn size(&self) -> Option<u64> {
        match self.value {
            DeValue::Integer(n) => match u64::from_str_radix(n.as_str(), n.radix()) {
                Ok(bytes) => Some(bytes),
                Err(_) => self.expected("a number of bytes from 0 on"),
            },
            _ => self.parse(units::size),
        }
    }

    /// The same place again, for what is found later.
    pub fn again(&self) -> Item<'a> {
        Item { path: self.path.clone(), span: self.span.clone(), value: self.value, problems: self.problems }
    }

    /// Whether it is a table.
    pub fn is_table(&self) -> bool {
        matches!(self.value, DeValue::Table(_))
    }

    /// As a table.
    pub fn table(self) -> Option<Table<'a>> {
        let DeValue::Table(entries) = self.value else { return self.expected("a table") };
        let (path, span, problems) = (self.path, self.span, self.problems);
        Some(Table { path, span, entries, asked: RefCell::default(), problems })
    }

    fn tables(self) -> Vec<Table<'a>> {
        let DeValue::Array(array) = self.value else {
            let key = &self.path;
            self.error(format!("expected [[{key}]], in double brackets: there may be several"));
            return Vec::new();
        };
        let inner = |(i, value): (usize, &'a Spanned<DeValue<'a>>)| Item {
            path: format!("{}[{i}]", self.path),
            span: value.span(),
            value: value.get_ref(),
            problems: self.problems,
        };
        array.iter().enumerate().map(inner).filter_map(Item::table).collect()
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

/// The known key that was probably meant: at most two letters off, or three in a long word.
fn nearest<'k>(name: &str, known: &[&'k str]) -> Option<&'k str> {
    let limit = if name.chars().count() > 8 { 3 } else { 2 };
    known
        .iter()
        .map(|key| (distance(name, key), *key))
        .filter(|(d, key)| *d <= limit && *d < key.len())
        .min()
        .map(|(_, key)| key)
}

/// How many letters must be put in, left out or changed to get from one word to the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, cb) in b.iter().enumerate() {
            let change = diagonal + usize::from(ca != *cb);
            diagonal = row[j + 1];
            row[j + 1] = change.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn typing_mistakes_are_guessed() {
        let known = ["drain", "drain_timeout", "hold_timeout"];
        assert_eq!(nearest("drain_timout", &known), Some("drain_timeout"));
        assert_eq!(nearest("darin", &known), Some("drain"));
        assert_eq!(nearest("colour", &known), None);
        assert_eq!(distance("", "abc"), 3);
    }
}
