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
#[inline]
pub fn take(source: &mut &[u8]) -> Option<u64> {
    match *source {
        [byte @ 0..0x80, rest @ ..] => {
            *source = rest;
            Some(u64::from(*byte))
        }
        _ => take_long(source),
    }
}

fn take_long(source: &mut &[u8]) -> Option<u64> {
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

/// Steps over `count` values at the front of `source`, whatever they are; `None` if the last is cut off.
pub fn skip(source: &mut &[u8], count: u32) -> Option<()> {
    /// The bit that all bytes of a value have but the last, in each of eight bytes.
    const CONTINUED: u64 = 0x8080_8080_8080_8080;
    let mut left = count;
    while left > 0 {
        let Some((word, rest)) = source.split_first_chunk() else {
            break;
        };
        let mut ends = !u64::from_le_bytes(*word) & CONTINUED;
        let found = ends.count_ones();
        if found < left {
            left -= found;
            *source = rest;
            continue;
        }
        for _ in 1..left {
            ends &= ends - 1;
        }
        *source = &source[ends.trailing_zeros() as usize / 8 + 1..];
        left = 0;
    }
    for _ in 0..left {
        let length = source.iter().position(|byte| byte & 0x80 == 0)? + 1;
        *source = &source[length..];
    }
    Some(())
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
    fn values_are_stepped_over() {
        let values: Vec<u64> = (0..64).map(|shift| 1 << shift).collect();
        let mut bytes = Vec::new();
        values.iter().for_each(|value| put(&mut bytes, *value));
        for first in 0..values.len() {
            let mut at = bytes.as_slice();
            assert_eq!(skip(&mut at, u32::try_from(first).unwrap()), Some(()));
            assert_eq!(take(&mut at), Some(values[first]));
            for count in 0..values.len() - first {
                let mut at = at;
                let count = u32::try_from(count).unwrap();
                skip(&mut at, count).unwrap();
                let next = first + 1 + count as usize;
                assert_eq!(take(&mut at), values.get(next).copied());
            }
        }
        let all = u32::try_from(values.len()).unwrap();
        assert_eq!(skip(&mut bytes.as_slice(), all + 1), None);
        assert_eq!(skip(&mut &bytes[..bytes.len() - 1], all), None);
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
