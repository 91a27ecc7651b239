//! `cutline library search`, `duplicates`, `history`, `runs`, `stats`, `check` and `backup`.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgMatches, Args, Command, FromArgMatches};
use cutline_library::{
    Asset, Field, Page, Probe, Query, Similar, Sort, Store, duplicates, format_time,
};

use super::{cell, open, photo, print_json};
use crate::cli::{FAILED, complain, print, unparsed};
use cutline_error::Result;

pub(super) const SEARCH: &str = "search";
pub(super) const DUPLICATES: &str = "duplicates";
pub(super) const HISTORY: &str = "history";
pub(super) const RUNS: &str = "runs";
pub(super) const STATS: &str = "stats";
pub(super) const CHECK: &str = "check";
pub(super) const BACKUP: &str = "backup";

#[derive(Args)]
struct SearchArgs {
    /// Words, "phrases", -words, OR; tag: color: mood: model: missing: is: after: before: confidence:
    #[arg(value_name = "QUERY", allow_hyphen_values = true)]
    query: Vec<String>,
    /// Photos that look like this one, given by path or hash; only those with features in the library
    #[arg(long, value_name = "PHOTO", conflicts_with_all = ["query", "sort"])]
    similar: Option<String>,
    /// Photos at most
    #[arg(long, default_value_t = 20, value_name = "N")]
    limit: usize,
    /// relevance, taken, added or confidence
    #[arg(long, value_parser = sort, value_name = "ORDER")]
    sort: Option<Sort>,
    /// Print JSON, one photo a line
    #[arg(long)]
    json: bool,
}

fn sort(text: &str) -> Result<Sort, String> {
    let all = [Sort::Relevance, Sort::Taken, Sort::Added, Sort::Confidence];
    let found = all.into_iter().find(|sort| sort.as_str() == text);
    found.ok_or_else(|| "give one of relevance, taken, added, confidence".to_owned())
}

pub(super) fn search_command() -> Command {
    SearchArgs::augment_args(Command::new(SEARCH))
        .about("Finds photos by their texts, tags, colours and names")
        .after_help(
            "Each line has the path of a photo, a tab, and its caption. Options stand before the query.\n\n\
             Examples:\n  \
             cutline library search dog beach\n  \
             cutline library search '\"a dog\"' OR cat -mouse\n  \
             cutline library search --sort taken tag:holiday after:2024\n  \
             cutline library search missing:alt is:unreviewed\n  \
             cutline library search --similar Photos/dog.jpg",
        )
}

