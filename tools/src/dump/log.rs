//! The log as it lies on disk: frames, their records, where the log goes and where it ends. By the
//! rules of `SPEC.md` section 10, on files that may be wrong in any way.

use graviton_format::checkpoint::CheckpointRoot;
use graviton_format::checksum::{CHUNK_SIZE, verify_chunk};
use graviton_format::frame::{FrameHeader, records_checksum};
use graviton_format::key::STORED_KEY_MAX_LEN;
use graviton_format::record::{FLAG_MOVED, META_MAX_LEN, RecordHeader, RecordKind, RecordView};
use graviton_format::segment::{KIND_LOG, NONE};
use graviton_format::{FormatError, Structure};

use super::disk::Disk;
use super::sector::Layout;
use super::segments::Headers;

/// How often the end of the log is looked at again, in case the store is being written to.
const LOOKS: u32 = 4;
/// Bad chunks that are named one by one.
const CHUNKS_NAMED: usize = 16;

/// A sector's log.
#[derive(Debug, Clone, Copy)]
pub struct Log<'a> {
    /// The sector's file.
    pub disk: &'a Disk,
    /// Its measures.
    pub layout: &'a Layout,
}

/// A record's header and what was wanted of the rest.
#[derive(Debug, Clone, Copy)]
pub struct Record<T> {
    /// Where it lies.
    pub address: u64,
    /// Its header.
    pub header: RecordHeader,
    /// What it is.
    pub kind: RecordKind,
    /// Bytes before the payload.
    pub head: u64,
    /// Bytes of all of it.
    pub length: u64,
    /// What was wanted.
    pub picked: T,
}

impl<T> Record<T> {
    /// Whether compaction copied it.
    pub fn moved(&self) -> bool {
        self.header.flags & FLAG_MOVED != 0
    }
}

/// What became of a payload's chunks.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Chunks {
    /// How many there are.
    pub count: u64,
    /// How many do not verify.
    pub bad: u64,
    /// The first of those: number and address.
    pub named: Vec<(u64, u64)>,
}

/// What a frame's records are like.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Contents {
    /// Why the frame is not good, payload aside \[F-23\]: where, and what.
    pub problem: Option<(u64, String)>,
    /// Its chunks, if they were looked at.
    pub chunks: Chunks,
}

