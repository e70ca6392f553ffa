//! Checkpoint roots, and the images they name.

use std::collections::HashSet;

use graviton_format::checkpoint::{
    CheckpointRoot, image_page_checksum, pages_checksum, stored_image_length,
};
use graviton_format::geometry::{ROOT_SLOT_SIZE, ROOT_SLOTS};
use graviton_format::image::{Image, ImageEntry, ImageHeader, ImageValue, PAGE_SIZE, SegmentEntry};
use graviton_format::segment::{KIND_CHECKPOINT, SegmentHeader};
use graviton_format::{Structure, segment};
use serde_json::{Value, json};

use super::disk::{Disk, READ_MAX};
use super::sector::Layout;
use super::tell::{Teller, rows_json};
use crate::failure::Failure;
use crate::keys;
use crate::output::count;

/// An image longer than this is not taken into memory.
const IMAGE_MAX_LEN: u64 = 1 << 32;
/// Bad pages that are named one by one.
const PAGES_NAMED: usize = 16;
/// Segments of an image that are shown to people.
const SEGMENTS_SHOWN: usize = 16;

/// A root with the list of its image's segments.
pub type Root = (CheckpointRoot, Vec<u32>);

/// A copy of a root.
#[derive(Debug)]
pub struct RootCopy {
    slot: u64,
    name: &'static str,
    address: u64,
    bytes: Vec<u8>,
    /// All zeros.
    unused: bool,
    outcome: Result<Root, String>,
}

impl RootCopy {
    /// All four of them.
    pub fn all(disk: &Disk, layout: &Layout) -> Vec<Self> {
        let copy = |slot: u64, name, address| {
            let mut bytes = disk.peek(address, ROOT_SLOT_SIZE);
            let outcome =
                CheckpointRoot::decode(&bytes, &layout.identity, &layout.geometry, address)
                    .map_err(|error| error.to_string());
            let unused = bytes.len() == ROOT_SLOT_SIZE && bytes.iter().all(|&byte| byte == 0);
            bytes.truncate(CheckpointRoot::SIZE);
            Self {
                slot,
                name,
                address,
                bytes,
                unused,
                outcome,
            }
        };
        (0..ROOT_SLOTS)
            .flat_map(|slot| {
                let [front, back] = layout.geometry.roots(slot);
                [copy(slot, "front", front), copy(slot, "back", back)]
            })
            .collect()
    }

    fn verdict(&self) -> &str {
        match &self.outcome {
            Ok(_) => "good",
            Err(_) if self.unused => "never used",
            Err(error) => error,
        }
    }
}

/// The good roots, each once, the newest first.
pub fn roots(copies: &[RootCopy]) -> Vec<Root> {
    let mut roots: Vec<Root> = Vec::new();
    for (root, list) in copies.iter().filter_map(|copy| copy.outcome.as_ref().ok()) {
        // The copies' own checksums differ, for they bind the address.
        let same = |(known, segments): &Root| {
            let mut known = *known;
            known.checksum = root.checksum;
            known == *root && segments == list
        };
        if !roots.iter().any(same) {
            roots.push((*root, list.clone()));
        }
    }
    roots.sort_by_key(|(root, _)| std::cmp::Reverse(root.sequence.get()));
    roots
}

/// An image, as far as it can be read, and what is wrong with it.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Where the image lies.
    address: u64,
    pages: u64,
    /// The first bad pages: number and address.
    bad_pages: Vec<(u64, u64)>,
    bad_page_count: u64,
    /// What is wrong: where, and what.
    problems: Vec<(u64, String)>,
    /// The image, be it right or wrong.
    pub image: Option<Image<Vec<u8>>>,
}

impl Loaded {
    /// Reads the image of a root and checks all but the entries.
    pub fn read(disk: &Disk, layout: &Layout, (root, list): &Root) -> Self {
        let mut loaded = Self::default();
        loaded.check_parts(disk, layout, (root, list));
        let distinct: HashSet<u32> = list.iter().copied().collect();
        if distinct.len() < list.len() {
            loaded.problem("the list names a segment twice");
            return loaded;
        }
        let Some(mut stored) = loaded.collect(disk, layout, root, list) else {
            return loaded;
        };
        let length = root.image_length.get();
        loaded.pages = length.div_ceil(PAGE_SIZE as u64);
        loaded.check_pages(layout, (root, list), &stored);
        stored.truncate(usize::try_from(length).unwrap_or(usize::MAX));
        match Image::open(stored) {
            Ok(image) => {
                if let Err(error) = image.check(&layout.geometry) {
                    loaded.problem(error.to_string());
                }
                if image.header().length.get() != length {
                    loaded.problem(format!(
                        "the image says that it has {} bytes, its root {length} [F-37]",
                        image.header().length
                    ));
                }
                loaded.image = Some(image);
            }
            Err(error) => loaded.problem(error.to_string()),
        }
        loaded
    }

