use bytes::Bytes;

use crate::port::{
    Attributes, BinaryKey, CopyOptions, DeleteOptions, Digest, DigestAlgorithm, ErrorKind,
    ListRequest, Precondition, PutOptions, StorageError,
};
use crate::testing::Subject;
use crate::testing::support::{Short, key, part, put_if};

/// The key an error is about, if it is about one.
fn subject_of(error: &StorageError) -> Option<&BinaryKey> {
    match error {
        StorageError::NotFound { key }
        | StorageError::InvalidRange { key, .. }
        | StorageError::PreconditionFailed { key, .. }
        | StorageError::SizeMismatch { key, .. }
        | StorageError::DigestMismatch { key, .. }
        | StorageError::TooLarge { key, .. } => Some(key),
        _ => None,
    }
}

#[track_caller]
fn check<T>(
    outcome: Result<T, StorageError>,
    kind: ErrorKind,
    retryable: bool,
    about: Option<&str>,
) {
    let Err(error) = outcome else {
        panic!("expected {kind:?}, but it succeeded");
    };
    assert_eq!(error.kind(), kind, "{error:?}");
    assert_eq!(error.is_retryable(), retryable, "{error:?}");
    let named = subject_of(&error).map(BinaryKey::as_bytes);
    assert_eq!(named, about.map(str::as_bytes), "{error:?}");
    assert!(!error.to_string().is_empty());
}

pub(super) fn errors_tell_what_to_do(subject: &mut dyn Subject) {
    use ErrorKind::{Conflict, InvalidInput, NotFound};
    let store = subject.fresh();
    store.save("k", "0123456789");
    let (k, absent) = (key("k"), key("absent"));
    let with = |change: fn(&mut PutOptions)| {
        let mut options = PutOptions::default();
        change(&mut options);
        options
    };

    let get = store.get(&absent, part(0..1)).wait();
    check(get, NotFound, false, Some("absent"));
    check(store.stat(&absent).wait(), NotFound, false, Some("absent"));
    let strict = DeleteOptions {
        strict: true,
        ..DeleteOptions::default()
    };
    let delete = store.delete(&absent, strict).wait();
    check(delete, NotFound, false, Some("absent"));
    let copy = store.copy(&absent, &k, CopyOptions::default()).wait();
    check(copy, NotFound, false, Some("absent"));

    // Read again and decide anew: that may succeed.
    let put = store.save_with("k", "x", put_if(Precondition::IfAbsent));
    check(put, Conflict, true, Some("k"));
    let onto = CopyOptions {
        target_precondition: Precondition::IfVersion(1),
        ..CopyOptions::default()
    };
    let copy = store.copy(&k, &absent, onto).wait();
    check(copy, Conflict, true, Some("absent"));

    // The same again can't succeed.
    check(BinaryKey::new(""), InvalidInput, false, None);
    let past = store.get(&k, part(11..12)).wait();
    check(past, InvalidInput, false, Some("k"));
    #[expect(clippy::reversed_empty_ranges, reason = "that is what is refused")]
    let backwards = store.get(&k, part(5..4)).wait();
    check(backwards, InvalidInput, false, None);
    let size = with(|options| options.size = Some(3));
    check(
        store.save_with("k", "four", size),
        InvalidInput,
        false,
        Some("k"),
    );
    let digest = with(|options| {
        options.digest = Some(Digest {
            algorithm: DigestAlgorithm::Sha256,
            bytes: [0; 32],
        });
    });
    check(
        store.save_with("k", "x", digest),
        InvalidInput,
        false,
        Some("k"),
    );
    let nameless = with(|options| {
        options.attributes = Attributes::from([(String::new(), Bytes::new())]);
    });
    check(
        store.save_with("k", "x", nameless),
        InvalidInput,
        false,
        None,
    );
    let delimiter = ListRequest {
        delimiter: Some(Vec::new()),
        ..ListRequest::default()
    };
    check(store.list(delimiter).wait(), InvalidInput, false, None);
    store.assert_holds("k", "0123456789");
}
