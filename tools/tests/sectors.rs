//! Sector files come to harm, and sectors come and go: the command on real files, three sectors with two
//! replicas of each blob. Whatever becomes of one sector's file, everything reads back, `info` says what is
//! wrong, and once the sector is replaced any other may be missing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use graviton_tests::command::{Graviton, Outcome};
use graviton_tests::random::Random;
use graviton_tests::trees;
use graviton_tests::{memory_directory, test_directory};
use rustix::fs::{FlockOperation, IFlags, OFlags, flock, ioctl_getflags, ioctl_setflags};
use serde_json::Value;
use tempfile::TempDir;

const FAILED: i32 = 1;
const USAGE: i32 = 2;
const NOT_FOUND: i32 = 3;
const CORRUPTION: i32 = 4;

/// Bytes in front of the first segment, and behind the last.
const AREA: u64 = 64 << 10;
const SIZE: &str = "16MiB";

/// What becomes of a sector's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    /// It is deleted.
    Deleted,
    /// It is cut to half of its length.
    Half,
    /// It is cut to nothing.
    Nothing,
    /// It is cut by a few bytes.
    Short,
    /// All of it is overwritten with noise.
    Noise,
    /// Its segments are, but not what lies in front of them.
    NoiseInLog,
    /// A block is, in the payload of a blob.
    NoiseInBlob,
    /// All of it is overwritten with zeros.
    Zeros,
    /// It is made read-only, as `chattr +i` does it.
    ReadOnly,
    /// A sector of another store is in its place.
    Foreign,
    /// It is put back from a copy that was made before the last changes.
    Older,
}

impl Trouble {
    const ALL: [Self; 11] = [
        Self::Deleted,
        Self::Half,
        Self::Nothing,
        Self::Short,
        Self::Noise,
        Self::NoiseInLog,
        Self::NoiseInBlob,
        Self::Zeros,
        Self::ReadOnly,
        Self::Foreign,
        Self::Older,
    ];

    /// What `info` says of it, which reads no blobs, and writes nothing.
    fn is_told(self) -> &'static [&'static str] {
        match self {
            Self::Deleted => &["is absent", "No such file"],
            Self::Half | Self::Short => &["is left out", "truncated"],
            Self::Nothing => &["is left out", "too few for a sector"],
            Self::Noise | Self::Zeros => &["is left out", "not a Graviton sector"],
            Self::NoiseInLog => &["is left out", "corruption"],
            Self::NoiseInBlob | Self::ReadOnly => &[],
            Self::Foreign => &["is left out", "belongs to store"],
            Self::Older => &["is left out", "an older copy"],
        }
    }

    fn state(self) -> &'static str {
        match self {
            Self::Deleted => "absent",
            _ => "failed",
        }
    }
}

/// A sector, as `sectors ls` has it.
#[derive(Debug, Clone)]
struct Listed {
    number: u64,
    state: String,
    file: PathBuf,
}

/// A file that can't be changed or removed as long as this lives.
struct Immutable {
    file: File,
}

impl Immutable {
    /// Why not, if the file system or the process may not.
    fn make(path: &Path) -> Result<Self, String> {
        let file = File::open(path).expect("opened");
        let flags = ioctl_getflags(&file).map_err(|error| error.to_string())?;
        ioctl_setflags(&file, flags | IFlags::IMMUTABLE).map_err(|error| error.to_string())?;
        Ok(Self { file })
    }
}

impl Drop for Immutable {
    fn drop(&mut self) {
        if let Ok(flags) = ioctl_getflags(&self.file) {
            let _ = ioctl_setflags(&self.file, flags - IFlags::IMMUTABLE);
        }
    }
}

/// A store, and what is in it.
struct Subject {
    directory: TempDir,
    graviton: Graviton,
    /// What was put, and last of all deleted.
    blobs: BTreeMap<String, Option<Vec<u8>>>,
    /// The keys that were put or deleted since they were last read one by one.
    changed: BTreeSet<String>,
    random: Random,
    /// How many keys there have been.
    keys: usize,
}

impl Subject {
    /// A store of three sectors with some blobs.
    fn new(directory: TempDir, seed: u64) -> Self {
        let store = directory.path().join("store");
        let graviton = Graviton::new(env!("CARGO_BIN_EXE_graviton"), store);
        make(&graviton);
        let mut subject = Self {
            directory,
            graviton,
            blobs: BTreeMap::new(),
            changed: BTreeSet::new(),
            random: Random::new(seed),
            keys: 0,
        };
        for length in [0, 1, 4096, 300_000] {
            subject.put_new(length);
        }
        subject
    }

    fn run(&self, arguments: &[&str]) -> Outcome {
        self.graviton.run(arguments)
    }

    fn put(&mut self, key: &str, length: usize) {
        let bytes = self.random.bytes(length);
        let file = self.directory.path().join("blob");
        fs::write(&file, &bytes).expect("written");
        let arguments = ["put".as_ref(), key.as_ref(), file.as_os_str()];
        self.graviton.run(arguments).done();
        self.blobs.insert(key.to_owned(), Some(bytes));
        self.changed.insert(key.to_owned());
    }

    fn put_new(&mut self, length: usize) {
        let key = format!("key-{:03}", self.keys);
        self.keys += 1;
        self.put(&key, length);
    }

    fn live(&self) -> Vec<String> {
        let live = self.blobs.iter().filter(|(_, blob)| blob.is_some());
        live.map(|(key, _)| key.clone()).collect()
    }

    /// A blob is put, one is put anew, and one is deleted.
    fn change(&mut self) {
        let length = self.random.up_to(200_000);
        self.put_new(length);
        let live = self.live();
        let key = self.random.pick(&live).clone();
        let length = self.random.up_to(200_000);
        self.put(&key, length);
        let key = self.random.pick(&live).clone();
        self.run(&["rm", &key]).done();
        self.changed.insert(key.clone());
        self.blobs.insert(key, None);
    }

    /// Every blob is as it was put, and none is there that was deleted.
    fn check(&self) {
        let out = self.directory.path().join("out");
        let arguments = ["export".as_ref(), out.as_os_str()];
        self.graviton.run(arguments).done();
        let listing = trees::read(&out);
        fs::remove_dir_all(&out).expect("removed");
        for (key, blob) in &self.blobs {
            let exported = listing.get(key.as_bytes()).map(|(bytes, ..)| bytes);
            assert!(exported == blob.as_ref(), "{key} is exported wrongly");
        }
        assert_eq!(listing.len(), self.live().len());
    }

