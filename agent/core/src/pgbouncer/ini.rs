//! All files of one PgBouncer configuration: reading it as PgBouncer does, and leading its databases
//! elsewhere.

use alloc::borrow::ToOwned;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use super::connstr::{ConnString, Edit, atoi, write_value};
use super::document::{Document, ItemKind, is_key_byte};
use super::problem::{IniErrors, Problem, ProblemKind};
use super::reading::{Reading, Section, check_known_name};
pub use crate::topology::Endpoint;

/// The port of an entry that names none.
const DEFAULT_PORT: i32 = 5432;

/// The parameters without a default. Each `[pgbouncer]` header puts all parameters back to their defaults, so
/// what an earlier `[pgbouncer]` section said is lost, but for these.
const WITHOUT_DEFAULT: [&str; 11] = [
    "auth_dbname",
    "auth_file",
    "auth_ident_file",
    "auth_ldap_options",
    "auth_user",
    "client_tls13_ciphers",
    "conffile",
    "server_tls13_ciphers",
    "service_name",
    "user",
    "verbose",
];

/// An entry of `[databases]`, as PgBouncer takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name that clients ask for; `*` stands for all names without an entry.
    pub name: String,
    /// `host`; none means a unix socket. Bytes that are not UTF-8 are shown as U+FFFD, here and below.
    pub host: Option<String>,
    /// `port`, as C reads numbers. 5432 if it is not given.
    pub port: i32,
    /// `dbname`; none means the name that the client asks for.
    pub dbname: Option<String>,
    /// The file in which it stands, as it was resolved.
    pub file: String,
    /// Its line in that file, counted from 1.
    pub line: usize,
    /// The parameters, without the password: what is printed by accident must not hold it.
    params: BTreeMap<String, String>,
}

impl Entry {
    /// Any other parameter, such as `min_pool_size` or `pool_mode`. Never the password.
    pub fn param(&self, name: &str) -> Option<&str> {
        self.params.get(name).map(String::as_str)
    }

    fn new(name: &[u8], value: &ConnString, file: &str, line: usize) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let params = value.params().filter(|(key, _)| *key != b"password");
        Self {
            name: text(name),
            host: value.get("host").map(text),
            port: value.get("port").map_or(DEFAULT_PORT, atoi),
            dbname: value.get("dbname").map(text),
            file: file.to_owned(),
            line,
            params: params.map(|(key, value)| (text(key), text(value))).collect(),
        }
    }
}

/// The files of one configuration. The shell reads them: it puts in the main file, and then what
/// [`Files::missing`] asks for until that is empty or cannot be read.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Files {
    /// The path of the main file, a key of `parts`.
    pub root: String,
    /// PgBouncer's working directory: that, and not the main file's folder, is where it looks for included
    /// files.
    pub cwd: String,
    /// The bytes of each file by its resolved path.
    pub parts: BTreeMap<String, Vec<u8>>,
}

impl Files {
    /// A configuration of one file.
    pub fn new(root: impl Into<String>, cwd: impl Into<String>, bytes: impl Into<Vec<u8>>) -> Self {
        let root = root.into();
        let parts = BTreeMap::from([(root.clone(), bytes.into())]);
        Self { root, cwd: cwd.into(), parts }
    }

    /// The path that PgBouncer opens for the name in an `%include` line.
    pub fn resolve(&self, name: &str) -> String {
        if name.starts_with('/') || self.cwd.is_empty() {
            name.to_owned()
        } else {
            format!("{}/{name}", self.cwd.trim_end_matches('/'))
        }
    }

    /// The included files that are named and not in `parts` yet.
    pub fn missing(&self) -> Vec<String> {
        let docs = self.documents();
        let missing =
            Reading::new(self, &docs).problems.into_iter().filter_map(|problem| match problem.kind {
                ProblemKind::MissingInclude { file } => Some(file),
                _ => None,
            });
        missing.collect::<BTreeSet<_>>().into_iter().collect()
    }

    /// The entries of `[databases]` in effect. Of several with one name PgBouncer takes the last.
    pub fn entries(&self) -> BTreeMap<String, Entry> {
        let docs = self.documents();
        let reading = Reading::new(self, &docs);
        let entries = reading.databases().filter_map(|database| {
            let value = ConnString::parse(database.value).ok()?;
            let entry = Entry::new(database.name, &value, database.file, database.line);
            Some((entry.name.clone(), entry))
        });
        entries.collect()
    }

