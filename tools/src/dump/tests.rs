//! Dumps of the format's sample sectors, whole and damaged, and of hostile ones.

use std::cell::RefCell;
use std::path::PathBuf;

use graviton_engine::port::BinaryKey;
use graviton_format::checkpoint::CheckpointRoot;
use graviton_format::frame::FrameHeader;
use graviton_format::record::RecordHeader;
use graviton_format::segment::SegmentHeader;
use graviton_format::superblock::Superblock;
use graviton_format::{Geometry, Identity};
use serde_json::Value;

use super::Dump;
use super::source::{self, Sources};
use super::tell::Sink;
use crate::cli::DumpWhat;
use crate::failure::{Exit, Failure};

/// Of the sample sectors; `vectors/README.md` says so.
const IDENTITY: Identity = Identity {
    store_id: *b"\x8f\x1c\x50\x21\xd9\xe4\x4b\x07\xa6\x33\x9e\xf0\x12\x7d\x5a\xc8",
    sector_id: 0x2b7e_1516_28ae_d2a6,
};
const GEOMETRY: Geometry = Geometry {
    block_size: 512,
    segment_size: 64 * 1024,
    segment_count: 16,
};

/// The bytes of a vector of the format's.
fn vector(name: &str) -> Vec<u8> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../format-spec/vectors/v1");
    let text = std::fs::read_to_string(folder.join(format!("{name}.hex"))).expect("a vector");
    let mut bytes = Vec::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (field, value) = line.split_once(": ").expect("a field");
        match field {
            "kind" | "address" | "expect" => {}
            "base" => bytes = vector(value),
            "size" => bytes.resize(value.parse().expect("a size"), 0),
            offset => {
                let at = usize::from_str_radix(offset, 16).expect("an offset");
                for (target, digits) in bytes[at..].iter_mut().zip(value.as_bytes().chunks(2)) {
                    let digits = std::str::from_utf8(digits).expect("digits");
                    *target = u8::from_str_radix(digits, 16).expect("hex");
                }
            }
        }
    }
    bytes
}

#[derive(Default)]
struct Told {
    json: bool,
    lines: RefCell<Vec<String>>,
    objects: RefCell<Vec<Value>>,
    reports: RefCell<Vec<Exit>>,
}

impl Sink for Told {
    fn is_json(&self) -> bool {
        self.json
    }

    fn line(&self, line: &str) -> Result<(), Failure> {
        assert!(!line.contains(char::is_control), "{line:?}");
        self.lines.borrow_mut().push(line.to_owned());
        Ok(())
    }

    fn object(&self, object: &Value) -> Result<(), Failure> {
        self.objects.borrow_mut().push(object.clone());
        Ok(())
    }

    fn report(&self, failure: &Failure) {
        self.reports.borrow_mut().push(failure.exit());
    }
}

/// A store with one sector.
struct Fixture {
    directory: tempfile::TempDir,
    sources: Sources,
}

impl Fixture {
    fn new(sector: &[u8]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let store_file = "format_version = 1\nstore_id = \"8f1c5021d9e44b07a6339ef0127d5ac8\"\n\
            [[sector]]\nfile = \"s\"\nid = \"2b7e151628aed2a6\"\n";
        std::fs::write(directory.path().join("graviton.toml"), store_file).expect("written");
        let sources = source::find(directory.path()).expect("found");
        let fixture = Self { directory, sources };
        fixture.write(sector);
        fixture
    }

    fn write(&self, sector: &[u8]) {
        std::fs::write(self.directory.path().join("s"), sector).expect("written");
    }

    /// What a dump says, to people or machines, and its exit code.
    fn told(&self, what: &DumpWhat, key: &[u8], json: bool, verbose: bool) -> (Told, Exit) {
        let told = Told {
            json,
            ..Told::default()
        };
        let key =
            matches!(what, DumpWhat::Record { .. }).then(|| BinaryKey::new(key).expect("a key"));
        let outcome = Dump {
            sink: &told,
            verbose,
            what,
            key: key.as_ref(),
            sources: &self.sources,
        }
        .sectors(None);
        let exit = outcome.map_or_else(|failure| failure.exit(), |()| Exit::Done);
        (told, exit)
    }

