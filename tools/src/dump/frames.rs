//! `dump frames`: walks the frames of the log's segments.

use graviton_format::frame::FrameHeader;
use graviton_format::record::{RecordHeader, RecordKind};
use graviton_format::segment::SegmentHeader;
use graviton_format::{FormatError, Structure};
use serde_json::{Value, json};

use super::log::{Contents, Log, Record};
use super::segments::{Facts, header_text};
use super::tell::{Teller, rows_json};
use crate::failure::Failure;
use crate::keys;
use crate::output::count;

/// `dump frames`.
pub fn dump(teller: &Teller<'_>, log: &Log<'_>, only: Option<u32>) -> Result<(), Failure> {
    let facts = Facts::gather(teller, log)?;
    let segments = facts.log_segments(log);
    for &(segment, generation) in &segments {
        if only.is_none_or(|only| only == segment) {
            Walk::new(teller, log, &facts, segment, generation).run()?;
        }
    }
    match only {
        Some(only) if !segments.iter().any(|&(segment, _)| segment == only) => {
            let header = facts.headers.get(only);
            let what = header.map_or_else(|| "no header, no frames".to_owned(), header_text);
            teller.note(format!("segment {only} holds no frames: {what}"))?;
        }
        Some(_) => {}
        None => facts.tell_end(teller, log.layout)?,
    }
    facts.tell_changes(teller, log)
}

/// The walk through one segment.
struct Walk<'a> {
    teller: &'a Teller<'a>,
    log: &'a Log<'a>,
    facts: &'a Facts,
    segment: u32,
    generation: u64,
    header: Option<SegmentHeader>,
    /// Address of the segment.
    base: u64,
    offset: u64,
    /// Checksum that the next frame has to name; unknown behind a damaged header.
    previous: Option<u32>,
    last: u64,
    frames: u64,
}

impl<'a> Walk<'a> {
    fn new(
        teller: &'a Teller<'a>,
        log: &'a Log<'a>,
        facts: &'a Facts,
        segment: u32,
        generation: u64,
    ) -> Self {
        let header = facts.headers.get(segment).copied();
        let geometry = &log.layout.geometry;
        Self {
            teller,
            log,
            facts,
            segment,
            generation,
            header,
            base: geometry.segment_offset(segment),
            offset: geometry.block_size.into(),
            previous: header.map(|header| header.checksum.get()),
            last: header.map_or(0, |header| header.previous_lsn.get()),
            frames: 0,
        }
    }

    fn run(mut self) -> Result<(), Failure> {
        let header = match &self.header {
            Some(header) => header_text(header),
            None => format!(
                "header not good, generation {} by its frames",
                self.generation
            ),
        };
        let state = self.facts.state(self.segment, self.generation);
        self.teller.line(format!(
            "segment {} at {}: {header} | {state}",
            self.segment, self.base
        ))?;
        while self.offset < self.log.layout.geometry.segment_size {
            let address = self.base + self.offset;
            let frame = self.log.frame(address);
            let Some(frame) = self.continuing(frame) else {
                let generation = self.generation;
                let why = self.log.describe(address, generation, self.previous);
                return self.end(&why);
            };
            let last = (self.previous.is_some() || self.frames > 0).then_some(self.last);
            let contents = self.log.contents(address, &frame, last);
            if let Some(why) = self.ends_here(&frame, &contents) {
                self.show(address, &frame, &contents)?;
                return self.end(&why);
            }
            self.show(address, &frame, &contents)?;
            for (chunk, at) in &contents.chunks.named {
                let what = format!("chunk {chunk} of the frame at {address} does not verify");
                self.teller.damage(*at, what)?;
            }
            self.frames += 1;
            self.offset += u64::from(frame.length.get());
            self.previous = Some(frame.checksum.get());
            self.last = frame.lsn.get();
        }
        self.end("the segment is full")
    }

    /// The frame, if it continues the log.
    fn continuing(&self, frame: Result<FrameHeader, FormatError>) -> Option<FrameHeader> {
        frame.ok().filter(|frame| {
            let previous = self.previous.unwrap_or(frame.previous.get());
            frame.continues(self.generation, previous, self.last)
        })
    }

    /// Why the log does not go on behind a frame that continues it, if so.
    fn ends_here(&self, frame: &FrameHeader, contents: &Contents) -> Option<String> {
        if let Some((address, what)) = &contents.problem {
            return Some(format!("a frame that is not good (at {address}: {what})"));
        }
        let acknowledged = frame.lsn.get() <= self.facts.durable() || self.is_required();
        (contents.chunks.bad > 0 && !acknowledged).then(|| {
            let bad = count(contents.chunks.bad, "chunk", "chunks");
            format!("a frame of which {bad} did not arrive")
        })
    }

    fn is_required(&self) -> bool {
        let required = self.facts.required(self.segment, self.generation);
        required.is_some_and(|required| self.offset < required)
    }

