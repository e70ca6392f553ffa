//! What the command writes beside a store, on a file system that knows what a power failure may take.

#[path = "../../tests/tests/filesystem/mount.rs"]
mod mount;
#[path = "../../tests/tests/filesystem/volatile.rs"]
mod volatile;
#[allow(dead_code, reason = "nothing fails here")]
#[path = "../../tests/tests/filesystem/volume.rs"]
mod volume;

use std::ffi::OsStr;
use std::fs::{self, File};

use graviton_tests::command::Graviton;
use graviton_tests::memory_directory;
use graviton_tests::random::payload;

use self::volatile::{Loss, Manner};
use self::volume::Volume;

/// Not a test: what serves the other's file system.
#[test]
#[ignore = "the server of the other test"]
fn serve() {
    volume::serve();
}

/// Whoever gets a blob into a file has there, whenever the power fails, what was there before or all of the blob; and
/// the blob once the command is over.
#[test]
fn a_power_failure_leaves_the_file_before_or_what_was_got() {
    let Some(volume) = Volume::new(&Manner::default()) else {
        return;
    };
    let (before, blob) = (payload(1, 5_000), payload(2, 50_000));
    let directory = memory_directory();
    let graviton = Graviton::new(
        env!("CARGO_BIN_EXE_graviton"),
        directory.path().join("store"),
    );
    let source = directory.path().join("source");
    fs::write(&source, &blob).expect("written");
    graviton.run(["init", "--sector-size", "8MiB"]).done();
    let put = [OsStr::new("put"), OsStr::new("report"), source.as_os_str()];
    graviton.run(put).done();

    let older = volume.path().join("older");
    fs::write(&older, &before).expect("written");
    for path in [&*older, &volume.path()] {
        let synced = File::open(path).and_then(|file| file.sync_all());
        synced.expect("it is durable");
    }
    let begun = volume.position();
    for name in ["older", "new"] {
        let path = volume.path().join(name);
        let get = ["get", "report", "-o"].map(OsStr::new);
        graviton
            .run([&get[..], &[path.as_os_str()]].concat())
            .done();
        assert!(fs::read(&path).expect("read") == blob);
    }
    let mut images = 0;
    for position in begun..=volume.position() {
        let mut losses = vec![Loss::All, Loss::Nothing];
        losses.extend((1..=volume.doubts(position)).map(Loss::Last));
        losses.extend((0..20).map(Loss::Random));
        for loss in losses {
            images += 1;
            let left = memory_directory();
            volume.leave(position, loss, left.path());
            let at = format!("power failure behind event {position}, {loss:?}");
            let older = fs::read(left.path().join("older"));
            let older = older.unwrap_or_else(|error| panic!("{at}: {error}"));
            let is_whole = older == before || older == blob;
            assert!(is_whole, "{at}: {} bytes, neither file", older.len());
            let new = fs::read(left.path().join("new"));
            if let Ok(new) = &new {
                assert!(*new == blob, "{at}: {} bytes, not the blob", new.len());
            }
            if position == volume.position() {
                assert!(older == blob && new.is_ok(), "{at}: the command was over");
            }
        }
    }
    println!("{images} images");
}
