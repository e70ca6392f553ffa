//! The contract kit: what every implementation of a port must do, as tests that anybody can run
//! against an implementation of their own.
//!
//! An implementation is a [`Subject`]. [`contract_tests!`](crate::contract_tests) makes one
//! `#[test]` of each clause, [`run_all`] runs them in one go, and [`check_against_model`] compares
//! random histories with the store in memory. No clause looks at a clock or sleeps.
//!
//! ```
//! use std::sync::Arc;
//!
//! use graviton_engine::memory::MemoryStore;
//! use graviton_engine::port::BlobStore;
//! use graviton_engine::testing::{Subject, check_against_model};
//!
//! struct InMemory;
//!
//! impl Subject for InMemory {
//!     fn fresh(&mut self) -> Arc<dyn BlobStore> {
//!         Arc::new(MemoryStore::new())
//!     }
//! }
//!
//! // In a test module: one test per clause.
//! graviton_engine::contract_tests!(InMemory);
//!
//! check_against_model(&mut InMemory, 1, 100);
//! ```

mod beside;
mod composed;
mod contract;
mod history;
mod minimise;
mod model;
mod pair;
mod support;
#[cfg(test)]
mod tests;
mod versions;
mod watched;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

pub use self::contract::{
    blob_store_contract, mutable_object_store_contract, replica_index_contract,
};
pub use self::history::{Mix, Step, Steps};
pub use self::minimise::minimise;
pub use self::model::{check_against_model, panic_message, replay_against_model};
pub use self::pair::{
    Change, Contents, Difference, Effect, Held, Operation, Pair, Tolerance, contents_of, read_all,
};
pub use self::versions::Versions;
use crate::port::{BlobStore, MutableObjectStore, ReplicaIndex, StorageError};

/// An implementation under test, of the port `P`.
pub trait Subject<P: ?Sized = dyn BlobStore> {
    /// A store with nothing in it, and with room for 64 MiB of payload at least. The one before it
    /// is not used any more.
    fn fresh(&mut self) -> Arc<P>;

    /// Closes the store and opens it again. `store` is the last handle to it. It may be lost as in
    /// a power failure: only writes that were acknowledged as durable, or flushed, must be there
    /// again. What does not outlive its handle is handed back as it is, which is the default.
    fn reopen(&mut self, store: Arc<P>) -> Arc<P> {
        store
    }

    /// The largest blob the stores take, if it is small enough to be tried (16 MiB at most, and at
    /// least 6 MiB, since there are clauses with blobs of a little over 5 MiB).
    fn max_blob_size(&self) -> Option<u64> {
        None
    }

    /// The store in use, if it is a `MutableObjectStore` as well: then histories change blobs in
    /// place, too.
    fn mutable(&self) -> Option<Arc<dyn MutableObjectStore>> {
        None
    }

    /// Whether a replica has what was added to it and no more. Else each is made whole, whatever part of
    /// it was asked for.
    fn has_partial_replicas(&self) -> bool {
        true
    }

    /// How many events its disks have seen, if anybody counts them: answers are dated by that. By default nobody does.
    fn events(&self) -> usize {
        0
    }

    /// What an error means that the model does not have. Only a subject whose disks fail or fill up
    /// tolerates any.
    fn tolerates(&self, error: &StorageError) -> Tolerance {
        let _ = error;
        Tolerance::Wrong
    }
}

/// What the contract of [`ReplicaIndex`] is run over: an index, and the store whose blobs it is about.
///
/// The store has sectors 0 to 3 at least, and two replicas are to be made of each blob. Whether it makes
/// any by itself when a blob is put is its own affair; but it repairs none while a clause looks on.
pub struct Replicated {
    /// The blobs.
    pub store: Arc<dyn MutableObjectStore>,
    /// Which sectors have them.
    pub index: Arc<dyn ReplicaIndex>,
}

/// One clause of the contract of the port `P`.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Clause<P: ?Sized = dyn BlobStore> {
    /// Its name, which is also the name of its test.
    pub name: &'static str,
    /// What it demands.
    pub statement: &'static str,
    body: fn(&mut dyn Subject<P>),
}

