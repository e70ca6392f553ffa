//! Runs the `graviton` command and looks at what it says.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The command, with a store that it works on.
#[derive(Debug, Clone)]
pub struct Graviton {
    binary: PathBuf,
    store: PathBuf,
    user: Option<u32>,
}

/// What a run said.
#[derive(Debug)]
pub struct Outcome {
    /// What was run, for messages.
    pub line: String,
    /// The exit code.
    pub code: i32,
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: String,
}

impl Graviton {
    /// The command at `binary` (`env!("CARGO_BIN_EXE_graviton")`), on the store at `store`.
    #[must_use]
    pub fn new(binary: impl Into<PathBuf>, store: impl Into<PathBuf>) -> Self {
        Self {
            binary: binary.into(),
            store: store.into(),
            user: None,
        }
    }

    /// The same, on another store.
    #[must_use]
    pub fn on(&self, store: impl Into<PathBuf>) -> Self {
        Self {
            store: store.into(),
            ..self.clone()
        }
    }

    /// The same, run as another user (of a process that may).
    #[must_use]
    pub fn as_user(&self, user: u32) -> Self {
        Self {
            user: Some(user),
            ..self.clone()
        }
    }

    /// Where the store lies.
    #[must_use]
    pub fn store(&self) -> &Path {
        &self.store
    }

    /// A run that is not yet started.
    #[must_use]
    pub fn command<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        use std::os::unix::process::CommandExt;

        let mut command = Command::new(&self.binary);
        command.arg("--store").arg(&self.store).args(arguments);
        command.env_remove("GRAVITON_STORE");
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(user) = self.user {
            command.uid(user).gid(user);
        }
        command
    }

    /// Runs it to its end.
    ///
    /// # Panics
    /// If it can't be started or is killed.
    pub fn run<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Outcome {
        let mut command = self.command(arguments);
        let output = command.output().expect("the command can be started");
        Outcome::of(&command, output)
    }
}

/// Not more of a text than a message can bear.
fn brief(text: &str) -> String {
    match text.char_indices().nth(600) {
        Some((end, _)) => format!("{} ...", &text[..end]),
        None => text.to_owned(),
    }
}

impl Outcome {
    /// What came of a run that has ended.
    ///
    /// # Panics
    /// If it was killed.
    #[must_use]
    pub fn of(command: &Command, output: Output) -> Self {
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        let line = brief(&format!("{command:?}"));
        let code = output.status.code();
        let code = code.unwrap_or_else(|| panic!("{line} was killed: {}\n{stderr}", output.status));
        Self {
            line,
            code,
            stdout: output.stdout,
            stderr,
        }
    }

    /// Standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// It did what it was asked to.
    ///
    /// # Panics
    /// If not.
    #[track_caller]
    pub fn done(self) -> Self {
        let (stdout, stderr) = (brief(&self.text()), brief(&self.stderr));
        assert_eq!(self.code, 0, "{}\n{stdout}{stderr}", self.line);
        self
    }

    /// It failed with this exit code, and said why in one line that has all these words in it.
    ///
    /// # Panics
    /// If not.
    #[track_caller]
    pub fn fails(self, code: i32, words: &[&str]) -> Self {
        let said = format!(
            "{}\nexit code {}\n{}{}",
            self.line,
            self.code,
            brief(&self.text()),
            brief(&self.stderr)
        );
        assert_eq!(self.code, code, "{said}");
        assert_eq!(self.stderr.lines().count(), 1, "not one line: {said}");
        assert!(self.stderr.starts_with("graviton: "), "{said}");
        assert!(!self.stderr.contains("internal error"), "{said}");
        for word in words {
            assert!(self.stderr.contains(word), "no '{word}': {said}");
        }
        self
    }
}
