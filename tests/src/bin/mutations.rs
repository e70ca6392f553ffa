//! Plants the mutations of `tests/mutations/list.toml`, one at a time, in a copy of the sources,
//! and runs the tests that must fail then. A mutation that no test notices is a hole in the suite.
//!
//! ```console
//! $ cargo run -p graviton-tests --bin mutations               # all of them
//! $ cargo run -p graviton-tests --bin mutations -- --list     # what there is
//! $ cargo run -p graviton-tests --bin mutations -- torn dsync # those whose names contain one
//! ```
//!
//! First the tests run on the sources as they are, and must pass. The copy and what is built from
//! it lie in `target/mutations`, where they are used again; the output of each run, too. It ends
//! with 1 if a mutation survives.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use graviton_tests::mutations::{Mutation, all, workspace};
use rustix::process::{Pid, Signal, kill_process_group};

/// A run of tests that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(600);
/// How often a run is looked at.
const LOOK: Duration = Duration::from_millis(100);

/// How a run of cargo ended.
enum Run {
    Success,
    /// With an error, or with these tests, after which the others do not matter.
    Failure(Vec<String>),
    /// Not at all.
    Hangs,
}

/// What became of a mutation.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Verdict {
    /// These tests failed.
    Caught(Vec<String>),
    /// The tests did not come to an end.
    Hangs,
    Survives,
    /// It does not compile, or can't be planted: the list is wrong.
    Unusable(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Caught(tests) => match tests.as_slice() {
                [] => f.write_str("caught (the tests were aborted)"),
                [one] => write!(f, "caught by {one}"),
                [first, rest @ ..] => write!(f, "caught by {first} and {} more", rest.len()),
            },
            Self::Hangs => f.write_str("HANGS"),
            Self::Survives => f.write_str("SURVIVES"),
            Self::Unusable(why) => write!(f, "UNUSABLE: {why}"),
        }
    }
}

/// The copy of the sources, and where it is built.
struct Yard {
    source: PathBuf,
    build: PathBuf,
    logs: PathBuf,
}

