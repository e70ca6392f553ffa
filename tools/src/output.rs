//! What a command says: lines for people or JSON for machines on standard output, errors and
//! notes on standard error.

use std::cell::RefCell;
use std::fmt::Display;
use std::io::{self, BufWriter, IsTerminal, Stdout, Write};
use std::time::SystemTime;

use graviton_engine::port::{BinaryKey, ETag};
use jiff::{Timestamp, tz::TimeZone};
use serde_json::{Map, Value, json};

use crate::failure::Failure;
use crate::keys;
use crate::progress::Progress;
use crate::size::Human;

/// Where everything a command says goes through.
#[derive(Debug)]
pub struct Output {
    json: bool,
    verbose: bool,
    /// Standard output with a large buffer: a listing of a million keys is not a million writes.
    stdout: RefCell<BufWriter<Stdout>>,
}

impl Output {
    /// For people, or for machines.
    pub fn new(json: bool, verbose: bool) -> Self {
        Self {
            json,
            verbose,
            stdout: RefCell::new(BufWriter::with_capacity(64 * 1024, io::stdout())),
        }
    }

    /// Whether machines read.
    pub fn is_json(&self) -> bool {
        self.json
    }

    /// Whether exact figures were asked for.
    pub fn is_verbose(&self) -> bool {
        self.verbose
    }

    /// Whether people read, and on a terminal that can be drawn on.
    pub fn is_terminal(&self) -> bool {
        !self.json && io::stdout().is_terminal()
    }

    /// A line for people; machines don't get it.
    pub fn line(&self, line: impl Display) -> Result<(), Failure> {
        if self.json {
            return Ok(());
        }
        writeln!(self.stdout.borrow_mut(), "{line}").map_err(|error| Failure::stdout(&error))
    }

    /// An object for machines, on a line of its own; people don't get it.
    pub fn object(&self, object: &Value) -> Result<(), Failure> {
        if !self.json {
            return Ok(());
        }
        writeln!(self.stdout.borrow_mut(), "{object}").map_err(|error| Failure::stdout(&error))
    }

    /// As [`Output::object`], and it has left this process when the call returns.
    pub fn event(&self, object: &Value) -> Result<(), Failure> {
        self.object(object)?;
        if self.json { self.flush() } else { Ok(()) }
    }

    /// Bytes as they are.
    pub fn raw(&self, bytes: &[u8]) -> Result<(), Failure> {
        self.stdout
            .borrow_mut()
            .write_all(bytes)
            .map_err(|error| Failure::stdout(&error))
    }

    /// Hands over what is still buffered.
    pub fn flush(&self) -> Result<(), Failure> {
        self.stdout
            .borrow_mut()
            .flush()
            .map_err(|error| Failure::stdout(&error))
    }

    /// Shows a failure in one line on standard error.
    pub fn report(&self, failure: &Failure) {
        self.report_under(failure, None);
    }

    /// As [`Output::report`], with a progress bar out of the way.
    pub fn report_under(&self, failure: &Failure, progress: Option<&Progress>) {
        let Failure::Error {
            exit,
            kind,
            message,
        } = failure
        else {
            return;
        };
        let line = if self.json {
            json!({"error": {"kind": kind, "message": one_line(message), "exit": *exit as u8}})
                .to_string()
        } else {
            format!("graviton: {}", one_line(message))
        };
        say(&line, progress);
    }

    /// Says something by the way, on standard error.
    pub fn note(&self, message: impl Display, progress: Option<&Progress>) {
        let message = one_line(&message.to_string());
        let line = if self.json {
            json!({"note": {"message": message}}).to_string()
        } else {
            format!("graviton: {message}")
        };
        say(&line, progress);
    }

    /// A number of bytes for people: `1.5 MiB`, and exactly when that was asked for.
    pub fn bytes(&self, bytes: u64) -> String {
        if self.verbose && bytes >= 1024 {
            format!("{} ({bytes} bytes)", Human(bytes))
        } else {
            Human(bytes).to_string()
        }
    }
}

fn say(line: &str, progress: Option<&Progress>) {
    // With standard error gone there is nobody left to tell.
    let write = || drop(writeln!(io::stderr().lock(), "{line}"));
    match progress {
        Some(progress) => progress.suspend(write),
        None => write(),
    }
}

/// The message without anything that could break the line or the terminal.
pub fn one_line(message: &str) -> String {
    message
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

/// An object that begins with a key: its text form, and its bytes in hex.
pub fn key_object(key: &BinaryKey) -> Map<String, Value> {
    let mut object = Map::new();
    object.insert("key".to_owned(), key.to_string().into());
    object.insert("key_hex".to_owned(), keys::hex(key.as_bytes()).into());
    object
}

/// `key_object` with the members of `rest` (an object) added.
pub fn with_key(key: &BinaryKey, rest: Value) -> Value {
    let mut object = key_object(key);
    if let Value::Object(rest) = rest {
        object.extend(rest);
    }
    Value::Object(object)
}

/// An ETag without the quotes of its text form, which shells and JSON would only have to escape;
/// `--if-etag` takes it with and without.
pub fn etag_text(etag: ETag) -> String {
    etag.to_string().trim_matches('"').to_owned()
}

/// A time for machines: RFC 3339 in UTC, to the millisecond, which is what stores keep.
pub fn time_json(time: SystemTime) -> Value {
    Timestamp::try_from(time).map_or(Value::Null, |time| format!("{time:.3}").into())
}

/// A time for people: local, to the second.
pub fn time_text(time: SystemTime) -> String {
    Timestamp::try_from(time).map_or_else(
        |_| "unknown".to_owned(),
        |time| {
            time.to_zoned(TimeZone::system())
                .strftime("%Y-%m-%d %H:%M:%S")
                .to_string()
        },
    )
}

/// `1 file`, `2 files`.
pub fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_stay_on_one_line() {
        assert_eq!(one_line("a\nb\x1b[31mc"), "a b [31mc");
    }

    #[test]
    fn times_for_machines_are_all_of_one_length() {
        use std::time::{Duration, UNIX_EPOCH};

        for (milliseconds, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (1_700_000_000_120, "2023-11-14T22:13:20.120Z"),
            (1_700_000_000_123, "2023-11-14T22:13:20.123Z"),
        ] {
            let time = UNIX_EPOCH + Duration::from_millis(milliseconds);
            assert_eq!(time_json(time), text);
        }
    }
}
