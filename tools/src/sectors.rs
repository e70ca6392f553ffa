//! `sectors`, `replicas`, `scrub` and `repair`: the sectors of a store, and the replicas in them.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use comfy_table::{CellAlignment, Table, presets};
use graviton_engine::port::{Health, Labels, Replica, ReplicaError, SectorState, StorageError};
use graviton_engine::store::{
    Access, FoundSector, NewSector, RebalanceOptions, RemoveOptions, ScrubDepth, ScrubOptions,
    SectorInfo, Store,
};
use serde_json::{Value, json};

use crate::cli::{Depth, KeyArg, LabelArgs, NewSectorArgs, ScrubArgs, Sectors};
use crate::failure::{Exit, Failure};
use crate::output::{count, with_key};
use crate::progress::Progress;
use crate::session::Session;
use crate::stores::{labels_line, sector_json};

/// How often it is tried to mend what was found damaged.
const ROUNDS: usize = 3;

/// `sectors`.
pub fn run(session: &Session, what: &Sectors) -> Result<(), Failure> {
    match what {
        Sectors::Ls => ls(session),
        Sectors::Add(new) => session.write(|store| add(session, store, new, None).map(drop)),
        &Sectors::Grow { sector, size } => session.write(|store| {
            let size = store.grow_sector(sector, size.map_or_else(|| whole(store, sector), Ok)?)?;
            session
                .output
                .object(&json!({"grown": sector, "size": size}))?;
            let size = session.output.bytes(size);
            session.output.line(format!("sector {sector} has {size}"))
        }),
        &Sectors::Drain { sector } => session.write(|store| {
            store.drain_sector(sector)?;
            move_away(session, store, sector)?;
            session.output.object(&json!({"drained": sector}))?;
            session.output.line(format!("sector {sector} is drained"))
        }),
        &Sectors::Undrain { sector } => session.write(|store| {
            store.undrain_sector(sector)?;
            session.output.object(&json!({"undrained": sector}))?;
            session
                .output
                .line(format!("sector {sector} is in use again"))
        }),
        &Sectors::Remove {
            sector,
            accept_loss,
            ref without,
        } => {
            let options = RemoveOptions { accept_loss };
            let work = |store: &Store| remove(session, store, sector, options);
            match accept_loss {
                true => accepting(session, sector, without, 0, work),
                false => session.write(work),
            }
        }
        &Sectors::Replace {
            sector,
            accept_loss,
            ref without,
            ref new,
        } => {
            let options = RemoveOptions { accept_loss };
            let work = |store: &Store| {
                // Before anything is added for it.
                store.needed(sector)?;
                match replaced_by(store, sector) {
                    Some(other) => {
                        session
                            .output
                            .object(&json!({"draining": sector, "replaced_by": other}))?;
                        session.output.line(format!(
                            "sector {other} came for sector {sector} already: going on, no other is added"
                        ))?;
                    }
                    None => drop(add(session, store, new, Some(sector))?),
                }
                match accept_loss {
                    true => drop(mend(session, store)?),
                    false => move_away(session, store, sector)?,
                }
                remove(session, store, sector, options)
            };
            match accept_loss {
                true => accepting(session, sector, without, 1, work),
                false => session.write(work),
            }
        }
        Sectors::Recover { files } => recover(session, files),
        Sectors::Label { sector, labels } => session.write(|store| {
            store.relabel(*sector, labels_of(labels))?;
            let labels = labels_line(&labels_of(labels)).unwrap_or_else(|| "nothing".to_owned());
            session.output.object(&json!({"labelled": sector}))?;
            session.output.line(format!("sector {sector}: {labels}"))
        }),
    }
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path)
        .map_err(|error| Failure::failed(format!("{}: {error}", path.display())))
}

