//! Segment headers, and what the checkpoint and the log say of the segments.

use std::collections::{BTreeMap, HashMap, HashSet};

use graviton_format::checkpoint::CheckpointRoot;
use graviton_format::frame::FrameHeader;
use graviton_format::image::SegmentEntry;
use graviton_format::segment::{KIND_LOG, NONE, SegmentHeader};
use graviton_format::superblock::Superblock;
use graviton_format::{FormatError, Structure};
use serde_json::{Value, json};

use super::checkpoint::{Newest, Root, RootCopy, entry_text, roots, state_name};
use super::disk::Disk;
use super::log::{Link, Log, Trace, trace};
use super::sector::Layout;
use super::tell::{Teller, rows_json};
use crate::failure::Failure;

/// What lies where a segment's header should.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Found {
    Good(SegmentHeader),
    /// No magic, and no frame behind it.
    Unused,
    /// The file ends before it.
    Missing,
    Damaged(String),
}

fn find(disk: &Disk, layout: &Layout, segment: u32) -> (Vec<u8>, Found) {
    let Layout { identity, geometry } = layout;
    let address = geometry.segment_offset(segment);
    let block = u64::from(geometry.block_size);
    let bytes = disk.peek(address, SegmentHeader::SIZE);
    let found = match SegmentHeader::decode(&bytes, identity, geometry, segment) {
        Ok(header) => Found::Good(header),
        Err(_) if address >= disk.size() => Found::Missing,
        // [F-67]
        Err(_) if is_outgrown(disk, layout, address) => Found::Unused,
        Err(error) => {
            // [F-51]
            let behind = disk.peek(address + block, FrameHeader::SIZE);
            let frame = FrameHeader::decode(&behind, identity, geometry, address + block);
            match error {
                FormatError::Magic { found: 0, .. } if frame.is_err() => Found::Unused,
                error => Found::Damaged(error.to_string()),
            }
        }
    };
    (bytes, found)
}

/// Whether a segment begins with what was the back area before the sector grew \[F-67\].
fn is_outgrown(disk: &Disk, layout: &Layout, address: u64) -> bool {
    let bytes = disk.peek(address, Superblock::SIZE);
    Superblock::is_outgrown(&bytes, address, &layout.identity)
}

/// The headers of all segments.
#[derive(Debug, Default)]
pub struct Headers {
    good: BTreeMap<u32, SegmentHeader>,
    damaged: Vec<u32>,
    /// Segments of the log by the place that they continue.
    links: HashMap<(u32, u64, u64), Vec<u32>>,
    /// Segments of the log that continue none.
    first: Vec<u32>,
}

impl Headers {
    fn read(disk: &Disk, layout: &Layout) -> Self {
        let mut headers = Self::default();
        for segment in 0..layout.geometry.segment_count {
            match find(disk, layout, segment).1 {
                Found::Good(header) => headers.add(segment, header),
                Found::Damaged(_) => headers.damaged.push(segment),
                Found::Unused => {}
                // However many more there should be.
                Found::Missing => break,
            }
        }
        headers
    }

    fn add(&mut self, segment: u32, header: SegmentHeader) {
        if header.kind.get() == KIND_LOG {
            let from = (
                header.previous_segment.get(),
                header.previous_generation.get(),
                u64::from(header.previous_end.get()),
            );
            if from.0 == NONE {
                self.first.push(segment);
            } else {
                self.links.entry(from).or_default().push(segment);
            }
        }
        self.good.insert(segment, header);
    }

    /// The good ones, by segment.
    pub fn good(&self) -> impl Iterator<Item = &SegmentHeader> {
        self.good.values()
    }

    /// The good one of a segment.
    pub fn get(&self, segment: u32) -> Option<&SegmentHeader> {
        self.good.get(&segment)
    }

    /// Segments whose headers are not good, but which may have been in use.
    pub fn damaged(&self) -> &[u32] {
        &self.damaged
    }

    /// The segment that continues the log behind the given place \[F-50\].
    pub fn next(
        &self,
        segment: u32,
        generation: u64,
        offset: u64,
        continues: impl Fn(&SegmentHeader) -> bool,
    ) -> Option<&SegmentHeader> {
        let candidates = if segment == NONE {
            Some(&self.first)
        } else {
            self.links.get(&(segment, generation, offset))
        };
        candidates?
            .iter()
            .filter_map(|segment| self.good.get(segment))
            .filter(|header| header.generation.get() > generation && continues(header))
            .min_by_key(|header| header.generation.get())
    }
}

