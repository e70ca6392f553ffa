//! An import is killed at many moments. After each, the store opens, verifies clean, and has every
//! file that was acknowledged, byte for byte; the import is taken up again, and what comes out in
//! the end is what went in.
//!
//! The moments are chosen by progress, not by the clock: while the store is being created, by what
//! has appeared on disk; later, by how many files the import has said it has.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, ChildStdout};

use graviton_engine::port::{BlobStore, GetOptions};
use graviton_engine::store::{Access, OpenOptions, Store};
use graviton_tests::command::Graviton;
use graviton_tests::random::Random;
use graviton_tests::trees::{self, Files};
use graviton_tests::{all_keys, test_directory};
use rustix::process::{Pid, WaitId, WaitIdOptions, WaitIdStatus, waitid};
use serde_json::Value;

/// What an import is killed at.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// At once.
    Start,
    /// When the store's directory is there.
    Directory,
    /// When this file is there.
    File(&'static str),
    /// When a sector file has got blocks.
    Allocated,
    /// When it has said so many lines of any kind.
    Lines(usize),
    /// When it has imported so many files.
    Imported(usize),
    /// Not at all.
    Never,
}

/// The moments of a creation, in their order.
const CREATION: [Moment; 8] = [
    Moment::Start,
    Moment::Directory,
    Moment::File("graviton.lock"),
    Moment::File("sector-000.graviton"),
    Moment::Allocated,
    Moment::File("graviton.toml"),
    Moment::Lines(0),
    Moment::Lines(1),
];

/// How an import is killed, `GRAVITON_KILLS` times (50 if that is not set).
fn kills() -> usize {
    let asked = std::env::var("GRAVITON_KILLS");
    asked
        .ok()
        .and_then(|kills| kills.parse().ok())
        .unwrap_or(50)
}

fn seed() -> u64 {
    let asked = std::env::var("GRAVITON_SEED");
    asked.ok().and_then(|seed| seed.parse().ok()).unwrap_or(2)
}

#[test]
fn nothing_that_a_killed_import_acknowledged_is_lost() {
    let seed = seed();
    eprintln!("GRAVITON_SEED={seed}");
    let mut random = Random::new(seed);
    let directory = test_directory();
    let tree = directory.path().join("tree");
    let files = trees::generate(seed, 1500, 8);
    trees::write(&tree, &files);
    let mut killed = 0;
    let mut creations = 0;
    while killed < kills() {
        let store = directory.path().join("store");
        let graviton = Graviton::new(env!("CARGO_BIN_EXE_graviton"), &store);
        let mut import = Import {
            graviton,
            tree: &tree,
            files: &files,
            acknowledged: BTreeSet::new(),
        };
        loop {
            let fresh = !store.join("graviton.toml").exists();
            let moment = if killed >= kills() {
                Moment::Never
            } else if fresh && creations < 2 * CREATION.len() {
                creations += 1;
                CREATION[(creations - 1) % CREATION.len()]
            } else if random.below(4) == 0 {
                Moment::Lines(random.below(import.acknowledged.len() + 1))
            } else {
                Moment::Imported(random.below(120))
            };
            let mut child = import.run(moment);
            if import.has_finished(&mut child, moment) {
                break;
            }
            killed += 1;
            if killed % 3 == 0 {
                // Otherwise it is still there as a zombie, which must not keep anyone out.
                child.wait().expect("it has ended");
            }
            import.check(if killed % 2 == 0 {
                Access::ReadWrite
            } else {
                Access::ReadOnly
            });
            child.wait().expect("it has ended");
            if fresh && killed % 5 != 0 && creations < 2 * CREATION.len() {
                // Another creation to be killed; now and then one goes on from where it was.
                fs::remove_dir_all(&store).ok();
                import.acknowledged.clear();
            }
        }
        import.finish(directory.path());
        fs::remove_dir_all(&store).expect("the store can be removed");
    }
}

struct Import<'a> {
    graviton: Graviton,
    tree: &'a Path,
    files: &'a Files,
    acknowledged: BTreeSet<Vec<u8>>,
}

