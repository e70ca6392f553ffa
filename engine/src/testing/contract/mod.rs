//! The clauses, each a function of a [`Subject`](super::Subject), and the one table that names them.

mod batch;
mod concurrency;
mod copy;
mod delete;
mod durability;
mod errors;
mod keys;
mod list;
mod manifest;
mod multipart;
mod ops;
mod preconditions;
mod put;
mod put_range;
mod ranges;
mod replica;
mod stream;
mod table;
mod tracker;

use super::{Clause, Replicated};
use crate::port::MutableObjectStore;

/// The clauses of the `BlobStore` contract.
#[must_use]
pub fn blob_store_contract() -> Vec<Clause> {
    crate::__each_blob_store_clause! { __contract_list () }
}

/// The clauses of the `MutableObjectStore` contract, beside those of `BlobStore`.
#[must_use]
pub fn mutable_object_store_contract() -> Vec<Clause<dyn MutableObjectStore>> {
    crate::__each_mutable_clause! { __contract_list () }
}

/// The clauses of the `ReplicaIndex` contract.
#[must_use]
pub fn replica_index_contract() -> Vec<Clause<Replicated>> {
    crate::__each_replica_clause! { __contract_list () }
}

/// The table as a list.
#[doc(hidden)]
#[macro_export]
macro_rules! __contract_list {
    (() $($module:ident $name:ident $statement:literal;)+) => {
        vec![$(Clause {
            name: stringify!($name),
            statement: $statement,
            body: $module::$name,
        }),+]
    };
}