    fn text(&self, what: &DumpWhat, key: &[u8]) -> (String, Exit) {
        let (told, exit) = self.told(what, key, false, false);
        (told.lines.into_inner().join("\n"), exit)
    }

    fn json(&self, what: &DumpWhat, key: &[u8], verbose: bool) -> (Vec<Value>, Exit) {
        let (told, exit) = self.told(what, key, true, verbose);
        assert!(told.lines.borrow().is_empty());
        (told.objects.into_inner(), exit)
    }
}

const RECORD: DumpWhat = DumpWhat::Record {
    key: std::ffi::OsString::new(),
};
const FRAMES: DumpWhat = DumpWhat::Frames { segment: None };
const SEGMENTS: DumpWhat = DumpWhat::Segments { segment: None };
const CHECKPOINT: DumpWhat = DumpWhat::Checkpoint {
    entries: true,
    max: None,
};
const EVERYTHING: [DumpWhat; 6] = [
    DumpWhat::Superblock,
    DumpWhat::StoreFile,
    SEGMENTS,
    FRAMES,
    RECORD,
    CHECKPOINT,
];

fn all<'a>(objects: &'a [Value], structure: &str) -> Vec<&'a Value> {
    let objects = objects.iter();
    objects
        .filter(|object| object["structure"] == structure)
        .collect()
}

#[test]
fn a_whole_sector_has_no_damage() {
    let fixture = Fixture::new(&vector("sector"));
    for what in &EVERYTHING {
        let (text, exit) = fixture.text(what, b"docs/hello.txt");
        assert_eq!(exit, Exit::Done, "{what:?}: {text}");
        assert!(!text.contains("note"), "{what:?}: {text}");
        let (objects, exit) = fixture.json(what, b"docs/hello.txt", true);
        assert_eq!(exit, Exit::Done, "{what:?}");
        assert!(!objects.is_empty());
    }
}

#[test]
fn superblocks_are_shown_with_offsets() {
    let fixture = Fixture::new(&vector("sector"));
    let (objects, _) = fixture.json(&DumpWhat::Superblock, b"", false);
    let copies = all(&objects, "superblock");
    assert_eq!(copies.len(), 2);
    assert!(copies.iter().all(|copy| copy["good"] == true));
    assert_eq!(copies[1]["address"], GEOMETRY.back_area());
    let field = &copies[1]["fields"][3];
    assert_eq!(field["name"], "store_id");
    assert_eq!(field["offset"], GEOMETRY.back_area() + 16);
    assert_eq!(field["hex"], "8f1c5021d9e44b07a6339ef0127d5ac8");
}

#[test]
fn copies_of_the_store_file_are_shown_with_their_text() {
    let mut bytes = vector("sector");
    let [front, back] = GEOMETRY.store_file_copies();
    let at = usize::try_from(front).expect("fits");
    bytes[at + 70] ^= 1;
    let fixture = Fixture::new(&bytes);
    let (objects, exit) = fixture.json(&DumpWhat::StoreFile, b"", false);
    assert_eq!(exit, Exit::Corruption);
    let copies = all(&objects, "store_file_copy");
    assert_eq!(copies[0]["address"], front);
    assert_eq!(copies[0]["good"], false);
    assert_eq!(copies[1]["address"], back);
    let text = copies[1]["text"].as_str().expect("a text");
    assert!(text.contains("revision = 1\n"), "{text}");
    bytes[at..at + 64].fill(0);
    let (text, exit) = Fixture::new(&bytes).text(&DumpWhat::StoreFile, b"");
    assert_eq!(exit, Exit::Done, "{text}");
    assert!(text.contains("never written"), "{text}");
    assert!(text.contains("| file = \"sector.bin\""), "{text}");
}

