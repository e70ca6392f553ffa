//! The command's dump of damaged stores. Inputs are those of the target `store`.

use graviton_tests::image::edited;
use graviton_tests::memory_directory;
use graviton_tools::fuzzing::dump_all;

/// Files of the store.
const STORE_FILE: &str = "graviton.toml";

/// Dumps the store in every way. Without the store file, names tell its sectors.
pub fn dump(data: &[u8]) {
    let Some((_, _, edited)) = edited(data) else {
        return;
    };
    let directory = memory_directory();
    for (number, bytes) in edited.bytes().enumerate() {
        let file = directory
            .path()
            .join(format!("sector-{number:03}.graviton"));
        std::fs::write(file, bytes).expect("a sector is written");
    }
    assert!(!directory.path().join(STORE_FILE).exists());
    let verbose = data[0] & 16 != 0;
    dump_all(directory.path(), b"large", verbose);
}
