//! Verify: reads everything back from the disk and checks it, against its checksums and against
//! the index.

use std::collections::HashMap;
use std::sync::Arc;

use graviton_format::FormatError;
use graviton_format::checksum::stored_length;
use graviton_format::geometry::AREA_SIZE;
use graviton_format::record::{RecordKind, RecordView, record_length};
use graviton_format::segment::SegmentHeader;
use graviton_format::superblock::Superblock;

use super::info::{Finding, VerifyProgress, VerifyReport};
use super::inner::Inner;
use crate::log::image_io::{read_image, read_roots};
use crate::log::replay::{check_old_header, decode_frame, read_frame};
use crate::log::store_file::{BadCopy, read_copy};
use crate::log::{Sector, State};
use crate::port::op::wait_for;
use crate::port::{BinaryKey, ErrorKind, StorageError};

/// Findings after which the rest is only counted in words: a ruined disk must not fill memory.
const FINDINGS_MAX: usize = 10_000;

struct Verifier<'a> {
    inner: &'a Arc<Inner>,
    report: VerifyReport,
    /// Not every live record was met where it should lie.
    lacking: bool,
    total: u64,
    progress: &'a mut dyn FnMut(VerifyProgress),
}

impl Inner {
    /// See [`Store::verify`](super::Store::verify).
    pub fn verify(
        self: &Arc<Self>,
        progress: &mut dyn FnMut(VerifyProgress),
    ) -> Result<VerifyReport, StorageError> {
        self.check_open()?;
        let begun = self.commits.lock().last_lsn();
        let total = (0..self.sectors.len())
            .flat_map(|number| self.segments(number))
            .map(|segment| segment.written)
            .sum();
        let mut verifier = Verifier {
            inner: self,
            report: VerifyReport::default(),
            lacking: false,
            total,
            progress,
        };
        for number in self.sectors.members().iter() {
            let sector = Arc::clone(&self.sectors[number]);
            if sector.is_stood_in_for() {
                let why = sector.poisoned().unwrap_or_default();
                verifier.find(&sector, 0, None, format!("the sector is left out: {why}"));
                continue;
            }
            verifier.areas(&sector)?;
            verifier.checkpoints(&sector)?;
            verifier.segments(number, &sector)?;
            verifier.accounting(number, &sector)?;
        }
        // What was written or moved meanwhile may lie where the walk had been before.
        if verifier.lacking || self.commits.lock().last_lsn() != begun {
            for number in 0..self.sectors.len() {
                verifier.blobs(number)?;
            }
        }
        let mut report = verifier.report;
        let damage = self.damage.lock().clone();
        for error in damage {
            let finding = finding(error)?;
            let members = self.sectors.members();
            if !members.contains(finding.place.sector.into()) {
                continue;
            }
            if !report
                .findings
                .iter()
                .any(|found| found.place == finding.place)
            {
                report.findings.push(finding);
            }
        }
        report.findings.dedup();
        Ok(report)
    }
}

impl Inner {
    /// What is wrong with a sector's superblocks and checkpoints, and how many bytes were read to know.
    ///
    /// # Errors
    /// What is no damage.
    pub fn look_at_checkpoints(
        self: &Arc<Self>,
        number: usize,
    ) -> Result<(Vec<Finding>, u64), StorageError> {
        let sector = Arc::clone(&self.sectors[number]);
        let mut verifier = Verifier {
            inner: self,
            report: VerifyReport::default(),
            lacking: false,
            total: 0,
            progress: &mut |_| {},
        };
        verifier.areas(&sector)?;
        verifier.checkpoints(&sector)?;
        let findings = verifier.report.findings;
        let images = self.kept.lock()[number].image_bytes();
        Ok((findings, 2 * AREA_SIZE + images))
    }
}

/// Corruption and failed reads are findings; other errors end the verify.
///
/// # Errors
/// Those.
pub fn finding(error: StorageError) -> Result<Finding, StorageError> {
    match error {
        StorageError::Corruption { place, key, what } => Ok(Finding { place, key, what }),
        StorageError::Io {
            place,
            operation,
            source,
        } => Ok(Finding {
            place,
            key: None,
            what: format!("{operation} failed: {source}"),
        }),
        other => Err(other),
    }
}

