//! `dump record`: every record of a key that lies in the log, also behind damage.

use graviton_format::Structure;
use graviton_format::checksum::CHUNK_SIZE;
use graviton_format::key::StoredKey;
use graviton_format::meta::{MetaItem, items};
use graviton_format::record::{Change, Manifest, RecordHeader};
use serde_json::{Value, json};

use super::checkpoint::pieces_json;
use super::frames::{kind_name, record_json};
use super::log::{Chunks, Log, Record};
use super::segments::Facts;
use super::tell::Teller;
use crate::failure::Failure;
use crate::keys;
use crate::output::count;

/// A manifest with a longer payload is not listed.
const MANIFEST_MAX_LEN: u32 = 64 << 20;

/// Where a record of the key was found.
#[derive(Debug, Clone, Copy)]
struct Hit {
    lsn: u64,
    frame_lsn: u64,
    address: u64,
    frame: u64,
    segment: u32,
    generation: u64,
    /// In a frame that the log comes through: not in a leftover.
    on_log: bool,
}

/// `dump record`, of a blob's key. Returns how many were found.
pub fn dump(teller: &Teller<'_>, log: &Log<'_>, key: &[u8]) -> Result<u64, Failure> {
    let key = &StoredKey::Blob(key).encode()[..];
    let facts = Facts::gather(teller, log)?;
    let mut hits = Vec::new();
    for (segment, generation) in facts.log_segments(log) {
        Search {
            teller,
            log,
            facts: &facts,
            segment,
            generation,
            key,
        }
        .run(&mut hits)?;
    }
    // Of records with the same LSN, the later frame holds [F-52].
    hits.sort_unstable_by_key(|hit| std::cmp::Reverse((hit.lsn, hit.frame_lsn, hit.address)));
    for hit in &hits {
        show(teller, log, &facts, hit, key)?;
    }
    let trace = facts.trace.as_ref();
    if trace.is_some_and(|trace| trace.is_corrupt()) {
        facts.tell_end(teller, log.layout)?;
    }
    facts.tell_changes(teller, log)?;
    Ok(hits.len() as u64)
}

/// The search through one segment.
struct Search<'a> {
    teller: &'a Teller<'a>,
    log: &'a Log<'a>,
    facts: &'a Facts,
    segment: u32,
    generation: u64,
    key: &'a [u8],
}

impl Search<'_> {
    fn run(&self, hits: &mut Vec<Hit>) -> Result<(), Failure> {
        let geometry = &self.log.layout.geometry;
        let base = geometry.segment_offset(self.segment);
        let block = u64::from(geometry.block_size);
        let room = self.log.disk.size().saturating_sub(base);
        let end = geometry.segment_size.min(room);
        let header = self.facts.headers.get(self.segment);
        let mut previous = header.map(|header| header.checksum.get());
        let mut gap = None;
        let mut offset = block;
        while offset < end {
            let address = base + offset;
            let frame = self.log.frame(address).ok();
            let frame = frame.filter(|frame| frame.generation.get() == self.generation);
            let Some(frame) = frame else {
                gap.get_or_insert(offset);
                offset += block;
                continue;
            };
            // Behind a gap nothing is known of the frame before.
            let chained = previous.is_none_or(|previous| previous == frame.previous.get());
            if gap.is_none() && !chained {
                self.judge(
                    offset,
                    address,
                    "the frame does not continue the log [F-22]",
                )?;
            }
            if let Some(from) = gap.take() {
                self.tell_gap(base, from, offset)?;
            }
            for record in self
                .log
                .records(address, &frame, |view| view.key == self.key)
            {
                match record {
                    Ok(record) if record.picked => hits.push(Hit {
                        lsn: record.header.lsn.get(),
                        frame_lsn: frame.lsn.get(),
                        address: record.address,
                        frame: address,
                        segment: self.segment,
                        generation: self.generation,
                        on_log: self.is_required(offset),
                    }),
                    Ok(_) => {}
                    Err((at, what)) => self.judge(offset, at, &what)?,
                }
            }
            previous = Some(frame.checksum.get());
            offset += u64::from(frame.length.get());
        }
        match gap {
            Some(from) if self.is_required(from) => self.tell_gap(base, from, end),
            _ => Ok(()),
        }
    }

    fn is_required(&self, offset: u64) -> bool {
        let required = self.facts.required(self.segment, self.generation);
        required.is_some_and(|required| offset < required)
    }

    /// Something is wrong with the frame at this offset: it is damage if the log comes through it.
    fn judge(&self, offset: u64, address: u64, what: &str) -> Result<(), Failure> {
        let what = format!("segment {}: {what}", self.segment);
        if self.is_required(offset) {
            self.teller.damage(address, what)
        } else {
            self.teller
                .note(format!("at {address}, in a leftover: {what}"))
        }
    }

    fn tell_gap(&self, base: u64, from: u64, to: u64) -> Result<(), Failure> {
        let (start, end) = (base + from, base + to);
        self.judge(from, start, &format!("no frames from {start} to {end}"))
    }
}

