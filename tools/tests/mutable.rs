//! Blobs that are filled range by range or part by part, from the command line: what goes in comes
//! out, and what is wrong is answered with one clear line.

use std::fs;
use std::path::PathBuf;

use graviton_engine::port::{
    BinaryKey, Durability, MutableObjectStore, PutOutcome, StoreOp, UploadOptions,
};
use graviton_engine::store::Store;
use graviton_tests::command::Graviton;
use graviton_tests::random::Random;
use graviton_tests::{put_options, test_directory};
use serde_json::Value;
use tempfile::TempDir;

struct Subject {
    directory: TempDir,
    graviton: Graviton,
}

impl Subject {
    fn new() -> Self {
        let directory = test_directory();
        let path = directory.path().join("store");
        let graviton = Graviton::new(env!("CARGO_BIN_EXE_graviton"), path);
        graviton.run(["init", "--sector-size", "32MiB"]).done();
        Self {
            directory,
            graviton,
        }
    }

    fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path: PathBuf = self.directory.path().join(name);
        fs::write(&path, bytes).expect("a file is written");
        path.to_str().expect("a plain path").to_owned()
    }

    /// Runs a command, given in one line, and hands over what it printed.
    fn done(&self, line: &str) -> String {
        let outcome = self.graviton.run(line.split(' ')).done();
        String::from_utf8(outcome.stdout)
            .expect("text")
            .trim()
            .to_owned()
    }

    fn json(&self, line: &str) -> Value {
        serde_json::from_str(&self.done(&format!("--json {line}"))).expect("an object")
    }

    /// It fails with this code and this line.
    fn fails(&self, line: &str, code: i32, message: &str) {
        let outcome = self.graviton.run(line.split(' '));
        assert_eq!(outcome.code, code, "{}: {}", outcome.line, outcome.stderr);
        assert_eq!(outcome.stderr.trim(), format!("graviton: {message}"));
    }

    fn bytes(&self, line: &str) -> Vec<u8> {
        let outcome = self.graviton.run(line.split(' ')).done();
        outcome.stdout
    }
}

#[test]
fn ranges_go_in_and_come_out() {
    let subject = Subject::new();
    let (six, long) = (
        subject.file("six", b"hello\n"),
        Random::new(1).bytes(300_000),
    );
    let long_file = subject.file("long", &long);
    subject.done("put disk --hole 10GiB");
    subject.done(&format!("put disk {six} --range 1MiB.."));
    subject.done(&format!("put disk {long_file} --range 5GiB..5369009120"));
    assert_eq!(subject.bytes("get disk --range 1MiB..1048582"), b"hello\n");
    assert_eq!(subject.bytes("get disk --range 5GiB..5369009120"), long);
    subject.fails(
        "get disk --range 0..10",
        1,
        "disk has holes where it was to be read: 0..10",
    );
    assert_eq!(subject.bytes("get disk --range 0..10 --zeros"), [0; 10]);
    let ranges = subject.json("ranges disk");
    assert_eq!(
        ranges["completed"],
        "1048576..1048582,5368709120..5369009120"
    );
    assert_eq!(ranges["total"], 10_u64 << 30);

    subject.done(&format!("put small {six}"));
    let past = format!("put small {six} --range 10..");
    subject.fails(&past, 1, "range 10..16 lies outside of small (6 bytes)");
    let extend = format!("{past} --past-end extend");
    subject.fails(&extend, 1, "range 10..16 lies outside of small (6 bytes)");
    subject.done(&format!("{past} --past-end sparse"));
    assert_eq!(
        subject.bytes("get small --zeros"),
        b"hello\n\0\0\0\0hello\n"
    );
    subject.done(&format!("put small {six} --range 16.. --past-end extend"));
    assert_eq!(subject.json("stat small")["size"], 22);

    subject.fails(
        &format!("put small {six} --range 0..3"),
        1,
        &format!("range 0..3 has 3 bytes, {six} has 6"),
    );
    let absent = format!("put absent {six} --range 0..");
    subject.fails(&absent, 3, "not found: absent");
    subject.fails("ranges absent", 3, "not found: absent");
    subject.fails(
        "put absent --hole 5 --past-end sparse",
        2,
        "the argument '--hole <SIZE>' cannot be used with '--past-end <WHAT>'",
    );
    subject.done("verify");
}

