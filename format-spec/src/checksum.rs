//! Checksums, and what they bind.
//!
//! Headers carry a CRC-32 (IEEE) that is computed over the sector's identity and the header's
//! address first, and over the header after: a header that was moved, or that belongs to another
//! sector or store, does not verify \[F-2\]. Payload carries, per chunk, `xxh3_64(payload) ^ mask`,
//! where the mask is made of the identity, the chunk's address and the record's LSN \[F-3\]. The hash
//! of the payload itself stays the same wherever compaction moves it, so it is computed once, when
//! the payload arrives, and protects it from then on.

use std::ops::Range;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::FormatError;

/// Payload bytes of a full chunk.
pub const CHUNK_PAYLOAD: usize = CHUNK_SIZE - CHUNK_CHECKSUM;
/// Bytes of a full chunk on disk: its payload, then its checksum.
pub const CHUNK_SIZE: usize = 4096;
/// Bytes of a chunk's checksum.
pub const CHUNK_CHECKSUM: usize = 8;

/// Which sector of which store bytes belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Identity {
    /// The store's random id.
    pub store_id: [u8; 16],
    /// The sector's random id.
    pub sector_id: u64,
}

impl Identity {
    /// What binds to it, and to an address or LSN.
    fn bound_to(&self, number: u64) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes[..16].copy_from_slice(&self.store_id);
        bytes[16..24].copy_from_slice(&self.sector_id.to_le_bytes());
        bytes[24..].copy_from_slice(&number.to_le_bytes());
        bytes
    }

    /// The checksum of a header at `address`: CRC-32 over identity, address and `parts` \[F-2\].
    #[must_use]
    pub fn header_checksum(&self, address: u64, parts: &[&[u8]]) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.bound_to(address));
        for part in parts {
            hasher.update(part);
        }
        hasher.finalize()
    }

    /// What masks the chunk checksums of a record \[F-3\].
    #[must_use]
    pub fn chunk_mask(&self, lsn: u64) -> ChunkMask {
        ChunkMask {
            seed: xxh3_64(&self.bound_to(lsn)),
        }
    }
}

/// Masks chunk checksums with identity, LSN and address. See [`Identity::chunk_mask`].
#[derive(Debug, Clone, Copy)]
pub struct ChunkMask {
    seed: u64,
}

impl ChunkMask {
    fn at(self, address: u64) -> u64 {
        xxh3_64_with_seed(&address.to_le_bytes(), self.seed)
    }
}

/// The unmasked checksum of a chunk's payload.
#[must_use]
pub fn payload_hash(payload: &[u8]) -> u64 {
    xxh3_64(payload)
}

/// Bytes that `length` bytes of payload take on disk, chunk checksums included.
#[must_use]
pub const fn stored_length(length: u64) -> u64 {
    length + length.div_ceil(CHUNK_PAYLOAD as u64) * CHUNK_CHECKSUM as u64
}

/// Writes `payload` as chunks into `target`, their checksums unmasked. [`mask_chunks`] finishes
/// them once their place and LSN are known.
///
/// # Panics
/// If `target` is not [`stored_length`] of the payload's length.
pub fn write_chunks(payload: &[u8], target: &mut [u8]) {
    assert_eq!(target.len() as u64, stored_length(payload.len() as u64));
    for (piece, chunk) in chunks(payload).zip(target.chunks_mut(CHUNK_SIZE)) {
        write_chunk(piece, payload_hash(piece), chunk);
    }
}

/// The checksums of the chunks that `payload` makes, unmasked.
pub fn chunk_checksums(payload: &[u8]) -> impl Iterator<Item = u64> + '_ {
    chunks(payload).map(payload_hash)
}

/// As [`write_chunks`], with checksums that [`chunk_checksums`] made before.
///
/// # Panics
/// If there are not as many as chunks, or `target` is not [`stored_length`] of the payload's length.
pub fn write_chunks_with_checksums(payload: &[u8], checksums: &[u64], target: &mut [u8]) {
    assert_eq!(target.len() as u64, stored_length(payload.len() as u64));
    assert_eq!(chunks(payload).len(), checksums.len());
    let chunks = chunks(payload).zip(checksums);
    for ((piece, checksum), chunk) in chunks.zip(target.chunks_mut(CHUNK_SIZE)) {
        write_chunk(piece, *checksum, chunk);
    }
}

fn chunks(payload: &[u8]) -> std::slice::Chunks<'_, u8> {
    payload.chunks(CHUNK_PAYLOAD)
}

fn write_chunk(payload: &[u8], checksum: u64, chunk: &mut [u8]) {
    let (stored, end) = chunk.split_at_mut(payload.len());
    stored.copy_from_slice(payload);
    end.copy_from_slice(&checksum.to_le_bytes());
}

/// Masks (or unmasks) the checksums of the chunks in `stored`, the first of which lies at `address`.
///
/// # Panics
/// If a chunk is shorter than its checksum.
pub fn mask_chunks(stored: &mut [u8], mask: ChunkMask, mut address: u64) {
    for chunk in stored.chunks_mut(CHUNK_SIZE) {
        let length = chunk.len();
        let checksum = &mut chunk[length - CHUNK_CHECKSUM..];
        let masked = read_u64(checksum) ^ mask.at(address);
        checksum.copy_from_slice(&masked.to_le_bytes());
        // No sector is that long, but nothing here panics.
        address = address.wrapping_add(CHUNK_SIZE as u64);
    }
}

