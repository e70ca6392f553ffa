//! What is logged names neither keys nor payload, whatever goes wrong. Alone in its process: the log has one reader.

use std::fmt::{Debug, Write};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use graviton_engine::io::sim::{Fault, FaultKind, Sim};
use graviton_engine::port::{
    BinaryKey, BlobStore, Durability, GetOptions, MutableObjectStore, PutOptions, PutRangeOptions,
    Span,
};
use graviton_engine::store::{CreateOptions, KIB, MIB, OpenOptions, ScrubOptions, Store};
use graviton_tests::{bytes_of, fail_next, put_options, rebalance};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

const SECRET: &str = "patients/4711";

/// Every line of the log.
#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<String>>);

impl Log {
    fn text(&self) -> String {
        self.0.lock().expect("nobody panicked").clone()
    }
}

struct Fields<'a>(&'a mut String);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        write!(self.0, "{field}={value:?} ").expect("a string takes everything");
    }
}

impl Subscriber for Log {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, span: &Attributes<'_>) -> Id {
        span.record(&mut Fields(&mut self.0.lock().expect("nobody panicked")));
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, values: &Record<'_>) {
        values.record(&mut Fields(&mut self.0.lock().expect("nobody panicked")));
    }
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        let mut text = self.0.lock().expect("nobody panicked");
        event.record(&mut Fields(&mut text));
        text.push('\n');
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

fn key(number: usize) -> BinaryKey {
    BinaryKey::new(format!("{SECRET}/{number}")).expect("a short key")
}

fn options(sectors: u16) -> CreateOptions {
    CreateOptions {
        sectors,
        replicas: sectors,
        sector_size: 4 * MIB,
        segment_size: Some(64 * KIB),
        block_size: Some(512),
        open: OpenOptions {
            background: false,
            merge_above: 8,
            cache_bytes: 0,
            ..OpenOptions::default()
        },
    }
}

fn create(sectors: u16) -> (Sim, Store) {
    let sim = Sim::new(512, 1);
    sim.record(false);
    let store = Store::create_on(sim.backend(), "/store", options(sectors)).expect("it is made");
    for number in 0..40 {
        let payload = Bytes::from(SECRET.repeat(400));
        let put = store.put(&key(number), payload, PutOptions::default());
        put.wait().expect("it is put");
    }
    (sim, store)
}

/// Of the places of a disk that have the secret, one in so many rots.
fn rot(sim: &Sim, disk: usize, every: usize) {
    let bytes = bytes_of(&sim.image(), disk);
    let found = bytes.windows(SECRET.len()).enumerate();
    let found = found.filter(|(_, bytes)| *bytes == SECRET.as_bytes());
    for (offset, _) in found.step_by(every) {
        sim.rot(disk, offset, 1);
    }
}

fn look_after(store: &Store) {
    let options = ScrubOptions::default();
    // What they say of errors is theirs: this is about what is logged.
    let _ = store.verify(&mut |_| {});
    let _ = store.scrub(&options, &mut |_| ControlFlow::Continue(()));
    let _ = store.compact();
    let _ = store.repair(&mut |_| {});
    let _ = rebalance(store);
    for number in 0..40 {
        let _ = store.get(&key(number), GetOptions::default()).wait();
    }
    for _ in 0..10_000 {
        if !matches!(store.step(), Ok(true)) {
            break;
        }
    }
}

#[test]
fn the_log_names_no_keys() {
    let log = Log::default();
    tracing::subscriber::set_global_default(log.clone()).expect("the first");

    // Replicas, one of which rots, then both.
    let (sim, store) = create(2);
    rot(&sim, 0, 300);
    look_after(&store);
    for disk in [0, 1] {
        rot(&sim, disk, 7);
    }
    look_after(&store);
    assert!(log.text().contains("repair: "), "{}", log.text());
    drop(store);

    // The only ones, which compaction can't move.
    let (sim, store) = create(1);
    for number in (0..40).step_by(2) {
        let put = store.put(&key(number), Bytes::new(), PutOptions::default());
        put.wait().expect("it is put");
    }
    // In the middle of payload: what it is of is known.
    rot(&sim, 0, 300);
    look_after(&store);
    for doing in ["compaction: ", "mending: ", "(<key>)"] {
        assert!(log.text().contains(doing), "no {doing}: {}", log.text());
    }
    drop(store);

    // Fragments that can't be merged.
    let (sim, store) = create(1);
    for number in 0..200 {
        let span = Span::at(20 * number, 10).expect("it ends");
        sim.set_faults(&[Fault {
            kind: FaultKind::Read,
            after: usize::try_from(number % 8).expect("it is small"),
            times: 4,
            disk: None,
        }]);
        let bytes = Bytes::from_static(&SECRET.as_bytes()[..10]);
        let _ = store
            .put_range(&key(1), span, bytes, PutRangeOptions::default())
            .wait();
    }
    assert!(log.text().contains("not merged"), "{}", log.text());

    // A sector that takes no more writes.
    fail_next(&sim, 0, FaultKind::Write);
    let failed = store.put(&key(1), Bytes::from(SECRET), PutOptions::default());
    assert!(failed.wait().is_err());
    assert!(log.text().contains("takes no more writes"));
    drop(store);

    // A store that can't be closed in order.
    let (sim, store) = create(1);
    let put = store.put(
        &key(1),
        Bytes::from(SECRET),
        put_options(Durability::Written),
    );
    put.wait().expect("it is put");
    fail_next(&sim, 0, FaultKind::Sync);
    drop(store);
    assert!(log.text().contains("closing the store"), "{}", log.text());

    let log = log.text();
    let line = log.lines().find(|line| line.contains("patients"));
    assert_eq!(line, None);
}
