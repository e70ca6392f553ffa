//! The `graviton` command, as a library: its program is one call of [`main`], and what reads
//! untrusted text and bytes is in the reach of fuzz targets.

#![deny(unsafe_code)]

mod attributes;
mod beneath;
mod blobs;
mod cli;
mod dump;
mod export;
mod failure;
mod files;
mod fit;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod fuzzing;
mod import;
mod keys;
mod leftovers;
mod listing;
mod map;
mod multipart;
mod output;
mod progress;
mod ranges;
mod sectors;
mod session;
mod size;
mod stores;
mod svg;
mod tally;
mod target;
mod transfer;
mod tree;

use std::io::Write as _;
use std::process::ExitCode;

use clap::builder::Resettable;
use clap::{CommandFactory, FromArgMatches};

use crate::cli::{Cli, Command};
use crate::failure::{Exit, Failure};
use crate::output::Output;
use crate::session::Session;

/// Does what the command line of this process says.
pub fn main() -> ExitCode {
    // A bug is one line too, and no backtrace.
    std::panic::set_hook(Box::new(|panic| {
        let payload = panic.payload();
        let what = payload
            .downcast_ref::<&str>()
            .copied()
            .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
            .unwrap_or("a panic");
        let place = panic.location().map_or_else(String::new, |place| {
            format!(" ({}:{})", place.file(), place.line())
        });
        Output::new(asks_for_json(), false)
            .report(&Failure::failed(format!("internal error: {what}{place}")));
    }));
    let exit = std::panic::catch_unwind(run).unwrap_or(Exit::Failed);
    ExitCode::from(exit as u8)
}

fn run() -> Exit {
    let parsed = command_line()
        .try_get_matches()
        .and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => return explain(&error),
    };
    let session = Session::new(cli.global);
    let outcome = dispatch(&session, &cli.command);
    // What was said is handed over even if the command failed.
    let flushed = session.output.flush();
    match outcome.and(flushed) {
        Ok(()) => Exit::Done,
        Err(failure) => {
            session.output.report(&failure);
            failure.exit()
        }
    }
}

/// The command line, to which environment variables that are empty are not set.
fn command_line() -> clap::Command {
    Cli::command().mut_args(|argument| {
        let empty = argument
            .get_env()
            .and_then(std::env::var_os)
            .is_some_and(|value| value.is_empty());
        if empty {
            argument.env(Resettable::Reset)
        } else {
            argument
        }
    })
}

fn dispatch(session: &Session, command: &Command) -> Result<(), Failure> {
    match command {
        Command::Init(geometry) => stores::init(session, geometry),
        Command::Import(args) => import::run(session, args),
        Command::Export(args) => export::run(session, args),
        Command::Put(args) => blobs::put(session, args),
        Command::Get(args) => blobs::get(session, args),
        Command::Stat(args) => blobs::stat(session, args),
        Command::Ls(args) => blobs::ls(session, args),
        Command::Rm(args) => blobs::rm(session, args),
        Command::Cp(args) => blobs::cp(session, args),
        Command::Mv(args) => blobs::mv(session, args),
        Command::Multipart { what } => multipart::run(session, what),
        Command::Ranges(args) => ranges::run(session, args),
        Command::Attrs(args) => attributes::run(session, args),
        Command::Replicas(args) => sectors::replicas(session, args),
        Command::Info => stores::info(session),
        Command::Verify => stores::verify(session),
        Command::Compact => stores::compact(session),
        Command::Checkpoint => stores::checkpoint(session),
        Command::Map(args) => map::run(session, args),
        Command::Sectors { what } => sectors::run(session, what),
        Command::Scrub(args) => sectors::scrub(session, args),
        Command::Repair { apply } => sectors::repair(session, *apply),
        &Command::Rebalance { apply, rate } => sectors::rebalance(session, apply, rate),
        Command::Dump(args) => dump::run(session, args),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "graviton", &mut script);
            session.output.raw(&script)
        }
    }
}

/// Shows help as it is, and what is wrong with the command line in one line.
fn explain(error: &clap::Error) -> Exit {
    use clap::error::ErrorKind;
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // A closed pipe is no reason to complain about help.
            let _ = error.print();
            Exit::Done
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            Exit::Usage
        }
        // The parser takes options from the environment for arguments.
        ErrorKind::MissingSubcommand if std::env::args_os().len() <= 1 => {
            let _ = writeln!(std::io::stderr(), "{}", Cli::command().render_help());
            Exit::Usage
        }
        _ => {
            let message = in_one_line(&error.to_string());
            Output::new(asks_for_json(), false).report(&Failure::usage(message));
            Exit::Usage
        }
    }
}

/// The gist of what the parser says over several lines.
fn in_one_line(message: &str) -> String {
    let gist: Vec<&str> = message
        .lines()
        .map(str::trim)
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .filter(|line| !line.is_empty())
        .collect();
    // Advice is a sentence of its own.
    let gist = gist.join(" ").replace(" tip: ", "; tip: ");
    gist.strip_prefix("error: ").unwrap_or(&gist).to_owned()
}

/// Whether `--json` is on the command line, however wrong the rest of it may be.
fn asks_for_json() -> bool {
    std::env::args_os()
        .take_while(|argument| argument != "--")
        .any(|argument| argument == "--json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[test]
    fn parser_errors_become_one_line() {
        let gist = |line: &[&str]| {
            let error = Cli::try_parse_from(line).expect_err("is wrong");
            in_one_line(&error.to_string())
        };
        let bad_size = gist(&["graviton", "init", "--sector-size", "12Q"]);
        assert_eq!(
            bad_size,
            "invalid value '12Q' for '--sector-size <SIZE>': expected a size such as 4096, \
             64KiB, 1.5GiB or 10MB"
        );
        assert_eq!(
            gist(&["graviton", "ls", "-x"]),
            "unexpected argument '-x' found; tip: to pass '-x' as a value, use '-- -x'"
        );
        assert!(!gist(&["graviton", "stat"]).contains('\n'));
        assert!(!gist(&["graviton", "nonsense"]).contains('\n'));
    }
}
