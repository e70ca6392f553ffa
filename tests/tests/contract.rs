//! The contracts of `BlobStore`, `MutableObjectStore` and `ReplicaIndex`, clause by clause, over real stores: both backends, several
//! sectors, without the background thread; over simulated disks, also reopened between any two
//! calls; and random histories against the model.

use graviton_engine::io::BackendChoice;
use graviton_engine::port::MutableObjectStore;
use graviton_engine::store::{CreateOptions, OpenOptions};
use graviton_engine::testing::{
    Subject, check_against_model, run_all, run_all_mutable, run_all_replica,
};
use graviton_tests::reopening::{ReopeningSubject, SimSubject};
use graviton_tests::{StoreSubject, buffered, contract_options, create_options, io, number_from};

/// Both contracts.
fn all<S: Subject + Subject<dyn MutableObjectStore>>(subject: &mut S) {
    run_all(subject);
    run_all_mutable(subject);
}

/// That of `BlobStore`. What is kept beside blobs is in the same log: the other contract is run over each
/// backend once, over three sectors and larger blocks on simulated disks.
fn contract(options: CreateOptions) {
    run_all(&mut StoreSubject::new(options));
}

#[test]
fn over_io_uring() {
    if let Some(io) = io(BackendChoice::Uring) {
        all(&mut StoreSubject::new(contract_options(&io)));
    }
}

#[test]
fn over_system_calls() {
    if let Some(io) = io(BackendChoice::Syscall) {
        all(&mut StoreSubject::new(contract_options(&io)));
    }
}

#[test]
fn over_buffered_system_calls() {
    all(&mut StoreSubject::new(contract_options(&buffered())));
}

#[test]
fn over_two_replicas_in_three_sectors() {
    if let Some(io) = io(BackendChoice::Auto) {
        all(&mut StoreSubject::new(CreateOptions {
            replicas: 2,
            ..create_options(&io, 3, 64 << 20)
        }));
    }
}

/// Repair is maintenance, and there is nobody to do any.
#[test]
fn of_replicas_over_four_sectors() {
    for backend in [BackendChoice::Uring, BackendChoice::Syscall] {
        let Some(io) = io(backend) else { continue };
        let mut options = CreateOptions {
            replicas: 2,
            ..create_options(&io, 4, 64 << 20)
        };
        options.open.background = false;
        run_all_replica(&mut StoreSubject::new(options));
    }
}

#[test]
fn of_replicas_over_four_simulated_disks() {
    run_all_replica(&mut SimSubject::new(4, 512, false).with_replicas(2));
}

#[test]
fn with_blocks_of_4096_bytes() {
    let Some(io) = io(BackendChoice::Auto) else {
        return;
    };
    contract(CreateOptions {
        block_size: Some(4096),
        ..contract_options(&io)
    });
}

#[test]
fn without_a_background_thread() {
    let Some(io) = io(BackendChoice::Auto) else {
        return;
    };
    let mut options = contract_options(&io);
    options.open = OpenOptions {
        background: false,
        ..options.open
    };
    contract(options);
}

#[test]
fn over_the_simulated_disk() {
    all(&mut SimSubject::new(1, 4096, true));
}

#[test]
fn over_three_simulated_disks_without_a_background_thread() {
    all(&mut SimSubject::new(3, 512, false));
}

#[test]
fn reopened_between_any_two_calls() {
    all(&mut ReopeningSubject::new(1));
}

/// How many random histories are run; `GRAVITON_SEEDS` asks for more.
fn seeds() -> u64 {
    number_from("GRAVITON_SEEDS").unwrap_or(6)
}

#[test]
fn random_histories_agree_with_the_model() {
    for backend in [BackendChoice::Uring, BackendChoice::Syscall] {
        let Some(io) = io(backend) else { continue };
        for seed in 0..seeds() {
            let sectors = 1 + u16::try_from(seed % 3).expect("small");
            let options = CreateOptions {
                replicas: sectors.div_ceil(2),
                ..create_options(&io, sectors, 96 << 20)
            };
            check_against_model(&mut StoreSubject::new(options), seed, 200);
        }
    }
}
