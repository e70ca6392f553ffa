//! The store file: `graviton.toml`, which names a store's sectors.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use graviton_format::FORMAT_VERSION;
use graviton_format::store_file::TEXT_MAX;
use graviton_format::structure::hex;
use serde::{Deserialize, Serialize};

use super::set::SectorSet;
use crate::io::{Backend, OpenAccess};
use crate::log::store_file::StoreFileText;
use crate::port::{Labels, PolicyError, Price, StorageError};

/// Its name in the store's directory.
pub const FILE: &str = "graviton.toml";
/// What a store file that was of no use is kept as, once it is written anew.
pub const DAMAGED_FILE: &str = "graviton.toml.damaged";
/// Name of the lock file beside it.
pub const LOCK_FILE: &str = "graviton.lock";
/// Stands beside sector files from before the first is made until the store file names them: what
/// it lists is left over from a creation that was cut short, and may be removed.
const CREATING_FILE: &str = "graviton.creating";
/// Stands beside the store file from before a sector's file is made until the store file names it, or from before
/// that names it no more until it is removed, and holds its name.
const ADDING_FILE: &str = "graviton.adding";
/// What it begins with.
const HEADING: &str =
    "# A Graviton store. Written by the engine, which keeps copies of it in the sectors.\n";
/// Bytes by which it may become longer by itself, and by each sector.
const SLACK: usize = 96;
const SLACK_OF_SECTOR: usize = 144;
/// A store file is never near this long.
pub const LENGTH_MAX: usize = 1 << 20;
/// Counting on from a higher revision, or LSN, might come to its end.
const COUNTER_MAX: u64 = 1 << 62;
/// The most sectors a store has.
pub const SECTORS_MAX: usize = 64;

/// What the store file says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Catalog {
    /// Version of the format of the sectors.
    pub format_version: u32,
    /// Id of the store, 32 hex digits.
    pub store_id: String,
    /// Counts the writes of the file.
    #[serde(default)]
    pub revision: u64,
    /// How many sectors are to have each blob.
    #[serde(default = "one")]
    pub replicas: u16,
    /// Something may lie in fewer sectors than that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub short: bool,
    /// The session that was being begun, 16 hex digits: sectors may say that they take part in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub beginning: Option<String>,
    /// The first LSN that was to be given out in the last session: no sector can have one that is much higher.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub lsn: u64,
    /// The sectors, by number.
    #[serde(rename = "sector")]
    pub sectors: Vec<CatalogSector>,
}

/// One sector of the store file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CatalogSector {
    /// Its number in the store.
    pub number: u16,
    /// Its file or block device; relative to the store's directory.
    pub file: PathBuf,
    /// Its id, 16 hex digits.
    pub id: String,
    /// The last session that it takes part in, 16 hex digits, if it ever did in one that is told from others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// Its replicas are to move elsewhere.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub draining: bool,
    /// The number of the sector that it came for, as long as that is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replaces: Option<u16>,
    /// It did not take part in the last one: what came about since lies in the others.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub behind: bool,
    /// It could not be read when it was left out: what it has below this LSN, and no other sector, was never
    /// acknowledged, and does not hold. 0: a loss was accepted since, and all it has may hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub void_below: Option<u64>,
    /// What fails together with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rack: Option<String>,
    /// What kind of storage it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tier: Option<String>,
    /// What it costs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    price: Option<CatalogPrice>,
}

/// What a sector costs: see [`Price`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CatalogPrice {
    storage: f64,
    read: f64,
    write: f64,
}

impl CatalogSector {
    /// A loss was accepted: what it has may hold, though others are without it.
    pub fn holds(&mut self) {
        self.void_below = self.behind.then_some(0);
    }

    /// A sector that has come in.
    pub fn new(number: u16, file: PathBuf, id: u64) -> Self {
        Self {
            number,
            file,
            id: hex_id(id),
            session: None,
            draining: false,
            replaces: None,
            behind: false,
            void_below: None,
            rack: None,
            tier: None,
            price: None,
        }
    }

    /// What its operator says of it.
    ///
    /// # Errors
    /// What is wrong with that.
    pub fn labels(&self) -> Result<Labels, PolicyError> {
        let price = |price: CatalogPrice| Price::new(price.storage, price.read, price.write);
        let labels = Labels {
            rack: self.rack.clone(),
            tier: self.tier.clone(),
            price: self.price.map(price).transpose()?,
        };
        labels.check()?;
        Ok(labels)
    }