    /// The value of a parameter of `[pgbouncer]` in effect after a start; none means PgBouncer's default. (A
    /// RELOAD differs: it does not touch what needs a restart, nor what has no default and is no longer
    /// there.)
    pub fn setting(&self, name: &str) -> Option<String> {
        let docs = self.documents();
        let mut found = None;
        for step in Reading::new(self, &docs).steps.iter().filter(|step| step.section == Section::PgBouncer) {
            match &step.item.kind {
                ItemKind::Section { .. } if !WITHOUT_DEFAULT.contains(&name) => found = None,
                ItemKind::Entry { key, value, .. } if step.doc.text(key) == name.as_bytes() => {
                    found = Some(String::from_utf8_lossy(step.doc.text(value)).into_owned());
                }
                _ => {}
            }
        }
        found
    }

    /// All that is wrong, in reading order. PgBouncer stops at the first fatal one; here they are all listed.
    pub fn problems(&self) -> Vec<Problem> {
        let docs = self.documents();
        Reading::new(self, &docs).problems
    }

    /// Leads the named entries to their endpoints. Returns the new bytes of the files that change, by path.
    ///
    /// Only `host` and `port` of these entries change. All entries of one name are set, though PgBouncer
    /// takes the last: entries that contradict each other make it drop server connections on each RELOAD. A
    /// name without entry gets one after the last entry of the main file's last `[databases]` section;
    /// without such a section, one is added at the end.
    ///
    /// Nothing is changed if there is a fatal problem: what PgBouncer would not load, we do not build upon.
    pub fn retarget(
        &self,
        wanted: &BTreeMap<String, Endpoint>,
    ) -> Result<BTreeMap<String, Vec<u8>>, IniErrors> {
        let docs = self.documents();
        let reading = Reading::new(self, &docs);
        let mut absent: BTreeMap<&[u8], &Endpoint> =
            wanted.iter().map(|(name, to)| (name.as_bytes(), to)).collect();
        let mut edits = self.edits(&reading, &absent);
        for database in reading.databases() {
            absent.remove(database.name);
        }
        let errors = self.objections(&reading, wanted, &absent);
        if !errors.is_empty() {
            return Err(IniErrors(errors));
        }
        if let (false, Some(root)) = (absent.is_empty(), docs.get(self.root.as_str())) {
            edits.entry(&self.root).or_default().insert(root, reading.anchor, &absent);
        }
        Ok(edits.into_iter().map(|(file, edits)| (file.to_owned(), edits.apply(&self.parts[file]))).collect())
    }

    /// The edits of the entries that are there, by file.
    fn edits<'a>(
        &self,
        reading: &Reading<'a>,
        wanted: &BTreeMap<&[u8], &Endpoint>,
    ) -> BTreeMap<&'a str, Edits> {
        let mut edits: BTreeMap<_, Edits> = BTreeMap::new();
        for database in reading.databases() {
            let (Some(to), Ok(value)) = (wanted.get(database.name), ConnString::parse(database.value)) else {
                continue;
            };
            for edit in value.point_to(&to.host, to.port) {
                edits.entry(database.file).or_default().add(database.value_at, edit);
            }
        }
        edits
    }

    /// All reasons against a change; `absent` are the wanted entries that would have to be added.
    fn objections(
        &self,
        reading: &Reading<'_>,
        wanted: &BTreeMap<String, Endpoint>,
        absent: &BTreeMap<&[u8], &Endpoint>,
    ) -> Vec<Problem> {
        // A broken value is no harm where nobody uses it, but we cannot edit it.
        let routed = |problem: &Problem| match &problem.kind {
            ProblemKind::ConnString { entry, .. } => wanted.contains_key(entry),
            _ => false,
        };
        let found = reading.problems.iter().filter(|problem| problem.is_fatal() || routed(problem)).cloned();
        let endpoints = wanted.iter().filter_map(|(name, to)| self.check_endpoint(name, to));
        found.chain(endpoints).chain(absent.keys().filter_map(|name| self.check_name(name))).collect()
    }

    fn check_endpoint(&self, entry: &str, to: &Endpoint) -> Option<Problem> {
        let entry = entry.to_owned();
        if !to.host.split(',').all(is_host) {
            let host = to.host.escape_debug().collect();
            return Some(self.problem(ProblemKind::BadHost { entry, host }));
        }
        (to.port == 0).then(|| self.problem(ProblemKind::BadPort { entry }))
    }

    /// Whether an entry of this name can be added.
    fn check_name(&self, name: &[u8]) -> Option<Problem> {
        let entry = String::from_utf8_lossy(name).into_owned();
        let kind = check_known_name(name).or_else(|| {
            (name.is_empty() || !name.iter().copied().all(is_key_byte))
                .then_some(ProblemKind::UnwritableName { entry })
        });
        kind.map(|kind| self.problem(kind))
    }

    fn problem(&self, kind: ProblemKind) -> Problem {
        Problem { file: self.root.clone(), line: None, kind }
    }

    fn documents(&self) -> BTreeMap<&str, Document> {
        self.parts.iter().map(|(path, bytes)| (path.as_str(), Document::parse(bytes))).collect()
    }
}