/// Writes the store file anew.
fn recover(session: &Session, files: &[PathBuf]) -> Result<(), Failure> {
    session.check_writing()?;
    let files = files.iter().map(|file| absolute(file));
    let files = files.collect::<Result<Vec<_>, _>>()?;
    let directory = absolute(&session.global.store)?;
    let io = session.open_options(Access::ReadWrite).io;
    let found = Store::recover_store_file(&directory, &files, &io).map_err(|error| {
        let advice = match error {
            StorageError::AlreadyExists { .. } => {
                " and can be read (if it does not name what is there, move it away first)"
            }
            StorageError::NoStore { .. } => {
                let message = format!("{error}; name a file of each sector");
                return Failure::failed(message);
            }
            _ => "",
        };
        let message = format!("{error}{advice}");
        Failure::from(error).saying(message)
    })?;
    let output = &session.output;
    let state = |sector: &FoundSector| match (sector.is_there, sector.is_as_left) {
        (false, _) => "missing",
        (true, true) => "found",
        (true, false) => "found, but as an older copy of itself",
    };
    let sectors: Vec<_> = found
        .sectors
        .iter()
        .map(|sector| {
            json!({"sector": sector.number, "file": sector.path, "there": sector.is_there,
                "as_left": sector.is_as_left, "behind": sector.is_behind})
        })
        .collect();
    output.object(
        &json!({"recovered": directory, "revision": found.revision, "sectors": sectors,
        "unnamed": found.unnamed}),
    )?;
    output.line(format!(
        "the store file is written anew, as of revision {}",
        found.revision
    ))?;
    for sector in &found.sectors {
        let behind = match sector.is_behind {
            true => " (it took no part when that was written)",
            false => "",
        };
        output.line(format!(
            "sector {}: {}: {}{behind}",
            sector.number,
            sector.path.display(),
            state(sector)
        ))?;
    }
    let lost = found.sectors.iter().filter(|sector| !sector.is_as_left);
    for sector in lost.filter(|sector| !sector.is_behind) {
        output.line(format!(
            "the store does not open without sector {0}: bring it back, or accept what is lost with it (graviton sectors replace|remove {0} --accept-loss)",
            sector.number
        ))?;
    }
    for file in &found.unnamed {
        output.line(format!(
            "{}: of this store, but none of its sectors any more, or not yet",
            file.display()
        ))?;
    }
    Ok(())
}

/// Does `work` with a store that may not open but without a sector, whose loss is accepted then. So many others come.
fn accepting(
    session: &Session,
    sector: u16,
    others: &[u16],
    coming: usize,
    work: impl FnOnce(&Store) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let (info, refused) = session.inspect(|store| Ok(store.info()))?;
    if refused.is_none() {
        return session.write(work);
    }
    // Nothing is given up for a work that will be refused.
    let is_left =
        |other: &&SectorInfo| other.number != sector && other.state == SectorState::Active;
    let left = info.sectors.iter().filter(is_left).count();
    let replicas = usize::from(info.replication.replicas);
    if left + coming < replicas {
        return Err(Failure::usage(format!(
            "without sector {sector}, {} left to take {replicas} replicas of each blob",
            count(left as u64, "sector is", "sectors are")
        )));
    }
    session.write_without([&[sector], others].concat(), work)
}

