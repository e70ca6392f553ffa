//! Texts that callers hand in: list tokens, digests, ETags; and the text form of keys. What is read
//! is shown as the same text again, so that nothing has two names.

use graviton_engine::memory::MemoryStore;
use graviton_engine::port::{
    BinaryKey, BlobStore, Digest, ETag, ListRequest, ListToken, PutOptions,
};

/// Reads the bytes after the first as what the first says.
pub fn text(data: &[u8]) {
    let Some((&which, bytes)) = data.split_first() else {
        return;
    };
    match (which % 6, std::str::from_utf8(bytes)) {
        (0, Ok(text)) => token(text),
        (1, Ok(text)) => forged_token(text),
        (2, Ok(text)) => digest(text),
        (3, Ok(text)) => etag(text),
        (4, _) => key(bytes),
        (5, _) => listing(bytes),
        _ => {}
    }
}

fn token(text: &str) {
    if let Ok(token) = text.parse::<ListToken>() {
        assert_eq!(token.to_string(), text.to_ascii_lowercase());
    }
}

/// A token whose checksum is right for what `digits` can be taken to stand for.
fn forged_token(digits: &str) {
    if !digits.is_ascii() {
        return;
    }
    let position: Option<Vec<u8>> = digits
        .as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok())
        .collect();
    if let Some(position) = position {
        let whole = ListToken::resume_at(position).to_string();
        // Version and checksum.
        token(&format!("{}{digits}", &whole[..10]));
    }
}

fn digest(text: &str) {
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text.to_ascii_lowercase());
    }
}

fn etag(text: &str) {
    if let Ok(etag) = text.parse::<ETag>() {
        let digits = text.trim_matches('"').to_ascii_lowercase();
        assert_eq!(etag.to_string(), format!("\"{digits}\""));
        assert_eq!(etag.to_string().parse().ok(), Some(etag));
    }
}

/// Two halves of the bytes as keys: equal texts are of equal keys.
fn key(bytes: &[u8]) {
    let (first, second) = bytes.split_at(bytes.len() / 2);
    let (Ok(first), Ok(second)) = (BinaryKey::new(first), BinaryKey::new(second)) else {
        return;
    };
    let texts = [first.to_string(), second.to_string()];
    assert_eq!(texts[0] == texts[1], first == second);
    assert!(texts.iter().all(|text| !text.contains(char::is_control)));
}

/// A listing whose every field is anybody's.
fn listing(bytes: &[u8]) {
    let mut fields = bytes.splitn(4, |&byte| byte == b'|');
    let mut field = || fields.next().map(<[u8]>::to_vec);
    let store = MemoryStore::new();
    for name in ["a", "a/b", "a/b/c", "a//b", "b", "b/1", "b/2"] {
        let key = BinaryKey::new(name).expect("a good key");
        let put = store.put(&key, name.into(), PutOptions::default());
        put.wait().expect("it is put");
    }
    let mut request = ListRequest {
        prefix: field().unwrap_or_default(),
        delimiter: field(),
        start_after: field(),
        token: field().map(ListToken::resume_at),
        max: 2,
    };
    let mut last: Option<Vec<u8>> = None;
    for _ in 0..16 {
        let Ok(page) = store.list(request.clone()).wait() else {
            assert_eq!(request.delimiter, Some(Vec::new()));
            return;
        };
        let blobs = page.blobs.iter().map(|blob| blob.key.as_bytes());
        let groups = page.common_prefixes.iter().map(Vec::as_slice);
        let mut listed: Vec<&[u8]> = blobs.chain(groups).collect();
        assert!(listed.len() <= request.max);
        listed.sort_unstable();
        for name in listed {
            assert!(name.starts_with(&request.prefix));
            assert!(
                last.as_deref().is_none_or(|last| last < name),
                "{name:?} is listed again"
            );
            last = Some(name.to_vec());
        }
        request.token = page.next;
        if request.token.is_none() {
            return;
        }
    }
    panic!("the listing comes to no end");
}
