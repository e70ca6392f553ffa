//! Sizes and ranges as people write them, and sizes as they like to read them.

use std::fmt;
use std::ops::Range;

/// Factors of the units, lower case. A bare letter is binary, as with `dd` and `truncate`.
const UNITS: &[(&str, u64)] = &[
    ("", 1),
    ("b", 1),
    ("k", 1 << 10),
    ("kib", 1 << 10),
    ("kb", 1_000),
    ("m", 1 << 20),
    ("mib", 1 << 20),
    ("mb", 1_000_000),
    ("g", 1 << 30),
    ("gib", 1 << 30),
    ("gb", 1_000_000_000),
    ("t", 1 << 40),
    ("tib", 1 << 40),
    ("tb", 1_000_000_000_000),
    ("p", 1 << 50),
    ("pib", 1 << 50),
    ("pb", 1_000_000_000_000_000),
];

/// Reads a size: `4096`, `64KiB`, `1.5GiB`, `10MB`, `2G`.
///
/// # Errors
/// What is wrong with it, for the end of an error line.
pub fn parse(text: &str) -> Result<u64, String> {
    let trimmed = text.trim();
    let digits_end = trimmed
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits_end);
    let unit = unit.trim_start().to_ascii_lowercase();
    let Some(&(_, factor)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        return Err("expected a size such as 4096, 64KiB, 1.5GiB or 10MB".to_owned());
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let malformed = whole.is_empty()
        || number.ends_with('.')
        || fraction.contains('.')
        || fraction.len() > 9
        || (factor == 1 && !fraction.is_empty());
    if malformed {
        return Err("expected a size such as 4096, 64KiB, 1.5GiB or 10MB".to_owned());
    }
    let too_large = || "the size does not fit in 64 bits".to_owned();
    let whole: u64 = whole.parse().map_err(|_| too_large())?;
    let mut bytes = whole.checked_mul(factor).ok_or_else(too_large)?;
    if !fraction.is_empty() {
        // At most nine digits times 2^50: fits in 128 bits with room to spare.
        let scale = 10_u128.pow(u32::try_from(fraction.len()).map_err(|_| too_large())?);
        let numerator: u128 = fraction.parse().map_err(|_| too_large())?;
        let part = numerator * u128::from(factor) / scale;
        let part = u64::try_from(part).map_err(|_| too_large())?;
        bytes = bytes.checked_add(part).ok_or_else(too_large)?;
    }
    Ok(bytes)
}

/// Reads a size that must not be zero.
///
/// # Errors
/// As [`parse`].
pub fn parse_positive(text: &str) -> Result<u64, String> {
    match parse(text)? {
        0 => Err("the size must be greater than 0".to_owned()),
        bytes => Ok(bytes),
    }
}

/// A half-open range of bytes; without an end it goes to the end of the blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ByteRange {
    /// The first byte.
    pub start: u64,
    /// The byte after the last one.
    pub end: Option<u64>,
    /// As it was typed, for messages.
    pub typed: String,
}

impl ByteRange {
    /// The range in a blob of `size` bytes, for the store to judge.
    pub fn resolve(&self, size: u64) -> Range<u64> {
        match self.end {
            Some(end) => self.start..end,
            // Past the end there is nothing to read to: one byte more makes the store say so.
            None if self.start > size => self.start..self.start.saturating_add(1),
            None => self.start..size,
        }
    }
}

/// Reads a range: `0..100`, `1MiB..2MiB`, `100..`, `..100`.
///
/// # Errors
/// What is wrong with it, for the end of an error line.
pub fn parse_range(text: &str) -> Result<ByteRange, String> {
    let Some((start, end)) = text.split_once("..") else {
        return Err("expected a range such as 0..100, 1MiB..2MiB or 100..".to_owned());
    };
    let start = match start.trim() {
        "" => 0,
        start => parse(start)?,
    };
    let end = match end.trim() {
        "" => None,
        end => Some(parse(end)?),
    };
    if end.is_some_and(|end| end < start) {
        return Err("the range ends before it starts".to_owned());
    }
    Ok(ByteRange {
        start,
        end,
        typed: text.to_owned(),
    })
}

/// Shows a number of bytes in binary units with one decimal: `1.5 MiB`.
#[derive(Debug, Clone, Copy)]
pub struct Human(pub u64);

impl fmt::Display for Human {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = human(self.0);
        f.pad(&text)
    }
}

fn human(bytes: u64) -> String {
    const NAMES: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut unit = 1024_u128;
    let mut names = NAMES.iter();
    let mut name = names.next();
    loop {
        let tenths = (u128::from(bytes) * 10 + unit / 2) / unit;
        // What would be rounded to 1024.0 reads better in the next unit.
        let larger = if tenths < 10_240 { None } else { names.next() };
        let Some(larger) = larger else {
            let name = name.unwrap_or(&"B");
            return format!("{}.{} {name}", tenths / 10, tenths % 10);
        };
        name = Some(larger);
        unit *= 1024;
    }
}

/// Shows a rate in bytes per second.
pub fn human_rate(bytes: u64, seconds: f64) -> String {
    if seconds <= 0.0 {
        return format!("{}/s", Human(bytes));
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "a rate to show, saturating"
    )]
    let rate = (bytes as f64 / seconds) as u64;
    format!("{}/s", Human(rate))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("64KiB", 65_536),
            ("64kib", 65_536),
            ("64 KiB", 65_536),
            ("64K", 65_536),
            ("64KB", 64_000),
            ("10MB", 10_000_000),
            ("1GiB", 1 << 30),
            ("1.5GiB", 3 << 29),
            ("0.5k", 512),
            ("2t", 2 << 40),
            ("512B", 512),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn bad_sizes_are_refused() {
        for text in [
            "",
            " ",
            "KiB",
            "-1",
            "+1",
            "1.GiB",
            ".5GiB",
            "1..5GiB",
            "1.2.3k",
            "1.5",
            "1.5B",
            "1e3",
            "0x10",
            "1KiBs",
            "1 2",
            "1Ki",
            "18446744073709551616",
            "16777216T",
            "99999999999999999999999999GiB",
            "1.0000000001GiB",
            "½GiB",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
        assert!(parse_positive("0KiB").is_err());
    }

    #[test]
    fn ranges_are_read() {
        for (typed, start, end) in [
            ("0..100", 0, Some(100)),
            ("1KiB..2KiB", 1024, Some(2048)),
            ("5..", 5, None),
            ("..5", 0, Some(5)),
            ("..", 0, None),
            ("7..7", 7, Some(7)),
        ] {
            let typed = typed.to_owned();
            assert_eq!(parse_range(&typed), Ok(ByteRange { start, end, typed }));
        }
        for text in ["", "5", "5-7", "7..5", "a..b", "1...3", "1..=3", "-1..3"] {
            assert!(parse_range(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn open_ranges_end_with_the_blob() {
        let resolve = |typed, size| parse_range(typed).expect("reads").resolve(size);
        assert_eq!(resolve("3..", 10), 3..10);
        assert_eq!(resolve("10..", 10), 10..10);
        assert_eq!(resolve("11..", 10), 11..12);
    }

    #[test]
    fn sizes_are_shown() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1_048_575, "1.0 MiB"),
            (1 << 20, "1.0 MiB"),
            (3 << 29, "1.5 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(Human(bytes).to_string(), text);
        }
        assert_eq!(format!("{:>9}", Human(0)), "      0 B");
    }
}
