//! Keys on the command line and on the screen.
//!
//! A key is 1 to 1024 arbitrary bytes. On the command line it is the argument's bytes as they are,
//! or, with `--escaped`, the text form in which keys are printed: `\\` for a backslash, `\xNN` for
//! any byte, everything else for itself. So what `ls` prints can be handed back with `--escaped`.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::os::unix::ffi::OsStrExt;

use graviton_engine::port::BinaryKey;
pub use graviton_engine::port::key::{stored_text, text};
use serde_json::{Map, Value};

use crate::failure::Failure;

/// How keys and prefixes on the command line are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyText {
    /// The argument's bytes are the key.
    Raw,
    /// The argument is a key's text form.
    Escaped,
}

impl KeyText {
    /// The key that `argument` names.
    pub fn key(self, argument: &OsStr) -> Result<BinaryKey, Failure> {
        Ok(BinaryKey::new(self.bytes(argument)?)?)
    }

    /// The bytes that `argument` stands for: a prefix may have any length, none included.
    pub fn bytes(self, argument: &OsStr) -> Result<Vec<u8>, Failure> {
        match self {
            Self::Raw => Ok(argument.as_bytes().to_vec()),
            // As it was typed: escaped once more, it would be another key.
            Self::Escaped => unescape(argument.as_bytes()).map_err(|why| {
                Failure::usage(format!("key '{}': {why}", argument.to_string_lossy()))
            }),
        }
    }
}

/// Reads the text form.
fn unescape(text: &[u8]) -> Result<Vec<u8>, &'static str> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&byte, tail)) = rest.split_first() {
        if byte != b'\\' {
            bytes.push(byte);
            rest = tail;
            continue;
        }
        rest = match tail {
            [b'\\', tail @ ..] => {
                bytes.push(b'\\');
                tail
            }
            [b'x', high, low, tail @ ..] => {
                let (Some(high), Some(low)) = (hex_digit(*high), hex_digit(*low)) else {
                    return Err("\\x must be followed by two hex digits");
                };
                bytes.push(high << 4 | low);
                tail
            }
            [b'x', ..] => return Err("\\x must be followed by two hex digits"),
            _ => return Err("a backslash must be followed by another, or by x and two hex digits"),
        };
    }
    Ok(bytes)
}

fn hex_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        b'A'..=b'F' => Some(digit - b'A' + 10),
        _ => None,
    }
}

/// A stored key for machines: its space, and the hex digits of what follows.
pub fn stored_json(stored: &[u8]) -> Map<String, Value> {
    let (space, rest) = stored.split_at(stored.len().min(1));
    let mut object = Map::new();
    object.insert("key".to_owned(), stored_text(stored).into());
    object.insert("key_hex".to_owned(), hex(rest).into());
    object.insert("space".to_owned(), space.first().copied().into());
    object
}

/// The bytes in hex digits.
pub fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a String can't fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_form_round_trips() {
        let every_byte: Vec<u8> = (0..=255).collect();
        for bytes in [
            b"plain/key.txt".as_slice(),
            b"a\\b\\\\c",
            b"\x00\x01\xff\n\t\x7f",
            "blå\u{85}\u{2028}".as_bytes(),
            b"\\x41",
            &every_byte,
        ] {
            let shown = text(bytes);
            assert!(!shown.chars().any(char::is_control), "{shown}");
            assert_eq!(
                shown,
                BinaryKey::new(bytes).expect("a good key").to_string()
            );
            assert_eq!(unescape(shown.as_bytes()).expect("parses"), bytes);
        }
    }

    #[test]
    fn escapes_are_read() {
        assert_eq!(
            unescape(b"\\x00\\xFFa\\\\").expect("parses"),
            b"\x00\xffa\\"
        );
        assert_eq!(unescape(b"").expect("parses"), b"");
        for bad in [
            b"\\".as_slice(),
            b"\\n",
            b"\\x",
            b"\\x4",
            b"\\xg0",
            b"\\x+1",
            b"\\X41",
        ] {
            assert!(unescape(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn raw_keys_are_taken_as_they_are() {
        let key = KeyText::Raw
            .key(OsStr::from_bytes(b"\\x41\xff"))
            .expect("a good key");
        assert_eq!(key.as_bytes(), b"\\x41\xff");
        assert!(KeyText::Raw.key(OsStr::new("")).is_err());
        let escaped = KeyText::Escaped.key(OsStr::new("\\x41")).expect("good");
        assert_eq!(escaped.as_bytes(), b"A");
    }
}
