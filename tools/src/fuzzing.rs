//! What the fuzz targets `command` and `dump` call: whatever of the command reads text that people
//! type and bytes that lie in a store, with what holds of it whatever it reads.

use std::cell::RefCell;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;

use bytes::Bytes;
use clap::FromArgMatches as _;
use graviton_engine::port::{Attributes, BinaryKey};

use crate::cli::{Cli, Command, DumpWhat};
pub use crate::dump::fuzzing::dump_all;
use crate::dump::fuzzing::store_file;
use crate::failure::Failure;
use crate::keys::{self, KeyText};
use crate::output;
use crate::size::{self, ByteRange, Human};
use crate::{beneath, command_line, files, in_one_line};

thread_local! {
    /// Made once: that takes far longer than to parse with it.
    static COMMAND_LINE: RefCell<clap::Command> = RefCell::new(command_line());
}

/// Reads what the first byte says from the bytes after it.
///
/// # Panics
/// If something does not hold.
pub fn parsers(data: &[u8]) {
    let Some((&which, bytes)) = data.split_first() else {
        return;
    };
    match (which % 9, std::str::from_utf8(bytes)) {
        (0, _) => arguments(bytes),
        (1, Ok(text)) => sizes(text),
        (2, Ok(text)) => ranges(text),
        (3, _) => key_texts(bytes),
        (4, _) => paths(bytes),
        (5, _) => kept_with_files(bytes),
        (6, Ok(text)) => lines(text),
        (7, _) => numbers(bytes),
        (8, Ok(text)) => store_file(text),
        _ => {}
    }
}

/// Parses the argument list whose members the NUL bytes divide.
fn arguments(bytes: &[u8]) {
    let members = bytes
        .split(|&byte| byte == 0)
        .map(|member| OsStr::from_bytes(member).to_owned());
    let line: Vec<OsString> = std::iter::once("graviton".into()).chain(members).collect();
    let parsed = COMMAND_LINE
        .with_borrow_mut(|command| command.try_get_matches_from_mut(line))
        .and_then(|matches| Cli::from_arg_matches(&matches));
    match parsed {
        Ok(cli) => parsed_line(&cli),
        Err(error) => {
            let gist = in_one_line(&error.to_string());
            assert!(!gist.contains('\n'), "{gist:?}");
        }
    }
}

/// What holds of a command line that was accepted.
fn parsed_line(cli: &Cli) {
    let text = if cli.global.escaped {
        KeyText::Escaped
    } else {
        KeyText::Raw
    };
    let shapes = match &cli.command {
        Command::Init(shape) => Some(shape),
        Command::Import(import) => Some(&import.geometry),
        _ => None,
    };
    if let Some(shape) = shapes {
        assert!(shape.sectors.is_none_or(|count| (1..=64).contains(&count)));
        assert!(shape.sector_size != Some(0) && shape.segment_size != Some(0));
        assert!(matches!(shape.block_size, None | Some(512 | 4096)));
    }
    let keys: Vec<&OsString> = match &cli.command {
        Command::Put(put) => vec![&put.key],
        Command::Get(get) => {
            get.range.as_ref().into_iter().for_each(range);
            vec![&get.key]
        }
        Command::Stat(stat) => vec![&stat.key],
        Command::Rm(rm) => {
            assert!(!rm.keys.is_empty());
            rm.keys.iter().collect()
        }
        Command::Cp(copy) | Command::Mv(copy) => vec![&copy.source, &copy.target],
        Command::Dump(dump) => match &dump.what {
            DumpWhat::Record { key } => vec![key],
            _ => vec![],
        },
        _ => vec![],
    };
    for argument in keys {
        match text.key(argument) {
            Ok(key) => shown(&key),
            Err(failure) => told(&failure),
        }
    }
}

/// A key that is shown can be typed again.
fn shown(key: &BinaryKey) {
    let typed = OsString::from(key.to_string());
    let again = KeyText::Escaped.key(&typed).expect("what is shown is read");
    assert_eq!(again, *key);
}

/// What a failure says fits one line.
fn told(failure: &Failure) {
    if let Failure::Error { message, .. } = failure {
        assert!(!message.is_empty());
        lines(message);
    }
}

fn sizes(text: &str) {
    let Ok(bytes) = size::parse(text) else {
        assert!(size::parse_positive(text).is_err());
        return;
    };
    assert_eq!(size::parse_positive(text).is_ok(), bytes != 0);
    for typed in [
        bytes.to_string(),
        format!("{bytes}B"),
        format!(" {bytes} b "),
    ] {
        assert_eq!(size::parse(&typed), Ok(bytes), "{typed}");
    }
    if bytes.is_multiple_of(1024) {
        assert_eq!(size::parse(&format!("{}KiB", bytes / 1024)), Ok(bytes));
    }
    human(bytes);
}