    /// As [`Self::check`], blob by blob, of those that have changed since the last time.
    fn check_changed(&mut self) {
        for key in std::mem::take(&mut self.changed) {
            match &self.blobs[&key] {
                Some(bytes) => {
                    let got = self.run(&["get", &key]).done();
                    assert!(got.stdout == *bytes, "{key} has other bytes");
                }
                None => {
                    let gone = self.run(&["get", &key]);
                    assert_eq!(gone.code, NOT_FOUND, "{key}: {}", gone.stderr);
                    assert!(gone.stdout.is_empty());
                }
            }
        }
    }

    fn sectors(&self) -> Vec<Listed> {
        listed(&self.run(&["--json", "sectors", "ls"]).done())
    }

    fn sector(&self, number: u64) -> Option<Listed> {
        let mut sectors = self.sectors().into_iter();
        sectors.find(|sector| sector.number == number)
    }

    /// `info` says all of this of a sector, and that the store is not healthy.
    #[track_caller]
    fn is_ill(&self, number: u64, state: &str, words: &[&str]) {
        let info = self.run(&["info"]);
        let text = info.text();
        assert_eq!(info.code, CORRUPTION, "{text}");
        let (_, health) = text.split_once("NOT HEALTHY:").expect("it says so");
        for word in words {
            assert!(health.contains(word), "no '{word}': {text}");
        }
        assert!(health.contains(&format!("sector {number} ")), "{text}");
        for sector in self.sectors() {
            let expected = if sector.number == number {
                state
            } else {
                "active"
            };
            assert_eq!(sector.state, expected, "{text}");
        }
    }

    /// Nothing is wrong, and everything has its replicas.
    #[track_caller]
    fn is_well(&self) {
        let info = self.run(&["info"]).done();
        assert!(info.text().ends_with("\nhealthy\n"), "{}", info.text());
        let repair = self.run(&["repair"]).done();
        assert_eq!(repair.text(), "everything has its replicas\n");
        let verified = self.run(&["verify"]).done();
        assert!(
            verified.text().starts_with("clean: "),
            "{}",
            verified.text()
        );
        self.check();
    }

    /// Everything is there without any one of the sectors, which it returns.
    #[track_caller]
    fn can_lose_any(&self) -> Vec<Listed> {
        let aside = self.directory.path().join("aside");
        let sectors = self.sectors();
        for sector in &sectors {
            fs::rename(&sector.file, &aside).expect("moved away");
            self.check();
            fs::rename(&aside, &sector.file).expect("moved back");
        }
        sectors
    }

    /// Does that to a sector's file. What it returns is to be kept until the trouble is over.
    fn inflict(&self, trouble: Trouble, sector: &Listed, older: &Path) -> Option<Immutable> {
        let path = &sector.file;
        let open = || File::options().write(true).open(path).expect("opened");
        let length = fs::metadata(path).expect("known").len();
        match trouble {
            Trouble::Deleted => fs::remove_file(path).expect("deleted"),
            Trouble::Half => open().set_len(length / 2).expect("cut"),
            Trouble::Nothing => open().set_len(0).expect("cut"),
            Trouble::Short => open().set_len(length - 5).expect("cut"),
            Trouble::Noise => overwrite(path, 0, length),
            Trouble::NoiseInLog => overwrite_log(path),
            Trouble::NoiseInBlob => overwrite_a_blob(self, sector),
            Trouble::Zeros => fs::write(path, vec![0; bytes(length)]).expect("written"),
            Trouble::ReadOnly => match Immutable::make(path) {
                Ok(immutable) => return Some(immutable),
                Err(why) => eprintln!("skipped: no file can be made immutable here: {why}"),
            },
            Trouble::Foreign => {
                let other = Graviton::new(
                    env!("CARGO_BIN_EXE_graviton"),
                    self.directory.path().join("other"),
                );
                make(&other);
                fs::copy(other.store().join("sector-001.graviton"), path).expect("copied");
                fs::remove_dir_all(other.store()).expect("removed");
            }
            Trouble::Older => drop(fs::copy(older, path).expect("copied")),
        }
        None
    }

    /// One sector's file comes to that harm in the course of changes, and the sector is replaced.
    fn survives(&mut self, trouble: Trouble, place: usize) {
        eprintln!("{trouble:?} of sector {place} of three");
        self.change();
        let sector = self.sectors().swap_remove(place);
        let number = sector.number.to_string();
        let older = self.directory.path().join("older");
        if trouble == Trouble::Older {
            fs::copy(&sector.file, &older).expect("copied");
            self.change();
        }
        let immutable = self.inflict(trouble, &sector, &older);
        if trouble == Trouble::ReadOnly && immutable.is_none() {
            return;
        }
        if trouble == Trouble::NoiseInBlob {
            // Before anything reads it, since what a read finds is mended behind the read.
            let verified = self.run(&["verify"]);
            assert_eq!(verified.code, CORRUPTION, "{}", verified.text());
            let place = format!("sector {number} at offset");
            assert!(verified.text().contains(&place), "{}", verified.text());
        }
        self.check();
        let is_told = |subject: &Self| match trouble {
            Trouble::NoiseInBlob => {
                let verified = subject.run(&["verify"]);
                let text = verified.text();
                let is_named = text.contains(&format!("sector {number} at offset"));
                // Unless it is mended by now.
                assert!(verified.code == 0 || is_named, "{text}");
            }
            // Who only reads does not notice.
            Trouble::ReadOnly => {
                let said = subject.run(&["checkpoint"]).done().stderr;
                let wanted = format!("sector {number} can only be read");
                assert!(said.contains(&wanted), "{said}");
            }
            _ => subject.is_ill(sector.number, trouble.state(), trouble.is_told()),
        };
        is_told(self);
        self.change();
        self.check_changed();
        is_told(self);
        // It need not be writable to be replaced, but its file could not be removed.
        drop(immutable);
        self.run(&["sectors", "replace", &number]).done();
        assert!(!sector.file.exists());
        self.is_well();
        let sectors = self.can_lose_any();
        assert_eq!(sectors.len(), 3);
        assert!(sectors.iter().all(|other| other.number != sector.number));
        self.run(&["info"]).done();
    }
}

fn make(graviton: &Graviton) {
    let arguments = [
        "init",
        "--sectors",
        "3",
        "--replicas",
        "2",
        "--sector-size",
        SIZE,
    ];
    graviton.run(arguments).done();
}

