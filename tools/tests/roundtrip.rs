//! What is imported is exported again as it was; what can't be taken in is said; a second import
//! changes nothing and says so.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use graviton_tests::command::{Graviton, Outcome};
use graviton_tests::test_directory;
use graviton_tests::trees::{self, Files};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::Value;

fn graviton(store: impl AsRef<Path>) -> Graviton {
    Graviton::new(env!("CARGO_BIN_EXE_graviton"), store.as_ref())
}

/// Files whose names and sizes are as odd as a file system allows.
fn odd_files() -> Files {
    let mut files = trees::generate(7, 300, 2);
    let mut add = |path: &[u8], content: &[u8]| files.insert(path.to_vec(), content.to_vec());
    add(b"empty", b"");
    add(b"one", b"1");
    add(b"-starts with a dash", b"-");
    add(b"line\nbreak and\ttab", b"\n");
    add(b"back\\slash \\x41", b"\\");
    add(b"not UTF-8 \xff\xfe\x80", b"\x80");
    add(b"control \x01\x1b[31m\x7f", b"\x1b");
    add("größe/日本語/🌍".as_bytes(), b"utf-8");
    add(b"...", b"three dots");
    add(b".hidden/..also", b"hidden");
    add(b"spaces /  / ", b" ");
    add(
        &[b"name of 255 bytes/".to_vec(), vec![b'n'; 255]].concat(),
        b"long",
    );
    let deep = b"d/".repeat(400);
    add(&[deep.as_slice(), b"deep"].concat(), b"deep");
    // The longest path that is a key.
    let longest = [b"e/".repeat(400), vec![b'k'; 224]].concat();
    assert_eq!(longest.len(), 1024);
    add(&longest, b"longest");
    // Every byte that a name can have.
    for byte in (1..=u8::MAX).filter(|&byte| byte != b'/' && byte != b'.') {
        add(&[b'b', b'/', byte], &[byte]);
    }
    files
}

fn summary(outcome: &Outcome) -> Value {
    let text = outcome.text();
    let last = text.lines().last().expect("a summary");
    let summary: Value = serde_json::from_str(last).expect("JSON");
    assert_eq!(summary["event"], "summary");
    summary
}

fn events(outcome: &Outcome) -> BTreeMap<String, u64> {
    let mut events = BTreeMap::new();
    for line in outcome.text().lines() {
        let line: Value = serde_json::from_str(line).expect("JSON");
        *events
            .entry(line["event"].as_str().expect("an event").to_owned())
            .or_default() += 1;
    }
    events
}