/// Names the files and their sizes, but not what is in them.
impl fmt::Debug for Files {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sizes: BTreeMap<_, _> = self.parts.iter().map(|(path, bytes)| (path, bytes.len())).collect();
        f.debug_struct("Files")
            .field("root", &self.root)
            .field("cwd", &self.cwd)
            .field("parts", &sizes)
            .finish()
    }
}

/// Whether this can be one host of a list: a name, an address, or a socket directory (`@` for an abstract
/// one).
fn is_host(host: &str) -> bool {
    if host.starts_with(['/', '@']) {
        return !host.contains(char::is_control);
    }
    let is_host_byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-' | b':' | b'%');
    !host.is_empty() && host.bytes().all(is_host_byte)
}

/// The edits of one file by place. A file that is included twice gets each edit once.
#[derive(Default)]
struct Edits(BTreeMap<(usize, Kind), Edit>);

/// At one place, what belongs to an entry comes before a new line.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Value,
    NewLines,
}

impl Edits {
    /// Adds an edit of an entry's value that begins at `base`.
    fn add(&mut self, base: usize, edit: Edit) {
        let at = base + edit.at.start..base + edit.at.end;
        self.0.insert((at.start, Kind::Value), Edit { at, with: edit.with });
    }

    /// Adds new entries at `anchor`, or in a new section at the end.
    fn insert(&mut self, doc: &Document, anchor: Option<usize>, entries: &BTreeMap<&[u8], &Endpoint>) {
        let at = anchor.unwrap_or(doc.len());
        let end = doc.line_ending(at);
        let mut text = String::new();
        if !doc.at_line_start(at) {
            text.push_str(end);
        }
        if anchor.is_none() {
            text.push_str(&format!("{end}[databases]{end}"));
        }
        for (name, to) in entries {
            let name = String::from_utf8_lossy(name);
            let host = write_value(&to.host, false);
            text.push_str(&format!("{name} = host={host} port={}{end}", to.port));
        }
        self.0.insert((at, Kind::NewLines), Edit { at: at..at, with: text.into() });
    }

