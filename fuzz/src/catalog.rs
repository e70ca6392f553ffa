//! The small files beside the sectors: the store file that names them, of which they hold copies, and the note of a
//! creation that is under way.

use std::path::Path;

use graviton_engine::io::sim::Sim;
use graviton_engine::port::{BlobStore, SectorState};
use graviton_engine::store::{Access, CreateOptions, KIB, MIB, OpenOptions, SectorInfo, Store};
use graviton_format::store_file::StoreFileCopy;
use graviton_tests::image::{DIRECTORY, SectorFile, original};
use graviton_tests::{all_keys, sim};

/// The rest is the note of a creation, not the store file.
const MODE_NOTE: u8 = 4;

/// The rest is what the copies of the store file in the sectors say, which is lost itself.
const MODE_COPIES: u8 = 8;

/// Puts the bytes after the first in the place of a store's file, and opens the store.
pub fn catalog(data: &[u8]) {
    let Some((&mode, bytes)) = data.split_first() else {
        return;
    };
    if mode & MODE_NOTE != 0 {
        return creation(bytes);
    }
    let original = original(mode & 1 != 0, mode & 2 != 0);
    let machine = &original.ages[1].machine;
    let whole = ids(&store(machine, original.block_size, Access::ReadOnly).expect("it is whole"));
    let sim = boot(machine, original.block_size);
    let file = Path::new(DIRECTORY).join("graviton.toml");
    let backend = sim.backend();
    let changed = if mode & MODE_COPIES == 0 {
        backend.replace_file(&file, bytes).expect("it is replaced");
        sim.image()
    } else {
        backend.remove_file(&file).expect("it is removed");
        let mut image = sim.image();
        copies(&mut image, &original.ages[1].sectors, bytes);
        let sim = boot(&image, original.block_size);
        let backend = sim.backend();
        if Store::recover_store_file_on(backend.as_ref(), DIRECTORY, &[]).is_err() {
            assert!(backend.read_file(&file, 1 << 20).is_err());
            return;
        }
        sim.image()
    };
    for access in [Access::ReadOnly, Access::Salvage, Access::ReadWrite] {
        let Some(store) = store(&changed, original.block_size, access) else {
            continue;
        };
        // Whatever way it was written, it named this store and its sectors, or fewer of them.
        let found = ids(&store);
        assert_eq!(found.0, whole.0);
        assert!(found.1.iter().all(|id| whole.1.contains(id)));
        if access != Access::Salvage {
            assert_eq!(found, whole);
        }
        let _ = all_keys(&store);
    }
}

/// Has the copies in all sectors say this, if it is a text and not too long; and be of the revision that the text
/// says it is, so that they are believed.
fn copies(image: &mut sim::Image, sectors: &[SectorFile], bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let revision = text
        .lines()
        .find_map(|line| line.strip_prefix("revision = "));
    let revision = revision.and_then(|digits| digits.trim().parse().ok());
    for (disk, sector) in sectors.iter().enumerate() {
        for address in sector.geometry.store_file_copies() {
            let revision = revision.unwrap_or(0);
            let copy = StoreFileCopy::encode(&sector.identity, address, revision, &text);
            let at = usize::try_from(address).expect("a small sector");
            if let Some(copy) = copy {
                image.edit(disk, at, &copy);
            }
        }
    }
}

/// Ids of a store and of its sectors that are there: of others it has what the store file says.
fn ids(store: &Store) -> (String, Vec<String>) {
    let info = store.info();
    let is_there =
        |sector: &&SectorInfo| !matches!(sector.state, SectorState::Absent | SectorState::Failed);
    let sectors = info.sectors.iter().filter(is_there);
    let ids = sectors.map(|sector| sector.sector_id.clone()).collect();
    (info.store_id, ids)
}

fn boot(machine: &sim::Image, block_size: u32) -> Sim {
    let sim = Sim::boot(machine, block_size, 0);
    sim.record(false);
    sim
}

fn store(machine: &sim::Image, block_size: u32, access: Access) -> Option<Store> {
    let options = OpenOptions {
        access,
        background: false,
        ..OpenOptions::default()
    };
    Store::open_on(boot(machine, block_size).backend(), DIRECTORY, options).ok()
}

/// Creates a store where a creation was cut short that left this note.
fn creation(note: &[u8]) {
    let sim = Sim::new(512, 1);
    sim.record(false);
    let backend = sim.backend();
    let file = Path::new(DIRECTORY).join("graviton.creating");
    backend.replace_file(&file, note).expect("it is written");
    let options = CreateOptions {
        sector_size: 4 * MIB,
        segment_size: Some(64 * KIB),
        block_size: Some(512),
        open: OpenOptions {
            background: false,
            ..OpenOptions::default()
        },
        ..CreateOptions::default()
    };
    if let Ok(store) = Store::create_on(backend, DIRECTORY, options) {
        let page = store.list(graviton_engine::port::ListRequest::default());
        assert!(page.wait().expect("it is listed").blobs.is_empty());
    }
}
