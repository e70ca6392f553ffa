//! The commands about the store as a whole: `init`, `info`, `verify`, `compact`, `checkpoint`.

use std::time::SystemTime;

use comfy_table::{CellAlignment, Table, presets};
use graviton_engine::port::{Labels, SectorState};
use graviton_engine::store::{
    Access, CheckpointInfo, Finding, ReplicationInfo, SectorInfo, Space, StoreInfo, VerifyReport,
};
use serde_json::{Value, json};

use crate::cli::Geometry;
use crate::failure::{Exit, Failure};
use crate::output::{Output, count, time_json, with_key};
use crate::progress::Progress;
use crate::session::Session;
use crate::size::Human;

/// Size of a sector when nothing else is said.
const SECTOR_SIZE: u64 = 1 << 30;

/// `init`.
pub fn init(session: &Session, geometry: &Geometry) -> Result<(), Failure> {
    let store = session.create(geometry, SECTOR_SIZE)?;
    let info = session.use_store(store, |store| Ok(store.info()))?;
    let output = &session.output;
    output.object(&info_json(&info))?;
    output.line(format!(
        "created a store of {} at {}",
        output.bytes(info.space.total),
        info.path.display()
    ))?;
    for sector in &info.sectors {
        output.line(sector_line(output, sector))?;
    }
    Ok(())
}

/// `info`.
pub fn info(session: &Session) -> Result<(), Failure> {
    let ((mut info, lacking), refused) = session.inspect(|store| {
        let info = store.info();
        let lacking = match info.sectors.len() {
            1 => 0,
            _ => store.lacking()?,
        };
        Ok((info, lacking))
    })?;
    tell_refusal(&mut info.health, refused);
    // While a sector is drained, what lies there is on its way.
    if lacking > 0 && !info.sectors.iter().any(|sector| sector.draining) {
        let keys = count(lacking, "key lacks", "keys lack");
        let more = "graviton repair --apply makes them, if there are sectors for them";
        info.health.push(format!("{keys} replicas ({more})"));
    }
    let output = &session.output;
    let mut object = info_json(&info);
    object["replication"]["lacking"] = lacking.into();
    output.object(&object)?;
    let healthy = if info.health.is_empty() {
        Ok(())
    } else {
        Err(Failure::Reported(Exit::Corruption))
    };
    if output.is_json() {
        return healthy;
    }
    let field = |name: &str, value: String| output.line(format!("{name:<12} {value}"));
    field("store", info.path.display().to_string())?;
    field("id", info.store_id.clone())?;
    field("format", format!("version {}", info.format_version))?;
    let is_there = |sector: &&SectorInfo| sector.state != SectorState::Absent;
    let there: Vec<&SectorInfo> = info.sectors.iter().filter(is_there).collect();
    let direct = there.iter().filter(|sector| sector.direct).count();
    let how = match direct {
        0 => "buffered I/O",
        direct if direct == there.len() => "direct I/O",
        _ => "direct I/O on some sectors",
    };
    field("backend", format!("{}, {how}", info.backend))?;
    if let Some(notice) = &info.notice {
        field("notice", notice.clone())?;
    }
    let mut replicas = replicas_line(&info.replication);
    if lacking > 0 {
        replicas += &format!(", {} some", count(lacking, "key lacks", "keys lack"));
    }
    field("replicas", replicas)?;
    field("blobs", info.blobs.to_string())?;
    field("logical", output.bytes(info.logical_bytes))?;
    field("LSN", info.lsn.to_string())?;
    field(
        "index",
        format!("{} in memory", output.bytes(info.index_bytes)),
    )?;
    output.line("")?;
    for sector in &info.sectors {
        output.line(sector_line(output, sector))?;
        output.line(format!("  file        {}", sector.path.display()))?;
        if let Some(labels) = labels_line(&sector.labels) {
            output.line(format!("  labels      {labels}"))?;
        }
        let checkpoint = match &sector.checkpoint {
            Some(checkpoint) => checkpoint_text(output, checkpoint),
            None => "none yet".to_owned(),
        };
        output.line(format!("  checkpoint  {checkpoint}"))?;
        output.line(format!(
            "  replay      {} of log since",
            output.bytes(sector.replay_bytes)
        ))?;
        if let Some(cause) = &sector.poisoned {
            output.line(format!("  {:<11} {cause}", sector.state))?;
        }
    }
    output.line("")?;
    output.line(space_table(output, &info))?;
    output.line("")?;
    if info.health.is_empty() {
        output.line("healthy")?;
    } else {
        output.line("NOT HEALTHY:")?;
        for line in &info.health {
            output.line(format!("  {line}"))?;
        }
    }
    healthy
}

