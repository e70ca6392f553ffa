//! Large blobs go through the command in bounded memory. `GRAVITON_LARGE` says how large, in MiB.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use graviton_tests::command::{Graviton, Outcome};
use graviton_tests::random::Random;
use graviton_tests::test_directory;

const MIB: u64 = 1 << 20;
/// What a command may take, whatever the size of the blob.
const MEMORY_MAX: u64 = 256 * MIB;
/// More than a pipe holds.
const REST: u64 = 4 * MIB;

fn size() -> u64 {
    let asked = std::env::var("GRAVITON_LARGE");
    asked.ok().and_then(|size| size.parse().ok()).unwrap_or(256) * MIB
}

/// A sparse file with data strewn over it.
fn sparse(path: &Path, size: u64) {
    let file = File::create_new(path).expect("made");
    file.set_len(size).expect("set");
    let mut random = Random::new(6);
    let step = usize::try_from(16 * MIB).expect("small");
    for start in (0..size).step_by(step) {
        let at = start + random.number() % (8 * MIB);
        let bytes = random.bytes(100_000);
        let room = usize::try_from(size.saturating_sub(at)).unwrap_or(usize::MAX);
        file.write_all_at(&bytes[..bytes.len().min(room)], at)
            .expect("written");
    }
    file.write_all_at(b"the end", size - 7).expect("written");
}

/// The most memory a process has had so far, in bytes; `None` once it has ended.
fn peak_memory(child: &Child) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim()
        .strip_suffix(" kB")?
        .trim()
        .parse::<u64>()
        .ok()
        .map(|peak| peak * 1024)
}

/// Runs a command to its end, and returns the most memory it was seen with.
fn watched(graviton: &Graviton, arguments: &[&str]) -> (Outcome, u64) {
    let mut command = graviton.command(arguments);
    let mut child = command.spawn().expect("it starts");
    let mut peak = 0;
    while child.try_wait().expect("it can be asked").is_none() {
        // The figure only rises: one that is read late is as good as one read in time.
        peak = peak.max(peak_memory(&child).unwrap_or(0));
        std::thread::sleep(Duration::from_millis(1));
    }
    let output = child.wait_with_output().expect("it ends");
    (Outcome::of(&command, output), peak)
}

fn same(left: &mut impl Read, right: &mut impl Read, length: u64) {
    let (mut left, mut right) = (left.take(length), right.take(length));
    let mut buffers = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut done = 0;
    while done < length {
        let now = usize::try_from((length - done).min(1 << 20)).expect("small");
        left.read_exact(&mut buffers.0[..now]).expect("read");
        right.read_exact(&mut buffers.1[..now]).expect("read");
        assert!(
            buffers.0[..now] == buffers.1[..now],
            "other bytes after {done}"
        );
        done += now as u64;
    }
}