    /// Whether a recovery may begin here, as far as was checked.
    pub fn is_good(&self) -> bool {
        self.image.is_some() && self.problems.is_empty() && self.bad_page_count == 0
    }

    /// The first thing that is wrong.
    pub fn first_problem(&self) -> Option<String> {
        let problem = self.problems.first();
        problem.map(|(_, what)| what.clone()).or_else(|| {
            let (number, _) = self.bad_pages.first()?;
            Some(format!("page {number} does not verify"))
        })
    }

    fn problem(&mut self, what: impl Into<String>) {
        self.problems.push((self.address, what.into()));
    }

    fn check_parts(
        &mut self,
        disk: &Disk,
        layout: &Layout,
        (root, list): (&CheckpointRoot, &[u32]),
    ) {
        let geometry = &layout.geometry;
        for (part, &number) in (0_u32..).zip(list) {
            let address = geometry.segment_offset(number);
            if part == 0 {
                self.address = address + u64::from(geometry.block_size);
            }
            let bytes = disk.peek(address, SegmentHeader::SIZE);
            let what = match SegmentHeader::decode(&bytes, &layout.identity, geometry, number) {
                Ok(header)
                    if header.kind.get() == KIND_CHECKPOINT
                        && header.previous_segment.get() == part
                        && header.previous_generation.get() == root.sequence.get() =>
                {
                    continue;
                }
                Ok(header) if header.kind.get() == segment::KIND_LOG => {
                    format!("segment {number} belongs to the log, not to the image")
                }
                Ok(header) => format!(
                    "segment {number} is part {} of checkpoint {}, not part {part} of {}",
                    header.previous_segment, header.previous_generation, root.sequence
                ),
                Err(error) => format!("segment {number}: {error}"),
            };
            self.problems.push((address, what));
        }
    }

    /// The stored image, in one piece.
    fn collect(
        &mut self,
        disk: &Disk,
        layout: &Layout,
        root: &CheckpointRoot,
        list: &[u32],
    ) -> Option<Vec<u8>> {
        let geometry = &layout.geometry;
        let needed = stored_image_length(root.image_length.get())?;
        if needed > IMAGE_MAX_LEN {
            self.problem(format!("{needed} bytes are too many to be looked at here"));
            return None;
        }
        let mut stored: Vec<u8> = Vec::new();
        for &number in list {
            let start = geometry.segment_offset(number) + u64::from(geometry.block_size);
            let left = needed.saturating_sub(stored.len() as u64);
            let room = left.min(geometry.image_bytes_per_segment());
            for at in (0..room).step_by(READ_MAX) {
                let length = usize::try_from(room - at).unwrap_or(READ_MAX).min(READ_MAX);
                // Memory is taken for bytes that are there only.
                let bytes = disk.peek(start + at, length);
                if bytes.len() < length {
                    let address = start + at + bytes.len() as u64;
                    let what = "the image is cut off: nothing can be read here".to_owned();
                    self.problems.push((address, what));
                    return None;
                }
                if stored.try_reserve(length).is_err() {
                    self.problem("there is no memory for the image");
                    return None;
                }
                stored.extend_from_slice(&bytes);
            }
        }
        Some(stored)
    }

