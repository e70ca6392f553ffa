use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;

use crate::port::{
    Batch, CopyOptions, DeleteOptions, GetOptions, ListRequest, PutOptions, StorageError,
};
use crate::testing::Subject;
use crate::testing::support::{MIB, Short, Store, assert_bytes, assert_fails, key, payload};

/// The smallest executor there is. It knows nothing of `Op`.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

async fn session(store: &Store) -> Result<(), StorageError> {
    let (k, copied, renamed) = (key("k"), key("copied"), key("renamed"));
    let bytes = payload(1, 2 * MIB);
    let put = store.put(&k, "small".into(), PutOptions::default()).await?;
    assert_eq!(store.get(&k, GetOptions::default()).await?.bytes, "small");
    assert_eq!(store.stat(&k).await?.version, put.version);
    let mut writer = store.put_stream(&k, PutOptions::default())?;
    for piece in bytes.chunks(100_000) {
        writer.write(piece.to_vec()).await?;
    }
    let streamed = writer.finish().await?;
    let mut reader = store.get_stream(&k, GetOptions::default()).await?;
    assert_eq!(reader.version, streamed.version);
    let mut read = Vec::new();
    while let Some(piece) = reader.next().await? {
        read.extend_from_slice(&piece);
    }
    assert_bytes(&read, &bytes, "streamed");
    store.copy(&k, &copied, CopyOptions::default()).await?;
    store.rename(&k, &renamed, CopyOptions::default()).await?;
    assert!(!store.exists(&k).await?);
    let get = store.get(&k, GetOptions::default()).await;
    assert_fails!(get, StorageError::NotFound { .. });
    let mut batch = Batch::new();
    batch.put(k.clone(), "again").delete(copied);
    assert_eq!(store.batch(batch).await?.len(), 2);
    store.flush().await?;
    let page = store.list(ListRequest::default()).await?;
    assert_eq!(page.blobs.len(), 2);
    let deleted = store.delete(&renamed, DeleteOptions::default()).await?;
    assert!(deleted.existed);
    Ok(())
}

pub(super) fn ops_can_be_awaited_anywhere(subject: &mut dyn Subject) {
    let mut store = subject.fresh();
    block_on(session(&store)).expect("all of it succeeds");
    store = subject.reopen(store);
    store.assert_holds("k", "again");
    assert_eq!(store.keys(), [key("k")]);

    // Many at once, on one thread, without any of them being waited for alone.
    let mut ops: Vec<_> = (0..32_u64)
        .map(|n| {
            let name = key(format!("many {n}"));
            Some(store.put(&name, payload(n, 6000), PutOptions::default()))
        })
        .collect();
    block_on(std::future::poll_fn(|context| {
        for slot in &mut ops {
            let Some(op) = slot else { continue };
            match pin!(op).poll(context) {
                Poll::Ready(outcome) => {
                    outcome.expect("a plain put");
                    *slot = None;
                }
                Poll::Pending => {}
            }
        }
        if ops.iter().all(Option::is_none) {
            return Poll::Ready(());
        }
        Poll::Pending
    }));
    for n in 0..32 {
        store.assert_holds(format!("many {n}"), payload(n, 6000));
    }
}

pub(super) fn one_thread_submits_before_it_waits(subject: &mut dyn Subject) {
    let mut store = subject.fresh();
    let size = |n: u64| if n.is_multiple_of(16) { MIB } else { 3000 };
    let puts: Vec<_> = (0..64)
        .map(|n| {
            let name = key(format!("{n}"));
            store.put(&name, payload(n, size(n)), PutOptions::default())
        })
        .collect();
    // In an order of its own.
    for put in puts.into_iter().rev() {
        put.wait().expect("a plain put");
    }
    let gets: Vec<_> = (0..64)
        .map(|n| store.get(&key(format!("{n}")), GetOptions::default()))
        .collect();
    for (n, get) in (0..).zip(gets) {
        let blob = get.wait().expect("it is there");
        assert_bytes(&blob.bytes, &payload(n, size(n)), "one of many gets");
    }
    let same: Vec<_> = (0..64)
        .map(|n| store.put(&key("same"), payload(n, 2000), PutOptions::default()))
        .collect();
    let versions: Vec<_> = same
        .into_iter()
        .map(|put| put.wait().expect("a plain put").version)
        .collect();
    let (last, version) = (0..)
        .zip(&versions)
        .max_by_key(|(_, version)| **version)
        .expect("64 versions");
    assert_eq!(store.load("same").version, *version);
    store = subject.reopen(store);
    store.assert_holds("same", payload(last, 2000));
    let distinct: std::collections::BTreeSet<_> = versions.iter().collect();
    assert_eq!(distinct.len(), 64, "no two puts share a version");
}

pub(super) fn ops_may_be_waited_for_on_another_thread(subject: &mut dyn Subject) {
    let store = subject.fresh();
    let puts: Vec<_> = (0..16)
        .map(|n| {
            store.put(
                &key(format!("{n}")),
                payload(n, 9000),
                PutOptions::default(),
            )
        })
        .collect();
    std::thread::scope(|scope| {
        for put in puts {
            scope.spawn(move || put.wait().expect("a plain put"));
        }
    });
    for n in 0..16 {
        store.assert_holds(format!("{n}"), payload(n, 9000));
    }
    let mut writer = store
        .put_stream(&key("k"), PutOptions::default())
        .expect("good options");
    std::thread::scope(|scope| {
        scope.spawn(move || {
            writer.write("moved").wait().expect("takes it in");
            writer.finish().wait().expect("commits");
        });
    });
    store.assert_holds("k", "moved");
}
