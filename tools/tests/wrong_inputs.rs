//! Wrong inputs: each is answered with one clear line and the right exit code, and the store is
//! as good afterwards as it was before.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use graviton_engine::store::{OpenOptions, Store};
use graviton_tests::command::{Graviton, Outcome};
use graviton_tests::random::Random;
use graviton_tests::test_directory;
use graviton_tests::trees::{self, Files};
use tempfile::TempDir;

const FAILED: i32 = 1;
const USAGE: i32 = 2;
const NOT_FOUND: i32 = 3;
const CORRUPTION: i32 = 4;

/// A store with some blobs in it, to do wrong things to.
struct Subject {
    directory: TempDir,
    graviton: Graviton,
    files: Files,
    /// How often it was broken.
    broken: Cell<u32>,
}

/// The files of a store, to be compared, and put back.
type Bytes = BTreeMap<PathBuf, Vec<u8>>;

impl Subject {
    fn new(sectors: u16) -> Self {
        let directory = test_directory();
        let mut random = Random::new(5);
        let mut files = Files::new();
        for number in 0..12 {
            let length = random.up_to(150 << 10);
            files.insert(format!("blob-{number}").into_bytes(), random.bytes(length));
        }
        files.insert(b"ten".to_vec(), b"0123456789".to_vec());
        let tree = directory.path().join("tree");
        trees::write(&tree, &files);
        let graviton = Graviton::new(
            env!("CARGO_BIN_EXE_graviton"),
            directory.path().join("store"),
        );
        let sectors = sectors.to_string();
        graviton
            .run(["init", "--sectors", &sectors, "--sector-size", "4MiB"])
            .done();
        graviton.run(["import".as_ref(), tree.as_os_str()]).done();
        Self {
            directory,
            graviton,
            files,
            broken: Cell::new(0),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.graviton.store().join(name)
    }

    fn sector(&self) -> PathBuf {
        self.path("sector-000.graviton")
    }

    fn bytes(&self) -> Bytes {
        let files = fs::read_dir(self.graviton.store()).expect("listed");
        let files = files.map(|entry| entry.expect("an entry").path());
        // Who holds the lock, and who held it last, is no part of the store.
        let files = files.filter(|path| !path.ends_with("graviton.lock"));
        files
            .map(|path| (path.clone(), fs::read(path).expect("read")))
            .collect()
    }

    fn put_back(&self, bytes: &Bytes) {
        for path in self
            .bytes()
            .keys()
            .filter(|path| !bytes.contains_key(*path))
        {
            fs::remove_file(path).expect("removed");
        }
        for (path, content) in bytes {
            // What is there may be a link.
            fs::remove_file(path).ok();
            fs::write(path, content).expect("written");
        }
    }

    /// It verifies clean, and has all its blobs.
    fn is_whole(&self) {
        let verified = self.graviton.run(["verify"]).done();
        assert!(
            verified.text().starts_with("clean: "),
            "{}",
            verified.text()
        );
        let out = self.directory.path().join("out");
        self.graviton
            .run(["export".as_ref(), out.as_os_str()])
            .done();
        trees::assert_same(&self.directory.path().join("tree"), &out);
        fs::remove_dir_all(&out).expect("removed");
    }

    /// Breaks the store; then every command fails in this way, and changes nothing. Put together
    /// again, it is whole.
    #[track_caller]
    fn broken(&self, code: i32, words: &[&str], break_it: impl FnOnce()) {
        let sound = self.bytes();
        break_it();
        let broken = self.bytes();
        let all = [
            ["info"].as_slice(),
            &["put", "new", "/etc/passwd"],
            &["verify"],
            &["ls"],
            &["get", "ten"],
            &["stat", "ten"],
            &["rm", "ten"],
            &["cp", "ten", "eleven"],
            &["compact"],
            &["checkpoint"],
            &["import", "/etc"],
        ];
        // They all open the store in one of two ways: it is enough to see each once.
        let seen = self.broken.replace(self.broken.get() + 1);
        for arguments in if seen == 0 { &all[..] } else { &all[..2] } {
            let outcome = self.graviton.run(*arguments);
            // What tells about a store tells what it can of one that lacks some of its sectors.
            let tells = matches!(arguments, ["info"] | ["verify"]);
            if tells && outcome.stderr.is_empty() {
                assert_eq!(outcome.code, CORRUPTION, "{outcome:?}");
                let text = outcome.text();
                assert!(words.iter().all(|word| text.contains(word)), "{text}");
            } else {
                outcome.fails(code, words);
            }
        }
        let out = self.directory.path().join("never made");
        self.graviton
            .run(["export".as_ref(), out.as_os_str()])
            .fails(code, words);
        assert!(!out.exists(), "an export that can't begin leaves nothing");
        self.graviton
            .run(["init"])
            .fails(FAILED, &["exists already"]);
        assert!(
            self.bytes() == broken,
            "commands that failed changed the store"
        );
        self.put_back(&sound);
        self.is_whole();
    }

    fn patch(&self, name: &str, offset: u64, bytes: &[u8]) {
        let file = fs::File::options()
            .write(true)
            .open(self.path(name))
            .expect("opened");
        file.write_all_at(bytes, offset).expect("written");
    }
}

#[test]
fn no_store() {
    let directory = test_directory();
    for place in ["absent", "absent/deeper", "empty", "a file"] {
        fs::create_dir_all(directory.path().join("empty")).expect("made");
        fs::write(directory.path().join("a file"), b"no store").expect("written");
        let graviton = Graviton::new(env!("CARGO_BIN_EXE_graviton"), directory.path().join(place));
        for arguments in [
            ["info"].as_slice(),
            &["verify"],
            &["ls"],
            &["get", "k"],
            &["put", "k", "/etc/passwd"],
            &["rm", "k"],
            &["map"],
            &["compact"],
            &["export", "out"],
        ] {
            graviton
                .run(arguments)
                .fails(FAILED, &["no store at", place, "graviton init makes one"]);
        }
        assert_eq!(
            directory
                .path()
                .join("empty")
                .read_dir()
                .expect("listed")
                .count(),
            0,
            "failing commands leave nothing"
        );
    }
    let graviton = Graviton::new(
        env!("CARGO_BIN_EXE_graviton"),
        directory.path().join("a file"),
    );
    graviton.run(["init"]).fails(FAILED, &["a file"]);
    graviton.run(["import", "/etc"]).fails(FAILED, &["a file"]);
    assert!(!Path::new("out").exists());
}

#[test]
fn a_second_store_in_the_same_place() {
    let subject = Subject::new(1);
    let before = subject.bytes();
    subject
        .graviton
        .run(["init"])
        .fails(FAILED, &["exists already"]);
    assert!(subject.bytes() == before);
    subject.is_whole();
}

#[test]
fn foreign_and_truncated_sectors() {
    let subject = Subject::new(1);
    let sector = subject.sector();
    let size = fs::metadata(&sector).expect("known").len();
    let name = "sector-000.graviton";
    let broken = |words: &[&str], break_it: &dyn Fn()| subject.broken(CORRUPTION, words, break_it);
    let truncated = |length: u64| {
        fs::File::options()
            .write(true)
            .open(&sector)
            .expect("opened")
            .set_len(length)
            .expect("cut")
    };

    broken(&[name, "not a Graviton sector"], &|| {
        fs::write(&sector, vec![0; 4 << 20]).expect("written")
    });
    broken(&[name, "not a Graviton sector"], &|| {
        fs::write(&sector, Random::new(1).bytes(5_000_000)).expect("written")
    });
    broken(&[name, "truncated", &size.to_string()], &|| {
        truncated(size / 2)
    });
    broken(&[name, "truncated", &(size - 1).to_string()], &|| {
        truncated(size - 1)
    });
    broken(&[name, "truncated"], &|| truncated(size - 4096));
    broken(&[name, "too few"], &|| truncated(100));
    broken(&[name, "too few"], &|| truncated(0));
    broken(
        &[name, "neither a regular file nor a block device"],
        &|| {
            fs::remove_file(&sector).expect("removed");
            std::os::unix::fs::symlink("/dev/null", &sector).expect("linked");
        },
    );
    subject.broken(FAILED, &[name, "No such file"], || {
        fs::remove_file(&sector).expect("removed")
    });
    // Longer than it should be is no harm: nothing lies there.
    truncated(size + 8192);
    assert_eq!(
        subject.graviton.run(["get", "ten"]).done().stdout,
        b"0123456789"
    );
    subject.graviton.run(["put", "ten", "-"]).done();
}

#[test]
fn newer_format_versions() {
    let subject = Subject::new(1);
    let back = fs::metadata(subject.sector()).expect("known").len() - (64 << 10);
    let name = "sector-000.graviton";
    subject.broken(FAILED, &[name, "format version 7", "up to 1"], || {
        subject.patch(name, 8, &7_u32.to_le_bytes());
        subject.patch(name, back + 8, &7_u32.to_le_bytes());
    });
    let toml = fs::read_to_string(subject.path("graviton.toml")).expect("read");
    let newer = toml.replace(
        "format_version = 1",
        "format_version = 2\nof_the_future = true",
    );
    assert_ne!(newer, toml);
    subject.broken(
        FAILED,
        &["graviton.toml", "format version 2", "up to 1"],
        || {
            fs::write(subject.path("graviton.toml"), newer).expect("written");
        },
    );
}

#[test]
fn a_store_file_of_garbage() {
    let subject = Subject::new(2);
    let path = subject.path("graviton.toml");
    let toml = fs::read_to_string(&path).expect("read");
    let write = |content: &[u8]| fs::write(&path, content).expect("written");
    let broken = |words: &[&str], content: &[u8]| {
        subject.broken(CORRUPTION, &[&["graviton.toml"], words].concat(), || {
            write(content)
        })
    };
    broken(&[], b"");
    broken(&[], b"\0\0\0\0\0\0\0\0");
    broken(&["not a text file"], &[0xff; 100]);
    broken(&[], &Random::new(3).bytes(500));
    broken(&["too long"], &vec![b'#'; (1 << 20) + 1]);
    broken(&[], &toml.as_bytes()[..toml.len() / 2]);
    broken(
        &["sectors"],
        b"format_version = 1\nstore_id = \"00\"\nsector = []\n",
    );
    broken(&[], b"format_version = -1\n");
    broken(
        &["unknown field"],
        format!("surprise = 1\n{toml}").as_bytes(),
    );
    // A store id, and sectors, of somebody else.
    let id = toml
        .lines()
        .find_map(|line| line.strip_prefix("store_id = \""))
        .expect("an id");
    let other = toml.replace(&id[..4], if &id[..4] == "0123" { "4567" } else { "0123" });
    subject.broken(
        CORRUPTION,
        &["sector-000.graviton", "belongs to store"],
        || write(other.as_bytes()),
    );
    let one = toml.rfind("[[sector]]").expect("two sectors");
    subject.broken(CORRUPTION, &["sector"], || write(&toml.as_bytes()[..one]));
    let elsewhere = toml.replace("sector-001.graviton", "../store/sector-000.graviton");
    subject.broken(CORRUPTION, &["sector-000.graviton"], || {
        write(elsewhere.as_bytes())
    });
    // A directory in its place.
    let sound = subject.bytes();
    fs::remove_file(&path).expect("removed");
    fs::create_dir(&path).expect("made");
    let outcome = subject.graviton.run(["info"]);
    assert!(
        outcome.code == FAILED || outcome.code == CORRUPTION,
        "{outcome:?}"
    );
    let code = outcome.code;
    outcome.fails(code, &["graviton.toml"]);
    fs::remove_dir(&path).expect("removed");
    subject.put_back(&sound);
    subject.is_whole();
}

#[test]
fn sectors_swapped() {
    let (subject, other) = (Subject::new(2), Subject::new(2));
    let (first, second) = ("sector-000.graviton", "sector-001.graviton");
    subject.broken(CORRUPTION, &[first, "belongs to store"], || {
        fs::copy(other.path(first), subject.path(first)).expect("copied");
    });
    subject.broken(CORRUPTION, &[second, "belongs to store"], || {
        fs::copy(other.path(second), subject.path(second)).expect("copied");
    });
    subject.broken(CORRUPTION, &[first, "is sector"], || {
        let (one, two) = (
            fs::read(subject.path(first)).expect("read"),
            fs::read(subject.path(second)).expect("read"),
        );
        fs::write(subject.path(first), two).expect("written");
        fs::write(subject.path(second), one).expect("written");
    });
    subject.broken(CORRUPTION, &[second, "is sector"], || {
        fs::copy(subject.path(first), subject.path(second)).expect("copied");
    });
    other.is_whole();
}

#[test]
fn damage_is_found_and_named_and_the_rest_is_readable() {
    let subject = Subject::new(1);
    let sound = subject.bytes();
    let blob = subject
        .files
        .iter()
        .max_by_key(|(_, content)| content.len())
        .expect("a blob");
    let key = String::from_utf8(blob.0.clone()).expect("text");
    // A byte in the middle of it, wherever it lies.
    let needle = &blob.1[blob.1.len() / 2..][..64];
    let sector = fs::read(subject.sector()).expect("read");
    let at = sector
        .windows(64)
        .position(|window| window == needle)
        .expect("it is there");
    subject.patch("sector-000.graviton", at as u64, &[!sector[at]]);
    subject
        .graviton
        .run(["get", &key])
        .fails(CORRUPTION, &["corruption in sector 0 at offset", &key]);
    let file = subject.directory.path().join("partial");
    subject
        .graviton
        .run([
            "get".as_ref(),
            key.as_ref(),
            "-o".as_ref(),
            file.as_os_str(),
        ])
        .fails(CORRUPTION, &[&key]);
    assert!(!file.exists(), "half a blob is no file");
    let verified = subject.graviton.run(["verify"]);
    assert_eq!(verified.code, CORRUPTION);
    assert!(verified.text().contains(&key), "{}", verified.text());
    assert_eq!(verified.stderr, "");
    for (other, content) in subject.files.iter().filter(|(other, _)| *other != blob.0) {
        let other = String::from_utf8(other.clone()).expect("text");
        assert!(&subject.graviton.run(["get", &other]).done().stdout == content);
    }
    let out = subject.directory.path().join("salvaged");
    let exported = subject.graviton.run(["export".as_ref(), out.as_os_str()]);
    exported.fails(CORRUPTION, &[&key]);
    assert_eq!(trees::read(&out).len(), subject.files.len() - 1);
    subject.put_back(&sound);
    subject.is_whole();
}

/// Damage that hides a change which was acknowledged: nobody can tell which, so nothing is read but
/// on demand.
#[test]
fn a_store_that_lost_changes_is_read_for_salvage_only() {
    let subject = Subject::new(1);
    let value = subject.directory.path().join("value");
    let put = |content: &str| {
        fs::write(&value, content).expect("written");
        let arguments = ["put".as_ref(), "value".as_ref(), value.as_os_str()];
        subject.graviton.run(arguments).done();
    };
    put("older");
    subject.graviton.run(["checkpoint"]).done();
    put("newer");
    put("newest");
    let sound = subject.bytes();
    let sector = fs::read(subject.sector()).expect("read");
    let at = sector
        .windows(11)
        .position(|window| window == b"valuenewest")
        .expect("the record is there");
    subject.patch("sector-000.graviton", at as u64, b"V");
    let out = subject.directory.path().join("never made");
    let export = ["export".as_ref(), out.as_os_str()];
    for arguments in [
        ["get", "value"].as_slice(),
        &["ls"],
        &["stat", "ten"],
        &["rm", "ten"],
    ] {
        subject
            .graviton
            .run(arguments)
            .fails(CORRUPTION, &["sector 0 at offset", "--salvage"]);
    }
    subject
        .graviton
        .run(export)
        .fails(CORRUPTION, &["--salvage"]);
    for arguments in [["info"].as_slice(), &["verify"], &["--json", "info"]] {
        let told = subject.graviton.run(arguments);
        assert_eq!((told.code, told.stderr.as_str()), (CORRUPTION, ""));
        assert!(told.text().contains("offset"), "{}", told.text());
    }
    let salvaged = subject.graviton.run(["--salvage", "get", "value"]);
    assert_eq!((salvaged.code, salvaged.text().as_str()), (0, "newer"));
    assert!(
        salvaged.stderr.contains("not healthy"),
        "{}",
        salvaged.stderr
    );
    subject
        .graviton
        .run([["--salvage".as_ref()].as_slice(), &export].concat());
    assert_eq!(fs::read(out.join("value")).expect("exported"), b"newer");
    for arguments in [["rm", "ten"], ["import", "/etc"]] {
        subject
            .graviton
            .run([["--salvage"].as_slice(), &arguments].concat())
            .fails(USAGE, &["--salvage"]);
    }
    subject.put_back(&sound);
    assert_eq!(
        subject.graviton.run(["get", "value"]).done().text(),
        "newest"
    );
}

#[test]
fn two_owners() {
    let subject = Subject::new(1);
    let us = format!("is in use by process {}", std::process::id());
    let writing = [
        ["put", "k", "/etc/passwd"].as_slice(),
        &["rm", "ten"],
        &["compact"],
        &["import", "/etc"],
    ];
    let reading = [["get", "ten"].as_slice(), &["info"], &["verify"], &["ls"]];
    // This process writes: nobody else may come in.
    let store = Store::open(subject.graviton.store()).expect("the store opens");
    for arguments in writing.iter().chain(&reading) {
        subject.graviton.run(*arguments).fails(FAILED, &[&us]);
    }
    drop(store);
    subject.is_whole();
    // It reads: others may read.
    let store = Store::open_with(subject.graviton.store(), OpenOptions::read_only())
        .expect("the store opens");
    for arguments in writing {
        subject
            .graviton
            .run(arguments)
            .fails(FAILED, &["is in use by"]);
    }
    for arguments in reading {
        subject.graviton.run(arguments).done();
    }
    drop(store);
    // The command owns it while it takes in a blob: more than pipes hold has been taken.
    let mut command = subject.graviton.command(["put", "streamed", "-"]);
    let mut put = command.stdin(Stdio::piped()).spawn().expect("it starts");
    let content = Random::new(8).bytes(1_500_000);
    put.stdin
        .as_mut()
        .expect("piped")
        .write_all(&content)
        .expect("taken");
    let owner = format!("is in use by process {}", put.id());
    subject.graviton.run(["info"]).fails(FAILED, &[&owner]);
    assert!(
        Store::open(subject.graviton.store())
            .is_err_and(|error| error.to_string().contains(&owner))
    );
    drop(put.stdin.take());
    Outcome::of(&command, put.wait_with_output().expect("it ends")).done();
    // It is shared while it hands one out.
    let mut command = subject.graviton.command(["get", "streamed"]);
    let mut get = command.spawn().expect("it starts");
    let mut out = get.stdout.take().expect("piped");
    let mut got = vec![0; 1000];
    out.read_exact(&mut got).expect("it hands something out");
    subject.graviton.run(["ls"]).done();
    subject
        .graviton
        .run(["rm", "streamed"])
        .fails(FAILED, &["is in use by"]);
    out.read_to_end(&mut got).expect("it hands the rest out");
    assert!(got == content);
    assert!(get.wait().expect("it ends").success());
    subject.graviton.run(["rm", "streamed"]).done();
    subject.is_whole();
}

#[test]
fn keys_ranges_and_sizes() {
    let subject = Subject::new(1);
    let run = |arguments: &[&str]| subject.graviton.run(arguments);
    let before = subject.bytes();
    let long = "k".repeat(1025);
    for key in ["", &long] {
        for arguments in [
            ["get", key].as_slice(),
            &["stat", key],
            &["put", key, "/etc/passwd"],
            &["rm", "ten", key],
            &["cp", "ten", key],
            &["mv", key, "ten"],
        ] {
            run(arguments).fails(USAGE, &["invalid key", "1 to 1024"]);
        }
    }
    run(&["--escaped", "get", "\\q"]).fails(USAGE, &["backslash"]);
    run(&["--escaped", "get", "\\x4"]).fails(USAGE, &["key '\\x4':", "two hex digits"]);
    run(&["get", "absent"]).fails(NOT_FOUND, &["not found: absent"]);
    run(&["stat", "absent"]).fails(NOT_FOUND, &["not found: absent"]);
    run(&["cp", "absent", "ten"]).fails(NOT_FOUND, &["not found: absent"]);
    run(&["mv", "absent", "ten"]).fails(NOT_FOUND, &["not found: absent"]);
    run(&["rm", "absent"]).fails(NOT_FOUND, &["not found: absent"]);
    run(&["cp", "ten", "blob-1", "--if-absent"]).fails(FAILED, &["precondition failed for blob-1"]);
    run(&["put", "ten", "/etc/passwd", "--if-absent"])
        .fails(FAILED, &["precondition failed for ten"]);
    run(&["put", "ten", "/etc/passwd", "--if-etag", "0123456789abcdef"])
        .fails(FAILED, &["precondition failed for ten"]);
    run(&["put", "ten", "/etc/passwd", "--if-etag", "ten"]).fails(USAGE, &["16 hex digits"]);
    for replicas in ["0", "65", "-1", "x"] {
        run(&[
            "put",
            "ten",
            "/etc/passwd",
            &format!("--replicas={replicas}"),
        ])
        .fails(USAGE, &["--replicas"]);
    }
    run(&[
        "put",
        "ten",
        "/etc/passwd",
        "--range",
        "0..",
        "--replicas",
        "2",
    ])
    .fails(USAGE, &["--replicas"]);
    run(&["put", "ten", "/absent"]).fails(FAILED, &["/absent", "No such file"]);
    run(&["put", "ten", "/etc"]).fails(FAILED, &["/etc", "directory"]);
    run(&["import", "/absent"]).fails(FAILED, &["/absent", "No such file"]);
    run(&["import", "/etc/passwd"]).fails(FAILED, &["/etc/passwd", "Not a directory"]);
    run(&["get", "ten", "-o", "/absent/file"]).fails(FAILED, &["/absent/file"]);

    run(&["get", "ten", "--range", "10..11"])
        .fails(FAILED, &["range 10..11", "outside of ten", "10 bytes"]);
    run(&["get", "ten", "--range", "11.."]).fails(FAILED, &["range 11.. lies outside of ten"]);
    run(&["get", "ten", "--range", "1KiB.."]).fails(FAILED, &["range 1KiB.. lies outside of ten"]);
    run(&["get", "ten", "--range", "99999999999999..999999999999999"])
        .fails(FAILED, &["outside of ten"]);
    for range in [
        "5..3",
        "x",
        "1",
        "1...2",
        "-1..2",
        "1..2..3",
        "99999999999999999999..",
        "1..1GB2",
        "",
    ] {
        run(&["get", "ten", &format!("--range={range}")]).fails(USAGE, &["--range"]);
    }
    let range = |range: &str| run(&["get", "ten", "--range", range]).done().stdout;
    assert_eq!(range("2..5"), b"234");
    assert_eq!(range("7.."), b"789");
    assert_eq!(range("..3"), b"012");
    assert_eq!(range("8..1GiB"), b"89");
    assert_eq!(range("10..10"), b"");
    assert_eq!(range("10.."), b"");
    // An end past the blob's is the blob's, of an empty one too.
    run(&["put", "empty", "/dev/null"]).done();
    for range in ["..5", "0..5", "0..", ".."] {
        assert_eq!(run(&["get", "empty", "--range", range]).done().stdout, b"");
    }
    run(&["get", "empty", "--range", "1..5"]).fails(FAILED, &["range 1..5 lies outside of empty"]);
    run(&["rm", "empty"]).done();

    run(&["nonsense"]).fails(USAGE, &["nonsense"]);
    run(&["get"]).fails(USAGE, &["KEY"]);
    run(&["get", "ten", "--nonsense"]).fails(USAGE, &["--nonsense"]);
    run(&["get", "ten", "-x"]).fails(USAGE, &["'-x' found; tip: to pass"]);
    run(&["--io", "magic", "info"]).fails(USAGE, &["magic"]);
    run(&["--json", "get", "ten"]).fails_in_json(USAGE);
    run(&["--json", "stat", "absent"]).fails_in_json(NOT_FOUND);
    assert!(
        subject.bytes() == before || {
            subject.is_whole();
            true
        }
    );
    subject.is_whole();
}

trait InJson {
    fn fails_in_json(&self, code: i32);
}

impl InJson for Outcome {
    #[track_caller]
    fn fails_in_json(&self, code: i32) {
        assert_eq!(
            (self.code, self.stderr.lines().count()),
            (code, 1),
            "{self:?}"
        );
        let said: serde_json::Value = serde_json::from_str(&self.stderr).expect("JSON");
        assert_eq!(said["error"]["exit"], code, "{self:?}");
    }
}

#[test]
fn measures_that_cant_be() {
    let directory = test_directory();
    let place = directory.path().join("store");
    let graviton = Graviton::new(env!("CARGO_BIN_EXE_graviton"), &place);
    let init = |arguments: &[&str]| graviton.run([["init"].as_slice(), arguments].concat());
    for size in [
        "",
        "0",
        "x",
        "12Q",
        "-1",
        "1.5.5MiB",
        "99999999999999999999",
        "16777216TiB",
    ] {
        init(&[&format!("--sector-size={size}")]).fails(USAGE, &["--sector-size"]);
    }
    for sectors in ["0", "65", "x", "-1", "99999"] {
        init(&[&format!("--sectors={sectors}")]).fails(USAGE, &["--sectors"]);
    }
    for block in ["0", "1", "1024", "8192", "x"] {
        init(&[&format!("--block-size={block}")]).fails(USAGE, &["--block-size"]);
    }
    init(&["--sector-size", "1MiB"]).fails(USAGE, &["sector size", "at least"]);
    init(&["--sector-size", "4MiB", "--segment-size", "100000"])
        .fails(USAGE, &["segment_size", "power of two"]);
    init(&["--sector-size", "4MiB", "--segment-size", "1MiB"]).fails(
        USAGE,
        &[
            "1.0 MiB",
            "too large for a sector of 4.0 MiB",
            "at most 128.0 KiB",
        ],
    );
    init(&["--sector-size", "64MiB", "--segment-size", "1GiB"]).fails(
        USAGE,
        &[
            "1.0 GiB",
            "too large for a sector of 64.0 MiB",
            "at most 2.0 MiB",
        ],
    );
    init(&["--sector-size", "2TiB", "--segment-size", "64KiB"])
        .fails(USAGE, &["64.0 KiB", "too small for a sector of 2.0 TiB"]);
    init(&["--sector-size", "4GiB", "--segment-size", "4KiB"]).fails(USAGE, &["segment"]);
    assert!(
        !place.exists(),
        "measures that can't be leave nothing behind"
    );
    // More than the disk has.
    let outcome = init(&["--sector-size", "8000TiB"]);
    let code = outcome.code;
    assert!(code == FAILED || code == USAGE, "{outcome:?}");
    outcome.fails(code, &[]);
    let left = fs::read_dir(&place).map_or(0, |files| {
        files
            .filter(|file| {
                file.as_ref()
                    .is_ok_and(|file| file.metadata().is_ok_and(|file| file.len() > 100))
            })
            .count()
    });
    assert_eq!(left, 0, "a creation that failed leaves no sector behind");
    init(&[
        "--sector-size",
        "4MiB",
        "--sectors",
        "2",
        "--block-size",
        "512",
    ])
    .done();
    graviton.run(["verify"]).done();
}

/// The user that tests of permissions run as, since none hold for root; `None`, with a line that
/// says so, where that can't be.
fn restricted(subject: &Subject) -> Option<Graviton> {
    const NOBODY: u32 = 65_534;
    if !rustix::process::geteuid().is_root() {
        return Some(subject.graviton.clone());
    }
    // The command must lie where that user finds it.
    let directory = subject.directory.path();
    let binary = directory.join("graviton");
    fs::copy(env!("CARGO_BIN_EXE_graviton"), &binary).expect("copied");
    fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).expect("set");
    fs::set_permissions(directory, fs::Permissions::from_mode(0o755)).expect("set");
    let graviton = Graviton::new(binary, subject.graviton.store()).as_user(NOBODY);
    match graviton.command(["--version"]).output() {
        Ok(output) if output.status.success() => Some(graviton),
        _ => {
            eprintln!("skipped: permissions do not hold for root, and there is no other user here");
            None
        }
    }
}