impl Yard {
    /// Brings the copy up to date.
    fn new() -> io::Result<Self> {
        let root = workspace();
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| root.join("target"), PathBuf::from)
            .join("mutations");
        let yard = Self {
            source: target.join("source"),
            build: target.join("build"),
            logs: target.join("logs"),
        };
        fs::create_dir_all(&yard.logs)?;
        let listed = Command::new("git")
            .args([
                "ls-files",
                "-z",
                "--cached",
                "--others",
                "--exclude-standard",
            ])
            .current_dir(&root)
            .output()?;
        if !listed.status.success() {
            return Err(io::Error::other("git can't list the sources"));
        }
        let listed = String::from_utf8(listed.stdout).map_err(io::Error::other)?;
        let files: BTreeSet<&str> = listed.split('\0').filter(|name| !name.is_empty()).collect();
        for name in &files {
            match fs::read(root.join(name)) {
                Ok(bytes) => write_if_other(&yard.source.join(name), &bytes)?,
                // Deleted, but not yet in git's eyes.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        yard.remove_others(&yard.source, &files)?;
        Ok(yard)
    }

    /// Removes from the copy what is no source any more.
    fn remove_others(&self, folder: &Path, files: &BTreeSet<&str>) -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                self.remove_others(&path, files)?;
            } else if !path
                .strip_prefix(&self.source)
                .ok()
                .and_then(Path::to_str)
                .is_some_and(|name| files.contains(name))
            {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Runs `cargo test` in the copy, to its end or until a test has failed.
    fn cargo_test(&self, arguments: &[&str], log: &Path) -> io::Result<Run> {
        let output = File::options().create(true).append(true).open(log)?;
        let already = output.metadata()?.len();
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo
            .args(["test", "--locked"])
            .args(arguments)
            .current_dir(&self.source)
            .env("CARGO_TARGET_DIR", &self.build)
            .env("CARGO_TERM_COLOR", "never")
            // Nobody debugs what is built here, and it is built often.
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            // So that what it starts can be ended with it.
            .process_group(0);
        let mut child = cargo.spawn()?;
        let begun = Instant::now();
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(if status.success() {
                    Run::Success
                } else {
                    Run::Failure(failed_tests(log, already)?)
                });
            }
            let failed = failed_tests(log, already)?;
            if !failed.is_empty() || begun.elapsed() > PATIENCE {
                let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
                if let Some(group) = group {
                    kill_process_group(group, Signal::KILL)?;
                }
                child.wait()?;
                return Ok(if failed.is_empty() {
                    Run::Hangs
                } else {
                    Run::Failure(failed)
                });
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Builds and runs tests. A test that does not compile is no test that fails.
    fn test(&self, line: &str, log: &Path) -> io::Result<Verdict> {
        let arguments: Vec<&str> = line.split_whitespace().collect();
        let mut build = arguments.clone();
        build.push("--no-run");
        match self.cargo_test(&build, log)? {
            Run::Success => {}
            _ => {
                return Ok(Verdict::Unusable(format!(
                    "no build; see {}",
                    log.display()
                )));
            }
        }
        Ok(match self.cargo_test(&arguments, log)? {
            Run::Hangs => Verdict::Hangs,
            Run::Success => Verdict::Survives,
            Run::Failure(tests) => Verdict::Caught(tests),
        })
    }

    /// Plants a mutation, and runs tests until some fail.
    fn try_out(&self, mutation: &Mutation) -> io::Result<Verdict> {
        let log = self.logs.join(format!("{}.log", mutation.name));
        let _ = fs::remove_file(&log);
        let path = self.source.join(&mutation.file);
        let source = fs::read_to_string(&path)?;
        let planted = match mutation.plant(&source) {
            Ok(planted) => planted,
            Err(why) => return Ok(Verdict::Unusable(why)),
        };
        fs::write(&path, planted)?;
        let mut verdict = Ok(Verdict::Survives);
        for line in &mutation.tests {
            verdict = self.test(line, &log);
            if !matches!(verdict, Ok(Verdict::Survives)) {
                break;
            }
        }
        fs::write(&path, source)?;
        verdict
    }
}

fn write_if_other(path: &Path, bytes: &[u8]) -> io::Result<()> {
    // What is as it was need not be built anew.
    if fs::read(path).is_ok_and(|there| there == bytes) {
        return Ok(());
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, bytes)
}

/// The tests that failed according to what is in the log from `already` on.
fn failed_tests(log: &Path, already: u64) -> io::Result<Vec<String>> {
    let text = String::from_utf8_lossy(&fs::read(log)?).into_owned();
    let from = usize::try_from(already).unwrap_or(0).min(text.len());
    let tests = text
        .get(from..)
        .unwrap_or(&text)
        .lines()
        .filter_map(|line| {
            let rest = line.strip_prefix("test ")?;
            rest.strip_suffix(" ... FAILED").map(str::to_owned)
        });
    Ok(tests.collect())
}

fn run(names: &[String]) -> io::Result<bool> {
    let mutations: Vec<Mutation> = all()
        .into_iter()
        .filter(|mutation| {
            names.is_empty() || names.iter().any(|name| mutation.name.contains(name))
        })
        .collect();
    if mutations.is_empty() {
        return Err(io::Error::other("no mutation is called so; see --list"));
    }
    let yard = Yard::new()?;
    let lines: BTreeSet<&String> = mutations.iter().flat_map(|one| &one.tests).collect();
    for line in lines {
        let begun = Instant::now();
        let log = yard.logs.join("unmutated.log");
        let verdict = yard.test(line, &log)?;
        println!("unmutated: {line}: {:.0?}", begun.elapsed());
        if verdict != Verdict::Survives {
            println!("fails without any mutation: see {}", log.display());
            return Ok(false);
        }
    }
    let mut verdicts = BTreeMap::new();
    let width = mutations.iter().map(|one| one.name.len()).max();
    let width = width.unwrap_or(0);
    for mutation in &mutations {
        let begun = Instant::now();
        let verdict = yard.try_out(mutation)?;
        let seconds = begun.elapsed().as_secs();
        println!("{:width$}  {seconds:>4} s  {verdict}", mutation.name);
        verdicts.insert(&mutation.name, verdict);
    }
    // A test that does not end has noticed nothing.
    let caught = |verdict: &&Verdict| matches!(verdict, Verdict::Caught(_));
    let count = verdicts.values().filter(caught).count();
    println!("{count} of {} caught", verdicts.len());
    Ok(count == verdicts.len())
}

fn main() -> ExitCode {
    let names: Vec<String> = std::env::args().skip(1).collect();
    if names.iter().any(|name| name == "--list") {
        for mutation in all() {
            let file = mutation.file.display();
            println!("{} ({file})\n    {}", mutation.name, mutation.breaks);
        }
        return ExitCode::SUCCESS;
    }
    match run(&names) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
