//! The commands about single blobs: `put`, `get`, `stat`, `ls`, `rm`, `cp`, `mv`.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::ControlFlow;
use std::path::Path;

use bytes::Bytes;
use graviton_engine::port::{
    BinaryKey, BlobReader, BlobStore, BlobWriter, CopyOptions, DeleteOptions, GetOptions, Holes,
    ListEntry, MutableObjectStore, PastEnd, Precondition, PutOptions, PutOutcome, PutRangeOptions,
    Span, StorageError, StoreOp,
};
use graviton_engine::store::Store;
use serde_json::{Map, Value, json};

use crate::cli::{CopyArgs, GetArgs, KeyArg, LsArgs, PastTheEnd, PutArgs, RmArgs};
use crate::failure::{Exit, Failure};
use crate::files::{read_exactly, replace_file};
use crate::keys;
use crate::listing::{Listed, each};
use crate::output::{Output, etag_text, time_json, time_text, with_key};
use crate::session::Session;
use crate::size::{ByteRange, Human};
use crate::transfer::{PIECE, length, pour_in, pour_out};

/// The most bytes that are put in one range: they are held in memory.
const RANGE_MAX: u64 = 256 << 20;
/// Deletes that are on their way at once.
const DELETES_IN_FLIGHT: usize = 32;

/// `put`.
pub fn put(session: &Session, args: &PutArgs) -> Result<(), Failure> {
    let key = session.key(&args.key)?;
    let precondition = match (args.if_absent, args.if_etag) {
        (true, _) => Precondition::IfAbsent,
        (false, Some(etag)) => Precondition::IfETag(etag),
        (false, None) => Precondition::None,
    };
    let options = PutOptions {
        precondition,
        replicas: args.replicas,
        ..PutOptions::default()
    };
    if let Some(size) = args.hole {
        let made = session.write(|store| Ok(store.create_sparse(&key, size, options).wait()?))?;
        return say_put(&session.output, &key, &made);
    }
    // Opened before the store: a file that is not there needs no store.
    let source = Source::open(&args.file)?;
    let outcome = session.write(|store| match &args.range {
        Some(range) => put_range(store, &key, range, args.past_end, source, precondition),
        None => source.put(
            options,
            |options| store.put_stream(&key, options),
            |payload, options| store.put(&key, payload, options),
        ),
    })?;
    say_put(&session.output, &key, &outcome)
}

/// Replaces bytes of a blob.
fn put_range(
    store: &Store,
    key: &BinaryKey,
    range: &ByteRange,
    past_end: Option<PastTheEnd>,
    source: Source<'_>,
    precondition: Precondition,
) -> Result<PutOutcome, Failure> {
    let bytes = source.read_all()?;
    let length = length(&bytes);
    let end = match range.end {
        Some(end) if end - range.start != length => {
            return Err(Failure::failed(format!(
                "range {} has {} bytes, {} has {length}",
                range.typed,
                end - range.start,
                source.name()
            )));
        }
        _ => range.start.saturating_add(length),
    };
    let options = PutRangeOptions {
        precondition,
        past_end: match past_end {
            None | Some(PastTheEnd::Refuse) => PastEnd::Refuse,
            Some(PastTheEnd::Extend) => PastEnd::Extend,
            Some(PastTheEnd::Sparse) => PastEnd::Sparse,
        },
        ..PutRangeOptions::default()
    };
    let range = Span::new(range.start, end)?;
    Ok(store.put_range(key, range, bytes, options).wait()?)
}

/// Where the payload of a put comes from.
pub struct Source<'a> {
    path: &'a Path,
    /// `None`: standard input.
    file: Option<File>,
}

impl<'a> Source<'a> {
    /// What is named by `path`; - is standard input.
    pub fn open(path: &'a Path) -> Result<Self, Failure> {
        let file = match path.as_os_str() == "-" {
            true => None,
            false => Some(open_source(path)?),
        };
        Ok(Self { path, file })
    }

    fn name(&self) -> String {
        match &self.file {
            Some(_) => self.path.display().to_string(),
            None => "standard input".to_owned(),
        }
    }