#[test]
fn damaged_superblocks_do_not_keep_the_rest_from_being_shown() {
    let fixture = Fixture::new(&vector("sector-front-superblock-gone"));
    let (text, exit) = fixture.text(&DumpWhat::Superblock, b"");
    assert_eq!(exit, Exit::Corruption);
    assert!(text.contains("back superblock at 1114112: good"), "{text}");
    let (text, exit) = fixture.text(&FRAMES, b"");
    assert_eq!(exit, Exit::Done, "{text}");
    assert!(text.contains("note: front superblock: "), "{text}");

    // Neither is good, but one has plausible measures.
    let mut bytes = vector("sector");
    bytes[100] ^= 1;
    let back = usize::try_from(GEOMETRY.back_area()).expect("fits");
    bytes[back..back + 512].fill(0);
    let fixture = Fixture::new(&bytes);
    let (objects, exit) = fixture.json(&FRAMES, b"", false);
    assert_eq!(exit, Exit::Corruption);
    assert_eq!(all(&objects, "frame").len(), 9);

    // Nothing is left.
    bytes[..512].fill(0xff);
    let fixture = Fixture::new(&bytes);
    let (objects, exit) = fixture.json(&FRAMES, b"", false);
    assert_eq!(exit, Exit::Corruption);
    assert!(all(&objects, "frame").is_empty());
}

#[test]
fn a_newer_version_is_no_damage() {
    let mut bytes = vector("sector");
    for at in GEOMETRY.superblocks() {
        bytes[usize::try_from(at).expect("fits") + 8] = 9;
    }
    let fixture = Fixture::new(&bytes);
    for what in &EVERYTHING {
        let (told, exit) = fixture.told(what, b"large", false, false);
        assert_eq!(exit, Exit::Failed, "{what:?}: {:?}", told.lines);
    }
}

/// The sector with the version of one copy of its superblock changed, and its checksum made to fit
/// if it is `sealed`.
fn with_version(at: u64, version: u32, sealed: bool) -> Vec<u8> {
    let mut bytes = vector("sector");
    let start = usize::try_from(at).expect("fits");
    let mut superblock = *Superblock::view(&bytes[start..]).expect("long enough");
    superblock.version = version.into();
    if sealed {
        superblock = superblock.sealed(at);
    }
    bytes[start..start + 512].copy_from_slice(superblock.bytes());
    bytes
}

#[test]
fn a_version_that_one_copy_alone_can_not_have_is_damage() {
    let [front, back] = GEOMETRY.superblocks();
    for (at, sealed, name) in [
        (front, false, "front"),
        (back, false, "back"),
        (front, true, "front"),
    ] {
        let fixture = Fixture::new(&with_version(at, 2, sealed));
        let (text, exit) = fixture.text(&DumpWhat::Superblock, b"");
        assert_eq!(exit, Exit::Corruption, "{name}: {text}");
        let damage = format!("DAMAGE at {at}: the {name} superblock: format version 2");
        assert!(text.contains(&damage), "{text}");
        // The other copy is enough for everything else.
        let (text, exit) = fixture.text(&FRAMES, b"");
        assert_eq!(exit, Exit::Done, "{name}: {text}");
    }
    // Who raises the version may have come this far.
    let fixture = Fixture::new(&with_version(back, 2, true));
    let (text, exit) = fixture.text(&DumpWhat::Superblock, b"");
    assert_eq!(exit, Exit::Done, "{text}");
    assert!(text.contains("may be read as of the older one"), "{text}");
}

#[test]
fn a_truncated_file_is_damage_where_something_is_missing() {
    let fixture = Fixture::new(&vector("sector-cut"));
    let (text, exit) = fixture.text(&DumpWhat::Superblock, b"");
    assert_eq!(exit, Exit::Corruption);
    assert!(text.contains("truncated: 1179136 of 1179648"), "{text}");
    let (text, exit) = fixture.text(&FRAMES, b"");
    assert_eq!(exit, Exit::Done, "{text}");
    assert!(text.contains("truncated"), "{text}");
    fixture.write(&vector("sector")[..300_000]);
    for what in &EVERYTHING {
        let (text, exit) = fixture.text(what, b"large");
        assert_eq!(exit, Exit::Corruption, "{what:?}: {text}");
    }
}

