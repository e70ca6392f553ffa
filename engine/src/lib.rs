//! Graviton: an embedded, log-structured blob store.
// io
pub mod memory;
pub mod port;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