fn listed(ls: &Outcome) -> Vec<Listed> {
    let sector = |line: &str| {
        let line: Value = serde_json::from_str(line).expect("a line of JSON");
        Listed {
            number: line["number"].as_u64().expect("a number"),
            state: line["state"].as_str().expect("a state").to_owned(),
            file: line["path"].as_str().expect("a path").into(),
        }
    };
    ls.text().lines().map(sector).collect()
}

fn bytes(length: u64) -> usize {
    usize::try_from(length).expect("a small file")
}

/// Noise from one place in a file to another.
fn overwrite(path: &Path, from: u64, to: u64) {
    let file = File::options().write(true).open(path).expect("opened");
    let noise = Random::new(from).bytes(1 << 20);
    let mut place = from;
    while place < to {
        let length = bytes(to - place).min(noise.len());
        file.write_all_at(&noise[..length], place).expect("written");
        place += length as u64;
    }
}

/// Noise in all segments, beside the page cache where that is possible: what lies in there, of a file that is
/// written to directly, makes the kernel tell the other writer of errors.
fn overwrite_log(path: &Path) {
    let open = |flags: OFlags| {
        let flags = i32::try_from(flags.bits()).expect("few bits");
        File::options().write(true).custom_flags(flags).open(path)
    };
    let file = open(OFlags::DIRECT).or_else(|_| open(OFlags::empty()));
    let file = file.expect("opened");
    let length = usize::try_from(AREA).expect("little");
    let noise = Random::new(1).bytes(2 * length);
    let start = noise.as_ptr().align_offset(4096);
    let end = file.metadata().expect("known").len() - AREA;
    for place in (AREA..end).step_by(length) {
        let noise = &noise[start..start + length];
        file.write_all_at(noise, place).expect("written");
    }
}

/// Noise in a block in the middle of a blob that the sector has, wherever a copy of it lies.
fn overwrite_a_blob(subject: &Subject, sector: &Listed) {
    let has_it = |key: &String| {
        let stat = subject.run(&["--json", "stat", key]).done();
        let stat: Value = serde_json::from_str(&stat.text()).expect("JSON");
        let sectors = stat["sectors"].as_array().expect("numbers");
        sectors.contains(&sector.number.into())
    };
    let large = subject.live().into_iter();
    let size = |key: &String| subject.blobs[key].as_ref().map_or(0, Vec::len);
    let mut large: Vec<String> = large.filter(|key| size(key) > 8192).collect();
    large.retain(has_it);
    let key = large.first().expect("it has a blob of some size");
    let blob = subject.blobs[key].as_ref().expect("live");
    let (file, middle) = (fs::read(&sector.file).expect("read"), blob.len() / 2);
    let wanted = &blob[middle..middle + 16];
    let found = |at: &usize| file[*at] == wanted[0] && file[*at..].starts_with(wanted);
    let places: Vec<_> = (0..file.len() - wanted.len()).filter(found).collect();
    assert!(!places.is_empty(), "it lies there");
    for place in places {
        overwrite(&sector.file, place as u64 - 256, place as u64 + 256);
    }
}

/// These troubles, one after the other, of one sector and another.
fn survive(directory: TempDir, shift: usize, troubles: &[Trouble]) {
    let mut subject = Subject::new(directory, shift as u64);
    for (number, &trouble) in troubles.iter().enumerate() {
        subject.put_new(100_000);
        subject.survives(trouble, (number + shift) % 3);
    }
    subject.changed = subject.blobs.keys().cloned().collect();
    subject.check_changed();
}

/// Every third trouble, or, with `GRAVITON_SCRIPT=all`, each.
fn troubles(third: usize) -> Vec<Trouble> {
    let all = match std::env::var("GRAVITON_SCRIPT").as_deref() {
        Ok("all") => true,
        Ok(other) => panic!("GRAVITON_SCRIPT={other}, may only be 'all'"),
        Err(_) => false,
    };
    let numbered = Trouble::ALL.into_iter().enumerate();
    let some = numbered.filter(|(number, _)| all || number % 3 == third);
    some.map(|(_, trouble)| trouble).collect()
}

#[test]
fn the_first_sector_file_comes_to_harm() {
    survive(memory_directory(), 0, &troubles(0));
}

#[test]
fn the_second_sector_file_comes_to_harm() {
    survive(memory_directory(), 1, &troubles(1));
}

#[test]
fn the_third_sector_file_comes_to_harm() {
    survive(memory_directory(), 2, &troubles(2));
}

/// What is not the same where files lie in memory.
#[test]
fn a_sector_file_on_a_disk_comes_to_harm() {
    let troubles = [Trouble::NoiseInLog, Trouble::ReadOnly];
    survive(test_directory(), 1, &troubles);
}

/// What a command says, line by line, and then that it has ended.
fn next_line(stdout: &mut impl BufRead) -> Option<Value> {
    let mut line = String::new();
    let length = stdout.read_line(&mut line).expect("read");
    (length > 0).then(|| serde_json::from_str(&line).expect("a line of JSON"))
}

/// The log of a sector is overwritten while files are being imported: of those that the import says it has,
/// none is lost, and it is not kept from going on.
#[test]
fn a_sector_file_comes_to_harm_in_the_middle_of_an_import() {
    for place in 0..3 {
        let subject = Subject::new(test_directory(), 4);
        let tree = subject.directory.path().join("tree");
        let files = trees::generate(place as u64, 120, 1);
        trees::write(&tree, &files);
        let sector = subject.sectors().swap_remove(place);
        let arguments = ["--json".as_ref(), "import".as_ref(), tree.as_os_str()];
        let mut command = subject.graviton.command(arguments);
        let mut import = command.spawn().expect("it starts");
        let mut stdout = BufReader::new(import.stdout.take().expect("piped"));
        let (mut imported, mut is_harmed) = (BTreeSet::new(), false);
        while let Some(line) = next_line(&mut stdout) {
            if line["event"] == "imported" {
                imported.insert(line["key"].as_str().expect("a key").as_bytes().to_vec());
            }
            if imported.len() >= 20 * (place + 1) && !is_harmed {
                subject.inflict(Trouble::NoiseInLog, &sector, Path::new(""));
                is_harmed = true;
            }
        }
        let ended = import.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&ended.stderr).into_owned();
        assert!(is_harmed && ended.status.success(), "{said}");
        assert!(
            imported.iter().eq(files.keys()),
            "{} imported",
            imported.len()
        );
        let mut subject = subject;
        let all = files.into_iter().map(|(path, content)| {
            let path = String::from_utf8(path).expect("a plain path");
            (path, Some(content))
        });
        subject.blobs.extend(all);
        subject.check();
        // If it had time for a checkpoint behind the harm, it is not left out.
        let info = subject.run(&["info"]);
        assert_eq!(info.code, CORRUPTION, "{}", info.text());
        let number = sector.number.to_string();
        let told = format!("sector {number} ");
        assert!(info.text().contains(&told), "{}", info.text());
        subject.run(&["sectors", "replace", &number]).done();
        subject.is_well();
        subject.can_lose_any();
    }
}

