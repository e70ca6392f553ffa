//! `dump`: structures as they lie on disk, read past the engine.
//!
//! Files are read with plain reads, and no lock is taken: a store that is damaged, or that another
//! process has open, is dumped all the same. Nothing that is read is believed before the format's
//! decoders have accepted it, and what they refuse is shown with the reason.
//!
//! Whether something is damage is decided where the format decides it: what a checkpoint or the
//! log says is in use has to be good. What lies behind the log's end, or in segments that are free,
//! is described and not judged.

mod checkpoint;
mod disk;
mod frames;
#[cfg(feature = "testing")]
pub mod fuzzing;
mod log;
mod record;
mod sector;
mod segments;
mod source;
mod store_file;
mod tell;
#[cfg(test)]
mod tests;

use graviton_engine::port::BinaryKey;

use crate::cli::{DumpArgs, DumpWhat};
use crate::failure::{Exit, Failure};
use crate::session::Session;
use checkpoint::Entries;
use log::Log;
use sector::Sector;
use source::{Named, Sources};
use tell::{Sink, Teller};

/// `dump`.
pub fn run(session: &Session, args: &DumpArgs) -> Result<(), Failure> {
    let key = match &args.what {
        DumpWhat::Record { key } => Some(session.key(key)?),
        _ => None,
    };
    let sources = source::find(&session.global.store)?;
    if let Some(note) = &sources.note {
        session.output.note(note, None);
    }
    let dump = Dump {
        sink: &session.output,
        verbose: session.output.is_verbose(),
        what: &args.what,
        key: key.as_ref(),
        sources: &sources,
    };
    dump.sectors(args.sector)
}

/// What is to be dumped, and where to.
struct Dump<'a> {
    sink: &'a dyn Sink,
    verbose: bool,
    what: &'a DumpWhat,
    key: Option<&'a BinaryKey>,
    sources: &'a Sources,
}

impl Dump<'_> {
    fn sectors(&self, only: Option<u16>) -> Result<(), Failure> {
        let chosen = |named: &&Named| only.is_none_or(|only| only == named.number);
        let mut exit = Exit::Done;
        let (mut sectors, mut records) = (0_u32, 0);
        for named in self.sources.sectors.iter().filter(chosen) {
            let teller = Teller::new(self.sink, self.verbose, named.number);
            sectors += 1;
            match self.sector(&teller, named) {
                Ok(found) => records += found,
                Err(Failure::BrokenPipe) => return Err(Failure::BrokenPipe),
                // Its exit code is the teller's.
                Err(Failure::Reported(_)) => {}
                Err(failure) => teller.failed(&failure),
            }
            exit = exit.worse(teller.exit());
        }
        if let Some(only) = only.filter(|_| sectors == 0) {
            return Err(Failure::usage(format!("the store has no sector {only}")));
        }
        if let Some(key) = self.key.filter(|_| records == 0) {
            let missing = Failure::Error {
                exit: Exit::NotFound,
                kind: "not_found",
                message: format!("no record of '{key}' was found"),
            };
            if exit == Exit::Done {
                return Err(missing);
            }
            self.sink.report(&missing);
        }
        match exit {
            Exit::Done => Ok(()),
            exit => Err(Failure::Reported(exit)),
        }
    }

    /// Dumps what is wanted of one sector. Returns how many records of the key were found.
    fn sector(&self, teller: &Teller<'_>, named: &Named) -> Result<u64, Failure> {
        let sector = Sector::open(named)?;
        let outcome = self.inside(teller, named, &sector);
        let troubles = sector.disk.troubles();
        for (address, error) in &troubles.first {
            let doing = format!("read {address} of");
            teller.failed(&Failure::file(&doing, &named.path, error));
        }
        if troubles.count > troubles.first.len() as u64 {
            teller.note(format!("{} reads failed", troubles.count))?;
        }
        outcome
    }

    fn inside(&self, teller: &Teller<'_>, named: &Named, sector: &Sector) -> Result<u64, Failure> {
        if matches!(self.what, DumpWhat::Superblock) {
            return sector::dump(teller, sector, named, self.sources).map(|()| 0);
        }
        let layout = sector.layout(teller)?;
        let log = Log {
            disk: &sector.disk,
            layout: &layout,
        };
        let exists = |segment: Option<u32>| match segment {
            Some(segment) if segment >= layout.geometry.segment_count => {
                Err(Failure::usage(format!(
                    "sector {} has no segment {segment}, only {}",
                    named.number, layout.geometry.segment_count
                )))
            }
            segment => Ok(segment),
        };
        match self.what {
            DumpWhat::StoreFile => store_file::dump(teller, &log)?,
            DumpWhat::Segments { segment } => segments::dump(teller, &log, exists(*segment)?)?,
            DumpWhat::Frames { segment } => frames::dump(teller, &log, exists(*segment)?)?,
            DumpWhat::Checkpoint { entries, max } => {
                let most = max.unwrap_or(u64::MAX);
                let entries = entries.then_some(Entries { most });
                checkpoint::dump(teller, &sector.disk, &layout, entries)?;
            }
            DumpWhat::Superblock | DumpWhat::Record { .. } => {}
        }
        match self.key {
            Some(key) => record::dump(teller, &log, key.as_bytes()),
            None => Ok(0),
        }
    }
}
