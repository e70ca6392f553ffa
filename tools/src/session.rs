//! One run of the command: its options, its output, and the store it opens.

use std::ffi::OsStr;
use std::sync::Arc;

use graviton_engine::io::{BackendChoice, DirectIo, IoOptions};
use graviton_engine::policy::{CostOptimized, RackAware, Random};
use graviton_engine::port::{BinaryKey, ReplicationPolicy, StorageError};
use graviton_engine::store::{Access, CreateOptions, OpenOptions, Store};
use graviton_format::geometry::{AREA_SIZE, SEGMENT_COUNTS, SEGMENT_SIZES};

use crate::cli::{Geometry, Global, IoBackend, Policy};
use crate::failure::Failure;
use crate::keys::KeyText;
use crate::output::Output;
use crate::size::Human;

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
            replication: self.policy(),
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
        let store = self.open(self.open_options(access))?;
        self.use_store(store, |store| self.warned(store, work))
    }

    /// Opens the store for reading, whatever it has lost, does `work`, which tells what is wrong,
    /// and closes it. Returns also why the store does not open but for salvage, if it does not.
    pub fn inspect<T>(
        &self,
        work: impl FnOnce(&Store) -> Result<T, Failure>,
    ) -> Result<(T, Option<String>), Failure> {
        // What is wrong with a store that can be opened is judged as by whoever uses it.
        let options = |access| self.open_options(access);
        let path = &self.global.store;
        let (store, why) = match Store::open_with(path, options(Access::ReadOnly)) {
            Ok(store) => (store, None),
            Err(error) => (
                self.open(options(Access::Salvage))?,
                Some(error.to_string()),
            ),
        };
        Ok((self.use_store(store, work)?, why))
    }

    /// Opens the store for writing, does `work`, and closes it.
    pub fn write<T>(&self, work: impl FnOnce(&Store) -> Result<T, Failure>) -> Result<T, Failure> {
        self.write_with(self.open_options(Access::ReadWrite), work)
    }

    /// The same, though sectors may be missing that have the only copy of something.
    pub fn write_without<T>(
        &self,
        sectors: Vec<u16>,
        work: impl FnOnce(&Store) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let options = OpenOptions {
            accept_loss_of: sectors,
            ..self.open_options(Access::ReadWrite)
        };
        self.write_with(options, work)
    }

    fn write_with<T>(
        &self,
        options: OpenOptions,
        work: impl FnOnce(&Store) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        self.check_writing()?;
        let store = self.open(options)?;
        self.use_store(store, |store| self.warned(store, work))
    }

    /// Refuses what changes a store if it is only to be salvaged.
    pub fn check_writing(&self) -> Result<(), Failure> {
        if self.global.salvage {
            return Err(Failure::usage(
                "--salvage is for reading: this changes the store",
            ));
        }
        Ok(())
    }

    /// The policy of replication that was asked for.
    fn policy(&self) -> Option<Arc<dyn ReplicationPolicy>> {
        let policy: Arc<dyn ReplicationPolicy> = match self.global.policy? {
            Policy::Random => Arc::new(Random),
            Policy::RackAware => Arc::new(RackAware::default()),
            Policy::CostOptimized => Arc::new(CostOptimized::default()),
        };
        Some(policy)
    }

    /// Opens the store. Unless another policy is asked for, replicas go to different racks if sectors have any.
    fn open(&self, options: OpenOptions) -> Result<Store, Failure> {
        let store = self.open_as_it_is(options)?;
        let sectors = store.info().sectors;
        let has_racks = sectors.iter().any(|sector| sector.labels.rack.is_some());
        if has_racks && self.global.policy.is_none() {
            store.set_replication(Some(Arc::new(RackAware::default())));
        }
        Ok(store)
    }

    fn open_as_it_is(&self, options: OpenOptions) -> Result<Store, Failure> {
        Store::open_with(&self.global.store, options).map_err(|error| {
            let more = match error {
                StorageError::Corruption { .. } => {
                    "; changes that were acknowledged may be lost (graviton verify tells more, --salvage reads what is left)"
                }
                StorageError::TooFewSectors { .. } => {
                    " (graviton info tells more, --salvage reads what is left, sectors replace or remove --accept-loss goes on without one)"
                }
                StorageError::InvalidStore { ref path, .. } if path.ends_with("graviton.toml") => {
                    " (graviton sectors recover writes it anew from the sectors)"
                }
                _ => "",
            };
            let failure = Failure::from(error);
            match &failure {
                Failure::Error { message, .. } => {
                    let message = format!("{message}{more}");
                    failure.saying(message)
                }
                _ => failure,
            }
        })
    }

    /// Does `work`, and says on standard error that the store is damaged, if it is.
    fn warned<T>(
        &self,
        store: &Store,
        work: impl FnOnce(&Store) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let value = work(store)?;
        let health = store.info().health;
        if let Some(first) = health.first() {
            let more = match health.len() - 1 {
                0 => String::new(),
                more => format!(" (and {more} more)"),
            };
            self.output.note(
                format!(
                    "the store is not healthy: {first}{more}; graviton info and verify tell more"
                ),
                None,
            );
        }
        Ok(value)
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
        self.check_writing()?;
        let sector_size = geometry.sector_size.unwrap_or(sector_size);
        if let Some(segment_size) = geometry.segment_size {
            check_segments(segment_size, sector_size)?;
        }
        let options = CreateOptions {
            sectors: geometry.sectors.unwrap_or(1),
            replicas: geometry.replicas.unwrap_or(1),
            sector_size,
            segment_size: geometry.segment_size,
            block_size: geometry.block_size,
            open: self.open_options(Access::ReadWrite),
        };
        let store = Store::create(&self.global.store, options)?;
        if geometry.zero {
            store.zero_free_segments()?;
        }
        Ok(store)
    }
}

/// Says which of the two sizes does not suit the other. What is wrong with either alone is left for
/// the store to say.
fn check_segments(segment_size: u64, sector_size: u64) -> Result<(), Failure> {
    let (fewest, most) = SEGMENT_COUNTS;
    let room = sector_size.saturating_sub(2 * AREA_SIZE);
    let largest = room / u64::from(fewest);
    if !segment_size.is_power_of_two() || largest < SEGMENT_SIZES.0 {
        return Ok(());
    }
    let sizes = format!(
        "for a sector of {}, which has {fewest} to {most} segments",
        Human(sector_size)
    );
    if segment_size > largest {
        // Segments are powers of two.
        let fits = Human(1 << largest.ilog2());
        return Err(Failure::usage(format!(
            "--segment-size {} is too large {sizes}: at most {fits}",
            Human(segment_size)
        )));
    }
    if room / segment_size > most.into() {
        return Err(Failure::usage(format!(
            "--segment-size {} is too small {sizes}",
            Human(segment_size)
        )));
    }
    Ok(())
}
