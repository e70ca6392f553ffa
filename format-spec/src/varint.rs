//! Variable-length integers of the checkpoint image: LEB128, seven bits to a byte, low bits first,
//! at most ten bytes \[F-40\].

/// Appends `value`.
pub fn put(target: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        target.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    target.push(value.to_le_bytes()[0]);
}

/// Takes a value off the front of `source`; `None` if it is cut off or does not fit 64 bits.
pub fn take(source: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = source.split_first()?;
        *source = rest;
        let bits = u64::from(byte & 0x7f);
        if bits.leading_zeros() < shift {
            return None;
        }
        value |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Maps a signed value to an unsigned one, small magnitudes to small values.
#[must_use]
pub fn zigzag(value: i64) -> u64 {
    (value.cast_unsigned() << 1) ^ (value >> 63).cast_unsigned()
}

/// The inverse of [`zigzag`].
#[must_use]
pub fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_round_trip() {
        for value in (0..64)
            .flat_map(|shift| [(1_u64 << shift) - 1, 1 << shift])
            .chain([u64::MAX])
        {
            let mut bytes = Vec::new();
            put(&mut bytes, value);
            let mut source = bytes.as_slice();
            assert_eq!(take(&mut source), Some(value));
            assert!(source.is_empty());
            assert_eq!(take(&mut &bytes[..bytes.len() - 1]), None);
            assert_eq!(unzigzag(zigzag(value.cast_signed())), value.cast_signed());
        }
    }

    #[test]
    fn oversized_values_are_refused() {
        assert_eq!(take(&mut [0xff; 10].as_slice()), None);
        assert_eq!(
            take(&mut [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02].as_slice()),
            None
        );
    }
}
