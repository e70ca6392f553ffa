//! What an import did, file by file and in sum.

use std::collections::BTreeMap;
use std::time::Duration;

use graviton_engine::port::{BinaryKey, PutOutcome};
use serde_json::json;

use crate::failure::{Exit, Failure};
use crate::keys;
use crate::output::{Output, count, etag_text, with_key};
use crate::progress::Progress;
use crate::session::Session;
use crate::size::human_rate;

/// What became of something in the tree.
pub enum Settled {
    Imported { key: BinaryKey, outcome: PutOutcome },
    Unchanged { key: BinaryKey, size: u64 },
    Skipped { path: Vec<u8>, what: &'static str },
    EmptyDirectory,
    Failed { failure: Failure },
}

/// What an import did.
#[derive(Default)]
pub struct Tally {
    imported: u64,
    imported_bytes: u64,
    unchanged: u64,
    unchanged_bytes: u64,
    skipped: BTreeMap<&'static str, u64>,
    empty_directories: u64,
    failed: u64,
    exit: Option<Exit>,
    /// What ended it early.
    pub ended_by: Option<Failure>,
}

impl Tally {
    /// Counts, and says what is to be said. An error ends the import.
    pub fn settle(
        &mut self,
        session: &Session,
        progress: &Progress,
        settled: Settled,
    ) -> Result<(), Failure> {
        let output = &session.output;
        match settled {
            Settled::Imported { key, outcome } => {
                self.imported += 1;
                self.imported_bytes += outcome.size;
                progress.message(count(self.imported, "file", "files"));
                if output.is_json() {
                    output.event(&with_key(
                        &key,
                        json!({"event": "imported", "size": outcome.size,
                            "version": outcome.version, "etag": etag_text(outcome.etag)}),
                    ))?;
                }
            }
            Settled::Unchanged { key, size } => {
                self.unchanged += 1;
                self.unchanged_bytes += size;
                if output.is_json() {
                    let object = json!({"event": "unchanged", "size": size});
                    output.event(&with_key(&key, object))?;
                }
            }
            Settled::Skipped { path, what } => {
                *self.skipped.entry(what).or_default() += 1;
                let path = keys::text(&path);
                if output.is_json() {
                    output.event(&json!({"event": "skipped", "path": path, "why": what}))?;
                } else {
                    output.note(format!("skipped {path}: {what}"), Some(progress));
                }
            }
            Settled::EmptyDirectory => self.empty_directories += 1,
            Settled::Failed { failure } => {
                let exit = match failure.exit() {
                    Exit::Corruption => Exit::Corruption,
                    _ => Exit::Failed,
                };
                self.exit = Some(self.exit.map_or(exit, |before| before.worse(exit)));
                if self.ended_by.is_some() {
                    return Ok(());
                }
                if failure.ends_everything() {
                    return Err(failure);
                }
                self.failed += 1;
                output.report_under(&failure, Some(progress));
            }
        }
        Ok(())
    }

    /// The summary, and the import's outcome.
    pub fn finish(self, session: &Session, elapsed: Duration) -> Result<(), Failure> {
        let output = &session.output;
        if let Some(Failure::BrokenPipe) = self.ended_by {
            // Nobody listens, but not everything was imported either.
            return Err(Failure::Reported(Exit::Failed));
        }
        let seconds = elapsed.as_secs_f64();
        let skipped: u64 = self.skipped.values().sum();
        output.event(&json!({
            "event": "summary",
            "complete": self.ended_by.is_none(),
            "imported": self.imported,
            "imported_bytes": self.imported_bytes,
            "unchanged": self.unchanged,
            "unchanged_bytes": self.unchanged_bytes,
            "skipped": skipped,
            "skipped_why": self.skipped,
            "empty_directories": self.empty_directories,
            "failed": self.failed,
            "seconds": seconds,
            "path": session.global.store.to_string_lossy(),
        }))?;
        output.line(self.summary(output, skipped, seconds))?;
        if let Some(failure) = self.ended_by {
            let message = match &failure {
                Failure::Error {
                    exit,
                    kind,
                    message,
                } => Failure::Error {
                    exit: *exit,
                    kind,
                    message: format!("the import ended early: {message}"),
                },
                other => other.clone(),
            };
            return Err(message);
        }
        match self.exit {
            Some(exit) => Err(Failure::Reported(exit)),
            None => Ok(()),
        }
    }

    fn summary(&self, output: &Output, skipped: u64, seconds: f64) -> String {
        let mut line = format!("{} imported", self.imported);
        line.push_str(&format!(", {} unchanged", self.unchanged));
        line.push_str(&format!(", {skipped} skipped"));
        if skipped > 0 {
            let why: Vec<String> = self
                .skipped
                .iter()
                .map(|(what, number)| format!("{what}: {number}"))
                .collect();
            line.push_str(&format!(" ({})", why.join(", ")));
        }
        if self.empty_directories > 0 {
            let directories = count(
                self.empty_directories,
                "empty directory",
                "empty directories",
            );
            line.push_str(&format!(", {directories} left out"));
        }
        if self.failed > 0 {
            line.push_str(&format!(", {} failed", self.failed));
        }
        if self.imported == 0 {
            line.push_str(&format!("; nothing changed; {seconds:.1} s"));
        } else {
            line.push_str(&format!(
                "; {} in {seconds:.1} s, {}",
                output.bytes(self.imported_bytes),
                human_rate(self.imported_bytes, seconds)
            ));
        }
        line
    }
}