impl Verifier<'_> {
    fn find(&mut self, sector: &Sector, offset: u64, key: Option<BinaryKey>, what: String) {
        if self.report.findings.len() < FINDINGS_MAX {
            self.report.findings.push(Finding {
                place: sector.place(offset),
                key,
                what,
            });
        }
    }

    /// Notes what is a [`finding`].
    fn found<T>(&mut self, outcome: Result<T, StorageError>) -> Result<Option<T>, StorageError> {
        match outcome {
            Ok(value) => Ok(Some(value)),
            Err(error) => {
                let finding = finding(error)?;
                if self.report.findings.len() < FINDINGS_MAX {
                    self.report.findings.push(finding);
                }
                Ok(None)
            }
        }
    }

    fn read(&mut self, bytes: u64) {
        self.report.bytes += bytes;
        (self.progress)(VerifyProgress {
            done: self.report.bytes.min(self.total),
            total: self.total,
        });
    }

    fn areas(&mut self, sector: &Arc<Sector>) -> Result<(), StorageError> {
        // Nothing in them is to be written meanwhile, nor the sector to grow.
        let _alone = self.inner.maintenance.lock();
        self.superblocks(sector)?;
        self.store_file_copies(sector);
        Ok(())
    }

    fn superblocks(&mut self, sector: &Arc<Sector>) -> Result<(), StorageError> {
        for address in sector.geometry().superblocks() {
            let length = size_of::<Superblock>() as u64;
            let read = sector.read(address..address + length);
            let Some((buffer, skip)) = self.found(wait_for(read))? else {
                continue;
            };
            match Superblock::decode(&buffer[skip..], address) {
                Ok(superblock) if superblock.identity() == *sector.identity() => {}
                Ok(_) => self.find(
                    sector,
                    address,
                    None,
                    "this superblock copy is of another sector".to_owned(),
                ),
                Err(error) => self.find(
                    sector,
                    address,
                    None,
                    format!("a superblock copy is damaged: {error}"),
                ),
            }
        }
        Ok(())
    }

    fn store_file_copies(&mut self, sector: &Sector) {
        for address in sector.geometry().store_file_copies() {
            let copy = wait_for(read_copy(sector, address));
            if let Err(wrong) = copy {
                let what = match wrong {
                    BadCopy::Damaged(FormatError::Magic { found: 0, .. }) => {
                        "a copy of the store file is missing".to_owned()
                    }
                    wrong => format!("a copy of the store file is damaged: {wrong}"),
                };
                self.find(sector, address, None, what);
            }
        }
    }

    fn checkpoints(&mut self, sector: &Arc<Sector>) -> Result<(), StorageError> {
        // No checkpoint is to be replaced while it is read.
        let _alone = self.inner.maintenance.lock();
        let (roots, notes) = wait_for(read_roots(sector));
        for (address, note) in notes.lost.into_iter().chain(notes.to_mend) {
            self.find(sector, address, None, note);
        }
        for root in roots {
            self.found(wait_for(read_image(sector, &root)))?;
            for segment in root.segments {
                let base = sector.geometry().segment_offset(segment);
                let block = u64::from(sector.geometry().block_size);
                if let Some((buffer, skip)) =
                    self.found(wait_for(sector.read(base..base + block)))?
                {
                    self.header_padding(sector, base, &buffer[skip..]);
                }
            }
        }
        Ok(())
    }

    /// What follows a segment header in its block is zeros.
    fn header_padding(&mut self, sector: &Sector, base: u64, block: &[u8]) {
        let padding = block.iter().skip(size_of::<SegmentHeader>());
        if padding.into_iter().any(|&byte| byte != 0) {
            let what = "the block of a segment header is not zero behind it";
            self.find(sector, base, None, what.to_owned());
        }
    }

    fn segments(&mut self, number: usize, sector: &Arc<Sector>) -> Result<(), StorageError> {
        for info in self.inner.segments(number) {
            self.inner.check_open()?;
            let index = self.inner.index.read();
            let segment = *index.sectors[number].segments.get(info.index);
            let base = sector.geometry().segment_offset(info.index);
            let pin = sector.pin(std::iter::once(base));
            drop(index);
            // One that was just opened has nothing on disk yet.
            if matches!(segment.state, State::Open | State::Sealed) && segment.written > 0 {
                let live =
                    self.log_segment(sector, info.index, segment.generation, segment.written)?;
                // What died meanwhile is missed by nobody; what was written meanwhile may be.
                let index = self.inner.index.read();
                let now = index.sectors[number].segments.get(info.index);
                self.lacking |= now.generation == segment.generation && live < now.live;
            } else {
                if matches!(segment.state, State::Free | State::Reclaimed) {
                    self.found(wait_for(check_old_header(sector, info.index)))?;
                }
                self.read(segment.written);
            }
            drop(pin);
        }
        Ok(())
    }

    fn log_segment(
        &mut self,
        sector: &Arc<Sector>,
        segment: u32,
        generation: u64,
        written: u64,
    ) -> Result<u64, StorageError> {
        let mut live = 0;
        let geometry = sector.geometry();
        let base = geometry.segment_offset(segment);
        let block = u64::from(geometry.block_size);
        self.report.segments += 1;
        let Some((buffer, skip)) = self.found(wait_for(sector.read(base..base + block)))? else {
            return Ok(live);
        };
        let header = &buffer[skip..];
        let mut previous =
            match SegmentHeader::decode(header, sector.identity(), &geometry, segment) {
                Ok(found) if found.generation == generation => {
                    self.header_padding(sector, base, header);
                    Some(found.checksum.get())
                }
                Ok(found) => {
                    self.find(
                        sector,
                        base,
                        None,
                        format!(
                            "segment {segment} is of generation {}, not {generation}",
                            found.generation
                        ),
                    );
                    None
                }
                Err(error) => {
                    self.find(sector, base, None, format!("segment {segment}: {error}"));
                    None
                }
            };
        self.read(block);
        let mut offset = block;
        let mut lsn = 0;
        while offset < written {
            let address = base + offset;
            let Some(frame) = self.found(wait_for(read_frame(sector, address)))? else {
                return Ok(live);
            };
            let (header, buffer, skip) = match frame {
                Ok(frame) => frame,
                Err(error) => {
                    self.find(
                        sector,
                        address,
                        None,
                        format!("{error}; the rest of segment {segment} can't be walked"),
                    );
                    return Ok(live);
                }
            };
            if !header.continues(generation, previous.unwrap_or(header.previous.get()), lsn) {
                self.find(
                    sector,
                    address,
                    None,
                    "the frame does not continue the log [F-22]".to_owned(),
                );
            }
            previous = Some(header.checksum.get());
            lsn = header.lsn.get();
            let frame = &buffer[skip..skip + header.length.get() as usize];
            live += self.frame(sector, frame, &header, address)?;
            if frame[header.used.get() as usize..]
                .iter()
                .any(|&byte| byte != 0)
            {
                self.find(
                    sector,
                    address,
                    None,
                    "the frame's padding is not zero [F-23]".to_owned(),
                );
            }
            self.report.frames += 1;
            self.read(u64::from(header.length.get()));
            offset += u64::from(header.length.get());
        }
        Ok(live)
    }

    /// Checks a frame's records. Returns how many bytes of them the index names.
    fn frame(
        &mut self,
        sector: &Arc<Sector>,
        frame: &[u8],
        header: &graviton_format::frame::FrameHeader,
        address: u64,
    ) -> Result<u64, StorageError> {
        let mut live = 0;
        match decode_frame(sector, frame, header, address) {
            Ok((records, _)) => {
                for record in &records {
                    if !record.whole {
                        self.find(
                            sector,
                            record.address,
                            Some(record.key.clone()),
                            "payload does not verify".to_owned(),
                        );
                    }
                }
                self.report.records += records.len() as u64;
                let index = self.inner.index.read();
                let part = &index.sectors[usize::from(sector.number())];
                for record in &records {
                    let key = record.key.stored();
                    let found = part.is_live(record.kind, key, record.lsn, record.address);
                    if !matches!(found, Ok(true)) {
                        continue;
                    }
                    let length =
                        record_length(key.len(), record.meta.len(), record.payload_length.into());
                    live += length;
                    // The index must say of it what it is.
                    let number = usize::from(sector.number());
                    if let Ok(Some(entry)) = index.entry_in(number, key)
                        && entry.record_lsn() == record.lsn
                    {
                        self.lacking |=
                            entry.record_length(key) != length || !part.may_be(record.kind, &entry);
                    }
                }
            }
            Err(error) => self.find(sector, address, None, error.to_string()),
        }
        Ok(live)
    }

    /// Live bytes as the index counts them, against what it names, segment by segment.
    fn accounting(&mut self, number: usize, sector: &Arc<Sector>) -> Result<(), StorageError> {
        let mut live: HashMap<u32, u64> = HashMap::new();
        let mut count = |address: u64, length: u64| {
            if let Some((segment, _)) = sector.geometry().segment_of(address) {
                *live.entry(segment).or_default() += length;
            }
        };
        let index = self.inner.index.read();
        let part = &index.sectors[number];
        for (address, length) in part.extent_records() {
            count(address, length);
        }
        let (mut dangling, mut stale) = (Vec::new(), Vec::new());
        part.scan(&[], |key, entry| {
            let key = BinaryKey::of_stored(key).map_err(|error| sector.corruption(0, error))?;
            if let Some(found) = index.lookup(key.stored())? {
                // Of several replicas the first is the blob.
                self.report.blobs += u64::from(key.is_blob() && found.number == number);
                if found.entry.lsn != entry.lsn && stale.len() < FINDINGS_MAX {
                    stale.push((key.clone(), entry.address, found.number));
                }
            }
            // Where no segment of the log is, no record was met.
            let place = sector.geometry().segment_of(entry.address);
            let is_in_log = place.is_some_and(|(segment, offset)| {
                let segment = part.segments.get(segment);
                matches!(segment.state, State::Open | State::Sealed) && offset < segment.written
            });
            self.lacking |= !is_in_log;
            // A blob record that manifests share is counted among the extents.
            if !part.is_extent(entry) {
                count(entry.address, entry.record_length(key.stored()));
            }
            if entry.extents.is_some() && dangling.len() < FINDINGS_MAX {
                dangling.extend(part.pieces(&key, entry, &(0..entry.size)).err());
            }
            Ok(true)
        })?;
        let wrong: Vec<_> = part
            .segments
            .iter()
            .map(|(segment, entry)| {
                (
                    segment,
                    entry.live,
                    live.get(&segment).copied().unwrap_or(0),
                )
            })
            .filter(|(_, counted, named)| counted != named)
            .collect();
        drop(index);
        for error in dangling {
            self.found::<()>(Err(error))?;
        }
        for (key, address, other) in stale {
            let what = format!("the index has an older version here than in sector {other}");
            self.find(sector, address, Some(key), what);
        }
        for (segment, counted, named) in wrong {
            let what =
                format!("segment {segment} counts {counted} live bytes, the index names {named}");
            self.find(
                sector,
                sector.geometry().segment_offset(segment),
                None,
                what,
            );
        }
        Ok(())
    }

    /// Every blob of a sector's index: its record is there and is what the index says. (Its payload was
    /// read with the segments.)
    fn blobs(&mut self, number: usize) -> Result<(), StorageError> {
        const PAGE: usize = 1024;
        let sector = Arc::clone(&self.inner.sectors[number]);
        let mut from = Vec::new();
        loop {
            self.inner.check_open()?;
            let mut page = Vec::new();
            let mut wrong = Vec::new();
            {
                let index = self.inner.index.read();
                let part = &index.sectors[number];
                let scanned = part.scan(&from, |key, entry| {
                    let key =
                        BinaryKey::of_stored(key).map_err(|error| sector.corruption(0, error))?;
                    let pin = sector.pin(std::iter::once(entry.address));
                    let kinds = [RecordKind::Blob, RecordKind::Manifest];
                    let kinds = kinds.map(|kind| part.may_be(kind, entry).then_some(kind));
                    page.push((key, entry.clone(), kinds, pin));
                    Ok(page.len() < PAGE)
                });
                wrong.extend(scanned.err());
            }
            let broken = wrong
                .iter()
                .any(|error| error.kind() == ErrorKind::Corruption)
                && page.is_empty();
            for error in wrong {
                self.found::<()>(Err(error))?;
            }
            let full = page.len() == PAGE;
            if let Some((key, ..)) = page.last() {
                from = [key.stored(), &[0]].concat();
            }
            for (key, entry, kinds, _pin) in page {
                let head = record_length(key.stored().len(), entry.meta_length as usize, 0);
                let Some((buffer, skip)) = self.found(wait_for(
                    sector.read(entry.address..entry.address.saturating_add(head)),
                ))?
                else {
                    continue;
                };
                let payload = entry.record_payload();
                match RecordView::decode(
                    &buffer[skip..],
                    sector.identity(),
                    &sector.geometry(),
                    entry.address,
                ) {
                    Ok(record)
                        if record.key == key.stored()
                            && record.header.lsn == entry.record_lsn()
                            && kinds.contains(&Some(record.kind))
                            && record.stored_payload() == stored_length(payload) => {}
                    Ok(_) => self.find(
                        &sector,
                        entry.address,
                        Some(key),
                        "the index names another record than lies here".to_owned(),
                    ),
                    Err(error) => self.find(
                        &sector,
                        entry.address,
                        Some(key),
                        format!("the index names a record that is damaged: {error}"),
                    ),
                }
            }
            if !full || broken {
                return Ok(());
            }
        }
    }
}
