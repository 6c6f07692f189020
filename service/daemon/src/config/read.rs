//! From text to [`Config`]: syntax, unknown keys, the kind and range of every value, defaults.

use std::net::SocketAddr;
use std::path::Path;

use toml::{Table, Value};

use super::error::{ConfigErrors, Problem};
use super::keys::{KEYS, Key, Kind, SECTIONS, find};
use super::{Config, Mode, validate};

/// Largest configuration file accepted, in bytes. A full one with all comments is below 10 KiB.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// Reads and checks the file at `path`.
pub(crate) fn load(path: &Path) -> Result<Config, ConfigErrors> {
    let problem = |why: String| Problem::new("", format!("cannot read {}: {why}", path.display()));
    let metadata = std::fs::metadata(path).map_err(|error| problem(error.to_string()))?;
    if !metadata.is_file() {
        return Err(problem("it is not a regular file".to_owned()).into());
    }
    if metadata.len() > FILE_BYTES_MAX {
        return Err(problem(format!("it is larger than {FILE_BYTES_MAX} bytes")).into());
    }
    let text = std::fs::read_to_string(path).map_err(|error| problem(error.to_string()))?;
    parse(&text)
}

/// Checks `text` and fills in the defaults.
pub(crate) fn parse(text: &str) -> Result<Config, ConfigErrors> {
    let given: Table = text.parse().map_err(|error| syntax_problem(text, &error))?;
    let mut problems = Vec::new();
    let mut whole = defaults();
    for (section, content) in given {
        match content {
            Value::Table(table) if SECTIONS.iter().any(|(known, _)| *known == section) => {
                merge_section(&mut whole, &section, table, &mut problems);
            }
            Value::Table(_) => problems.push(unknown_section(&section)),
            _ if SECTIONS.iter().any(|(known, _)| *known == section) => {
                let what = format!("must be a table; write [{section}] and its keys below it");
                problems.push(Problem::new(section, what));
            }
            _ => problems.push(unknown_key("", &section)),
        }
    }
    if !problems.is_empty() {
        return Err(ConfigErrors(problems));
    }
    if find_in(&whole, "pool", "devices").is_none() {
        let what = "missing; list every member of the pool, such as devices = [\"/dev/nvme0n1\"]";
        return Err(Problem::new("pool.devices", what).into());
    }
    // Every key and value has been checked against the table, so this only fails where the table
    // and the structs differ, which a test excludes; it is reported all the same.
    let config: Config =
        whole.try_into().map_err(|error| Problem::new("", format!("internal: {error}")))?;
    let problems = validate::check(&config);
    if problems.is_empty() { Ok(config) } else { Err(ConfigErrors(problems)) }
}

fn find_in<'a>(whole: &'a Table, section: &str, name: &str) -> Option<&'a Value> {
    whole.get(section)?.as_table()?.get(name)
}

/// A table with all sections and every default.
fn defaults() -> Table {
    let mut whole = Table::new();
    for (section, _) in SECTIONS {
        let mut table = Table::new();
        for key in KEYS.iter().filter(|key| key.section == *section) {
            if let Some(default) = key.default {
                let parsed: Table = format!("{} = {default}", key.name)
                    .parse()
                    .expect("a test parses every default of the table");
                table.extend(parsed);
            }
        }
        whole.insert((*section).to_owned(), Value::Table(table));
    }
    whole
}

fn merge_section(whole: &mut Table, section: &str, given: Table, problems: &mut Vec<Problem>) {
    for (name, value) in given {
        let Some(key) = find(section, &name) else {
            problems.push(unknown_key(section, &name));
            continue;
        };
        match check_value(key, &value) {
            Ok(()) => {
                if let Some(Value::Table(table)) = whole.get_mut(section) {
                    table.insert(name, value);
                }
            }
            Err(found) => problems.push(Problem::new(
                format!("{section}.{name}"),
                format!("{found} must be {}; {}", key.kind.allowed(), key.advice),
            )),
        }
    }
}

