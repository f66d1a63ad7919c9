//! The configuration's lines are shown beside what is wrong in them. A secret that was written there by mistake is not.

/// The same text with everything that looks like a secret value replaced, byte for byte, so that positions stay.
pub(super) fn secrets(text: &str) -> String {
    text.split_inclusive('\n').map(line).collect()
}

fn line(line: &str) -> String {
    let lower = line.to_ascii_lowercase();
    let mut from = None;
    for word in ["password", "passwd", "token", "secret", "passfile"] {
        for (at, _) in lower.match_indices(word) {
            let rest = &lower[at + word.len()..];
            let value = rest.trim_start_matches(['"', '\'', ' ', '\t']);
            if value.starts_with('=') {
                let start = line.len() - value.len() + 1;
                from = Some(from.map_or(start, |f: usize| f.min(start)));
            }
        }
    }
    let mut out = String::with_capacity(line.len());
    for (at, c) in line.char_indices() {
        let hidden = from.is_some_and(|from| at >= from) || in_login(line, at);
        if hidden && !c.is_ascii_whitespace() && !matches!(c, '"' | '\'') {
            out.extend(std::iter::repeat_n('*', c.len_utf8()));
        } else {
            out.push(c);
        }
    }
    out
}

/// Whether the byte belongs to `user:password` in `scheme://user:password@host`.
fn in_login(line: &str, at: usize) -> bool {
    let Some(scheme) = line[..at].rfind("://") else { return false };
    let rest = &line[scheme + 3..];
    let word = rest.split(|c: char| c.is_whitespace() || c == '"' || c == '\'').next().unwrap_or("");
    word.rfind('@').is_some_and(|end| at < scheme + 3 + end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_masked_and_positions_stay() {
        let cases = [
            ("password = \"hunter2\" # x\n", "password = \"*******\" * *\n"),
            ("password_file = \"/etc/x\"\n", "password_file = \"/etc/x\"\n"),
            ("conninfo = \"host=h password=hunter2\"\n", "conninfo = \"host=h password=*******\"\n"),
            ("endpoints = [\"http://u:p@h:1\"]\n", "endpoints = [\"http://***@h:1\"]\n"),
            ("token='é'", "token='**'"),
        ];
        for (given, want) in cases {
            assert_eq!(secrets(given), want);
            assert_eq!(secrets(given).len(), given.len());
        }
    }
}