#[test]
fn a_tree_comes_out_as_it_went_in() {
    let directory = test_directory();
    let at = |name: &str| directory.path().join(name);
    let tree = at("tree");
    let files = odd_files();
    trees::write(&tree, &files);
    fs::set_permissions(tree.join("one"), fs::Permissions::from_mode(0o751)).expect("set");
    fs::set_permissions(tree.join("empty"), fs::Permissions::from_mode(0o400)).expect("set");
    let (count, bytes) = (files.len(), files.values().map(Vec::len).sum::<usize>());
    let graviton = graviton(at("store"));

    let import = ["import".as_ref(), tree.as_os_str()];
    let first = graviton
        .run([["--json".as_ref()].as_slice(), &import].concat())
        .done();
    let said = summary(&first);
    assert_eq!(
        (said["imported"].as_u64(), said["imported_bytes"].as_u64()),
        (Some(count as u64), Some(bytes as u64))
    );
    assert_eq!(
        events(&first),
        BTreeMap::from([
            ("imported".to_owned(), count as u64),
            ("summary".to_owned(), 1)
        ])
    );
    assert!(
        graviton
            .run(["verify"])
            .done()
            .text()
            .starts_with("clean: ")
    );

    let versions = |graviton: &Graviton| {
        let info: Value =
            serde_json::from_str(&graviton.run(["--json", "info"]).done().text()).expect("JSON");
        assert_eq!(
            (info["blobs"].as_u64(), info["logical_bytes"].as_u64()),
            (Some(count as u64), Some(bytes as u64))
        );
        assert_eq!(info["space"]["adds_up"], true);
        graviton.run(["--json", "ls", "-l"]).done().text()
    };
    let before = versions(&graviton);
    for _ in 0..2 {
        let again = graviton.run(import).done();
        let text = again.text();
        assert!(
            text.starts_with(&format!(
                "0 imported, {count} unchanged, 0 skipped; nothing changed"
            )),
            "{text}"
        );
        let again = summary(
            &graviton
                .run([["--json".as_ref()].as_slice(), &import].concat())
                .done(),
        );
        assert_eq!(
            (again["imported"].as_u64(), again["unchanged"].as_u64()),
            (Some(0), Some(count as u64))
        );
    }
    assert!(versions(&graviton) == before, "blobs were written again");

    let out = at("out");
    graviton.run(["export".as_ref(), out.as_os_str()]).done();
    trees::assert_same(&tree, &out);
    let again = graviton.run(["export".as_ref(), out.as_os_str()]).done();
    assert!(
        again
            .text()
            .starts_with(&format!("0 exported, {count} identical already, 0 skipped")),
        "{}",
        again.text()
    );

    // What changed is imported, and nothing else; what is gone stays in the store.
    fs::write(tree.join("one"), b"2").expect("written");
    fs::write(tree.join("new"), b"new").expect("written");
    fs::remove_file(tree.join("empty")).expect("removed");
    let changed = summary(
        &graviton
            .run([["--json".as_ref()].as_slice(), &import].concat())
            .done(),
    );
    assert_eq!(
        (changed["imported"].as_u64(), changed["unchanged"].as_u64()),
        (Some(2), Some(count as u64 - 2))
    );
    assert_eq!(graviton.run(["get", "one"]).done().stdout, b"2");
    assert_eq!(graviton.run(["get", "empty"]).done().stdout, b"");
    assert_eq!(graviton.run(["get", "new"]).done().stdout, b"new");
}

#[test]
fn a_tree_moves_between_stores_under_a_prefix() {
    let directory = test_directory();
    let at = |name: &str| directory.path().join(name);
    trees::write(&at("tree"), &trees::generate(9, 120, 1));
    let graviton = graviton(at("store"));
    let (tree, out) = (at("tree"), at("out"));
    let (prefix, option) = (OsStr::new("backup/2026/"), OsStr::new("--prefix"));
    let shape = ["--sectors", "3", "--sector-size", "16MiB"].map(OsStr::new);
    graviton
        .run(
            [
                ["import".as_ref(), tree.as_os_str(), option, prefix].as_slice(),
                &shape,
            ]
            .concat(),
        )
        .done();
    graviton
        .run(["put", "backup/2027/other", env!("CARGO_MANIFEST_PATH")])
        .done();
    graviton
        .run(["export".as_ref(), out.as_os_str(), option, prefix])
        .done();
    trees::assert_same(&tree, &out);
    assert!(
        graviton
            .run(["verify"])
            .done()
            .text()
            .starts_with("clean: ")
    );
}

#[test]
fn what_is_no_file_is_reported_and_left_out() {
    let directory = test_directory();
    let at = |name: &str| directory.path().join(name);
    let tree = at("tree");
    fs::create_dir_all(tree.join("empty directory")).expect("made");
    fs::write(tree.join("file"), b"file").expect("written");
    fs::write(at("outside"), b"secret").expect("written");
    symlink("file", tree.join("link to a file")).expect("linked");
    symlink("..", tree.join("link to a directory")).expect("linked");
    symlink("nowhere", tree.join("link to nowhere")).expect("linked");
    mknodat(
        CWD,
        tree.join("pipe"),
        FileType::Fifo,
        Mode::RUSR | Mode::WUSR,
        0,
    )
    .expect("made");
    let _socket = std::os::unix::net::UnixListener::bind(tree.join("socket")).expect("bound");
    // The store itself may lie in the tree.
    let graviton = graviton(tree.join("store"));
    let outcome = graviton.run(["import".as_ref(), tree.as_os_str()]).done();
    let reported = |what: &str| {
        let line = format!("graviton: skipped {what}");
        assert!(
            outcome.stderr.lines().any(|said| said.starts_with(&line)),
            "no '{line}' in:\n{}",
            outcome.stderr
        );
    };
    reported("link to a file: symbolic link");
    reported("link to a directory: symbolic link");
    reported("link to nowhere: symbolic link");
    reported("pipe: named pipe");
    reported("socket: socket");
    reported("store: the store itself");
    assert!(
        outcome
            .text()
            .starts_with("1 imported, 0 unchanged, 6 skipped"),
        "{}",
        outcome.text()
    );
    assert!(
        outcome.text().contains("1 empty directory left out"),
        "{}",
        outcome.text()
    );
    assert_eq!(graviton.run(["ls"]).done().text(), "file\n");
}