#[test]
fn directories_and_files_that_may_not_be_written() {
    let subject = Subject::new(1);
    let Some(graviton) = restricted(&subject) else {
        return;
    };
    let store = subject.graviton.store();
    let set = |mode: u32, files: u32| {
        for entry in fs::read_dir(store).expect("listed") {
            fs::set_permissions(
                entry.expect("an entry").path(),
                fs::Permissions::from_mode(files),
            )
            .expect("set");
        }
        fs::set_permissions(store, fs::Permissions::from_mode(mode)).expect("set");
    };
    // As on a read-only medium: whatever reads works.
    set(0o555, 0o444);
    let before = subject.bytes();
    assert_eq!(graviton.run(["get", "ten"]).done().stdout, b"0123456789");
    graviton.run(["info"]).done();
    graviton.run(["ls", "-l"]).done();
    graviton.run(["verify"]).done();
    for arguments in [
        ["put", "k", "/etc/passwd"].as_slice(),
        &["rm", "ten"],
        &["cp", "ten", "k"],
        &["compact"],
        &["checkpoint"],
        &["import", "/etc"],
    ] {
        graviton
            .run(arguments)
            .fails(FAILED, &["Permission denied"]);
    }
    // Without its lock file too: a reader makes none.
    fs::remove_file(subject.path("graviton.lock")).expect("removed");
    assert_eq!(graviton.run(["get", "ten"]).done().stdout, b"0123456789");
    assert!(subject.bytes() == before);
    // Nothing can be read.
    set(0o555, 0o000);
    graviton
        .run(["get", "ten"])
        .fails(FAILED, &["Permission denied"]);
    set(0o000, 0o444);
    graviton
        .run(["get", "ten"])
        .fails(FAILED, &["Permission denied"]);
    // Nothing can be made.
    set(0o555, 0o444);
    let inside = graviton.on(store.join("inside"));
    inside
        .run(["init", "--sector-size", "4MiB"])
        .fails(FAILED, &["create", "Permission denied"]);
    inside
        .run(["import", "/etc"])
        .fails(FAILED, &["Permission denied"]);
    let locked = subject.directory.path().join("locked");
    fs::create_dir(&locked).expect("made");
    fs::set_permissions(&locked, fs::Permissions::from_mode(0o555)).expect("set");
    graviton
        .run(["export".as_ref(), locked.join("out").as_os_str()])
        .fails(FAILED, &["Permission denied"]);
    graviton
        .run([
            "get".as_ref(),
            "ten".as_ref(),
            "-o".as_ref(),
            locked.join("out").as_os_str(),
        ])
        .fails(FAILED, &["Permission denied"]);
    assert!(subject.bytes() == before);
    set(0o755, 0o644);
    subject.is_whole();
}