#[test]
fn a_large_blob_passes_in_little_memory() {
    let size = size();
    let directory = test_directory();
    let path = |name: &str| {
        directory
            .path()
            .join(name)
            .to_str()
            .expect("text")
            .to_owned()
    };
    let source = path("source");
    sparse(Path::new(&source), size);
    let graviton = Graviton::new(env!("CARGO_BIN_EXE_graviton"), path("store"));
    let sector_size = (size * 5 / 2 + 64 * MIB).to_string();
    graviton.run(["init", "--sector-size", &sector_size]).done();
    let report = |what: &str, peak: u64| {
        eprintln!(
            "{what} of {} MiB: peak memory {} KiB",
            size / MIB,
            peak / 1024
        );
        assert!(peak < MEMORY_MAX, "{what} took {peak} bytes of memory");
    };

    // From a pipe: its length is not known, and it can be looked at before it ends.
    let mut command = graviton.command(["put", "piped", "-"]);
    let mut put = command.stdin(Stdio::piped()).spawn().expect("it starts");
    let mut stdin = put.stdin.take().expect("piped");
    std::io::copy(&mut File::open(&source).expect("opened"), &mut stdin).expect("taken");
    stdin.flush().expect("taken");
    report(
        "put from a pipe",
        peak_memory(&put).expect("it waits for more"),
    );
    drop(stdin);
    Outcome::of(&command, put.wait_with_output().expect("it ends")).done();

    let mut command = graviton.command(["get", "piped"]);
    let mut get = command.spawn().expect("it starts");
    let mut stdout = get.stdout.take().expect("piped");
    let mut expected = File::open(&source).expect("opened");
    same(&mut stdout, &mut expected, size - REST);
    report(
        "get into a pipe",
        peak_memory(&get).expect("it waits to be read"),
    );
    same(&mut stdout, &mut expected, REST);
    assert_eq!(stdout.read(&mut [0]).expect("read"), 0);
    Outcome::of(&command, get.wait_with_output().expect("it ends")).done();

    let (outcome, peak) = watched(&graviton, &["put", "from a file", &source]);
    outcome.done();
    report("put from a file", peak);
    let (outcome, peak) = watched(&graviton, &["get", "from a file", "-o", &path("out")]);
    outcome.done();
    report("get into a file", peak);
    let (mut left, mut right) = (
        File::open(&source).expect("opened"),
        File::open(path("out")).expect("opened"),
    );
    assert_eq!(right.metadata().expect("known").len(), size);
    same(&mut left, &mut right, size);
    let (outcome, peak) = watched(&graviton, &["verify"]);
    outcome.done();
    report("verify", peak);

    let range = |range: &str| {
        graviton
            .run(["get", "piped", "--range", range])
            .done()
            .stdout
    };
    assert_eq!(range(&format!("{}..", size - 7)), b"the end");
    let mut middle = vec![0; 100_000];
    File::open(&source)
        .expect("opened")
        .read_exact_at(&mut middle, size / 2 + 12_345)
        .expect("read");
    let start = size / 2 + 12_345;
    assert!(range(&format!("{start}..{}", start + 100_000)) == middle);

    // Copies take no room, and outlive what they were made of.
    graviton.run(["cp", "piped", "copy"]).done();
    graviton.run(["rm", "piped"]).done();
    let (outcome, peak) = watched(&graviton, &["compact"]);
    outcome.done();
    report("compact", peak);
    let (outcome, peak) = watched(&graviton, &["get", "copy", "-o", &path("out")]);
    outcome.done();
    report("get of a copy", peak);
    let (mut left, mut right) = (
        File::open(&source).expect("opened"),
        File::open(path("out")).expect("opened"),
    );
    same(&mut left, &mut right, size);
}

#[test]
fn blobs_of_every_size_and_keys_of_every_byte() {
    let directory = test_directory();
    let graviton = Graviton::new(
        env!("CARGO_BIN_EXE_graviton"),
        directory.path().join("store"),
    );
    // Segments of 64 KiB: most blobs are larger than one.
    graviton
        .run(["init", "--sector-size", "32MiB", "--segment-size", "64KiB"])
        .done();
    let mut random = Random::new(12);
    let mut blobs = Vec::new();
    for size in [
        0,
        1,
        4087,
        4088,
        4089,
        32_768,
        65_535,
        65_536,
        65_537,
        200_000,
        1 << 20,
        (1 << 20) + 1,
        5_000_000,
    ] {
        // Its text form; every byte may be in it.
        let key: String = random
            .bytes(1024)
            .iter()
            .map(|byte| format!("\\x{byte:02x}"))
            .collect();
        blobs.push((key, random.bytes(size)));
    }
    let file = directory.path().join("file");
    for (key, content) in &blobs {
        fs::write(&file, content).expect("written");
        graviton
            .run([
                "--escaped".as_ref(),
                "put".as_ref(),
                key.as_ref(),
                file.as_os_str(),
            ])
            .done();
    }
    for (key, content) in &blobs {
        assert!(&graviton.run(["--escaped", "get", key]).done().stdout == content);
        let stat = graviton
            .run(["--json", "--escaped", "stat", key])
            .done()
            .text();
        let stat: serde_json::Value = serde_json::from_str(&stat).expect("JSON");
        assert_eq!(stat["size"], content.len());
        assert_eq!(stat["key_hex"].as_str().map(str::len), Some(2048));
    }
    // What `ls` prints can be handed back.
    let listed = graviton.run(["ls"]).done().text();
    assert_eq!(listed.lines().count(), blobs.len());
    let keys: Vec<&str> = listed.lines().collect();
    graviton
        .run([["--escaped", "rm", "--"].as_slice(), &keys].concat())
        .done();
    assert_eq!(graviton.run(["ls"]).done().text(), "");
    assert!(
        graviton
            .run(["verify"])
            .done()
            .text()
            .starts_with("clean: ")
    );
}