/// Checks one value against its kind; the error shows what was found.
fn check_value(key: &Key, value: &Value) -> Result<(), String> {
    let good = match (&key.kind, value) {
        (Kind::Bool, Value::Boolean(_)) => true,
        (Kind::Integer { min, max, .. }, Value::Integer(number)) => (min..=max).contains(&number),
        (Kind::Text, Value::String(text)) => !text.trim().is_empty(),
        (Kind::Path, Value::String(text)) => is_absolute(text),
        (Kind::Mode, Value::String(text)) => Mode::try_from(text.clone()).is_ok(),
        (Kind::Choice(words), Value::String(text)) => words.contains(&text.as_str()),
        (Kind::Address, Value::String(text)) => is_address(text),
        (Kind::Paths { max }, Value::Array(items)) => {
            return check_items(items, *max, |item| item.as_str().is_some_and(is_absolute));
        }
        (Kind::Addresses { max }, Value::Array(items)) => {
            return check_items(items, *max, |item| item.as_str().is_some_and(is_address));
        }
        (Kind::Integers { min, max, count_max }, Value::Array(items)) => {
            return check_items(items, *count_max, |item| {
                item.as_integer().is_some_and(|number| (min..=max).contains(&&number))
            });
        }
        _ => false,
    };
    if good { Ok(()) } else { Err(shown(value)) }
}

fn check_items(items: &[Value], max: usize, good: impl Fn(&Value) -> bool) -> Result<(), String> {
    if items.is_empty() || items.len() > max {
        return Err(format!("a list of {}", items.len()));
    }
    match items.iter().find(|item| !good(item)) {
        Some(bad) => Err(format!("the list's {}", shown(bad))),
        None => Ok(()),
    }
}

fn is_absolute(text: &str) -> bool {
    text.starts_with('/') && !text.contains('\0')
}

fn is_address(text: &str) -> bool {
    text.parse::<SocketAddr>().is_ok_and(|address| address.port() != 0)
}

/// A value for an error message, cut to a line.
fn shown(value: &Value) -> String {
    let text = match value {
        Value::Array(items) => return format!("a list of {}", items.len()),
        Value::Table(_) => return "a table".to_owned(),
        Value::String(text) => format!("{text:?}"),
        other => other.to_string(),
    };
    if text.chars().count() <= 60 {
        text
    } else {
        let start: String = text.chars().take(57).collect();
        format!("{start}...")
    }
}

fn syntax_problem(text: &str, error: &toml::de::Error) -> Problem {
    let place = error.span().map_or_else(String::new, |span| {
        let before = text.get(..span.start).unwrap_or(text);
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        format!("line {line}, column {column}: ")
    });
    Problem::new("", format!("not TOML: {place}{}", error.message().replace('\n', ", ")))
}

fn unknown_section(section: &str) -> Problem {
    let section = cut(section);
    let names = SECTIONS.iter().map(|(name, _)| *name);
    let nearest = nearest(&section, names).unwrap_or("pool");
    Problem::new(format!("[{section}]"), format!("unknown section; the nearest is [{nearest}]"))
}

fn unknown_key(section: &str, name: &str) -> Problem {
    let name = cut(name);
    // The same name in another section is the likelier mistake than another name in this one.
    let elsewhere = KEYS.iter().find(|key| key.name == name);
    let here = KEYS.iter().filter(|key| key.section == section).map(|key| key.name);
    let (key, what) = if section.is_empty() {
        let place = elsewhere.or_else(|| {
            let near = nearest(&name, KEYS.iter().map(|key| key.name))?;
            KEYS.iter().find(|key| key.name == near)
        });
        let place = place.map_or_else(String::new, |key| {
            format!("; the nearest key is {}.{}", key.section, key.name)
        });
        (name, format!("unknown key outside of any section{place}"))
    } else {
        let near = match (nearest(&name, here), elsewhere) {
            (Some(near), None) => format!("{section}.{near}"),
            (_, Some(key)) => format!("{}.{}", key.section, key.name),
            (None, None) => return Problem::new(format!("{section}.{name}"), "unknown key"),
        };
        (format!("{section}.{name}"), format!("unknown key; the nearest is {near}"))
    };
    Problem::new(key, what)
}

/// A name from the file, cut to a line (the cost of [`nearest`] is the product of both lengths).
fn cut(name: &str) -> String {
    name.chars().take(64).collect()
}

/// The candidate with the least edit distance to `word`; the first of equals.
fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates.min_by_key(|candidate| edit_distance(word, candidate))
}

/// Levenshtein's distance.
fn edit_distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replace = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replace.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
