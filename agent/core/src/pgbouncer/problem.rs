//! What is wrong with a configuration, where, and what to do about it.

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

use super::connstr::ConnStringError;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file, as it was resolved.
    pub file: String,
    /// The line, counted from 1; none if the problem is not in a line.
    pub line: Option<usize>,
    /// What is wrong.
    pub kind: ProblemKind,
}

impl Problem {
    /// Whether this stops [`Files::retarget`](super::ini::Files::retarget). What does not, depends on
    /// PgBouncer's version or does no harm to the other databases.
    pub fn is_fatal(&self) -> bool {
        match &self.kind {
            ProblemKind::QuotedName | ProblemKind::UnknownSection => false,
            // PgBouncer reads the value of `*` when a client asks for a database that has no entry of its
            // own.
            ProblemKind::ConnString { entry, .. } | ProblemKind::NoPort { entry } => entry != "*",
            _ => true,
        }
    }
}

/// `file:line: what; what to do`
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:", self.file)?;
        if let Some(line) = self.line {
            write!(f, "{line}:")?;
        }
        write!(f, " {}", self.kind)
    }
}

/// The kinds of problems. No text holds an entry's value: it may contain a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProblemKind {
    /// The shell gave no bytes for the main file.
    #[error("this file was not read; check that it is there and readable")]
    NotRead,
    /// The main file is empty or only comments.
    #[error("nothing is configured here, the file may be half-written; restore it")]
    Empty,
    /// No file has a `[pgbouncer]` section: PgBouncer does not load it.
    #[error("there is no [pgbouncer] section, the file may be half-written; restore it")]
    NoMainSection,
    /// A line that is none of the grammar's kinds.
    #[error(
        "neither comment, [section], %include FILE nor `name = value` (without quotes); correct or remove this line"
    )]
    Syntax,
    /// An entry before the first section.
    #[error("a value before the first [section]; move it below its section's header")]
    NoSection,
    /// A section that PgBouncer does not know, as far as we know.
    #[error("PgBouncer knows no such section; correct its name (small letters, no blanks in the brackets)")]
    UnknownSection,
    /// A NUL byte.
    #[error("a NUL byte, the file may be damaged: PgBouncer ignores all that follows; restore it")]
    Nul,
    /// A name in single quotes.
    #[error(
        "a name in single quotes: PgBouncer 1.18 does not load the file; use `*` for databases with such names"
    )]
    QuotedName,
    /// `%include` of a file that is not there.
    #[error("the included file {file} was not read; create it, make it readable, or remove this line")]
    MissingInclude {
        /// The included file, as it was resolved.
        file: String,
    },
    /// `%include` of a file that is being read.
    #[error("{file} includes itself by this line; remove the line")]
    IncludeCycle {
        /// The included file, as it was resolved.
        file: String,
    },
    /// More than ten files deep.
    #[error(
        "includes are nested too deep (PgBouncer reads 10 levels); include {file} from a file further up"
    )]
    IncludeDepth {
        /// The included file, as it was resolved.
        file: String,
    },
    /// The value of an entry of `[users]` or `[peers]` is no list of `key=value`.
    #[error("entry `{entry}`: {error}")]
    Params {
        /// The entry.
        entry: String,
        /// Why.
        error: ConnStringError,
    },
    /// The value of a `[databases]` entry is no connection string.
    #[error("database `{entry}`: {error}")]
    ConnString {
        /// The entry.
        entry: String,
        /// Why.
        error: ConnStringError,
    },
    /// The port of a `[databases]` entry is not a number.
    #[error("database `{entry}`: the port is no number above 0; correct it")]
    NoPort {
        /// The entry.
        entry: String,
    },
    /// The entry `pgbouncer` of `[databases]`.
    #[error(
        "the database name `pgbouncer` is reserved for the console; rename this database's entry or route"
    )]
    ReservedName,
    /// An entry of `[databases]` with more than 63 bytes.
    #[error("the database name `{entry}` is longer than PgBouncer's 63 bytes; shorten it")]
    LongName {
        /// The entry.
        entry: String,
    },
    /// A routed database without entry whose name cannot be written.
    #[error(
        "the database name `{entry}` cannot be written into the file (letters, digits, `_`, `.` and `-` can); \
         route `*` instead, or rename the route"
    )]
    UnwritableName {
        /// The entry.
        entry: String,
    },
    /// A target host that is no host.
    #[error(
        "database `{entry}`: cannot lead to host `{host}`; a host name, an address without brackets or a socket \
         directory is needed, or several with commas"
    )]
    BadHost {
        /// The entry.
        entry: String,
        /// The host, with what is not printable escaped.
        host: String,
    },
    /// A target port 0.
    #[error("database `{entry}`: cannot lead to port 0; give the server's port")]
    BadPort {
        /// The entry.
        entry: String,
    },
}

/// All the reasons for which nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct IniErrors(
    /// At least one.
    pub Vec<Problem>,
);

/// One line, so that it fits a log record.
impl fmt::Display for IniErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.0.iter().enumerate() {
            write!(f, "{}{problem}", if n == 0 { "" } else { " | " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_where_what_and_what_to_do() {
        let at = |line, kind| Problem { file: "/etc/p.ini".into(), line, kind };
        let errors = IniErrors(vec![at(Some(3), ProblemKind::Syntax), at(None, ProblemKind::Empty)]);
        assert_eq!(
            errors.to_string(),
            "/etc/p.ini:3: neither comment, [section], %include FILE nor `name = value` (without quotes); correct or \
             remove this line | \
             /etc/p.ini: nothing is configured here, the file may be half-written; restore it"
        );
    }
}
