//! Payloads of any size, in and out, in bounded memory.

use std::collections::VecDeque;
use std::io::{self, Read};

use bytes::Bytes;
use graviton_engine::port::{BlobReader, BlobWriter, StorageError};

use crate::failure::Failure;

/// Larger payloads are moved in pieces of this many bytes.
pub const PIECE: u64 = 1 << 20;

/// Pieces handed to the store before the first is waited for: reading goes on while it writes.
const PIECES_IN_FLIGHT: usize = 4;

/// Why a payload did not get through.
#[derive(Debug)]
pub enum TransferError {
    /// Its source failed.
    Source(io::Error),
    /// The store failed.
    Store(StorageError),
}

impl TransferError {
    /// The failure, if `source` is where the payload came from.
    pub fn reading_from(self, source: &str) -> Failure {
        match self {
            Self::Source(error) => Failure::failed(format!("cannot read {source}: {error}")),
            Self::Store(error) => error.into(),
        }
    }
}

/// Moves everything from `source` into `writer`; `moved` hears of each piece. Returns the bytes.
pub fn pour_in(
    source: &mut impl Read,
    writer: &mut BlobWriter,
    moved: &mut dyn FnMut(u64),
) -> Result<u64, TransferError> {
    let mut total = 0;
    let mut flying = VecDeque::with_capacity(PIECES_IN_FLIGHT);
    loop {
        let piece = read_piece(source).map_err(TransferError::Source)?;
        if piece.is_empty() {
            break;
        }
        let length = length(&piece);
        if flying.len() == PIECES_IN_FLIGHT
            && let Some((length, op)) = flying.pop_front()
        {
            wait(op)?;
            moved(length);
        }
        total += length;
        flying.push_back((length, writer.write(piece)));
    }
    for (length, op) in flying {
        wait(op)?;
        moved(length);
    }
    Ok(total)
}

fn wait(op: graviton_engine::port::StoreOp<()>) -> Result<(), TransferError> {
    op.wait().map_err(TransferError::Store)
}

/// The next piece: whole, but for the last one.
pub fn read_piece(source: &mut impl Read) -> io::Result<Bytes> {
    let mut piece = Vec::with_capacity(usize::try_from(PIECE).unwrap_or(0));
    source.take(PIECE).read_to_end(&mut piece)?;
    Ok(piece.into())
}

/// Hands every piece of `reader` to `take`. Returns the bytes.
pub fn pour_out(
    mut reader: BlobReader,
    take: &mut dyn FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<u64, Failure> {
    let mut total = 0;
    while let Some(piece) = reader.next().wait()? {
        take(&piece)?;
        total += length(&piece);
    }
    Ok(total)
}

/// Whether `reader` and `source` hold the same bytes to their ends.
pub fn same_bytes(mut reader: BlobReader, source: &mut impl Read) -> Result<bool, TransferError> {
    let mut expected = Bytes::new();
    loop {
        while expected.is_empty() {
            match reader.next().wait().map_err(TransferError::Store)? {
                Some(piece) => expected = piece,
                None => {
                    let rest = read_piece(source).map_err(TransferError::Source)?;
                    return Ok(rest.is_empty());
                }
            }
        }
        let mut piece = vec![0; expected.len().min(256 * 1024)];
        match source.read_exact(&mut piece) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(TransferError::Source(error)),
        }
        if expected.split_to(piece.len()) != piece {
            return Ok(false);
        }
    }
}

/// A length in bytes as the ports count them.
pub fn length(bytes: &[u8]) -> u64 {
    u64::try_from(bytes.len()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use graviton_engine::port::{Op, ReadBlob, StoreOp};

    struct Pieces(VecDeque<Bytes>);

    impl ReadBlob for Pieces {
        fn next(&mut self) -> StoreOp<Option<Bytes>> {
            Op::ready(Ok(self.0.pop_front()))
        }
    }

    fn reader(pieces: &[&'static [u8]]) -> BlobReader {
        let pieces: VecDeque<Bytes> = pieces
            .iter()
            .map(|piece| Bytes::from_static(piece))
            .collect();
        let size = pieces.iter().map(|piece| length(piece)).sum();
        BlobReader::new(Pieces(pieces), 0..size, size, 1)
    }

    #[test]
    fn contents_are_compared_to_their_ends() {
        let same = |pieces: &[&'static [u8]], mut source: &[u8]| {
            same_bytes(reader(pieces), &mut source).expect("compared")
        };
        assert!(same(&[], b""));
        assert!(same(&[b"ab", b"", b"c"], b"abc"));
        assert!(!same(&[b"ab"], b"abc"));
        assert!(!same(&[b"ab", b"c"], b"ab"));
        assert!(!same(&[b"ab", b"c"], b"abd"));
        assert!(!same(&[], b"x"));
    }
}