pub(super) fn search(matches: &ArgMatches) -> Result<ExitCode> {
    let args = SearchArgs::from_arg_matches(matches).map_err(unparsed)?;
    let store = open(matches)?;
    let store = &*store;
    if let Some(like) = &args.similar {
        let probe = Probe::Asset(photo(store, like)?);
        for neighbour in store.similar(&Similar { probe, limit: args.limit, min_score: -1.0 })? {
            if args.json {
                print_json(&neighbour)?;
            } else if let Some(asset) = store.asset(&neighbour.hash)? {
                print(&format!("{:.3}\t{}", neighbour.score, line(&asset)))?;
            }
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut query = Query { text: args.query.join(" "), sort: args.sort, ..Query::default() };
    let mut left = args.limit;
    while left > 0 {
        query.limit = left.min(200);
        let Page { items, next, .. } = store.find(&query)?;
        for found in &items {
            if args.json {
                print_json(found)?;
            } else {
                print(&line(&found.asset))?;
            }
        }
        left = left.saturating_sub(items.len());
        query.cursor = next;
        if query.cursor.is_none() {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The name of a photo, and the best of its texts.
fn line(asset: &Asset) -> String {
    let caption = asset.text(Field::Caption, "en").or_else(|| asset.texts.first());
    let caption = caption.map(|caption| caption.text.as_str()).unwrap_or_default();
    format!("{}\t{}\n", cell(&asset.display_name()), cell(caption))
}

#[derive(Args)]
struct DuplicatesArgs {
    /// Bits in which difference hashes of 64 bits may differ, 0 to 7
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(..=7), value_name = "N")]
    bits: u32,
    /// Groups at most
    #[arg(long, default_value_t = usize::MAX, hide_default_value = true, value_name = "N")]
    limit: usize,
    /// Print JSON, one group a line
    #[arg(long)]
    json: bool,
}

pub(super) fn duplicates_command() -> Command {
    DuplicatesArgs::augment_args(Command::new(DUPLICATES))
        .about("Finds photos that look the same, such as copies in other sizes")
        .after_help(
            "Each line has the number of a group, the size of a photo and its path, with tabs between them. \
             The largest photo of a group comes first. Only photos that were captioned with the library on \
             are compared.",
        )
}

pub(super) fn duplicates(matches: &ArgMatches) -> Result<ExitCode> {
    let args = DuplicatesArgs::from_arg_matches(matches).map_err(unparsed)?;
    let found = duplicates::find(&*open(matches)?, args.bits, 0, args.limit)?;
    for (number, group) in (1..).zip(&found.groups) {
        if args.json {
            print_json(group)?;
            continue;
        }
        for photo in group {
            let (width, height) = (photo.width.unwrap_or(0), photo.height.unwrap_or(0));
            print(&format!("{number}\t{width}x{height}\t{}\n", cell(&photo.name)))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Args)]
struct HistoryArgs {
    /// The photo, by path or hash
    #[arg(value_name = "PHOTO")]
    photo: String,
    /// Print JSON, one revision a line
    #[arg(long)]
    json: bool,
}

pub(super) fn history_command() -> Command {
    HistoryArgs::augment_args(Command::new(HISTORY))
        .about("Lists all texts that a photo has had, the newest first")
        .after_help(
            "Each line has the time, the text's field and language, what happened to it, who did it, and the \
             text, with tabs between them. A * marks the text that is shown.",
        )
}

pub(super) fn history(matches: &ArgMatches) -> Result<ExitCode> {
    let args = HistoryArgs::from_arg_matches(matches).map_err(unparsed)?;
    let store = open(matches)?;
    let hash = photo(&*store, &args.photo)?;
    for revision in store.history(&hash)?.unwrap_or_default() {
        if args.json {
            print_json(&revision)?;
            continue;
        }
        let time = format_time(revision.created_at);
        let who = revision.by.as_ref().unwrap_or(&revision.author).name();
        let shown = if revision.current { "*" } else { "" };
        print(&format!(
            "{time}\t{} {}\t{}{shown}\t{}\t{}\n",
            revision.field.as_str(),
            revision.lang,
            revision.action.as_str(),
            cell(who),
            cell(&revision.text),
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Args)]
struct RunsArgs {
    /// Runs at most
    #[arg(long, default_value_t = 20, value_name = "N")]
    limit: usize,
    /// Print JSON, one run a line
    #[arg(long)]
    json: bool,
}

pub(super) fn runs_command() -> Command {
    RunsArgs::augment_args(Command::new(RUNS))
        .about("Lists imports and changes of many photos, to undo them")
}

pub(super) fn runs(matches: &ArgMatches) -> Result<ExitCode> {
    let args = RunsArgs::from_arg_matches(matches).map_err(unparsed)?;
    for run in open(matches)?.runs(args.limit)? {
        if args.json {
            print_json(&run)?;
            continue;
        }
        let end = if run.finished_at.is_some() { "" } else { "\tnot finished" };
        let started = format_time(run.started_at);
        let author = cell(run.author.name());
        print(&format!(
            "{}\t{started}\t{}\t{author}\t{} texts{end}\n",
            run.id, run.kind, run.revisions
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Args)]
struct StatsArgs {
    /// What people thought of the texts of models, by day, model and prompt
    #[arg(long)]
    feedback: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn stats_command() -> Command {
    StatsArgs::augment_args(Command::new(STATS))
        .about("Counts photos, texts, suggestions and feedback")
}

pub(super) fn stats(matches: &ArgMatches) -> Result<ExitCode> {
    let args = StatsArgs::from_arg_matches(matches).map_err(unparsed)?;
    let store = open(matches)?;
    if args.feedback {
        feedback(&*store, args.json)?;
        return Ok(ExitCode::SUCCESS);
    }
    let stats = store.stats()?;
    if args.json {
        print_json(&stats)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = String::new();
    for (name, number) in [
        ("photos", stats.assets),
        ("names", stats.names),
        ("without caption", stats.without_caption),
        ("without alternative text", stats.without_alt_text),
        ("reviewed", stats.reviewed),
        ("suggestions", stats.suggestions),
        ("revisions", stats.revisions),
        ("with features", stats.features),
        ("thumbnails", stats.thumbnails),
        ("bytes", stats.bytes),
    ] {
        let _ = writeln!(table, "{name:<26}{number:>14}");
    }
    print(&table)?;
    Ok(ExitCode::SUCCESS)
}

fn feedback(store: &dyn Store, json: bool) -> Result<()> {
    for row in store.feedback_report()? {
        if json {
            print_json(&row)?;
            continue;
        }
        let edit = row.mean_edit.map(|edit| format!(", {:.0} % of their words", edit * 100.0));
        print(&format!(
            "{}\t{}\t{}\t+{} -{}\taccepted {}\trejected {}\tedited {}{}\n",
            row.day,
            cell(&row.model),
            cell(&row.prompt),
            row.up,
            row.down,
            row.accepted,
            row.rejected,
            row.edited,
            edit.unwrap_or_default(),
        ))?;
    }
    Ok(())
}

pub(super) fn check_command() -> Command {
    Command::new(CHECK)
        .about("Reads all of the library and reports damage")
        .after_help("The exit status is 0 if nothing is wrong, and 1 otherwise.")
}

pub(super) fn check(matches: &ArgMatches) -> Result<ExitCode> {
    let report = open(matches)?.check()?;
    for problem in &report.problems {
        complain(problem);
    }
    if report.problems.is_empty() {
        print(&format!("{} photos, nothing is wrong\n", report.assets))?;
        return Ok(ExitCode::SUCCESS);
    }
    complain(&"the library is damaged: restore a backup, or export what can be read");
    Ok(ExitCode::from(FAILED))
}

#[derive(Args)]
struct BackupArgs {
    /// The copy, a file that does not exist yet
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

pub(super) fn backup_command() -> Command {
    BackupArgs::augment_args(Command::new(BACKUP))
        .about("Copies the library while it is in use")
        .after_help(
            "The copy is complete and of one moment, and is a library itself. Libraries in PostgreSQL are \
             copied with pg_dump.",
        )
}

pub(super) fn backup(matches: &ArgMatches) -> Result<ExitCode> {
    let args = BackupArgs::from_arg_matches(matches).map_err(unparsed)?;
    open(matches)?.backup(&args.file)?;
    Ok(ExitCode::SUCCESS)
}