#[test]
fn a_file_that_cant_be_a_key_fails_alone() {
    let directory = test_directory();
    let tree = directory.path().join("tree");
    let too_long = [b"e/".repeat(400), vec![b'k'; 225]].concat();
    trees::write(
        &tree,
        &Files::from([
            (b"good".to_vec(), b"good".to_vec()),
            (too_long, b"bad".to_vec()),
        ]),
    );
    let graviton = graviton(directory.path().join("store"));
    let outcome = graviton.run(["import".as_ref(), tree.as_os_str()]);
    assert_eq!(outcome.code, 1, "{}", outcome.stderr);
    assert!(
        outcome.text().starts_with("1 imported"),
        "{}",
        outcome.text()
    );
    assert_eq!(graviton.run(["ls"]).done().text(), "good\n");
}

#[test]
fn an_import_that_does_not_fit_says_so_and_keeps_what_it_has() {
    let directory = test_directory();
    let tree = directory.path().join("tree");
    trees::write(&tree, &trees::generate(3, 40, 6));
    let graviton = graviton(directory.path().join("store"));
    let arguments = [
        "import".as_ref(),
        tree.as_os_str(),
        "--sector-size".as_ref(),
        "8MiB".as_ref(),
    ];
    let outcome = graviton.run(arguments);
    assert_eq!(outcome.code, 1, "{}", outcome.stderr);
    let errors: Vec<_> = outcome
        .stderr
        .lines()
        .filter(|line| !line.contains("created a store"))
        .collect();
    assert!(
        matches!(errors.as_slice(), [line] if line.contains("no space")),
        "{errors:?}"
    );
    assert!(
        graviton
            .run(["verify"])
            .done()
            .text()
            .starts_with("clean: ")
    );
    // Deleting makes room again.
    let keys = graviton.run(["ls"]).done().text();
    let keys: Vec<_> = keys.lines().collect();
    assert!(!keys.is_empty());
    graviton.run([["rm"].as_slice(), &keys].concat()).done();
    let mut put = graviton.command(["put", "after", "-"]);
    put.stdin(fs::File::open(tree.join(large_of(&tree))).expect("opened"));
    let output = put.output().expect("run");
    Outcome::of(&put, output).done();
}

fn large_of(tree: &Path) -> std::path::PathBuf {
    let listing = trees::read(tree);
    let (path, _) = listing
        .iter()
        .max_by_key(|(_, (content, ..))| content.len())
        .expect("a file");
    trees::path_of(path)
}

#[test]
fn a_store_in_use_has_no_damage_to_dump() {
    let directory = test_directory();
    let graviton = graviton(directory.path().join("store"));
    graviton.run(["init", "--sector-size", "16MiB"]).done();
    // The log takes the segments of checkpoints that others have superseded.
    for key in ["a", "b", "c", "d", "e"] {
        graviton.run(["checkpoint"]).done();
        graviton
            .run(["put", key, env!("CARGO_MANIFEST_PATH")])
            .done();
        let dumped = graviton.run(["dump", "segments"]).done();
        assert!(!dumped.text().contains("DAMAGE"), "{}", dumped.text());
        for what in ["superblock", "frames", "checkpoint"] {
            graviton.run(["dump", what]).done();
        }
    }
}

/// Sets a file's permissions, and its time of modification to so many seconds before now.
fn set(file: &Path, mode: u32, ago: u64) {
    fs::set_permissions(file, fs::Permissions::from_mode(mode)).expect("set");
    let time = std::time::SystemTime::now() - std::time::Duration::from_secs(ago);
    let file = fs::File::open(file).expect("opened");
    file.set_modified(time).expect("set");
}

