//! `cutline library review`, `undo` and `purge`.

use std::process::ExitCode;

use clap::{ArgGroup, ArgMatches, Args, Command, FromArgMatches};
use cutline_library::bulk::{self, Bulk, BulkAction, BulkReport, Selection};
use cutline_library::{Applied, Author, Change, Field, Query, Store};

use super::{PERSON, cell, field, open, photo};
use crate::cli::{FAILED, complain, print, unparsed};
use cutline_error::Result;

pub(super) const REVIEW: &str = "review";
pub(super) const UNDO: &str = "undo";
pub(super) const PURGE: &str = "purge";

#[derive(Args)]
struct ReviewArgs {
    /// Only photos that this search finds; see cutline library search
    #[arg(value_name = "QUERY", allow_hyphen_values = true)]
    query: Vec<String>,
    /// caption, alt_text, tags, title or engaging
    #[arg(long, default_value = "caption", value_parser = field)]
    field: Field,
    /// Language of the texts
    #[arg(long, default_value = "en")]
    lang: String,
    /// Accept the suggestions
    #[arg(long)]
    accept: bool,
    /// Reject the suggestions
    #[arg(long)]
    reject: bool,
    /// Only tell what would happen
    #[arg(long)]
    dry_run: bool,
    /// Who decides
    #[arg(long, value_name = "NAME", default_value = PERSON)]
    author: String,
}

pub(super) fn review_command() -> Command {
    ReviewArgs::augment_args(Command::new(REVIEW))
        .group(ArgGroup::new("decision").args(["accept", "reject"]))
        .about("Lists suggestions, and accepts or rejects them")
        .after_help(
            "Without --accept or --reject, each line has the path of a photo, its present text and the one \
             that is suggested, with tabs between them. Options stand before the query.\n\n\
             Examples:\n  \
             cutline library review\n  \
             cutline library review --accept --dry-run color:red\n  \
             cutline library review --reject model:cutline-small",
        )
}

pub(super) fn review(matches: &ArgMatches) -> Result<ExitCode> {
    let args = ReviewArgs::from_arg_matches(matches).map_err(unparsed)?;
    let store = open(matches)?;
    let query =
        Query { text: format!("is:suggested {}", args.query.join(" ")), ..Query::default() };
    let field = args.field;
    let action = match (args.accept, args.reject) {
        (true, _) => BulkAction::Accept { field },
        (_, true) => BulkAction::Reject { field },
        _ => {
            list(&*store, query, field, &args.lang)?;
            return Ok(ExitCode::SUCCESS);
        }
    };
    let bulk = Bulk {
        select: Selection::Query(Box::new(query)),
        lang: args.lang,
        action,
        author: Author::person(args.author),
        dry_run: args.dry_run,
    };
    report(&bulk::run(&*store, &bulk)?, args.dry_run)?;
    Ok(ExitCode::SUCCESS)
}

fn list(store: &dyn Store, mut query: Query, field: Field, lang: &str) -> Result<()> {
    query.limit = 200;
    loop {
        let page = store.find(&query)?;
        for found in &page.items {
            let asset = &found.asset;
            let Some(current) = asset.text(field, lang) else { continue };
            let Some(suggestion) = &current.suggestion else { continue };
            let parts = [&asset.display_name(), &current.text, &suggestion.text];
            print(&(parts.map(|part| cell(part)).join("\t") + "\n"))?;
        }
        match page.next {
            Some(next) => query.cursor = Some(next),
            None => return Ok(()),
        }
    }
}

/// Tells what a change did or would do.
fn report(report: &BulkReport, rehearsal: bool) -> Result<()> {
    for sample in report.samples.iter().filter(|_| rehearsal) {
        let parts = [&sample.name, &sample.before, &sample.after];
        print(&(parts.map(|part| cell(part)).join("\t") + "\n"))?;
    }
    let did = if rehearsal { "would change" } else { "changed" };
    let mut summary = format!("{did} {} texts", report.changed);
    if report.conflicts > 0 {
        summary += &format!("; left {} alone, which were changed otherwise", report.conflicts);
    }
    if let Some(run) = report.run {
        summary += &format!("; to take it back: cutline library undo {run}");
    }
    complain(&summary);
    Ok(())
}

#[derive(Args)]
struct UndoArgs {
    /// The number of the run; see cutline library runs
    #[arg(value_name = "RUN")]
    run: i64,
    /// Only tell what would happen
    #[arg(long)]
    dry_run: bool,
    /// Who does it
    #[arg(long, value_name = "NAME", default_value = PERSON)]
    author: String,
}

pub(super) fn undo_command() -> Command {
    UndoArgs::augment_args(Command::new(UNDO))
        .about("Takes back an import or a change of many photos")
        .after_help("Texts that were changed after that run stay as they are.")
}

pub(super) fn undo(matches: &ArgMatches) -> Result<ExitCode> {
    let args = UndoArgs::from_arg_matches(matches).map_err(unparsed)?;
    let store = open(matches)?;
    let undone = bulk::undo(&*store, args.run, &Author::person(args.author), args.dry_run)?;
    report(&undone, args.dry_run)?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Args)]
struct PurgeArgs {
    /// Photos, by path or hash
    #[arg(value_name = "PHOTO", required = true)]
    photos: Vec<String>,
    /// Rewrite the library afterwards, so that it becomes smaller
    #[arg(long)]
    compact: bool,
}

pub(super) fn purge_command() -> Command {
    PurgeArgs::augment_args(Command::new(PURGE))
        .about("Removes photos from the library, with all texts, history and features, for good")
        .after_help(
            "What is removed is overwritten in the file; in PostgreSQL, when the server vacuums, or at once \
             with --compact. The photos themselves and backups stay; remove them too if somebody has asked \
             for it.",
        )
}

pub(super) fn purge(matches: &ArgMatches) -> Result<ExitCode> {
    let args = PurgeArgs::from_arg_matches(matches).map_err(unparsed)?;
    let store = open(matches)?;
    // All are found before the first is removed.
    let found: Vec<_> =
        args.photos.iter().map(|text| photo(&*store, text)).collect::<Result<_>>()?;
    let applied = store.apply(found.iter().copied().map(Change::Purge).collect())?;
    let mut status = ExitCode::SUCCESS;
    for (text, applied) in args.photos.iter().zip(applied) {
        if applied == Applied::Purged(false) {
            complain(&format!("{text}: is not in the library; check the hash"));
            status = ExitCode::from(FAILED);
        }
    }
    if args.compact {
        store.compact()?;
    }
    Ok(status)
}
