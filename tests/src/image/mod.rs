//! Whole stores damaged or forged: what the fuzz target `store` does with its bytes.
//!
//! An input is a mode (one byte) and a list of edits to the sectors of a small store that was made
//! beforehand. The store lies on a simulated machine; it is then opened, read, verified, written,
//! compacted and opened again. Whatever the edits, nothing panics, hangs, or reads more at once
//! than there is. As long as they are accidents (no checksum was put right), more holds: a blob
//! that is read has bytes that were once put under its key, a store that opens for writing keeps
//! what it acknowledges, and it opens again.
//!
//! It needs neither nightly nor libFuzzer: `tests/image.rs` runs it over random inputs.

mod edits;
mod original;
mod watched;

use std::sync::Arc;

use bytes::Bytes;
use graviton_engine::io::sim::Sim;
use graviton_engine::port::{
    BinaryKey, BlobStore, CompleteOptions, DeleteOptions, ErrorKind, GetOptions, Holes,
    ListRequest, MutableObjectStore, PutOptions, Span, StorageError, TrackOptions, UploadOptions,
};
use graviton_engine::store::{Access, MIB, OpenOptions, Store};

pub use self::edits::{ACCIDENTS, EDIT_LEN, Edited, KINDS};
pub use self::original::{Age, DIRECTORY, Original, SectorFile, Snapshot, original};
use self::original::{key, options};
use self::watched::Watched;
use crate::between::BetweenBackend;
use crate::random::payload;

/// Edits of one input at most; the rest of it is not looked at.
const EDITS_MAX: usize = 16;

/// Bits of the mode that say how old the store is.
const MODE_AGE: u8 = 3;
/// Two sectors.
pub const MODE_TWO_SECTORS: u8 = 4;
/// Blocks of 4096 bytes.
pub const MODE_LARGE_BLOCKS: u8 = 8;
/// Opened for reading only first, instead of for salvage.
pub const MODE_READ_ONLY: u8 = 16;

/// The store that an input is about, and what its edits make of it.
#[must_use]
pub fn edited(data: &[u8]) -> Option<(&'static Original, usize, Edited<'static>)> {
    let (&mode, edits) = data.split_first()?;
    let original = original(mode & MODE_TWO_SECTORS != 0, mode & MODE_LARGE_BLOCKS != 0);
    let age = usize::from(mode & MODE_AGE);
    let mut edited = Edited::new(&original.ages[age], &original.ages[age.saturating_sub(1)]);
    for edit in edits.as_chunks().0.iter().take(EDITS_MAX) {
        edited.apply(*edit);
    }
    Some((original, age, edited))
}

/// Takes any bytes, and panics if something does not hold.
///
/// # Panics
/// If something does not hold.
pub fn store(data: &[u8]) {
    let Some((original, age, edited)) = edited(data) else {
        return;
    };
    let sim = edited.boot(&original.ages[age], original.block_size);
    let trial = Trial {
        original,
        forged: edited.forged,
        backend: BetweenBackend::new(sim.backend(), &Arc::new(Watched::default())),
        sim,
    };
    trial.run(data[0] & MODE_READ_ONLY != 0);
}

/// A store with edited sectors.
struct Trial {
    original: &'static Original,
    forged: bool,
    sim: Sim,
    backend: Arc<BetweenBackend<Watched>>,
}

impl Trial {
    fn open(&self, access: Access) -> Result<Store, StorageError> {
        let options = OpenOptions {
            access,
            ..options()
        };
        Store::open_on(
            Arc::<BetweenBackend<Watched>>::clone(&self.backend),
            DIRECTORY,
            options,
        )
    }

    fn run(&self, read_only: bool) {
        let before = self.sim.written();
        let access = if read_only {
            Access::ReadOnly
        } else {
            Access::Salvage
        };
        if let Ok(store) = self.open(access) {
            self.read_all(&store);
            let _ = store.verify(&mut |_| {});
        }
        assert!(
            before == self.sim.written(),
            "a store that was open for reading only was written to"
        );
        let Ok(store) = self.open(Access::ReadWrite) else {
            return;
        };
        let kept = self.write(&store);
        self.read_all(&store);
        let closed = store.close();
        let store = match self.open(Access::ReadWrite) {
            Ok(store) => store,
            Err(error) => {
                assert!(
                    self.forged || closed.is_err(),
                    "it does not open again: {error}"
                );
                return;
            }
        };
        self.read_all(&store);
        for (key, bytes) in kept {
            match store.get(&key, GetOptions::default()).wait() {
                Ok(blob) => assert!(
                    self.forged || blob.bytes == bytes,
                    "{key} has other bytes than were acknowledged"
                ),
                Err(error) => assert!(self.forged, "{key} was acknowledged and is lost: {error}"),
            }
        }
        let _ = store.verify(&mut |_| {});
    }

