//! Sizes as people write and read them.

/// Parses "4096", "10G" or "512MiB"; whole numbers only. K, M, G, T, P and
/// KiB.. are powers of 1024; KB, MB.. powers of 1000.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(split);
    let wrong = || format!("'{text}' is no size; write 4096, 512MiB or 10G");
    let count: u64 = digits.parse().map_err(|_| wrong())?;
    if !unit.is_ascii() {
        return Err(wrong());
    }
    let lower = unit.to_ascii_lowercase();
    let (letter, rest) = lower.split_at(lower.len().min(1));
    let power = match letter {
        "" => return Ok(count),
        "b" if rest.is_empty() => return Ok(count),
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        "p" => 5,
        _ => return Err(wrong()),
    };
    let base: u64 = match rest {
        "" | "ib" => 1024,
        "b" => 1000,
        _ => return Err(wrong()),
    };
    count.checked_mul(base.pow(power)).ok_or_else(|| format!("'{text}' is too large"))
}

/// A size, or all there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SizeOrMax {
    /// Bytes.
    Bytes(u64),
    /// All there is.
    Max,
}

/// Parses "max" or a size.
pub(crate) fn parse_or_max(text: &str) -> Result<SizeOrMax, String> {
    if text.eq_ignore_ascii_case("max") {
        return Ok(SizeOrMax::Max);
    }
    parse(text).map(SizeOrMax::Bytes)
}

/// A size for people, in powers of 1024.
pub(crate) fn show(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit = 0;
    while unit + 1 < UNITS.len() && bytes >> (10 * (unit + 1)) > 0 {
        unit += 1;
    }
    let scale = 1_u64 << (10 * unit);
    if bytes.is_multiple_of(scale) {
        return format!("{} {}", bytes / scale, UNITS[unit]);
    }
    // Tenths, rounded down: never more than there is.
    let tenths = u128::from(bytes % scale) * 10 / u128::from(scale);
    format!("{}.{tenths} {}", bytes / scale, UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_parsed() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("7B", 7),
            ("1k", 1024),
            ("512MiB", 512 << 20),
            ("10G", 10 << 30),
            ("10gb", 10_000_000_000),
            ("3T", 3 << 40),
            ("2PiB", 2 << 50),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for bad in ["", "G", "-1", "1.5G", "10X", "10GiBs", "99999999P", "1 G", "1\u{b5}", "0x10"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_are_shown() {
        assert_eq!(show(0), "0 B");
        assert_eq!(show(1023), "1023 B");
        assert_eq!(show(1024), "1 KiB");
        assert_eq!(show(1536), "1.5 KiB");
        assert_eq!(show((1 << 30) - 1), "1023.9 MiB");
        assert_eq!(show(u64::MAX), "15.9 EiB");
    }
}
