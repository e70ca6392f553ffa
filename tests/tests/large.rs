//! Many small blobs. `GRAVITON_BLOBS` says how many; run by hand, in release, it shows what a
//! million cost in time, memory and space.

use std::time::Instant;

use graviton_engine::port::{
    Batch, BinaryKey, BlobStore, DeleteOptions, GetOptions, ListRequest, StorageError,
};
use graviton_engine::store::{CreateOptions, MIB, Store, StoreInfo};
use graviton_tests::random::Random;
use graviton_tests::{all_keys, test_directory};

const BATCH: u64 = 1000;

fn count() -> u64 {
    let asked = std::env::var("GRAVITON_BLOBS");
    asked
        .ok()
        .and_then(|count| count.parse().ok())
        .unwrap_or(50_000)
}

fn key(number: u64) -> BinaryKey {
    // Not in the order of their keys: as they would come.
    let scattered = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    BinaryKey::new(format!("{:02x}/{number:08}", scattered >> 56)).expect("a good key")
}

fn content(number: u64) -> Vec<u8> {
    let mut random = Random::new(number);
    let length = 100 + random.below(901);
    random.bytes(length)
}

fn adds_up(info: &StoreInfo) {
    let space = info.space;
    assert_eq!(
        space.metadata + space.live + space.garbage + space.free,
        space.total
    );
    assert_eq!(info.health, Vec::<String>::new());
}

/// The most memory this process ever had, as the system tells it.
fn peak_memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.map_or_else(|| "unknown".to_owned(), |line| line.trim().to_owned())
}

#[test]
fn many_small_blobs() {
    let count = count();
    let directory = test_directory();
    let path = directory.path().join("store");
    let sector_size = (count * 1200).max(64 * MIB);
    let store = Store::create(
        &path,
        CreateOptions {
            sector_size,
            ..CreateOptions::default()
        },
    );
    let store = store.expect("a store can be made");
    let begun = Instant::now();
    let mut logical = 0;
    for start in (0..count).step_by(usize::try_from(BATCH).expect("small")) {
        let mut batch = Batch::new();
        for number in start..count.min(start + BATCH) {
            let content = content(number);
            logical += content.len() as u64;
            batch.put(key(number), content);
        }
        store.batch(batch).wait().expect("a batch of puts");
    }
    eprintln!(
        "put {count} blobs of {logical} bytes in {:.2?}",
        begun.elapsed()
    );
    let check_figures = |store: &Store| {
        let info = store.info();
        adds_up(&info);
        assert_eq!((info.blobs, info.logical_bytes), (count, logical));
        info
    };
    let info = check_figures(&store);
    eprintln!(
        "index {} bytes, {:?}, peak memory {}",
        info.index_bytes,
        info.space,
        peak_memory()
    );
    let begun = Instant::now();
    store.close().expect("it closes");
    eprintln!("closed in {:.2?}", begun.elapsed());

    let begun = Instant::now();
    let store = Store::open(&path).expect("it opens");
    eprintln!("opened in {:.2?}", begun.elapsed());
    let info = check_figures(&store);
    eprintln!(
        "index {} bytes, peak memory {}",
        info.index_bytes,
        peak_memory()
    );
    let begun = Instant::now();
    for number in 0..count {
        let blob = store
            .get(&key(number), GetOptions::default())
            .wait()
            .expect("it is there");
        assert!(
            blob.bytes == content(number),
            "blob {number} has other bytes"
        );
    }
    eprintln!("got every one, one by one, in {:.2?}", begun.elapsed());
    let begun = Instant::now();
    let keys = all_keys(&store).expect("they can be listed");
    eprintln!("listed {} keys in {:.2?}", keys.len(), begun.elapsed());
    assert!(keys.is_sorted() && keys.len() as u64 == count);

    // Every other one goes, and the space comes back.
    let begun = Instant::now();
    for start in (0..count).step_by(usize::try_from(BATCH).expect("small")) {
        let mut batch = Batch::new();
        (start..count.min(start + BATCH))
            .step_by(2)
            .for_each(|number| {
                batch.delete(key(number));
            });
        store.batch(batch).wait().expect("a batch of deletes");
    }
    eprintln!("deleted half in {:.2?}", begun.elapsed());
    assert_eq!(store.info().blobs, count / 2);
    let gone = store.get(&key(0), GetOptions::default()).wait();
    assert!(matches!(gone, Err(StorageError::NotFound { .. })));
    let begun = Instant::now();
    let report = store.compact().expect("it compacts");
    eprintln!("compacted in {:.2?}: {report:?}", begun.elapsed());
    adds_up(&store.info());
    let begun = Instant::now();
    let checkpoints = store.checkpoint().expect("a checkpoint");
    eprintln!("checkpoint in {:.2?}: {checkpoints:?}", begun.elapsed());
    drop(store);
    let begun = Instant::now();
    let store = Store::open(&path).expect("it opens");
    eprintln!(
        "opened in {:.2?}, peak memory {}",
        begun.elapsed(),
        peak_memory()
    );
    adds_up(&store.info());
    for number in (0..count).step_by(97) {
        let got = store.get(&key(number), GetOptions::default()).wait();
        match got {
            Ok(blob) => assert!(number % 2 == 1 && blob.bytes == content(number)),
            Err(error) => assert!(number % 2 == 0, "{number}: {error}"),
        }
    }
    let report = store.verify(&mut |_| {}).expect("it is read");
    assert_eq!(report.findings, Vec::new());
    assert_eq!(report.blobs, count / 2);
}

#[test]
fn the_longest_and_the_oddest_keys() {
    let directory = test_directory();
    let path = directory.path().join("store");
    let options = CreateOptions {
        sector_size: 32 * MIB,
        ..CreateOptions::default()
    };
    let store = Store::create(&path, options).expect("a store can be made");
    let mut random = Random::new(4);
    let mut keys: Vec<Vec<u8>> = (0..200).map(|_| random.bytes(1024)).collect();
    keys.extend((0..=u8::MAX).map(|byte| vec![byte]));
    keys.extend([
        vec![0; 1024],
        vec![0xff; 1024],
        vec![0; 1023],
        b"a\0b".to_vec(),
    ]);
    // Long common beginnings.
    keys.extend((0..100).map(|number| [vec![b'p'; 1020], vec![0, number, 0, 1]].concat()));
    let keys: Vec<BinaryKey> = keys
        .into_iter()
        .map(|key| BinaryKey::new(key).expect("a good key"))
        .collect();
    for key in &keys {
        store
            .put(key, key.as_bytes().to_vec().into(), Default::default())
            .wait()
            .expect("a put");
    }
    let check = |store: &Store| {
        let mut sorted = keys.clone();
        sorted.sort();
        assert!(all_keys(store).expect("listed") == sorted);
        for key in &keys {
            let blob = store
                .get(key, GetOptions::default())
                .wait()
                .expect("it is there");
            assert!(blob.bytes == key.as_bytes());
        }
        let page = store
            .list(ListRequest::prefix([b'p'; 1020]))
            .wait()
            .expect("a page");
        assert_eq!(page.blobs.len(), 100);
    };
    check(&store);
    drop(store);
    let store = Store::open(&path).expect("it opens");
    check(&store);
    store.checkpoint().expect("a checkpoint");
    check(&store);
    drop(store);
    let store = Store::open(&path).expect("it opens");
    check(&store);
    for key in &keys {
        store
            .delete(
                key,
                DeleteOptions {
                    strict: true,
                    ..Default::default()
                },
            )
            .wait()
            .expect("it is deleted");
    }
    assert_eq!(store.info().blobs, 0);
}
