//! Graviton: an embedded, log-structured blob store.
pub mod io;
pub mod port;
