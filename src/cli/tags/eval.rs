//! `cutline tags eval`

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::{ArgMatches, Args, Command, FromArgMatches};
use serde::Serialize;

use super::truth::{self, TruePhoto, known};
use super::{HowArgs, Setup, TagRun, Worker};
use crate::captioner::{TagStrategy, Tagged};
use crate::cli::{complain, print, runtime, unparsed};
use crate::config::Values;
use cutline_error::{Error, ErrorKind, Result};
use cutline_tags::{Measures, Photo, TagId, measure, violations};

pub(super) const NAME: &str = "eval";

#[derive(Args)]
struct EvalArgs {
    /// One line per photo: {"path": "a.jpg", "tags": {"animals": ["dog"]}}, or a list of tags, or
    /// "captions" that people wrote
    #[arg(value_name = "TRUTH")]
    truth: PathBuf,
    /// Folder that the paths are relative to [default: that of the file]
    #[arg(long, value_name = "FOLDER")]
    photos: Option<PathBuf>,
    #[command(flatten)]
    how: HowArgs,
    /// Print a JSON object instead of a table
    #[arg(long)]
    json: bool,
}

pub(super) fn command() -> Command {
    EvalArgs::augment_args(Command::new(NAME))
        .about("Compares tags with those that people gave")
        .after_help(
            "With the strategy auto, the strategies caption, likelihood and hybrid are compared. Tags that \
             the vocabulary does not have are left out of the comparison, and counted.\n\n\
             Examples:\n  \
             cutline tags eval truth.jsonl --vocabulary shop.json\n  \
             cutline tags eval truth.jsonl --strategy likelihood --json",
        )
}

/// One of the measures.
type Measure = fn(&Measures) -> f64;

/// What is printed.
#[derive(Serialize)]
struct Report {
    photos: usize,
    failed: usize,
    /// Tags that the vocabulary does not have.
    unknown: usize,
    strategies: BTreeMap<&'static str, Measures>,
    milliseconds_per_photo: f64,
    ranking_milliseconds: f64,
    decoder_steps_per_photo: f64,
    most_decoder_steps: usize,
}

pub(super) fn run(matches: &ArgMatches) -> Result<ExitCode> {
    let args = EvalArgs::from_arg_matches(matches).map_err(unparsed)?;
    let params = args.how.params()?;
    let values = Values::of_command(matches)?;
    let setup = Setup::of(&values, args.how.vocabulary.as_deref())?;
    let folder = args.photos.clone().or_else(|| args.truth.parent().map(Path::to_owned));
    let truth = truth::read(&args.truth, &folder.unwrap_or_default())?;
    let worker = Worker::load(&values, setup)?;
    let runtime = runtime()?;
    let report = runtime.block_on(async {
        let run = worker.start(params).await?;
        Box::pin(evaluate(run, truth)).await
    })?;
    print(&report.text(args.json)?)?;
    Ok(ExitCode::SUCCESS)
}

