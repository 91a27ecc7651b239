//! `cutline tags check`

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{ArgMatches, Args, Command, FromArgMatches};
use serde::Serialize;

use super::{Setup, Worker};
use crate::captioner::{Support, TagParams, TagStrategy};
use crate::cli::{print, runtime, unparsed};
use crate::config::Values;
use cutline_error::{Error, Result};

pub(super) const NAME: &str = "check";

#[derive(Args)]
struct CheckArgs {
    /// The allowed tags: a file, JSON or lines of text, or library:NAME [default: TAG_VOCABULARY, or
    /// everyday tags]
    #[arg(value_name = "VOCABULARY")]
    vocabulary: Option<PathBuf>,
    /// Print JSON, one tag a line
    #[arg(long)]
    json: bool,
}

pub(super) fn command() -> Command {
    CheckArgs::augment_args(Command::new(NAME))
        .about("Lists whether the model knows the words of a vocabulary")
        .after_help(
            "support is none for words that were never in the captions of the model's training: their \
             scores mean nothing, and such tags are left out. It is low below 20 times, and unknown if the \
             model does not say. pieces are the word pieces of each name; one is cheapest.",
        )
}

#[derive(Serialize)]
struct Row<'a> {
    category: &'a str,
    tag: &'a str,
    support: &'static str,
    pieces: Vec<usize>,
}

pub(super) fn run(matches: &ArgMatches) -> Result<ExitCode> {
    let args = CheckArgs::from_arg_matches(matches).map_err(unparsed)?;
    let values = Values::of_command(matches)?;
    let setup = Setup::of(&values, args.vocabulary.as_deref())?;
    let worker = Worker::load(&values, setup)?;
    // Nothing is ranked here.
    let caption_only = TagParams { strategy: TagStrategy::Caption, ..TagParams::default() };
    let runtime = runtime()?;
    let run = runtime.block_on(worker.start(caption_only))?;
    let tagger = &run.tagger;
    let vocabulary = tagger.vocabulary();
    let mut text = String::new();
    let (mut none, mut low) = (0, 0);
    for (id, tag) in vocabulary.tags() {
        let support = tagger.support(id);
        none += usize::from(support == Some(Support::None));
        low += usize::from(support == Some(Support::Low));
        let row = Row {
            category: vocabulary.category(id).name(),
            tag: tag.name(),
            support: support.map_or("unknown", Support::as_str),
            pieces: tagger.pieces(id).collect(),
        };
        if args.json {
            text += &serde_json::to_string(&row)
                .map_err(|e| Error::internal("the list cannot be written").with_source(e))?;
            text.push('\n');
        } else {
            let pieces: Vec<String> = row.pieces.iter().map(usize::to_string).collect();
            let _ = writeln!(
                text,
                "{:7}  {}: {} ({})",
                row.support,
                row.category,
                row.tag,
                pieces.join(", ")
            );
        }
    }
    if !args.json {
        let _ = writeln!(
            text,
            "{} tags in {} categories: {none} without support, {low} with low support",
            vocabulary.len(),
            vocabulary.categories().len()
        );
    }
    print(&text)?;
    // Dropped inside the runtime, which then does not wait for the model's thread.
    runtime.block_on(async move { drop(run) });
    Ok(ExitCode::SUCCESS)
}
