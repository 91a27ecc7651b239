//! `cutline check`

mod report;

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use self::report::{Photo, Report, Rules};
use super::folder::inputs::Inputs;
use super::folder::results::{Entry, Results};
use super::folder::sidecar::{Kind, Sidecars};
use super::{FAILED, complain, print};
use cutline_error::{Error, ErrorKind, Result};

pub(super) const NAME: &str = "check";

pub(super) fn command() -> Command {
    let number = |name: &'static str, default: &'static str, help: &'static str| {
        Arg::new(name).long(name).value_name("N").help(help).default_value(default)
    };
    Command::new(NAME)
        .about("Tells how many photos have captions, and which captions look wrong")
        .arg(
            Arg::new("paths")
                .value_name("FOLDER|RESULTS")
                .help("Folders, whose sidecars are read, and files that cutline caption wrote")
                .value_parser(value_parser!(PathBuf))
                .num_args(1..)
                .required(true),
        )
        .arg(
            Arg::new("recursive")
                .long("recursive")
                .short('r')
                .help("Look into the folders in folders")
                .action(ArgAction::SetTrue),
        )
        .arg(
            Arg::new("json")
                .long("json")
                .help("Print an object with all paths instead of a table")
                .action(ArgAction::SetTrue),
        )
        .arg(
            Arg::new("fail-under")
                .long("fail-under")
                .value_name("PERCENT")
                .help("Exit with 1 if fewer photos have a caption")
                .value_parser(value_parser!(f64)),
        )
        .arg(
            number("max-chars", "125", "More characters are too many")
                .value_parser(value_parser!(usize)),
        )
        .arg(
            number("min-words", "3", "Fewer words are suspicious")
                .value_parser(value_parser!(usize)),
        )
        .arg(
            number("min-confidence", "0.2", "Less confidence is suspicious, where it is known")
                .value_parser(value_parser!(f64)),
        )
        .after_help(
            "With folders, their photos are counted, and a caption may be in a sidecar or in the \
             results; with results alone, the photos that they name. The text that says that there \
             is no description is none.\n\n\
             Examples:\n  \
             cutline check -r Photos\n  \
             cutline check captions.jsonl --json\n  \
             cutline check -r Photos captions.jsonl --fail-under 99",
        )
}

pub(super) fn run(matches: &ArgMatches) -> Result<ExitCode> {
    let paths = matches.get_many::<PathBuf>("paths").unwrap_or_default();
    let (folders, files): (Vec<&PathBuf>, Vec<&PathBuf>) = paths.partition(|path| path.is_dir());
    let least = matches.get_one::<f64>("fail-under").copied();
    if least.is_some_and(|percent| !(0.0..=100.0).contains(&percent)) {
        return Err(Error::parameter("fail-under", "--fail-under must be between 0 and 100"));
    }
    let mut results: Vec<Entry> = Vec::new();
    for file in files {
        results.extend(Results::read(file)?.entries);
    }
    let photos = if folders.is_empty() {
        of_results(results)
    } else {
        let inputs = Inputs::find(folders, matches.get_flag("recursive"))?;
        inputs.problems.iter().for_each(|problem| complain(problem));
        of_folders(&inputs, results)
    };
    if photos.is_empty() {
        return Err(Error::new(
            ErrorKind::Io,
            "there are no photos to check; check the paths, or give --recursive",
        ));
    }
    let number = |name: &str| matches.get_one::<usize>(name).copied().unwrap_or(0);
    let rules = Rules {
        max_chars: number("max-chars"),
        min_words: number("min-words"),
        min_confidence: matches.get_one::<f64>("min-confidence").copied().unwrap_or(0.0),
    };
    let report = Report::of(&photos, rules);
    print(&if matches.get_flag("json") { report.json()? } else { report.table(rules) })?;
    let enough = least.is_none_or(|percent| report.coverage * 100.0 >= percent);
    Ok(ExitCode::from(if enough { 0 } else { FAILED }))
}

/// The photos that results name, each as its last row has it.
fn of_results(results: Vec<Entry>) -> Vec<Photo> {
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut photos: Vec<Photo> = Vec::new();
    for entry in results {
        let photo = Photo::of(entry);
        match places.get(&photo.path) {
            Some(place) => photos[*place] = photo,
            None => {
                places.insert(photo.path.clone(), photos.len());
                photos.push(photo);
            }
        }
    }
    photos
}

/// The photos in folders, with what sidecars say of them, or else results.
fn of_folders(inputs: &Inputs, results: Vec<Entry>) -> Vec<Photo> {
    let rows: HashMap<String, Entry> =
        results.into_iter().map(|entry| (entry.path.clone(), entry)).collect();
    let kinds = Kind::ALL.map(|kind| Sidecars::new(kind, &inputs.photos));
    let photo = |photo: &super::folder::inputs::Photo| {
        let path = photo.name();
        let said = kinds
            .iter()
            .filter_map(|sidecars| sidecars.read(&photo.path))
            .find(|said| !said.text.is_empty() && !said.fallback);
        match said {
            Some(said) => Photo { path, text: Some(said.text), confidence: said.confidence },
            None => match rows.get(&path) {
                Some(entry) => Photo::of(entry.clone()),
                None => Photo { path, text: None, confidence: None },
            },
        }
    };
    inputs.photos.iter().map(photo).collect()
}

impl Photo {
    fn of(entry: Entry) -> Self {
        let described = !entry.fallback && !entry.caption.trim().is_empty();
        Self {
            path: entry.path,
            text: described.then_some(entry.caption),
            confidence: entry.confidence,
        }
    }
}
