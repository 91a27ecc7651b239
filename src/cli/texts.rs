//! `cutline score` and `cutline ask`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgMatches, Args, Command, FromArgMatches, ValueEnum};
use serde::Serialize;

use super::folder::inputs::{InputPhoto, Inputs, Search};
use super::folder::name;
use super::{FAILED, complain, options, print, runtime, tags, unparsed};
use crate::captioner::{
    Captioner, CaptionerSettings, Photo, QuestionParams, ScoreMode, Scored, TEXT_TOKENS, TextParams,
};
use crate::config::{self, Group, LogSettings, Values, captioner_settings};
use crate::engine::Ability;
use crate::telemetry::{self, Output as LogOutput};
use cutline_error::{Error, ErrorKind, Result};

pub(super) const SCORE: &str = "score";
pub(super) const ASK: &str = "ask";
const GROUPS: [Group; 3] = [Group::Model, Group::Images, Group::Logs];

/// Which photos are meant.
#[derive(Args)]
struct PhotoArgs {
    /// Images, folders, patterns like '*.jpg', or - for a list of paths on stdin
    #[arg(value_name = "PATH", required = true)]
    files: Vec<PathBuf>,
    /// Search subfolders too
    #[arg(short, long)]
    recursive: bool,
    /// Follow links in folders and patterns, as in lists
    #[arg(short = 'L', long)]
    follow_links: bool,
    /// text (path and results with tabs between) or jsonl
    #[arg(
        long,
        value_enum,
        value_name = "FORMAT",
        default_value = "text",
        hide_possible_values = true
    )]
    format: Format,
}

#[derive(Args)]
struct ScoreArgs {
    #[command(flatten)]
    photos: PhotoArgs,
    /// A text to compare with the photos; may be given several times
    #[arg(long, value_name = "TEXT")]
    text: Vec<String>,
    /// A file with a text in each line
    #[arg(long, value_name = "FILE")]
    texts: Option<PathBuf>,
    /// itm (the probability of a match), itc (the cosine of embeddings) or both
    #[arg(long, value_name = "MODE", default_value = "itm", value_parser = mode)]
    mode: ScoreMode,
    /// Cut texts to this many word pieces
    #[arg(long, value_name = "N")]
    max_text_tokens: Option<usize>,
}

#[derive(Args)]
struct AskArgs {
    #[command(flatten)]
    photos: PhotoArgs,
    /// A question about the photos; may be given several times
    #[arg(short, long, value_name = "QUESTION", required = true)]
    question: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Jsonl,
}

fn mode(text: &str) -> Result<ScoreMode, String> {
    text.parse().map_err(|error: Error| error.detail().to_owned())
}

pub(super) fn score_command() -> Command {
    settings(
        ScoreArgs::augment_args(Command::new(SCORE))
            .about("Says how well texts match photos")
            .after_help(
                "Examples:\n  \
                 cutline score --model Salesforce/blip-itm-base-coco cat.jpg --text 'a cat' --text 'a dog'\n  \
                 cutline score --model ./blip-itm -r Photos --texts captions.txt --mode both --format jsonl\n\n\
                 Prints path, score and text of every text, the best first. The score is the probability of \
                 a match, or with --mode itc the cosine of the embeddings. The model must be one that \
                 compares images with texts.",
            ),
    )
}

pub(super) fn ask_command() -> Command {
    let command = AskArgs::augment_args(Command::new(ASK))
        .about("Answers questions about photos")
        .after_help(
            "Examples:\n  \
             cutline ask --model Salesforce/blip-vqa-base cat.jpg -q 'how many cats are there?'\n  \
             cutline ask --model ./blip-vqa -r Photos -q 'is it day?' -q 'is it inside?' --format jsonl\n\n\
             Prints path, question and answer. The model must be one that answers questions.",
        );
    settings(options::with_answer_parameters(command))
}

fn settings(command: Command) -> Command {
    config::with_settings(command, &GROUPS).mut_args(|arg| {
        let is_setting = arg.get_env().is_some() || arg.get_long() == Some("env-file");
        arg.hide_short_help(is_setting)
    })
}