#[test]
fn sectors_are_added_labelled_drained_and_removed() {
    let mut subject = Subject::new(memory_directory(), 5);
    let file = subject.directory.path().join("elsewhere");
    let added = subject
        .graviton
        .run([
            "sectors".as_ref(),
            "add".as_ref(),
            "--size".as_ref(),
            "8MiB".as_ref(),
            "--rack".as_ref(),
            "left".as_ref(),
            "--price".as_ref(),
            "0.5,0,0.25".as_ref(),
            "--file".as_ref(),
            file.as_os_str(),
        ])
        .done();
    assert_eq!(added.text(), "added sector 3\n");
    assert!((7 << 20..=8 << 20).contains(&fs::metadata(&file).expect("made").len()));
    assert_eq!(subject.sector(3).expect("listed").file, file);
    let labelled = subject.run(&["sectors", "label", "1", "--tier", "archive"]);
    assert_eq!(labelled.done().text(), "sector 1: tier archive\n");
    let info = subject.run(&["info"]).done().text();
    assert!(info.contains("labels      rack left, price 0.5 to store, 0 to read, 0.25 to write"));
    assert!(info.contains("labels      tier archive"), "{info}");
    let ls = subject.run(&["--json", "sectors", "ls"]).done().text();
    let third: Value = serde_json::from_str(ls.lines().nth(3).expect("four")).expect("JSON");
    assert_eq!(third["rack"], "left");
    assert_eq!(third["price"]["write"], 0.25);
    // All that is said of it is said anew.
    let labelled = subject.run(&["sectors", "label", "3", "--rack", "right"]);
    assert_eq!(labelled.done().text(), "sector 3: rack right\n");
    let labelled = subject.run(&["sectors", "label", "3"]);
    assert_eq!(labelled.done().text(), "sector 3: nothing\n");
    subject.is_well();

    let held = |subject: &Subject, number: u64| {
        let map = subject.live().into_iter().filter(|key| {
            let stat = subject.run(&["--json", "stat", key]).done().text();
            let stat: Value = serde_json::from_str(&stat).expect("JSON");
            let sectors = stat["sectors"].as_array().expect("numbers").clone();
            sectors.contains(&number.into())
        });
        map.collect::<BTreeSet<String>>()
    };
    let drained = subject.run(&["sectors", "drain", "0"]).done();
    assert_eq!(drained.text(), "sector 0 is drained\n");
    assert_eq!(subject.sector(0).expect("listed").state, "draining");
    let info = subject.run(&["info"]).done().text();
    assert!(info.contains("sector 0: draining, "), "{info}");
    let before = held(&subject, 0);
    for _ in 0..4 {
        subject.put_new(1000);
    }
    assert!(held(&subject, 0).is_subset(&before));
    let undrained = subject.run(&["--json", "sectors", "undrain", "0"]).done();
    assert_eq!(undrained.text(), "{\"undrained\":0}\n");
    assert_eq!(subject.sector(0).expect("listed").state, "active");
    for _ in 0..12 {
        subject.put_new(1000);
    }
    assert!(!held(&subject, 0).is_subset(&before));
    subject.is_well();

    subject.run(&["sectors", "drain", "3"]).done();
    subject.change();
    let removed = subject.run(&["--json", "sectors", "remove", "3"]).done();
    assert_eq!(removed.text(), "{\"removed\":3}\n");
    // It was not made in the store's directory.
    assert!(file.exists());
    subject.is_well();
    // One that is drained already is replaced by another all the same.
    subject.run(&["sectors", "drain", "2"]).done();
    let replaced = subject.run(&["--json", "sectors", "replace", "2"]).done();
    assert_eq!(replaced.text(), "{\"added\":3}\n{\"removed\":2}\n");
    subject.run(&["sectors", "add"]).done();
    subject.run(&["sectors", "drain", "0"]).done();
    let replaced = subject.run(&["--json", "sectors", "replace", "0"]).done();
    assert_eq!(replaced.text(), "{\"added\":4}\n{\"removed\":0}\n");
    subject.run(&["sectors", "drain", "1"]).done();
    subject.run(&["sectors", "remove", "1"]).done();
    subject.is_well();
    subject.can_lose_any();
    subject.check_changed();
}

/// Each is answered with one line and the right exit code, and changes nothing.
#[test]
fn wrong_inputs_to_the_sector_commands() {
    let mut subject = Subject::new(memory_directory(), 6);
    let before = subject.sectors();
    let fails = |code, words: &[&str], arguments: &[&str]| {
        let all = [&["sectors"], arguments].concat();
        subject.run(&all).fails(code, words);
    };
    for command in ["drain", "undrain", "remove", "label", "replace"] {
        fails(
            USAGE,
            &["sector 3: the store has {0, 1, 2}"],
            &[command, "3"],
        );
        fails(USAGE, &["sector 65535"], &[command, "65535"]);
        fails(USAGE, &["'65536'"], &[command, "65536"]);
        fails(USAGE, &["'one'"], &[command, "one"]);
        fails(USAGE, &["<SECTOR>"], &[command]);
    }
    fails(
        FAILED,
        &["sector 1 is still needed", "sectors drain 1"],
        &["remove", "1"],
    );
    for add in [["add"].as_slice(), &["replace", "1"]] {
        let adds = |code, words: &[&str], rest: &[&str]| fails(code, words, &[add, rest].concat());
        for size in ["1", "1MiB", "100TiB"] {
            adds(USAGE, &["sector size"], &["--size", size]);
        }
        for size in ["0", "-1", "much", "9999EiB"] {
            adds(USAGE, &["--size"], &[&format!("--size={size}")]);
        }
        let there = before[0].file.to_str().expect("a plain path");
        adds(FAILED, &[there, "exists already"], &["--file", there]);
        adds(FAILED, &["/no/such/place"], &["--file", "/no/such/place"]);
        for price in [
            "", "1", "1,2", "1,2,3,4", "a,b,c", "-1,0,0", "nan,0,0", "0,inf,0",
        ] {
            adds(USAGE, &["--price"], &[&format!("--price={price}")]);
        }
    }
    let long = "x".repeat(65);
    for name in ["", "two\nlines", &long] {
        for what in ["--rack", "--tier"] {
            let words = [&what[2..], "must be 1 to 64 bytes"];
            fails(USAGE, &words, &["label", "1", what, name]);
            fails(USAGE, &words, &["add", what, name]);
            fails(USAGE, &words, &["replace", "1", what, name]);
        }
    }
    fails(USAGE, &["--salvage is for reading"], &["add", "--salvage"]);

    let files = fs::read_dir(subject.graviton.store()).expect("listed");
    assert_eq!(files.count(), 5, "files were left");
    let after = subject.sectors();
    let facts = |sectors: &[Listed]| {
        let facts = sectors.iter();
        let facts = facts.map(|sector| (sector.number, sector.state.clone(), sector.file.clone()));
        facts.collect::<Vec<_>>()
    };
    assert_eq!(facts(&before), facts(&after));
    subject.is_well();

    // With two left, both are needed.
    subject.run(&["sectors", "drain", "1"]).done();
    let too_few = ["without sector 0 those that take some are {2}"];
    let fails = |code, words: &[&str], arguments: &[&str]| {
        let all = [&["sectors"], arguments].concat();
        subject.run(&all).fails(code, words);
    };
    fails(USAGE, &too_few, &["drain", "0"]);
    fails(USAGE, &too_few, &["remove", "0"]);
    fails(USAGE, &too_few, &["remove", "0", "--accept-loss"]);
    subject.run(&["sectors", "remove", "1"]).done();
    fails(USAGE, &["sector 1: the store has {0, 2}"], &["remove", "1"]);
    fails(USAGE, &too_few, &["drain", "0"]);
    subject.change();
    subject.is_well();
    subject.can_lose_any();
}

