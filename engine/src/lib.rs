//! Graviton: an embedded, log-structured blob store.
// io
pub mod port;
