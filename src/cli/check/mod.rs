//! `cutline check`

mod report;

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgMatches, Args, Command, FromArgMatches};

use self::report::{CheckReport, CheckRules, CheckedPhoto};
use super::folder::inputs::{Inputs, Search};
use super::folder::name;
use super::folder::results::{ResultEntry, Results};
use super::folder::sidecar::{SidecarKind, SidecarName, SidecarText, Sidecars};
use super::{FAILED, complain, print, unparsed};
use cutline_error::{Error, ErrorKind, Result};

pub(super) const NAME: &str = "check";

#[derive(Args)]
struct CheckArgs {
    /// Folders, whose sidecars are read, and files that cutline caption wrote
    #[arg(value_name = "FOLDER|RESULTS", required = true)]
    paths: Vec<PathBuf>,
    /// Search subfolders too
    #[arg(short, long)]
    recursive: bool,
    /// Follow links in folders
    #[arg(short = 'L', long)]
    follow_links: bool,
    /// Read photo.jpg.txt (full) or photo.txt (stem)
    #[arg(
        long,
        value_enum,
        value_name = "NAME",
        default_value = "full",
        hide_possible_values = true
    )]
    sidecar_name: SidecarName,
    /// Print a JSON object with all paths instead of a table
    #[arg(long)]
    json: bool,
    /// Exit with 1 if a smaller percentage of photos has a caption
    #[arg(long, value_name = "PERCENT")]
    fail_under: Option<f64>,
    #[command(flatten)]
    rules: CheckRules,
}

pub(super) fn command() -> Command {
    CheckArgs::augment_args(Command::new(NAME))
        .about("Reports how many photos have captions, and which captions look wrong")
        .after_help(
            "If folders are given, their photos are counted, with captions from sidecars or results. \
             If only results are given, the photos in them are counted. The fallback text does not \
             count as a caption.\n\n\
             Examples:\n  \
             cutline check -r Photos\n  \
             cutline check captions.jsonl --json\n  \
             cutline check -r Photos captions.jsonl --fail-under 99",
        )
}

pub(super) fn run(matches: &ArgMatches) -> Result<ExitCode> {
    let args = CheckArgs::from_arg_matches(matches).map_err(unparsed)?;
    let (folders, files): (Vec<&PathBuf>, Vec<&PathBuf>) =
        args.paths.iter().partition(|path| path.is_dir());
    if args.fail_under.is_some_and(|percent| !(0.0..=100.0).contains(&percent)) {
        return Err(Error::parameter("fail-under", "--fail-under must be between 0 and 100"));
    }
    let mut results: Vec<ResultEntry> = Vec::new();
    for file in files {
        results.extend(Results::read(file)?.entries);
    }
    let photos = if folders.is_empty() {
        of_results(results)
    } else {
        let search = Search { recursive: args.recursive, follow_links: args.follow_links };
        let inputs = Inputs::find(folders, search)?;
        for problem in inputs.problems.iter().chain(&inputs.unreadable()) {
            complain(problem);
        }
        of_folders(&inputs, args.sidecar_name, results)
    };
    if photos.is_empty() {
        return Err(Error::new(
            ErrorKind::Io,
            "there are no photos to check; check the paths, or give --recursive",
        ));
    }
    let report = CheckReport::new(&photos, args.rules);
    print(&if args.json { report.json()? } else { report.table(args.rules) })?;
    let enough = args.fail_under.is_none_or(|percent| report.coverage * 100.0 >= percent);
    Ok(ExitCode::from(if enough { 0 } else { FAILED }))
}

/// The photos in results, each with its last row.
fn of_results(results: Vec<ResultEntry>) -> Vec<CheckedPhoto> {
    let mut indices: HashMap<String, usize> = HashMap::new();
    let mut photos: Vec<CheckedPhoto> = Vec::new();
    for entry in results {
        let photo = CheckedPhoto::of(entry);
        match indices.get(&photo.path) {
            Some(index) => photos[*index] = photo,
            None => {
                indices.insert(photo.path.clone(), photos.len());
                photos.push(photo);
            }
        }
    }
    photos
}

/// The photos in folders, with the captions in their sidecars, or else in results.
fn of_folders(
    inputs: &Inputs,
    naming: SidecarName,
    results: Vec<ResultEntry>,
) -> Vec<CheckedPhoto> {
    let rows: HashMap<PathBuf, ResultEntry> =
        results.into_iter().map(|entry| (name::path(&entry.path), entry)).collect();
    let kinds = SidecarKind::ALL.map(|kind| Sidecars::new(kind, naming, &inputs.photos));
    let photo = |photo: &super::folder::inputs::InputPhoto| {
        let path = photo.name();
        let sidecar = kinds
            .iter()
            .filter_map(|sidecars| sidecars.read(&photo.path))
            .find(|content| !content.text.is_empty() && !content.fallback);
        match sidecar {
            Some(SidecarText { text, confidence, .. }) => {
                CheckedPhoto { path, text: Some(text), confidence }
            }
            None => match rows.get(&photo.path) {
                Some(entry) => CheckedPhoto::of(entry.clone()),
                None => CheckedPhoto { path, text: None, confidence: None },
            },
        }
    };
    inputs.photos.iter().map(photo).collect()
}

impl CheckedPhoto {
    fn of(entry: ResultEntry) -> Self {
        let described = !entry.fallback && !entry.caption.trim().is_empty();
        Self {
            path: entry.path,
            text: described.then_some(entry.caption),
            confidence: entry.confidence,
        }
    }
}