    /// All of it, if it is not too much to be put at once.
    fn read_all(&self) -> Result<Bytes, Failure> {
        let mut bytes = Vec::new();
        let read = match &self.file {
            Some(file) => file.take(RANGE_MAX + 1).read_to_end(&mut bytes),
            None => io::stdin()
                .lock()
                .take(RANGE_MAX + 1)
                .read_to_end(&mut bytes),
        };
        read.map_err(|error| Failure::failed(format!("cannot read {}: {error}", self.name())))?;
        if length(&bytes) > RANGE_MAX {
            return Err(Failure::failed(format!(
                "{} has more than {} for one range; put it in several",
                self.name(),
                Human(RANGE_MAX)
            )));
        }
        Ok(bytes.into())
    }

    /// Puts it: at once if it is small, else as a stream.
    pub fn put(
        self,
        options: PutOptions,
        stream: impl FnOnce(PutOptions) -> Result<BlobWriter, StorageError>,
        whole: impl FnOnce(Bytes, PutOptions) -> StoreOp<PutOutcome>,
    ) -> Result<PutOutcome, Failure> {
        let Some(file) = self.file else {
            let mut writer = stream(options)?;
            pour_in(&mut io::stdin().lock(), &mut writer, &mut |_| {})
                .map_err(|error| error.reading_from("standard input"))?;
            return Ok(writer.finish().wait()?);
        };
        put_file(self.path, file, options, stream, whole)
    }
}

fn open_source(path: &Path) -> Result<File, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::file("read", path, error);
    let file = File::open(path).map_err(|error| failed(&error))?;
    let metadata = file.metadata().map_err(|error| failed(&error))?;
    if metadata.is_dir() {
        return Err(failed(&"it is a directory (graviton import takes it in)"));
    }
    Ok(file)
}

fn put_file(
    path: &Path,
    mut file: File,
    mut options: PutOptions,
    stream: impl FnOnce(PutOptions) -> Result<BlobWriter, StorageError>,
    whole: impl FnOnce(Bytes, PutOptions) -> StoreOp<PutOutcome>,
) -> Result<PutOutcome, Failure> {
    let failed = |error: &dyn std::fmt::Display| Failure::file("read", path, error);
    let metadata = file.metadata().map_err(|error| failed(&error))?;
    // Pipes, devices and the files of /proc don't know their size.
    if metadata.is_file() && metadata.len() > 0 {
        options.size = Some(metadata.len());
        if metadata.len() <= PIECE {
            let payload =
                read_exactly(&mut file, metadata.len()).map_err(|error| failed(&error))?;
            return Ok(whole(payload, options).wait()?);
        }
    }
    let mut writer = stream(options)?;
    pour_in(&mut file, &mut writer, &mut |_| {})
        .map_err(|error| error.reading_from(&path.display().to_string()))?;
    Ok(writer.finish().wait()?)
}

/// Says what a put, copy or rename made.
pub fn say_put(output: &Output, key: &BinaryKey, outcome: &PutOutcome) -> Result<(), Failure> {
    output.object(&with_key(
        key,
        json!({"size": outcome.size, "version": outcome.version,
            "etag": etag_text(outcome.etag)}),
    ))?;
    output.line(format!(
        "{key}: {}, ETag {}",
        output.bytes(outcome.size),
        etag_text(outcome.etag)
    ))
}

/// `get`.
pub fn get(session: &Session, args: &GetArgs) -> Result<(), Failure> {
    let key = session.key(&args.key)?;
    let output = &session.output;
    let to_stdout = args.output.as_os_str() == "-";
    if to_stdout && output.is_json() {
        return Err(Failure::usage(
            "get with --json needs -o FILE: standard output can't hold both",
        ));
    }
    session.read(|store| {
        let reader = open_reader(store, &key, args)?;
        let (range, size, version, etag) = (
            reader.range.clone(),
            reader.size,
            reader.version,
            reader.etag,
        );
        if to_stdout {
            pour_out(reader, &mut |piece| output.raw(piece))?;
            return output.flush();
        }
        replace_file(&args.output, |file| {
            pour_out(reader, &mut |piece| {
                file.write_all(piece)
                    .map_err(|error| Failure::file("write", &args.output, &error))
            })
        })?;
        output.object(&with_key(
            &key,
            json!({"size": size, "start": range.start, "end": range.end, "version": version,
                "etag": etag_text(etag), "file": args.output.to_string_lossy()}),
        ))
    })
}

