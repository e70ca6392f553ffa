//! Graviton: an embedded, log-structured blob store.
//!
//! A program opens a [`store::Store`] in a directory of its own and keeps blobs in it by key,
//! through the [`port::BlobStore`] trait. Blobs lie in preallocated sector files, written through
//! io_uring direct I/O; a put that was acknowledged survives power loss; no byte is handed out that
//! does not verify.
//!
//! The floors, each of which knows only those below it: [`store`] (the ports over sectors), [`policy`]
//! (decisions), `log` (one sector), [`io`] (disks), [`memory`] (the ports in memory), [`port`] (traits
//! and types), and `sync` (locks and threads).
#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

#[allow(unsafe_code)]
pub mod io;
mod log;
pub mod memory;
pub mod policy;
pub mod port;
pub mod store;
#[cfg(any(test, feature = "testing"))]
#[doc(hidden)]
pub mod sync;
#[cfg(not(any(test, feature = "testing")))]
mod sync;
#[cfg(any(test, feature = "testing"))]
pub mod testing;

/// The program in the README compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;