#[test]
fn modes_and_times_follow_though_the_content_stays() {
    let directory = test_directory();
    let at = |name: &str| directory.path().join(name);
    let (tree, out) = (at("tree"), at("out"));
    let large = vec![7; (1 << 20) + 1];
    trees::write(
        &tree,
        &Files::from([
            (b"large".to_vec(), large),
            (b"other".to_vec(), b"other".to_vec()),
            (b"small".to_vec(), b"small".to_vec()),
        ]),
    );
    let graviton = graviton(at("store"));
    let import = || {
        let arguments = ["--json".as_ref(), "import".as_ref(), tree.as_os_str()];
        let said = summary(&graviton.run(arguments).done());
        let figure = |name: &str| said[name].as_u64().expect("a figure");
        (figure("imported"), figure("unchanged"))
    };
    let export = || {
        let arguments = ["export".as_ref(), out.as_os_str()];
        graviton.run(arguments).done().text()
    };
    for file in ["large", "other", "small"] {
        set(&tree.join(file), 0o644, 5000);
    }
    assert_eq!(import(), (3, 0));
    export();
    // Modes first, and then times, of a large file and of a small one.
    for (mode, ago) in [(0o700, 5000), (0o700, 400)] {
        let time = fs::metadata(tree.join("small"))
            .and_then(|metadata| metadata.modified())
            .expect("known");
        for file in ["large", "small"] {
            set(&tree.join(file), mode, ago);
            if ago == 5000 {
                let file = fs::File::open(tree.join(file)).expect("opened");
                file.set_modified(time).expect("set");
            }
        }
        assert_eq!(import(), (2, 1), "{mode:o}, {ago}");
        assert_eq!(import(), (0, 3), "{mode:o}, {ago}");
    }
    let fresh = at("fresh");
    graviton.run(["export".as_ref(), fresh.as_os_str()]).done();
    trees::assert_same(&tree, &fresh);

    // The files exported first have the content, and get the modes.
    let text = export();
    let begin = "0 exported, 1 identical already, 2 changed in mode only, 0 skipped";
    assert!(text.starts_with(begin), "{text}");
    let mode = |name: &str| {
        let metadata = fs::metadata(out.join(name)).expect("known");
        metadata.permissions().mode() & 0o777
    };
    assert_eq!(
        (mode("large"), mode("small"), mode("other")),
        (0o700, 0o700, 0o644)
    );
    let text = export();
    assert!(
        text.starts_with("0 exported, 3 identical already, 0 skipped"),
        "{text}"
    );
}

#[test]
fn what_a_killed_export_left_is_not_taken_for_a_file() {
    let directory = test_directory();
    let at = |name: &str| directory.path().join(name);
    let (tree, out) = (at("tree"), at("out"));
    let mut dead = std::process::Command::new("true").spawn().expect("started");
    dead.wait().expect("ended");
    let gone = format!(".graviton-{}-3.tmp", dead.id());
    let mine = format!(".graviton-{}-3.tmp", std::process::id());
    let files = Files::from([
        (b"a/file".to_vec(), b"file".to_vec()),
        (b"b".to_vec(), b"b".to_vec()),
    ]);
    trees::write(&tree, &files);
    fs::write(tree.join("a").join(&gone), b"half").expect("written");
    let graviton = graviton(at("store"));
    let outcome = graviton.run(["import".as_ref(), tree.as_os_str()]).done();
    assert!(
        outcome
            .stderr
            .contains(&format!("skipped a/{gone}: unfinished file")),
        "{}",
        outcome.stderr
    );
    assert_eq!(graviton.run(["ls"]).done().text(), "a/file\nb\n");

    // An export removes them where it writes, and nowhere else.
    for place in ["", "a", "c"] {
        fs::create_dir_all(out.join(place)).expect("made");
        fs::write(out.join(place).join(&gone), b"half").expect("written");
    }
    fs::write(out.join("a").join(&mine), b"in the making").expect("written");
    let outcome = graviton.run(["export".as_ref(), out.as_os_str()]).done();
    assert!(
        outcome
            .stderr
            .contains("removed 2 files that interrupted exports had left"),
        "{}",
        outcome.stderr
    );
    let left: Vec<_> = trees::read(&out).into_keys().collect();
    let expected = [
        format!("a/{mine}"),
        "a/file".to_owned(),
        "b".to_owned(),
        format!("c/{gone}"),
    ];
    assert_eq!(left, expected.map(String::into_bytes));
    assert_eq!(
        graviton
            .run(["export".as_ref(), out.as_os_str()])
            .done()
            .stderr,
        ""
    );
    // A blob may have such a name: it is written, and not removed by the same export.
    graviton
        .run(["put", &gone, env!("CARGO_MANIFEST_PATH")])
        .done();
    graviton.run(["export".as_ref(), out.as_os_str()]).done();
    assert!(out.join(&gone).exists());
}

