//! Which files a store's sectors are: by its `graviton.toml`, or, if that is of no use, by their
//! names.

use std::path::{Path, PathBuf};

use graviton_format::FORMAT_VERSION;
use toml::{Table, Value};

use super::disk::read_small;
use crate::failure::Failure;

/// The store file.
const FILE: &str = "graviton.toml";
/// A store file is never near this long.
const FILE_MAX_LEN: u64 = 1 << 20;
/// The most sectors a store has.
const SECTORS_MAX: usize = 64;

/// A sector, by what the store says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named {
    /// Its number.
    pub number: u16,
    /// Its file.
    pub path: PathBuf,
    /// Its id.
    pub id: Option<u64>,
}

/// What there is to dump.
#[derive(Debug, PartialEq, Eq)]
pub struct Sources {
    /// The sectors, by number.
    pub sectors: Vec<Named>,
    /// The store's id.
    pub store_id: Option<[u8; 16]>,
    /// What is odd about the store file.
    pub note: Option<String>,
}

/// Finds the sectors of the store in `directory`.
pub fn find(directory: &Path) -> Result<Sources, Failure> {
    let file = directory.join(FILE);
    let read = read_small(&file, FILE_MAX_LEN)
        .map_err(|error| error.to_string())
        .and_then(|bytes| String::from_utf8(bytes).map_err(|_| "not a text file".to_owned()))
        .and_then(|text| by_store_file(directory, &text));
    let why = match read {
        Ok(sources) => return Ok(sources),
        Err(why) => why,
    };
    let sectors = by_names(directory)?;
    if sectors.is_empty() {
        return Err(Failure::failed(format!(
            "no store at {}: {FILE}: {why}; and no file is named as a sector",
            directory.display()
        )));
    }
    Ok(Sources {
        sectors,
        store_id: None,
        note: Some(format!("{FILE}: {why}; sectors are taken by their names")),
    })
}

pub(super) fn by_store_file(directory: &Path, text: &str) -> Result<Sources, String> {
    let table: Table = text
        .parse()
        .map_err(|error: toml::de::Error| error.message().to_owned())?;
    let entries = table
        .get("sector")
        .and_then(Value::as_array)
        .filter(|entries| !entries.is_empty() && entries.len() <= SECTORS_MAX)
        .ok_or_else(|| format!("does not name 1 to {SECTORS_MAX} sectors"))?;
    let sectors = (0..)
        .zip(entries)
        .map(|(number, entry)| {
            let file = entry.get("file").and_then(Value::as_str)?;
            let id = entry.get("id").and_then(Value::as_str);
            let said = entry.get("number").and_then(Value::as_integer);
            Some(Named {
                // Numbers may leave some out.
                number: said.and_then(|said| said.try_into().ok()).unwrap_or(number),
                path: directory.join(file),
                id: id.and_then(|id| u64::from_str_radix(id, 16).ok()),
            })
        })
        .collect::<Option<Vec<_>>>()
        .ok_or("names a sector without a file")?;
    let version = table.get("format_version").and_then(Value::as_integer);
    let store_id = table.get("store_id").and_then(Value::as_str);
    Ok(Sources {
        sectors,
        store_id: store_id
            .and_then(|id| u128::from_str_radix(id, 16).ok())
            .map(u128::to_be_bytes),
        note: version
            .filter(|&version| version > FORMAT_VERSION.into())
            .map(|version| {
                format!("{FILE}: format version {version}, newest known here is {FORMAT_VERSION}")
            }),
    })
}

/// The files `sector-NNN.graviton`.
fn by_names(directory: &Path) -> Result<Vec<Named>, Failure> {
    let cannot = |error| Failure::file("read", directory, &error);
    let mut sectors = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(cannot)? {
        let name = entry.map_err(cannot)?.file_name();
        let number = name
            .to_str()
            .and_then(|name| name.strip_prefix("sector-")?.strip_suffix(".graviton"))
            .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_digit()))
            .and_then(|digits| digits.parse().ok());
        if let Some(number) = number {
            sectors.push(Named {
                number,
                path: directory.join(name),
                id: None,
            });
        }
    }
    sectors.sort_by(|a, b| (a.number, &a.path).cmp(&(b.number, &b.path)));
    Ok(sectors)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "format_version = 1\nstore_id = \"8f1c5021d9e44b07a6339ef0127d5ac8\"\n\
        [[sector]]\nfile = \"a\"\nid = \"2b7e151628aed2a6\"\n[[sector]]\nfile = \"/b\"\n";

    #[test]
    fn the_store_file_names_the_sectors() {
        let sources = by_store_file(Path::new("store"), GOOD).expect("reads");
        assert_eq!(sources.note, None);
        assert_eq!(
            sources.store_id.map(|id| (id[0], id[15])),
            Some((0x8f, 0xc8))
        );
        let named = |number, path: &str, id| Named {
            number,
            path: PathBuf::from(path),
            id,
        };
        assert_eq!(
            sources.sectors,
            [
                named(0, "store/a", Some(0x2b7e_1516_28ae_d2a6)),
                named(1, "/b", None)
            ]
        );
        let newer = by_store_file(Path::new("s"), &GOOD.replacen('1', "7", 1)).expect("reads");
        assert!(newer.note.is_some_and(|note| note.contains("version 7")));
    }

    #[test]
    fn without_it_names_decide() {
        let directory = tempfile::tempdir().expect("a directory");
        assert!(find(directory.path()).is_err());
        assert!(find(&directory.path().join("absent")).is_err());
        for name in [
            "sector-001.graviton",
            "sector-000.graviton",
            "sector-x.graviton",
        ] {
            std::fs::write(directory.path().join(name), "").expect("written");
        }
        let numbers = || -> Vec<u16> {
            let sources = find(directory.path()).expect("finds them");
            assert!(sources.note.is_some());
            sources.sectors.iter().map(|sector| sector.number).collect()
        };
        assert_eq!(numbers(), [0, 1]);
        for bad in [
            b"\xff\xfe".as_slice(),
            b"",
            b"[[sector]]",
            b"sector = 3",
            b"sector = []",
            b"[[[",
        ] {
            std::fs::write(directory.path().join(FILE), bad).expect("written");
            assert_eq!(numbers(), [0, 1], "{bad:?}");
        }
        std::fs::write(directory.path().join(FILE), GOOD).expect("written");
        assert_eq!(find(directory.path()).expect("reads").note, None);
    }
}