    fn check_pages(
        &mut self,
        layout: &Layout,
        (root, list): (&CheckpointRoot, &[u32]),
        stored: &[u8],
    ) {
        let sequence = root.sequence.get();
        let split = usize::try_from(self.pages).map_or(0, |pages| pages * PAGE_SIZE);
        let (pages, table) = stored.split_at(split.min(stored.len()));
        let table: Vec<u64> = table
            .chunks_exact(8)
            .filter_map(|bytes| bytes.try_into().ok().map(u64::from_le_bytes))
            .collect();
        let place = |offset: u64| {
            let per_segment = layout.geometry.image_bytes_per_segment();
            let part = usize::try_from(offset / per_segment).unwrap_or(usize::MAX);
            let number = list.get(part).copied().unwrap_or(0);
            let block = u64::from(layout.geometry.block_size);
            layout.geometry.segment_offset(number) + block + offset % per_segment
        };
        if pages_checksum(&table) != root.pages_checksum.get() {
            let what = "the table of page checksums does not verify".to_owned();
            self.problems.push((place(pages.len() as u64), what));
        }
        for ((number, page), stored) in (0..).zip(pages.chunks(PAGE_SIZE)).zip(table) {
            if image_page_checksum(page, number, sequence) != stored {
                self.bad_page_count += 1;
                if self.bad_pages.len() < PAGES_NAMED {
                    let address = place(number * PAGE_SIZE as u64);
                    self.bad_pages.push((number, address));
                }
            }
        }
    }
}

/// The newest checkpoint whose image is good as far as [`Loaded::read`] looks.
#[derive(Debug, Default)]
pub struct Newest {
    /// Its root and its image, if there is one.
    pub found: Option<(Root, Image<Vec<u8>>)>,
    /// What is wrong with the ones before it.
    pub notes: Vec<String>,
}

impl Newest {
    /// Looks through `roots`, the newest of which is first.
    pub fn find(disk: &Disk, layout: &Layout, roots: &[Root]) -> Self {
        let mut newest = Self::default();
        for root in roots {
            let mut loaded = Loaded::read(disk, layout, root);
            if loaded.is_good()
                && let Some(image) = loaded.image.take()
            {
                newest.found = Some((root.clone(), image));
                break;
            }
            let why = loaded.first_problem().unwrap_or_default();
            let note = format!("checkpoint {} is not good: {why}", root.0.sequence);
            newest.notes.push(note);
        }
        newest
    }
}

/// What the entries of an image come to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Survey {
    blobs: u64,
    manifests: u64,
    tombstones: u64,
    logical_bytes: u64,
    error: Option<String>,
}

impl Survey {
    fn take(image: &Image<Vec<u8>>, layout: &Layout) -> Self {
        let mut survey = Self::default();
        let walked = image.seek(b"").and_then(|mut cursor| {
            while let Some(entry) = cursor.next()? {
                survey.count(&entry, layout);
            }
            Ok(())
        });
        if let Err(error) = walked {
            survey.error = Some(error.to_string());
        }
        survey
    }

    fn count(&mut self, entry: &ImageEntry, layout: &Layout) {
        match &entry.value {
            ImageValue::Tombstone => self.tombstones += 1,
            ImageValue::Blob {
                address,
                size,
                extents,
                ..
            } => {
                self.blobs += 1;
                self.manifests += u64::from(extents.is_some());
                self.logical_bytes = self.logical_bytes.saturating_add(*size);
                if layout.geometry.segment_of(*address).is_none() {
                    let error = format!("LSN {}: {address} lies in no segment", entry.lsn);
                    self.error.get_or_insert(error);
                }
            }
        }
    }
}

/// The name of a segment's state.
pub fn state_name(state: u8) -> &'static str {
    match state {
        0 => "free",
        1 => "open",
        2 => "sealed",
        3 => "reclaimed",
        4 => "checkpoint",
        _ => "unknown",
    }
}

/// What of the entries is to be shown.
#[derive(Debug, Clone, Copy)]
pub struct Entries {
    /// At most so many.
    pub most: u64,
}

/// `dump checkpoint`.
pub fn dump(
    teller: &Teller<'_>,
    disk: &Disk,
    layout: &Layout,
    entries: Option<Entries>,
) -> Result<(), Failure> {
    let copies = RootCopy::all(disk, layout);
    for copy in &copies {
        root_copy(teller, copy)?;
    }
    for slot in copies.chunks(2) {
        if let [front, back] = slot
            && front.unused != back.unused
        {
            teller.note(format!(
                "slot {}: only one copy was ever written",
                front.slot
            ))?;
        }
    }
    let mut begins = None;
    // Loaded one after the other: images can be large.
    for root in roots(&copies) {
        let loaded = Loaded::read(disk, layout, &root);
        let sequence = root.0.sequence.get();
        let good = checkpoint(teller, layout, &root, &loaded)?;
        if good && begins.is_none() {
            begins = Some(sequence);
            if let (Some(entries), Some(image)) = (entries, &loaded.image) {
                list(teller, image, entries)?;
            }
        }
    }
    teller.object("recovery", json!({"checkpoint": begins}))?;
    match begins {
        Some(sequence) => teller.line(format!("recovery begins at checkpoint {sequence}")),
        None => teller.damage(0, "the sector has no good checkpoint"),
    }
}