#[test]
fn checkpoints_are_shown_with_their_images() {
    let fixture = Fixture::new(&vector("sector"));
    let (objects, _) = fixture.json(&CHECKPOINT, b"", false);
    assert_eq!(all(&objects, "checkpoint_root").len(), 4);
    let checkpoints = all(&objects, "checkpoint");
    assert_eq!(checkpoints.len(), 2);
    assert_eq!(checkpoints[0]["sequence"], 2);
    assert_eq!(checkpoints[0]["segments"], serde_json::json!([3, 4]));
    assert_eq!(checkpoints[0]["pages"], 1);
    assert_eq!(checkpoints[0]["image"]["blobs"], 4);
    assert_eq!(checkpoints[0]["image"]["tombstones"], 1);
    assert_eq!(checkpoints[0]["image"]["states"]["free"]["segments"], 11);
    let entries = all(&objects, "image_entry");
    assert_eq!(entries.len(), 5);
    assert!(entries.iter().any(|entry| entry["kind"] == "manifest"));

    let few = DumpWhat::Checkpoint {
        entries: true,
        max: Some(2),
    };
    let (objects, exit) = fixture.json(&few, b"", false);
    assert_eq!(exit, Exit::Done);
    assert_eq!(all(&objects, "image_entry").len(), 2);
    assert_eq!(all(&objects, "note").len(), 1);
}

#[test]
fn rotten_images_are_found() {
    let fixture = Fixture::new(&vector("sector-newest-image-rotten"));
    let (text, exit) = fixture.text(&CHECKPOINT, b"");
    assert_eq!(exit, Exit::Corruption);
    assert!(text.contains("page 0 does not verify"), "{text}");
    assert!(text.contains("recovery begins at checkpoint 1"), "{text}");
    // The older one stands in; nothing of the log is missing.
    let (objects, exit) = fixture.json(&FRAMES, b"", false);
    assert_eq!(exit, Exit::Done);
    assert_eq!(all(&objects, "frame").len(), 9);

    let fixture = Fixture::new(&vector("sector-no-image"));
    let (text, exit) = fixture.text(&CHECKPOINT, b"");
    assert_eq!(exit, Exit::Corruption);
    assert!(text.contains("no good checkpoint"), "{text}");
    let (objects, exit) = fixture.json(&FRAMES, b"", false);
    assert_eq!(exit, Exit::Corruption);
    assert_eq!(all(&objects, "frame").len(), 9);
}

#[test]
fn segments_are_shown_with_state() {
    let fixture = Fixture::new(&vector("sector"));
    let (objects, _) = fixture.json(&SEGMENTS, b"", false);
    let segments = all(&objects, "segment");
    assert_eq!(segments.len(), 16);
    assert_eq!(segments[0]["header"]["kind"], "checkpoint");
    assert_eq!(segments[2]["header"]["kind"], "log");
    assert_eq!(segments[2]["checkpoint"]["state"], "open");
    assert_eq!(segments[5]["header"]["previous"]["segment"], 2);
    assert_eq!(segments[6]["header"], Value::Null);
    let end = all(&objects, "log_end")[0];
    assert_eq!((&end["segment"], &end["offset"]), (&5.into(), &6144.into()));
    assert_eq!(end["lsn"], 13);
    let (objects, _) = fixture.json(&DumpWhat::Segments { segment: Some(5) }, b"", false);
    assert_eq!(all(&objects, "segment").len(), 1);
}

/// The sector with segment 0, which holds a part of checkpoint 1, taken again.
fn with_segment_0_taken() -> Vec<u8> {
    let mut bytes = vector("sector");
    let address = GEOMETRY.segment_offset(0);
    let at = usize::try_from(address).expect("fits");
    let mut header = *SegmentHeader::view(&bytes[at..]).expect("long enough");
    header.generation = 1000.into();
    let header = header.sealed(&IDENTITY, address);
    bytes[at..at + header.bytes().len()].copy_from_slice(header.bytes());
    bytes
}

#[test]
fn segments_of_retained_checkpoints_may_not_be_taken() {
    // Checkpoint 1 is the older one of two: F-55.
    let mut bytes = with_segment_0_taken();
    let fixture = Fixture::new(&bytes);
    let (text, exit) = fixture.text(&SEGMENTS, b"");
    assert_eq!(exit, Exit::Corruption, "{text}");
    assert!(text.contains("the header is of generation 1000"), "{text}");
    // Another one has taken the place of its root.
    for root in GEOMETRY.roots(1) {
        let root = usize::try_from(root).expect("fits");
        bytes[root..root + 16384].fill(0);
    }
    fixture.write(&bytes);
    let (text, exit) = fixture.text(&SEGMENTS, b"");
    assert_eq!(exit, Exit::Done, "{text}");
    assert!(text.contains("(written to since)"), "{text}");
}