fn open_reader(store: &Store, key: &BinaryKey, args: &GetArgs) -> Result<BlobReader, Failure> {
    let holes = match args.zeros {
        true => Holes::Zeros,
        false => Holes::Refuse,
    };
    let Some(range) = &args.range else {
        let options = GetOptions {
            holes,
            ..GetOptions::default()
        };
        return Ok(store.get_stream(key, options).wait()?);
    };
    // The size is needed where the range has no end. Nothing can change in between: the store is
    // locked against writers.
    let size = match range.end {
        Some(_) => 0,
        None => store.stat(key).wait()?.size,
    };
    let open = |range| {
        let options = GetOptions {
            range: Some(range),
            holes,
            ..GetOptions::default()
        };
        store.get_stream(key, options).wait()
    };
    match open(range.resolve(size)) {
        Err(error @ StorageError::InvalidRange { size, .. }) => {
            // In the words of who asked: the end may be one that was made up above.
            Err(Failure::from(error).saying(format!(
                "range {} lies outside of {key} ({size} bytes)",
                range.typed
            )))
        }
        outcome => Ok(outcome?),
    }
}

/// `stat`.
pub fn stat(session: &Session, args: &KeyArg) -> Result<(), Failure> {
    let key = session.key(&args.key)?;
    let output = &session.output;
    let info = session.read(|store| Ok(store.stat(&key).wait()?))?;
    let digests: Vec<String> = info.digests.iter().map(ToString::to_string).collect();
    let attributes: Map<String, Value> = info
        .attributes
        .iter()
        .map(|(name, value)| (name.clone(), keys::text(value).into()))
        .collect();
    output.object(&with_key(
        &key,
        json!({
            "size": info.size,
            "allocated": info.allocated,
            "missing": info.missing.to_string(),
            "fragments": info.fragments,
            "etag": etag_text(info.etag),
            "version": info.version,
            "created": time_json(info.created),
            "modified": time_json(info.modified),
            "digests": digests,
            "attributes": attributes,
            "sectors": info.sectors,
            "replicas": info.replicas,
        }),
    ))?;
    let field = |name: &str, value: String| output.line(format!("{name:<10} {value}"));
    field("key", key.to_string())?;
    // One blob's size is worth its exact bytes in any case.
    let size = if info.size < 1024 {
        format!("{} bytes", info.size)
    } else {
        format!("{} bytes ({})", info.size, Human(info.size))
    };
    field("size", size)?;
    field("allocated", output.bytes(info.allocated))?;
    if !info.missing.is_empty() {
        field("missing", info.missing.to_string())?;
    }
    field("fragments", info.fragments.to_string())?;
    field("ETag", etag_text(info.etag))?;
    field("version", info.version.to_string())?;
    field("created", time_text(info.created))?;
    field("modified", time_text(info.modified))?;
    for digest in digests {
        field("digest", digest)?;
    }
    for (name, value) in &info.attributes {
        let (name, value) = (keys::text(name.as_bytes()), keys::text(value));
        field("attribute", format!("{name} = {value}"))?;
    }
    let sectors: Vec<String> = info.sectors.iter().map(ToString::to_string).collect();
    field("sectors", sectors.join(", "))?;
    field("replicas", info.replicas.to_string())
}

/// `ls`.
pub fn ls(session: &Session, args: &LsArgs) -> Result<(), Failure> {
    let prefix = session.bytes(&args.prefix)?;
    let optional = |argument: &Option<_>| {
        argument
            .as_ref()
            .map(|argument: &std::ffi::OsString| session.bytes(argument))
            .transpose()
    };
    let delimiter = optional(&args.delimiter)?;
    let start_after = optional(&args.start_after)?;
    let mut left = args.max.unwrap_or(u64::MAX);
    session.read(|store| {
        each(store, &prefix, start_after, delimiter, &mut |listed| {
            if left == 0 {
                return Ok(ControlFlow::Break(()));
            }
            left -= 1;
            match listed {
                Listed::Blob(entry) => say_entry(&session.output, &entry, args.long)?,
                Listed::Prefix(prefix) => say_prefix(&session.output, &prefix, args.long)?,
            }
            Ok(ControlFlow::Continue(()))
        })
    })
}