fn root_copy(teller: &Teller<'_>, copy: &RootCopy) -> Result<(), Failure> {
    teller.line(format!(
        "sector {}: {} root in slot {} at {}: {}",
        teller.sector(),
        copy.name,
        copy.slot,
        copy.address,
        copy.verdict()
    ))?;
    let rows = if copy.unused {
        Vec::new()
    } else {
        CheckpointRoot::rows(&copy.bytes, copy.address)
    };
    teller.rows(&rows)?;
    let list = copy.outcome.as_ref().ok().map(|(_, list)| list);
    if let Some(list) = list {
        teller.line(format!("  image in {}", segments_text(teller, list)))?;
    }
    teller.object(
        "checkpoint_root",
        json!({"copy": copy.name, "slot": copy.slot, "address": copy.address,
            "good": copy.outcome.is_ok(), "unused": copy.unused,
            "error": copy.outcome.as_ref().err().filter(|_| !copy.unused),
            "fields": rows_json(&rows), "segments": list}),
    )?;
    match &copy.outcome {
        Err(error) if !copy.unused => teller.damage(copy.address, error),
        _ => Ok(()),
    }
}

fn segments_text(teller: &Teller<'_>, list: &[u32]) -> String {
    let shown = if teller.verbose {
        list.len()
    } else {
        SEGMENTS_SHOWN
    };
    let numbers: Vec<String> = list.iter().take(shown).map(u32::to_string).collect();
    let more = if list.len() > shown { ", …" } else { "" };
    let segments = count(list.len() as u64, "segment", "segments");
    format!("{segments}: {}{more}", numbers.join(", "))
}

/// Shows one checkpoint's image. Returns whether it is good.
fn checkpoint(
    teller: &Teller<'_>,
    layout: &Layout,
    (root, list): &Root,
    loaded: &Loaded,
) -> Result<bool, Failure> {
    let sequence = root.sequence.get();
    let bad = loaded.bad_page_count;
    teller.line(format!(
        "checkpoint {sequence}: image of {} bytes at {}, {}, {bad} of them bad",
        root.image_length,
        loaded.address,
        count(loaded.pages, "page", "pages"),
    ))?;
    let survey = loaded
        .image
        .as_ref()
        .map(|image| Survey::take(image, layout));
    let good = loaded.is_good() && survey.as_ref().is_some_and(|survey| survey.error.is_none());
    let mut header = Vec::new();
    let mut summary = Value::Null;
    if let (Some(image), Some(survey)) = (&loaded.image, &survey) {
        header = ImageHeader::rows(image.bytes(), loaded.address);
        teller.rows(&header)?;
        summary = summarise(teller, image, survey)?;
    }
    teller.object(
        "checkpoint",
        json!({"sequence": sequence, "good": good, "address": loaded.address,
            "length": root.image_length.get(), "segments": list, "pages": loaded.pages,
            "bad_pages": bad, "fields": rows_json(&header), "image": summary}),
    )?;
    for (address, what) in &loaded.problems {
        teller.damage(*address, format!("checkpoint {sequence}: {what}"))?;
    }
    for (number, address) in &loaded.bad_pages {
        teller.damage(
            *address,
            format!("checkpoint {sequence}: page {number} does not verify"),
        )?;
    }
    if bad > loaded.bad_pages.len() as u64 {
        teller.note(format!(
            "{bad} pages are bad; the first {PAGES_NAMED} are named"
        ))?;
    }
    if let Some(survey) = survey {
        if let Some(error) = survey.error {
            teller.damage(loaded.address, format!("checkpoint {sequence}: {error}"))?;
        } else if (survey.blobs, survey.logical_bytes)
            != (root.blobs.get(), root.logical_bytes.get())
        {
            teller.note(format!(
                "the root counts {} blobs of {} bytes",
                root.blobs, root.logical_bytes
            ))?;
        }
    }
    Ok(good)
}