#[test]
fn frames_are_walked_to_the_end_of_the_log() {
    let fixture = Fixture::new(&vector("sector"));
    let (text, _) = fixture.text(&FRAMES, b"");
    assert!(text.contains("goes on in segment 5"), "{text}");
    assert!(
        text.contains("end of log at 399360 (offset 6144), 3 frames: zeros"),
        "{text}"
    );
    let only = DumpWhat::Frames { segment: Some(5) };
    let (objects, exit) = fixture.json(&only, b"", true);
    assert_eq!(exit, Exit::Done);
    let frames = all(&objects, "frame");
    assert_eq!(frames.len(), 3);
    assert_eq!(frames[0]["fields"][3]["name"], "lsn");
    let records = all(&objects, "record");
    assert_eq!(records.len(), 4);
    assert_eq!(
        (&records[0]["kind"], &records[0]["moved"]),
        (&"extent".into(), &true.into())
    );
    let only = DumpWhat::Frames { segment: Some(9) };
    let (text, exit) = fixture.text(&only, b"");
    assert_eq!(exit, Exit::Done);
    assert!(text.contains("holds no frames"), "{text}");
    let only = DumpWhat::Frames { segment: Some(16) };
    assert_eq!(
        fixture
            .told(&only, b"", false, false)
            .0
            .reports
            .into_inner(),
        [Exit::Usage]
    );
}

#[test]
fn a_torn_tail_is_the_end_of_the_log() {
    let fixture = Fixture::new(&vector("sector-torn-tail"));
    for what in [&FRAMES, &SEGMENTS] {
        let (text, exit) = fixture.text(what, b"");
        assert_eq!(exit, Exit::Done, "{text}");
        assert!(text.contains("end of log"), "{text}");
        assert!(text.contains("LSN 10"), "{text}");
    }
}

#[test]
fn torn_payload_ends_the_log_unless_it_was_acknowledged() {
    // The payload of the last frame with records; the note behind it vouches for it.
    let whole = vector("sector");
    let fixture = Fixture::new(&whole);
    let (objects, _) = fixture.json(&RECORD, b"\x00\xff", false);
    let record = all(&objects, "record")[0];
    let at = record["address"].as_u64().expect("an address") + 32 + 3;
    let mut bytes = whole.clone();
    bytes[usize::try_from(at).expect("fits")] ^= 1;
    fixture.write(&bytes);
    let (text, exit) = fixture.text(&FRAMES, b"");
    assert_eq!(exit, Exit::Corruption);
    assert!(text.contains("1 of 1 chunks bad"), "{text}");
    assert!(text.contains("end of log at 399360"), "{text}");
    let (text, exit) = fixture.text(&RECORD, b"\x00\xff");
    assert_eq!(exit, Exit::Corruption, "{text}");

    // Without the note, nobody says that it was acknowledged.
    bytes[399_360 - 512..399_360].fill(0);
    fixture.write(&bytes);
    let (text, exit) = fixture.text(&FRAMES, b"");
    assert_eq!(exit, Exit::Done, "{text}");
    assert!(text.contains("did not arrive"), "{text}");
    let (text, exit) = fixture.text(&RECORD, b"\x00\xff");
    assert_eq!(exit, Exit::Done, "{text}");
    assert!(text.contains("a leftover"), "{text}");
}

#[test]
fn lost_frames_are_damage() {
    for (name, address) in [
        ("sector-rotten-frame", 393_728),
        ("sector-lost-link", 208_384),
    ] {
        let fixture = Fixture::new(&vector(name));
        for what in [&FRAMES, &SEGMENTS, &RECORD] {
            let (objects, exit) = fixture.json(what, b"large", false);
            assert_eq!(exit, Exit::Corruption, "{name}: {what:?}");
            let damage = all(&objects, "damage");
            assert!(
                damage.iter().any(|damage| damage["address"] == address),
                "{damage:?}"
            );
        }
    }
}

