//! What the clauses are written with.

use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::{Bytes, BytesMut};

use crate::io::sim::Random;
use crate::port::{
    BinaryKey, Blob, BlobInfo, BlobStore, CopyOptions, DeleteOptions, Durability, ETag, GetOptions,
    Holes, ListEntry, ListRequest, Precondition, PutOptions, PutOutcome, StorageError,
};

pub(super) type Store = Arc<dyn BlobStore>;

pub(super) const KIB: usize = 1 << 10;
pub(super) const MIB: usize = 1 << 20;

#[track_caller]
pub(super) fn key(bytes: impl AsRef<[u8]>) -> BinaryKey {
    BinaryKey::new(bytes).expect("the kit uses good keys")
}

/// Bytes that differ from seed to seed and from place to place, so that a misplaced or foreign
/// piece shows itself.
pub(super) fn payload(seed: u64, size: usize) -> Bytes {
    let mut random = Random::new(seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1));
    let mut bytes = BytesMut::with_capacity(size + 8);
    while bytes.len() < size {
        bytes.extend_from_slice(&random.number().to_le_bytes());
    }
    bytes.truncate(size);
    bytes.freeze()
}

/// Compares without printing megabytes.
#[track_caller]
pub(super) fn assert_bytes(actual: &[u8], expected: &[u8], what: &str) {
    if actual == expected {
        return;
    }
    let at = actual.iter().zip(expected).position(|(a, e)| a != e);
    let at = at.unwrap_or(actual.len().min(expected.len()));
    panic!(
        "{what}: got {} bytes, expected {}; they differ from byte {at} on",
        actual.len(),
        expected.len()
    );
}

/// The outcome must be an error of this pattern.
macro_rules! assert_fails {
    ($outcome:expr, $pattern:pat $(if $guard:expr)?) => {
        match $outcome {
            Err($pattern) $(if $guard)? => {}
            Err(error) => panic!(
                "expected {}, got {error:?}",
                stringify!($pattern $(if $guard)?)
            ),
            Ok(_) => panic!(
                "expected {}, but it succeeded",
                stringify!($pattern $(if $guard)?)
            ),
        }
    };
}
pub(super) use assert_fails;

pub(super) fn if_version(version: u64) -> PutOptions {
    put_if(Precondition::IfVersion(version))
}

pub(super) fn put_if(precondition: Precondition) -> PutOptions {
    PutOptions {
        precondition,
        ..PutOptions::default()
    }
}

pub(super) fn delete_if(precondition: Precondition) -> DeleteOptions {
    DeleteOptions {
        precondition,
        ..DeleteOptions::default()
    }
}

pub(super) fn get_if(precondition: Precondition) -> GetOptions {
    GetOptions {
        precondition,
        ..GetOptions::default()
    }
}

pub(super) fn part(range: Range<u64>) -> GetOptions {
    GetOptions {
        range: Some(range),
        ..GetOptions::default()
    }
}

/// Short forms of the calls, for clauses that are about something else.
pub(super) trait Short: BlobStore {
    #[track_caller]
    fn save(&self, name: impl AsRef<[u8]>, payload: impl Into<Bytes>) -> PutOutcome {
        self.save_with(name, payload, PutOptions::default())
            .expect("a plain put succeeds")
    }

    #[track_caller]
    fn save_with(
        &self,
        name: impl AsRef<[u8]>,
        payload: impl Into<Bytes>,
        options: PutOptions,
    ) -> Result<PutOutcome, StorageError> {
        let payload = payload.into();
        let size = payload.len() as u64;
        let outcome = self.put(&key(name), payload, options).wait()?;
        assert_eq!(outcome.size, size, "size in the outcome of a put");
        assert_eq!(outcome.etag, ETag::of_version(outcome.version));
        Ok(outcome)
    }

    /// Puts as a stream, waiting for each piece.
    #[track_caller]
    fn stream_in(
        &self,
        name: impl AsRef<[u8]>,
        pieces: impl IntoIterator<Item = Bytes>,
        options: PutOptions,
    ) -> Result<PutOutcome, StorageError> {
        let mut writer = self.put_stream(&key(name), options)?;
        let mut size = 0;
        for piece in pieces {
            size += piece.len() as u64;
            writer.write(piece).wait()?;
        }
        let outcome = writer.finish().wait()?;
        assert_eq!(outcome.size, size, "size in the outcome of a stream");
        assert_eq!(outcome.etag, ETag::of_version(outcome.version));
        Ok(outcome)
    }

    #[track_caller]
    fn load(&self, name: impl AsRef<[u8]>) -> Blob {
        let name = key(name);
        let blob = self.get(&name, GetOptions::default()).wait();
        let blob = blob.unwrap_or_else(|error| panic!("get of {name}: {error:?}"));
        assert_eq!(blob.bytes.len() as u64, blob.size, "{name}: bytes and size");
        assert_eq!(blob.range, 0..blob.size, "{name}: range of a whole get");
        assert_eq!(blob.etag, ETag::of_version(blob.version));
        blob
    }

    /// Reads as a stream, to its end.
    fn stream_out(
        &self,
        name: impl AsRef<[u8]>,
        options: GetOptions,
    ) -> Result<Bytes, StorageError> {
        let mut reader = self.get_stream(&key(name), options).wait()?;
        let mut bytes = BytesMut::new();
        while let Some(piece) = reader.next().wait()? {
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes.freeze())
    }

