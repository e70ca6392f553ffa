//! Seeded numbers, and payloads made of them.

use bytes::Bytes;
pub use graviton_engine::io::sim::Random;

/// `size` bytes that only the seed determines; different seeds have different bytes from the
/// eighth on.
#[must_use]
pub fn payload(seed: u64, size: usize) -> Bytes {
    let mut random = Random::new(seed);
    let mut bytes = Vec::with_capacity(size + 8);
    bytes.extend_from_slice(&seed.to_le_bytes());
    while bytes.len() < size {
        bytes.extend_from_slice(&random.number().to_le_bytes());
    }
    bytes.truncate(size);
    bytes.into()
}
