//! The command line: `cutline serve`, `caption`, `check`, `eval`, `model info`, `model quantize`,
//! `bench`, `health`, `openapi`, `completions` and `man`.
//!
//! Exit statuses: 0 for success, 1 when something failed, 2 when the command or a setting cannot be
//! used.

mod bench;
mod caption;
mod check;
mod documents;
mod eval;
mod folder;
mod health;
mod model;
mod openapi;
mod options;
mod quantize;
mod serve;
mod signals;

use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Command;
use tokio::runtime::Runtime;

use cutline_error::{Error, ErrorKind, Result};

/// What a command made of itself.
const FAILED: u8 = 1;
/// What was asked cannot be done by anyone.
const MISUSED: u8 = 2;

/// Runs the program with the arguments of this process.
#[must_use]
pub fn main() -> ExitCode {
    cutline_kernels::malloc::set_mmap_threshold();
    let matches = match command().try_get_matches() {
        Ok(matches) => matches,
        // `--help` and `--version` come this way too, with status 0.
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(MISUSED));
        }
    };
    let result = match matches.subcommand() {
        Some((serve::NAME, matches)) => serve::run(matches),
        Some((caption::NAME, matches)) => caption::run(matches),
        Some((model::NAME, matches)) => model::run(matches),
        Some((bench::NAME, matches)) => bench::run(matches),
        Some((openapi::NAME, _)) => openapi::run(),
        Some((health::NAME, matches)) => health::run(matches),
        Some((check::NAME, matches)) => check::run(matches),
        Some((eval::NAME, matches)) => eval::run(matches),
        Some((documents::COMPLETIONS, matches)) => documents::completions(matches),
        Some((documents::MAN, matches)) => documents::man(matches),
        _ => print(&command().render_help().to_string()).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        complain(&error);
        ExitCode::from(match error.kind() {
            ErrorKind::Config | ErrorKind::InvalidParameter => MISUSED,
            _ => FAILED,
        })
    })
}

/// The whole command line, for parsing and for documentation.
#[must_use]
pub fn command() -> Command {
    Command::new(env!("CARGO_PKG_NAME"))
        .version(env!("CARGO_PKG_VERSION"))
        .about("Captions images on the machine in front of you")
        .subcommands([
            serve::command(),
            caption::command(),
            check::command(),
            eval::command(),
            model::command(),
            bench::command(),
            health::command(),
            openapi::command(),
            documents::completions_command(),
            documents::man_command(),
        ])
        .after_help(
            "Examples:\n  \
             cutline caption holiday.jpg            print what is in the photo\n  \
             cutline caption -r Photos -o out.csv   a table of a whole folder\n  \
             cutline check -r Photos                which photos have no caption\n  \
             cutline serve --port 8080              serve captions over HTTP\n  \
             cutline model info                     what the model is\n  \
             cutline bench                          how fast it is here\n  \
             cutline health                         whether a server is ready\n\n\
             Settings are also read from the environment and from .env: PORT=8080 is --port 8080.",
        )
}

/// One line on standard error. That it is gone is no reason to stop.
fn complain(what: &dyn Display) {
    let _ = writeln!(io::stderr(), "{what}");
}

/// Text on standard output. A reader that has left, as `head` does, is no failure.
fn print(text: &str) -> Result<()> {
    let mut out = io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written.map_err(unwritable),
    }
}

fn unwritable(error: io::Error) -> Error {
    Error::new(
        ErrorKind::Io,
        format!("standard output cannot be written ({error}); check where it goes"),
    )
}

fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|error| {
        Error::new(ErrorKind::Io, format!("the system gives no threads ({error}); free some"))
    })
}
