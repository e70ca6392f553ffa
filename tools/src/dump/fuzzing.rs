//! Every dump of a store, whatever its files hold.

use std::cell::Cell;
use std::ffi::OsString;
use std::path::Path;

use graviton_engine::port::BinaryKey;
use serde_json::Value;

use super::tell::Sink;
use super::{Dump, source};
use crate::cli::DumpWhat;
use crate::failure::Failure;

/// Bounded: a dump that finds ever more in few bytes would be found here, not waited for.
const SAID_MAX: u64 = 1 << 20;

/// Looks at what is said, and forgets it.
#[derive(Default)]
struct Listener {
    json: bool,
    said: Cell<u64>,
}

impl Listener {
    fn count(&self) {
        self.said.set(self.said.get() + 1);
        assert!(self.said.get() < SAID_MAX, "a dump comes to no end");
    }
}

impl Sink for Listener {
    fn is_json(&self) -> bool {
        self.json
    }

    fn line(&self, line: &str) -> Result<(), Failure> {
        assert!(!self.json && !line.contains(char::is_control), "{line:?}");
        self.count();
        Ok(())
    }

    fn object(&self, object: &Value) -> Result<(), Failure> {
        assert!(self.json && !object.to_string().contains('\n'));
        self.count();
        Ok(())
    }

    fn report(&self, _failure: &Failure) {
        self.count();
    }
}

/// Dumps the store in `directory` in every way, and the records of `key`. Returns how many lines
/// and objects that were.
///
/// # Panics
/// If something does not hold.
pub fn dump_all(directory: &Path, key: &[u8], verbose: bool) -> u64 {
    let Ok(sources) = source::find(directory) else {
        return 0;
    };
    let key = BinaryKey::new(key).ok();
    let everything = [
        DumpWhat::Superblock,
        DumpWhat::StoreFile,
        DumpWhat::Segments { segment: None },
        DumpWhat::Segments { segment: Some(3) },
        DumpWhat::Frames { segment: None },
        DumpWhat::Frames { segment: Some(3) },
        DumpWhat::Checkpoint {
            entries: true,
            max: None,
        },
        DumpWhat::Record {
            key: OsString::new(),
        },
    ];
    let mut said = 0;
    for json in [false, true] {
        let listener = Listener {
            json,
            ..Listener::default()
        };
        for what in &everything {
            let of = matches!(what, DumpWhat::Record { .. });
            let dump = Dump {
                sink: &listener,
                verbose,
                what,
                key: key.as_ref().filter(|_| of),
                sources: &sources,
            };
            let _ = dump.sectors(None);
        }
        said += listener.said.get();
    }
    said
}

/// Reads a store file by what it says of its sectors.
///
/// # Panics
/// If something does not hold.
pub fn store_file(text: &str) {
    if let Ok(sources) = source::by_store_file(Path::new("store"), text) {
        assert!((1..=64).contains(&sources.sectors.len()));
    }
}
