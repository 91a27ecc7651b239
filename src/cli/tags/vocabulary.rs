//! `cutline tags vocabulary`

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgMatches, Args, Command, FromArgMatches, Subcommand};
use cutline_library::vocabularies::no_vocabulary;
use cutline_library::{Author, Store};

use crate::cli::library::{PERSON, address, cell, open, print_json};
use crate::cli::{print, unparsed};
use crate::config::{self, Group, read_vocabulary};
use crate::vocabularies;
use cutline_error::Result;
use cutline_tags::Reference;

pub(super) const NAME: &str = "vocabulary";

#[derive(Subcommand)]
enum Vocabularies {
    /// Lists the vocabularies: name, newest version, version that counts
    List(ListArgs),
    /// Lists the versions of a vocabulary
    Show(ShowArgs),
    /// Prints what a version says, as JSON
    Print(PrintArgs),
    /// Adds a version, which counts from now on, and the vocabulary if there is none of this name
    Add(AddArgs),
    /// Lets another version count from now on
    Use(UseArgs),
    /// Removes a vocabulary with all its versions
    Delete(DeleteArgs),
}

#[derive(Args)]
struct ListArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct ShowArgs {
    /// The vocabulary
    name: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct PrintArgs {
    /// The vocabulary
    name: String,
    /// The number of the version [default: the one that counts]
    version: Option<u32>,
}

#[derive(Args)]
struct AddArgs {
    /// The vocabulary
    name: String,
    /// The allowed tags, JSON or lines of text
    file: PathBuf,
    /// Why this version is made
    #[arg(short, long, value_name = "TEXT", default_value = "")]
    message: String,
    /// Who makes it
    #[arg(long, value_name = "NAME", default_value = PERSON)]
    author: String,
}

#[derive(Args)]
struct UseArgs {
    /// The vocabulary
    name: String,
    /// The number of the version
    version: u32,
}

#[derive(Args)]
struct DeleteArgs {
    /// The vocabulary
    name: String,
}

pub(super) fn command() -> Command {
    let command = Command::new(NAME)
        .about("Keeps vocabularies with versions in a library")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .after_help(
            "Examples:\n  \
             export LIBRARY=sqlite:photos.db\n  \
             cutline tags vocabulary add shop shop.json -m 'more animals'\n  \
             cutline tags --vocabulary library:shop rex.jpg\n  \
             cutline tags vocabulary use shop 1       back to the first version",
        );
    let with = |command: Command| config::with_settings(command, &[Group::Library]);
    Vocabularies::augment_subcommands(command).mut_subcommands(with)
}

pub(super) fn run(matches: &ArgMatches) -> Result<ExitCode> {
    let command = Vocabularies::from_arg_matches(matches).map_err(unparsed)?;
    let inner = matches.subcommand().map_or(matches, |(_, inner)| inner);
    match command {
        Vocabularies::List(args) => list(&*open(inner)?, args.json)?,
        Vocabularies::Show(args) => show(&*open(inner)?, &args)?,
        Vocabularies::Print(args) => print_version(&*open(inner)?, args)?,
        Vocabularies::Add(args) => add(inner, args)?,
        Vocabularies::Use(args) => {
            vocabularies::choose(&*open(inner)?, &args.name, args.version)?;
        }
        Vocabularies::Delete(args) => vocabularies::delete(&*open(inner)?, &args.name)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn list(store: &dyn Store, json: bool) -> Result<()> {
    let all = store.vocabularies()?;
    if json {
        return print_json(&all);
    }
    for one in all {
        print(&format!("{}\t{}\t{}\n", cell(&one.name), one.latest, one.current))?;
    }
    Ok(())
}

fn show(store: &dyn Store, args: &ShowArgs) -> Result<()> {
    let found = store.vocabulary(&args.name)?.ok_or_else(|| no_vocabulary(&args.name))?;
    for version in found.versions {
        if args.json {
            print_json(&version)?;
            continue;
        }
        let counts = version.version == found.vocabulary.current;
        let counts = if counts { "counts" } else { "" };
        print(&format!("{}\t{counts}\t{}\n", version.version, cell(&version.message)))?;
    }
    Ok(())
}

fn print_version(store: &dyn Store, args: PrintArgs) -> Result<()> {
    let reference = Reference { name: args.name, version: args.version };
    print(&(vocabularies::find(store, &reference)?.stored.content + "\n"))
}

fn add(matches: &ArgMatches, args: AddArgs) -> Result<()> {
    // Before the library, which may be new.
    let vocabulary = read_vocabulary(&args.file)?;
    cutline_tags::check_name(&args.name)?;
    let store = cutline_library::open(&address(matches)?)?;
    let author = Author::person(&args.author);
    let version = vocabularies::save(&*store, &args.name, &vocabulary, args.message, &author)?;
    let reference = Reference { name: args.name, version: Some(version) };
    print(&format!("{reference}\n"))
}