/// When a command is killed.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// At once.
    Start,
    /// When it is noted that a sector's file is about to be made.
    Noted,
    /// When the file is there.
    Made,
    /// When the store file names it.
    Named,
    /// When the store file says that a sector is being drained.
    Draining,
    /// When the log of a sector has got as far as this many bytes.
    Written(u64),
    /// When the store file names fewer sectors again.
    Unnamed,
}

impl Moment {
    const ALL: [Self; 8] = [
        Self::Start,
        Self::Noted,
        Self::Made,
        Self::Named,
        Self::Draining,
        Self::Written(1 << 20),
        Self::Written(2 << 20),
        Self::Unnamed,
    ];

    /// Whether it has come, to a command on this store; `file` is that of the sector that is written to.
    fn has_come(self, store: &Path, file: &Path) -> bool {
        let is_there = |path: &Path| path.symlink_metadata().is_ok();
        let catalog = || fs::read_to_string(store.join("graviton.toml")).expect("it is there");
        let name = || file.file_name().expect("a name").to_str().expect("plain");
        match self {
            Self::Start => true,
            Self::Noted => is_there(&store.join("graviton.adding")),
            Self::Made => is_there(file),
            Self::Named => catalog().contains(name()),
            Self::Draining => catalog().contains("draining = true"),
            Self::Written(length) => {
                let mut found = [0; 4096];
                let read = File::open(file).and_then(|file| file.read_at(&mut found, length));
                read.is_ok() && found.iter().any(|byte| *byte != 0)
            }
            Self::Unnamed => {
                let catalog = catalog();
                catalog.contains(name()) && catalog.matches("[[sector]]").count() == 3
            }
        }
    }

    /// Runs a command until then. Whether it was killed: it may have come to its end before.
    fn kill(self, subject: &Subject, arguments: &[&str], file: &Path) -> bool {
        let mut command = subject.graviton.command(arguments);
        let mut child = command.spawn().expect("it starts");
        let has_ended = |child: &mut Child| child.try_wait().expect("waited for").is_some();
        while !self.has_come(subject.graviton.store(), file) && !has_ended(&mut child) {
            std::thread::yield_now();
        }
        child.kill().expect("killed, or ended");
        let ended = child.wait_with_output().expect("it ends");
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.code().is_none_or(|code| code == 0), "{said}");
        !ended.status.success()
    }
}

/// A replacement is killed, and then taken up again from where it is: nothing is lost, and three sectors are
/// left.
#[test]
fn sectors_replace_is_killed_at_many_moments() {
    let mut subject = Subject::new(memory_directory(), 7);
    for number in 0..10 {
        subject.put_new(350_000 + number);
    }
    let (mut killed, mut killed_again) = (0, 0);
    for moment in Moment::ALL {
        let sectors = subject.sectors();
        let old = sectors[killed % 3].clone();
        let number = old.number.to_string();
        let unused = (0..).find(|number| sectors.iter().all(|sector| sector.number != *number));
        let new = unused.expect("one of many");
        let file = subject
            .graviton
            .store()
            .join(format!("sector-{new:03}.graviton"));
        let was_killed = moment.kill(&subject, &["sectors", "replace", &number], &file);
        eprintln!("{moment:?}: killed {was_killed}");
        killed += usize::from(was_killed);
        subject.check();
        subject.change();
        // Once more, while it goes on.
        let again = Moment::Start.kill(&subject, &["sectors", "replace", &number], &file);
        killed_again += usize::from(again);
        subject.check();
        let was_there = subject.sector(new).is_some();
        assert!(was_there || !file.exists(), "what was half made is removed");
        match subject.sector(old.number) {
            Some(_) => {
                let replaced = subject.run(&["--json", "sectors", "replace", &number]);
                let first = match was_there {
                    true => format!("{{\"draining\":{number},\"replaced_by\":{new}}}"),
                    false => format!("{{\"added\":{new}}}"),
                };
                let expected = format!("{first}\n{{\"removed\":{number}}}\n");
                assert_eq!(replaced.done().text(), expected);
            }
            // Its file may be left, if the command was killed between the two: the next takes another name.
            None => {
                let none = subject.run(&["sectors", "replace", &number]);
                none.fails(USAGE, &[&format!("there is no sector {number}")]);
            }
        }
        assert_eq!(subject.sectors().len(), 3);
        assert!(subject.sector(new).is_some());
        subject.is_well();
    }
    eprintln!("killed {killed} times, and {killed_again} times when it was to go on");
    assert!(killed > 0);
    subject.can_lose_any();
    subject.check_changed();
}

