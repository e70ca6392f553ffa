//! A record on its way into a frame: encoded but for what depends on its place.

use bytes::Bytes;
use graviton_format::checksum::{
    chunk_checksums, stored_length, write_chunks, write_chunks_with_checksums,
};
use graviton_format::record::{RecordHeader, RecordKind, write_record_head};
use smallvec::SmallVec;

/// Payload of so many bytes or more is not copied before it is written: it stays where the caller has it. Less is
/// copied sooner than it is kept track of.
const APART_MIN: usize = 64;

const HEADER: usize = size_of::<RecordHeader>();

/// A record but for its LSN, its flags and what these and its address make of its checksums. The checksums of its
/// payload are made when it is: whatever happens to the payload from then on shows.
#[derive(Debug, Default)]
pub struct Encoded {
    /// The head. Behind it the chunks, their checksums unmasked, unless the payload is elsewhere.
    bytes: Vec<u8>,
    apart: Option<Apart>,
}

/// Payload that lies elsewhere.
#[derive(Debug)]
struct Apart {
    payload: Bytes,
    /// Of its chunks, unmasked; in memory of their own if there are several.
    checksums: SmallVec<[u64; 1]>,
}

impl Encoded {
    /// Encodes a record, with a copy of its payload.
    ///
    /// # Panics
    /// If key, metadata or payload are longer than those of a record can be.
    #[must_use]
    pub fn new(kind: RecordKind, key: &[u8], meta: &[u8], payload: &[u8], time: u64) -> Self {
        let stored = usize::try_from(stored_length(payload.len() as u64)).expect("it is in memory");
        let mut bytes = head(kind, key, meta, payload.len(), time, stored);
        let start = bytes.len();
        bytes.resize(start + stored, 0);
        write_chunks(payload, &mut bytes[start..]);
        Self { bytes, apart: None }
    }

    /// As [`Encoded::new`], with the payload itself if that is large.
    ///
    /// # Panics
    /// As [`Encoded::new`].
    #[must_use]
    pub fn of_shared(kind: RecordKind, key: &[u8], meta: &[u8], payload: Bytes, time: u64) -> Self {
        if payload.len() < APART_MIN {
            return Self::new(kind, key, meta, &payload, time);
        }
        Self {
            bytes: head(kind, key, meta, payload.len(), time, 0),
            apart: Some(Apart {
                checksums: chunk_checksums(&payload).collect(),
                payload,
            }),
        }
    }

    /// One that was read: its head, then chunks with unmasked checksums.
    #[must_use]
    pub fn of_stored(bytes: Vec<u8>) -> Self {
        Self { bytes, apart: None }
    }

    /// Bytes that it takes in a frame.
    #[must_use]
    pub fn length(&self) -> u64 {
        let apart = self.apart.as_ref();
        let apart = apart.map_or(0, |apart| stored_length(apart.payload.len() as u64));
        self.bytes.len() as u64 + apart
    }

    /// Writes other bytes of the same length over some of the key and the metadata.
    ///
    /// # Panics
    /// If there are not as many.
    pub fn amend(&mut self, offset: usize, bytes: &[u8]) {
        let start = HEADER + offset;
        self.bytes[start..start + bytes.len()].copy_from_slice(bytes);
    }

    /// Writes it: what is left to do is what [`graviton_format::record::seal_record`] does.
    ///
    /// # Panics
    /// If `target` is not [`Encoded::length`] bytes long.
    pub fn write(&self, target: &mut [u8]) {
        let (bytes, rest) = target.split_at_mut(self.bytes.len());
        bytes.copy_from_slice(&self.bytes);
        match &self.apart {
            None => assert!(rest.is_empty(), "there is nothing for {} bytes", rest.len()),
            Some(apart) => write_chunks_with_checksums(&apart.payload, &apart.checksums, rest),
        }
    }
}

/// A head, with room behind it.
fn head(
    kind: RecordKind,
    key: &[u8],
    meta: &[u8],
    payload: usize,
    time: u64,
    room: usize,
) -> Vec<u8> {
    let length = u32::try_from(payload).expect("a record's payload is smaller than a segment");
    let head = HEADER + key.len() + meta.len();
    let mut bytes = Vec::with_capacity(head + room);
    bytes.resize(head, 0);
    write_record_head(&mut bytes, kind, key, meta, length, time);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_same_record_wherever_its_payload_lies() {
        for length in [0, 1, APART_MIN - 1, APART_MIN, 100_000] {
            let payload: Vec<u8> = (0..length).map(|n| n.to_le_bytes()[0]).collect();
            let encode = (RecordKind::Blob, b"\0key", b"meta", 77);
            let (kind, key, meta, time) = encode;
            let copied = Encoded::new(kind, key, meta, &payload, time);
            let shared = Encoded::of_shared(kind, key, meta, payload.into(), time);
            let written = |record: &Encoded| {
                let length = usize::try_from(record.length()).expect("it is short");
                let mut target = vec![0xff; length];
                record.write(&mut target);
                target
            };
            assert_eq!(shared.apart.is_some(), length >= APART_MIN);
            assert_eq!(written(&copied), written(&shared));
            let again = Encoded::of_stored(written(&copied));
            assert_eq!(written(&again), written(&shared));
        }
    }

    #[test]
    fn key_and_metadata_are_amended_in_place() {
        let record = |key: &[u8]| Encoded::new(RecordKind::Blob, key, b"meta", b"payload", 1);
        let mut amended = record(b"\0one");
        amended.amend(1, b"two");
        assert_eq!(amended.bytes, record(b"\0two").bytes);
    }
}
