//! A store file that was lost is written anew, from the copies of it that the sectors have \[F-71\].

use std::io;
use std::path::{Path, PathBuf};

use graviton_format::structure::hex;

use super::catalog::{self, Catalog, SECTORS_MAX, sector_file};
use super::info::{FoundSector, RecoveredStoreFile};
use super::inner::{file_error, take_lock};
use super::options::Access;
use super::recovery::{invalid, open_disk};
use crate::io::{Backend, OpenAccess};
use crate::log::Sector;
use crate::log::store_file::{StoreFileText, read_copy};
use crate::port::StorageError;
use crate::port::op::wait_for;

/// A sector that was found.
struct Found {
    /// As a store file in the store's directory would name it.
    file: PathBuf,
    store_id: String,
    id: String,
    session: u64,
    /// The newest whole copy in it.
    copy: Option<StoreFileText>,
    _sector: Sector,
}

/// See [`Store::recover_store_file`](super::Store::recover_store_file).
pub fn recover_store_file(
    backend: &dyn Backend,
    directory: &Path,
    files: &[PathBuf],
) -> Result<RecoveredStoreFile, StorageError> {
    check_lost(backend, directory)?;
    // Nobody opens them until it is written: each is locked.
    let mut found = Vec::new();
    for file in files {
        look_at(backend, directory, file, &mut found)?;
    }
    for number in 0..SECTORS_MAX {
        let number = u16::try_from(number).unwrap_or(u16::MAX);
        look_for(backend, directory, &sector_file(number), &mut found)?;
    }
    // Others lie where they were.
    for named in newest(directory, &found)?.sectors {
        if !found.iter().any(|sector| sector.id == named.id) {
            look_for(backend, directory, &named.file, &mut found)?;
        }
    }
    backend
        .create_directory(directory)
        .map_err(file_error("create", directory))?;
    let _lock = take_lock(backend, directory, Access::ReadWrite)?;
    check_lost(backend, directory)?;
    let mut recovered = newest(directory, &found)?;
    let mut report = Vec::new();
    for named in &mut recovered.sectors {
        let mut sectors = found.iter().filter(|sector| sector.id == named.id);
        let sector = sectors.next();
        if let (Some(one), Some(other)) = (sector, sectors.next()) {
            return Err(invalid(
                &directory.join(&one.file),
                format!("is the same sector as {}", other.file.display()),
            ));
        }
        if let Some(sector) = sector {
            named.file.clone_from(&sector.file);
        }
        let is_as_left = sector.is_some_and(|sector| {
            named.is_of_session(sector.session, recovered.beginning.as_deref())
        });
        // One that has taken part since would have another session.
        named.behind &= sector.is_some_and(|sector| named.is_of_session(sector.session, None));
        report.push(FoundSector {
            number: named.number,
            path: directory.join(&named.file),
            is_there: sector.is_some(),
            is_as_left,
            is_behind: named.behind,
        });
    }
    // Nobody knows what was told to one sector alone since.
    recovered.short |= recovered.sectors.len() > 1;
    let revision = recovered.revision;
    keep_what_was_there(backend, directory)?;
    // What they are about is not certain any more: it may have become part of the store.
    catalog::end_creation(backend, directory)
        .and_then(|()| catalog::end_addition(backend, directory))
        .map_err(file_error("tidy up", directory))?;
    recovered.write(backend, directory)?;
    let named = |id: &String| recovered.sectors.iter().any(|named| named.id == *id);
    Ok(RecoveredStoreFile {
        revision,
        sectors: report,
        unnamed: found
            .into_iter()
            .filter(|sector| !named(&sector.id))
            .map(|sector| directory.join(sector.file))
            .collect(),
    })
}