#[test]
fn empty_variables_are_as_good_as_none() {
    let directory = test_directory();
    let run = |store: &str, io: &str, arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_graviton"));
        command
            .args(arguments)
            .current_dir(directory.path())
            .env("GRAVITON_STORE", store)
            .env("GRAVITON_IO", io);
        let output = command.output().expect("run");
        Outcome::of(&command, output)
    };
    run("", "", &["init", "--sector-size", "4MiB"]).done();
    assert!(directory.path().join("graviton-store").is_dir());
    run("", "", &["info"]).done();
    // They count if they are not.
    run("elsewhere", "", &["info"]).fails(FAILED, &["elsewhere"]);
    run("", "magic", &["info"]).fails(USAGE, &["magic"]);
    run("elsewhere", "", &["--store", "graviton-store", "info"]).done();
}

#[test]
fn a_file_that_does_not_fit_is_named() {
    let directory = test_directory();
    let tree = directory.path().join("tree");
    // The letter is in every message.
    trees::write(&tree, &Files::from([(b"a".to_vec(), vec![1; 6 << 20])]));
    let graviton = Graviton::new(
        env!("CARGO_BIN_EXE_graviton"),
        directory.path().join("store"),
    );
    let size = ["--sector-size", "4MiB"].map(std::ffi::OsStr::new);
    let outcome = graviton.run([["import".as_ref(), tree.as_os_str()].as_slice(), &size].concat());
    assert_eq!(outcome.code, FAILED);
    assert!(
        outcome
            .stderr
            .contains("the import ended early: a: no space: 6291456 bytes needed"),
        "{}",
        outcome.stderr
    );
}

