//! The example `fetch` under SIGKILL: eight threads fill a blob in pieces of 1 MiB, in any order, and
//! their process is killed again and again. Each time it comes up, what lacks is what was on its way;
//! in the end the digest is right.
//!
//! `GRAVITON_FETCH_MIB` asks for a larger blob than CI has time for (10240: 10 GiB, and as much room on
//! the disk).

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};

use graviton_engine::port::{BinaryKey, RangeSet, Span};
use graviton_engine::store::{MIB, Store};
use graviton_tests::random::{Random, payload};
use graviton_tests::{check_figures, number_from, test_directory};

#[path = "../../engine/examples/fetch.rs"]
mod fetch;

use fetch::{Origin, PIECE, Progress};

const THREADS: usize = 8;
/// What tells this program that it is to be the child: the store's place.
const VARIABLE: &str = "GRAVITON_FETCH_CHILD";

/// Bytes that are made as they are asked for.
struct Made;

impl Origin for Made {
    fn size(&self) -> u64 {
        // The last piece is a short one.
        number_from("GRAVITON_FETCH_MIB").unwrap_or(160) * MIB - 12_345
    }

    fn read(&self, range: Span) -> std::io::Result<Vec<u8>> {
        assert_eq!(range.start() % PIECE, 0);
        let in_memory = |bytes| usize::try_from(bytes).expect("few bytes");
        let bytes = payload(range.start() / PIECE, in_memory(PIECE));
        Ok(bytes[..in_memory(range.len())].to_vec())
    }
}

/// Tells the parent.
struct Told;

impl Progress for Told {
    fn begins(&self, pending: &RangeSet) {
        println!("begins {pending}");
    }

    fn fetched(&self, piece: Span) {
        println!("fetched {}", piece.start());
    }
}

fn key() -> BinaryKey {
    BinaryKey::new("fetched").expect("a short key")
}

#[test]
#[ignore = "it is the process that the other test starts and kills"]
fn child() {
    let Some(path) = std::env::var_os(VARIABLE) else {
        return;
    };
    println!();
    let store = fetch::open(Path::new(&path), Made.size()).expect("the store opens");
    let digest = fetch::fetch(&store, &key(), &Made, THREADS, &Told).expect("all of it is fetched");
    println!("digest {digest}");
    store.close().expect("it closes");
}

/// What one run of the child told before it was killed, or ended.
struct Run {
    pending: RangeSet,
    fetched: Vec<u64>,
    digest: Option<String>,
}

/// Runs the child, and kills it once so many pieces were fetched.
fn run(path: &Path, most: usize) -> Run {
    let mut child = Command::new(std::env::current_exe().expect("it is known"))
        .args(["child", "--exact", "--ignored", "--nocapture", "--quiet"])
        .env(VARIABLE, path)
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let lines = BufReader::new(child.stdout.take().expect("it is piped")).lines();
    let mut run = Run {
        pending: RangeSet::new(),
        fetched: Vec::new(),
        digest: None,
    };
    // What it tells after it was killed, it told before.
    for line in lines.map_while(Result::ok) {
        match line.split_once(' ') {
            Some(("begins", pending)) => run.pending = pending.parse().expect("a set"),
            Some(("fetched", start)) => {
                run.fetched.push(start.parse().expect("a number"));
                if run.fetched.len() == most {
                    child.kill().expect("it is there");
                }
            }
            Some(("digest", digest)) => run.digest = Some(digest.to_owned()),
            _ => {}
        }
    }
    let status = child.wait().expect("it is over");
    let is_killed = status.signal() == Some(9);
    assert!(is_killed || status.success(), "the child failed: {status}");
    run
}

#[test]
fn what_was_fetched_stays_fetched() {
    let directory = test_directory();
    let path = directory.path().join("store");
    let size = Made.size();
    let pieces = size.div_ceil(PIECE);
    let mut random = Random::new(7);
    // What was told to be fetched, and what was found to be there when the child came up last.
    let (mut told, mut there) = (BTreeSet::new(), BTreeSet::new());
    let (mut runs, mut untold_most) = (0, 0);
    let digest = loop {
        let most = 1 + random.below(usize::try_from(pieces / 8).expect("few").min(400));
        let run = run(&path, most);
        let all = (0..pieces).map(|number| number * PIECE);
        let found: BTreeSet<u64> = all.filter(|start| !run.pending.contains(*start)).collect();
        let lost: Vec<_> = told.difference(&found).collect();
        assert!(lost.is_empty(), "run {runs}: fetched and lost: {lost:?}");
        // They were in flight when the child was killed.
        let untold = found
            .difference(&there)
            .filter(|start| !told.contains(start));
        let untold = untold.count();
        assert!(untold <= THREADS, "run {runs}: {untold} came about untold");
        untold_most = untold_most.max(untold);
        for start in run.fetched {
            assert!(!found.contains(&start), "run {runs}: {start} was there");
            assert!(told.insert(start), "run {runs}: {start} once more");
        }
        there = found;
        runs += 1;
        if let Some(digest) = run.digest {
            break digest;
        }
    };
    let expected = fetch::digest_of(&Made).expect("it is made");
    assert_eq!(digest, expected.to_string());
    println!(
        "{pieces} pieces in {runs} runs, {untold_most} that were in flight came about at most"
    );
    let store = Store::open(&path).expect("it opens");
    check_figures(&store);
    let report = store.verify(&mut |_| ()).expect("it is verified");
    assert_eq!(report.findings, []);
}