/// A drain is killed, and goes on with whatever comes next.
#[test]
fn sectors_drain_is_killed_at_many_moments() {
    let mut subject = Subject::new(memory_directory(), 8);
    for number in 0..10 {
        subject.put_new(350_000 + number);
    }
    let mut killed = 0;
    for moment in [
        Moment::Start,
        Moment::Written(11 << 18),
        Moment::Draining,
        Moment::Draining,
    ] {
        let file = subject.sector(2).expect("listed").file;
        let was_killed = moment.kill(&subject, &["sectors", "drain", "0"], &file);
        eprintln!("{moment:?}: killed {was_killed}");
        killed += usize::from(was_killed);
        subject.check();
        subject.change();
        if killed % 2 == 1 {
            subject.run(&["sectors", "undrain", "0"]).done();
            subject.run(&["repair", "--apply"]).done();
            subject.is_well();
            subject.can_lose_any();
        }
    }
    assert!(killed > 0);
    subject.run(&["sectors", "drain", "0"]).done();
    subject.run(&["sectors", "remove", "0"]).done();
    subject.is_well();
    subject.can_lose_any();
    subject.check_changed();
}

/// A store that does not open is not called well, and what is left of it can be read.
#[test]
fn what_can_not_be_made_up_for_is_refused() {
    let subject = Subject::new(memory_directory(), 9);
    let store = subject.graviton.store();
    let catalog = store.join("graviton.toml");
    let sound = fs::read_to_string(&catalog).expect("read");
    let aside = subject.directory.path().join("aside");
    fs::create_dir(&aside).expect("made");
    let refused = |what: &[&str]| {
        let key = &subject.live()[3];
        for arguments in [
            ["get", key].as_slice(),
            &["rm", key],
            &["repair"],
            &["repair", "--apply"],
            &["sectors", "replace", "1"],
            &["rebalance", "--apply"],
        ] {
            let words = [what, &["too many sectors can't be used", "--salvage"]].concat();
            subject.run(arguments).fails(CORRUPTION, &words);
        }
        for command in ["info", "verify"] {
            let told = subject.run(&[command]);
            assert_eq!(told.code, CORRUPTION, "{command}: {}", told.text());
            for word in what {
                assert!(told.text().contains(word), "{}", told.text());
            }
        }
        let info = subject.run(&["--json", "info"]);
        let info: Value = serde_json::from_str(&info.text()).expect("JSON");
        assert_eq!(info["healthy"], false);
        let ls = subject.run(&["sectors", "ls"]).done();
        assert!(ls.stderr.contains(what[0]), "{}", ls.stderr);
        let left = subject.run(&["--salvage", "ls"]).done();
        assert!(!left.stdout.is_empty());
    };

    // Two are away; none may be with what is left.
    let files = [1, 2].map(|number| format!("sector-{number:03}.graviton"));
    let move_all = |from: &Path, to: &Path| {
        for file in &files {
            fs::rename(from.join(file), to.join(file)).expect("moved");
        }
    };
    move_all(store, &aside);
    refused(&["1 may be missing", "sector-001", "sector-002"]);
    move_all(&aside, store);
    subject.is_well();

    // The store file is an older copy.
    subject.run(&["checkpoint"]).done();
    let newer = fs::read_to_string(&catalog).expect("read");
    fs::write(&catalog, &sound).expect("written");
    refused(&["is not as the store left it"]);

    // It does not name a sector any more.
    let entry = |number: u16| newer.find(&format!("[[sector]]\nnumber = {number}"));
    let (from, to) = (entry(1).expect("there"), entry(2).expect("there"));
    fs::write(&catalog, [&newer[..from], &newer[to..]].concat()).expect("written");
    let told = subject.run(&["info"]);
    assert_eq!(told.code, CORRUPTION, "{}", told.text());
    assert!(
        told.text().contains("does not list: {1}"),
        "{}",
        told.text()
    );
    let key = &subject.live()[3];
    subject
        .run(&["get", key])
        .fails(CORRUPTION, &["does not list: {1}"]);

    // Two have changed places.
    let swapped = newer.replace("sector-001", "sector-00x");
    let swapped = swapped.replace("sector-002", "sector-001");
    fs::write(&catalog, swapped.replace("sector-00x", "sector-002")).expect("written");
    refused(&["is sector "]);

    fs::write(&catalog, &newer).expect("written");
    subject.is_well();
}

/// What lies in the place of a sector's file and is none is left out, and not touched.
#[test]
fn no_file_in_the_place_of_a_sector_file() {
    let mut subject = Subject::new(memory_directory(), 10);
    for number in 0..3 {
        let sector = subject.sectors().swap_remove(1);
        fs::remove_file(&sector.file).expect("removed");
        let first = subject.sectors().swap_remove(0).file;
        let words: &[&str] = match number {
            0 => {
                let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
                let kind = rustix::fs::FileType::Fifo;
                rustix::fs::mknodat(rustix::fs::CWD, &sector.file, kind, mode, 0).expect("made");
                &["is left out", "neither a regular file nor a block device"]
            }
            1 => {
                symlink("nowhere", &sector.file).expect("made");
                &["is absent"]
            }
            _ => {
                symlink(&first, &sector.file).expect("made");
                &["is left out", "is sector "]
            }
        };
        subject.check();
        let state = if number == 1 { "absent" } else { "failed" };
        subject.is_ill(sector.number, state, words);
        subject.change();
        subject.check_changed();
        let number = sector.number.to_string();
        subject.run(&["sectors", "replace", &number]).done();
        assert!(sector.file.symlink_metadata().is_err() && first.exists());
        subject.is_well();
        subject.can_lose_any();
    }
}

/// The disk is full: the store is as it was, and nothing is left of what was begun.
#[test]
fn no_room_for_a_sector() {
    let mut subject = Subject::new(memory_directory(), 11);
    // More than there is memory, and fewer segments than there may be.
    let fails = |arguments: &[&str]| {
        let all = [&["sectors"], arguments].concat();
        subject.run(&all).fails(FAILED, &["create "]);
    };
    fails(&["add", "--size", "1900GiB"]);
    fails(&["replace", "1", "--size", "1900GiB"]);
    let files = fs::read_dir(subject.graviton.store()).expect("listed");
    assert_eq!(files.count(), 5, "files were left");
    subject.is_well();
    subject.change();
    subject.run(&["sectors", "replace", "1"]).done();
    subject.is_well();
}

