//! Blobs that are filled range by range, in a store.

use bytes::Bytes;
use graviton_engine::io::sim::Sim;
use graviton_engine::port::{
    BinaryKey, BlobStore, CopyOptions, ErrorKind, GetOptions, Holes, Precondition, PutOptions,
    RangeSet, Span, StorageError,
};
use graviton_engine::store::{CreateOptions, GIB, KIB, MIB, OpenOptions, Store};

const PATH: &str = "/store";

fn key(name: &str) -> BinaryKey {
    BinaryKey::new(name).expect("a short key")
}

fn open_options() -> OpenOptions {
    OpenOptions {
        background: false,
        ..OpenOptions::default()
    }
}

fn new_store() -> (Sim, Store) {
    let sim = Sim::new(512, 1);
    let options = CreateOptions {
        sector_size: 4 * MIB,
        segment_size: Some(64 * KIB),
        open: open_options(),
        ..CreateOptions::default()
    };
    let store = Store::create_on(sim.backend(), PATH, options);
    (sim, store.expect("it is made"))
}

fn get(store: &Store, name: &str, range: Span, holes: Holes) -> Result<Bytes, StorageError> {
    let options = GetOptions {
        range: Some(range.into()),
        holes,
        ..GetOptions::default()
    };
    store.get(&key(name), options).wait().map(|blob| blob.bytes)
}

/// It is one hole of 10 GiB.
fn check_hole(store: &Store, name: &str) {
    let size = 10 * GIB;
    let info = store.stat(&key(name)).wait().expect("it is there");
    assert_eq!(info.size, size);
    assert_eq!(info.missing, RangeSet::from(Span::first(size)));
    assert!(info.allocated < 1024, "{} bytes for a hole", info.allocated);
    let range = Span::at(8 * GIB - 10, 20).expect("it ends");
    match get(store, name, range, Holes::Refuse) {
        Err(StorageError::MissingRanges { missing, .. }) => assert_eq!(missing, range.into()),
        other => panic!("{other:?}"),
    }
    let zeros = get(store, name, range, Holes::Zeros).expect("it is read");
    assert_eq!(zeros, vec![0; 20]);
    let empty = get(store, name, Span::at(5, 0).expect("it ends"), Holes::Refuse);
    assert!(empty.expect("it is read").is_empty());
    let options = |holes| GetOptions {
        range: Some(0..3 * MIB),
        holes,
        ..GetOptions::default()
    };
    let refused = store.get_stream(&key(name), options(Holes::Refuse)).wait();
    let refused = refused.map(drop).expect_err("it has holes");
    assert_eq!(refused.kind(), ErrorKind::Incomplete);
    let stream = store.get_stream(&key(name), options(Holes::Zeros)).wait();
    let mut stream = stream.expect("it is read");
    let mut length = 0;
    while let Some(piece) = stream.next().wait().expect("it is read") {
        assert!(piece.iter().all(|&byte| byte == 0));
        length += piece.len() as u64;
    }
    assert_eq!(length, 3 * MIB);
}

#[test]
fn a_hole_costs_no_space_and_stays() {
    let (sim, store) = new_store();
    let create = |size, options| store.create_sparse(&key("hole"), size, options).wait();
    let made = create(10 * GIB, PutOptions::default()).expect("it is made");
    assert_eq!(made.size, 10 * GIB);
    check_hole(&store, "hole");
    let copied = store.copy(&key("hole"), &key("copy"), CopyOptions::default());
    copied.wait().expect("it is copied");
    check_hole(&store, "copy");

    let again = create(
        1,
        PutOptions {
            precondition: Precondition::IfAbsent,
            ..PutOptions::default()
        },
    );
    assert_eq!(
        again.err().map(|error| error.kind()),
        Some(ErrorKind::Conflict)
    );
    let declared = create(
        1,
        PutOptions {
            size: Some(1),
            ..PutOptions::default()
        },
    );
    assert_eq!(
        declared.err().map(|error| error.kind()),
        Some(ErrorKind::InvalidInput)
    );
    let huge = create(u64::MAX, PutOptions::default());
    assert!(
        matches!(huge, Err(StorageError::TooLarge { .. })),
        "{huge:?}"
    );
    create(0, PutOptions::default()).expect("an empty one is no hole");
    let empty = store.get(&key("hole"), GetOptions::default()).wait();
    assert!(empty.expect("it is read").bytes.is_empty());

    // Out of the log, and out of an image.
    for checkpoints in [false, true] {
        if checkpoints {
            store.checkpoint().expect("a checkpoint");
        }
        let sim = Sim::boot(&sim.image(), 512, 2);
        let store = Store::open_on(sim.backend(), PATH, open_options()).expect("it opens");
        check_hole(&store, "copy");
        let report = store.verify(&mut |_| {}).expect("it is verified");
        assert_eq!(report.findings, []);
    }
}
