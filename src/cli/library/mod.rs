//! `cutline library`

mod edit;
mod read;
mod single;
mod transfer;

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{ArgMatches, Command};
use cutline_library::{ContentHash, Field, NameKind, Store};

use super::print;
use crate::config::{self, Group, Values, library_address};
use cutline_error::{Error, ErrorKind, Result};

pub(super) const NAME: &str = "library";
/// Who edits with this program, unless another name is given.
pub(in crate::cli) const PERSON: &str = "command line";

pub(super) fn command() -> Command {
    let commands = [
        transfer::import_command(),
        read::search_command(),
        read::duplicates_command(),
        single::show_command(),
        single::edit_command(),
        single::rate_command(),
        read::history_command(),
        transfer::export_command(),
        edit::review_command(),
        read::runs_command(),
        edit::undo_command(),
        edit::purge_command(),
        read::stats_command(),
        read::check_command(),
        read::backup_command(),
    ];
    Command::new(NAME)
        .about("Keeps, searches, edits and exports captions in a library")
        .long_about(
            "Keeps captions, alternative texts and tags of photos in a library, with every revision and its \
             author. No model replaces what a person wrote, imported or deleted; it suggests.\n\n\
             The library is a file, named by --library sqlite:FILE or LIBRARY, and is created when it is first \
             written; programs built with the feature postgres also take postgres://USER@HOST/DATABASE. \
             Several programs may use it at once.",
        )
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands(commands.map(|command| config::with_settings(command, &[Group::Library])))
        .after_help(
            "Examples:\n  \
             export LIBRARY=sqlite:photos.db\n  \
             cutline library import -r Photos              photos with their sidecars\n  \
             cutline library import captions.jsonl         what cutline caption wrote\n  \
             cutline library search dog beach -cat color:blue\n  \
             cutline library edit Photos/dog.jpg \"Rex\"      another caption\n  \
             cutline library review --field alt_text       suggestions that wait\n  \
             cutline library export --format csv --output photos.csv\n  \
             cutline library backup photos-copy.db",
        )
}

pub(super) fn run(matches: &ArgMatches) -> Result<ExitCode> {
    let Some((name, matches)) = matches.subcommand() else {
        return Err(Error::internal("a command without a name was accepted"));
    };
    match name {
        transfer::IMPORT => transfer::import(matches),
        read::SEARCH => read::search(matches),
        read::DUPLICATES => read::duplicates(matches),
        single::SHOW => single::show(matches),
        single::EDIT => single::edit(matches),
        single::RATE => single::rate(matches),
        read::HISTORY => read::history(matches),
        transfer::EXPORT => transfer::export(matches),
        edit::REVIEW => edit::review(matches),
        read::RUNS => read::runs(matches),
        edit::UNDO => edit::undo(matches),
        edit::PURGE => edit::purge(matches),
        read::STATS => read::stats(matches),
        read::CHECK => read::check(matches),
        _ => read::backup(matches),
    }
}

/// Opens the library of a command.
pub(in crate::cli) fn open(matches: &ArgMatches) -> Result<Arc<dyn Store>> {
    let address = address(matches)?;
    if !cutline_library::exists(&address)? {
        return Err(Error::new(
            ErrorKind::Config,
            format!(
                "there is no library at {}; correct --library or LIBRARY, or fill one with cutline library \
                 import or cutline caption",
                cutline_library::shown(&address)
            ),
        ));
    }
    cutline_library::open(&address)
}

/// The address of the library of a command.
pub(in crate::cli) fn address(matches: &ArgMatches) -> Result<String> {
    let address = library_address(&Values::of_command(matches)?)?;
    address.ok_or_else(|| {
        Error::new(
            ErrorKind::Config,
            "no library is named; give --library sqlite:FILE, or set LIBRARY",
        )
    })
}

/// The photo that a hash or a path stands for.
fn photo(store: &dyn Store, text: &str) -> Result<ContentHash> {
    if let Ok(hash) = text.parse::<ContentHash>() {
        return Ok(hash);
    }
    let full = std::path::absolute(Path::new(text)).unwrap_or_default();
    for name in [full.to_string_lossy().as_ref(), text] {
        if let Some((hash, _)) = store.named(NameKind::Path, name)?.into_iter().next() {
            return Ok(hash);
        }
    }
    Err(Error::new(
        ErrorKind::NotFound,
        format!("the library has no photo with the path or hash {text}; search for its name"),
    ))
}

/// Parses the name of a field.
fn field(text: &str) -> Result<Field, String> {
    text.parse().map_err(|_| "give one of caption, alt_text, tags, title, engaging".to_owned())
}

/// A text for a line of several, with tabs between them.
pub(in crate::cli) fn cell(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Prints a value as JSON, on one line.
pub(in crate::cli) fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let json = serde_json::to_string(value)
        .map_err(|error| Error::internal("the answer cannot be written").with_source(error))?;
    print(&(json + "\n"))
}