#[test]
fn a_sector_that_is_gone_does_not_end_a_dump() {
    let subject = Subject::new(3);
    fs::remove_file(subject.path("sector-001.graviton")).expect("removed");
    let outcome = subject.graviton.run(["dump", "superblock"]);
    let text = outcome.text();
    for sector in [0, 2] {
        for name in ["front", "back"] {
            let line = format!("sector {sector}: {name} superblock at");
            assert!(text.contains(&line), "{text}");
        }
    }
    assert!(!text.contains("sector 1"), "{text}");
    outcome.fails(FAILED, &["sector-001.graviton", "No such file"]);
}

#[test]
fn a_superblock_with_another_version_is_named() {
    let subject = Subject::new(1);
    let back = fs::metadata(subject.sector()).expect("known").len() - (64 << 10);
    let name = "sector-000.graviton";
    subject.patch(name, 8, &[2]);
    let outcome = subject.graviton.run(["dump", "superblock"]);
    assert_eq!(outcome.code, CORRUPTION, "{outcome:?}");
    let text = outcome.text();
    assert!(
        text.contains("DAMAGE at 0: the front superblock: format version 2"),
        "{text}"
    );
    subject.patch(name, back + 8, &[2]);
    let outcome = subject.graviton.run(["dump", "superblock"]);
    assert!(!outcome.text().contains("DAMAGE"), "{}", outcome.text());
    outcome.fails(FAILED, &["format version 2"]);
}
