//! A store's figures, gathered: see [`StoreInfo`].

use graviton_format::FORMAT_VERSION;
use graviton_format::geometry::AREA_SIZE;
use graviton_format::structure::hex;

use super::cache::CacheFigures;
use super::index::{Index, SectorIndex};
use super::info::{ReplicationInfo, SectorInfo, SegmentInfo, SegmentState, Space, StoreInfo};
use super::inner::Inner;
use crate::log::State;
use crate::port::SectorState;

impl Inner {
    /// The store's figures now.
    pub fn info(&self) -> StoreInfo {
        let named = self.catalog.lock().sectors.clone();
        // In the order in which all locks are taken.
        let commits = self.commits.lock();
        let lsn = commits.last_lsn();
        let pending: Vec<u64> = (0..self.sectors.len())
            .map(|number| commits.pending(number))
            .collect();
        drop(commits);
        let kept = self.kept.lock();
        let index = self.index.read();
        let mut health = self.health.lock().clone();
        let mut sectors = Vec::new();
        for number in self.sectors.members().iter() {
            let sector = &self.sectors[number];
            let part = &index.sectors[number];
            let space = match sector.is_stood_in_for() {
                true => Space::default(),
                false => self.space(&index, number, pending[number]),
            };
            if let Some(cause) = sector.poisoned() {
                let what = match sector.state() {
                    SectorState::Absent => "is absent",
                    SectorState::ReadOnly => "can only be read",
                    _ if sector.is_stood_in_for() => "is left out",
                    _ => "takes no writes",
                };
                health.push(format!("sector {number} {what}: {cause}"));
            }
            sectors.push(SectorInfo {
                number: sector.number(),
                sector_id: format!("{:016x}", sector.identity().sector_id),
                path: sector.path().to_owned(),
                is_device: sector.disk().info().is_device,
                state: sector.state(),
                draining: sector.is_draining(),
                replaces: named
                    .iter()
                    .find(|named| named.number == sector.number())
                    .and_then(|named| named.replaces),
                labels: self.labels.read()[number].clone(),
                direct: sector.disk().info().direct,
                block_size: sector.geometry().block_size,
                segment_size: sector.geometry().segment_size,
                // Nobody knows.
                segment_count: match sector.is_stood_in_for() {
                    true => 0,
                    false => sector.geometry().segment_count,
                },
                segments_zeroed: u32::try_from(
                    part.segments
                        .iter()
                        .filter(|(_, segment)| segment.zeroed)
                        .count(),
                )
                .unwrap_or(u32::MAX),
                space,
                checkpoint: kept[number].info(),
                replay_bytes: part.replay_bytes,
                poisoned: sector.poisoned().map(str::to_owned),
            });
        }
        let (blobs, logical_bytes) = index.totals();
        StoreInfo {
            path: self.path.clone(),
            store_id: hex(&self.store_id),
            format_version: FORMAT_VERSION,
            access: self.options.access,
            backend: self.backend.name(),
            notice: self.notice.clone(),
            replication: ReplicationInfo {
                replicas: u16::try_from(self.replicas).unwrap_or(u16::MAX),
                backlog: self.marks.backlog() as u64,
                is_scan_due: self.marks.is_scan_due(),
                damaged: self.marks.len() as u64,
                is_short: self.shortage.is_noted(),
            },
            blobs,
            logical_bytes,
            lsn,
            index_bytes: index.sectors.iter().map(SectorIndex::memory).sum(),
            cache: self
                .cache
                .as_ref()
                .map_or_else(CacheFigures::default, |cache| cache.figures()),
            space: sectors
                .iter()
                .fold(Space::default(), |sum, sector| sum.plus(sector.space)),
            sectors,
            health,
        }
    }

    fn space(&self, index: &Index, number: usize, pending: u64) -> Space {
        let geometry = self.sectors[number].geometry();
        let block = u64::from(geometry.block_size);
        let mut space = Space {
            total: geometry.sector_size(),
            metadata: 2 * AREA_SIZE,
            ..Space::default()
        };
        for (_, segment) in index.sectors[number].segments.iter() {
            let size = geometry.segment_size;
            match segment.state {
                State::Free => space.free += size,
                State::Checkpoint => space.metadata += size,
                State::Reclaimed => space.garbage += size,
                State::Open | State::Sealed => {
                    // A sealed segment's rest comes back with its garbage.
                    let end = if segment.state == State::Open {
                        segment.written.max(block)
                    } else {
                        size
                    };
                    space.metadata += block;
                    space.live += segment.live;
                    // A hostile checkpoint can count too much; verify says so.
                    space.garbage += (end - block).saturating_sub(segment.live);
                    space.free += size - end;
                }
            }
        }
        space.available = self.available(index, number).saturating_sub(pending);
        space
    }

    /// The segments of a sector.
    pub fn segments(&self, number: usize) -> Vec<SegmentInfo> {
        let index = self.index.read();
        let Some(part) = index.sectors.get(number) else {
            return Vec::new();
        };
        if part.sector().is_stood_in_for() {
            return Vec::new();
        }
        let info = |(index, segment): (u32, &crate::log::Segment)| SegmentInfo {
            index,
            state: match segment.state {
                State::Free => SegmentState::Free,
                State::Open => SegmentState::Open,
                State::Sealed => SegmentState::Sealed,
                State::Reclaimed => SegmentState::Reclaimed,
                State::Checkpoint => SegmentState::Checkpoint,
            },
            generation: segment.generation,
            written: segment.written,
            live: segment.live,
        };
        part.segments.iter().map(info).collect()
    }
}