fn summarise(
    teller: &Teller<'_>,
    image: &Image<Vec<u8>>,
    survey: &Survey,
) -> Result<Value, Failure> {
    let extents = image.extents().count();
    let unnamed = image
        .extents()
        .filter(|extent| extent.references.get() == 0)
        .count();
    teller.line(format!(
        "  entries: {} blobs ({} of them manifests) of {} bytes, {} tombstones",
        survey.blobs, survey.manifests, survey.logical_bytes, survey.tombstones
    ))?;
    teller.line(format!(
        "  extents: {extents}, of which {unnamed} are named by no manifest"
    ))?;
    let mut states = serde_json::Map::new();
    for state in 0..=5 {
        let (mut segments, mut live, mut written) = (0_u64, 0_u64, 0_u64);
        for entry in image.segments().filter(|entry| entry.state.min(5) == state) {
            segments += 1;
            live = live.saturating_add(entry.live.get());
            written = written.saturating_add(entry.written.get().into());
        }
        if segments == 0 {
            continue;
        }
        let name = state_name(state);
        let number = count(segments, "segment", "segments");
        teller.line(format!(
            "  {name}: {number}, {written} bytes written, {live} live"
        ))?;
        let figures = json!({"segments": segments, "written": written, "live": live});
        states.insert(name.to_owned(), figures);
    }
    Ok(
        json!({"blobs": survey.blobs, "manifests": survey.manifests, "tombstones": survey.tombstones,
        "logical_bytes": survey.logical_bytes, "extents": extents, "unnamed_extents": unnamed,
        "states": states}),
    )
}

/// Shows the entries of an image that was found good.
fn list(teller: &Teller<'_>, image: &Image<Vec<u8>>, entries: Entries) -> Result<(), Failure> {
    let broken = |error: graviton_format::FormatError| Failure::failed(error.to_string());
    let mut cursor = image.seek(b"").map_err(broken)?;
    let mut shown = 0;
    while let Some(entry) = cursor.next().map_err(broken)? {
        if shown == entries.most {
            let left = image.header().entries.get().saturating_sub(shown);
            return teller.note(format!("{left} more entries are not shown"));
        }
        shown += 1;
        show_entry(teller, cursor.key(), &entry)?;
    }
    Ok(())
}

fn show_entry(teller: &Teller<'_>, key: &[u8], entry: &ImageEntry) -> Result<(), Failure> {
    let lsn = entry.lsn;
    let name = keys::stored_text(key);
    let mut object = keys::stored_json(key);
    object.insert("lsn".to_owned(), lsn.into());
    let more = match &entry.value {
        ImageValue::Tombstone => {
            teller.line(format!("  LSN {lsn:<12} tombstone  {name}"))?;
            json!({"kind": "tombstone"})
        }
        ImageValue::Blob {
            address,
            size,
            time,
            meta_length,
            changed,
            life,
            replicas,
            extents,
        } => {
            let kind = if extents.is_some() {
                "manifest"
            } else {
                "blob"
            };
            teller.line(format!(
                "  LSN {lsn:<12} {kind:<9}  {name}  {size} bytes, record {}at {address}{}{}",
                changed.map_or_else(String::new, |record| format!("of LSN {} ", record.lsn)),
                life.map_or_else(String::new, |lsn| format!(", alive since LSN {lsn}")),
                replicas.map_or_else(String::new, |count| format!(", {count} replicas"))
            ))?;
            let changed = changed.map(
                |record| json!({"record_lsn": record.lsn, "payload_length": record.payload_length}),
            );
            let pieces = extents.as_ref().map(|extents| pieces_json(extents));
            json!({"kind": kind, "address": address, "size": size, "time": time,
                "meta_length": meta_length, "changed": changed, "life": life,
                "replicas": replicas, "extents": pieces})
        }
    };
    if let Value::Object(more) = more {
        object.extend(more);
    }
    teller.object("image_entry", object.into())
}

/// Pieces of extents, for machines.
pub fn pieces_json(pieces: &[graviton_format::record::ExtentRef]) -> Value {
    pieces
        .iter()
        .map(|piece| {
            json!({"lsn": piece.lsn.get(), "offset": piece.offset.get(),
                "length": piece.length.get()})
        })
        .collect()
}

/// What the checkpoint says of a segment, in a few words.
pub fn entry_text(entry: &SegmentEntry) -> String {
    let state = state_name(entry.state);
    if entry.generation.get() == 0 {
        return state.to_owned();
    }
    format!(
        "{state}, generation {}, {} written, {} live",
        entry.generation, entry.written, entry.live
    )
}
