//! Text that fits a terminal of 80 columns.

/// No line is longer, in characters.
pub(super) const WIDTH: usize = 80;
/// A column is not cut shorter than this.
const NARROWEST: usize = 6;

/// Rows under a heading, indented, in columns that are cut where they must be.
pub(super) fn table(indent: usize, heading: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let head: Vec<String> = heading.iter().map(|h| (*h).to_owned()).collect();
    let all: Vec<&Vec<String>> = std::iter::once(&head).chain(rows).collect();
    let longest = |column: usize| all.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let mut widths: Vec<usize> = (0..heading.len()).map(longest).collect();
    let room = WIDTH.saturating_sub(indent + 2 * widths.len().saturating_sub(1));
    while widths.iter().sum::<usize>() > room {
        let Some(widest) = widths.iter_mut().max().filter(|width| **width > NARROWEST) else { break };
        *widest -= 1;
    }
    all.iter().map(|row| line(indent, row, &widths)).collect()
}

fn line(indent: usize, row: &[String], widths: &[usize]) -> String {
    let cell = |(text, width): (&String, &usize)| format!("{:<width$}", cut(text, *width), width = *width);
    let cells: Vec<String> = row.iter().zip(widths).map(cell).collect();
    format!("{:indent$}{}", "", cells.join("  ")).trim_end().to_owned()
}

/// The text, or its beginning and a sign that there is more.
pub(super) fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// The text in lines that fit, each with the indent.
pub(super) fn wrap(indent: usize, text: &str) -> Vec<String> {
    let room = WIDTH - indent;
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        let word = cut(word, room);
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= room => {
                line.push(' ');
                line.push_str(&word);
            }
            _ => lines.push(word),
        }
    }
    lines.into_iter().map(|line| format!("{:indent$}{line}", "")).collect()
}

/// A label of fixed width, then the text, wrapped beside it.
pub(super) fn labelled(indent: usize, label: &str, text: &str) -> Vec<String> {
    const LABEL: usize = 9;
    let mut lines = wrap(indent + LABEL, text);
    if let Some(first) = lines.first_mut() {
        let rest = first.trim_start();
        *first = format!("{:indent$}{label:<LABEL$}{rest}", "");
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_wider_than_the_terminal() {
        let long = "x".repeat(200);
        let rows = vec![vec![long.clone(), "short".to_owned(), long.clone()]];
        let mut lines = table(2, &["NAME", "B", "C"], &rows);
        lines.extend(wrap(4, &format!("a {long} b {}", "word ".repeat(60))));
        lines.extend(labelled(2, "because", &"word ".repeat(60)));
        for line in &lines {
            assert!(line.chars().count() <= WIDTH, "{line}");
        }
        assert!(lines[1].contains("  short  "));
    }
}