/// There is nothing to be written anew where a store file is good.
fn check_lost(backend: &dyn Backend, directory: &Path) -> Result<(), StorageError> {
    match Catalog::read(backend, directory) {
        Ok(_) => Err(StorageError::AlreadyExists {
            path: directory.join(catalog::FILE),
        }),
        Err(StorageError::NoStore { .. } | StorageError::InvalidStore { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// A store file that is of no use is kept beside the new one.
fn keep_what_was_there(backend: &dyn Backend, directory: &Path) -> Result<(), StorageError> {
    let path = directory.join(catalog::FILE);
    let bytes = match backend.read_file(&path, catalog::LENGTH_MAX) {
        Ok(bytes) if bytes.is_empty() => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        bytes => bytes.map_err(file_error("read", &path))?,
    };
    let names = (1..).map(|number: u32| match number {
        1 => PathBuf::from(catalog::DAMAGED_FILE),
        _ => PathBuf::from(format!("{}-{number}", catalog::DAMAGED_FILE)),
    });
    for kept in names.map(|name| directory.join(name)) {
        match backend.read_file(&kept, catalog::LENGTH_MAX) {
            Ok(earlier) if earlier == bytes => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let written = backend.replace_file(&kept, &bytes);
                return written.map_err(file_error("write", &kept));
            }
            _ => {}
        }
    }
    Ok(())
}

/// What the newest of the copies says.
fn newest(directory: &Path, found: &[Found]) -> Result<Catalog, StorageError> {
    let mut newest: Option<(&Found, &StoreFileText)> = None;
    let mut first: Option<&Found> = None;
    for sector in found {
        let store = first.get_or_insert(sector);
        if sector.store_id != store.store_id {
            return Err(invalid(
                &directory.join(&sector.file),
                format!(
                    "belongs to store {}, {} to {}",
                    sector.store_id,
                    store.file.display(),
                    store.store_id
                ),
            ));
        }
        let Some(copy) = &sector.copy else {
            continue;
        };
        match newest {
            Some((_, other)) if other.revision > copy.revision || other == copy => {}
            Some((one, other)) if other.revision == copy.revision => {
                return Err(invalid(
                    &directory.join(&sector.file),
                    format!(
                        "its copy of the store file is another than that in {}, of the same revision {}",
                        one.file.display(),
                        copy.revision
                    ),
                ));
            }
            _ => newest = Some((sector, copy)),
        }
    }
    let Some((sector, copy)) = newest else {
        return Err(StorageError::NoStore {
            path: directory.to_owned(),
            why: match first {
                None => "no sectors were found for it".to_owned(),
                Some(_) => "no sector has a good copy of the store file".to_owned(),
            },
        });
    };
    let path = directory.join(&sector.file);
    let catalog = Catalog::parse(&copy.text, &path)?;
    if catalog.store_id != sector.store_id || catalog.revision != copy.revision {
        let what = "its copy of the store file is of another store, or of another revision";
        return Err(invalid(&path, what.to_owned()));
    }
    Ok(catalog)
}

/// Looks at a file which may be a sector.
fn look_for(
    backend: &dyn Backend,
    directory: &Path,
    file: &Path,
    found: &mut Vec<Found>,
) -> Result<(), StorageError> {
    match look_at(backend, directory, file, found) {
        Err(error @ (StorageError::UnsupportedVersion { .. } | StorageError::Locked { .. })) => {
            Err(error)
        }
        _ => Ok(()),
    }
}

/// Looks at a file which is said to be a sector.
fn look_at(
    backend: &dyn Backend,
    directory: &Path,
    file: &Path,
    found: &mut Vec<Found>,
) -> Result<(), StorageError> {
    let file = &named_in(directory, file);
    let path = directory.join(file);
    let is_known =
        |known: &Found| known.file == *file || is_same_file(directory, &known.file, file);
    if found.iter().any(is_known) {
        return Ok(());
    }
    if file.to_str().is_none() {
        return Err(invalid(
            &path,
            "the store file holds paths in UTF-8".to_owned(),
        ));
    }
    let disk = open_disk(backend, &path, OpenAccess::ReadOnly)?;
    let (sector, _) = wait_for(Sector::open(disk, 0))?;
    let mut copy: Option<StoreFileText> = None;
    for address in sector.geometry().store_file_copies() {
        if let Ok(read) = wait_for(read_copy(&sector, address))
            && copy
                .as_ref()
                .is_none_or(|copy| copy.revision < read.revision)
        {
            copy = Some(read);
        }
    }
    let identity = sector.identity();
    found.push(Found {
        file: file.to_owned(),
        store_id: hex(&identity.store_id),
        id: catalog::hex_id(identity.sector_id),
        session: sector.session(),
        copy,
        _sector: sector,
    });
    Ok(())
}

/// How the store file names a file: as it is called in the store's directory, if it lies there.
fn named_in(directory: &Path, file: &Path) -> PathBuf {
    let [within, whole] =
        [directory.to_owned(), directory.join(file)].map(|path| path.canonicalize());
    let named = match (&within, &whole) {
        (Ok(within), Ok(whole)) => whole.strip_prefix(within),
        _ => file.strip_prefix(directory),
    };
    named.unwrap_or(file).to_owned()
}

/// Whether two paths lead to one file.
fn is_same_file(directory: &Path, one: &Path, other: &Path) -> bool {
    let [one, other] = [one, other].map(|file| directory.join(file).canonicalize());
    matches!((one, other), (Ok(one), Ok(other)) if one == other)
}
