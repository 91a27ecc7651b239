//! The command line: `cutline serve`, `caption`, `tags`, `score`, `ask`, `check`, `library`, `prompts`, `keys`,
//! `usage`, `eval`, `model info`,
//! `model quantize`, `bench`, `mcp`, `health`, `openapi`, `completions` and `man`.
//!
//! Exit statuses: 0 for success, 1 when something failed, 2 when the command or a setting cannot be
//! used, 3 when there is nothing to caption.

mod bench;
mod caption;
mod check;
mod documents;
mod eval;
mod folder;
#[cfg(fuzzing)]
#[doc(hidden)]
pub mod fuzzing;
mod health;
mod keys;
mod library;
mod mcp;
mod model;
mod options;
mod prompts;
mod serve;
mod signals;
mod tags;
mod texts;

use std::ffi::OsString;
use std::fmt::Display;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::Command;
use tokio::runtime::Runtime;

use cutline_error::{Error, ErrorKind, Result};

/// The command failed.
const FAILED: u8 = 1;
/// The command or a setting was wrong.
const MISUSED: u8 = 2;

/// Runs the program with the arguments of this process.
#[must_use]
pub fn main() -> ExitCode {
    main_with(std::env::args_os())
}

/// Runs the program with these arguments, the first of which is its name.
#[must_use]
pub fn main_with(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    cutline_kernels::malloc::set_mmap_threshold();
    let matches = match command().try_get_matches_from(arguments) {
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
        Some((documents::OPENAPI, _)) => documents::openapi(),
        Some((mcp::NAME, matches)) => mcp::run(matches),
        Some((health::NAME, matches)) => health::run(matches),
        Some((tags::NAME, matches)) => tags::run(matches),
        Some((texts::SCORE, matches)) => texts::score(matches),
        Some((texts::ASK, matches)) => texts::ask(matches),
        Some((check::NAME, matches)) => check::run(matches),
        Some((library::NAME, matches)) => library::run(matches),
        Some((keys::NAME, matches)) => keys::run(matches),
        Some((keys::USAGE, matches)) => keys::usage(matches),
        Some((prompts::NAME, matches)) => prompts::run(matches),
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

/// The whole command line, for parsing and for the documents made from it.
#[must_use]
pub fn command() -> Command {
    Command::new(env!("CARGO_PKG_NAME"))
        .version(env!("CARGO_PKG_VERSION"))
        .about("Captions images on your own machine")
        .subcommands([
            serve::command(),
            caption::command(),
            tags::command(),
            texts::score_command(),
            texts::ask_command(),
            check::command(),
            library::command(),
            keys::command(),
            keys::usage_command(),
            prompts::command(),
            eval::command(),
            model::command(),
            bench::command(),
            mcp::command(),
            health::command(),
            documents::openapi_command(),
            documents::completions_command(),
            documents::man_command(),
        ])
        .after_help(
            "Examples:\n  \
             cutline caption holiday.jpg            caption a photo\n  \
             cutline caption -r Photos -o out.csv   caption a folder, into a table\n  \
             cutline tags holiday.jpg               tag it with words of an allowed list
  \
             cutline check -r Photos                list photos without a caption\n  \
             cutline library search dog             search captions that are kept\n  \
             cutline keys create app                make a key for a client of the server
  \
             cutline serve --port 8080              serve captions over HTTP\n  \
             cutline model info                     describe the model\n  \
             cutline bench                          measure the speed of this machine\n  \
             cutline mcp Photos                     offer captions to assistants as tools
  \
             cutline health                         ask whether a server is ready\n\n\
             Settings are also read from the environment and from --env-file: PORT=8080 is --port 8080. \
             serve and health read .env in the current folder; the other commands do not.",
        )
}

/// Writes one line to standard error. If that is closed, the program goes on.
fn complain(what: &dyn Display) {
    let _ = writeln!(io::stderr(), "{what}");
}

/// Writes to standard output. A reader that closes it, as `head` does, is not a failure.
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

/// The arguments passed their checks but do not fit their types: a defect.
fn unparsed(error: clap::Error) -> Error {
    Error::internal("the arguments cannot be read").with_source(error)
}

fn runtime() -> Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(|error| {
        Error::new(
            ErrorKind::Io,
            format!(
                "the system provides no threads ({error}); stop other programs or raise the limit"
            ),
        )
    })
}