pub(super) fn score(matches: &ArgMatches) -> Result<ExitCode> {
    let args = ScoreArgs::from_arg_matches(matches).map_err(unparsed)?;
    let mut texts = args.text;
    if let Some(path) = &args.texts {
        let content = std::fs::read_to_string(path).map_err(|error| {
            let detail = format!("{} cannot be read ({error}); check it", path.display());
            Error::new(ErrorKind::Io, detail)
        })?;
        let lines = content.lines().filter(|line| !line.trim().is_empty());
        texts.extend(lines.map(str::to_owned));
    }
    if texts.is_empty() {
        return Err(Error::parameter("text", "there is no text; give --text or --texts"));
    }
    let [least, most] = TEXT_TOKENS;
    if args.max_text_tokens.is_some_and(|tokens| !(least..=most).contains(&tokens)) {
        let detail = format!("--max-text-tokens must be a whole number from {least} to {most}");
        return Err(Error::parameter("max_text_tokens", detail));
    }
    let params =
        TextParams { texts, mode: args.mode, max_text_tokens: args.max_text_tokens, model: None };
    let format = args.photos.format;
    each(matches, &args.photos, Ability::Score, async |captioner, photo, path| {
        let scored = captioner.score(photo, params.clone()).await?;
        if format == Format::Jsonl { row(path, &scored) } else { Ok(score_lines(path, &scored)) }
    })
}

pub(super) fn ask(matches: &ArgMatches) -> Result<ExitCode> {
    let args = AskArgs::from_arg_matches(matches).map_err(unparsed)?;
    let params = options::parameters(matches)?;
    let asked = QuestionParams { questions: args.question, params };
    let format = args.photos.format;
    each(matches, &args.photos, Ability::Answer, async |captioner, photo, path| {
        let answered = captioner.ask(photo, asked.clone()).await?;
        if format == Format::Jsonl {
            return row(path, &answered);
        }
        let path = name::line(path);
        let lines = answered
            .answers
            .iter()
            .map(|one| format!("{path}\t{}\t{}\n", one_line(&one.question), one_line(&one.answer)));
        Ok(lines.collect())
    })
}

/// Loads the model and prints what `work` says about each photo.
fn each(
    matches: &ArgMatches,
    args: &PhotoArgs,
    ability: Ability,
    work: impl AsyncFn(&Captioner, Photo, &Path) -> Result<String>,
) -> Result<ExitCode> {
    let search = Search { recursive: args.recursive, follow_links: args.follow_links };
    let inputs = Inputs::find(&args.files, search)?;
    for problem in inputs.problems.iter().chain(&inputs.unreadable()) {
        complain(problem);
    }
    let incomplete = inputs.incomplete();
    if inputs.photos.is_empty() {
        complain(&"there are no photos; check the paths");
        return Ok(ExitCode::from(if incomplete { FAILED } else { tags::NO_PHOTOS }));
    }
    let values = Values::of_command(matches)?;
    telemetry::start(LogSettings::for_command(&values)?, LogOutput::Stderr);
    let settings: CaptionerSettings = captioner_settings(&values)?;
    let captioner = Captioner::load(&settings)?;
    captioner.require(ability)?;
    let failed = runtime()?.block_on(async {
        let mut failed = false;
        for InputPhoto { path, .. } in inputs.photos {
            let bytes = tags::read(&path, settings.max_image_bytes);
            let result = match bytes {
                Ok(bytes) => Box::pin(work(&captioner, Photo::from(bytes), &path)).await,
                Err(error) => Err(error),
            };
            match result {
                Ok(text) => print(&text)?,
                Err(error) => {
                    failed = true;
                    complain(&format!("{}: {error}", name::line(&path)));
                }
            }
        }
        Ok::<bool, Error>(failed)
    })?;
    Ok(ExitCode::from(if failed || incomplete { FAILED } else { 0 }))
}

/// A line of `--format jsonl`.
fn row(path: &Path, result: &impl Serialize) -> Result<String> {
    #[derive(Serialize)]
    struct Row<'a, T> {
        path: &'a str,
        #[serde(flatten)]
        result: &'a T,
    }
    let json = serde_json::to_string(&Row { path: &name::text(path), result })
        .map_err(|error| Error::internal("a result cannot be written").with_source(error))?;
    Ok(json + "\n")
}

fn score_lines(path: &Path, scored: &Scored) -> String {
    let path = name::line(path);
    let line = |n: &usize| {
        let score = scored.scores.get(*n)?;
        let number = score.matching.or(score.similarity).unwrap_or_default();
        Some(format!("{path}\t{number:.4}\t{}\n", one_line(&score.text)))
    };
    scored.ranking.iter().filter_map(line).collect()
}

/// The text without characters that end a line or a column.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r', '\t'], " ")
}