impl Import<'_> {
    /// Imports the tree until `moment`, or to its end if that comes first.
    fn run(&mut self, moment: Moment) -> Child {
        let tree = self.tree.as_os_str();
        let arguments = [
            "--json".as_ref(),
            "import".as_ref(),
            tree,
            "--sector-size".as_ref(),
            "192MiB".as_ref(),
        ];
        let mut child = self
            .graviton
            .command(arguments)
            .spawn()
            .expect("the import starts");
        let mut lines = Lines {
            stdout: BufReader::new(child.stdout.take().expect("piped")),
            seen: 0,
            imported: 0,
        };
        self.await_moment(moment, &mut child, &mut lines);
        child.kill().expect("it can be killed, or has ended");
        // What it had said before is said.
        while lines.next(&mut self.acknowledged).is_some() {}
        child
    }

    /// Whether the import came to its end before it was killed. It is not waited for: it stays as a
    /// zombie.
    fn has_finished(&self, child: &mut Child, moment: Moment) -> bool {
        let ended = ended(child, WaitIdOptions::empty()).expect("it has ended");
        if ended.killed() {
            return false;
        }
        let mut said = String::new();
        child
            .stderr
            .take()
            .expect("piped")
            .read_to_string(&mut said)
            .expect("text");
        assert_eq!(
            ended.exit_status(),
            Some(0),
            "the import failed by itself, at {moment:?}: {said}"
        );
        true
    }

    fn await_moment(&mut self, moment: Moment, child: &mut Child, lines: &mut Lines) {
        let store = self.graviton.store().to_owned();
        let path_is_there = |path: &Path| path.symlink_metadata().is_ok();
        let come = |lines: &Lines| match moment {
            Moment::Start => true,
            Moment::Directory => path_is_there(&store),
            Moment::File(name) => path_is_there(&store.join(name)),
            Moment::Allocated => store
                .join("sector-000.graviton")
                .metadata()
                .is_ok_and(|file| file.blocks() > 0),
            Moment::Lines(lines_wanted) => lines.seen >= lines_wanted,
            Moment::Imported(imported) => lines.imported >= imported,
            Moment::Never => false,
        };
        let by_lines = matches!(
            moment,
            Moment::Lines(_) | Moment::Imported(_) | Moment::Never
        );
        while !come(lines) {
            if by_lines {
                if lines.next(&mut self.acknowledged).is_none() {
                    return;
                }
            } else if ended(child, WaitIdOptions::NOHANG).is_some() {
                return;
            } else {
                std::thread::yield_now();
            }
        }
    }

    /// The store opens, is clean, and has what was acknowledged; whatever else it has is whole.
    fn check(&self, access: Access) {
        let store = self.graviton.store();
        if !store.join("graviton.toml").exists() {
            assert!(
                self.acknowledged.is_empty(),
                "files were acknowledged before the store was there"
            );
            self.graviton.run(["verify"]).fails(1, &["no store at"]);
            return;
        }
        let verified = self.graviton.run(["verify"]).done();
        assert!(
            verified.text().starts_with("clean: "),
            "{}",
            verified.text()
        );
        let options = OpenOptions {
            access,
            ..OpenOptions::default()
        };
        let store = Store::open_with(store, options).expect("the store opens");
        assert_eq!(store.info().health, Vec::<String>::new());
        let mut missing = self.acknowledged.clone();
        for key in all_keys(&store).expect("the keys can be listed") {
            let blob = store
                .get(&key, GetOptions::default())
                .wait()
                .expect("a blob can be read");
            let expected = self.files.get(key.as_bytes());
            assert!(
                expected.is_some_and(|file| blob.bytes == file),
                "{key} has other bytes than its file"
            );
            missing.remove(key.as_bytes());
        }
        assert!(
            missing.is_empty(),
            "{} acknowledged files are missing, of {}",
            missing.len(),
            self.acknowledged.len()
        );
        store.close().expect("the store closes");
    }

    /// All is there, and comes out as it went in.
    fn finish(&self, directory: &Path) {
        self.check(Access::ReadOnly);
        assert_eq!(self.acknowledged.len(), self.files.len());
        let exported = directory.join("exported");
        self.graviton
            .run(["export".as_ref(), exported.as_os_str()])
            .done();
        trees::assert_same(self.tree, &exported);
        fs::remove_dir_all(&exported).expect("the export can be removed");
    }
}

/// How a process ended, if it has; it is still there as a zombie.
fn ended(child: &Child, options: WaitIdOptions) -> Option<WaitIdStatus> {
    let options = options | WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    waitid(WaitId::Pid(Pid::from_child(child)), options).expect("it can be waited for")
}

/// What an import says, line by line.
struct Lines {
    stdout: BufReader<ChildStdout>,
    seen: usize,
    imported: usize,
}

impl Lines {
    /// Waits for the next whole line, and notes the file it acknowledges.
    fn next(&mut self, acknowledged: &mut BTreeSet<Vec<u8>>) -> Option<()> {
        let mut line = String::new();
        let length = self
            .stdout
            .read_line(&mut line)
            .expect("its output can be read");
        if length == 0 || !line.ends_with('\n') {
            return None;
        }
        self.seen += 1;
        let line: Value = serde_json::from_str(&line).expect("a line of JSON");
        let event = line["event"].as_str().expect("an event");
        if event == "imported" || event == "unchanged" {
            self.imported += usize::from(event == "imported");
            acknowledged.insert(unhex(line["key_hex"].as_str().expect("a key")));
        }
        Some(())
    }
}

fn unhex(text: &str) -> Vec<u8> {
    let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).expect("hex digits");
    (0..text.len()).step_by(2).map(byte).collect()
}
