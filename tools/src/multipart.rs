//! The command `multipart`: uploads of parts.

use std::ffi::OsStr;
use std::time::Duration;

use graviton_engine::port::{
    CompleteOptions, ETag, MutableObjectStore, PartInfo, Precondition, PutOptions, UploadId,
    UploadOptions,
};
use graviton_engine::store::Store;
use serde_json::json;

use crate::blobs::Source;
use crate::cli::Multipart;
use crate::failure::Failure;
use crate::output::{count, etag_text, time_json, time_text, with_key};
use crate::session::Session;

/// Uploads, or parts, that are asked for at once.
const PAGE: usize = 1000;

/// `multipart`.
pub fn run(session: &Session, what: &Multipart) -> Result<(), Failure> {
    match what {
        Multipart::Start { key } => start(session, key),
        Multipart::Part {
            upload,
            number,
            file,
        } => {
            let source = Source::open(file)?;
            let made = session.write(|store| {
                source.put(
                    PutOptions::default(),
                    |options| store.upload_part_stream(*upload, *number, options),
                    |payload, options| store.upload_part(*upload, *number, payload, options),
                )
            })?;
            let output = &session.output;
            output.object(&json!({"upload": upload.to_string(), "number": number,
                "size": made.size, "etag": etag_text(made.etag)}))?;
            output.line(format!(
                "part {number}: {}, ETag {}",
                output.bytes(made.size),
                etag_text(made.etag)
            ))
        }
        Multipart::Complete {
            upload,
            parts,
            allow_empty,
            if_absent,
        } => complete(session, *upload, parts, *allow_empty, *if_absent),
        Multipart::Abort { upload } => {
            session.write(|store| Ok(store.abort_upload(*upload).wait()?))?;
            session
                .output
                .object(&json!({"upload": upload.to_string()}))?;
            session.output.line(format!("upload {upload} is given up"))
        }
        Multipart::Ls {
            upload: Some(upload),
        } => ls_parts(session, *upload),
        Multipart::Ls { upload: None } => ls(session),
        Multipart::Sweep { hours } => {
            let age = Duration::from_secs(hours.saturating_mul(3600));
            let swept = session.write(|store| Ok(store.sweep_uploads(age).wait()?))?;
            let output = &session.output;
            output.object(&json!({"uploads": swept.uploads, "bytes": swept.bytes}))?;
            output.line(format!(
                "{} given up, {}",
                count(swept.uploads as u64, "upload", "uploads"),
                output.bytes(swept.bytes)
            ))
        }
    }
}

fn start(session: &Session, key: &OsStr) -> Result<(), Failure> {
    let key = session.key(key)?;
    let options = UploadOptions::default();
    let upload = session.write(|store| Ok(store.start_upload(&key, options).wait()?))?;
    let output = &session.output;
    output.object(&with_key(&key, json!({"upload": upload.to_string()})))?;
    output.line(upload)
}

fn parts_of(store: &Store, upload: UploadId) -> Result<Vec<PartInfo>, Failure> {
    let mut parts: Vec<PartInfo> = Vec::new();
    loop {
        let after = parts.last().map_or(0, |part| part.number);
        let page = store.list_parts(upload, after, PAGE).wait()?;
        let is_last = page.len() < PAGE;
        parts.extend(page);
        if is_last {
            return Ok(parts);
        }
    }
}

fn complete(
    session: &Session,
    upload: UploadId,
    named: &[(u16, Option<ETag>)],
    allow_empty: bool,
    if_absent: bool,
) -> Result<(), Failure> {
    let options = CompleteOptions {
        precondition: match if_absent {
            true => Precondition::IfAbsent,
            false => Precondition::None,
        },
        refuse_empty: !allow_empty,
        ..CompleteOptions::default()
    };
    let given = named
        .iter()
        .map(|(number, etag)| etag.map(|etag| (*number, etag)));
    let given: Option<Vec<(u16, ETag)>> = given.collect();
    let made = session.write(|store| {
        let list = match given {
            // It need not be open any more: then the answer is the one it had.
            Some(list) if !list.is_empty() => list,
            _ => list_of(store, upload, named)?,
        };
        Ok(store.complete_upload(upload, &list, options).wait()?)
    })?;
    let output = &session.output;
    output.object(&json!({"upload": upload.to_string(), "size": made.size,
        "etag": etag_text(made.etag), "version": made.version}))?;
    output.line(format!(
        "upload {upload} is a blob: {}, ETag {}",
        output.bytes(made.size),
        etag_text(made.etag)
    ))
}

/// The parts that are named, or all there are, with their ETags.
fn list_of(
    store: &Store,
    upload: UploadId,
    named: &[(u16, Option<ETag>)],
) -> Result<Vec<(u16, ETag)>, Failure> {
    let parts = parts_of(store, upload)?;
    if named.is_empty() {
        return Ok(parts.iter().map(|part| (part.number, part.etag)).collect());
    }
    let etag = |number: u16| {
        let part = parts.iter().find(|part| part.number == number);
        // Of one that is not there, the store says so.
        part.map_or(ETag::of_version(0), |part| part.etag)
    };
    let list = named
        .iter()
        .map(|&(number, given)| (number, given.unwrap_or_else(|| etag(number))));
    Ok(list.collect())
}

fn ls(session: &Session) -> Result<(), Failure> {
    let output = &session.output;
    session.read(|store| {
        let mut after = None;
        loop {
            let page = store.list_uploads(after, PAGE).wait()?;
            for info in &page {
                output.object(&with_key(
                    &info.key,
                    json!({"upload": info.upload.to_string(), "parts": info.parts,
                        "bytes": info.bytes, "started": time_json(info.started),
                        "modified": time_json(info.modified)}),
                ))?;
                output.line(format!(
                    "{}  {}  {:>12}  {:>12}  {}",
                    info.upload,
                    time_text(info.modified),
                    count(info.parts as u64, "part", "parts"),
                    output.bytes(info.bytes),
                    info.key
                ))?;
            }
            match page.last() {
                Some(last) => after = Some((last.key.clone(), last.upload)),
                None => return Ok(()),
            }
        }
    })
}

fn ls_parts(session: &Session, upload: UploadId) -> Result<(), Failure> {
    let output = &session.output;
    for part in session.read(|store| parts_of(store, upload))? {
        output.object(&json!({"number": part.number, "size": part.size,
            "etag": etag_text(part.etag), "modified": time_json(part.modified)}))?;
        output.line(format!(
            "{:>5}  {:>12}  {}  {}",
            part.number,
            output.bytes(part.size),
            etag_text(part.etag),
            time_text(part.modified)
        ))?;
    }
    Ok(())
}
