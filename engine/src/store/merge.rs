//! Merging fragments: many small pieces of a blob, which ranges that were put have made of it, are
//! written anew as one. Nobody sees it: the version stays \[F-63\].

use std::future::poll_fn;
use std::sync::Arc;

use graviton_format::record::{ExtentRef, RecordKind};

use super::assembly::{PIECES_MAX, whole_pieces};
use super::commit::{Done, Mutation, Work};
use super::inner::Inner;
use super::read::Snapshot;
use super::record;
use super::set::SectorSet;
use super::write::{Incoming, Target, unexpected};
use crate::port::{BinaryKey, PutOptions, Span, StorageError};

/// Of the bytes that become one piece, the share for which a blob may have a piece, beyond those that any
/// may have: so many pieces that are left alone are never too many.
const SHARE: u64 = 16;
/// Bytes that become one piece, at most, and how many pieces they must have been at least.
const MERGED_MAX: usize = 1 << 20;
const MERGED_PIECES_MIN: usize = 4;
/// Merges that one put of a range does after it, also if other puts spoil some.
const MERGES_MAX: usize = 4;

/// Pieces that are merged.
struct Plan {
    sectors: SectorSet,
    range: Span,
    pieces: Vec<ExtentRef>,
    snapshot: Arc<Snapshot>,
}

/// Takes its blob out of those that are being merged.
struct Merging<'a> {
    inner: &'a Inner,
    key: &'a BinaryKey,
}

impl Drop for Merging<'_> {
    fn drop(&mut self) {
        self.inner.merging.lock().remove(self.key);
    }
}

impl Inner {
    /// Merges fragments of a blob if it has too many, unless somebody is at it. What keeps it from
    /// that is no matter of whoever put a range: the blob is as it was.
    pub async fn merge_fragments(self: &Arc<Self>, key: &BinaryKey) {
        let is_fragmented = matches!(self.plan_merge(key), Ok(Some(_)));
        if !is_fragmented || !self.merging.lock().insert(key.clone()) {
            return;
        }
        let _merging = Merging { inner: self, key };
        // A put adds two pieces at most, and each merge takes three away at least.
        for _ in 0..MERGES_MAX {
            let merged = match self.check_open().and_then(|()| self.plan_merge(key)) {
                Ok(Some(plan)) => self.merge(key, plan).await,
                Ok(None) => return,
                Err(error) => Err(error),
            };
            if let Err(error) = merged {
                let error = error.without_key();
                tracing::debug!(error, "fragments are not merged");
                return;
            }
        }
    }

    /// What to merge: of as many bytes as are merged at once, those with the most pieces.
    fn plan_merge(self: &Arc<Self>, key: &BinaryKey) -> Result<Option<Plan>, StorageError> {
        let index = self.index.read();
        let Some(found) = index.alike(key.stored())? else {
            return Ok(None);
        };
        let (sectors, number, entry) = (found.holders, found.number, &found.entry);
        let Some(extents) = &entry.extents else {
            return Ok(None);
        };
        let at_once = self.extent_max(sectors, key).min(MERGED_MAX) as u64;
        let granted = entry.size / at_once.div_ceil(SHARE);
        let most = granted.saturating_add(self.options.merge_above as u64);
        let limit = self.options.max_fragments.min(PIECES_MAX);
        let whole = whole_pieces(&self.sectors[number].geometry(), entry.size);
        let most = most.min((limit / 2 + whole) as u64);
        if extents.len() as u64 <= most {
            return Ok(None);
        }
        let Some(range) = densest(extents, at_once) else {
            return Ok(None);
        };
        let pieces = entry.pieces_of(range);
        let snapshot = Arc::new(self.pinned(&index, key, &found, range.into())?);
        Ok(Some(Plan {
            sectors: self.to_change(sectors),
            range,
            pieces,
            snapshot,
        }))
    }

    async fn merge(self: &Arc<Self>, key: &BinaryKey, plan: Plan) -> Result<(), StorageError> {
        let Plan {
            sectors,
            range,
            pieces,
            snapshot,
        } = plan;
        let bytes = snapshot.read_all().await?;
        drop(snapshot);
        let (target, options) = (Target::of_blob(key.clone()), PutOptions::default());
        let mut whole = Incoming::new(self, target, sectors, options, Some(range.len()))?;
        whole.take_all(&bytes).await?;
        let manifest = poll_fn(|context| whole.poll_pieces(context)).await?;
        let payload = manifest.encode();
        let time = self.now();
        let mutation = Mutation::Merge {
            key: key.clone(),
            range,
            expected: pieces,
            record: record::encode(
                RecordKind::Merge,
                key,
                &record::change_meta(),
                &payload,
                time,
            ),
            time,
            pieces: manifest.extents.into(),
        };
        let work = Work::Mutations(vec![mutation]);
        match self.submit(whole.sectors(), work, false).await? {
            // If a range was put there meanwhile, the next plan sees it.
            Done::Mutations(_) | Done::Changed => Ok(()),
            _ => Err(unexpected()),
        }
    }
}

/// Of as many bytes, those with the most pieces, none of them a hole; `None` if there are too few
/// anywhere.
fn densest(pieces: &[ExtentRef], at_once: u64) -> Option<Span> {
    let (mut best, mut most) = (None, MERGED_PIECES_MIN - 1);
    let (mut first, mut start, mut position) = (0, 0, 0);
    for (number, piece) in pieces.iter().enumerate() {
        position += u64::from(piece.length.get());
        if piece.is_hole() {
            (first, start) = (number + 1, position);
            continue;
        }
        while position - start > at_once {
            start += u64::from(pieces[first].length.get());
            first += 1;
        }
        let count = number + 1 - first;
        if first <= number && count > most {
            (best, most) = (Some((start, position)), count);
        }
    }
    let (start, end) = best?;
    Span::new(start, end).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(length: u32) -> ExtentRef {
        ExtentRef {
            lsn: 7.into(),
            offset: 0.into(),
            length: length.into(),
        }
    }

    #[test]
    fn the_densest_bytes_are_found() {
        let densest =
            |pieces: &[ExtentRef]| densest(pieces, 100).map(|span| (span.start(), span.end()));
        let few = [piece(10); MERGED_PIECES_MIN - 1];
        assert_eq!(densest(&few), None);
        let many = [piece(10); MERGED_PIECES_MIN];
        assert_eq!(densest(&many), Some((0, 40)));
        let hole = ExtentRef::hole(10);
        assert_eq!(densest(&[&few[..], &[hole], &few].concat()), None);
        let large = [piece(u32::MAX)];
        let behind = [&few[..], &[hole], &many, &large, &many, &[piece(1)]].concat();
        let start = 30 + 10 + 40 + u64::from(u32::MAX);
        assert_eq!(densest(&behind), Some((start, start + 41)));
        assert_eq!(densest(&[piece(40); 9]), None);
        assert_eq!(densest(&[piece(20); 9]), Some((0, 100)));
    }
}