impl Log<'_> {
    /// The header of the frame at `address`.
    pub fn frame(&self, address: u64) -> Result<FrameHeader, FormatError> {
        let Layout { identity, geometry } = self.layout;
        self.disk.with(address, FrameHeader::SIZE, |bytes| {
            FrameHeader::decode(bytes, identity, geometry, address)
        })
    }

    /// The record at `address`, which has at most `room` bytes.
    pub fn record<T>(
        &self,
        address: u64,
        room: u64,
        pick: impl FnOnce(&RecordView<'_>) -> T,
    ) -> Result<Record<T>, String> {
        let head = self.disk.with(address, RecordHeader::SIZE, |bytes| {
            let header = RecordHeader::view(bytes)?;
            let meta = usize::try_from(header.meta_length.get()).unwrap_or(META_MAX_LEN);
            Ok(RecordHeader::SIZE
                + usize::from(header.key_length).min(STORED_KEY_MAX_LEN)
                + meta.min(META_MAX_LEN))
        });
        let head = head.map_err(|error: FormatError| error.to_string())?;
        let head = usize::try_from(room).map_or(head, |room| head.min(room));
        let Layout { identity, geometry } = self.layout;
        let record = self.disk.with(address, head, |bytes| {
            let view = RecordView::decode(bytes, identity, geometry, address)?;
            Ok(Record {
                address,
                header: view.header,
                kind: view.kind,
                head: view.payload_offset() as u64,
                length: view.length(),
                picked: pick(&view),
            })
        });
        let record = record.map_err(|error: FormatError| error.to_string())?;
        if record.length > room {
            let length = record.length;
            return Err(format!("a record of {length} bytes, {room} are left"));
        }
        Ok(record)
    }

    /// Walks the records of a frame. Ends with the first that is not good.
    pub fn records<T>(
        &self,
        address: u64,
        frame: &FrameHeader,
        pick: impl Fn(&RecordView<'_>) -> T,
    ) -> impl Iterator<Item = Result<Record<T>, (u64, String)>> {
        let used = u64::from(frame.used.get());
        let mut offset = FrameHeader::SIZE as u64;
        std::iter::from_fn(move || {
            let room = used.checked_sub(offset).filter(|&room| room > 0)?;
            let place = address + offset;
            match self.record(place, room, &pick) {
                Ok(record) => {
                    offset += record.length;
                    Some(Ok(record))
                }
                Err(what) => {
                    offset = used;
                    Some(Err((place, what)))
                }
            }
        })
    }

    /// Checks what a frame holds \[F-23\]; `last` is the LSN of the frame before, if known.
    pub fn contents(&self, address: u64, frame: &FrameHeader, last: Option<u64>) -> Contents {
        let mut contents = Contents::default();
        let mut checksums = Vec::new();
        for record in self.records(address, frame, |_| ()) {
            let record = match record {
                Ok(record) => record,
                Err(problem) => {
                    contents.problem = Some(problem);
                    return contents;
                }
            };
            let lsn = record.header.lsn.get();
            // [F-29]
            let old = !record.moved() && last.is_some_and(|last| lsn <= last);
            if lsn > frame.lsn.get() || old {
                let what = format!("a record with LSN {lsn}, which is not this frame's [F-29]");
                contents.problem = Some((record.address, what));
                return contents;
            }
            checksums.push(record.header.checksum.get());
            let chunks = self.chunks(&record, |_| {});
            contents.chunks.add(chunks);
        }
        let records = u64::from(frame.records.get());
        if checksums.len() as u64 != records {
            let what = format!(
                "{} records, the frame says {records} [F-23]",
                checksums.len()
            );
            contents.problem = Some((address, what));
        } else if records_checksum(checksums.into_iter()) != frame.records_checksum.get() {
            let what = "the records' checksums do not add up to the frame's [F-23]".to_owned();
            contents.problem = Some((address, what));
        } else {
            contents.problem = self.padding(address, frame);
        }
        contents
    }

    fn padding(&self, address: u64, frame: &FrameHeader) -> Option<(u64, String)> {
        let (used, length) = (frame.used.get(), frame.length.get());
        // Less than a block, by the decoder.
        let padding = usize::try_from(length.saturating_sub(used)).ok()?;
        let at = address + u64::from(used);
        let zeros = self.disk.with(at, padding, |bytes| {
            bytes.len() == padding && bytes.iter().all(|&byte| byte == 0)
        });
        (!zeros).then(|| (at, "the frame's padding is not zero [F-23]".to_owned()))
    }

    /// Verifies a record's payload, chunk by chunk, and hands the good ones' payload to `take`.
    pub fn chunks<T>(&self, record: &Record<T>, mut take: impl FnMut(&[u8])) -> Chunks {
        let mask = self.layout.identity.chunk_mask(record.header.lsn.get());
        let end = record.address + record.length;
        let mut chunks = Chunks::default();
        let mut at = record.address + record.head;
        while at < end {
            let length = usize::try_from(end - at)
                .unwrap_or(CHUNK_SIZE)
                .min(CHUNK_SIZE);
            let good = self.disk.with(at, length, |chunk| {
                let payload = verify_chunk(chunk, mask, at)
                    .ok()
                    .filter(|_| chunk.len() == length)
                    .and_then(|payload| chunk.get(..payload));
                payload.map(&mut take).is_some()
            });
            if !good {
                chunks.bad += 1;
                if chunks.named.len() < CHUNKS_NAMED {
                    chunks.named.push((chunks.count, at));
                }
            }
            chunks.count += 1;
            at += length as u64;
        }
        chunks
    }

    /// What lies at `address`, where no frame continues the log.
    pub fn describe(&self, address: u64, generation: u64, previous: Option<u32>) -> String {
        match self.frame(address) {
            Ok(frame) if frame.generation.get() != generation => format!(
                "a leftover frame of generation {} with LSN {}",
                frame.generation, frame.lsn
            ),
            Ok(frame) if previous.is_some_and(|previous| previous != frame.previous.get()) => {
                format!("a frame with LSN {} that follows another one", frame.lsn)
            }
            Ok(frame) => format!("a frame with LSN {}, which is too low", frame.lsn),
            Err(FormatError::Magic { found: 0, .. }) => "zeros".to_owned(),
            Err(FormatError::Truncated { .. }) => "nothing: it can't be read".to_owned(),
            Err(error) => error.to_string(),
        }
    }
}

impl Chunks {
    fn add(&mut self, other: Self) {
        self.count += other.count;
        self.bad += other.bad;
        let room = CHUNKS_NAMED.saturating_sub(self.named.len());
        self.named.extend(other.named.into_iter().take(room));
    }
}

/// A part of the log's way from the checkpoint to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// The segment.
    pub segment: u32,
    /// Its generation.
    pub generation: u64,
    /// Where in it the log ends, or goes on elsewhere.
    pub end: u64,
}

/// The log from a checkpoint to its end \[F-50\].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trace {
    /// The segments it takes, in order.
    pub links: Vec<Link>,
    /// The last good frame's LSN.
    pub last: u64,
    /// The highest LSN that anything good says was durable \[F-51\].
    pub durable: u64,
}