/// Key and metadata of a record.
struct Head {
    meta: Vec<u8>,
    matches: bool,
}

fn show(
    teller: &Teller<'_>,
    log: &Log<'_>,
    facts: &Facts,
    hit: &Hit,
    key: &[u8],
) -> Result<(), Failure> {
    let geometry = &log.layout.geometry;
    let room = geometry.segment_of(hit.address).map_or(0, |(_, offset)| {
        geometry.segment_size.saturating_sub(offset)
    });
    let read = log.record(hit.address, room, |view| Head {
        meta: view.meta.to_vec(),
        matches: view.key == key,
    });
    let record = match read {
        Ok(record) if record.picked.matches => record,
        _ => {
            let address = hit.address;
            return teller.note(format!("the record at {address} was there a moment ago"));
        }
    };
    let state = facts.state(hit.segment, hit.generation);
    let place = if hit.on_log { "" } else { ", a leftover" };
    teller.line(format!(
        "sector {}: {} with LSN {} at {}, in segment {} ({state}{place}), frame at {} with LSN {}{}",
        teller.sector(),
        kind_name(record.kind),
        hit.lsn,
        hit.address,
        hit.segment,
        hit.frame,
        hit.frame_lsn,
        if record.moved() { ", moved" } else { "" },
    ))?;
    teller.rows(&RecordHeader::rows(record.header.bytes(), hit.address))?;
    teller.line(format!("  key        {}", keys::stored_text(key)))?;
    let (metadata, meta_error) = metadata(teller, &record.picked.meta)?;
    let (chunks, manifest) = payload(log, &record);
    payload_lines(teller, &record, &chunks)?;
    if let Some(Ok(manifest)) = &manifest {
        manifest_lines(teller, manifest)?;
    }
    let mut object = record_json(&record);
    if let Some(object) = object.as_object_mut() {
        let manifest = manifest
            .as_ref()
            .and_then(|manifest| manifest.as_ref().ok());
        let manifest = manifest.map(
            |manifest| json!({"size": manifest.size, "extents": pieces_json(&manifest.extents)}),
        );
        let bad = named(&chunks);
        object.extend(keys::stored_json(key));
        let more = json!({"segment": hit.segment, "generation": hit.generation, "state": state,
            "leftover": !hit.on_log, "frame": {"address": hit.frame, "lsn": hit.frame_lsn},
            "metadata": metadata, "manifest": manifest,
            "chunks": chunks.count, "bad_chunks": chunks.bad, "bad_chunks_named": bad});
        if let Value::Object(more) = more {
            object.extend(more);
        }
    }
    teller.object("record", object)?;
    let judge = |address, what: String| {
        if hit.on_log {
            teller.damage(address, what)
        } else {
            teller.note(what)
        }
    };
    if let Some(error) = meta_error {
        judge(hit.address, error)?;
    }
    if chunks.bad > 0 {
        let first = chunks.named.first().map_or(hit.address, |&(_, at)| at);
        let bad = format!("{} of {} chunks do not verify", chunks.bad, chunks.count);
        judge(first, bad)?;
    }
    match manifest {
        Some(Err(error)) => judge(hit.address + record.head, error),
        _ => Ok(()),
    }
}

/// Verifies the payload; of a manifest, decodes it too.
fn payload(log: &Log<'_>, record: &Record<Head>) -> (Chunks, Option<Result<Manifest, String>>) {
    let length = record.header.payload_length.get();
    if !record.kind.lists_pieces() {
        return (log.chunks(record, |_| {}), None);
    }
    if length > MANIFEST_MAX_LEN {
        let why = format!("a manifest of {length} bytes is too long to be listed here");
        return (log.chunks(record, |_| {}), Some(Err(why)));
    }
    let mut gathered = Vec::new();
    let chunks = log.chunks(record, |payload| gathered.extend_from_slice(payload));
    // With a chunk missing, what is left can't be told apart.
    let manifest =
        (chunks.bad == 0).then(|| Manifest::decode(&gathered).map_err(|error| error.to_string()));
    (chunks, manifest)
}