    /// Whether the sector that says it takes part in `session` is as new as this one should be, and no older
    /// copy of it: `beginning` is the session that was being begun.
    pub fn is_of_session(&self, session: u64, beginning: Option<&str>) -> bool {
        let said = (session != 0).then(|| hex_id(session));
        said == self.session || (said.is_some() && said.as_deref() == beginning)
    }

    /// Says it anew.
    pub fn set_labels(&mut self, labels: &Labels) {
        self.rack.clone_from(&labels.rack);
        self.tier.clone_from(&labels.tier);
        self.price = labels.price.map(|price| CatalogPrice {
            storage: price.storage(),
            read: price.read(),
            write: price.write(),
        });
    }
}

fn one() -> u16 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_zero(lsn: &u64) -> bool {
    *lsn == 0
}

/// An id, or a session, as it stands in the store file.
pub fn hex_id(id: u64) -> String {
    format!("{id:016x}")
}

/// Name of a sector's file in the store's directory.
pub fn sector_file(number: u16) -> PathBuf {
    PathBuf::from(format!("sector-{number:03}.graviton"))
}

/// Makes sure that `directory` holds no store file.
///
/// # Errors
/// `AlreadyExists`.
pub fn check_absent(backend: &dyn Backend, directory: &Path) -> Result<(), StorageError> {
    let path = directory.join(FILE);
    match backend.read_file(&path, LENGTH_MAX) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => Err(StorageError::AlreadyExists { path }),
    }
}