impl Trace {
    /// Whether something is missing that was acknowledged.
    pub fn is_corrupt(&self) -> bool {
        self.durable > self.last
    }
}

struct Tail {
    segment: u32,
    generation: u64,
    offset: u64,
    checksum: u32,
    last: u64,
}

/// Follows the log from `root` on; `newest` is the LSN of the newest good root.
pub fn trace(log: &Log<'_>, headers: &Headers, root: &CheckpointRoot, newest: u64) -> Trace {
    let tail = root.tail_segment.get();
    let mut tail = Tail {
        segment: tail,
        generation: if tail == NONE {
            0
        } else {
            root.tail_generation.get()
        },
        offset: root.tail_offset.get().into(),
        checksum: root.tail_checksum.get(),
        last: root.lsn.get(),
    };
    let mut trace = Trace {
        durable: newest,
        ..Trace::default()
    };
    let mut looks = 0;
    loop {
        if tail.segment != NONE {
            let before = tail.last;
            advance(log, headers, &mut tail, &mut trace.durable);
            let link = Link {
                segment: tail.segment,
                generation: tail.generation,
                end: tail.offset,
            };
            match trace.links.last_mut() {
                Some(last) if last.segment == link.segment => *last = link,
                _ => trace.links.push(link),
            }
            // Only a look at the end can come here again with nothing new.
            if looks > 0 && tail.last == before {
                break;
            }
        }
        if let Some(next) = headers.next(tail.segment, tail.generation, tail.offset, |header| {
            tail.segment == NONE
                || (header.previous_lsn.get() == tail.last
                    && header.previous_checksum.get() == tail.checksum)
        }) {
            tail = Tail {
                segment: next.segment.get(),
                generation: next.generation.get(),
                offset: log.layout.geometry.block_size.into(),
                checksum: next.checksum.get(),
                last: tail.last,
            };
            looks = 0;
            continue;
        }
        trace.durable = trace.durable.max(claims(log, headers, &tail));
        looks += 1;
        if trace.durable <= tail.last || looks > LOOKS || tail.segment == NONE {
            break;
        }
        // What is missing may have been written a moment ago, by whoever has the store open.
        log.disk.forget();
    }
    trace.last = tail.last;
    trace
}

/// Takes frames of the tail's segment as long as they are good.
fn advance(log: &Log<'_>, headers: &Headers, tail: &mut Tail, durable: &mut u64) {
    let geometry = &log.layout.geometry;
    while tail.offset < geometry.segment_size {
        let address = geometry.segment_offset(tail.segment) + tail.offset;
        let Ok(frame) = log.frame(address) else {
            return;
        };
        if !frame.continues(tail.generation, tail.checksum, tail.last) {
            return;
        }
        let contents = log.contents(address, &frame, Some(tail.last));
        if contents.problem.is_some() {
            return;
        }
        // Bad payload ends the log only if nothing says that it was acknowledged.
        if contents.chunks.bad > 0 && *durable < frame.lsn.get() {
            *durable = (*durable).max(claims(log, headers, tail));
            if *durable < frame.lsn.get() {
                return;
            }
        }
        *durable = (*durable).max(frame.durable_lsn.get());
        tail.offset += u64::from(frame.length.get());
        tail.checksum = frame.checksum.get();
        tail.last = frame.lsn.get();
    }
}

/// The highest LSN that anything good behind the tail says was durable \[F-51\].
fn claims(log: &Log<'_>, headers: &Headers, tail: &Tail) -> u64 {
    let block = u64::from(log.layout.geometry.block_size);
    let mut durable = 0;
    let mut scan = |segment: u32, from: u64, counts: &dyn Fn(u64) -> bool| {
        let base = log.layout.geometry.segment_offset(segment);
        let room = log.disk.size().saturating_sub(base);
        let end = log.layout.geometry.segment_size.min(room);
        let mut offset = from;
        while offset < end {
            if let Ok(frame) = log.frame(base + offset)
                && counts(frame.generation.get())
            {
                durable = durable.max(frame.durable_lsn.get());
            }
            offset += block;
        }
    };
    if tail.segment != NONE {
        scan(tail.segment, tail.offset, &|generation| {
            generation == tail.generation
        });
    }
    let newer = |generation: u64| generation > tail.generation;
    for &segment in headers.damaged() {
        if segment != tail.segment {
            scan(segment, block, &newer);
        }
    }
    let mut stated = 0;
    for header in headers.good() {
        let own = header.segment.get() == tail.segment;
        if own || !newer(header.generation.get()) {
            continue;
        }
        stated = stated.max(header.durable_lsn.get());
        if header.kind.get() == KIND_LOG {
            scan(header.segment.get(), block, &newer);
        }
    }
    durable.max(stated)
}
