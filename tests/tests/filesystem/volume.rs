//! A mounted file system, as the tests see it.
//!
//! A process of its own serves it: one that asks the kernel for what itself has to answer can't even be killed. That
//! process is this test's own program, told by its environment to be the server; it ends when whoever started it does.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IoSlice, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use graviton_tests::{memory_directory, skipped};
use parking_lot::Mutex;
use rustix::io::{ReadWriteFlags, pwritev2};
use rustix::mount::{UnmountFlags, unmount};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::mount::mount;
use super::volatile::{Loss, Manner, Volatile};

/// What tells this program that it is to be the server, and where: a directory with what is named below.
const SERVER: &str = "GRAVITON_TEST_FILESYSTEM";
const MOUNTED: &str = "mounted";
const CONTROL: &str = "control";
/// And how the file system behaves at first.
const MANNER: &str = "GRAVITON_TEST_MANNER";

/// What the server is asked, besides what the kernel asks it.
#[derive(Debug, Serialize, Deserialize)]
enum Ask {
    Behave(Manner),
    Follows(bool),
    Syncs,
    HasFailed,
    Position,
    Doubts {
        position: usize,
    },
    Leave {
        position: usize,
        loss: Loss,
        directory: PathBuf,
    },
}

/// Enumerations can't stand alone in TOML.
#[derive(Serialize, Deserialize)]
struct Letter {
    ask: Ask,
}

/// The end of a letter, which nothing in it is like.
const END: u8 = 0;

/// A mounted file system.
pub struct Volume {
    directory: TempDir,
    control: Mutex<BufReader<UnixStream>>,
    server: Child,
}

impl Volume {
    /// One that is empty and behaves so; `None`, with a line that says so, where nothing can be mounted.
    pub fn new(manner: &Manner) -> Option<Self> {
        let directory = memory_directory();
        std::fs::create_dir(directory.path().join(MOUNTED)).expect("a directory can be made");
        let path = directory.path().join(CONTROL);
        let listener = UnixListener::bind(path).expect("a socket can be made");
        let server = Command::new(std::env::current_exe().expect("this program's file"))
            .args(["serve", "--exact", "--ignored", "--nocapture", "--quiet"])
            .env(SERVER, directory.path())
            .env(
                MANNER,
                toml::to_string(manner).expect("it can be written down"),
            )
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            // Whoever kills this process and its kind leaves it the time to unmount.
            .process_group(0)
            .spawn()
            .expect("a server can be started");
        let (control, _) = listener.accept().expect("it reports");
        let mut volume = Self {
            directory,
            control: Mutex::new(BufReader::new(control)),
            server,
        };
        let mut answer = String::new();
        let read = volume.control.get_mut().read_line(&mut answer);
        read.expect("it says whether it works");
        match answer.trim_end() {
            "" => {
                volume.try_out().expect("it works");
                Some(volume)
            }
            error => {
                skipped(&format!(
                    "file systems in user space do not work here: {error}"
                ));
                None
            }
        }
    }

    pub fn path(&self) -> PathBuf {
        self.directory.path().join(MOUNTED)
    }

    /// Finds out whether the kernel follows a durable write with a sync.
    fn try_out(&self) -> io::Result<()> {
        let path = self.path().join("tried-out");
        let file = File::create(&path)?;
        pwritev2(&file, &[IoSlice::new(b"x")], 0, ReadWriteFlags::DSYNC)?;
        let follows = self.ask(Ask::Syncs) > 0;
        self.ask(Ask::Follows(follows));
        drop(file);
        std::fs::remove_file(path)
    }

    fn ask(&self, ask: Ask) -> usize {
        let letter = toml::to_string(&Letter { ask }).expect("it can be written down");
        let mut control = self.control.lock();
        let mut answer = String::new();
        (control.get_mut().write_all(letter.as_bytes()))
            .and_then(|()| control.get_mut().write_all(&[END]))
            .and_then(|()| control.read_line(&mut answer))
            .expect("it is there");
        answer.trim_end().parse().expect("it says a number")
    }

    /// How it behaves from now on.
    pub fn behave(&self, manner: &Manner) {
        self.ask(Ask::Behave(manner.clone()));
    }

    /// Whether the call that was to fail has.
    pub fn has_failed(&self) -> bool {
        self.ask(Ask::HasFailed) > 0
    }

    /// See [`Volatile::position`].
    pub fn position(&self) -> usize {
        self.ask(Ask::Position)
    }

    /// See [`Volatile::doubts`].
    pub fn doubts(&self, position: usize) -> usize {
        self.ask(Ask::Doubts { position })
    }

    /// See [`Volatile::leave`].
    pub fn leave(&self, position: usize, loss: Loss, directory: &Path) {
        let directory = directory.to_owned();
        self.ask(Ask::Leave {
            position,
            loss,
            directory,
        });
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        let _ = (self.control.get_mut().get_mut()).shutdown(std::net::Shutdown::Both);
        let _ = self.server.wait();
    }
}

/// The server's life, if this program is to be one.
pub fn serve() {
    let Some(directory) = std::env::var_os(SERVER).map(PathBuf::from) else {
        return;
    };
    let mut control = UnixStream::connect(directory.join(CONTROL)).expect("somebody listens");
    let directory = directory.join(MOUNTED);
    let manner = std::env::var(MANNER).expect("it is told how to behave");
    let manner = toml::from_str(&manner).expect("a manner");
    let volatile = Arc::new(Mutex::new(Volatile::new(manner)));
    let session = match mount(&volatile, &directory) {
        Ok(session) => session,
        Err(error) => {
            let _ = writeln!(control, "{error}");
            return;
        }
    };
    let _ = writeln!(control);
    let asked = answer_all(&volatile, &mut control);
    // Also if somebody has files open in it.
    unmount(&directory, UnmountFlags::DETACH).expect("it is unmounted");
    drop(session);
    asked.expect("what is asked can be understood");
}

/// Answers until nobody asks any more.
fn answer_all(volatile: &Mutex<Volatile>, control: &mut UnixStream) -> io::Result<()> {
    let mut letters = BufReader::new(control.try_clone()?);
    let mut letter = Vec::new();
    while letters.read_until(END, &mut letter)? > 0 {
        letter.pop();
        let text = std::str::from_utf8(&letter).map_err(io::Error::other)?;
        let Letter { ask } = toml::from_str(text).map_err(io::Error::other)?;
        let number = answer(&mut volatile.lock(), ask);
        writeln!(control, "{number}")?;
        letter.clear();
    }
    Ok(())
}

fn answer(volatile: &mut Volatile, ask: Ask) -> usize {
    match ask {
        Ask::Behave(manner) => volatile.manner = manner,
        Ask::Follows(follows) => volatile.follows = follows,
        Ask::Syncs => return volatile.syncs,
        Ask::HasFailed => return volatile.has_failed.into(),
        Ask::Position => return volatile.position(),
        Ask::Doubts { position } => return volatile.doubts(position),
        Ask::Leave {
            position,
            loss,
            directory,
        } => volatile.leave(position, loss, &directory),
    }
    0
}
