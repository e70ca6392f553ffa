//! Making a failing history short.

/// The shortest part of `items` found that still fails, and how. `fails` tells what is wrong with
/// some of the items, in their order; it is asked `tries` times at most.
///
/// Leaves out stretches, long ones first, as long as what is left fails: Zeller and Hildebrandt,
/// Simplifying and isolating failure-inducing input, 2002.
pub fn minimise<T: Clone>(
    items: &[T],
    failure: String,
    tries: usize,
    mut fails: impl FnMut(&[T]) -> Option<String>,
) -> (Vec<T>, String) {
    let (mut left, mut failure) = (items.to_vec(), failure);
    let mut tried = 0;
    let mut stretch = left.len().div_ceil(2);
    while stretch > 0 {
        let mut start = 0;
        let mut shorter = false;
        while start < left.len() && tried < tries {
            let end = left.len().min(start + stretch);
            let rest = [&left[..start], &left[end..]].concat();
            tried += 1;
            match fails(&rest) {
                Some(what) => {
                    (left, failure) = (rest, what);
                    shorter = true;
                }
                None => start = end,
            }
        }
        // Once more with single ones: what one leaves out may make another superfluous.
        if !(stretch == 1 && shorter) {
            stretch /= 2;
        }
        if tried >= tries {
            break;
        }
    }
    (left, failure)
}
