//! Two ini files compared, but for what is ours. Read here line by line on purpose, not by the core's parser.

/// The lines of a file; `host` and `port` of our entries are blotted out.
pub fn mask(bytes: &[u8], ours: &[&str]) -> Vec<String> {
    String::from_utf8_lossy(bytes).split_inclusive('\n').map(|line| mask_line(line, ours)).collect()
}

fn entry_of<'a>(line: &'a str, ours: &[&str]) -> Option<(&'a str, &'a str)> {
    let (name, value) = line.split_once('=')?;
    ours.contains(&name.trim()).then_some((name, value))
}

fn mask_line(line: &str, ours: &[&str]) -> String {
    let Some((name, value)) = entry_of(line, ours) else { return line.into() };
    let words: Vec<String> = value
        .split(' ')
        .filter(|word| !word.trim_end().starts_with("host=") && !word.trim_end().starts_with("port="))
        .map(|word| word.trim_end().to_string())
        .filter(|word| !word.is_empty())
        .collect();
    format!("{name}={}", words.join(" "))
}

/// Whether only our entries' host and port differ, or our entries were added.
///
/// # Errors
/// The first line that differs.
pub fn same_but_for_routes(old: &[u8], new: &[u8], ours: &[&str]) -> Result<(), String> {
    let (old, new) = (mask(old, ours), mask(new, ours));
    let mut rest = old.iter().peekable();
    for line in &new {
        match rest.peek() {
            Some(before) if *before == line => {
                rest.next();
            }
            _ if entry_of(line, ours).is_some() => {}
            before => {
                return Err(format!("`{}` became `{}`", before.map_or("nothing", |l| l.trim()), line.trim()));
            }
        }
    }
    match rest.next() {
        Some(line) => Err(format!("`{}` is gone", line.trim())),
        None => Ok(()),
    }
}
