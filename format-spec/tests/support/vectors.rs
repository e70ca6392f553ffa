//! Vector files: sparse hex dumps with a few lines that say what they are. `vectors/README.md`
//! describes them.

use std::fmt::Write;
use std::path::PathBuf;

/// A vector file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vector {
    pub name: String,
    pub comment: String,
    pub kind: String,
    pub address: u64,
    /// What reading it must come to, where that is not a plain success.
    pub expect: Option<String>,
    /// The vector that `bytes` are laid down against: only blocks that differ are in the file.
    pub base: Option<String>,
    pub bytes: Vec<u8>,
}

const LINE: usize = 32;

pub fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vectors/v1")
}

pub fn render(vector: &Vector, base: Option<&[u8]>) -> String {
    let mut text = String::new();
    for line in vector.comment.lines() {
        writeln!(text, "# {line}").unwrap();
    }
    writeln!(text, "kind: {}", vector.kind).unwrap();
    writeln!(text, "address: {}", vector.address).unwrap();
    if let Some(base) = &vector.base {
        writeln!(text, "base: {base}").unwrap();
    }
    if let Some(expect) = &vector.expect {
        writeln!(text, "expect: {expect}").unwrap();
    }
    writeln!(text, "size: {}", vector.bytes.len()).unwrap();
    for (number, line) in vector.bytes.chunks(LINE).enumerate() {
        let at = number * LINE;
        let zeros = [0; LINE];
        let before = base.map_or(&zeros[..], |base| &base[at..]);
        if line != &before[..line.len()] {
            writeln!(text, "{at:08x}: {}", graviton_format::structure::hex(line)).unwrap();
        }
    }
    text
}

pub fn parse(name: &str, text: &str) -> Vector {
    let mut vector = Vector {
        name: name.to_owned(),
        comment: String::new(),
        kind: String::new(),
        address: 0,
        expect: None,
        base: None,
        bytes: Vec::new(),
    };
    for line in text.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            if !vector.comment.is_empty() {
                vector.comment.push('\n');
            }
            vector.comment.push_str(comment);
            continue;
        }
        let (field, value) = line.split_once(": ").expect("a field");
        match field {
            "kind" => vector.kind = value.to_owned(),
            "address" => vector.address = value.parse().unwrap(),
            "expect" => vector.expect = Some(value.to_owned()),
            "base" => {
                vector.base = Some(value.to_owned());
                vector.bytes = load(value).bytes;
            }
            "size" => vector.bytes.resize(value.parse().unwrap(), 0),
            offset => {
                let at = usize::from_str_radix(offset, 16).expect("an offset");
                let digits = value.as_bytes().chunks(2);
                for (target, pair) in vector.bytes[at..].iter_mut().zip(digits) {
                    let pair = std::str::from_utf8(pair).unwrap();
                    *target = u8::from_str_radix(pair, 16).unwrap();
                }
            }
        }
    }
    vector
}

pub fn load(name: &str) -> Vector {
    let path = folder().join(format!("{name}.hex"));
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    parse(name, &text)
}

/// The names of all vector files, sorted.
pub fn names() -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter_map(|name| name.strip_suffix(".hex").map(str::to_owned))
        .collect();
    names.sort();
    names
}