#[test]
fn a_record_is_shown_whole() {
    let fixture = Fixture::new(&vector("sector"));
    let (objects, exit) = fixture.json(&RECORD, b"large", false);
    assert_eq!(exit, Exit::Done);
    let records = all(&objects, "record");
    let lsns: Vec<_> = records
        .iter()
        .map(|record| record["lsn"].as_u64())
        .collect();
    assert_eq!(lsns, [Some(6), Some(5), Some(4), Some(4)]);
    // Of two copies, the one that was moved holds.
    assert_eq!(records[2]["moved"], true);
    let manifest = records[0];
    assert_eq!(manifest["kind"], "manifest");
    assert_eq!(manifest["manifest"]["size"], 4400);
    assert_eq!(manifest["manifest"]["extents"][1]["lsn"], 5);
    assert_eq!(manifest["metadata"][1]["name"], "SHA-256");
    assert_eq!(manifest["metadata"][2]["value"], "text/plain");
    assert_eq!(records[3]["chunks"], 2);
    let (text, exit) = fixture.text(&RECORD, b"docs/hello.txt");
    assert_eq!(exit, Exit::Done);
    assert!(text.contains("content-type = text/plain"), "{text}");
    assert!(text.contains("197192  lsn"), "{text}");
    assert!(
        text.contains("17 bytes at 197256, 1 chunk: all verify"),
        "{text}"
    );
    let (text, exit) = fixture.text(&RECORD, b"docs/hello");
    assert_eq!((text.as_str(), exit), ("", Exit::NotFound));
}

#[test]
fn records_are_found_behind_damage() {
    let mut bytes = vector("sector");
    // The header of the second frame: the walk by the chain ends there.
    bytes[197_120 + 512 + 20] ^= 1;
    let fixture = Fixture::new(&bytes);
    let (objects, exit) = fixture.json(&FRAMES, b"", false);
    assert_eq!(exit, Exit::Corruption);
    assert_eq!(all(&objects, "frame").len(), 4);
    let (objects, exit) = fixture.json(&RECORD, b"gone", false);
    assert_eq!(exit, Exit::Corruption);
    assert_eq!(all(&objects, "record").len(), 2);
    let (_, exit) = fixture.json(&RECORD, b"never", false);
    assert_eq!(exit, Exit::Corruption);
}

/// Numbers that look random and are the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % below as u64).expect("fits")
    }
}

fn dump_everything(fixture: &Fixture) {
    for what in &EVERYTHING {
        for (json, verbose) in [(false, true), (true, false)] {
            // What it says is not the point: that it comes back is.
            let (told, _) = fixture.told(what, b"large", json, verbose);
            assert!(told.lines.borrow().len() < 100_000);
        }
    }
}

#[test]
fn random_damage_never_panics() {
    let whole = vector("sector");
    let used: Vec<usize> = (0..whole.len()).filter(|&at| whole[at] != 0).collect();
    let fixture = Fixture::new(&whole);
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    for _ in 0..60 {
        let mut bytes = whole.clone();
        for _ in 0..=dice.roll(8) {
            let at = used[dice.roll(used.len())];
            bytes[at] ^= 1 << dice.roll(8);
        }
        match dice.roll(4) {
            0 => bytes.truncate(dice.roll(whole.len())),
            1 => {
                let at = dice.roll(whole.len() / 512) * 512;
                let from = dice.roll(whole.len() / 512) * 512;
                bytes.copy_within(from..from + 512, at);
            }
            _ => {}
        }
        fixture.write(&bytes);
        dump_everything(&fixture);
    }
}

