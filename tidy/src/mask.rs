//! Rust source with comments and the contents of literals blanked, so that rules see only code.
//!
//! Invariant: the masked text has the same lines as the source, and each line as many characters, so
//! a position in one is a position in the other. It is a scanner and no parser: macros are seen as
//! written.

/// Blanks comments, and the insides of string and character literals.
#[must_use]
pub fn mask(source: &str) -> String {
    let chars: Vec<char> = source.chars().collect();
    let mut masked = String::with_capacity(source.len());
    let mut at = 0;
    while at < chars.len() {
        let end = token_end(&chars, at);
        let keep = end == at + 1;
        for &c in &chars[at..end] {
            masked.push(if keep || c == '\n' { c } else { ' ' });
        }
        at = end;
    }
    masked
}

/// Where the comment or literal that starts at `at` ends; `at + 1` for anything else.
fn token_end(chars: &[char], at: usize) -> usize {
    let next = chars.get(at + 1).copied();
    match chars[at] {
        '/' if next == Some('/') => line_end(chars, at),
        '/' if next == Some('*') => block_comment_end(chars, at),
        '"' => string_end(chars, at),
        'r' | 'b' | 'c' if !follows_word(chars, at) => prefixed_end(chars, at),
        '\'' => char_end(chars, at),
        _ => at + 1,
    }
}

fn follows_word(chars: &[char], at: usize) -> bool {
    at > 0 && (chars[at - 1].is_alphanumeric() || chars[at - 1] == '_')
}

fn line_end(chars: &[char], at: usize) -> usize {
    chars[at..].iter().position(|&c| c == '\n').map_or(chars.len(), |offset| at + offset)
}

fn block_comment_end(chars: &[char], at: usize) -> usize {
    let mut depth = 0_usize;
    let mut i = at;
    while i < chars.len() {
        match (chars[i], chars.get(i + 1)) {
            ('/', Some('*')) => {
                depth += 1;
                i += 2;
            }
            ('*', Some('/')) => {
                depth -= 1;
                i += 2;
                if depth == 0 {
                    return i;
                }
            }
            _ => i += 1,
        }
    }
    chars.len()
}

/// End of a string with escapes whose opening quote is at `at`.
fn string_end(chars: &[char], at: usize) -> usize {
    let mut i = at + 1;
    while i < chars.len() {
        match chars[i] {
            '\\' => i += 2,
            '"' => return i + 1,
            _ => i += 1,
        }
    }
    chars.len()
}

/// A literal with a prefix (`r#"…"#`, `b"…"`, `br"…"`, `b'…'`, `c"…"`), or an ordinary word.
fn prefixed_end(chars: &[char], at: usize) -> usize {
    let mut i = at;
    let mut raw = false;
    while i < chars.len() && i < at + 2 && matches!(chars[i], 'r' | 'b' | 'c') {
        raw |= chars[i] == 'r';
        i += 1;
    }
    match chars.get(i) {
        Some('"') if !raw => string_end(chars, i),
        Some('\'') if !raw && chars[at] == 'b' => char_end(chars, i),
        Some('"' | '#') if raw => raw_string_end(chars, i).unwrap_or(at + 1),
        _ => at + 1,
    }
}

/// End of a raw string whose hashes or quote start at `at`; `None` if it is none (`r#type`).
fn raw_string_end(chars: &[char], at: usize) -> Option<usize> {
    let hashes = chars[at..].iter().take_while(|&&c| c == '#').count();
    if chars.get(at + hashes) != Some(&'"') {
        return None;
    }
    let mut i = at + hashes + 1;
    while i < chars.len() {
        let closing = chars[i] == '"'
            && chars[i + 1..].iter().take(hashes).filter(|&&c| c == '#').count() == hashes;
        if closing {
            return Some(i + 1 + hashes);
        }
        i += 1;
    }
    Some(chars.len())
}

/// End of a character literal at `at`; `at + 1` for a lifetime.
fn char_end(chars: &[char], at: usize) -> usize {
    match (chars.get(at + 1), chars.get(at + 2)) {
        // An escape: the quote that closes it is at most 10 characters on (`'\u{10FFFF}'`).
        (Some('\\'), Some(_)) => {
            let from = at + 3;
            let to = (at + 14).min(chars.len());
            chars
                .get(from..to)
                .and_then(|rest| rest.iter().position(|&c| c == '\''))
                .map_or(at + 1, |offset| from + offset + 1)
        }
        (Some(_), Some('\'')) => at + 3,
        _ => at + 1,
    }
}

