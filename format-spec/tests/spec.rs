//! `SPEC.md` and the code say the same: field tables, the worked example, constants, rule tags.
//! `UPDATE_SPEC=1` writes tables and example anew between their markers.

#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    reason = "tests"
)]

mod support;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use graviton_format::checksum::payload_hash;
use graviton_format::frame::FrameHeader;
use graviton_format::record::{RecordHeader, RecordView};
use graviton_format::{STRUCTURES, Structure};
use support::sample::{GEOMETRY, IDENTITY};
use support::vectors;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn spec() -> String {
    std::fs::read_to_string(root().join("SPEC.md")).unwrap()
}

/// The field tables, and the dump of the worked example, each with the name of its marker.
fn generated() -> Vec<(String, String)> {
    let mut all: Vec<_> = STRUCTURES
        .iter()
        .map(|(name, size, fields)| {
            let mut text = format!("`{name}`, {size} bytes:\n\n");
            text.push_str(
                "| offset | size | type | field | meaning |\n| ---: | ---: | --- | --- | --- |\n",
            );
            for field in *fields {
                let (offset, size, kind) = (field.offset, field.size, field.kind);
                let (name, doc) = (field.name, field.doc);
                writeln!(text, "| {offset} | {size} | {kind} | `{name}` | {doc} |").unwrap();
            }
            (format!("table {name}"), text)
        })
        .collect();
    all.push(("example".to_owned(), example()));
    all
}

/// The worked example: the vector `frame`, as hex and field by field.
fn example() -> String {
    let frame = vectors::load("frame");
    let mut text = String::from("```text\n");
    for (number, line) in frame.bytes.chunks(16).enumerate() {
        if line.iter().any(|&byte| byte != 0) {
            let hex: Vec<_> = line.iter().map(|byte| format!("{byte:02x}")).collect();
            writeln!(
                text,
                "{:08x}  {}",
                frame.address as usize + number * 16,
                hex.join(" ")
            )
            .unwrap();
        }
    }
    text.push_str("```\n\n");
    let mut part = |title: &str, rows: Vec<graviton_format::Row>| {
        writeln!(
            text,
            "{title}:\n\n| address | field | value |\n| ---: | --- | --- |"
        )
        .unwrap();
        for row in rows {
            writeln!(text, "| {} | `{}` | {} |", row.offset, row.name, row.value).unwrap();
        }
        text.push('\n');
    };
    part(
        "Frame header",
        FrameHeader::rows(&frame.bytes, frame.address),
    );
    let mut at = FrameHeader::SIZE;
    let mut payloads = String::new();
    for title in ["First record", "Second record"] {
        let address = frame.address + at as u64;
        part(title, RecordHeader::rows(&frame.bytes[at..], address));
        let view = RecordView::decode(&frame.bytes[at..], &IDENTITY, &GEOMETRY, address).unwrap();
        let chunk = at + view.payload_offset();
        at += view.length() as usize;
        if chunk == at {
            payloads.push_str("The second record has no payload, hence no chunk.\n");
            continue;
        }
        let (payload, checksum) = frame.bytes[chunk..at].split_at(at - chunk - 8);
        let stored = u64::from_le_bytes(checksum.try_into().unwrap());
        let hash = payload_hash(payload);
        writeln!(
            payloads,
            "The first record's only chunk begins at {}: {} bytes of payload, whose xxh3_64 is\n\
             {hash:#018x}; the mask of LSN {} at this address is {:#018x}; their exclusive or,\n\
             {stored:#018x}, follows the payload.",
            frame.address + chunk as u64,
            payload.len(),
            view.header.lsn,
            hash ^ stored,
        )
        .unwrap();
    }
    text + &payloads
}

#[test]
fn tables_and_example_are_those_of_the_code() {
    let mut text = spec();
    let before = text.clone();
    for (name, content) in generated() {
        let begin = format!("<!-- {name} -->\n");
        let start = text
            .find(&begin)
            .unwrap_or_else(|| panic!("SPEC.md has no marker for {name}"))
            + begin.len();
        let end = start + text[start..].find("<!-- end -->").expect("an end marker");
        text.replace_range(start..end, &format!("\n{content}\n"));
    }
    if std::env::var_os("UPDATE_SPEC").is_some() {
        std::fs::write(root().join("SPEC.md"), &text).unwrap();
    } else {
        assert!(
            text == before,
            "run this test with UPDATE_SPEC=1 and read what changes"
        );
    }
}