/// What is known of a sector's segments: by their headers, the checkpoint and the log.
#[derive(Debug)]
pub struct Facts {
    /// Their headers.
    pub headers: Headers,
    roots: Vec<(u64, u64)>,
    /// The log's way by segment.
    links: HashMap<u32, Link>,
    table: Vec<SegmentEntry>,
    /// Segments of the checkpoint that the table is of, and of the one before: they may not be
    /// taken yet \[F-55\].
    retained: HashSet<u32>,
    tail: Option<CheckpointRoot>,
    /// The log from the checkpoint to its end, if there is a good root.
    pub trace: Option<Trace>,
}

/// The checkpoints that there are, to tell whether there are others later.
fn fingerprint(roots: &[Root]) -> Vec<(u64, u64)> {
    let roots = roots.iter();
    roots
        .map(|(root, _)| (root.sequence.get(), root.pages_checksum.get()))
        .collect()
}

impl Facts {
    /// Finds them out.
    pub fn gather(teller: &Teller<'_>, log: &Log<'_>) -> Result<Self, Failure> {
        let Log { disk, layout } = log;
        let roots = roots(&RootCopy::all(disk, layout));
        let Newest { found: good, notes } = Newest::find(disk, layout, &roots);
        for note in notes {
            teller.note(note)?;
        }
        let headers = Headers::read(disk, layout);
        let newest = roots.first().map_or(0, |(root, _)| root.lsn.get());
        if good.is_none() {
            teller.damage(0, "the sector has no good checkpoint")?;
        }
        // A root knows where the log goes on even if its image is lost.
        let tail = match &good {
            Some(((root, _), _)) => Some(*root),
            None => roots.first().map(|(root, _)| *root),
        };
        // Newer ones than the table's are no part of this: they took their segments after it.
        let sequence = tail.map_or(0, |root| root.sequence.get());
        let retained = roots
            .iter()
            .filter(|(root, _)| root.sequence.get() <= sequence)
            .flat_map(|(_, segments)| segments.iter().copied())
            .collect();
        let trace = tail.map(|root| trace(log, &headers, &root, newest));
        let links = trace.iter().flat_map(|trace| &trace.links);
        Ok(Self {
            headers,
            roots: fingerprint(&roots),
            links: links.map(|link| (link.segment, *link)).collect(),
            table: good.map_or_else(Vec::new, |(_, image)| image.segments().collect()),
            retained,
            tail,
            trace,
        })
    }

    /// What the checkpoint says of a segment.
    pub fn entry(&self, segment: u32) -> Option<&SegmentEntry> {
        self.table.get(usize::try_from(segment).ok()?)
    }

    /// Whether a segment has to be as the checkpoint says. One of an older checkpoint, which was
    /// retained while the image was written, is free since its root is.
    fn is_held(&self, segment: u32, entry: &SegmentEntry) -> bool {
        match entry.state {
            1 | 2 => true,
            4 => self.retained.contains(&segment),
            _ => false,
        }
    }