/// What is too many goes, and a sector that comes gets its share; what would be done is said first.
#[test]
fn replicas_are_moved_to_better_places() {
    let mut subject = Subject::new(memory_directory(), 11);
    for _ in 0..12 {
        subject.put_new(200_000);
    }
    let nothing = subject.run(&["rebalance"]).done();
    assert_eq!(nothing.text(), "nothing to move: 16 blobs looked at\n");
    let sector = subject.sector(1).expect("listed");
    let aside = subject.directory.path().join("aside");
    fs::rename(&sector.file, &aside).expect("moved");
    subject.run(&["repair", "--apply"]).done();
    fs::rename(&aside, &sector.file).expect("moved back");
    let surplus = subject.run(&["--json", "rebalance"]).done().text();
    let surplus: Value = serde_json::from_str(&surplus).expect("JSON");
    let removed = surplus["removed"].as_u64().expect("a number");
    assert!(removed > 4, "{surplus}");
    assert_eq!(surplus["applied"], false);
    let told = subject.run(&["rebalance", "-v"]).done().text();
    assert!(told.contains("remove the copy in sector "), "{told}");
    assert!(told.contains("there are 3, more than wanted"), "{told}");
    let (_, last) = told.trim_end().rsplit_once('\n').expect("several lines");
    assert!(last.starts_with("--apply does it: "), "{last}");
    subject.run(&["sectors", "add", "--size", SIZE]).done();
    let done = subject
        .run(&["rebalance", "--apply", "--rate", "100MiB"])
        .done();
    assert!(done.text().starts_with("done: "), "{}", done.text());
    for key in subject.live() {
        let stat = subject.run(&["--json", "stat", &key]).done().text();
        let stat: Value = serde_json::from_str(&stat).expect("JSON");
        assert_eq!(stat["sectors"].as_array().expect("numbers").len(), 2);
    }
    let map = subject.run(&["--json", "sectors", "ls"]).done().text();
    let last: Value = serde_json::from_str(map.lines().last().expect("four")).expect("JSON");
    assert!(
        last["space"]["live"].as_u64().expect("bytes") > 200_000,
        "{last}"
    );
    subject.is_well();
    subject.can_lose_any();
    subject
        .run(&["rebalance", "--rate", "0"])
        .fails(USAGE, &["--rate"]);
}

/// A store goes on without what nobody can bring back, once somebody says so, and about that sector alone.
#[test]
fn a_loss_is_accepted() {
    let directory = memory_directory();
    let graviton = Graviton::new(
        env!("CARGO_BIN_EXE_graviton"),
        directory.path().join("store"),
    );
    let made = ["init", "--sectors", "3", "--sector-size", SIZE];
    graviton.run(made).done();
    for number in 0..12 {
        let file = directory.path().join("blob");
        fs::write(&file, vec![number; 1000]).expect("written");
        let key = format!("key-{number}");
        graviton
            .run(["put".as_ref(), key.as_ref(), file.as_os_str()])
            .done();
    }
    let lost = graviton.store().join("sector-001.graviton");
    fs::remove_file(&lost).expect("removed");
    let refused = graviton.run(["ls"]);
    assert_ne!(refused.code, 0);
    // The loss of that one, not of another.
    graviton
        .run(["sectors", "remove", "0", "--accept-loss"])
        .fails(CORRUPTION, &["sector-001"]);
    graviton
        .run(["sectors", "remove", "1"])
        .fails(FAILED, &["sector-001"]);
    graviton
        .run(["sectors", "replace", "1", "--accept-loss"])
        .done();
    let left = graviton.run(["ls"]).done().text();
    assert!((4..12).contains(&left.lines().count()), "{left}");
    graviton.run(["verify"]).done();
    let ls = graviton.run(["--json", "sectors", "ls"]).done();
    let numbers: Vec<u64> = listed(&ls).iter().map(|sector| sector.number).collect();
    assert_eq!(numbers, [0, 2, 3]);

    // Too few would be left.
    let graviton = Graviton::new(
        env!("CARGO_BIN_EXE_graviton"),
        directory.path().join("other"),
    );
    make(&graviton);
    for number in [1, 2] {
        let lost = graviton
            .store()
            .join(format!("sector-{number:03}.graviton"));
        fs::remove_file(&lost).expect("removed");
    }
    graviton
        .run(["sectors", "remove", "1", "--accept-loss"])
        .fails(USAGE, &["1 sector is left to take 2 replicas"]);
    // Of both, or none: what lay in these two is lost with either.
    graviton
        .run(["sectors", "replace", "1", "--accept-loss"])
        .fails(CORRUPTION, &["sector-001", "sector-002"]);
    graviton
        .run(["sectors", "replace", "1", "--accept-loss", "--without", "2"])
        .done();
    graviton.run(["sectors", "replace", "2"]).done();
    graviton.run(["verify"]).done();
    graviton.run(["info"]).done();
}