/// Notes that the files of `sectors` sectors are about to be made; first removes what a creation
/// that was cut short has left. The directory must hold no store file, and the lock must be held.
///
/// # Errors
/// What the system reports.
pub fn begin_creation(backend: &dyn Backend, directory: &Path, sectors: u16) -> io::Result<()> {
    let note = directory.join(CREATING_FILE);
    match backend.read_file(&note, 16) {
        Ok(text) => {
            let count = std::str::from_utf8(&text)
                .ok()
                .and_then(|text| text.trim().parse::<u16>().ok())
                .unwrap_or(0);
            for number in 0..count.min(64) {
                backend.remove_file(&directory.join(sector_file(number)))?;
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // What is there now is not ours to overwrite, and must not be noted as such.
    if let Some(file) = first_sector_file(backend, directory) {
        backend.remove_file(&note)?;
        return Err(io::Error::new(
            io::ErrorKind::AlreadyExists,
            directory.join(file).display().to_string(),
        ));
    }
    backend.replace_file(&note, sectors.to_string().as_bytes())
}

/// Removes what a creation that failed has made: first the store file, which may be there though
/// its write was reported as failed.
///
/// # Errors
/// What the system reports.
pub fn remove_all(backend: &dyn Backend, directory: &Path, sectors: u16) -> io::Result<()> {
    backend.remove_file(&directory.join(FILE))?;
    (0..sectors).try_for_each(|number| backend.remove_file(&directory.join(sector_file(number))))
}

/// The store file is written, or everything that was made is removed again: nothing that is there is left over from a
/// creation.
///
/// # Errors
/// What the system reports.
pub fn end_creation(backend: &dyn Backend, directory: &Path) -> io::Result<()> {
    backend.remove_file(&directory.join(CREATING_FILE))
}

/// Notes that a sector is about to be made: its file, as the store file will name it, or that of a device.
///
/// # Errors
/// `AlreadyExists` if there is something; what the system reports.
pub fn begin_addition(
    backend: &dyn Backend,
    directory: &Path,
    file: &Path,
    is_device: bool,
) -> io::Result<()> {
    // What is there now is not ours to overwrite, and must not be noted as such.
    if !is_device && directory.join(file).symlink_metadata().is_ok() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    note_file(backend, directory, file)
}

/// Notes a sector's file that the store file does not name yet, or soon not any more.
///
/// # Errors
/// What the system reports.
pub fn note_file(backend: &dyn Backend, directory: &Path, file: &Path) -> io::Result<()> {
    let text = file.to_str().ok_or(io::ErrorKind::InvalidInput)?;
    backend.replace_file(&directory.join(ADDING_FILE), text.as_bytes())
}

/// The file that was noted, if one was.
///
/// # Errors
/// What the system reports.
pub fn noted_addition(backend: &dyn Backend, directory: &Path) -> io::Result<Option<PathBuf>> {
    match backend.read_file(&directory.join(ADDING_FILE), LENGTH_MAX) {
        Ok(text) => Ok(String::from_utf8(text).ok().map(PathBuf::from)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// The sector is named by the store file, or its file is removed.
///
/// # Errors
/// What the system reports.
pub fn end_addition(backend: &dyn Backend, directory: &Path) -> io::Result<()> {
    backend.remove_file(&directory.join(ADDING_FILE))
}

/// A file in `directory` that is named as a sector's.
fn first_sector_file(backend: &dyn Backend, directory: &Path) -> Option<PathBuf> {
    let mut names =
        (0..SECTORS_MAX).filter_map(|number| Some(sector_file(number.try_into().ok()?)));
    names.find(|name| {
        let path = directory.join(name);
        path.symlink_metadata().is_ok() || backend.open(&path, OpenAccess::ReadOnly).is_ok()
    })
}

/// There is no store file in `directory`, and so no store, unless there are sectors.
fn no_store_file(backend: &dyn Backend, directory: &Path) -> StorageError {
    let is_creation_cut_short = backend
        .read_file(&directory.join(CREATING_FILE), 16)
        .is_ok();
    match first_sector_file(backend, directory) {
        Some(file) if !is_creation_cut_short => StorageError::InvalidStore {
            path: directory.join(FILE),
            why: format!(
                "it is missing, but there is a {}: it can be recovered from the sectors",
                file.display()
            ),
        },
        _ => StorageError::NoStore {
            path: directory.to_owned(),
            why: format!("it has no {FILE}"),
        },
    }
}

#[derive(Deserialize)]
struct VersionOnly {
    format_version: u32,
}

impl Catalog {
    /// The store file of a store.
    pub fn new(store_id: &[u8; 16], replicas: u16, sectors: &[(PathBuf, u64)]) -> Self {
        let sectors = (0..).zip(sectors);
        let sectors =
            sectors.map(|(number, (file, id))| CatalogSector::new(number, file.clone(), *id));
        Self {
            format_version: FORMAT_VERSION,
            store_id: hex(store_id),
            revision: 0,
            lsn: 0,
            replicas,
            short: false,
            beginning: None,
            sectors: sectors.collect(),
        }
    }

    /// Reads the store file of the store in `directory`.
    ///
    /// # Errors
    /// `NoStore`, `UnsupportedVersion`, `InvalidStore`, `File`.
    pub fn read(backend: &dyn Backend, directory: &Path) -> Result<Self, StorageError> {
        let path = directory.join(FILE);
        let invalid = |why: String| StorageError::InvalidStore {
            path: path.clone(),
            why,
        };
        let bytes = backend
            .read_file(&path, LENGTH_MAX)
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                    no_store_file(backend, directory)
                }
                io::ErrorKind::InvalidData => invalid("too long for a store file".to_owned()),
                _ => StorageError::File {
                    operation: "read",
                    path: path.clone(),
                    source: Arc::new(error),
                },
            })?;
        let text =
            std::str::from_utf8(&bytes).map_err(|_| invalid("not a text file".to_owned()))?;
        Self::parse(text, &path)
    }

    /// What a store file says that is, or was, at `path`.
    ///
    /// # Errors
    /// `UnsupportedVersion`, `InvalidStore`.
    pub fn parse(text: &str, path: &Path) -> Result<Self, StorageError> {
        let invalid = |why: String| StorageError::InvalidStore {
            path: path.to_owned(),
            why,
        };
        let brief = |error: toml::de::Error| invalid(error.message().to_owned());
        // The version first: a newer file may have other fields.
        let VersionOnly { format_version } = toml::from_str(text).map_err(brief)?;
        if format_version > FORMAT_VERSION {
            return Err(StorageError::UnsupportedVersion {
                path: path.to_owned(),
                found: format_version,
                supported: FORMAT_VERSION,
            });
        }
        let catalog: Self = toml::from_str(text).map_err(brief)?;
        if catalog.sectors.is_empty() || catalog.sectors.len() > SECTORS_MAX {
            return Err(invalid(format!(
                "names {} sectors, must be 1 to {SECTORS_MAX}",
                catalog.sectors.len()
            )));
        }
        if catalog.replicas == 0 || usize::from(catalog.replicas) > SECTORS_MAX {
            return Err(invalid(format!(
                "says {} replicas, must be 1 to {SECTORS_MAX}",
                catalog.replicas
            )));
        }
        let void = catalog.sectors.iter().filter_map(|named| named.void_below);
        let highest = catalog.revision.max(catalog.lsn);
        let highest = void.fold(highest, u64::max);
        if highest > COUNTER_MAX {
            return Err(invalid(format!(
                "says revision, or LSN, {highest}, must be {COUNTER_MAX} at most"
            )));
        }
        let mut least = 0;
        for (place, sector) in catalog.sectors.iter().enumerate() {
            let mut before = catalog.sectors[..place].iter();
            if before.any(|other| other.file == sector.file || other.id == sector.id) {
                let file = sector.file.display();
                return Err(invalid(format!("names {file}, or its id, twice")));
            }
            let number = sector.number;
            if number < least || usize::from(number) >= SECTORS_MAX {
                return Err(invalid(format!(
                    "{}: number {number}, must be {least} to {}: they ascend",
                    sector.file.display(),
                    SECTORS_MAX - 1
                )));
            }
            least = number + 1;
            let labels = sector.labels();
            labels.map_err(|error| invalid(format!("{}: {error}", sector.file.display())))?;
        }
        Ok(catalog)
    }

    /// The sectors by number, and `None` for numbers below the highest that no sector has.
    pub fn by_number(&self) -> Vec<Option<&CatalogSector>> {
        let count = self.sectors.last().map_or(0, |sector| sector.number + 1);
        let mut sectors = vec![None; count.into()];
        for sector in &self.sectors {
            sectors[usize::from(sector.number)] = Some(sector);
        }
        sectors
    }

    /// The entry of a sector.
    pub fn sector_mut(&mut self, number: usize) -> Option<&mut CatalogSector> {
        let mut sectors = self.sectors.iter_mut();
        sectors.find(|sector| usize::from(sector.number) == number)
    }

    /// The numbers that sectors have.
    pub fn members(&self) -> SectorSet {
        let numbers = self.sectors.iter();
        numbers.map(|sector| usize::from(sector.number)).collect()
    }

    /// Those that take part again, and of which something may not hold.
    pub fn returned(&self) -> SectorSet {
        let back = |named: &&CatalogSector| named.void_below.is_some() && !named.behind;
        let back = self.sectors.iter().filter(back);
        back.map(|named| usize::from(named.number)).collect()
    }

    /// What the operator says of the sectors, by number.
    pub fn labels(&self) -> Vec<Labels> {
        let sectors = self.by_number().into_iter();
        let labels = sectors.map(|sector| sector.and_then(|sector| sector.labels().ok()));
        labels.map(Option::unwrap_or_default).collect()
    }

    /// Writes the store file, atomically and durably. Its revision is the next one then.
    ///
    /// # Errors
    /// `File`.
    pub fn write(&mut self, backend: &dyn Backend, directory: &Path) -> Result<(), StorageError> {
        self.revision += 1;
        let path = directory.join(FILE);
        backend
            .replace_file(&path, self.text().text.as_bytes())
            .map_err(|error| StorageError::File {
                operation: "write",
                path,
                source: Arc::new(error),
            })
    }

    /// The file as it is written.
    pub fn text(&self) -> StoreFileText {
        let fields = toml::to_string(self).expect("its fields can all be said in TOML");
        StoreFileText {
            revision: self.revision,
            text: format!("{HEADING}{fields}"),
        }
    }

    /// The file as it will be written next, if nothing changes.
    pub fn next_text(&self) -> StoreFileText {
        let mut next = self.clone();
        next.revision += 1;
        next.text()
    }

    /// Whether sectors have room for a copy of the file, whatever becomes of them.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub fn check_has_room(&self) -> Result<(), StorageError> {
        let length = self.text().text.len();
        let most = TEXT_MAX - SLACK - self.sectors.len() * SLACK_OF_SECTOR;
        match length > most {
            true => Err(StorageError::invalid(format!(
                "with these paths and labels of sectors the store file has {length} bytes, must be at most {most}"
            ))),
            false => Ok(()),
        }
    }
}
