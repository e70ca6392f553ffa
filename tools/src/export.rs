//! `export`: writes blobs out as a directory tree, and never a byte outside of it.
//!
//! Keys are anybody's. Only those that are plain relative paths are taken ([`check_relative`]),
//! and [`Target`] keeps what they name inside.

use std::collections::VecDeque;
use std::io::Write;
use std::ops::ControlFlow;
use std::time::Instant;

use graviton_engine::port::{Blob, BlobInfo, BlobStore, ErrorKind, GetOptions, ListEntry, StoreOp};
use graviton_engine::store::Store;
use serde_json::json;

use crate::beneath::check_relative;
use crate::cli::ExportArgs;
use crate::failure::{Exit, Failure};
use crate::files::Restored;
use crate::keys;
use crate::listing::{Listed, each};
use crate::output::{count, with_key};
use crate::progress::Progress;
use crate::session::Session;
use crate::size::human_rate;
use crate::target::{Placed, Target};
use crate::transfer::{PIECE, pour_out};

/// Reads that are on their way at once.
const GETS_IN_FLIGHT: usize = 32;

/// Writes blobs out.
pub fn run(session: &Session, args: &ExportArgs) -> Result<(), Failure> {
    let prefix = session.bytes(&args.prefix)?;
    session.read(|store| {
        let target = Target::open(session, args)?;
        let shown = Progress::would_show(session.output.is_json());
        let total = if shown {
            total_bytes(store, &prefix)?
        } else {
            0
        };
        let mut export = Export {
            session,
            store,
            prefix_len: prefix.len(),
            target,
            progress: Progress::new(shown, "exporting", total),
            tally: Tally::default(),
        };
        export.run(&prefix)
    })
}

