//! All files of a configuration in the order in which PgBouncer comes to their items, and what it would
//! refuse.

use alloc::borrow::ToOwned;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use super::connstr::{ConnString, atoi};
use super::document::{Document, Item, ItemKind};
use super::ini::Files;
use super::problem::{Problem, ProblemKind};

/// PgBouncer reads the main file and this many levels of included ones.
const MAX_DEPTH: usize = 10;

/// PgBouncer's limit for a database's name, in bytes.
const MAX_NAME: usize = 63;

/// What PgBouncer has against a name that is in the file.
pub(super) fn check_known_name(name: &[u8]) -> Option<ProblemKind> {
    if name == b"pgbouncer" {
        return Some(ProblemKind::ReservedName);
    }
    let entry = || String::from_utf8_lossy(name).into_owned();
    (name.len() > MAX_NAME).then(|| ProblemKind::LongName { entry: entry() })
}

/// The section in which the reader stands. It lives on into included files, and out of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Section {
    None,
    PgBouncer,
    Databases,
    /// `[users]` or `[peers]`.
    Other,
    Unknown,
}

/// One item, in the order in which PgBouncer comes to it.
pub(super) struct Step<'a> {
    pub(super) file: &'a str,
    pub(super) doc: &'a Document,
    pub(super) item: &'a Item,
    /// The section of the item; for a header, the one it opens.
    pub(super) section: Section,
}

/// One entry of `[databases]`.
pub(super) struct Database<'a> {
    pub(super) file: &'a str,
    pub(super) line: usize,
    pub(super) name: &'a [u8],
    pub(super) value: &'a [u8],
    pub(super) value_at: usize,
}

/// Reads all files as PgBouncer does.
pub(super) struct Reading<'a> {
    files: &'a Files,
    docs: &'a BTreeMap<&'a str, Document>,
    pub(super) section: Section,
    seen_main: bool,
    /// The files being read, the main one first.
    open: Vec<&'a str>,
    pub(super) steps: Vec<Step<'a>>,
    pub(super) problems: Vec<Problem>,
    /// The beginning of the line in the main file before which an entry can be added to `[databases]`.
    pub(super) anchor: Option<usize>,
}

impl<'a> Reading<'a> {
    /// Reads the configuration; `docs` are its parsed parts.
    pub(super) fn new(files: &'a Files, docs: &'a BTreeMap<&'a str, Document>) -> Self {
        let mut reading = Self {
            files,
            docs,
            section: Section::None,
            seen_main: false,
            open: Vec::new(),
            steps: Vec::new(),
            problems: Vec::new(),
            anchor: None,
        };
        reading.root();
        reading
    }

    fn root(&mut self) {
        let root = self.files.root.as_str();
        match self.docs.get(root) {
            None => self.note(root, None, ProblemKind::NotRead),
            Some(doc) if doc.items().is_empty() && doc.nul_line().is_none() => {
                self.note(root, None, ProblemKind::Empty);
            }
            Some(doc) => {
                self.file(root, doc);
                if !self.seen_main {
                    self.note(root, None, ProblemKind::NoMainSection);
                }
            }
        }
    }

    fn file(&mut self, file: &'a str, doc: &'a Document) {
        self.open.push(file);
        for (n, item) in doc.items().iter().enumerate() {
            if let ItemKind::Section { name } = &item.kind {
                self.enter(file, item.line, doc.text(name));
            }
            self.steps.push(Step { file, doc, item, section: self.section });
            self.check(file, doc, item);
            if let ItemKind::Include { file: name } = &item.kind {
                self.include(file, item.line, &String::from_utf8_lossy(doc.text(name)));
            }
            // What is added goes to the next line, so nothing else may follow on this one.
            let ends_line = doc.items().get(n + 1).is_none_or(|next| next.line > item.line);
            if self.open.len() == 1 && self.section == Section::Databases && ends_line {
                self.anchor = Some(doc.next_line(item.span.end));
            }
        }
        if let Some(line) = doc.nul_line() {
            self.note(file, Some(line), ProblemKind::Nul);
        }
        self.open.pop();
    }