/// The numbers of all tags in `text` that stand as `[F-1]`, `\[F-1\]` or `"F-1"`.
fn tags(text: &str) -> BTreeSet<u32> {
    text.match_indices("F-")
        .filter(|&(at, _)| matches!(text[..at].chars().next_back(), Some('[' | '"')))
        .filter_map(|(at, _)| {
            let digits: String = text[at + 2..]
                .chars()
                .take_while(char::is_ascii_digit)
                .collect();
            let closed = matches!(
                text[at + 2 + digits.len()..].chars().next(),
                Some(']' | '"' | '\\')
            );
            digits.parse().ok().filter(|_| closed)
        })
        .collect()
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn tags_in(folders: &[&str]) -> BTreeSet<u32> {
    let mut files = Vec::new();
    folders
        .iter()
        .for_each(|folder| sources(&root().join(folder), &mut files));
    files
        .iter()
        // This file's comments explain how tags are written.
        .filter(|path| !path.ends_with("tests/spec.rs"))
        .flat_map(|path| tags(&std::fs::read_to_string(path).unwrap()))
        .collect()
}

#[test]
fn every_rule_is_defined_once_and_quoted_in_code() {
    let text = spec();
    let defined: Vec<u32> = text
        .lines()
        .filter_map(|line| {
            let rest = line.trim_start_matches("- ").strip_prefix("**[F-")?;
            rest.split_once("]**")?.0.parse().ok()
        })
        .collect();
    let unique: BTreeSet<u32> = defined.iter().copied().collect();
    assert_eq!(defined.len(), unique.len(), "a rule is defined twice");
    let mentioned = tags(&text);
    assert_eq!(
        mentioned, unique,
        "SPEC.md quotes rules that it does not define"
    );
    let own = tags_in(&["src", "tests", "../fuzz/src"]);
    assert_eq!(
        own, unique,
        "rules quoted in code (left), defined in SPEC.md (right)"
    );
    let elsewhere = tags_in(&["../engine/src", "../tools/src", "../tests"]);
    let unknown: Vec<_> = elsewhere.difference(&unique).collect();
    assert!(
        unknown.is_empty(),
        "quoted, but not defined in SPEC.md: {unknown:?}"
    );
}

#[test]
fn the_checksums_are_those_the_specification_names() {
    let text = spec();
    let crc = crc32fast::hash(b"123456789");
    assert!(text.contains(&format!("{crc:#010x}")), "{crc:#x}");
    let xxh = payload_hash(b"");
    assert!(text.contains(&format!("{xxh:#018x}")), "{xxh:#x}");
}

/// Numbers that SPEC.md states in prose, as they stand in the code.
#[test]
fn stated_limits_are_those_of_the_code() {
    use graviton_format::{checkpoint, checksum, geometry, image, key, meta, record, store_file};
    let text = spec();
    let stated = [
        ("area", geometry::AREA_SIZE, "65536"),
        ("slot", geometry::ROOT_SLOT_SIZE as u64, "16384"),
        ("store file", store_file::TEXT_MAX as u64, "16320"),
        ("list", checkpoint::SEGMENTS_MAX as u64, "4064"),
        ("chunk", checksum::CHUNK_SIZE as u64, "4096"),
        ("chunk payload", checksum::CHUNK_PAYLOAD as u64, "4088"),
        ("key", key::KEY_MAX_LEN as u64, "1024"),
        ("stored key", key::STORED_KEY_MAX_LEN as u64, "1033"),
        ("metadata", record::META_MAX_LEN as u64, "40960"),
        ("blob", record::BLOB_MAX_LEN, "1099511627776"),
        ("replicas", meta::REPLICAS_MAX.into(), "64"),
        ("page", image::PAGE_SIZE as u64, "65536"),
        ("group", image::GROUP_SIZE, "16"),
        ("version", graviton_format::FORMAT_VERSION.into(), "1"),
    ];
    for (name, value, written) in stated {
        assert_eq!(value.to_string(), written, "{name}");
        assert!(
            text.contains(written),
            "SPEC.md does not state {name}: {written}"
        );
    }
}