/// What is shown of a size can be typed, and is off by a twentieth of its unit at most.
fn human(bytes: u64) {
    let text = Human(bytes).to_string();
    let (_, unit) = text.split_once(' ').expect("a number and a unit");
    let Some(power) = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
        .iter()
        .position(|name| *name == unit)
    else {
        assert_eq!(unit, "EiB");
        return;
    };
    let unit = 1024_u64.pow(u32::try_from(power).expect("few units"));
    let read = size::parse(&text).expect("what is shown is read");
    // Half a tenth, and what a tenth of the unit was cut by.
    assert!(read.abs_diff(bytes) <= unit / 20 + 1, "{bytes} as {text}");
}

fn ranges(text: &str) {
    if let Ok(read) = size::parse_range(text) {
        assert_eq!(read.typed, text);
        range(&read);
    }
}

fn range(range: &ByteRange) {
    let end = range.end.map(|end| end.to_string()).unwrap_or_default();
    let again = size::parse_range(&format!("{}..{end}", range.start)).expect("reads");
    assert_eq!((again.start, again.end), (range.start, range.end));
    for size in [0, 1, range.start, u64::MAX] {
        let resolved = range.resolve(size);
        assert!(resolved.start <= resolved.end && resolved.start == range.start);
    }
}

fn key_texts(bytes: &[u8]) {
    let text = keys::text(bytes);
    assert!(!text.chars().any(char::is_control), "{text:?}");
    let read = KeyText::Escaped.bytes(OsStr::new(&text));
    assert_eq!(read.expect("what is shown is read"), bytes);
    if let Ok(key) = BinaryKey::new(bytes) {
        assert_eq!(key.to_string(), text);
    }
    match KeyText::Escaped.bytes(OsStr::from_bytes(bytes)) {
        Ok(read) => {
            let again = keys::text(&read);
            let again = KeyText::Escaped.bytes(OsStr::new(&again));
            assert_eq!(again.expect("what is shown is read"), read);
        }
        Err(failure) => told(&failure),
    }
    let hex = keys::hex(bytes);
    assert!(hex.len() == 2 * bytes.len() && hex.bytes().all(|digit| digit.is_ascii_hexdigit()));
}

/// Keys as paths of an export, and names of files that it leaves unfinished.
fn paths(bytes: &[u8]) {
    if beneath::check_relative(bytes).is_ok() {
        let path = std::path::Path::new(OsStr::from_bytes(bytes));
        let plain = path
            .components()
            .all(|part| matches!(part, std::path::Component::Normal(_)));
        assert!(plain && !bytes.contains(&0), "{path:?}");
    }
    assert_eq!(files::is_temporary(bytes), files::maker(bytes).is_some());
    if let Some(process) = files::maker(bytes) {
        assert!(process >= 0);
    }
}

/// What a blob says of the file that it was, which may be nonsense.
fn kept_with_files(bytes: &[u8]) {
    let mut parts = bytes.splitn(3, |&byte| byte == 0);
    let mut attributes = Attributes::new();
    for name in files::KEPT {
        if let Some(value) = parts.next() {
            attributes.insert(name.to_owned(), Bytes::copy_from_slice(value));
        }
    }
    let restored = files::Restored::from_attributes(&attributes);
    assert!(restored.mode.is_none_or(|mode| mode <= 0o777));
    let _ = restored.creation_mode();
}

/// Whatever is said stays on its line.
fn lines(text: &str) {
    let line = output::one_line(text);
    assert!(!line.chars().any(char::is_control));
    let gist = in_one_line(text);
    assert!(!gist.contains('\n'));
    let drawn = crate::svg::escape(text);
    assert!(
        !drawn
            .chars()
            .any(|c| c.is_control() || matches!(c, '<' | '>' | '"'))
    );
}

/// Figures and times of any height.
fn numbers(bytes: &[u8]) {
    let Some(number) = bytes.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)) else {
        return;
    };
    human(number);
    let time = std::time::UNIX_EPOCH.checked_add(std::time::Duration::from_millis(number));
    if let Some(time) = time {
        let _ = output::time_text(time);
        let _ = output::time_json(time).to_string();
    }
    let etag = graviton_engine::port::ETag::of_version(number);
    let text = output::etag_text(etag);
    assert_eq!(text.parse().ok(), Some(etag));
    assert_eq!(format!("\"{text}\"").parse().ok(), Some(etag));
}
