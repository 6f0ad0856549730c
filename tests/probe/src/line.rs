// SPDX-License-Identifier: Apache-2.0
//! Any text as one line: how scripts and their output cross a guest's serial line.

/// `text` without line ends: `\n`, `\r` and `\\` stand for a line feed, a carriage return and a backslash.
#[must_use]
pub fn escape(text: &str) -> String {
    text.replace('\\', r"\\").replace('\n', r"\n").replace('\r', r"\r")
}

/// What [`escape`] made `line` of. A backslash before anything else stands for itself.
#[must_use]
pub fn unescape(line: &str) -> String {
    let mut text = String::with_capacity(line.len());
    let mut rest = line.chars();
    while let Some(char) = rest.next() {
        if char != '\\' {
            text.push(char);
            continue;
        }
        match rest.next() {
            Some('n') => text.push('\n'),
            Some('r') => text.push('\r'),
            Some('\\') => text.push('\\'),
            other => text.extend(std::iter::once('\\').chain(other)),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{escape, unescape};

    #[test]
    fn any_text_is_one_line_and_comes_back() {
        for (text, line) in [("", ""), ("a b", "a b"), ("a\nb\r\n", r"a\nb\r\n"), (r"\n", r"\\n"), ("\\\n", r"\\\n")] {
            assert_eq!(escape(text), line);
            assert_eq!(unescape(line), text);
        }
        assert_eq!(unescape(r"\x\"), r"\x\");
    }
}