#[test]
fn an_import_says_how_large_the_store_is_that_it_creates() {
    let directory = test_directory();
    let tree = directory.path().join("tree");
    trees::write(&tree, &Files::from([(b"file".to_vec(), b"file".to_vec())]));
    let graviton = graviton(directory.path().join("store"));
    // Not a whole number of segments.
    let shape = ["--sector-size", "10MB", "--segment-size", "512KiB"].map(OsStr::new);
    let outcome = graviton
        .run([["import".as_ref(), tree.as_os_str()].as_slice(), &shape].concat())
        .done();
    let total = 2 * (64 << 10) + 18 * (512 << 10);
    let size = fs::metadata(graviton.store().join("sector-000.graviton"));
    assert_eq!(size.expect("known").len(), total);
    assert!(
        outcome.stderr.contains("created a store of 9.1 MiB at"),
        "{}",
        outcome.stderr
    );
    let info = graviton.run(["--json", "info"]).done().text();
    let info: Value = serde_json::from_str(&info).expect("JSON");
    assert_eq!(info["space"]["total"], total);
}

#[test]
fn pictures_go_to_standard_output_when_told_to() {
    let directory = test_directory();
    let graviton = graviton(directory.path().join("store"));
    graviton.run(["init", "--sector-size", "4MiB"]).done();
    let drawn = graviton.run(["map", "--svg", "-"]).done().text();
    assert!(
        drawn.starts_with("<svg") && drawn.trim_end().ends_with("</svg>"),
        "{drawn}"
    );
    assert!(!Path::new("-").exists());
    let refused = graviton.run(["map", "--svg", "-", "--json"]);
    assert_eq!((refused.code, refused.stdout.len()), (2, 0), "{refused:?}");
}

#[test]
fn an_export_of_nothing_says_so() {
    let directory = test_directory();
    let at = |name: &str| directory.path().join(name);
    let graviton = graviton(at("store"));
    graviton.run(["init", "--sector-size", "4MiB"]).done();
    graviton
        .run(["put", "a/b", env!("CARGO_MANIFEST_PATH")])
        .done();
    let export = |prefix: &str| {
        let out = at("out");
        let prefix = ["--prefix".as_ref(), OsStr::new(prefix)];
        let arguments = [["export".as_ref(), out.as_os_str()], prefix].concat();
        graviton.run(arguments).done().stderr
    };
    assert_eq!(
        export("nothing"),
        "graviton: nothing matches: no key begins with 'nothing'\n"
    );
    assert_eq!(export("a/"), "");
    assert_eq!(export("a/"), "");
}

#[test]
fn sectors_are_zeroed_when_a_store_is_made() {
    let directory = test_directory();
    let graviton = graviton(directory.path().join("store"));
    let arguments = ["init", "--sector-size", "16MiB", "--sectors", "2", "--zero"];
    graviton.run(arguments).done();
    let info = graviton.run(["--json", "info"]).done().text();
    let info: Value = serde_json::from_str(&info).expect("JSON");
    let sectors = info["sectors"].as_array().expect("a list");
    assert_eq!(sectors.len(), 2);
    for sector in sectors {
        assert_eq!(sector["segments_zeroed"], sector["segment_count"]);
    }
}