    fn enter(&mut self, file: &str, line: usize, name: &[u8]) {
        self.section = match name {
            b"pgbouncer" => Section::PgBouncer,
            b"databases" => Section::Databases,
            b"users" | b"peers" => Section::Other,
            _ => {
                self.note(file, Some(line), ProblemKind::UnknownSection);
                Section::Unknown
            }
        };
        self.seen_main |= self.section == Section::PgBouncer;
    }

    fn include(&mut self, from: &str, line: usize, name: &str) {
        let file = self.files.resolve(name);
        // An item of a file that is itself being read would be read for ever.
        if self.open.contains(&file.as_str()) {
            return self.note(from, Some(line), ProblemKind::IncludeCycle { file });
        }
        if self.open.len() > MAX_DEPTH {
            return self.note(from, Some(line), ProblemKind::IncludeDepth { file });
        }
        let docs = self.docs;
        match docs.get_key_value(file.as_str()) {
            Some((path, doc)) => self.file(path, doc),
            None => self.note(from, Some(line), ProblemKind::MissingInclude { file }),
        }
    }

    /// What is wrong with one item in its section.
    fn check(&mut self, file: &str, doc: &Document, item: &Item) {
        let mut note = |kind| self.note(file, Some(item.line), kind);
        match &item.kind {
            ItemKind::Junk => note(ProblemKind::Syntax),
            ItemKind::Entry { key, value, quoted } => {
                if *quoted {
                    note(ProblemKind::QuotedName);
                }
                match self.section {
                    Section::None => self.note(file, Some(item.line), ProblemKind::NoSection),
                    Section::Databases => {
                        self.check_database(file, item.line, doc.text(key), doc.text(value))
                    }
                    Section::Other => drop(self.check_value(file, item.line, doc.text(key), doc.text(value))),
                    // What a parameter may be, depends on the version.
                    Section::PgBouncer | Section::Unknown => {}
                }
            }
            ItemKind::Section { .. } | ItemKind::Include { .. } => {}
        }
    }

    fn check_database(&mut self, file: &str, line: usize, name: &[u8], value: &[u8]) {
        if let Some(kind) = check_known_name(name) {
            self.note(file, Some(line), kind);
        }
        let Some(value) = self.check_value(file, line, name, value) else { return };
        // PgBouncer looks at each occurrence, not only at the last.
        if value.params().any(|(key, value)| key == b"port" && atoi(value) == 0) {
            let entry = String::from_utf8_lossy(name).into_owned();
            self.note(file, Some(line), ProblemKind::NoPort { entry });
        }
    }

    fn check_value(&mut self, file: &str, line: usize, name: &[u8], value: &[u8]) -> Option<ConnString> {
        let value = ConnString::parse(value);
        if let Err(error) = value {
            let entry = String::from_utf8_lossy(name).into_owned();
            let kind = match self.section {
                Section::Databases => ProblemKind::ConnString { entry, error },
                _ => ProblemKind::Params { entry, error },
            };
            self.note(file, Some(line), kind);
        }
        value.ok()
    }

    fn note(&mut self, file: &str, line: Option<usize>, kind: ProblemKind) {
        self.problems.push(Problem { file: file.to_owned(), line, kind });
    }

    /// The entries of `[databases]`, duplicates included.
    pub(super) fn databases(&self) -> impl Iterator<Item = Database<'a>> {
        self.steps.iter().filter(|step| step.section == Section::Databases).filter_map(|step| {
            let ItemKind::Entry { key, value, .. } = &step.item.kind else { return None };
            Some(Database {
                file: step.file,
                line: step.item.line,
                name: step.doc.text(key),
                value: step.doc.text(value),
                value_at: value.start,
            })
        })
    }
}