    /// What the checkpoint says of a segment in this generation; the log may have taken it since.
    pub fn state(&self, segment: u32, generation: u64) -> &'static str {
        if self.link_end(segment, generation).is_some() {
            return "log";
        }
        match self.entry(segment) {
            Some(entry) if entry.generation.get() == generation => state_name(entry.state),
            Some(_) => "leftover",
            None => "unknown",
        }
    }

    /// Where the log ends or goes on elsewhere, if it comes through this segment.
    fn link_end(&self, segment: u32, generation: u64) -> Option<u64> {
        let link = self.links.get(&segment)?;
        (link.generation == generation).then_some(link.end)
    }

    /// The offset up to which a segment's frames have to be good, if that is known.
    pub fn required(&self, segment: u32, generation: u64) -> Option<u64> {
        if let Some(end) = self.link_end(segment, generation) {
            return Some(end);
        }
        let entry = self.entry(segment)?;
        let holds = matches!(entry.state, 1 | 2) && entry.generation.get() == generation;
        holds.then(|| entry.written.get().into())
    }

    /// The highest LSN known to have been durable.
    pub fn durable(&self) -> u64 {
        let root = self.tail.map_or(0, |root| root.lsn.get());
        self.trace
            .as_ref()
            .map_or(root, |trace| trace.durable.max(root))
    }

    /// Whether this is where the log ends.
    pub fn is_last(&self, segment: u32, generation: u64) -> bool {
        let last = self.trace.as_ref().and_then(|trace| trace.links.last());
        last.is_some_and(|link| link.segment == segment && link.generation == generation)
    }

    /// Segments that hold frames, in the log's order, with their generations: those whose headers
    /// are damaged come last.
    pub fn log_segments(&self, log: &Log<'_>) -> Vec<(u32, u64)> {
        let mut segments: Vec<(u32, u64)> = self
            .headers
            .good()
            .filter(|header| header.kind.get() == KIND_LOG)
            .map(|header| (header.segment.get(), header.generation.get()))
            .collect();
        segments.sort_unstable_by_key(|&(segment, generation)| (generation, segment));
        let damaged = self.headers.damaged().iter();
        segments.extend(damaged.filter_map(|&segment| {
            let generation = self.generation_behind(log, segment)?;
            Some((segment, generation))
        }));
        segments
    }

    /// The generation of a segment whose header is damaged: by the checkpoint, or its first frame.
    fn generation_behind(&self, log: &Log<'_>, segment: u32) -> Option<u64> {
        let tail = self.tail.filter(|root| root.tail_segment.get() == segment);
        let entry = self
            .entry(segment)
            .filter(|entry| matches!(entry.state, 1 | 2));
        tail.map(|root| root.tail_generation.get())
            .or_else(|| entry.map(|entry| entry.generation.get()))
            .or_else(|| {
                let geometry = &log.layout.geometry;
                let base = geometry.segment_offset(segment);
                let end = geometry
                    .segment_size
                    .saturating_add(base)
                    .min(log.disk.size());
                let block = u64::from(geometry.block_size);
                let blocks = end.saturating_sub(base) / block;
                let frame = (1..blocks).find_map(|number| log.frame(base + number * block).ok());
                frame.map(|frame| frame.generation.get())
            })
    }

    /// Says where the log ends, and whether that can be right.
    pub fn tell_end(&self, teller: &Teller<'_>, layout: &Layout) -> Result<(), Failure> {
        let Some(trace) = &self.trace else {
            return Ok(());
        };
        let last = trace.last;
        let end = trace.links.last();
        let address = end.map_or(0, |link| {
            layout
                .geometry
                .segment_offset(link.segment)
                .saturating_add(link.end)
        });
        teller.object(
            "log_end",
            json!({"address": address, "segment": end.map(|link| link.segment),
                "offset": end.map(|link| link.end), "lsn": last, "durable_lsn": trace.durable,
                "corrupt": trace.is_corrupt()}),
        )?;
        if trace.is_corrupt() {
            let durable = trace.durable;
            return teller.damage(
                address,
                format!(
                    "the log breaks off after LSN {last}, but LSN {durable} was acknowledged [F-51]"
                ),
            );
        }
        match end {
            Some(link) => teller.line(format!(
                "end of log: segment {} at offset {}, LSN {last}",
                link.segment, link.end
            )),
            None => teller.line("end of log: no segment was taken into use yet"),
        }
    }

    /// Takes back the judgement if a checkpoint was taken in the meantime: segments are then used
    /// for other things than was thought.
    pub fn tell_changes(&self, teller: &Teller<'_>, log: &Log<'_>) -> Result<(), Failure> {
        let now = roots(&RootCopy::all(log.disk, log.layout));
        if fingerprint(&now) == self.roots {
            return Ok(());
        }
        teller.forgive();
        teller.note("a checkpoint was taken meanwhile: what seems damaged may only have moved")
    }
}

/// `dump segments`.
pub fn dump(teller: &Teller<'_>, log: &Log<'_>, only: Option<u32>) -> Result<(), Failure> {
    let facts = Facts::gather(teller, log)?;
    let segments = match only {
        Some(only) => only..only.saturating_add(1),
        None => 0..log.layout.geometry.segment_count,
    };
    for segment in segments {
        let address = log.layout.geometry.segment_offset(segment);
        if address >= log.disk.size() {
            teller.damage(address, format!("the file ends before segment {segment}"))?;
            break;
        }
        show(teller, log, &facts, segment)?;
    }
    if only.is_none() {
        facts.tell_end(teller, log.layout)?;
    }
    facts.tell_changes(teller, log)
}