/// That a store does not open is not healthy, unless the reason is told already.
fn tell_refusal(health: &mut Vec<String>, refused: Option<String>) {
    health.extend(refused.filter(|why| !health.contains(why)));
}

fn sector_line(output: &Output, sector: &SectorInfo) -> String {
    if sector.segment_count == 0 {
        let (number, state, id) = (sector.number, sector.state, &sector.sector_id);
        return format!("sector {number}: {state}, id {id}");
    }
    let state = match sector.state {
        SectorState::Active => String::new(),
        state => format!("{state}, "),
    };
    format!(
        "sector {}: {state}{}, {} of {}, blocks of {} bytes, id {}",
        sector.number,
        output.bytes(sector.space.total),
        count(u64::from(sector.segment_count), "segment", "segments"),
        output.bytes(sector.segment_size),
        sector.block_size,
        sector.sector_id
    )
}

fn checkpoint_text(output: &Output, checkpoint: &CheckpointInfo) -> String {
    format!(
        "{} ago, LSN {}, {}, {}",
        age(checkpoint.taken),
        checkpoint.lsn,
        count(checkpoint.entries, "blob", "blobs"),
        output.bytes(checkpoint.bytes)
    )
}

/// How long ago something was: `5 s`, `12 min`, `3 h`, `2 d`.
fn age(time: SystemTime) -> String {
    // A clock that was set back makes it negative: that is no time at all.
    let seconds = SystemTime::now()
        .duration_since(time)
        .map_or(0, |age| age.as_secs());
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// Where the bytes are, by sector and in all, and whether they add up.
fn space_table(output: &Output, info: &StoreInfo) -> String {
    let mut columns: Vec<(String, Space)> = info
        .sectors
        .iter()
        .map(|sector| (format!("sector {}", sector.number), sector.space))
        .collect();
    if columns.len() != 1 {
        columns.push(("all".to_owned(), info.space));
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    let mut header = vec!["space".to_owned()];
    header.extend(columns.iter().map(|(name, _)| name.clone()));
    table.set_header(header);
    let mut row = |name: &str, figure: &dyn Fn(&Space) -> String| {
        let mut cells = vec![name.to_owned()];
        cells.extend(columns.iter().map(|(_, space)| figure(space)));
        table.add_row(cells);
    };
    let share = |part: u64, space: &Space| {
        let percent = percent(part, space.total);
        format!("{} {percent:>4}", output.bytes(part))
    };
    row("live", &|space| share(space.live, space));
    row("garbage", &|space| share(space.garbage, space));
    row("metadata", &|space| share(space.metadata, space));
    row("free", &|space| share(space.free, space));
    row("sum", &|space| {
        if sum(space) == space.total {
            share(space.total, space)
        } else {
            format!("{} of {}: DOES NOT ADD UP", sum(space), space.total)
        }
    });
    row("for puts", &|space| share(space.available, space));
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
        .lines()
        .map(|line| line.trim_end().to_owned())
        .collect::<Vec<_>>()
        .join("\n")
}

fn sum(space: &Space) -> u64 {
    [space.metadata, space.live, space.garbage, space.free]
        .into_iter()
        .fold(0, u64::saturating_add)
}

/// `37%`, of a whole that may be nothing.
pub fn percent(part: u64, whole: u64) -> String {
    let percent = u128::from(part) * 100 / u128::from(whole.max(1));
    if percent == 0 && part > 0 {
        return "<1%".to_owned();
    }
    format!("{percent}%")
}

/// What is said of a sector, if anything is.
pub fn labels_line(labels: &Labels) -> Option<String> {
    let rack = labels.rack.iter().map(|rack| format!("rack {rack}"));
    let tier = labels.tier.iter().map(|tier| format!("tier {tier}"));
    let price = labels.price.iter().map(|price| {
        let (storage, read, write) = (price.storage(), price.read(), price.write());
        format!("price {storage} to store, {read} to read, {write} to write")
    });
    let all: Vec<String> = rack.chain(tier).chain(price).collect();
    (!all.is_empty()).then(|| all.join(", "))
}

fn replicas_line(replication: &ReplicationInfo) -> String {
    let mut line = replication.replicas.to_string();
    if replication.backlog > 0 {
        line += &format!(", {} to repair", replication.backlog);
    }
    if replication.damaged > 0 {
        line += &format!(", {} damaged", replication.damaged);
    }
    if replication.is_scan_due {
        line += ", perhaps more";
    }
    if replication.is_short {
        line += "; no sector may be missing until all are made";
    }
    line
}

/// Everything `info` knows.
pub fn info_json(info: &StoreInfo) -> Value {
    let sectors: Vec<Value> = info.sectors.iter().map(sector_json).collect();
    json!({
        "path": info.path.to_string_lossy(),
        "store_id": info.store_id,
        "format_version": info.format_version,
        "access": match info.access {
            Access::ReadWrite => "read_write",
            Access::ReadOnly => "read_only",
            Access::Salvage => "salvage",
        },
        "backend": info.backend,
        "notice": info.notice,
        "replication": {
            "replicas": info.replication.replicas,
            "backlog": info.replication.backlog,
            "scan_due": info.replication.is_scan_due,
            "damaged": info.replication.damaged,
            "short": info.replication.is_short,
        },
        "blobs": info.blobs,
        "logical_bytes": info.logical_bytes,
        "lsn": info.lsn,
        "index_bytes": info.index_bytes,
        "space": space_json(&info.space),
        "sectors": sectors,
        "health": info.health,
        "healthy": info.health.is_empty(),
    })
}

fn space_json(space: &Space) -> Value {
    json!({
        "total": space.total,
        "metadata": space.metadata,
        "live": space.live,
        "garbage": space.garbage,
        "free": space.free,
        "available": space.available,
        "adds_up": sum(space) == space.total,
    })
}

pub fn sector_json(sector: &SectorInfo) -> Value {
    json!({
        "number": sector.number,
        "sector_id": sector.sector_id,
        "path": sector.path.to_string_lossy(),
        "device": sector.is_device,
        "state": sector.state.name(),
        "rack": sector.labels.rack,
        "tier": sector.labels.tier,
        "price": sector.labels.price.map(|price| json!({
            "storage": price.storage(),
            "read": price.read(),
            "write": price.write(),
        })),
        "direct": sector.direct,
        "block_size": sector.block_size,
        "segment_size": sector.segment_size,
        "segment_count": sector.segment_count,
        "segments_zeroed": sector.segments_zeroed,
        "space": space_json(&sector.space),
        "checkpoint": sector.checkpoint.as_ref().map(checkpoint_json),
        "replay_bytes": sector.replay_bytes,
        "poisoned": sector.poisoned,
    })
}

fn checkpoint_json(checkpoint: &CheckpointInfo) -> Value {
    let age = SystemTime::now()
        .duration_since(checkpoint.taken)
        .map_or(0.0, |age| age.as_secs_f64());
    json!({
        "lsn": checkpoint.lsn,
        "taken": time_json(checkpoint.taken),
        "age_seconds": age,
        "bytes": checkpoint.bytes,
        "entries": checkpoint.entries,
    })
}

/// `verify`.
pub fn verify(session: &Session) -> Result<(), Failure> {
    let output = &session.output;
    let ((report, mut health), refused) = session.inspect(|store| {
        let shown = Progress::would_show(output.is_json());
        let progress = Progress::new(shown, "verifying", 0);
        let report = store.verify(&mut |state| progress.set(state.done, state.total));
        progress.clear();
        Ok((report?, store.info().health))
    })?;
    tell_refusal(&mut health, refused);
    // What was found again is told once.
    health.retain(|line| {
        let told = |finding: &Finding| line.contains(&format!("{}:", finding.place));
        !report.findings.iter().any(told)
    });
    let clean = report.findings.is_empty() && health.is_empty();
    output.object(&verify_json(&report, &health, clean))?;
    for finding in &report.findings {
        let blob = match &finding.key {
            Some(key) => format!(" ({key})"),
            None => String::new(),
        };
        output.line(format!("{}{blob}: {}", finding.place, finding.what))?;
    }
    for line in &health {
        output.line(line)?;
    }
    let checked = format!(
        "{}, {}, {}, {} checked, {} read",
        count(report.blobs, "blob", "blobs"),
        count(report.records, "record", "records"),
        count(report.frames, "frame", "frames"),
        count(report.segments, "segment", "segments"),
        output.bytes(report.bytes)
    );
    if clean {
        return output.line(format!("clean: {checked}"));
    }
    let wrong = report.findings.len() + health.len();
    let wrong = count(
        u64::try_from(wrong).unwrap_or(u64::MAX),
        "thing is wrong",
        "things are wrong",
    );
    output.line(format!("{wrong}: {checked}"))?;
    Err(Failure::Reported(Exit::Corruption))
}

fn verify_json(report: &VerifyReport, health: &[String], clean: bool) -> Value {
    let findings: Vec<Value> = report
        .findings
        .iter()
        .map(|finding| {
            let rest = json!({"sector": finding.place.sector, "offset": finding.place.offset,
                "what": finding.what});
            match &finding.key {
                Some(key) => with_key(key, rest),
                None => rest,
            }
        })
        .collect();
    json!({
        "clean": clean,
        "segments": report.segments,
        "frames": report.frames,
        "records": report.records,
        "blobs": report.blobs,
        "bytes": report.bytes,
        "findings": findings,
        "health": health,
    })
}

/// `compact`.
pub fn compact(session: &Session) -> Result<(), Failure> {
    let report = session.write(|store| Ok(store.compact()?))?;
    let output = &session.output;
    output.object(&json!({"segments": report.segments, "moved": report.moved,
        "freed": report.freed, "damaged": report.damaged}))?;
    if report.segments == 0 {
        output.line("nothing to compact")?;
    } else {
        output.line(format!(
            "{} emptied, {} moved, {} freed",
            count(report.segments, "segment", "segments"),
            output.bytes(report.moved),
            output.bytes(report.freed)
        ))?;
    }
    if report.damaged == 0 {
        return Ok(());
    }
    output.line(format!(
        "{} left as they are: something in them can't be read",
        count(report.damaged, "segment", "segments")
    ))?;
    Err(Failure::Reported(Exit::Corruption))
}

/// `checkpoint`.
pub fn checkpoint(session: &Session) -> Result<(), Failure> {
    let taken = session.write(|store| Ok(store.checkpoint()?))?;
    let output = &session.output;
    let checkpoints: Vec<Value> = taken.iter().map(checkpoint_json).collect();
    output.object(&json!({"checkpoints": checkpoints}))?;
    for checkpoint in &taken {
        output.line(format!(
            "checkpoint at LSN {}: {}, {}",
            checkpoint.lsn,
            count(checkpoint.entries, "blob", "blobs"),
            Human(checkpoint.bytes)
        ))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn ages_are_shown_in_one_unit() {
        let ago = |seconds| age(SystemTime::now() - Duration::from_secs(seconds));
        assert_eq!(ago(5), "5 s");
        assert_eq!(ago(600), "10 min");
        assert_eq!(ago(3 * 3600), "3 h");
        assert_eq!(ago(86_400 * 40), "40 d");
        assert_eq!(age(SystemTime::now() + Duration::from_secs(100)), "0 s");
    }

    #[test]
    fn shares_of_little_and_nothing() {
        assert_eq!(percent(0, 0), "0%");
        assert_eq!(percent(1, 1000), "<1%");
        assert_eq!(percent(u64::MAX, u64::MAX), "100%");
    }
}