fn total_bytes(store: &Store, prefix: &[u8]) -> Result<u64, Failure> {
    let mut total = 0_u64;
    each(store, prefix, None, None, &mut |listed| {
        if let Listed::Blob(entry) = listed {
            total = total.saturating_add(entry.size);
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(total)
}

#[derive(Default)]
struct Tally {
    written: u64,
    bytes: u64,
    identical: u64,
    /// Files that were identical but for their mode.
    mode_set: u64,
    skipped: u64,
    exit: Option<Exit>,
}

/// A blob on its way.
struct Flying {
    entry: ListEntry,
    info: StoreOp<BlobInfo>,
    /// Its bytes, unless it is large.
    blob: Option<StoreOp<Blob>>,
}

struct Export<'a> {
    session: &'a Session,
    store: &'a Store,
    prefix_len: usize,
    target: Target,
    progress: Progress,
    tally: Tally,
}

impl Export<'_> {
    fn run(&mut self, prefix: &[u8]) -> Result<(), Failure> {
        let started = Instant::now();
        let mut flying = VecDeque::new();
        let store = self.store;
        each(store, prefix, None, None, &mut |listed| {
            let Listed::Blob(entry) = listed else {
                return Ok(ControlFlow::Continue(()));
            };
            if let Err(why) = check_relative(&entry.key.as_bytes()[self.prefix_len..]) {
                let failure = Failure::failed(format!("skipped {}: as a path, {why}", entry.key));
                self.failed(&failure);
                return Ok(ControlFlow::Continue(()));
            }
            let blob = (entry.size <= PIECE).then(|| store.get(&entry.key, GetOptions::default()));
            let info = store.stat(&entry.key);
            flying.push_back(Flying { entry, info, blob });
            if flying.len() == GETS_IN_FLIGHT
                && let Some(oldest) = flying.pop_front()
            {
                self.land(oldest)?;
            }
            Ok(ControlFlow::Continue(()))
        })?;
        for oldest in flying {
            self.land(oldest)?;
        }
        // One flush for all: a flush for each would take longer than everything else.
        rustix::fs::syncfs(self.target.as_fd()).map_err(|error| {
            Failure::failed(format!("cannot flush the files that were written: {error}"))
        })?;
        self.progress.clear();
        self.finish(prefix, started.elapsed().as_secs_f64())
    }

    /// Writes one blob out. Only what ends the export is an error.
    fn land(&mut self, flying: Flying) -> Result<(), Failure> {
        let Flying { entry, info, blob } = flying;
        let outcome = self.write(&entry, info, blob);
        let output = &self.session.output;
        match outcome {
            Ok(Placed::Written) => {
                self.tally.written += 1;
                self.tally.bytes += entry.size;
                if output.is_json() {
                    let object = json!({"event": "exported", "size": entry.size});
                    output.event(&with_key(&entry.key, object))?;
                }
            }
            Ok(Placed::Identical) => self.tally.identical += 1,
            Ok(Placed::ModeSet) => {
                self.tally.mode_set += 1;
                if output.is_json() {
                    let object = json!({"event": "mode_set", "size": entry.size});
                    output.event(&with_key(&entry.key, object))?;
                }
            }
            Err(Failure::BrokenPipe) => return Err(Failure::BrokenPipe),
            Err(failure) => self.failed(&failure),
        }
        Ok(())
    }

    fn failed(&mut self, failure: &Failure) {
        self.tally.skipped += 1;
        let exit = match failure.exit() {
            Exit::Corruption => Exit::Corruption,
            _ => Exit::Failed,
        };
        self.tally.exit = Some(self.tally.exit.map_or(exit, |before| before.worse(exit)));
        self.session
            .output
            .report_under(failure, Some(&self.progress));
    }

    fn write(
        &mut self,
        entry: &ListEntry,
        info: StoreOp<BlobInfo>,
        blob: Option<StoreOp<Blob>>,
    ) -> Result<Placed, Failure> {
        let restored = match info.wait() {
            Ok(info) => Restored::from_attributes(&info.attributes),
            // Its bytes may be whole all the same, and the get below tells.
            Err(error) if error.kind() == ErrorKind::Corruption => {
                Restored::from_attributes(&graviton_engine::port::Attributes::new())
            }
            Err(error) => return Err(error.into()),
        };
        let path = &entry.key.as_bytes()[self.prefix_len..];
        let about =
            |why: &dyn std::fmt::Display| Failure::failed(format!("skipped {}: {why}", entry.key));
        let progress = &self.progress;
        match blob {
            Some(blob) => {
                let blob = blob.wait()?;
                self.target.place(path, restored, &about, &mut |file| {
                    file.write_all(&blob.bytes).map_err(|error| about(&error))?;
                    progress.advance(entry.size);
                    Ok(())
                })
            }
            None => {
                let store = self.store;
                self.target.place(path, restored, &about, &mut |file| {
                    let reader = store.get_stream(&entry.key, GetOptions::default()).wait()?;
                    pour_out(reader, &mut |piece| {
                        file.write_all(piece).map_err(|error| about(&error))?;
                        progress.advance(crate::transfer::length(piece));
                        Ok(())
                    })?;
                    Ok(())
                })
            }
        }
    }

    fn finish(&self, prefix: &[u8], seconds: f64) -> Result<(), Failure> {
        let output = &self.session.output;
        let tally = &self.tally;
        if self.target.leftovers > 0 {
            let files = count(self.target.leftovers, "file", "files");
            let note = format!("removed {files} that interrupted exports had left unfinished");
            output.note(note, None);
        }
        let met = tally.written + tally.identical + tally.mode_set + tally.skipped;
        if met == 0 && !prefix.is_empty() {
            let note = format!(
                "nothing matches: no key begins with '{}'",
                keys::text(prefix)
            );
            output.note(note, None);
        }
        output.event(&json!({
            "event": "summary",
            "exported": tally.written,
            "exported_bytes": tally.bytes,
            "identical": tally.identical,
            "mode_set": tally.mode_set,
            "skipped": tally.skipped,
            "seconds": seconds,
        }))?;
        let mode_set = match tally.mode_set {
            0 => String::new(),
            number => format!(", {number} changed in mode only"),
        };
        output.line(format!(
            "{} exported, {} identical already{mode_set}, {} skipped; {} in {seconds:.1} s, {}",
            tally.written,
            tally.identical,
            tally.skipped,
            output.bytes(tally.bytes),
            human_rate(tally.bytes, seconds)
        ))?;
        match tally.exit {
            Some(exit) => Err(Failure::Reported(exit)),
            None => Ok(()),
        }
    }
}