    fn apply(self, bytes: &[u8]) -> Vec<u8> {
        let mut new = Vec::with_capacity(bytes.len() + 64 * self.0.len());
        let mut done = 0;
        for edit in self.0.into_values() {
            new.extend_from_slice(&bytes[done..edit.at.start]);
            new.extend_from_slice(&edit.with);
            done = edit.at.end;
        }
        new.extend_from_slice(&bytes[done..]);
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ROOT: &str = "/etc/pgbouncer/pgbouncer.ini";

    /// A configuration whose included files stand in `/etc/pgbouncer`.
    fn files(root: &str, included: &[(&str, &str)]) -> Files {
        let mut files = Files::new(ROOT, "/etc/pgbouncer", root);
        for (name, text) in included {
            files.parts.insert(files.resolve(name), text.as_bytes().to_vec());
        }
        files
    }

    fn to(routes: &[(&str, &str, u16)]) -> BTreeMap<String, Endpoint> {
        let route = |&(name, host, port): &(&str, &str, u16)| {
            (name.to_string(), Endpoint { host: host.to_string(), port })
        };
        routes.iter().map(route).collect()
    }

    /// The files after a retarget, and the names of those that changed.
    fn retargeted(before: &Files, wanted: &BTreeMap<String, Endpoint>) -> (Files, Vec<String>) {
        let changed = before.retarget(wanted).unwrap();
        let names = changed.keys().cloned().collect();
        let mut after = before.clone();
        after.parts.extend(changed);
        (after, names)
    }

    fn root_text(files: &Files) -> &str {
        core::str::from_utf8(&files.parts[ROOT]).unwrap()
    }

    fn kinds(files: &Files) -> Vec<(Option<usize>, ProblemKind)> {
        files.problems().into_iter().map(|problem| (problem.line, problem.kind)).collect()
    }

    #[test]
    fn only_host_and_port_change() {
        let before = "; c\n[databases]\n  app\t= host=a  port = 1 password='x;''y'  \n# c\n*=\n[pgbouncer]\nuser = x\n";
        let after = before.replace("host=a  port = 1", "host=n  port = 5").replace("*=", "*=host=m port=6");
        let (files, _) = retargeted(&files(before, &[]), &to(&[("app", "n", 5), ("*", "m", 6)]));
        assert_eq!(root_text(&files), after);
    }

    #[test]
    fn every_instance_is_set_and_the_last_counts() {
        let before = files("[databases]\na = host=x\na = host=y port=1\n[pgbouncer]\n[databases]\na=\n", &[]);
        assert_eq!((before.entries()["a"].host.clone(), before.entries()["a"].line), (None, 6));
        let (after, _) = retargeted(&before, &to(&[("a", "n", 5)]));
        let text =
            "[databases]\na = host=n port=5\na = host=n port=5\n[pgbouncer]\n[databases]\na=host=n port=5\n";
        assert_eq!(root_text(&after), text);
    }

    #[test]
    fn a_new_entry_comes_last_in_the_last_section() {
        let wanted = to(&[("new", "n,m", 5)]);
        for (before, after) in [
            (
                "[databases]\n[pgbouncer]\n[databases]\na=\n; c\n\n; users\n[users]\n",
                "[databases]\n[pgbouncer]\n[databases]\na=\n@; c\n\n; users\n[users]\n",
            ),
            ("[pgbouncer]\r\n[databases]\r\n", "[pgbouncer]\r\n[databases]\r\n@"),
            ("[pgbouncer]\r\n[databases]\r\na=", "[pgbouncer]\r\n[databases]\r\na=\r\n@"),
            ("[pgbouncer]\n", "[pgbouncer]\n\n[databases]\n@"),
            ("[pgbouncer]", "[pgbouncer]\n\n[databases]\n@"),
            ("[databases] ; c\n[pgbouncer]", "[databases] ; c\n@[pgbouncer]"),
            ("[databases][pgbouncer]\nuser=x\n", "[databases][pgbouncer]\nuser=x\n\n[databases]\n@"),
        ] {
            let end = if before.contains("\r\n") { "\r\n" } else { "\n" };
            let after = after.replace('@', &format!("new = host=n,m port=5{end}"));
            let (files, _) = retargeted(&files(before, &[]), &wanted);
            assert_eq!(root_text(&files), after);
            assert_eq!(files.entries()["new"].port, 5);
        }
    }

    #[test]
    fn a_last_line_without_end_can_grow_and_be_followed() {
        let before = files("[pgbouncer]\n[databases]\na = dbname=x", &[]);
        let (after, _) = retargeted(&before, &to(&[("a", "n", 5), ("b", "m", 6)]));
        let text = "[pgbouncer]\n[databases]\na = dbname=x host=n port=5\nb = host=m port=6\n";
        assert_eq!(root_text(&after), text);
    }

    #[test]
    fn the_section_lives_into_and_out_of_an_included_file() {
        let root = "[databases]\na=\n%include i.ini\nnot_a_database = 1\n";
        let before = files(root, &[("i.ini", "b = host=x\n[users]\nu=\n[databases]\nc=\n[pgbouncer]\n")]);
        assert_eq!(before.entries().keys().collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(before.setting("not_a_database").as_deref(), Some("1"));
        let (after, changed) = retargeted(&before, &to(&[("b", "n", 5)]));
        assert_eq!(changed, ["/etc/pgbouncer/i.ini"]);
        assert_eq!(after.entries()["b"].host.as_deref(), Some("n"));
        let (after, _) = retargeted(&after, &to(&[("d", "n", 5)]));
        // After the include the section is another one.
        assert!(root_text(&after).starts_with("[databases]\na=\nd = host=n port=5\n%include"));
    }

    #[test]
    fn a_file_included_twice_is_edited_once() {
        let root = "[pgbouncer]\n[databases]\n%include i.ini\n%include i.ini\n";
        let (after, _) = retargeted(&files(root, &[("i.ini", "a=\n")]), &to(&[("a", "n", 5)]));
        assert_eq!(after.parts["/etc/pgbouncer/i.ini"], b"a=host=n port=5\n");
    }

    #[test]
    fn asks_for_included_files_until_all_are_there() {
        let mut files = files("%include a.ini\n%include /b.ini\n[pgbouncer]\n", &[]);
        assert_eq!(files.missing(), ["/b.ini", "/etc/pgbouncer/a.ini"]);
        files.parts.insert("/etc/pgbouncer/a.ini".into(), b"%include c.ini\n".to_vec());
        files.parts.insert("/b.ini".into(), Vec::new());
        assert_eq!(files.missing(), ["/etc/pgbouncer/c.ini"]);
        let error = files.retarget(&BTreeMap::new()).unwrap_err().to_string();
        assert!(
            error.starts_with("/etc/pgbouncer/a.ini:1: the included file /etc/pgbouncer/c.ini"),
            "{error}"
        );
    }

    #[test]
    fn cycles_and_depth() {
        let mut chain = files("[pgbouncer]\n%include 1.ini\n", &[]);
        for n in 1..=10 {
            chain
                .parts
                .insert(chain.resolve(&format!("{n}.ini")), format!("%include {}.ini\n", n + 1).into());
        }
        chain.parts.insert(chain.resolve("11.ini"), Vec::new());
        let file = "/etc/pgbouncer/11.ini".to_string();
        assert_eq!(kinds(&chain), [(Some(1), ProblemKind::IncludeDepth { file })]);
        chain.parts.insert(chain.resolve("10.ini"), Vec::new());
        assert_eq!(kinds(&chain), []);
        chain.parts.insert(chain.resolve("2.ini"), b"\n%include 1.ini\n".to_vec());
        let file = "/etc/pgbouncer/1.ini".to_string();
        assert_eq!(kinds(&chain), [(Some(2), ProblemKind::IncludeCycle { file })]);
    }

    #[test]
    fn a_second_header_brings_the_defaults_back() {
        let text = "[pgbouncer]\npool_mode = session\nauth_user = a\n[users]\n[pgbouncer]\nverbose = 1\n";
        let files = files(text, &[]);
        assert_eq!(files.setting("pool_mode"), None);
        assert_eq!(files.setting("auth_user").as_deref(), Some("a"));
        assert_eq!(files.setting("verbose").as_deref(), Some("1"));
    }

    #[test]
    fn entries_tell_all_but_the_password() {
        let text = "[databases]\na = host=x,y dbname='b c' password=secret min_pool_size=3\n*=port=7\n";
        let files = files(text, &[]);
        let entries = files.entries();
        let a = &entries["a"];
        assert_eq!((a.host.as_deref(), a.port, a.dbname.as_deref()), (Some("x,y"), 5432, Some("b c")));
        assert_eq!((a.param("min_pool_size"), a.param("password")), (Some("3"), None));
        assert_eq!((entries["*"].host.as_deref(), entries["*"].port, entries["*"].line), (None, 7, 3));
        assert!(!format!("{entries:?} {files:?}").contains("secret"));
    }

    #[test]
    fn nothing_is_built_upon_a_damaged_file() {
        use super::super::connstr::ConnStringError as C;
        use ProblemKind as P;
        let error = |error| P::ConnString { entry: "a".into(), error };
        let main = |text: &str| format!("[pgbouncer]\n[databases]\n{text}\n");
        for (text, line, kind) in [
            (String::new(), None, P::Empty),
            ("; all gone\n".into(), None, P::Empty),
            ("[databases]\na=\n".into(), None, P::NoMainSection),
            (main("a"), Some(3), P::Syntax),
            (main("[data"), Some(3), P::Syntax),
            (main("\"a b\" = host=x"), Some(3), P::Syntax),
            (main("a=\n\0"), Some(4), P::Nul),
            (format!("a=\n{}", main("")), Some(1), P::NoSection),
            (main("a = host='x"), Some(3), error(C::UnterminatedQuote)),
            (main("a = host="), Some(3), error(C::NoValue)),
            (main("a = host"), Some(3), error(C::NoKey)),
            (main("a = port=x port=1"), Some(3), P::NoPort { entry: "a".into() }),
            (main("pgbouncer ="), Some(3), P::ReservedName),
            (main(&format!("{} =", "a".repeat(64))), Some(3), P::LongName { entry: "a".repeat(64) }),
        ] {
            let files = files(&text, &[]);
            assert_eq!(kinds(&files), [(line, kind)], "{text}");
            assert!(files.retarget(&to(&[("b", "n", 5)])).is_err(), "{text}");
        }
        assert!(Files::default().retarget(&BTreeMap::new()).is_err());
    }

    #[test]
    fn what_another_version_may_accept_is_a_remark() {
        let files = files("[pgbouncer]\n[databases]\n'a b' = host=x\n[future]\nk=v\n", &[]);
        assert_eq!(
            kinds(&files),
            [(Some(3), ProblemKind::QuotedName), (Some(4), ProblemKind::UnknownSection)]
        );
        assert_eq!(retargeted(&files, &to(&[("a b", "n", 5)])).0.entries()["a b"].port, 5);
    }

    #[test]
    fn a_broken_star_matters_only_if_it_is_routed() {
        let files = files("[pgbouncer]\n[databases]\n* = host='x\na=\n", &[]);
        assert!(files.retarget(&to(&[("a", "n", 5)])).is_ok());
        assert!(files.retarget(&to(&[("*", "n", 5)])).is_err());
    }

    #[test]
    fn all_errors_at_once() {
        let files = files("[pgbouncer]\n[databases]\na\nb\n", &[]);
        let names = [("x y", "n", 5), ("", "n", 5), ("pgbouncer", "n", 5)];
        let endpoints = [("h", "a b", 5), ("i", "a,", 5), ("p", "n", 0)];
        assert_eq!(files.retarget(&to(&[names, endpoints].concat())).unwrap_err().0.len(), 8);
    }

    #[test]
    fn hosts() {
        for good in ["a", "10.0.0.1", "fe80::1%eth0", "a_b.c-d", "/run/it's here", "@abstract", "a,/b,::1"] {
            assert!(good.split(',').all(is_host), "{good}");
        }
        for bad in
            ["", "a,,b", "a b", "a'", "[::1]", "a\nb", "/a\nb", "/a\0", "h\u{f6}st", "a;b", "a#b", "a=b"]
        {
            assert!(!bad.split(',').all(is_host), "{bad}");
        }
    }

    /// Would take minutes if a place were searched for from the beginning of the file for each entry.
    #[test]
    fn many_entries() {
        let line = |n: usize| format!("db{n} = host=old port=1 password=x{n}\n");
        let text: String = (0..10_000).map(line).collect();
        let before = files(&format!("[pgbouncer]\n[databases]\n{text}"), &[]);
        let names: Vec<String> = (0..11_000).map(|n| format!("db{n}")).collect();
        let wanted = to(&names.iter().map(|name| (name.as_str(), "new", 2)).collect::<Vec<_>>());
        let (after, _) = retargeted(&before, &wanted);
        assert!(
            after.entries().values().all(|entry| entry.host.as_deref() == Some("new") && entry.port == 2)
        );
        assert_eq!(after.entries().len(), 11_000);
    }

    /// A line as operators write it, with the entries `a` and `b` that the properties route.
    fn line() -> impl Strategy<Value = String> {
        prop_oneof![
            3 => routed(),
            3 => other(),
            1 => Just("[databases]".to_string()),
            1 => Just("[users]".to_string()),
        ]
    }

    fn routed() -> impl Strategy<Value = String> {
        "(a|b) ?= ?(host=[a-z]{1,3})?( {1,2}port=[1-9]{1,3})?( password='[a-z;# ]([a-z]|'')*')?( host=q)?[ \t]?"
    }

    fn other() -> impl Strategy<Value = String> {
        "[;#][ -~\u{e9}]{0,5}|[ \t]{0,2}|(c|\\*|A|aa|ab)[ \t]?= ?(host = h)?( port=1)?( dbname='b''')?"
    }

    fn text(lines: &[String], end: &str, last: bool) -> String {
        let mut text = format!("[pgbouncer]{end}verbose = 0{end}[databases]{end}{}", lines.join(end));
        text.extend(last.then_some(end));
        text
    }

    /// The lines that a retarget of `a` and `b` changes, as (before, after), in order.
    fn touched(before: &Files) -> Vec<(Vec<u8>, Vec<u8>)> {
        let (after, _) = retargeted(before, &to(&[("a", "n", 5), ("b", "m,n", 6)]));
        let lines = |files: &Files| -> Vec<Vec<u8>> {
            files.parts[ROOT].split(|&b| b == b'\n').map(<[u8]>::to_vec).collect()
        };
        let (old, new) = (lines(before), lines(&after));
        assert_eq!(old.len(), new.len());
        old.into_iter().zip(new).filter(|(old, new)| old != new).collect()
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes: Vec<u8>, included: Vec<u8>) {
            let mut files = Files::new("/r", "", bytes);
            files.parts.insert("i".into(), included);
            let _ = (files.problems(), files.entries(), files.missing(), files.setting("user"));
            let _ = files.retarget(&to(&[("a", "n", 5)]));
        }

        #[test]
        fn a_retarget_does_what_it_says_and_only_once(
            lines in prop::collection::vec(line(), 0..12),
            included in prop::collection::vec(line(), 0..6),
            crlf: bool,
            last: bool,
        ) {
            let end = if crlf { "\r\n" } else { "\n" };
            let mut root = text(&lines, end, true) + "%include i.ini";
            root.extend(last.then_some(end));
            let before = files(&root, &[("i.ini", &included.join(end))]);
            let (after, _) = retargeted(&before, &to(&[("a", "n", 5), ("b", "m,n", 6)]));
            prop_assert_eq!(after.problems(), before.problems());
            let (old, new) = (before.entries(), after.entries());
            for (name, host, port) in [("a", "n", 5), ("b", "m,n", 6)] {
                prop_assert_eq!((new[name].host.as_deref(), new[name].port), (Some(host), port));
                if let Some(old) = old.get(name) {
                    prop_assert_eq!(&old.dbname, &new[name].dbname);
                }
            }
            let others = |entries: &BTreeMap<String, Entry>| -> Vec<_> {
                let others = entries.values().filter(|e| e.name != "a" && e.name != "b");
                others.map(|e| (e.name.clone(), e.host.clone(), e.port, e.dbname.clone())).collect()
            };
            prop_assert_eq!(others(&old), others(&new));
            prop_assert_eq!(after.retarget(&to(&[("a", "n", 5), ("b", "m,n", 6)])).unwrap(), BTreeMap::new());
        }

        #[test]
        fn what_others_write_does_not_change_what_we_touch(
            lines in prop::collection::vec(prop_oneof![routed(), other()], 0..12),
            edits in prop::collection::vec((any::<prop::sample::Index>(), prop::option::of(other())), 0..8),
            crlf: bool,
        ) {
            let end = if crlf { "\r\n" } else { "\n" };
            // Both are there, so that nothing is added.
            let mut lines = [vec!["a=".to_string(), "b=".to_string()], lines].concat();
            let before = touched(&files(&text(&lines, end, true), &[]));
            for (at, new) in edits {
                let ours = |line: &String| matches!(line.trim_start().split([' ', '=']).next(), Some("a" | "b"));
                let at = at.index(lines.len());
                match new {
                    Some(new) => lines.insert(at, new),
                    None if !ours(&lines[at]) => drop(lines.remove(at)),
                    None => {}
                }
            }
            prop_assert_eq!(touched(&files(&text(&lines, end, true), &[])), before);
        }
    }
}