#[test]
fn parts_become_a_blob() {
    let subject = Subject::new();
    let first = Random::new(1).bytes(3_000_000);
    let (first_file, tail) = (subject.file("first", &first), subject.file("tail", b"tail"));
    let upload = subject.done("multipart start films/a");
    subject.done(&format!("multipart part {upload} 1 {tail}"));
    subject.done(&format!("multipart part {upload} 7 {tail}"));
    subject.done(&format!("multipart part {upload} 9 {tail}"));
    // In the place of the first.
    subject.done(&format!("multipart part {upload} 1 {first_file}"));
    let listed = subject.json("multipart ls");
    assert_eq!(
        (&listed["parts"], &listed["bytes"]),
        (&3.into(), &3_000_008.into())
    );
    assert_eq!(listed["upload"], upload);
    assert_eq!(subject.done("ls"), "");
    assert_eq!(
        subject
            .done(&format!("multipart ls {upload}"))
            .lines()
            .count(),
        3
    );

    let complete = format!("multipart complete {upload}");
    let order = "part 1 is named after part 7: their numbers must ascend";
    subject.fails(&format!("{complete} 7 1"), 1, order);
    let absent = "invalid part 2: it was never put";
    subject.fails(&format!("{complete} 1 2"), 1, absent);
    subject.done(&format!("{complete} 1 7"));
    assert_eq!(
        subject.bytes("get films/a"),
        [&first, &b"tail"[..]].concat()
    );
    let over = format!("no upload {upload} is open");
    subject.fails(&complete, 3, &over);
    subject.fails(&format!("multipart part {upload} 1 {tail}"), 3, &over);
    subject.fails(&format!("multipart abort {upload}"), 3, &over);

    let upload = subject.done("multipart start films/a");
    subject.done(&format!("multipart part {upload} 1 {tail}"));
    let exists = subject
        .graviton
        .run(["multipart", "complete", &upload, "--if-absent"]);
    assert_eq!(exists.code, 1, "{}", exists.stderr);
    let wrong = "invalid value '10001' for '<NUMBER>': expected a number from 1 to 10000";
    subject.fails(&format!("multipart part {upload} 10001 {tail}"), 2, wrong);
    subject.done(&format!("multipart abort {upload}"));
    // Named with its ETag, the same list gives the same answer.
    let upload = subject.done("multipart start again");
    let put = subject.json(&format!("multipart part {upload} 3 {tail}"));
    let etag = put["etag"].as_str().expect("text");
    let complete = format!("multipart complete {upload} 3={etag}");
    let made = subject.json(&complete);
    assert_eq!(
        (&made["size"], subject.json(&complete)),
        (&4.into(), made.clone())
    );
    let upload = subject.done("multipart start again");
    let empty = format!("multipart complete {upload}");
    let refused = "invalid argument: an upload completed with no parts";
    subject.fails(&empty, 2, refused);
    assert_eq!(subject.bytes("get again"), b"tail");
    subject.done(&format!("{empty} --allow-empty"));
    assert_eq!(subject.bytes("get again"), b"");
    let upload = subject.done("multipart start other");
    assert_eq!(subject.json("multipart sweep 1")["uploads"], 0);
    assert_eq!(subject.json("multipart sweep 0")["uploads"], 1);
    subject.fails(
        &format!("multipart ls {upload}"),
        3,
        &format!("no upload {upload} is open"),
    );
    subject.fails(
        "multipart abort zz",
        2,
        "invalid value 'zz' for '<UPLOAD>': expected 16 hex digits, as start and ls show them",
    );
    subject.done("verify");
}

/// What a program has put part by part, in more parts than are listed at once, is shown and completed whole.
#[test]
fn many_parts_become_a_blob() {
    let subject = Subject::new();
    let parts: Vec<String> = (1..=1001)
        .map(|number| format!("part {number}\n"))
        .collect();
    let store = Store::open(subject.graviton.store()).expect("it opens");
    let key = BinaryKey::new("films/long").expect("a short key");
    let started = store.start_upload(&key, UploadOptions::default());
    let upload = started.wait().expect("it is started");
    let puts: Vec<StoreOp<PutOutcome>> = (1..)
        .zip(&parts)
        .map(|(number, part)| {
            let options = put_options(Durability::Written);
            store.upload_part(upload, number, part.clone().into(), options)
        })
        .collect();
    for put in puts {
        put.wait().expect("it is put");
    }
    store.close().expect("it closes");

    let listed = subject.done(&format!("multipart ls {upload}"));
    assert_eq!(listed.lines().count(), parts.len());
    subject.done(&format!("multipart complete {upload}"));
    assert!(subject.bytes("get films/long") == parts.concat().into_bytes());
    assert_eq!(subject.done("multipart ls"), "");
}