fn ls(session: &Session) -> Result<(), Failure> {
    let (info, refused) = session.inspect(|store| Ok(store.info()))?;
    let output = &session.output;
    if let Some(why) = refused {
        output.note(why, None);
    }
    for sector in &info.sectors {
        output.object(&sector_json(sector))?;
    }
    if output.is_json() {
        return Ok(());
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header([
        "SECTOR",
        "STATE",
        "SIZE",
        "LIVE",
        "AVAILABLE",
        "LABELS",
        "FILE",
    ]);
    let row = |sector: &SectorInfo| {
        [
            sector.number.to_string(),
            sector.state.to_string(),
            output.bytes(sector.space.total),
            output.bytes(sector.space.live),
            output.bytes(sector.space.available),
            labels_line(&sector.labels).unwrap_or_default(),
            sector.path.display().to_string(),
        ]
    };
    table.add_rows(info.sectors.iter().map(row));
    for column in [2, 3, 4] {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    output.line(table.trim_fmt())
}

fn labels_of(args: &LabelArgs) -> Labels {
    Labels {
        rack: args.rack.clone(),
        tier: args.tier.clone(),
        price: args.price,
    }
}

/// All of the device that a sector lies on.
fn whole(store: &Store, sector: u16) -> Result<u64, Failure> {
    let sectors = store.info().sectors;
    let is_file = |found: &&SectorInfo| found.number == sector && !found.is_device;
    match sectors.iter().find(is_file) {
        Some(_) => Err(Failure::failed(format!(
            "sector {sector} is a file: say what size it is to have"
        ))),
        None => Ok(u64::MAX),
    }
}

/// The sector that came for another.
fn replaced_by(store: &Store, number: u16) -> Option<u16> {
    let sectors = store.info().sectors;
    let other = sectors
        .iter()
        .find(|sector| sector.replaces == Some(number));
    other.map(|sector| sector.number)
}

fn add(
    session: &Session,
    store: &Store,
    new: &NewSectorArgs,
    replaces: Option<u16>,
) -> Result<u16, Failure> {
    let largest = store
        .info()
        .sectors
        .iter()
        .map(|sector| sector.space.total)
        .max();
    let file = match &new.file {
        Some(file) => Some(absolute(file)?),
        None => None,
    };
    let is_device = file.as_deref().is_some_and(|file| {
        std::fs::metadata(file).is_ok_and(|found| found.file_type().is_block_device())
    });
    let size = match is_device {
        true => Some(u64::MAX),
        false => largest,
    };
    let number = store.add_sector(&NewSector {
        file,
        size: new.size.or(size).unwrap_or_default(),
        overwrite: new.overwrite,
        labels: labels_of(&new.labels),
        replaces,
    })?;
    session.output.object(&json!({"added": number}))?;
    session.output.line(format!("added sector {number}"))?;
    Ok(number)
}

/// Repairs until nothing needs a sector any more.
fn move_away(session: &Session, store: &Store, sector: u16) -> Result<(), Failure> {
    mend(session, store)?;
    match store.needed(sector)? {
        0 => Ok(()),
        keys => Err(Failure::failed(format!(
            "{} still without a place elsewhere: the other sectors have no room, or take no writes (graviton sectors add makes room, and what was begun goes on)",
            count(keys, "key is", "keys are")
        ))),
    }
}

fn remove(
    session: &Session,
    store: &Store,
    sector: u16,
    options: RemoveOptions,
) -> Result<(), Failure> {
    match store.remove_sector(sector, options) {
        Ok(()) => {}
        Err(error @ StorageError::StillNeeded { .. }) => {
            return Err(Failure::failed(format!(
                "{error} (graviton sectors drain {sector}, or graviton repair --apply if it is missing or broken)"
            )));
        }
        Err(error) => return Err(error.into()),
    }
    session.output.object(&json!({"removed": sector}))?;
    session.output.line(format!("removed sector {sector}"))
}

/// Makes the replicas that are missing. Returns how many keys still lack some.
fn mend(session: &Session, store: &Store) -> Result<u64, Failure> {
    let shown = Progress::would_show(session.output.is_json());
    let progress = Progress::counting(shown, "making replicas,");
    let mended = store.repair(&mut |repair| {
        progress.message(count(repair.left, "key left", "keys left"));
    });
    progress.clear();
    Ok(mended?)
}

fn failure(error: ReplicaError) -> Failure {
    match error {
        ReplicaError::Storage(error) => error.into(),
        ReplicaError::NotFound { key } => StorageError::NotFound { key }.into(),
        other => Failure::failed(other.to_string()),
    }
}

/// `replicas`.
pub fn replicas(session: &Session, args: &KeyArg) -> Result<(), Failure> {
    let key = session.key(&args.key)?;
    let (replicas, status, states) = session.read(|store| {
        let index = store.replicas();
        let states: BTreeMap<u16, SectorState> = store
            .info()
            .sectors
            .iter()
            .map(|sector| (sector.number, sector.state))
            .collect();
        Ok((
            index.find_replicas(&key).wait().map_err(failure)?,
            index.status(&key).wait().map_err(failure)?,
            states,
        ))
    })?;
    let output = &session.output;
    let state = |replica: &Replica| states.get(&replica.sector).copied();
    let health = |replica: &Replica| match &replica.health {
        Health::Healthy => "healthy".to_owned(),
        Health::Unhealthy(trouble) => format!("{} damaged: {}", trouble.damaged, trouble.reason),
    };
    let rows: Vec<Value> = replicas
        .iter()
        .map(|replica| {
            json!({
                "sector": replica.sector,
                "state": state(replica).map(SectorState::name),
                "version": replica.generation,
                "current": replica.is_current,
                "ranges": replica.ranges.to_string(),
                "healthy": replica.health.is_healthy(),
                "health": health(replica),
            })
        })
        .collect();
    output.object(&with_key(
        &key,
        json!({
            "target": status.target,
            "actual": status.actual,
            "healthy": status.healthy,
            "missing": status.missing_ranges.to_string(),
            "lost": status.lost_ranges.to_string(),
            "replicas": rows,
        }),
    ))?;
    for replica in &replicas {
        let state = state(replica).map_or("", SectorState::name);
        let bytes = replica.ranges.len();
        output.line(format!(
            "sector {} ({state}): version {}, {}, {}",
            replica.sector,
            replica.generation,
            count(bytes, "byte", "bytes"),
            health(replica)
        ))?;
    }
    output.line(format!(
        "{} of {} healthy",
        status.healthy,
        count(status.target as u64, "replica", "replicas")
    ))?;
    for (what, ranges) in [
        ("in too few sectors", &status.missing_ranges),
        ("lost", &status.lost_ranges),
    ] {
        if !ranges.is_empty() {
            output.line(format!("{what}: {ranges}"))?;
        }
    }
    match status.healthy < status.target {
        true => Err(Failure::Reported(Exit::Corruption)),
        false => Ok(()),
    }
}

/// The sectors that nothing can be read from.
fn left_out(store: &Store) -> Vec<u16> {
    let sectors = store.info().sectors.into_iter();
    let left_out = sectors.filter(|sector| !sector.state.keeps_copies());
    left_out.map(|sector| sector.number).collect()
}

/// `scrub`.
pub fn scrub(session: &Session, args: &ScrubArgs) -> Result<(), Failure> {
    let options = ScrubOptions {
        depth: match args.depth {
            Depth::Index => ScrubDepth::Index,
            Depth::Headers => ScrubDepth::Headers,
            Depth::Everything => ScrubDepth::Everything,
        },
        bytes_per_second: args.rate,
        from: None,
    };
    let output = &session.output;
    let look = |store: &Store| {
        let shown = Progress::would_show(output.is_json());
        let progress = Progress::counting(shown, "scrubbing,");
        let report = store.scrub(&options, &mut |scrubbed| {
            progress.message(count(scrubbed.keys, "key", "keys"));
            ControlFlow::Continue(())
        });
        progress.clear();
        Ok::<_, Failure>(report?)
    };
    let (first, left, left_out) = match args.repair {
        false => session.read(|store| {
            let report = look(store)?;
            let damaged = report.findings.len();
            Ok((report, damaged, left_out(store)))
        })?,
        true => session.write(|store| {
            let report = look(store)?;
            let mut left = report.findings.len();
            // What was rewritten may have lain beside something else that is damaged.
            for _ in 0..ROUNDS {
                if left > 0 {
                    mend(session, store)?;
                    left = look(store)?.findings.len();
                }
            }
            Ok((report, left, left_out(store)))
        })?,
    };
    let findings: Vec<Value> = first
        .findings
        .iter()
        .map(|finding| {
            json!({
                "sector": finding.place.sector,
                "offset": finding.place.offset,
                "key": finding.key.as_ref().map(ToString::to_string),
                "what": finding.what,
            })
        })
        .collect();
    output.object(&json!({
        "keys": first.keys,
        "replicas": first.replicas,
        "bytes": first.bytes,
        "damaged": first.findings.len(),
        "left": left,
        "left_out": left_out,
        "findings": findings,
    }))?;
    for finding in &first.findings {
        let key = finding.key.as_ref().map(|key| format!(" ({key})"));
        let key = key.unwrap_or_default();
        output.line(format!("{}{key}: {}", finding.place, finding.what))?;
    }
    let looked = format!(
        "{} of {}, {} read",
        count(first.replicas, "replica", "replicas"),
        count(first.keys, "key", "keys"),
        output.bytes(first.bytes)
    );
    output.line(match (first.findings.len(), left) {
        (0, _) if left_out.is_empty() => format!("clean: {looked}"),
        (0, _) => format!("nothing is damaged of what could be looked at: {looked}"),
        (damaged, 0) => format!("{damaged} damaged, all mended: {looked}"),
        (damaged, left) if args.repair => {
            format!("{damaged} damaged, {left} could not be mended: {looked}")
        }
        (damaged, _) => format!("{damaged} damaged; --repair mends them: {looked}"),
    })?;
    for sector in &left_out {
        output.line(format!(
            "sector {sector} was not looked at: it is missing or broken (graviton info tells more, sectors replace {sector} makes it anew)"
        ))?;
    }
    match (left, left_out.is_empty()) {
        (0, true) => Ok(()),
        _ => Err(Failure::Reported(Exit::Corruption)),
    }
}

/// `repair`.
pub fn repair(session: &Session, apply: bool) -> Result<(), Failure> {
    let lacking = match apply {
        false => session.read(|store| Ok(store.lacking()?))?,
        true => session.write(|store| mend(session, store))?,
    };
    let output = &session.output;
    output.object(&json!({"lacking": lacking, "applied": apply}))?;
    if lacking == 0 {
        return output.line("everything has its replicas");
    }
    let keys = count(lacking, "key lacks", "keys lack");
    output.line(match apply {
        false => format!("{keys} replicas; --apply makes them"),
        true => format!("{keys} replicas, and nothing more can be done; graviton info tells more"),
    })?;
    Err(Failure::Reported(Exit::Corruption))
}

/// `rebalance`.
pub fn rebalance(session: &Session, apply: bool, rate: Option<u64>) -> Result<(), Failure> {
    let options = RebalanceOptions {
        dry_run: !apply,
        bytes_per_second: rate,
    };
    let output = &session.output;
    let look = |store: &Store| {
        let shown = Progress::would_show(output.is_json() || output.is_verbose());
        let progress = Progress::counting(shown, "rebalancing,");
        let mut said = Ok(());
        let report = store.rebalance(&options, &mut |step| {
            progress.message(count(step.removed, "step", "steps"));
            if output.is_verbose() {
                let line = output.line(format!("{}: {}", step.key, step.step));
                let (add, remove) = (step.step.add, step.step.remove);
                let object = with_key(step.key, json!({"add": add, "remove": remove}));
                said = line.and_then(|()| output.object(&object));
            }
            match &said {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(()),
            }
        });
        progress.clear();
        said?;
        Ok::<_, Failure>(report?)
    };
    let report = match apply {
        true => session.write(look)?,
        false => session.read(look)?,
    };
    output.object(&json!({
        "applied": apply,
        "keys": report.keys,
        "added": report.added,
        "removed": report.removed,
        "bytes": report.bytes,
        "left": report.left,
    }))?;
    let steps = format!(
        "{} with {}, {}",
        count(report.added, "replica made", "replicas made"),
        output.bytes(report.bytes),
        count(report.removed, "taken away", "taken away"),
    );
    output.line(match (report.removed, apply) {
        (0, _) if report.left == 0 => {
            format!(
                "nothing to move: {} looked at",
                count(report.keys, "blob", "blobs")
            )
        }
        (_, true) => format!("done: {steps}"),
        (_, false) => format!("--apply does it: {steps}"),
    })?;
    match report.left {
        0 => Ok(()),
        left => output.line(format!(
            "{} could not be taken; graviton info tells more",
            count(left, "step", "steps")
        )),
    }
}