    /// Lists the store and reads every blob, whole and in part, and what is kept beside them.
    fn read_all(&self, store: &Store) {
        for upload in store.list_uploads(None, 100).wait().unwrap_or_default() {
            let _ = store.list_parts(upload.upload, 0, 100).wait();
        }
        let _ = store
            .ranges_elsewhere()
            .get_completed(&key("elsewhere"))
            .wait();
        let mut request = ListRequest {
            max: 7,
            ..ListRequest::default()
        };
        loop {
            let Ok(page) = store.list(request.clone()).wait() else {
                return;
            };
            for entry in page.blobs {
                // A forged size can be anything; a read of it all would take that much memory.
                if entry.size > 16 * MIB {
                    assert!(self.forged, "{} has {} bytes", entry.key, entry.size);
                    continue;
                }
                self.read(store, &entry.key);
            }
            if page.next.is_none() {
                return;
            }
            request.token = page.next;
        }
    }

    fn read(&self, store: &Store, key: &BinaryKey) {
        let _ = store.stat(key).wait();
        let options = |range| GetOptions {
            range,
            holes: Holes::Zeros,
            ..GetOptions::default()
        };
        let whole = store.get(key, options(None)).wait();
        let part = store.get(key, options(Some(10..5000))).wait();
        if self.forged {
            return;
        }
        match &whole {
            Ok(blob) if key.as_bytes().starts_with(b"new/") => assert!(!blob.bytes.is_empty()),
            Ok(blob) => {
                let known = self
                    .original
                    .history
                    .get(key)
                    .is_some_and(|values| values.contains(&blob.bytes));
                assert!(known, "{key} has bytes that were never put under it");
                if let Ok(part) = part {
                    assert!(
                        blob.bytes.slice(10..blob.bytes.len().min(5000)) == part.bytes,
                        "a part of {key} is not what the whole has there"
                    );
                }
            }
            Err(error) => assert!(
                matches!(error.kind(), ErrorKind::Corruption | ErrorKind::Io),
                "{key} is listed, and reading it says: {error}"
            ),
        }
    }

    /// Completes the upload that is open, and begins another; marks ranges; fills a hole.
    fn use_beside(&self, store: &Store) {
        for open in store.list_uploads(None, 100).wait().unwrap_or_default() {
            let part = store.upload_part(open.upload, 9, payload(9, 3000), PutOptions::default());
            let _ = part.wait();
            let parts = store.list_parts(open.upload, 0, 100).wait();
            let parts = parts.unwrap_or_default().into_iter();
            let parts: Vec<_> = parts.map(|part| (part.number, part.etag)).collect();
            let options = CompleteOptions::default();
            let completed = store.complete_upload(open.upload, &parts, options).wait();
            assert!(self.forged || completed.is_err() || !parts.is_empty());
        }
        // Its bytes are none that were put under its key before.
        let _ = store
            .delete(&key("uploaded"), DeleteOptions::default())
            .wait();
        let upload = store.start_upload(&key("uploaded"), UploadOptions::default());
        if let Ok(upload) = upload.wait() {
            let _ = store.abort_upload(upload).wait();
        }
        let ranges = Span::first(10_000).into();
        let tracker = store.ranges_elsewhere();
        let _ = tracker
            .mark_complete(&key("elsewhere"), &ranges, TrackOptions::default())
            .wait();
        let _ = tracker.forget(&key("elsewhere")).wait();
    }

    /// Writes to the store, tidies it up, and returns what it acknowledged.
    fn write(&self, store: &Store) -> Vec<(BinaryKey, Bytes)> {
        let mut kept = Vec::new();
        for (number, length) in [100, 5000, 90_000, 30_000].into_iter().enumerate() {
            let (key, bytes) = (
                key(&format!("new/{number}")),
                payload(number as u64, length),
            );
            if store
                .put(&key, bytes.clone(), PutOptions::default())
                .wait()
                .is_ok()
            {
                kept.push((key, bytes));
            }
        }
        let _ = store
            .delete(&key("middling"), DeleteOptions::default())
            .wait();
        self.use_beside(store);
        let _ = store.checkpoint();
        let _ = store.compact();
        // Bounded: a step that always finds something to do would be found here, not waited for.
        let steps = (0..1000)
            .take_while(|_| matches!(store.step(), Ok(true)))
            .count();
        assert!(steps < 1000, "maintenance never comes to an end");
        kept
    }
}
