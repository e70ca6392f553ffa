//! Sectors that grow, and block devices as sectors: the command on real files and loop devices.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use graviton_tests::command::Graviton;
use graviton_tests::random::Random;
use graviton_tests::{memory_directory, test_directory};
use serde_json::Value;

const FAILED: i32 = 1;
const USAGE: i32 = 2;
const MIB: u64 = 1 << 20;

fn graviton(directory: &Path, name: &str) -> Graviton {
    let graviton = Graviton::new(env!("CARGO_BIN_EXE_graviton"), directory.join(name));
    graviton
        .run(["init", "--sector-size", "8MiB", "--segment-size", "64KiB"])
        .done();
    graviton
}

fn put(graviton: &Graviton, directory: &Path, key: &str, length: usize) -> Vec<u8> {
    let bytes = Random::new(length as u64).bytes(length);
    let file = directory.join("blob");
    fs::write(&file, &bytes).expect("written");
    let arguments = ["put".as_ref(), key.as_ref(), file.as_os_str()];
    graviton.run(arguments).done();
    bytes
}

/// What `sectors ls` says of each.
fn sectors(graviton: &Graviton) -> Vec<Value> {
    let listed = graviton.run(["--json", "sectors", "ls"]).done();
    let parse = |line: &str| serde_json::from_str(line).expect("JSON");
    listed.text().lines().map(parse).collect()
}

fn total(sector: &Value) -> u64 {
    sector["space"]["total"].as_u64().expect("a number")
}

fn is_well(graviton: &Graviton) {
    graviton.run(["info"]).done();
    let verified = graviton.run(["verify"]).done();
    assert!(
        verified.text().starts_with("clean: "),
        "{}",
        verified.text()
    );
    let dumped = graviton.run(["dump", "superblock"]).done();
    assert!(!dumped.text().contains("damage"), "{}", dumped.text());
}

#[test]
fn a_file_grows() {
    // There it is known beforehand that there is no room.
    let directory = memory_directory();
    let graviton = graviton(directory.path(), "store");
    let first = put(&graviton, directory.path(), "first", 5 << 20);
    let file = directory.path().join("blob");
    graviton
        .run(["put".as_ref(), "more".as_ref(), file.as_os_str()])
        .fails(FAILED, &["no space"]);
    let grown = graviton.run(["sectors", "grow", "0", "16MiB"]).done();
    assert_eq!(grown.text(), "sector 0 has 16.0 MiB\n");
    assert_eq!(total(&sectors(&graviton)[0]), 16 * MIB);
    assert_eq!(sectors(&graviton)[0]["segment_count"], 254);
    is_well(&graviton);
    let more = put(&graviton, directory.path(), "more", 6 << 20);
    is_well(&graviton);
    for (key, bytes) in [("first", first), ("more", more)] {
        assert!(graviton.run(["get", key]).done().stdout == bytes, "{key}");
    }
    let map = graviton.run(["--json", "map"]).done();
    assert!(map.text().contains("253"), "{}", map.text());
    // What can't be.
    let path = directory.path().join("store/sector-000.graviton");
    let length = || fs::metadata(&path).expect("there").len();
    assert_eq!(length(), 16 * MIB);
    let fails = |arguments: &[&str], words: &[&str]| {
        let all = [&["sectors", "grow"], arguments].concat();
        let outcome = graviton.run(&all);
        assert_ne!(outcome.code, 0, "{arguments:?}");
        for word in words {
            assert!(
                outcome.stderr.contains(word),
                "{arguments:?}: {}",
                outcome.stderr
            );
        }
        assert_eq!(length(), 16 * MIB, "{arguments:?}");
    };
    fails(&["0", "8MiB"], &["does not shrink"]);
    fails(&["0"], &["is a file"]);
    fails(&["1", "32MiB"], &["sector 1"]);
    fails(&["0", "0"], &[]);
    fails(&["0", "900GiB"], &["grow ", "sector-000"]);
    fails(&["0", "2PiB"], &["segments"]);
    is_well(&graviton);
}

/// A loop device over a file, as long as this lives.
struct Loop {
    device: PathBuf,
    file: PathBuf,
}

impl Loop {
    fn new(file: PathBuf, size: u64) -> Result<Self, String> {
        File::create(&file)
            .and_then(|made| made.set_len(size))
            .map_err(|error| error.to_string())?;
        let output = Command::new("losetup")
            .args(["--find", "--show"])
            .arg(&file)
            .output()
            .map_err(|error| format!("losetup: {error}"))?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        let device = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
        Ok(Self { device, file })
    }

    fn name(&self) -> &str {
        self.device.to_str().expect("UTF-8")
    }

    /// The device becomes so large.
    fn grow(&self, size: u64) {
        let file = File::options().write(true).open(&self.file).expect("there");
        file.set_len(size).expect("longer");
        let status = Command::new("losetup")
            .arg("--set-capacity")
            .arg(&self.device)
            .status();
        assert!(status.expect("losetup runs").success());
    }