fn say_entry(output: &Output, entry: &ListEntry, long: bool) -> Result<(), Failure> {
    if output.is_json() {
        let rest = json!({"size": entry.size, "etag": etag_text(entry.etag),
            "version": entry.version, "modified": time_json(entry.modified)});
        return output.object(&with_key(&entry.key, rest));
    }
    if !long {
        return output.line(&entry.key);
    }
    let size = if output.is_verbose() {
        format!("{:>15}", entry.size)
    } else {
        format!("{:>10}", Human(entry.size))
    };
    let modified = time_text(entry.modified);
    let etag = etag_text(entry.etag);
    output.line(format!("{size}  {modified}  {etag}  {}", entry.key))
}

fn say_prefix(output: &Output, prefix: &[u8], long: bool) -> Result<(), Failure> {
    let text = keys::text(prefix);
    if output.is_json() {
        return output.object(&json!({"prefix": text, "prefix_hex": keys::hex(prefix)}));
    }
    if !long {
        return output.line(text);
    }
    let width = if output.is_verbose() { 15 } else { 10 };
    output.line(format!("{:>width$}  {:<19}  {:<16}  {text}", "-", "", ""))
}

/// `rm`.
pub fn rm(session: &Session, args: &RmArgs) -> Result<(), Failure> {
    // All keys are checked before the first is deleted.
    let keys = args
        .keys
        .iter()
        .map(|key| session.key(key))
        .collect::<Result<Vec<_>, _>>()?;
    session.write(|store| {
        let mut worst = Exit::Done;
        let mut flying = VecDeque::new();
        let options = DeleteOptions {
            strict: true,
            ..DeleteOptions::default()
        };
        for key in keys {
            let op = store.delete(&key, options.clone());
            flying.push_back((key, op));
            if flying.len() == DELETES_IN_FLIGHT
                && let Some((key, op)) = flying.pop_front()
            {
                worst = worst.worse(say_deleted(&session.output, &key, op)?);
            }
        }
        for (key, op) in flying {
            worst = worst.worse(say_deleted(&session.output, &key, op)?);
        }
        match worst {
            Exit::Done => Ok(()),
            exit => Err(Failure::Reported(exit)),
        }
    })
}

fn say_deleted(
    output: &Output,
    key: &BinaryKey,
    op: StoreOp<graviton_engine::port::DeleteOutcome>,
) -> Result<Exit, Failure> {
    match op.wait() {
        Ok(_) => {
            output.object(&with_key(key, json!({"deleted": true})))?;
            Ok(Exit::Done)
        }
        Err(error) => {
            let failure = Failure::from(error);
            output.report(&failure);
            Ok(failure.exit())
        }
    }
}

/// `cp`.
pub fn cp(session: &Session, args: &CopyArgs) -> Result<(), Failure> {
    copy_or_rename(session, args, |store, source, target, options| {
        store.copy(source, target, options)
    })
}

/// `mv`.
pub fn mv(session: &Session, args: &CopyArgs) -> Result<(), Failure> {
    copy_or_rename(session, args, |store, source, target, options| {
        store.rename(source, target, options)
    })
}

fn copy_or_rename(
    session: &Session,
    args: &CopyArgs,
    act: impl FnOnce(&Store, &BinaryKey, &BinaryKey, CopyOptions) -> StoreOp<PutOutcome>,
) -> Result<(), Failure> {
    let key = |argument: &OsStr| session.key(argument);
    let (source, target) = (key(&args.source)?, key(&args.target)?);
    let options = CopyOptions {
        target_precondition: if args.if_absent {
            Precondition::IfAbsent
        } else {
            Precondition::None
        },
        ..CopyOptions::default()
    };
    let outcome = session.write(|store| Ok(act(store, &source, &target, options).wait()?))?;
    say_put(&session.output, &target, &outcome)
}