/// Changes a byte of a structure and makes its checksum right again.
fn reseal(bytes: &mut [u8], at: usize, dice: &mut Dice) {
    let address = at as u64;
    let mut change = |bytes: &mut [u8], length: usize| {
        let values = [0, 1, 0x7f, 0xff, 0x80];
        let value = values[dice.roll(values.len())];
        bytes[at + 8 + dice.roll(length - 8)] = value;
    };
    let sealed = match &bytes[at..at + 4] {
        b"GRAV" => {
            change(bytes, 88);
            let sealed = Superblock::view(&bytes[at..]).expect("long enough");
            sealed.sealed(address).bytes().to_vec()
        }
        b"GSEG" => {
            change(bytes, 68);
            let sealed = SegmentHeader::view(&bytes[at..]).expect("long enough");
            sealed.sealed(&IDENTITY, address).bytes().to_vec()
        }
        b"GFRM" => {
            change(bytes, 64);
            let sealed = FrameHeader::view(&bytes[at..]).expect("long enough");
            sealed.sealed(&IDENTITY, address).bytes().to_vec()
        }
        b"GCKP" => {
            change(bytes, 104);
            let list = [bytes[at + 128].into(), bytes[at + 132].into()];
            let root = CheckpointRoot::view(&bytes[at..]).expect("long enough");
            root.encode(&IDENTITY, address, &list)
        }
        _ => {
            let header = RecordHeader::view(&bytes[at..]).expect("long enough");
            let key = usize::from(header.key_length.get());
            bytes[at + 4 + dice.roll(28)] = [0, 1, 3, 0xff][dice.roll(4)];
            let covered = IDENTITY.header_checksum(address, &[&bytes[at + 4..at + 32 + key]]);
            covered.to_le_bytes().to_vec()
        }
    };
    bytes[at..at + sealed.len()].copy_from_slice(&sealed);
}

#[test]
fn lies_with_good_checksums_never_panic() {
    let whole = vector("sector");
    let mut places: Vec<usize> = (0..whole.len())
        .step_by(512)
        .filter(|&at| {
            let magic = &whole[at..at + 4];
            [b"GRAV", b"GSEG", b"GFRM", b"GCKP"]
                .iter()
                .any(|known| magic == *known)
        })
        .collect();
    let frames: Vec<usize> = places
        .iter()
        .copied()
        .filter(|&at| &whole[at..at + 4] == b"GFRM")
        .collect();
    places.extend(frames.iter().map(|at| at + 64));
    let fixture = Fixture::new(&whole);
    let mut dice = Dice(0x2545_f491_4f6c_dd1d);
    for round in 0..120 {
        let mut bytes = whole.clone();
        reseal(&mut bytes, places[round % places.len()], &mut dice);
        for _ in 0..dice.roll(3) {
            reseal(&mut bytes, places[dice.roll(places.len())], &mut dice);
        }
        fixture.write(&bytes);
        dump_everything(&fixture);
    }
}

#[test]
fn a_sector_that_claims_to_be_vast_is_soon_through() {
    let geometry = Geometry {
        block_size: 512,
        segment_size: 1 << 30,
        segment_count: 1 << 24,
    };
    let mut bytes = vector("sector");
    let superblock = Superblock::new(IDENTITY, 0, 1, &geometry, 0).sealed(0);
    bytes[..512].copy_from_slice(superblock.bytes());
    let fixture = Fixture::new(&bytes);
    for what in &EVERYTHING {
        let (_, exit) = fixture.text(what, b"large");
        assert_eq!(exit, Exit::Corruption, "{what:?}");
    }
}

#[test]
fn one_sector_that_is_gone_does_not_hide_the_others() {
    let fixture = Fixture::new(&vector("sector"));
    let path = fixture.directory.path();
    std::fs::rename(path.join("s"), path.join("sector-001.graviton")).expect("renamed");
    let (told, exit) = fixture.told(&FRAMES, b"", true, false);
    assert_eq!(exit, Exit::Failed);
    assert_eq!(told.reports.into_inner(), [Exit::Failed]);
    std::fs::remove_file(path.join("graviton.toml")).expect("removed");
    std::fs::create_dir(path.join("sector-000.graviton")).expect("made");
    let fixture = Fixture {
        sources: source::find(path).expect("found"),
        directory: fixture.directory,
    };
    let (objects, exit) = fixture.json(&FRAMES, b"", false);
    assert_eq!(exit, Exit::Failed);
    assert_eq!(all(&objects, "frame").len(), 9);
    assert!(objects.iter().all(|object| object["sector"] == 1));
}