/// For each line of masked code, whether it belongs to an item under a `cfg` that names `test`.
#[must_use]
pub fn test_lines(masked: &str) -> Vec<bool> {
    let lines = masked.lines().count();
    let mut inside = vec![false; lines];
    let chars: Vec<char> = masked.chars().collect();
    let mut from = 0;
    while let Some(start) = find(&chars, "#[cfg(", from) {
        let Some(attribute_end) = matching(&chars, start + 1, '[', ']') else { break };
        from = attribute_end;
        let attribute: String = chars[start..attribute_end].iter().collect();
        if !names_test(&attribute) {
            continue;
        }
        let end = item_end(&chars, attribute_end);
        let first = line_of(&chars, start);
        let last = line_of(&chars, end.saturating_sub(1));
        inside[first..=last.min(lines.saturating_sub(1))].fill(true);
        from = end;
    }
    inside
}

/// Does a `cfg` attribute hold for tests: does it have `test` as a word, outside any `not(…)`?
fn names_test(attribute: &str) -> bool {
    let mut chars: Vec<char> = attribute.chars().collect();
    while let Some(at) = find(&chars, "not(", 0) {
        let end = matching(&chars, at, '(', ')').unwrap_or(chars.len());
        chars[at..end].fill(' ');
    }
    let kept: String = chars.into_iter().collect();
    kept.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "test")
}

/// End of the item that follows `at`: its closing brace, or the semicolon of one without a body.
pub(crate) fn item_end(chars: &[char], at: usize) -> usize {
    let mut depth = 0_i32;
    for i in at..chars.len() {
        match chars[i] {
            '(' | '[' => depth += 1,
            ')' | ']' => depth -= 1,
            ';' if depth == 0 => return i + 1,
            '{' if depth == 0 => return matching(chars, i, '{', '}').unwrap_or(chars.len()),
            _ => {}
        }
    }
    chars.len()
}

/// One past the bracket that closes the one at `open_at`.
pub(crate) fn matching(chars: &[char], open_at: usize, open: char, close: char) -> Option<usize> {
    let mut depth = 0_usize;
    for (i, &c) in chars.iter().enumerate().skip(open_at) {
        if c == open {
            depth += 1;
        } else if c == close {
            depth = depth.checked_sub(1)?;
            if depth == 0 {
                return Some(i + 1);
            }
        }
    }
    None
}

/// Position of `word` at or after `from`.
pub(crate) fn find(chars: &[char], word: &str, from: usize) -> Option<usize> {
    let word: Vec<char> = word.chars().collect();
    (from..=chars.len().checked_sub(word.len())?).find(|&i| chars[i..].starts_with(&word))
}

/// Line index, from 0, of a position.
pub(crate) fn line_of(chars: &[char], at: usize) -> usize {
    chars[..at.min(chars.len())].iter().filter(|&&c| c == '\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked_and_code_stays() {
        let source = "a(\"x.unwrap()\"); // .unwrap()\n/* b /* c */ d */ e('\\'', b'\"', 'x');\n";
        let masked = mask(source);
        assert_eq!(masked.lines().count(), source.lines().count());
        assert!(!masked.contains("unwrap"));
        assert!(masked.contains("a("));
        assert!(masked.contains("e("));
        assert!(!masked.contains('d'));
    }

    #[test]
    fn raw_strings_and_lifetimes_are_told_apart() {
        let masked = mask("fn f<'a>(x: &'a str) { let r#type = r#\"un\"wrap\"#; g(x) }");
        assert!(masked.contains("fn f<'a>(x: &'a str)"));
        assert!(masked.contains("let r#type ="));
        assert!(!masked.contains("wrap"));
        assert!(masked.contains("g(x) }"));
    }

    #[test]
    fn an_unclosed_literal_ends_with_the_file() {
        for source in ["\"abc", "/* abc", "r#\"abc", "'\\", "b'"] {
            assert_eq!(mask(source).chars().count(), source.chars().count(), "{source}");
        }
    }

    #[test]
    fn items_under_cfg_test_are_marked() {
        let source = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\nfn c() {}\n";
        assert_eq!(test_lines(&mask(source)), [false, true, true, true, true, false]);
        let not_test = "#[cfg(not(test))]\nfn a() {}\n";
        assert_eq!(test_lines(&mask(not_test)), [false, false]);
        let item = "#[cfg(all(test, not(loom)))]\nuse x::y;\nfn a() {}\n";
        assert_eq!(test_lines(&mask(item)), [true, true, false]);
    }
}