/// The store file is lost or damaged, and sectors lie elsewhere then.
#[test]
fn a_store_file_is_recovered() {
    let directory = memory_directory();
    let mut subject = Subject::new(directory, 3);
    subject.change();
    subject
        .run(&["sectors", "label", "1", "--rack", "left"])
        .done();
    subject
        .run(&["sectors", "recover"])
        .fails(FAILED, &["graviton.toml", "already"]);
    let store_file = subject.graviton.store().join("graviton.toml");
    for damage in ["", "format_version = 1"] {
        fs::write(&store_file, damage).expect("written");
        subject
            .run(&["ls"])
            .fails(CORRUPTION, &["graviton.toml", "graviton sectors recover"]);
        let recovered = subject.run(&["sectors", "recover"]).done().text();
        assert!(recovered.contains("written anew"), "{recovered}");
        assert_eq!(recovered.matches(": found\n").count(), 3, "{recovered}");
        subject.is_well();
    }
    let kept = store_file.with_extension("toml.damaged");
    assert_eq!(
        fs::read_to_string(kept).expect("kept"),
        "format_version = 1"
    );
    let labels = subject.run(&["sectors", "ls"]).done().text();
    assert!(labels.contains("left"), "{labels}");

    // Somebody has the sectors open in another directory.
    let mut held = subject.graviton.command(["put", "held", "-"]);
    held.stdin(Stdio::piped()).stdout(Stdio::null());
    let mut held = held.spawn().expect("started");
    let other = Graviton::new(
        env!("CARGO_BIN_EXE_graviton"),
        subject.directory.path().join("b"),
    );
    let mut input = held.stdin.take().expect("piped");
    input.write_all(&[7; 100_000]).expect("it reads");
    let sector = subject.graviton.store().join("sector-001.graviton");
    let is_free = || {
        let file = File::open(&sector).expect("opened");
        flock(&file, FlockOperation::NonBlockingLockShared).is_ok()
    };
    let begun = Instant::now();
    while is_free() {
        assert!(begun.elapsed() < Duration::from_secs(30), "nobody locks it");
        std::thread::sleep(Duration::from_millis(1));
    }
    other
        .run(["sectors".as_ref(), "recover".as_ref(), sector.as_os_str()])
        .fails(FAILED, &["another directory"]);
    drop(input);
    assert!(held.wait().expect("it ends").success());
    subject.run(&["rm", "held"]).done();

    // The disk is gone on which the store file was, and a sector.
    let elsewhere = subject.directory.path().join("elsewhere");
    fs::create_dir(&elsewhere).expect("made");
    let moved = [1, 2].map(|number| {
        let sector = subject.sector(number).expect("it is there");
        let moved = elsewhere.join(format!("moved-{number}"));
        fs::rename(&sector.file, &moved).expect("moved");
        moved
    });
    fs::rename(
        subject.graviton.store(),
        subject.directory.path().join("gone"),
    )
    .expect("moved");
    subject.run(&["sectors", "recover"]).fails(
        FAILED,
        &["no sectors were found", "name a file of each sector"],
    );
    let files = moved.each_ref().map(|path| path.to_str().expect("UTF-8"));
    let arguments = ["sectors", "recover", files[0], files[1]];
    let recovered = subject.run(&arguments).done().text();
    assert!(
        recovered.contains("sector-000.graviton: missing\n"),
        "{recovered}"
    );
    subject
        .run(&["ls"])
        .fails(CORRUPTION, &["sector-000", "--accept-loss"]);
    subject
        .run(&["sectors", "replace", "0", "--accept-loss"])
        .done();
    subject.is_well();

    // What is none of a sector, and a sector twice.
    fs::remove_file(&store_file).expect("removed");
    let no_sector = subject.directory.path().join("text");
    fs::write(&no_sector, vec![b'x'; 200_000]).expect("written");
    for (file, code, words) in [
        (no_sector.as_path(), CORRUPTION, "not a Graviton sector"),
        (Path::new("/nowhere/sector"), FAILED, "No such file"),
    ] {
        let file = file.to_str().expect("UTF-8");
        subject
            .run(&["sectors", "recover", file])
            .fails(code, &[file, words]);
    }
    let copy = elsewhere.join("copy");
    fs::copy(&moved[0], &copy).expect("copied");
    let files = [&copy, &moved[0]].map(|path| path.to_str().expect("UTF-8"));
    subject
        .run(&["sectors", "recover", files[0], files[1]])
        .fails(CORRUPTION, &["is the same sector as"]);
    fs::remove_file(&copy).expect("removed");
    let link = elsewhere.join("link");
    symlink(&moved[0], &link).expect("linked");
    let link = link.to_str().expect("UTF-8");
    subject.run(&["sectors", "recover", link]).done();
    subject.is_well();
    let shown = subject.run(&["dump", "store-file"]).done().text();
    assert!(shown.contains("| [[sector]]"), "{shown}");
}

/// A put may ask for more replicas than the store keeps, and not for fewer.
#[test]
fn a_put_asks_for_more_replicas() {
    let directory = memory_directory();
    let store = directory.path().join("store");
    let graviton = Graviton::new(env!("CARGO_BIN_EXE_graviton"), store);
    let init = ["init", "--sectors", "3", "--replicas", "2"];
    let size = ["--sector-size", SIZE];
    graviton.run(init.into_iter().chain(size)).done();
    let file = env!("CARGO_MANIFEST_PATH");
    graviton.run(["put", "usual", file]).done();
    for (key, replicas) in [("asked", "3"), ("more than there are", "4")] {
        let put = ["put", key, file, "--replicas", replicas];
        graviton.run(put).done();
        let stat = graviton.run(["--json", "stat", key]).done().text();
        let stat: Value = serde_json::from_str(&stat).expect("JSON");
        assert_eq!(stat["replicas"].to_string(), replicas);
        assert_eq!(stat["sectors"].as_array().expect("numbers").len(), 3);
        let stat = graviton.run(["stat", key]).done().text();
        assert!(
            stat.contains(&format!("\nreplicas   {replicas}\n")),
            "{stat}"
        );
    }
    let fewer = graviton.run(["put", "usual", file, "--replicas", "1"]);
    fewer.fails(USAGE, &["1 replicas", "the store keeps 2"]);
    let stat = graviton.run(["stat", "usual"]).done().text();
    assert!(stat.contains("\nreplicas   2\n"), "{stat}");
    let record = graviton.run(["dump", "record", "asked"]).done().text();
    assert!(record.contains("  replicas   3\n"), "{record}");
}

/// Where racks are named, they are heeded.
#[test]
fn replicas_lie_in_different_racks() {
    let directory = memory_directory();
    let store = directory.path().join("store");
    let graviton = Graviton::new(env!("CARGO_BIN_EXE_graviton"), store);
    let init = ["init", "--sectors", "4", "--replicas", "2"];
    let size = ["--sector-size", SIZE];
    graviton.run(init.into_iter().chain(size)).done();
    let file = env!("CARGO_MANIFEST_PATH");
    let racks = ["a", "a", "b", "b"];
    let are_apart = |key: &str| {
        let stat = graviton.run(["--json", "stat", key]).done().text();
        let stat: Value = serde_json::from_str(&stat).expect("JSON");
        let sectors = stat["sectors"].as_array().expect("numbers").iter();
        let racks: BTreeSet<&str> = sectors
            .map(|sector| {
                racks[usize::try_from(sector.as_u64().expect("a number")).expect("of four")]
            })
            .collect();
        racks.len() == 2
    };
    let keys: Vec<String> = (0..8).map(|number| format!("key-{number}")).collect();
    for key in &keys {
        graviton.run(["put", key, file]).done();
    }
    assert!(!keys.iter().all(|key| are_apart(key)));
    for (sector, rack) in racks.iter().enumerate() {
        let sector = sector.to_string();
        graviton
            .run(["sectors", "label", &sector, "--rack", rack])
            .done();
    }
    graviton.run(["rebalance", "--apply"]).done();
    assert!(keys.iter().all(|key| are_apart(key)));
    for key in ["new", "newer"] {
        graviton.run(["put", key, file]).done();
        assert!(are_apart(key));
    }
    graviton
        .run(["--policy", "cheapest", "ls"])
        .fails(USAGE, &["--policy"]);
    graviton
        .run(["--policy", "random", "put", "drawn", file])
        .done();
    graviton.run(["verify"]).done();
}
