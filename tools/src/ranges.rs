//! The command `ranges`: what is written of a blob, or complete of bytes held elsewhere.

use graviton_engine::port::{
    BinaryKey, Completed, MutableObjectStore, RangeSet, StorageError, TrackOptions, TrackerError,
};
use serde_json::json;

use crate::cli::RangesArgs;
use crate::failure::Failure;
use crate::output::with_key;
use crate::session::Session;

/// `ranges`.
pub fn run(session: &Session, args: &RangesArgs) -> Result<(), Failure> {
    let key = session.key(&args.key)?;
    if args.forget {
        let existed = session.write(|store| {
            let forgotten = store.ranges_elsewhere().forget(&key).wait();
            forgotten.map_err(failure)
        })?;
        if !existed {
            return Err(StorageError::NotFound { key }.into());
        }
        let output = &session.output;
        output.object(&with_key(&key, json!({"forgotten": true})))?;
        return output.line(format!("{key}: forgotten"));
    }
    let completed = match &args.mark {
        Some(ranges) => session.write(|store| {
            let options = TrackOptions {
                total: args.total,
                ..TrackOptions::default()
            };
            let marked = store
                .ranges_elsewhere()
                .mark_complete(&key, ranges, options);
            Ok(marked.wait().map_err(failure)?.completed)
        })?,
        None => session.read(|store| {
            let tracker = match args.elsewhere {
                true => store.ranges_elsewhere(),
                false => store.ranges(),
            };
            tracker.get_completed(&key).wait().map_err(failure)
        })?,
    };
    say(session, &key, &completed)
}

fn failure(error: TrackerError) -> Failure {
    match error {
        TrackerError::Storage(error) => error.into(),
        TrackerError::NotFound { key } => StorageError::NotFound { key }.into(),
        other => Failure::failed(other.to_string()),
    }
}

fn say(session: &Session, key: &BinaryKey, completed: &Completed) -> Result<(), Failure> {
    let output = &session.output;
    let pending = completed.total.map(|total| completed.pending(total));
    output.object(&with_key(
        key,
        json!({
            "completed": completed.set.to_string(),
            "completed_bytes": completed.set.len(),
            "pending": pending.as_ref().map(ToString::to_string),
            "pending_bytes": pending.as_ref().map(|pending| pending.len()),
            "total": completed.total,
            "generation": completed.generation,
        }),
    ))?;
    let field = |name: &str, value: String| output.line(format!("{name:<10} {value}"));
    field("key", key.to_string())?;
    let set = |set: &RangeSet| match set.is_empty() {
        true => "nothing".to_owned(),
        false => format!("{} in {set}", output.bytes(set.len())),
    };
    field("completed", set(&completed.set))?;
    if let (Some(total), Some(pending)) = (completed.total, &pending) {
        field("pending", set(pending))?;
        field("total", output.bytes(total))?;
    }
    field("generation", completed.generation.to_string())
}
