//! Every fuzz target on stable, over every input of its corpus: seeds, what a fuzzer kept because it
//! reached something new, and what it once failed on. `UPDATE_CORPUS=1` writes the seeds of real
//! stores anew.

#[allow(dead_code, reason = "the format's tests use the rest")]
#[path = "../../fuzz/src/lib.rs"]
mod fuzz;

use std::collections::BTreeSet;
use std::panic::catch_unwind;
use std::path::{Path, PathBuf};

use fuzz::decoders::{MODE_FIX, MODE_LARGE_BLOCKS, seed};
use graviton_engine::io::sim::Sim;
use graviton_engine::port::{BlobStore, ListRequest};
use graviton_engine::store::{OpenOptions, Store};
use graviton_format::checkpoint::{self, CheckpointRoot};
use graviton_format::frame::{self, FrameHeader};
use graviton_format::image::Image;
use graviton_format::key::SPACE_RANGES;
use graviton_format::record::{RecordKind, RecordView};
use graviton_format::{Geometry, Structure, segment, store_file};
use graviton_tests::image::{Age, DIRECTORY, EDIT_LEN, KINDS, SectorFile, original};
use graviton_tests::random::Random;

/// The most bytes of a corpus, of one of its files, and the most files: all of it is in git.
const CORPUS_MAX: u64 = 200 << 10;
const FILE_MAX: u64 = 64 << 10;
const FILES_MAX: usize = 250;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz")
}

fn files(target: &str) -> Vec<PathBuf> {
    let folder = root().join("corpus").join(target);
    let entries =
        std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    files
}

/// Runs a corpus.
fn replay(target: &str) {
    let files = files(target);
    assert!(!files.is_empty(), "{target} has no corpus");
    assert!(
        files.len() <= FILES_MAX,
        "{target} has {} files",
        files.len()
    );
    let mut bytes = 0;
    for file in &files {
        let input = std::fs::read(file).expect("an input");
        let length = input.len() as u64;
        assert!(length <= FILE_MAX, "{} has {length} bytes", file.display());
        bytes += length;
        let run = catch_unwind(|| fuzz::run(target, &input));
        assert!(run.is_ok(), "failed on {}", file.display());
    }
    assert!(bytes <= CORPUS_MAX, "{target} has {bytes} bytes");
}

macro_rules! replays {
    ($($target:ident)+) => {
        /// Targets with a test below.
        const REPLAYED: &[&str] = &[$(stringify!($target)),+];
        mod replays {
            $(
                #[test]
                fn $target() {
                    super::replay(stringify!($target));
                }
            )+
        }
    };
}

replays! {
    superblock segment_header frame_header record meta manifest tracker checkpoint_root store_file_copy
    image parts text table catalog store operations command dump
}

#[test]
fn every_target_is_built_and_replayed() {
    let names: BTreeSet<&str> = fuzz::targets().map(|(name, _)| name).collect();
    assert_eq!(names, REPLAYED.iter().copied().collect());
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).expect("a manifest");
    let built: BTreeSet<&str> = manifest
        .lines()
        .filter_map(|line| {
            line.strip_prefix("path = \"fuzz_targets/")?
                .strip_suffix(".rs\"")
        })
        .collect();
    assert_eq!(names, built);
    for name in names {
        let file = root().join(format!("fuzz_targets/{name}.rs"));
        let source = std::fs::read_to_string(file).expect("a target");
        assert!(source.contains(&format!("run(\"{name}\", data)")), "{name}");
    }
}

/// Writes the seeds that real stores give, if that is asked for. What is random in a store (its
/// ids) is the same each time; times are not.
#[test]
fn real_stores_give_seeds() {
    let seeds = real_seeds();
    let targets: BTreeSet<&str> = seeds.iter().map(|(target, ..)| *target).collect();
    let all: BTreeSet<&str> = fuzz::targets().map(|(name, _)| name).collect();
    assert_eq!(targets, all);
    for (target, name, bytes) in seeds {
        if std::env::var_os("UPDATE_CORPUS").is_some() {
            let folder = root().join("corpus").join(target);
            std::fs::create_dir_all(&folder).expect("a folder");
            std::fs::write(folder.join(name), bytes).expect("written");
        } else {
            let run = catch_unwind(|| fuzz::run(target, &bytes));
            assert!(run.is_ok(), "{target} failed on {name}: {bytes:02x?}");
        }
    }
}