    fn show(&self, address: u64, frame: &FrameHeader, contents: &Contents) -> Result<(), Failure> {
        let rows = FrameHeader::rows(frame.bytes(), address);
        let verdict = match &contents.problem {
            Some((_, what)) => format!("BAD: {what}"),
            None if contents.chunks.bad > 0 => {
                format!(
                    "{} of {} chunks bad",
                    contents.chunks.bad, contents.chunks.count
                )
            }
            None if self.previous.is_none() => "good, chain unknown".to_owned(),
            None => "good, chained".to_owned(),
        };
        self.teller.line(format!(
            "  frame at {address}: LSN {}, durable {}, {}, {} of {} bytes: {verdict}",
            frame.lsn,
            frame.durable_lsn,
            count(frame.records.get().into(), "record", "records"),
            frame.used,
            frame.length,
        ))?;
        if self.teller.verbose {
            self.teller.rows(&rows)?;
        }
        self.teller.object(
            "frame",
            json!({"segment": self.segment, "address": address, "lsn": frame.lsn.get(),
                "durable_lsn": frame.durable_lsn.get(), "records": frame.records.get(),
                "used": frame.used.get(), "length": frame.length.get(),
                "chained": self.previous.map(|_| true),
                "good": contents.problem.is_none() && contents.chunks.bad == 0,
                "error": contents.problem.as_ref().map(|(_, what)| what),
                "chunks": contents.chunks.count, "bad_chunks": contents.chunks.bad,
                "fields": if self.teller.verbose { rows_json(&rows) } else { Value::Null }}),
        )?;
        if self.teller.verbose {
            for record in self.log.records(address, frame, |view| view.key.to_vec()) {
                match record {
                    Ok(record) => self.record(&record)?,
                    Err((at, what)) => self.teller.line(format!("    at {at}: {what}"))?,
                }
            }
        }
        Ok(())
    }

    fn record(&self, record: &Record<Vec<u8>>) -> Result<(), Failure> {
        let header = &record.header;
        let key = keys::stored_text(&record.picked);
        let moved = if record.moved() { ", moved" } else { "" };
        self.teller.line(format!(
            "    record at {}: {} with LSN {}{moved}, {} of payload, {} of metadata, key {key}",
            record.address,
            kind_name(record.kind),
            header.lsn,
            header.payload_length,
            header.meta_length,
        ))?;
        let mut object = record_json(record);
        if let Some(object) = object.as_object_mut() {
            object.extend(keys::stored_json(&record.picked));
        }
        self.teller.object("record", object)
    }

    /// Says why the walk ends where it does.
    fn end(&self, why: &str) -> Result<(), Failure> {
        let Self {
            teller,
            facts,
            segment,
            generation,
            offset,
            ..
        } = self;
        let address = self.base + offset;
        let here = |header: &SegmentHeader| {
            self.previous
                .is_none_or(|previous| header.previous_checksum.get() == previous)
        };
        let next = facts.headers.next(*segment, *generation, *offset, here);
        let next = next.map(|header| header.segment.get());
        let required = facts.required(*segment, *generation);
        let missing = required.is_some_and(|required| *offset < required);
        let last = facts.is_last(*segment, *generation);
        let corrupt = facts.trace.as_ref().is_some_and(|trace| trace.is_corrupt());
        let meaning = match next {
            _ if missing => "the chain breaks",
            Some(_) => "the log goes on elsewhere",
            None if last && corrupt => "the log breaks off",
            None if last => "end of log",
            None if required.is_some() => "end of this segment's frames",
            None => "end of what is chained here",
        };
        let goes_on = next.map_or_else(String::new, |next| format!(", goes on in segment {next}"));
        teller.line(format!(
            "  {meaning} at {address} (offset {offset}), {}{goes_on}: {why}",
            count(self.frames, "frame", "frames")
        ))?;
        teller.object(
            "frames_end",
            json!({"segment": segment, "address": address, "offset": offset,
                "frames": self.frames, "meaning": meaning, "found": why, "next_segment": next}),
        )?;
        if let Some(required) = required.filter(|_| missing) {
            return teller.damage(
                address,
                format!("frames are missing: segment {segment} has to hold good ones up to offset {required}"),
            );
        }
        match &facts.trace {
            Some(trace) if last && corrupt => teller.damage(
                address,
                format!("frames are missing: LSN {} was acknowledged", trace.durable),
            ),
            _ => Ok(()),
        }
    }
}

/// The name of a kind of record.
pub fn kind_name(kind: RecordKind) -> &'static str {
    match kind {
        RecordKind::Blob => "blob",
        RecordKind::Extent => "extent",
        RecordKind::Manifest => "manifest",
        RecordKind::Tombstone => "tombstone",
        RecordKind::Range => "range",
        RecordKind::Splice => "splice",
        RecordKind::Merge => "merge",
    }
}

/// A record for machines.
pub fn record_json<T>(record: &Record<T>) -> Value {
    let header: &RecordHeader = &record.header;
    json!({"address": record.address, "kind": kind_name(record.kind), "moved": record.moved(),
        "lsn": header.lsn.get(), "time": header.time.get(),
        "key_length": header.key_length.get(), "meta_length": header.meta_length.get(),
        "payload_length": header.payload_length.get(), "length": record.length,
        "fields": rows_json(&RecordHeader::rows(header.bytes(), record.address))})
}