    fn is_there(&self) -> bool {
        fs::metadata(&self.device).is_ok_and(|found| found.file_type().is_block_device())
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup")
            .arg("--detach")
            .arg(&self.device)
            .status();
    }
}

#[test]
fn a_device_is_a_sector() {
    let directory = test_directory();
    // Not a whole number of segments.
    let device = match Loop::new(directory.path().join("device"), 12 * MIB + 4096) {
        Ok(device) => device,
        Err(why) => return eprintln!("skipped: no loop device can be set up here: {why}"),
    };
    let graviton = graviton(directory.path(), "store");
    let first = put(&graviton, directory.path(), "first", 1 << 20);
    let add = ["sectors", "add", "--file", device.name()];
    let overwrite = [&add[..], &["--overwrite"]].concat();
    let raw = || {
        File::options()
            .read(true)
            .write(true)
            .open(&device.device)
            .expect("opened")
    };
    let byte = |at: u64, value: u8| {
        let file = raw();
        file.write_all_at(&[value; 512], at / 512 * 512)
            .expect("written");
        file.sync_all().expect("synced");
    };

    // Something is on it: at its front, in the middle of what is looked at, at its end.
    for at in [0, 1080, MIB - 1, 12 * MIB + 4095] {
        byte(at, 7);
        graviton
            .run(add)
            .fails(FAILED, &[device.name(), "is not blank"]);
        assert_eq!(sectors(&graviton).len(), 1);
        byte(at, 0);
    }
    // Somebody has it.
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::EXCL;
    let held = rustix::fs::open(&device.device, flags, rustix::fs::Mode::empty()).expect("opened");
    graviton
        .run(&overwrite)
        .fails(FAILED, &[device.name(), "busy"]);
    drop(held);
    graviton
        .run([&add[..], &["--size", "1MiB"]].concat())
        .fails(2, &["segments"]);
    assert!(device.is_there() && sectors(&graviton).len() == 1);

    // Noise all over it is lost.
    let noise = Random::new(1).bytes(12 << 20);
    raw().write_all_at(&noise, 0).expect("written");
    graviton.run(&overwrite).done();
    let listed = sectors(&graviton);
    assert_eq!(listed[1]["path"], device.name());
    assert_eq!(
        (&listed[0]["device"], &listed[1]["device"]),
        (&false.into(), &true.into())
    );
    assert_eq!(total(&listed[1]), 12 * MIB);
    is_well(&graviton);

    // It is a sector of this store now, and of no other.
    graviton.run(&overwrite).fails(FAILED, &[device.name()]);
    let other = self::graviton(directory.path(), "other");
    other.run(add).fails(FAILED, &["is not blank"]);
    graviton.run(["sectors", "drain", "0"]).done();
    is_well(&graviton);
    let second = put(&graviton, directory.path(), "second", 3 << 20);
    is_well(&graviton);

    // It becomes larger, and so does the sector.
    graviton
        .run(["sectors", "grow", "1", "100MiB"])
        .fails(USAGE, &[device.name(), "has 12587008 bytes"]);
    graviton.run(["sectors", "grow", "1"]).done();
    assert_eq!(total(&sectors(&graviton)[1]), 12 * MIB);
    device.grow(24 * MIB);
    graviton.run(["sectors", "grow", "1"]).done();
    assert_eq!(total(&sectors(&graviton)[1]), 24 * MIB);
    is_well(&graviton);
    let third = put(&graviton, directory.path(), "third", 10 << 20);
    for (key, bytes) in [("first", &first), ("second", &second), ("third", &third)] {
        assert!(graviton.run(["get", key]).done().stdout == *bytes, "{key}");
    }
    is_well(&graviton);

    // It goes again: the device is still there, and no sector.
    graviton.run(["sectors", "undrain", "0"]).done();
    graviton.run(["sectors", "grow", "0", "48MiB"]).done();
    graviton.run(["sectors", "drain", "1"]).done();
    graviton.run(["sectors", "remove", "1"]).done();
    assert!(device.is_there());
    let mut front = [1; 512];
    raw().read_exact_at(&mut front, 0).expect("read");
    assert_eq!(front, [0; 512]);
    for (key, bytes) in [("first", first), ("second", second), ("third", third)] {
        assert!(graviton.run(["get", key]).done().stdout == bytes, "{key}");
    }
    is_well(&graviton);
    graviton.run(add).fails(FAILED, &["is not blank"]);
    // Beside the store, with a relative name; and a note of it is no reason to delete it.
    fs::write(
        directory.path().join("store/graviton.adding"),
        device.name(),
    )
    .expect("written");
    graviton.run(["checkpoint"]).done();
    assert!(device.is_there());
    graviton.run(&overwrite).done();
    is_well(&graviton);
}
