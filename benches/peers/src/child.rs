//! Works in processes of their own: so that one can be killed, and the memory of one is that of one store.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Subcommand;
use serde::{Deserialize, Serialize};

use crate::data::{Blob, blobs};
use crate::limit::GROUP;
use crate::meter;
use crate::participants::{Contender, Participant, Sizing, kind};

/// What this program is asked for by itself.
#[derive(Debug, Subcommand)]
pub enum Child {
    /// Opens a store, says how long that took and what memory it takes, closes it.
    #[command(hide = true)]
    ChildOpen(Whose),
    /// Writes to a store, says so, and waits to be killed.
    #[command(hide = true)]
    ChildWrite {
        #[command(flatten)]
        whose: Whose,
        /// Which bytes.
        version: usize,
    },
}

/// A store.
#[derive(Debug, clap::Args)]
pub struct Whose {
    kind: String,
    directory: PathBuf,
    blob_size: usize,
    capacity: u64,
}

/// What opening a store took.
#[derive(Debug, Serialize, Deserialize)]
pub struct Opened {
    /// Time in seconds.
    pub seconds: f64,
    /// Resident memory, in bytes.
    pub memory: u64,
}

impl Whose {
    fn open(&self) -> Result<Box<dyn Participant>> {
        let kind = kind(&self.kind).context("no such participant")?;
        let sizing = Sizing {
            blob_size: self.blob_size,
            capacity: self.capacity,
        };
        (kind.open)(&self.directory, sizing)
    }
}

impl Child {
    /// Does what is asked for.
    pub fn run(&self) -> Result<()> {
        let mut output = std::io::stdout();
        match self {
            Self::ChildOpen(whose) => {
                let memory_before = meter::resident()?;
                let before = Instant::now();
                let store = whose.open()?;
                let opened = Opened {
                    seconds: before.elapsed().as_secs_f64(),
                    memory: meter::resident()?.saturating_sub(memory_before),
                };
                writeln!(output, "{}", serde_json::to_string(&opened)?)?;
                store.close()
            }
            Self::ChildWrite { whose, version } => {
                /// So many groups: what a log is likely to have since its last checkpoint.
                const GROUPS: usize = 64;
                let store = whose.open()?;
                let blobs = blobs(GROUPS * GROUP, whose.blob_size);
                let blobs: Vec<Blob> = blobs.iter().map(|blob| blob.version(*version)).collect();
                for group in blobs.chunks(GROUP) {
                    store.put_together(group)?;
                }
                writeln!(output, "written")?;
                // Until it is killed, or whoever would kill it has ended.
                std::io::stdin().read_to_end(&mut Vec::new())?;
                Ok(())
            }
        }
    }
}

fn command(name: &str, contender: &mut Contender) -> Result<Command> {
    contender.close()?;
    let mut command = Command::new(std::env::current_exe().context("find this program")?);
    command
        .arg(name)
        .arg(contender.kind.name)
        .arg(&contender.directory)
        .arg(contender.sizing.blob_size.to_string())
        .arg(contender.sizing.capacity.to_string());
    Ok(command)
}

/// Opens a store that is cold in a process of its own, and closes it.
pub fn open(contender: &mut Contender) -> Result<Opened> {
    let mut command = command("child-open", contender)?;
    meter::drop_cache(&contender.directory)?;
    let output = command.stderr(Stdio::inherit()).output()?;
    ensure!(
        output.status.success(),
        "the process that opens the store failed"
    );
    serde_json::from_slice(&output.stdout).context("read what opening took")
}

/// Writes to a store in a process of its own, which is killed then.
pub fn write_and_be_killed(contender: &mut Contender, version: usize) -> Result<()> {
    let mut child = command("child-write", contender)?
        .arg(version.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    let output = child.stdout.take().context("its output is piped")?;
    BufReader::new(output).read_line(&mut line)?;
    child.kill().context("kill the process that writes")?;
    child.wait()?;
    ensure!(line == "written\n", "the process that writes failed");
    Ok(())
}