impl<P: ?Sized> Clause<P> {
    /// Checks the clause.
    ///
    /// # Panics
    /// If the subject breaks it; the name and the statement are printed.
    pub fn run(&self, subject: &mut dyn Subject<P>) {
        let _report = ReportPanic {
            name: self.name,
            statement: self.statement,
        };
        (self.body)(subject);
    }
}

/// Names the clause on the way out of a panic.
struct ReportPanic {
    name: &'static str,
    statement: &'static str,
}

impl Drop for ReportPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self { name, statement } = self;
            eprintln!("the contract is broken in `{name}`: {statement}");
        }
    }
}

/// The clause of the `BlobStore` contract that has this name.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn clause(name: &str) -> Clause {
    named(blob_store_contract(), name)
}

/// The clause of the `MutableObjectStore` contract that has this name.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn mutable_clause(name: &str) -> Clause<dyn MutableObjectStore> {
    named(mutable_object_store_contract(), name)
}

/// The clause of the `ReplicaIndex` contract that has this name.
///
/// # Panics
/// If there is none.
#[must_use]
pub fn replica_clause(name: &str) -> Clause<Replicated> {
    named(replica_index_contract(), name)
}

fn named<P: ?Sized>(clauses: Vec<Clause<P>>, name: &str) -> Clause<P> {
    let mut clauses = clauses.into_iter();
    let found = clauses.find(|clause| clause.name == name);
    found.unwrap_or_else(|| panic!("no clause is called {name:?}"))
}

/// Runs every clause of the `BlobStore` contract, also after one has failed.
///
/// # Panics
/// At the end, with the names of all clauses that are broken.
pub fn run_all(subject: &mut dyn Subject) {
    run_each(&blob_store_contract(), subject);
}

/// Runs every clause of the `MutableObjectStore` contract, also after one has failed.
///
/// # Panics
/// At the end, with the names of all clauses that are broken.
pub fn run_all_mutable(subject: &mut dyn Subject<dyn MutableObjectStore>) {
    run_each(&mutable_object_store_contract(), subject);
}

/// Runs every clause of the `ReplicaIndex` contract, also after one has failed.
///
/// # Panics
/// At the end, with the names of all clauses that are broken.
pub fn run_all_replica(subject: &mut dyn Subject<Replicated>) {
    run_each(&replica_index_contract(), subject);
}

fn run_each<P: ?Sized>(clauses: &[Clause<P>], subject: &mut dyn Subject<P>) {
    let broken: Vec<String> = clauses
        .iter()
        .filter(|clause| catch_unwind(AssertUnwindSafe(|| clause.run(subject))).is_err())
        .map(|clause| format!("  {}: {}", clause.name, clause.statement))
        .collect();
    assert!(
        broken.is_empty(),
        "{} clauses of the contract are broken:\n{}",
        broken.len(),
        broken.join("\n")
    );
}

/// Makes one `#[test]` of each clause of the `BlobStore` contract, all in the module it is called
/// in. Its argument is an expression that makes a [`Subject`](crate::testing::Subject), anew for
/// each test.
#[macro_export]
macro_rules! contract_tests {
    ($subject:expr) => {
        $crate::__each_blob_store_clause! { __contract_tests (clause $subject) }
    };
}

/// Makes one `#[test]` of each clause of the `MutableObjectStore` contract, as
/// [`contract_tests!`](crate::contract_tests) does for `BlobStore`.
#[macro_export]
macro_rules! mutable_contract_tests {
    ($subject:expr) => {
        $crate::__each_mutable_clause! { __contract_tests (mutable_clause $subject) }
    };
}

/// Makes one `#[test]` of each clause of the `ReplicaIndex` contract, as
/// [`contract_tests!`](crate::contract_tests) does for `BlobStore`.
#[macro_export]
macro_rules! replica_contract_tests {
    ($subject:expr) => {
        $crate::__each_replica_clause! { __contract_tests (replica_clause $subject) }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __contract_tests {
    (($clause:ident $subject:expr) $($module:ident $name:ident $statement:literal;)+) => {
        $(
            #[test]
            fn $name() {
                $crate::testing::$clause(stringify!($name)).run(&mut $subject);
            }
        )+
    };
}
