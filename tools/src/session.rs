//! One run of the command: its options, its output, and the store it opens.

use std::ffi::OsStr;

use graviton_engine::io::{BackendChoice, DirectIo, IoOptions};
use graviton_engine::port::{BinaryKey, StorageError};
use graviton_engine::store::{Access, CreateOptions, OpenOptions, Store};

use crate::cli::{Geometry, Global, IoBackend};
use crate::failure::Failure;
use crate::keys::KeyText;
use crate::output::Output;

/// What every command has at hand.
#[derive(Debug)]
pub struct Session {
    /// The options that hold for every command.
    pub global: Global,
    /// What it says.
    pub output: Output,
}

impl Session {
    /// Starts a run.
    pub fn new(global: Global) -> Self {
        let output = Output::new(global.json, global.verbose);
        Self { global, output }
    }

    /// How keys on the command line are read.
    pub fn key_text(&self) -> KeyText {
        if self.global.escaped {
            KeyText::Escaped
        } else {
            KeyText::Raw
        }
    }

    /// The key that an argument names.
    pub fn key(&self, argument: &OsStr) -> Result<BinaryKey, Failure> {
        self.key_text().key(argument)
    }

    /// The bytes (of a prefix, say) that an argument stands for.
    pub fn bytes(&self, argument: &OsStr) -> Result<Vec<u8>, Failure> {
        self.key_text().bytes(argument)
    }

    /// How stores are opened in this run.
    pub fn open_options(&self, access: Access) -> OpenOptions {
        let io = IoOptions {
            backend: match self.global.io {
                IoBackend::Auto => BackendChoice::Auto,
                IoBackend::Uring => BackendChoice::Uring,
                IoBackend::Syscall => BackendChoice::Syscall,
            },
            direct: if self.global.buffered {
                DirectIo::Never
            } else {
                DirectIo::Auto
            },
            ..IoOptions::default()
        };
        OpenOptions {
            access,
            io,
            ..OpenOptions::default()
        }
    }

    /// Opens the store for reading, does `work`, and closes it.
    pub fn read<T>(&self, work: impl FnOnce(&Store) -> Result<T, Failure>) -> Result<T, Failure> {
        let access = if self.global.salvage {
            Access::Salvage
        } else {
            Access::ReadOnly
        };
        self.use_store(self.open(access)?, |store| {
            let value = work(store)?;
            self.warn(store);
            Ok(value)
        })
    }

    /// Opens the store for reading, whatever it has lost, does `work`, which tells what is wrong,
    /// and closes it.
    pub fn inspect<T>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        self.use_store(self.open(Access::Salvage)?, work)
    }

    /// Opens the store for writing, does `work`, and closes it.
    pub fn write<T>(&self, work: impl FnOnce(&Store) -> Result<T, Failure>) -> Result<T, Failure> {
        self.use_store(self.open(Access::ReadWrite)?, |store| {
            let value = work(store)?;
            self.warn(store);
            Ok(value)
        })
    }

    fn open(&self, access: Access) -> Result<Store, Failure> {
        Store::open_with(&self.global.store, self.open_options(access)).map_err(|error| {
            let lost = matches!(error, StorageError::Corruption { .. });
            let mut failure = Failure::from(error);
            if let (true, Failure::Error { message, .. }) = (lost, &mut failure) {
                message.push_str(
                    "; changes that were acknowledged may be lost (graviton verify tells more, --salvage reads what is left)",
                );
            }
            failure
        })
    }

    /// Says on standard error that a store is damaged, if it is.
    fn warn(&self, store: &Store) {
        let health = store.info().health;
        if let Some(first) = health.first() {
            let more = match health.len() - 1 {
                0 => String::new(),
                more => format!(" (and {more} more)"),
            };
            self.output.note(
                format!("the store is damaged: {first}{more}; graviton verify tells more"),
                None,
            );
        }
    }

    /// Does `work` with an open store and closes it, whatever comes of the work.
    pub fn use_store<T>(
        &self,
        store: Store,
        work: impl FnOnce(&Store) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        if self.output.is_verbose()
            && let Some(notice) = store.info().notice
        {
            self.output.note(notice, None);
        }
        let outcome = work(&store);
        let closed = store.close();
        let value = outcome?;
        closed?;
        Ok(value)
    }

    /// Creates a store with sectors of `sector_size` bytes, unless the geometry says otherwise,
    /// and opens it.
    pub fn create(&self, geometry: &Geometry, sector_size: u64) -> Result<Store, Failure> {
        let options = CreateOptions {
            sectors: geometry.sectors.unwrap_or(1),
            sector_size: geometry.sector_size.unwrap_or(sector_size),
            segment_size: geometry.segment_size,
            block_size: geometry.block_size,
            open: self.open_options(Access::ReadWrite),
        };
        Ok(Store::create(&self.global.store, options)?)
    }
}
