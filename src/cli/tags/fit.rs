//! `cutline tags fit`

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgMatches, Args, Command, FromArgMatches};
use serde::Serialize;
use tempfile::NamedTempFile;

use super::truth::{self, TruePhoto, known};
use super::{Setup, TagRun, Worker};
use crate::captioner::{Support, TagParams, TagStrategy, Tagger};
use crate::cli::{complain, print, runtime, unparsed};
use crate::config::Values;
use cutline_error::{Error, ErrorKind, Result};
use cutline_tags::{Example, STRENGTH, Weights, fit_photos};

pub(super) const NAME: &str = "fit";

#[derive(Args)]
struct FitArgs {
    /// Photos with the tags that people gave, as for eval [default: those of the library with tags that
    /// people wrote, accepted or imported]
    #[arg(value_name = "TRUTH")]
    truth: Option<PathBuf>,
    /// Folder that the paths are relative to [default: that of the file]
    #[arg(long, value_name = "FOLDER", requires = "truth")]
    photos: Option<PathBuf>,
    /// The allowed tags: a file, JSON or lines of text, or library:NAME [default: TAG_VOCABULARY, or
    /// everyday tags]
    #[arg(long, value_name = "FILE")]
    vocabulary: Option<PathBuf>,
    /// Parts of the photos, each of which is held out once
    #[arg(long, value_name = "N", default_value = "5",
          value_parser = clap::value_parser!(u8).range(2..=20))]
    folds: u8,
    /// Photos of the library at most
    #[arg(long, value_name = "N", default_value = "2000", conflicts_with = "truth",
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// Where the weights are written if they are better; a file for TAG_WEIGHTS
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Print a JSON object instead of text
    #[arg(long)]
    json: bool,
}

pub(super) fn command() -> Command {
    FitArgs::augment_args(Command::new(NAME))
        .about("Fits the weights of the strategy hybrid to tags that people gave")
        .after_help(
            "Tags of the vocabulary that people did not give to a photo count as wrong, so give it photos that \
             are tagged completely. The weights start from those that cutline has, and move only as far as the \
             photos say. They are better if they explain held-out photos better by more than the standard \
             error; otherwise nothing is written.\n\n\
             Examples:\n  \
             cutline tags fit truth.jsonl --vocabulary shop.json -o weights.json\n  \
             cutline tags fit --library sqlite:photos.db -o weights.json\n  \
             TAG_WEIGHTS=weights.json cutline tags holiday.jpg",
        )
}

/// What is printed.
#[derive(Serialize)]
struct Report {
    photos: usize,
    failed: usize,
    folds: usize,
    /// How surprising people's tags of a held-out photo are to the weights that cutline has, in nats.
    before: f64,
    /// The same for fitted weights.
    after: f64,
    /// Of the difference.
    standard_error: f64,
    better: bool,
    weights: Weights,
    #[serde(skip_serializing_if = "Option::is_none")]
    written: Option<String>,
}

pub(super) fn run(matches: &ArgMatches) -> Result<ExitCode> {
    let args = FitArgs::from_arg_matches(matches).map_err(unparsed)?;
    let values = Values::of_command(matches)?;
    let setup = Setup::of(&values, args.vocabulary.as_deref())?;
    let truth = match (&args.truth, &setup.store) {
        (Some(path), _) => {
            let folder = args.photos.clone().or_else(|| path.parent().map(Path::to_owned));
            truth::read(path, &folder.unwrap_or_default())?
        }
        (None, Some(store)) => truth::of_library(&**store, args.limit as usize)?,
        (None, None) => {
            return Err(Error::new(
                ErrorKind::Config,
                "there are no tags to learn from; name a file, or set LIBRARY",
            ));
        }
    };
    let worker = Worker::load(&values, setup)?;
    let params = TagParams { strategy: TagStrategy::Hybrid, ..TagParams::default() };
    let runtime = runtime()?;
    let (photos, failed) = runtime.block_on(async {
        let run = worker.start(params).await?;
        Box::pin(examples(run, truth)).await
    })?;
    let folds = usize::from(args.folds);
    let Some(fitted) = fit_photos(Tagger::weights(), STRENGTH, &photos, folds) else {
        return Err(Error::new(
            ErrorKind::Config,
            format!(
                "{} photos are too few for {folds} parts, or all of their tags are right or wrong; tag more \
                 photos",
                photos.len()
            ),
        ));
    };
    let mut report = Report {
        photos: fitted.photos,
        failed,
        folds,
        before: fitted.before,
        after: fitted.after,
        standard_error: fitted.error,
        better: fitted.is_better(),
        weights: fitted.weights,
        written: None,
    };
    if let Some(path) = args.output.as_deref().filter(|_| report.better) {
        write(path, fitted.weights)?;
        report.written = Some(path.display().to_string());
    }
    print(&report.text(args.json, args.output.is_some())?)?;
    Ok(ExitCode::SUCCESS)
}

/// What speaks for the tags of each photo, and how many photos failed.
async fn examples(run: TagRun, truth: Vec<TruePhoto>) -> Result<(Vec<Vec<Example>>, usize)> {
    let vocabulary = run.tagger.vocabulary();
    let (mut photos, mut failed) = (Vec::new(), 0);
    for photo in truth {
        let tagged = match run.one(&photo.path).await {
            Ok(tagged) => tagged,
            Err(error) => {
                failed += 1;
                complain(&format!("{}: {error}", photo.path.display()));
                continue;
            }
        };
        let (given, _) = known(&run.tagger, &photo);
        let ids = vocabulary.tags().map(|(id, _)| id);
        // The others are in no answer, so their scores do not matter.
        let seen = ids.filter(|id| run.tagger.support(*id) != Some(Support::None));
        photos.push(seen.map(|id| (tagged.hints[id.index()], given.contains(&id))).collect());
    }
    Ok((photos, failed))
}

/// The file is complete at every moment.
fn write(path: &Path, weights: Weights) -> Result<()> {
    let text = json(&weights)?;
    let failed = |error: std::io::Error| {
        let detail = format!("{}: cannot be written ({error}); check the path", path.display());
        Error::new(ErrorKind::Io, detail)
    };
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let mut file = NamedTempFile::new_in(folder.unwrap_or(Path::new("."))).map_err(failed)?;
    file.write_all(text.as_bytes()).map_err(failed)?;
    file.persist(path).map(drop).map_err(|error| failed(error.error))
}

fn json(value: &impl Serialize) -> Result<String> {
    let text = serde_json::to_string(value).map(|text| text + "\n");
    text.map_err(|error| Error::internal("the weights cannot be written").with_source(error))
}

impl Report {
    fn text(&self, as_json: bool, wanted: bool) -> Result<String> {
        if as_json {
            return json(self);
        }
        let mut text = format!("photos {} (failed {})\n", self.photos, self.failed);
        let _ = writeln!(
            text,
            "held out, in {} parts: {:.3} nats a photo with the weights of cutline, {:.3} with fitted ones; \
             the difference is {:.3}, its standard error {:.3}",
            self.folds,
            self.before,
            self.after,
            self.before - self.after,
            self.standard_error
        );
        text.push_str("weights: ");
        text.push_str(&json(&self.weights)?);
        text.push_str(match (&self.written, self.better) {
            (Some(_), _) => "they are better, and are written\n",
            (None, true) => "they are better\n",
            (None, false) if wanted => "they are not better, and are not written\n",
            (None, false) => "they are not better\n",
        });
        Ok(text)
    }
}