async fn evaluate(run: TagRun, truth: Vec<TruePhoto>) -> Result<Report> {
    let vocabulary = run.tagger.vocabulary();
    let strategies: &[TagStrategy] = match run.params.strategy {
        TagStrategy::Auto => &[TagStrategy::Caption, TagStrategy::Likelihood, TagStrategy::Hybrid],
        one => &[one],
    };
    let mut photos: Vec<Vec<Photo>> = vec![Vec::new(); strategies.len()];
    let mut report = Report {
        photos: 0,
        failed: 0,
        unknown: 0,
        strategies: BTreeMap::new(),
        milliseconds_per_photo: 0.0,
        ranking_milliseconds: 0.0,
        decoder_steps_per_photo: 0.0,
        most_decoder_steps: 0,
    };
    for photo in truth {
        let begin = Instant::now();
        let tagged = match run.one(&photo.path).await {
            Ok(tagged) => tagged,
            Err(error) => {
                report.failed += 1;
                complain(&format!("{}: {error}", photo.path.display()));
                continue;
            }
        };
        report.photos += 1;
        report.milliseconds_per_photo += begin.elapsed().as_secs_f64() * 1e3;
        report.ranking_milliseconds += tagged.timings.ranking_ms;
        #[allow(clippy::cast_precision_loss)] // A few.
        {
            report.decoder_steps_per_photo += tagged.decoder_steps as f64;
        }
        report.most_decoder_steps = report.most_decoder_steps.max(tagged.decoder_steps);
        let (given, unknown) = known(&run.tagger, &photo);
        report.unknown += unknown;
        for (strategy, photos) in strategies.iter().zip(&mut photos) {
            photos.push(judged(&run, *strategy, &tagged, &given));
        }
    }
    if report.photos == 0 {
        return Err(Error::new(
            ErrorKind::Io,
            "no photo of the file could be tagged; check its paths, or give --photos FOLDER",
        ));
    }
    #[allow(clippy::cast_precision_loss)] // Fewer than 2^53.
    let count = report.photos as f64;
    report.milliseconds_per_photo /= count;
    report.ranking_milliseconds /= count;
    report.decoder_steps_per_photo /= count;
    for (strategy, photos) in strategies.iter().zip(&photos) {
        report.strategies.insert(strategy.as_str(), measure(vocabulary, photos));
    }
    Ok(report)
}

fn judged(run: &TagRun, strategy: TagStrategy, tagged: &Tagged, truth: &HashSet<TagId>) -> Photo {
    let (scored, chosen) = run.tagger.choice(&tagged.hints, strategy, &run.params);
    let vocabulary = run.tagger.vocabulary();
    let names = chosen.iter().map(|one| {
        let name = vocabulary.categories()[one.category].name();
        (name, one.tags.iter().map(|tag| vocabulary.tag(tag.tag).name()).collect())
    });
    Photo {
        truth: truth.clone(),
        violations: violations(vocabulary, run.params.k, names),
        chosen: chosen.iter().flat_map(|one| &one.tags).map(|tag| tag.tag).collect(),
        scored,
    }
}

impl Report {
    fn text(&self, json: bool) -> Result<String> {
        if json {
            let text = serde_json::to_string(self);
            return text.map(|text| text + "\n").map_err(|error| {
                Error::internal("the measures cannot be printed").with_source(error)
            });
        }
        let mut text = format!("photos {} (failed {})", self.photos, self.failed);
        let _ = writeln!(text, ", tags that the vocabulary does not have {}", self.unknown);
        let _ = write!(text, "{:16}", "");
        for name in self.strategies.keys() {
            let _ = write!(text, "{name:>12}");
        }
        text.push('\n');
        let measures: [(&str, Measure); 11] = [
            ("precision", |m| m.precision),
            ("recall", |m| m.recall),
            ("micro F1", |m| m.micro_f1),
            ("macro F1", |m| m.macro_f1),
            ("mAP", |m| m.map),
            ("precision at 1", |m| m.precision_at_1),
            ("precision at 5", |m| m.precision_at_5),
            ("recall at 5", |m| m.recall_at_5),
            ("coverage", |m| m.coverage),
            ("ECE", |m| m.ece),
            #[allow(clippy::cast_precision_loss)]
            ("violations", |m| m.violations as f64),
        ];
        for (name, value) in measures {
            let _ = write!(text, "{name:16}");
            for measures in self.strategies.values() {
                let _ = write!(text, "{:>12.3}", value(measures));
            }
            text.push('\n');
        }
        let _ = writeln!(
            text,
            "milliseconds a photo {:.1}, of these ranking {:.1}; decoder steps beyond the caption {:.2}, \
             at most {}",
            self.milliseconds_per_photo,
            self.ranking_milliseconds,
            self.decoder_steps_per_photo,
            self.most_decoder_steps
        );
        Ok(text)
    }
}