fn show(teller: &Teller<'_>, log: &Log<'_>, facts: &Facts, segment: u32) -> Result<(), Failure> {
    let address = log.layout.geometry.segment_offset(segment);
    let (bytes, found) = find(log.disk, log.layout, segment);
    let entry = facts.entry(segment);
    let by_table = entry.map_or_else(|| "no checkpoint".to_owned(), entry_text);
    let (header, error) = match &found {
        Found::Good(header) => (header_text(header), None),
        Found::Unused | Found::Missing => ("never used".to_owned(), None),
        Found::Damaged(error) => (format!("BAD: {error}"), Some(error)),
    };
    let taken = match (&found, entry) {
        (Found::Good(header), Some(entry)) if header.generation.get() > entry.generation.get() => {
            let log = facts.link_end(segment, header.generation.get()).is_some();
            if log {
                " (taken by the log since)"
            } else {
                " (written to since)"
            }
        }
        _ => "",
    };
    teller.line(format!(
        "segment {segment} at {address}: {header} | {by_table}{taken}"
    ))?;
    let rows = SegmentHeader::rows(&bytes, address);
    if teller.verbose && found != Found::Unused {
        teller.rows(&rows)?;
    }
    teller.object(
        "segment",
        json!({"segment": segment, "address": address,
            "header": header_json(&found), "error": error,
            "fields": if found == Found::Unused { Value::Null } else { rows_json(&rows) },
            "checkpoint": entry.map(entry_json)}),
    )?;
    judge(teller, facts, segment, address, &found)
}

fn judge(
    teller: &Teller<'_>,
    facts: &Facts,
    segment: u32,
    address: u64,
    found: &Found,
) -> Result<(), Failure> {
    let in_use = facts
        .entry(segment)
        .filter(|entry| facts.is_held(segment, entry));
    match (found, in_use) {
        (Found::Good(header), Some(entry)) if header.generation == entry.generation => Ok(()),
        (Found::Good(header), Some(entry)) => teller.damage(
            address,
            format!(
                "the header is of generation {}, the checkpoint's segment of {}",
                header.generation, entry.generation
            ),
        ),
        (_, Some(entry)) => teller.damage(
            address,
            format!("no good header, yet the segment is {}", state_name(entry.state)),
        ),
        (Found::Damaged(_), None) => teller.note(format!(
            "segment {segment}: a header that was torn or damaged; no checkpoint says that it is in use"
        )),
        _ => Ok(()),
    }
}

/// A header in a few words.
pub fn header_text(header: &SegmentHeader) -> String {
    let generation = header.generation;
    if header.kind.get() != KIND_LOG {
        return format!(
            "checkpoint, generation {generation}, part {} of checkpoint {}",
            header.previous_segment, header.previous_generation
        );
    }
    let from = match header.previous_segment.get() {
        NONE => "the log begins here".to_owned(),
        segment => format!(
            "from segment {segment}, generation {}, up to {}",
            header.previous_generation, header.previous_end
        ),
    };
    format!(
        "log, generation {generation}, LSN {}.., durable {}, {from}",
        header.first_lsn, header.durable_lsn
    )
}

fn header_json(found: &Found) -> Value {
    let Found::Good(header) = found else {
        return Value::Null;
    };
    if header.kind.get() != KIND_LOG {
        return json!({"kind": "checkpoint", "generation": header.generation.get(),
            "part": header.previous_segment.get(), "sequence": header.previous_generation.get()});
    }
    let first = header.previous_segment.get() == NONE;
    let previous = (!first).then(|| {
        json!({"segment": header.previous_segment.get(),
            "generation": header.previous_generation.get(), "end": header.previous_end.get(),
            "lsn": header.previous_lsn.get()})
    });
    json!({"kind": "log", "generation": header.generation.get(),
        "first_lsn": header.first_lsn.get(), "durable_lsn": header.durable_lsn.get(),
        "previous": previous})
}

fn entry_json(entry: &SegmentEntry) -> Value {
    json!({"state": state_name(entry.state), "generation": entry.generation.get(),
        "live": entry.live.get(), "written": entry.written.get(), "zeroed": entry.zeroed == 1})
}
