//! Random histories on the engine over a simulated machine, against the model.

use graviton_engine::testing::check_against_model;
use graviton_tests::subject::SimSubject;

/// Runs the history of a seed (eight bytes), so many steps long (one), on a store of a shape (one).
pub fn operations(data: &[u8]) {
    let Some((seed, rest)) = data.split_first_chunk() else {
        return;
    };
    let &[steps, shape, ..] = rest else { return };
    let mut subject = SimSubject::new(
        1 + u16::from(shape % 3),
        if shape & 4 == 0 { 512 } else { 4096 },
        u64::from(shape),
    );
    subject.crashes = shape & 8 == 0;
    check_against_model(
        &mut subject,
        u64::from_le_bytes(*seed),
        1 + usize::from(steps % 64),
    );
}