    #[track_caller]
    fn info(&self, name: impl AsRef<[u8]>) -> BlobInfo {
        let name = key(name);
        let info = self.stat(&name).wait();
        info.unwrap_or_else(|error| panic!("stat of {name}: {error:?}"))
    }

    /// Whether the key existed.
    #[track_caller]
    fn remove(&self, name: impl AsRef<[u8]>) -> bool {
        self.delete(&key(name), DeleteOptions::default())
            .wait()
            .expect("a plain delete succeeds")
            .existed
    }

    #[track_caller]
    fn duplicate(&self, source: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> PutOutcome {
        self.copy(&key(source), &key(target), CopyOptions::default())
            .wait()
            .expect("a plain copy succeeds")
    }

    #[track_caller]
    fn move_to(&self, source: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> PutOutcome {
        self.rename(&key(source), &key(target), CopyOptions::default())
            .wait()
            .expect("a plain rename succeeds")
    }

    /// The key holds these bytes, by every way of asking.
    #[track_caller]
    fn assert_holds(&self, name: impl AsRef<[u8]>, expected: impl AsRef<[u8]>) {
        let (name, expected) = (key(name), expected.as_ref());
        let blob = self.load(&name);
        assert_bytes(&blob.bytes, expected, &format!("{name}"));
        let info = self.info(&name);
        assert_eq!(info.key, name);
        assert_eq!(info.size, expected.len() as u64, "{name}: size in stat");
        assert_eq!(
            (info.version, info.etag),
            (blob.version, blob.etag),
            "{name}"
        );
        assert!(self.exists(&name).wait().expect("exists answers"), "{name}");
    }

    /// The key is absent, by every way of asking.
    #[track_caller]
    fn assert_absent(&self, name: impl AsRef<[u8]>) {
        let name = &key(name);
        let stat = self.stat(name).wait();
        assert_fails!(stat, StorageError::NotFound { key } if key == *name);
        let get = self.get(name, GetOptions::default()).wait();
        assert_fails!(get, StorageError::NotFound { key } if key == *name);
        let stream = self.get_stream(name, GetOptions::default()).wait();
        assert_fails!(stream, StorageError::NotFound { key } if key == *name);
        assert!(!self.exists(name).wait().expect("exists answers"), "{name}");
        let listed = self.list(ListRequest::prefix(name)).wait();
        let listed = listed.expect("list answers");
        assert!(listed.blobs.iter().all(|blob| blob.key != *name), "{name}");
    }

    /// All pages of a listing: blobs and common prefixes.
    #[track_caller]
    fn list_all(&self, mut request: ListRequest) -> (Vec<ListEntry>, Vec<Vec<u8>>) {
        let (mut blobs, mut prefixes) = (Vec::new(), Vec::new());
        loop {
            let page = self.list(request.clone()).wait().expect("list answers");
            let count = page.blobs.len() + page.common_prefixes.len();
            assert!(count <= request.max, "{count} on a page of {}", request.max);
            blobs.extend(page.blobs);
            prefixes.extend(page.common_prefixes);
            // Or it might never end.
            let ascending = blobs.is_sorted_by(|a: &ListEntry, b| a.key < b.key);
            assert!(ascending, "keys don't ascend over the pages");
            assert!(prefixes.is_sorted_by(|a, b| a < b), "prefixes don't ascend");
            if page.next.is_none() {
                return (blobs, prefixes);
            }
            assert!(count > 0, "an empty page that goes on");
            request.token = page.next;
        }
    }

    /// All keys of the store.
    #[track_caller]
    fn keys(&self) -> Vec<BinaryKey> {
        let (blobs, _) = self.list_all(ListRequest::default());
        blobs.into_iter().map(|blob| blob.key).collect()
    }

    /// Puts until the store's clock has gone on since `time` (or seems to stand still).
    #[track_caller]
    fn let_the_clock_tick(&self, time: SystemTime) {
        for _ in 0..5000 {
            let written = PutOptions {
                durability: Durability::Written,
                ..PutOptions::default()
            };
            self.save_with("tick", "", written).expect("a plain put");
            if self.info("tick").modified != time {
                break;
            }
        }
        assert!(self.remove("tick"));
    }

    /// Saves small blobs under these names; all are on their way before the first is waited for.
    #[track_caller]
    fn fill<K: AsRef<[u8]>>(&self, names: impl IntoIterator<Item = K>) {
        let puts: Vec<_> = names
            .into_iter()
            .map(|name| {
                let payload = Bytes::copy_from_slice(name.as_ref());
                self.put(&key(name), payload, PutOptions::default())
            })
            .collect();
        for put in puts {
            put.wait().expect("a plain put succeeds");
        }
    }
}

impl<S: BlobStore + ?Sized> Short for S {}

/// All bytes of a blob, zeros where it has holes.
pub(super) fn zeros(store: &(impl BlobStore + ?Sized), name: &str) -> Bytes {
    let options = GetOptions {
        holes: Holes::Zeros,
        ..GetOptions::default()
    };
    let read = store.get(&key(name), options).wait();
    read.expect("it is read").bytes
}