/// Targets, names and contents of seeds.
type Seeds = Vec<(&'static str, String, Vec<u8>)>;

fn real_seeds() -> Seeds {
    let mut seeds = Seeds::new();
    for (name, large_blocks, age) in [
        ("checkpointed", false, Age::Checkpointed),
        ("reused", true, Age::Reused),
    ] {
        let snapshot = &original(false, large_blocks).ages[age as usize];
        let mode = MODE_FIX | (u8::from(large_blocks) * MODE_LARGE_BLOCKS);
        structures(&mut seeds, name, mode, &snapshot.sectors[0]);
    }
    edits(&mut seeds);
    let mut put = |target, name: &str, bytes: Vec<u8>| {
        seeds.push((target, format!("real-{name}"), bytes));
    };
    for (mode, two_sectors) in [(0, false), (1, true)] {
        let original = original(two_sectors, false);
        let sim = Sim::boot(&original.ages[1].machine, original.block_size, 1);
        let store_file = Path::new(DIRECTORY).join("graviton.toml");
        let text = sim
            .backend()
            .read_file(&store_file, 1 << 16)
            .expect("a store file");
        put("catalog", &format!("{mode}"), [&[mode], &text[..]].concat());
        put(
            "catalog",
            &format!("copies-{mode}"),
            [&[mode | 8], &text[..]].concat(),
        );
        put(
            "command",
            &format!("store-file-{mode}"),
            [&[8], &text[..]].concat(),
        );
        let open = OpenOptions {
            background: false,
            ..OpenOptions::default()
        };
        let store = Store::open_on(sim.backend(), DIRECTORY, open).expect("it opens");
        let request = ListRequest {
            max: 3,
            ..ListRequest::default()
        };
        let page = store.list(request).wait().expect("a page");
        let token = page.next.expect("a token").to_string();
        put(
            "text",
            &format!("token-{mode}"),
            [&[0], token.as_bytes()].concat(),
        );
        put(
            "text",
            &format!("position-{mode}"),
            [&[1], &token.as_bytes()[10..]].concat(),
        );
        let etag = page.blobs[0].etag.to_string();
        put(
            "text",
            &format!("etag-{mode}"),
            [&[3], etag.as_bytes()].concat(),
        );
    }
    put("catalog", "note", b"\x042".to_vec());
    put(
        "text",
        "digest",
        [&b"\x02sha256:"[..], &[b'a'; 64]].concat(),
    );
    put("text", "key", b"\x04photos/\xff\\cat".to_vec());
    put("text", "listing", b"\x05a|/|a/a|b".to_vec());
    for (number, bytes) in [(0, &b"\x02"[..]), (1, b"1 MiB"), (2, b"1KiB..2KiB")].iter() {
        put(
            "command",
            &format!("text-{number}"),
            [&[*number], *bytes].concat(),
        );
    }
    for (number, line) in LINES.iter().enumerate() {
        let line = line.replace(' ', "\0");
        put(
            "command",
            &format!("line-{number:02}"),
            [&[0], line.as_bytes()].concat(),
        );
    }
    for (number, text) in [
        (1, "1.5GiB"),
        (2, "1KiB..2KiB"),
        (3, "a\\\\b\\x00"),
        (4, ".graviton-17-3.tmp"),
        (4, "a/b/../c"),
        (5, "1700000000123456789\0-5\x00644"),
        (6, "error: a\n\n  tip: b\n\nUsage: c"),
        (7, "12345678"),
    ] {
        let name = format!("text-{number}-{}", text.len());
        put("command", &name, [&[number], text.as_bytes()].concat());
    }
    for ground in 0..8_u8 {
        let mut input = vec![ground];
        input.extend(Random::new(ground.into()).bytes(600));
        put("operations", &format!("{ground}"), input);
    }
    seeds
}

/// Command lines; a space divides their members.
const LINES: &[&str] = &[
    "init --sectors 2 --sector-size 64MiB --segment-size 1MiB --block-size 512",
    "import dir --prefix docs/ --compare-content --sector-size 1GiB",
    "export dir --prefix docs/ --overwrite",
    "put key file --if-etag 00000000000000ab",
    "put --if-absent -- -key",
    "put key --hole 10GiB",
    "put key file --range 1KiB.. --past-end sparse",
    "multipart part 00000000000000ab 1 file",
    "multipart complete 00000000000000ab 1 2",
    "ranges --elsewhere key --mark 0..4,8..12 --total 100",
    "--json get key --range 1KiB..2KiB -o out",
    "--escaped stat a\\x00b",
    "ls -l -d / --start-after a --max 10 a/",
    "rm a b c",
    "cp a b --if-absent",
    "mv a b",
    "-v info",
    "--salvage verify",
    "compact --store s --io syscall --buffered",
    "map --svg -",
    "dump segments --segment 3 --sector 0",
    "dump checkpoint --entries -n 20",
    "dump record key",
    "completions bash",
    "help dump record",
    "--version",
    "nonsense --nonsense=3",
];

/// Each kind of structure of a sector, of what lies where the decoders' targets look.
fn structures(seeds: &mut Seeds, name: &str, mode: u8, sector: &SectorFile) {
    let (identity, geometry) = (&sector.identity, &sector.geometry);
    let mut count = 0;
    let mut put = |target, address: usize, bytes: &[u8]| {
        let bytes = &bytes[..bytes.len().min(6000)];
        count += 1;
        seeds.push((
            target,
            format!("real-{name}-{count}"),
            seed(mode, address as u64, bytes),
        ));
    };
    put("superblock", 0, &sector.bytes[..512]);
    let mut kinds = [0_usize; 7];
    let mut take = |kind: usize| {
        kinds[kind] += 1;
        kinds[kind] <= 3
    };
    for &at in &sector.heads {
        let bytes = &sector.bytes[at..];
        let magic = bytes.first_chunk().map(|magic| u32::from_le_bytes(*magic));
        match magic {
            Some(segment::MAGIC) if at < 1 << 20 && take(0) => {
                put("segment_header", at, &bytes[..512]);
            }
            Some(frame::MAGIC) => {
                if at < 1 << 20 && take(1) {
                    put("frame_header", at, &bytes[..512]);
                }
                let place = (at + FrameHeader::SIZE) as u64;
                let record = &bytes[FrameHeader::SIZE..];
                let Ok(view) = RecordView::decode(record, identity, geometry, place) else {
                    continue;
                };
                let length = usize::try_from(view.length()).expect("little");
                let payload = record
                    .get(view.payload_offset()..length)
                    .unwrap_or_default();
                let is_tracker = view.key[0] == SPACE_RANGES && view.kind == RecordKind::Blob;
                if is_tracker && take(5) {
                    put("tracker", at, &payload[..payload.len() - 8]);
                }
                if view.kind == RecordKind::Manifest && take(4) {
                    // One chunk: the payload, and its checksum.
                    put("manifest", at, &payload[..payload.len() - 8]);
                    put("meta", at, view.meta);
                } else if view.kind != RecordKind::Extent && at < 1 << 20 && take(3) {
                    put("record", at + FrameHeader::SIZE, &record[..length]);
                    put("parts", at, payload);
                    put("meta", at, view.meta);
                }
            }
            Some(store_file::MAGIC) if take(6) => put("store_file_copy", at, &bytes[..512]),
            Some(checkpoint::MAGIC) if take(2) => {
                put("checkpoint_root", at, &bytes[..512]);
                checkpoint_image(&mut put, sector, geometry, at);
            }
            _ => {}
        }
    }
    let metas: Vec<Vec<u8>> = seeds
        .iter()
        .filter(|(target, ..)| *target == "meta")
        .map(|(.., bytes)| [&[0x80], &bytes[9..]].concat())
        .collect();
    for (number, bytes) in metas.into_iter().enumerate() {
        seeds.push(("table", format!("real-{name}-meta-{number}"), bytes));
    }
    let tables: Vec<Vec<u8>> = seeds
        .iter()
        .filter(|(target, ..)| *target == "image")
        .filter_map(|(.., bytes)| Image::open(bytes[9..].to_vec()).ok())
        .map(|image| {
            let entries: Vec<u8> = image
                .segments()
                .flat_map(|entry| entry.bytes().to_vec())
                .collect();
            [&[1], &entries[..]].concat()
        })
        .collect();
    for (number, bytes) in tables.into_iter().enumerate() {
        seeds.push(("table", format!("real-{name}-segments-{number}"), bytes));
    }
}

/// The image of the checkpoint whose root lies at `at`, if it lies in one segment.
fn checkpoint_image(
    put: &mut impl FnMut(&'static str, usize, &[u8]),
    sector: &SectorFile,
    geometry: &Geometry,
    at: usize,
) {
    let root = CheckpointRoot::decode(&sector.bytes[at..], &sector.identity, geometry, at as u64);
    let Ok((root, list)) = root else { return };
    let Some(&first) = list.first() else { return };
    let begin = geometry.segment_offset(first) + u64::from(geometry.block_size);
    let begin = usize::try_from(begin).expect("a small sector");
    let length = usize::try_from(root.image_length.get()).expect("little");
    if let Some(image) = sector.bytes.get(begin..begin + length) {
        put("image", at, image);
    }
}

/// Lists of edits: of every kind, at every age.
fn edits(seeds: &mut Seeds) {
    let mut random = Random::new(1);
    for mode in 0..32_u8 {
        let mut input = vec![mode];
        for _ in 0..usize::from(mode % 5) {
            let mut edit = random.bytes(EDIT_LEN);
            edit[0] %= KINDS;
            input.extend(edit);
        }
        let target = if mode % 4 == 3 { "dump" } else { "store" };
        seeds.push((target, format!("real-{mode:02}"), input.clone()));
    }
}
