//! Colours, on a terminal only.

use std::io::IsTerminal;

/// Whether a stream gets colours: it is a terminal, and nobody said NO_COLOR.
pub(super) fn wanted(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Puts colours on text, or leaves it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paint(bool);

impl Paint {
    /// For what goes to standard output.
    pub fn for_stdout() -> Self {
        Paint(wanted(&std::io::stdout()))
    }

    /// No colours.
    #[cfg(test)]
    pub fn none() -> Self {
        Paint(false)
    }

    fn with(self, code: &str, text: &str) -> String {
        if self.0 && !text.is_empty() { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Headings and names.
    pub fn bold(self, text: &str) -> String {
        self.with("1", text)
    }

    /// What may be overlooked.
    pub fn dim(self, text: &str) -> String {
        self.with("2", text)
    }

    /// Well, or not well.
    pub fn judge(self, good: bool, text: &str) -> String {
        self.with(if good { "32" } else { "31" }, text)
    }

    /// What the operator should look at.
    pub fn warn(self, text: &str) -> String {
        self.with("33", text)
    }
}
