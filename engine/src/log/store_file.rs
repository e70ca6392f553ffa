//! The copies of the store file in a sector, from which a store file that was lost is written anew \[F-71\].

use graviton_format::FormatError;
use graviton_format::store_file::{StoreFileCopy, TEXT_MAX};

use super::sector::{Sector, until_whole};
use crate::io::{AlignedBuf, WriteSync};
use crate::port::StorageError;

/// Most texts are not longer than this, in bytes.
const SHORT: usize = 4096 - size_of::<StoreFileCopy>();

/// What the store file says, and how often it had been written then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreFileText {
    /// Counts the writes of the store file.
    pub revision: u64,
    /// The file.
    pub text: String,
}

/// Bytes that a copy and its place take on disk.
fn length_on_disk(sector: &Sector, text: usize) -> u64 {
    let length = (size_of::<StoreFileCopy>() + text) as u64;
    length.next_multiple_of(sector.disk().info().block_size.into())
}

/// The blocks of the copy for `address`; `None` if the text is too long for one.
///
/// # Errors
/// `Io` for want of memory.
pub fn encode_copy(
    sector: &Sector,
    file: &StoreFileText,
    address: u64,
) -> Result<Option<AlignedBuf>, StorageError> {
    let encoded = StoreFileCopy::encode(sector.identity(), address, file.revision, &file.text);
    let Some(encoded) = encoded else {
        return Ok(None);
    };
    let mut blocks = sector.buffer(length_on_disk(sector, file.text.len()))?;
    blocks.fill(0);
    blocks[..encoded.len()].copy_from_slice(&encoded);
    Ok(Some(blocks))
}

/// Writes both copies. Of a store file that is too long for it there are none.
///
/// # Errors
/// `Io`; the sector is poisoned then, but for want of memory.
pub async fn write_copies(sector: &Sector, file: &StoreFileText) -> Result<(), StorageError> {
    let [front, back] = sector.geometry().store_file_copies();
    // One of them is whole all along.
    for address in [back, front] {
        if let Some(copy) = encode_copy(sector, file, address)? {
            sector.write(copy, address, WriteSync::Data).await?;
        }
    }
    Ok(())
}

/// Writes the copies if one is not like the store file; returns whether one was not.
///
/// # Errors
/// As [`write_copies`].
pub async fn keep_copies(sector: &Sector, file: &StoreFileText) -> Result<bool, StorageError> {
    for address in sector.geometry().store_file_copies() {
        if read_copy(sector, address).await.as_ref() != Ok(file) {
            write_copies(sector, file).await?;
            return Ok(file.text.len() <= TEXT_MAX);
        }
    }
    Ok(false)
}

/// Why a copy is of no use.
#[derive(Debug, PartialEq, Eq)]
pub enum BadCopy {
    /// It is damaged, or was never written.
    Damaged(FormatError),
    /// It can't be read.
    Unreadable(String),
}

impl std::fmt::Display for BadCopy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Damaged(error) => error.fmt(f),
            Self::Unreadable(error) => f.write_str(error),
        }
    }
}

/// Reads the copy at `address`.
///
/// # Errors
/// What is wrong with it.
pub async fn read_copy(sector: &Sector, address: u64) -> Result<StoreFileText, BadCopy> {
    until_whole(
        async || read_copy_once(sector, address).await,
        Result::is_ok,
    )
    .await
}

async fn read_copy_once(sector: &Sector, address: u64) -> Result<StoreFileText, BadCopy> {
    let read = async |text| {
        let range = address..address + length_on_disk(sector, text);
        let read = sector.read(range).await;
        read.map_err(|error| BadCopy::Unreadable(error.to_string()))
    };
    let (mut buffer, mut skip) = read(SHORT).await?;
    let mut decoded = StoreFileCopy::decode(&buffer[skip..], sector.identity(), address);
    if let Err(FormatError::Truncated { .. }) = decoded {
        (buffer, skip) = read(TEXT_MAX).await?;
        decoded = StoreFileCopy::decode(&buffer[skip..], sector.identity(), address);
    }
    let (revision, text) = decoded.map_err(BadCopy::Damaged)?;
    let text = text.to_owned();
    Ok(StoreFileText { revision, text })
}