fn read_u64(bytes: &[u8]) -> u64 {
    let mut value = [0; 8];
    value.copy_from_slice(bytes);
    u64::from_le_bytes(value)
}

/// Verifies one stored chunk at `address` and returns its payload's length.
///
/// # Errors
/// [`FormatError::Checksum`], or [`FormatError::Truncated`] for a chunk without payload.
pub fn verify_chunk(chunk: &[u8], mask: ChunkMask, address: u64) -> Result<usize, FormatError> {
    if chunk.len() <= CHUNK_CHECKSUM {
        return Err(FormatError::Truncated {
            structure: "chunk",
            needed: CHUNK_CHECKSUM + 1,
            found: chunk.len(),
        });
    }
    let (payload, checksum) = chunk.split_at(chunk.len() - CHUNK_CHECKSUM);
    let stored = read_u64(checksum);
    let computed = payload_hash(payload) ^ mask.at(address);
    if stored == computed {
        Ok(payload.len())
    } else {
        Err(FormatError::Checksum {
            structure: "chunk",
            stored,
            computed,
        })
    }
}

/// Verifies the chunks in `stored`, the first of which lies at `address`, and moves their payload
/// together to the front of `stored`. Returns the payload's length.
///
/// # Errors
/// The offset in `stored` of the first chunk that is wrong, and what is wrong with it.
pub fn gather_chunks(
    stored: &mut [u8],
    mask: ChunkMask,
    address: u64,
) -> Result<usize, (usize, FormatError)> {
    gather_chunks_to(stored, 0..stored.len(), 0, mask, address)
}

/// As [`gather_chunks`], of the part `stored` of `bytes`; the payload goes to `target`. In an error the offset is that
/// in the part.
///
/// # Errors
/// As [`gather_chunks`].
///
/// # Panics
/// If `stored` is no part of `bytes`, or begins before `target`.
pub fn gather_chunks_to(
    bytes: &mut [u8],
    stored: Range<usize>,
    target: usize,
    mask: ChunkMask,
    address: u64,
) -> Result<usize, (usize, FormatError)> {
    assert!(target <= stored.start, "a chunk is not moved over the next");
    let mut gathered = target;
    for start in stored.clone().step_by(CHUNK_SIZE) {
        let end = stored.end.min(start + CHUNK_SIZE);
        let offset = start - stored.start;
        let place = address.wrapping_add(offset as u64);
        let verified = verify_chunk(&bytes[start..end], mask, place);
        let length = verified.map_err(|error| (offset, error))?;
        if gathered != start {
            bytes.copy_within(start..start + length, gathered);
        }
        gathered += length;
    }
    Ok(gathered - target)
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: Identity = Identity {
        store_id: [7; 16],
        sector_id: 9,
    };

    #[test]
    fn chunks_round_trip_at_every_border() {
        for length in [0, 1, 4087, 4088, 4089, 8176, 8177, 65536] {
            let payload: Vec<u8> = (0..length).map(|at| (at % 251) as u8).collect();
            let mut stored = vec![0; stored_length(length as u64) as usize];
            write_chunks(&payload, &mut stored);
            mask_chunks(&mut stored, IDENTITY.chunk_mask(3), 512);
            let mut moved = stored.clone();
            assert_eq!(
                gather_chunks(&mut stored, IDENTITY.chunk_mask(3), 512),
                Ok(length)
            );
            assert_eq!(stored[..length], payload);
            // Moving a record unmasks and masks again; the payload's own hash stays.
            mask_chunks(&mut moved, IDENTITY.chunk_mask(3), 512);
            mask_chunks(&mut moved, IDENTITY.chunk_mask(3), 1024);
            assert_eq!(
                gather_chunks(&mut moved, IDENTITY.chunk_mask(3), 1024),
                Ok(length)
            );
        }
    }

    #[test]
    fn a_chunk_is_bound_to_place_version_and_sector() {
        let mut stored = [0; 108];
        write_chunks(&[1; 100], &mut stored);
        mask_chunks(&mut stored, IDENTITY.chunk_mask(3), 512);
        assert!(verify_chunk(&stored, IDENTITY.chunk_mask(3), 512).is_ok());
        assert!(verify_chunk(&stored, IDENTITY.chunk_mask(4), 512).is_err());
        assert!(verify_chunk(&stored, IDENTITY.chunk_mask(3), 1024).is_err());
        let other = Identity {
            sector_id: 10,
            ..IDENTITY
        };
        assert!(verify_chunk(&stored, other.chunk_mask(3), 512).is_err());
        for bit in 0..stored.len() * 8 {
            let mut flipped = stored;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(verify_chunk(&flipped, IDENTITY.chunk_mask(3), 512).is_err());
        }
    }

    #[test]
    fn zeros_are_no_chunk() {
        for length in [0, 8, 9, 108, 4096] {
            assert!(verify_chunk(&vec![0; length], IDENTITY.chunk_mask(0), 0).is_err());
        }
    }
}