fn payload_lines(
    teller: &Teller<'_>,
    record: &Record<Head>,
    chunks: &Chunks,
) -> Result<(), Failure> {
    let at = record.address + record.head;
    let length = record.header.payload_length;
    let number = count(chunks.count, "chunk", "chunks");
    if chunks.count == 0 {
        return teller.line("  payload    none");
    }
    let verdict = if chunks.bad == 0 {
        "all verify".to_owned()
    } else {
        format!("{} bad", chunks.bad)
    };
    teller.line(format!(
        "  payload    {length} bytes at {at}, {number}: {verdict}"
    ))?;
    if teller.verbose && chunks.bad == 0 {
        for number in 0..chunks.count {
            let at = at + number * CHUNK_SIZE as u64;
            teller.line(format!("    chunk {number} at {at}: verifies"))?;
        }
    }
    for (number, at) in &chunks.named {
        teller.line(format!("    chunk {number} at {at}: does not verify"))?;
    }
    Ok(())
}

fn manifest_lines(teller: &Teller<'_>, manifest: &Manifest) -> Result<(), Failure> {
    let pieces = count(manifest.extents.len() as u64, "piece", "pieces");
    teller.line(format!("  manifest   {} bytes in {pieces}", manifest.size))?;
    for piece in &manifest.extents {
        let (length, offset, lsn) = (piece.length, piece.offset, piece.lsn);
        teller.line(match piece.is_hole() {
            true => format!("    {length} bytes that were never written"),
            false => format!("    {length} bytes from offset {offset} of LSN {lsn}"),
        })?;
    }
    Ok(())
}

fn named(chunks: &Chunks) -> Value {
    let chunks = chunks.named.iter();
    chunks
        .map(|(number, at)| json!({"chunk": number, "address": at}))
        .collect()
}

/// Shows the items of the metadata. Returns them for machines, and what is wrong with them.
fn metadata(teller: &Teller<'_>, meta: &[u8]) -> Result<(Value, Option<String>), Failure> {
    let mut objects = Vec::new();
    for item in items(meta) {
        let (line, object) = match item {
            Ok(MetaItem::Created(time)) => (
                format!("created    {time}"),
                json!({"item": "created", "time": time}),
            ),
            Ok(MetaItem::Digest { algorithm, bytes }) => {
                let name = match algorithm {
                    1 => "SHA-256".to_owned(),
                    2 => "BLAKE3".to_owned(),
                    other => format!("algorithm {other}"),
                };
                let digest = keys::hex(&bytes);
                (
                    format!("digest     {name} {digest}"),
                    json!({"item": "digest", "algorithm": algorithm, "name": name, "hex": digest}),
                )
            }
            Ok(MetaItem::Attribute { name, value }) => (
                format!(
                    "attribute  {} = {}",
                    keys::text(name.as_bytes()),
                    keys::text(value)
                ),
                json!({"item": "attribute", "name": name, "value": keys::text(value),
                    "value_hex": keys::hex(value)}),
            ),
            Ok(MetaItem::Source(key)) => (format!("source     {}", keys::stored_text(key)), {
                let mut object = keys::stored_json(key);
                object.insert("item".to_owned(), "source".into());
                object.into()
            }),
            Ok(MetaItem::Change(Change { base, start, size })) => (
                format!("change     of version {base} from {start} on, {size} bytes afterwards"),
                json!({"item": "change", "base": base, "start": start, "size": size}),
            ),
            Ok(MetaItem::Origin { time, name }) => (
                format!("origin     {} at {time}", keys::text(name.as_bytes())),
                json!({"item": "origin", "time": time, "name": name}),
            ),
            Ok(MetaItem::Life(lsn)) => (
                format!("life       since LSN {lsn}"),
                json!({"item": "life", "lsn": lsn}),
            ),
            Ok(MetaItem::Replicas(count)) => (
                format!("replicas   {count}"),
                json!({"item": "replicas", "count": count}),
            ),
            Ok(_) => continue,
            Err(error) => return Ok((objects.into(), Some(error.to_string()))),
        };
        teller.line(format!("  {line}"))?;
        objects.push(object);
    }
    Ok((objects.into(), None))
}
