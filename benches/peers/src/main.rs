//! Graviton next to what the device can do, and to other stores, in alternating rounds of one run: see README.md.
#![deny(unsafe_code)]

mod chart;
mod child;
mod data;
mod fio;
mod limit;
mod memory;
mod meter;
mod participants;
mod report;
#[expect(unsafe_code, reason = "a ring is handed pointers to buffers")]
mod ring;
mod rounds;
mod slice;
mod stats;
mod works;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Parser;
use tempfile::TempDir;

use child::Child;
use participants::{GRAVITON, Kind, PEERS};
use report::{Figures, Machine, Report, Terms};
use rounds::{INTERRUPTED, Runner};
use works::{Effort, Work};

/// Measures Graviton next to what the device can do, and to other stores at the same durability.
#[derive(Debug, Parser)]
#[command(
    version,
    override_usage = "graviton-peers [OPTIONS]",
    disable_help_subcommand = true
)]
struct Options {
    /// A table in about three minutes, on 1 GiB of disk.
    #[arg(long)]
    quick: bool,
    /// On which disk: a directory, in which one is made and removed in the end [default: the system's place for
    /// temporary files].
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Only works whose name has this text in it.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Only these peers, by name, with commas between them; Graviton and the limit always take part.
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    peers: Option<Vec<String>>,
    /// How many rounds.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: Option<u16>,
    /// How many small blobs, of 100 bytes and more, are loaded, listed and opened with [default: 20000 if it is to be
    /// quick, else 100000].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1000..=100_000_000))]
    small_blobs: Option<u32>,
    /// How many bytes the largest of them has [default: 1000].
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(100..=4096))]
    small_max: Option<u16>,
    /// Writes all figures to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Writes a chart per family to this directory, which is made if it is not there.
    #[arg(long, value_name = "DIR")]
    charts: Option<PathBuf>,
    /// Says which works and participants there are, and measures nothing.
    #[arg(long)]
    list: bool,
    #[command(subcommand)]
    child: Option<Child>,
}

fn main() -> ExitCode {
    let options = Options::parse();
    let outcome = match &options.child {
        Some(child) => child.run().map(|()| true),
        None if options.list => {
            list();
            Ok(true)
        }
        None => measure(&options),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("graviton-peers: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn list() {
    println!("Works:");
    for work in Work::all() {
        println!("  {} ({})", work.name(), work.unit().name);
    }
    println!("Participants:");
    for kind in std::iter::once(&GRAVITON).chain(PEERS) {
        println!("  {}: {}", kind.name, kind.durability);
    }
}

/// Measures what is asked for. Whether nobody failed.
fn measure(options: &Options) -> Result<bool> {
    let works = chosen_works(options.only.as_deref(), options.quick)?;
    let kinds = chosen_kinds(options.peers.as_deref())?;
    let mut effort = if options.quick {
        Effort::QUICK
    } else {
        Effort::FULL
    };
    if let Some(rounds) = options.rounds {
        effort.rounds = rounds.into();
    }
    if let Some(blobs) = options.small_blobs {
        effort.small_blobs = blobs as usize;
    }
    if let Some(bytes) = options.small_max {
        effort.small_max = bytes.into();
    }
    // Before anything is measured for nothing.
    let json = match &options.json {
        Some(path) => {
            let file = File::create(path);
            Some(file.with_context(|| format!("create {}", path.display()))?)
        }
        None => None,
    };
    if let Some(charts) = &options.charts {
        fs::create_dir_all(charts)
            .with_context(|| format!("make the directory {}", charts.display()))?;
    }
    let directory = directory(options.dir.as_deref())?;
    ctrlc::set_handler(|| INTERRUPTED.store(true, Ordering::Relaxed))
        .context("see to it that an interrupted run is cleaned up")?;

    let mut report = Report {
        machine: machine(directory.path())?,
        is_quick: options.quick,
        participants: kinds.iter().map(|kind| Terms::of(kind)).collect(),
        disk_bytes_max: 0,
        works: Vec::new(),
    };
    let mut has_failures = false;
    let begin = Instant::now();
    let mut runner = Runner::new(effort, kinds, directory.path())?;
    for (number, work) in works.iter().enumerate() {
        eprintln!(
            "[{:>4.0} s] {}/{}: {}",
            begin.elapsed().as_secs_f64(),
            number + 1,
            works.len(),
            work.name()
        );
        let outcome = runner.run(*work)?;
        has_failures |= outcome.omissions.iter().any(|omission| omission.is_failure);
        report.disk_bytes_max = report.disk_bytes_max.max(outcome.disk_bytes);
        let figures = Figures::of(outcome);
        // At once: a run that is interrupted has shown what it found.
        println!("{}", report::table(&figures));
        report.works.push(figures);
    }
    drop(runner);
    directory.close().context("remove what was written")?;
    if let Some(file) = json {
        serde_json::to_writer_pretty(file, &report).context("write the figures")?;
    }
    if let Some(charts) = &options.charts {
        write_charts(charts, &report.works)?;
    }
    Ok(!has_failures)
}

fn chosen_works(only: Option<&str>, is_quick: bool) -> Result<Vec<Work>> {
    let text = only.unwrap_or_default().to_lowercase();
    let mut works = Work::all();
    works.retain(|work| work.name().to_lowercase().contains(&text));
    works.retain(|work| work.is_quick() || !is_quick);
    ensure!(
        !works.is_empty(),
        "no work has {text:?} in its name; --list shows them"
    );
    Ok(works)
}

fn chosen_kinds(names: Option<&[String]>) -> Result<Vec<&'static Kind>> {
    let mut kinds = vec![GRAVITON];
    let Some(names) = names else {
        kinds.extend(PEERS);
        return Ok(kinds);
    };
    for name in names.iter().map(|name| name.trim()) {
        let found = participants::kind(name).with_context(|| {
            let known: Vec<&str> = PEERS.iter().map(|kind| kind.name).collect();
            let hint = match name.eq_ignore_ascii_case("rocksdb") {
                true => "; RocksDB takes part when this is built with --features rocksdb",
                false => "",
            };
            format!(
                "no peer is called {name:?}, there are: {}{hint}",
                known.join(", ")
            )
        })?;
        if kinds.iter().all(|kind| kind.name != found.name) {
            kinds.push(found);
        }
    }
    Ok(kinds)
}

/// A directory that is removed when it is dropped, be it by an error.
fn directory(parent: Option<&Path>) -> Result<TempDir> {
    const PREFIX: &str = "graviton-peers-";
    match parent {
        Some(parent) => TempDir::with_prefix_in(PREFIX, parent)
            .with_context(|| format!("make a directory in {}", parent.display())),
        None => TempDir::with_prefix(PREFIX).context("make a temporary directory"),
    }
}

fn machine(directory: &Path) -> Result<Machine> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").context("ask for the kernel")?;
    Ok(Machine {
        kernel: format!("Linux {}", release.trim()),
        processors: std::thread::available_parallelism()?.get(),
        file_system: meter::file_system(directory)?,
        read_ahead_kib: meter::read_ahead_kib(directory),
    })
}

fn write_charts(directory: &Path, works: &[Figures]) -> Result<()> {
    let families: BTreeSet<&str> = works.iter().map(|figures| figures.family).collect();
    for family in families {
        let of_family: Vec<&Figures> = works
            .iter()
            .filter(|figures| figures.family == family)
            .collect();
        let path = directory.join(chart::file_name(family));
        fs::write(&path, chart::svg(family, &of_family))
            .with_context(|| format!("write {}", path.display()))?;
    }
    Ok(())
}
