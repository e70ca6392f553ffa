//! [`Teller`]: what a dump says, and the exit code it comes to.

use std::cell::Cell;

use graviton_format::Row;
use serde_json::{Map, Value, json};

use crate::failure::{Exit, Failure};
use crate::output::Output;

/// Hex digits of a field that are shown to people.
const HEX_SHOWN: usize = 32;

/// Where a dump goes.
pub trait Sink {
    /// Whether machines read.
    fn is_json(&self) -> bool;
    /// A line for people.
    fn line(&self, line: &str) -> Result<(), Failure>;
    /// An object for machines.
    fn object(&self, object: &Value) -> Result<(), Failure>;
    /// Something did not work; the rest goes on.
    fn report(&self, failure: &Failure);
}

impl Sink for Output {
    fn is_json(&self) -> bool {
        self.is_json()
    }

    fn line(&self, line: &str) -> Result<(), Failure> {
        self.line(line)
    }

    fn object(&self, object: &Value) -> Result<(), Failure> {
        self.object(object)
    }

    fn report(&self, failure: &Failure) {
        self.report(failure);
    }
}

/// Says what is found in one sector.
pub struct Teller<'a> {
    sink: &'a dyn Sink,
    /// Whether everything was asked for.
    pub verbose: bool,
    sector: u16,
    exit: Cell<Exit>,
}

impl<'a> Teller<'a> {
    /// For the sector of this number.
    pub fn new(sink: &'a dyn Sink, verbose: bool, sector: u16) -> Self {
        Self {
            sink,
            verbose,
            sector,
            exit: Cell::new(Exit::Done),
        }
    }

    /// Whether machines read.
    pub fn is_json(&self) -> bool {
        self.sink.is_json()
    }

    /// The sector's number.
    pub fn sector(&self) -> u16 {
        self.sector
    }

    /// The exit code so far.
    pub fn exit(&self) -> Exit {
        self.exit.get()
    }

    /// Takes back the judgement, not what was said.
    pub fn forgive(&self) {
        self.exit.set(Exit::Done);
    }

    /// A line for people; machines don't get it.
    pub fn line(&self, line: impl AsRef<str>) -> Result<(), Failure> {
        if self.is_json() {
            return Ok(());
        }
        self.sink.line(&printable(line.as_ref()))
    }

    /// An object for machines, `structure` being what it is; people don't get it.
    pub fn object(&self, structure: &str, rest: Value) -> Result<(), Failure> {
        if !self.is_json() {
            return Ok(());
        }
        let mut object = Map::new();
        object.insert("structure".to_owned(), structure.into());
        object.insert("sector".to_owned(), self.sector.into());
        if let Value::Object(rest) = rest {
            object.extend(rest);
        }
        self.sink.object(&Value::Object(object))
    }

    /// Decoded fields, a line each. Machines get them as [`rows_json`] in an object.
    pub fn rows(&self, rows: &[Row]) -> Result<(), Failure> {
        for row in rows {
            let hex = match row.hex.get(..HEX_SHOWN) {
                Some(shown) if row.hex.len() > HEX_SHOWN => format!("{shown}…"),
                _ => row.hex.clone(),
            };
            self.line(format!(
                "  {:>12}  {:<20}  {hex:<33}  {}",
                row.offset, row.name, row.value
            ))?;
        }
        Ok(())
    }

    /// Says something without a judgement.
    pub fn note(&self, message: impl AsRef<str>) -> Result<(), Failure> {
        let message = message.as_ref();
        self.line(format!("  note: {message}"))?;
        self.object("note", json!({"message": printable(message)}))
    }

    /// Says that something is damaged.
    pub fn damage(&self, address: u64, message: impl AsRef<str>) -> Result<(), Failure> {
        self.exit.set(self.exit.get().worse(Exit::Corruption));
        let message = message.as_ref();
        self.line(format!("  DAMAGE at {address}: {message}"))?;
        self.object(
            "damage",
            json!({"address": address, "message": printable(message)}),
        )
    }

    /// Shows a failure that does not keep the rest from being dumped.
    pub fn failed(&self, failure: &Failure) {
        self.exit.set(self.exit.get().worse(failure.exit()));
        self.sink.report(failure);
    }
}

/// Decoded fields for machines.
pub fn rows_json(rows: &[Row]) -> Value {
    rows.iter()
        .map(|row| {
            json!({"offset": row.offset, "name": row.name, "hex": row.hex, "value": row.value})
        })
        .collect()
}

/// The text without anything that could break the line or the terminal.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}
