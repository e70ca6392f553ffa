//! The command `attrs`: what is said of a blob.

use std::os::unix::ffi::OsStringExt;

use graviton_engine::port::{
    AttributesUpdate, BlobManifest, Confirmed, Fact, Location, ManifestEntry, ManifestError,
    MutableObjectStore, Precondition, StorageError, UpdateOptions,
};
use serde_json::{Value, json};

use crate::cli::AttrsArgs;
use crate::failure::Failure;
use crate::keys;
use crate::output::{etag_text, time_json, time_text, with_key};
use crate::session::Session;

/// `attrs`.
pub fn run(session: &Session, args: &AttrsArgs) -> Result<(), Failure> {
    let key = session.key(&args.key)?;
    let is_change = args.replace || !args.set.is_empty() || !args.remove.is_empty();
    if args.if_etag.is_some() && !is_change {
        return Err(Failure::usage("--if-etag, and nothing to change"));
    }
    let mut names: Vec<&String> = args.set.iter().map(|(name, _)| name).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Failure::usage(format!(
            "{} is set twice",
            keys::text(twice[0].as_bytes())
        )));
    }
    let update = AttributesUpdate {
        replace: args.replace,
        set: args
            .set
            .iter()
            .map(|(name, value)| (name.clone(), value.clone().into_vec().into()))
            .collect(),
        remove: args.remove.iter().cloned().collect(),
        source: args.source.clone(),
    };
    let options = UpdateOptions {
        precondition: args
            .if_etag
            .map_or(Precondition::None, Precondition::IfETag),
        ..UpdateOptions::default()
    };
    let manifest = match is_change {
        true => session.write(|store| {
            let manifests = store.manifests();
            let updated = manifests.update_attributes(&key, update, options).wait();
            updated
                .and_then(|_| manifests.get(&key).wait())
                .map_err(failure)
        })?,
        false => session.read(|store| store.manifests().get(&key).wait().map_err(failure))?,
    };
    say(session, &manifest, args.entries)
}

fn failure(error: ManifestError) -> Failure {
    match error {
        ManifestError::Storage(error) => error.into(),
        ManifestError::NotFound { key } => StorageError::NotFound { key }.into(),
        other => Failure::failed(other.to_string()),
    }
}

fn say(session: &Session, manifest: &BlobManifest, entries: bool) -> Result<(), Failure> {
    let output = &session.output;
    output.object(&as_json(manifest, entries))?;
    output.line(format!("key        {}", manifest.key))?;
    output.line(format!("ETag       {}", etag_text(manifest.etag)))?;
    for Confirmed { fact, time } in &manifest.confirmed {
        let fact = match fact {
            Fact::Size(size) => format!("{size} bytes"),
            Fact::Digest(digest) => digest.to_string(),
            _ => continue,
        };
        output.line(format!("confirmed  {fact}, {}", time_text(*time)))?;
    }
    for (name, one) in &manifest.advertised {
        let (name, value) = (keys::text(name.as_bytes()), keys::text(&one.value));
        let source = match one.source.is_empty() {
            true if one.time == manifest.created => "with the blob".to_owned(),
            true => "by nobody named".to_owned(),
            false => format!("by {}", keys::text(one.source.as_bytes())),
        };
        let time = time_text(one.time);
        output.line(format!("advertised {name} = {value}, {source}, {time}"))?;
    }
    for ManifestEntry { span, location } in manifest.entries.iter().filter(|_| entries) {
        let place = match location {
            Location::Hole => "hole".to_owned(),
            Location::Payload {
                sector,
                lsn,
                offset,
            } => format!("sector {sector}, LSN {lsn}, from {offset}"),
            _ => continue,
        };
        output.line(format!("entry      {span} {place}"))?;
    }
    Ok(())
}

fn as_json(manifest: &BlobManifest, entries: bool) -> Value {
    let confirmed = |one: &Confirmed| {
        let (what, value) = match one.fact {
            Fact::Size(size) => ("size", size.into()),
            Fact::Digest(digest) => ("digest", Value::from(digest.to_string())),
            _ => return Value::Null,
        };
        json!({"what": what, "value": value, "time": time_json(one.time)})
    };
    let advertised = manifest.advertised.iter().map(|(name, one)| {
        json!({"name": name, "value": keys::text(&one.value), "value_hex": keys::hex(&one.value),
            "source": one.source, "time": time_json(one.time)})
    });
    let entry = |entry: &ManifestEntry| {
        let (start, end) = (entry.span.start(), entry.span.end());
        match entry.location {
            Location::Payload {
                sector,
                lsn,
                offset,
            } => {
                json!({"start": start, "end": end, "sector": sector, "lsn": lsn, "offset": offset})
            }
            _ => json!({"start": start, "end": end, "hole": true}),
        }
    };
    let entries: Option<Vec<Value>> = entries.then(|| manifest.entries.iter().map(entry).collect());
    with_key(
        &manifest.key,
        json!({
            "etag": etag_text(manifest.etag),
            "version": manifest.version,
            "confirmed": manifest.confirmed.iter().map(confirmed).collect::<Vec<_>>(),
            "advertised": advertised.collect::<Vec<_>>(),
            "entries": entries,
        }),
    )
}