#[test]
fn bytes_elsewhere_are_tracked() {
    let subject = Subject::new();
    let mark = "ranges --elsewhere iso --mark";
    subject.fails("ranges --elsewhere iso", 3, "not found: iso");
    subject.done(&format!("{mark} 20..30,0..10 --total 40"));
    let marked = subject.json(&format!("{mark} 10..15"));
    assert_eq!(marked["completed"], "0..15,20..30");
    assert_eq!(marked["pending"], "15..20,30..40");
    assert_eq!(subject.json("ranges --elsewhere iso"), marked);
    let past = "invalid argument: a range of iso ends at 50, its total is 40";
    subject.fails(&format!("{mark} 0..50"), 2, past);
    subject.done("ranges --elsewhere iso --forget");
    subject.fails("ranges --elsewhere iso --forget", 3, "not found: iso");
    subject.fails(
        "ranges --elsewhere iso --forget --total 5",
        2,
        "the argument '--forget' cannot be used with '--total <SIZE>'",
    );
    subject.fails(
        "ranges --elsewhere iso --mark 1-2",
        2,
        "invalid value '1-2' for '--mark <A..B,C..D>': expected ranges such as 0..4096,8192..12288",
    );
    subject.done("verify");
}

#[test]
fn attributes_are_shown_and_changed() {
    let subject = Subject::new();
    let file = subject.file("file", b"hello\n");
    subject.done(&format!("put k {file}"));
    subject.done("attrs k author=ada subject=a=b --source editor");
    let shown = subject.json("attrs k");
    let advertised = |shown: &Value| -> Vec<String> {
        let all = shown["advertised"].as_array().expect("a list").iter();
        let text = |one: &Value, field: &str| one[field].as_str().expect("text").to_owned();
        all.map(|one| {
            let [name, value, source] = ["name", "value", "source"].map(|field| text(one, field));
            format!("{name} = {value} by {source}")
        })
        .collect()
    };
    assert_eq!(
        advertised(&shown),
        ["author = ada by editor", "subject = a=b by editor"]
    );
    assert_eq!(shown["confirmed"][0]["value"], 6);
    assert_eq!(shown["entries"], Value::Null);
    let etag = shown["etag"].as_str().expect("text").to_owned();
    // Nothing is another than before.
    let again = subject.json("attrs k author=ada --remove nothing");
    assert_eq!(again, shown);
    let changed = subject.json(&format!(
        "attrs k author=bob --remove subject --if-etag {etag}"
    ));
    assert_eq!(advertised(&changed), ["author = bob by graviton"]);
    let newer = changed["etag"].as_str().expect("text");
    subject.fails(
        &format!("attrs k author=eve --if-etag {etag}"),
        1,
        &format!("precondition failed for k: its ETag is \"{newer}\""),
    );
    let replaced = subject.json("attrs k x= --replace");
    assert_eq!(advertised(&replaced), ["x =  by graviton"]);
    assert_eq!(advertised(&subject.json("attrs k --replace")), [""; 0]);
    assert_eq!(subject.bytes("get k"), b"hello\n");

    subject.done("put disk --hole 1MiB");
    subject.done(&format!("put disk {file} --range 10.."));
    let entries = subject.json("attrs disk --entries")["entries"].clone();
    let place = |entry: &Value| {
        (
            entry["start"].as_u64(),
            entry["end"].as_u64(),
            entry["hole"] == true,
        )
    };
    let places: Vec<_> = entries
        .as_array()
        .expect("a list")
        .iter()
        .map(place)
        .collect();
    let whole = Some(1 << 20);
    assert_eq!(
        places,
        [
            (Some(0), Some(10), true),
            (Some(10), Some(16), false),
            (Some(16), whole, true)
        ]
    );
    assert_eq!(subject.done("attrs disk --entries").lines().count(), 3 + 3);

    subject.fails("attrs absent", 3, "not found: absent");
    subject.fails("attrs absent a=b", 3, "not found: absent");
    subject.fails(
        "attrs k a=b --remove a",
        2,
        "invalid argument: attribute \"a\" is to be set and to be removed",
    );
    subject.fails(
        "attrs k a",
        2,
        "invalid value 'a' for '[NAME=VALUE]...': expected NAME=VALUE, the name in UTF-8",
    );
    subject.fails(
        "attrs k =a",
        2,
        "invalid argument: attribute name of 0 bytes, must be 1 to 255",
    );
    subject.fails("attrs k a=1 b=2 a=1", 2, "a is set twice");
    let unchanged = format!("attrs k --if-etag {newer}");
    subject.fails(&unchanged, 2, "--if-etag, and nothing to change");
    subject.done("verify");
}
