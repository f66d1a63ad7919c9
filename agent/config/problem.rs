//! What is wrong with a configuration file, all of it at once, and how it is shown.

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use std::cell::RefCell;
use std::fmt;
use std::ops::Range;

/// Where in the file: bytes.
pub type Span = Range<usize>;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The file is refused.
    Error,
    /// The file works, though perhaps not as meant.
    Warning,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// How bad.
    pub severity: Severity,
    /// Path of the key, for instance `pgbouncer[0].routes.app`; empty for a syntax error.
    pub key: String,
    /// Where in the file.
    pub span: Span,
    /// What is wrong, for people.
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
}

/// Collects problems while the file is walked.
#[derive(Debug, Default)]
pub(super) struct Problems(RefCell<Vec<Problem>>);

impl Problems {
    /// Adds one.
    pub fn add(&self, severity: Severity, key: &str, span: Span, message: String, help: Option<String>) {
        self.0.borrow_mut().push(Problem { severity, key: key.to_owned(), span, message, help });
    }

    /// All of them, in the order of the file.
    pub fn into_sorted(self) -> Vec<Problem> {
        let mut all = self.0.into_inner();
        all.sort_by_key(|p| p.span.start);
        all
    }
}

/// A configuration file and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    file: String,
    text: String,
    problems: Vec<Problem>,
}

impl Report {
    /// A report on the text of a file.
    pub fn new(file: String, text: String, problems: Vec<Problem>) -> Self {
        Report { file, text, problems }
    }

    /// What is wrong, in the order of the file.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Whether the file is refused.
    pub fn has_errors(&self) -> bool {
        self.count(Severity::Error) > 0
    }

    /// How many problems of that severity there are.
    pub fn count(&self, severity: Severity) -> usize {
        self.problems.iter().filter(|p| p.severity == severity).count()
    }

    /// Line and column of a problem, both from 1; the column counts characters.
    pub fn position(&self, problem: &Problem) -> (usize, usize) {
        let end = problem.span.start.min(self.text.len());
        let before = self.text.get(..end).unwrap_or("");
        let line_start = before.rfind('\n').map_or(0, |i| i + 1);
        (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
    }

    /// Everything, with the lines of the file, as a compiler would show it.
    pub fn render(&self, colour: bool) -> String {
        let renderer = if colour { Renderer::styled() } else { Renderer::plain() };
        let mut out = String::new();
        for problem in &self.problems {
            out.push_str(&self.render_one(problem, &renderer));
            out.push_str("\n\n");
        }
        out.push_str(&self.summary());
        out.push('\n');
        out
    }

    fn render_one(&self, problem: &Problem, renderer: &Renderer) -> String {
        let level = match problem.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let mark = AnnotationKind::Primary.span(self.visible(&problem.span));
        let mark = if problem.key.is_empty() { mark } else { mark.label(problem.key.as_str()) };
        let snippet = Snippet::source(self.text.as_str()).path(self.file.as_str()).annotation(mark);
        let mut group = level.primary_title(problem.message.as_str()).element(snippet);
        if let Some(help) = &problem.help {
            group = group.element(Level::HELP.message(help.as_str()));
        }
        renderer.render(&[group])
    }

    /// The part of a span on its first line: a table that goes over a page is not shown whole.
    fn visible(&self, span: &Span) -> Span {
        let start = span.start.min(self.text.len());
        let end = span.end.clamp(start, self.text.len());
        let line = self.text.get(start..end).unwrap_or("").lines().next().unwrap_or("");
        start..start + line.len()
    }

    fn summary(&self) -> String {
        let count = |n: usize, word: &str| format!("{n} {word}{}", if n == 1 { "" } else { "s" });
        let errors = count(self.count(Severity::Error), "error");
        let warnings = count(self.count(Severity::Warning), "warning");
        format!("{}: {errors}, {warnings}", self.file)
    }
}

impl fmt::Display for Report {
    /// The first error in one line, and how many there are: for logs and `status`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let first = self.problems.iter().find(|p| p.severity == Severity::Error).or(self.problems.first());
        let Some(first) = first else { return write!(f, "{}: no problems", self.file) };
        let (line, column) = self.position(first);
        write!(f, "{}:{line}:{column}: ", self.file)?;
        if !first.key.is_empty() {
            write!(f, "{}: ", first.key)?;
        }
        f.write_str(&first.message)?;
        match self.problems.len() {
            1 => Ok(()),
            n => write!(f, " (and {} more: run `pgsquire check-config {}`)", n - 1, self.file),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_count_characters() {
        let problem = |start| Problem {
            severity: Severity::Error,
            key: "x".to_owned(),
            span: start..start + 1,
            message: "m".to_owned(),
            help: None,
        };
        let report = Report::new("f".to_owned(), "a = 1\nß = 2\n".to_owned(), vec![problem(9)]);
        assert_eq!(report.position(&problem(0)), (1, 1));
        assert_eq!(report.position(&problem(9)), (2, 3));
        assert_eq!(report.position(&problem(900)), (3, 1));
        assert_eq!(report.to_string(), "f:2:3: x: m");
    }
}
