//! `cutline tags`, and its commands.

mod check;
mod eval;
mod fit;
mod truth;
mod vocabulary;

use std::collections::VecDeque;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{ArgMatches, Args, Command, FromArgMatches, ValueEnum};
use serde::Serialize;
use tokio::task::JoinHandle;

use super::folder::inputs::{InputPhoto, Inputs, Search};
use super::folder::name;
use super::{FAILED, complain, print, runtime, unparsed};
use crate::captioner::{
    Captioner, CaptionerSettings, NearTags, Photo, TagParams, TagStrategy, Tagged, Tagger,
};
use crate::config::{
    self, Group, LogSettings, Values, captioner_settings, library_address, tag_vocabulary,
    tag_weights, vocabulary_source,
};
use crate::engine::Ability;
use crate::near_tags::LibraryTags;
use crate::scheduler::VisionOrder;
use crate::telemetry::{self, Output as LogOutput};
use crate::vocabularies;
use cutline_error::{Error, ErrorKind, Result};
use cutline_library::Store;
use cutline_tags::{Vocabulary, Weights};

pub(super) const NAME: &str = "tags";
/// There was nothing to do: the arguments stand for no photo.
pub(super) const NO_PHOTOS: u8 = 3;
const GROUPS: [Group; 5] = [Group::Model, Group::Images, Group::Library, Group::Tags, Group::Logs];

#[derive(Args)]
struct TagsArgs {
    /// Images, folders, patterns like '*.jpg', or - for a list of paths on stdin
    #[arg(value_name = "PATH", required = true)]
    files: Vec<PathBuf>,
    /// Search subfolders too
    #[arg(short, long)]
    recursive: bool,
    /// Follow links in folders and patterns, as in lists
    #[arg(short = 'L', long)]
    follow_links: bool,
    #[command(flatten)]
    how: HowArgs,
    /// text (path, tab, tags) or jsonl
    #[arg(
        long,
        value_enum,
        value_name = "FORMAT",
        default_value = "text",
        hide_possible_values = true
    )]
    format: Format,
    /// Say why, in jsonl
    #[arg(long)]
    explain: bool,
}

/// How tags are found.
#[derive(Args)]
struct HowArgs {
    /// The allowed tags: a file, JSON or lines of text, or library:NAME [default: TAG_VOCABULARY, or
    /// everyday tags]
    #[arg(long, value_name = "FILE")]
    vocabulary: Option<PathBuf>,
    /// auto, hybrid, caption, likelihood or similarity
    #[arg(long, value_name = "NAME", default_value = "auto", value_parser = strategy)]
    strategy: TagStrategy,
    /// Tags of a category at most [default: as the vocabulary says, or 5]
    #[arg(short, value_name = "N")]
    k: Option<usize>,
    /// The least score, 0 to 1
    #[arg(long, value_name = "SCORE")]
    min_score: Option<f32>,
    /// Consider tags whose words the model never saw
    #[arg(long)]
    unsupported: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Jsonl,
}

fn strategy(text: &str) -> Result<TagStrategy, String> {
    text.parse().map_err(|error: Error| error.detail().to_owned())
}

pub(super) fn command() -> Command {
    let command = TagsArgs::augment_args(Command::new(NAME))
        .about("Tags photos with words of an allowed list")
        .args_conflicts_with_subcommands(true)
        .subcommand_negates_reqs(true)
        .after_help(
            "Examples:\n  \
             cutline tags holiday.jpg\n  \
             cutline tags -r Photos --vocabulary shop.json --format jsonl\n  \
             cutline tags check shop.json         does the model know the words?\n  \
             cutline tags eval truth.jsonl        how good are the tags?\n  \
             cutline tags fit truth.jsonl         scores that fit these photos\n  \
             cutline tags vocabulary list         vocabularies of the library\n\n\
             A vocabulary is JSON, {\"categories\": [{\"name\": \"animals\", \"tags\": [\"dog\"]}]}, or lines of \
             text: [animals], then a tag a line, with synonyms after a colon. The exit status is 0 on \
             success, 1 if some photos have no tags because they failed, 2 if the command was wrong, 3 if \
             there are no photos.",
        );
    let settings = |command| {
        config::with_settings(command, &GROUPS).mut_args(|arg| {
            let is_setting = arg.get_env().is_some() || arg.get_long() == Some("env-file");
            arg.hide_short_help(is_setting)
        })
    };
    let with_model = [check::command(), eval::command(), fit::command()].map(settings);
    settings(command).subcommands(with_model).subcommand(vocabulary::command())
}

pub(super) fn run(matches: &ArgMatches) -> Result<ExitCode> {
    match matches.subcommand() {
        Some((check::NAME, matches)) => return check::run(matches),
        Some((fit::NAME, matches)) => return fit::run(matches),
        Some((vocabulary::NAME, matches)) => return vocabulary::run(matches),
        Some((_, matches)) => return eval::run(matches),
        None => {}
    }
    let args = TagsArgs::from_arg_matches(matches).map_err(unparsed)?;
    let params = TagParams { explain: args.explain, ..args.how.params()? };
    let values = Values::of_command(matches)?;
    let setup = Setup::of(&values, args.how.vocabulary.as_deref())?;
    let search = Search { recursive: args.recursive, follow_links: args.follow_links };
    let inputs = Inputs::find(&args.files, search)?;
    for problem in inputs.problems.iter().chain(&inputs.unreadable()) {
        complain(problem);
    }
    if inputs.photos.is_empty() {
        complain(&"there are no photos to tag; check the paths");
        return Ok(ExitCode::from(if inputs.incomplete() { FAILED } else { NO_PHOTOS }));
    }
    let incomplete = inputs.incomplete();
    let worker = Worker::load(&values, setup)?;
    let runtime = runtime()?;
    let failed = runtime.block_on(async {
        let run = worker.start(params).await?;
        Box::pin(run.all(inputs.photos, args.format)).await
    })?;
    Ok(ExitCode::from(if failed || incomplete { FAILED } else { 0 }))
}

impl HowArgs {
    fn params(&self) -> Result<TagParams> {
        let params = TagParams {
            strategy: self.strategy,
            k: self.k,
            min_score: self.min_score,
            explain: false,
            unsupported: self.unsupported,
            weights: None,
        };
        params.validate()?;
        Ok(params)
    }
}

/// What is known before the model is loaded, which takes time.
struct Setup {
    vocabulary: Vocabulary,
    weights: Option<Weights>,
    store: Option<Arc<dyn Store>>,
}

impl Setup {
    /// With the vocabulary that is named, or the one of the settings, or the everyday tags.
    fn of(values: &Values, path: Option<&Path>) -> Result<Self> {
        let source = match path {
            Some(path) => Some(vocabulary_source(path)?),
            None => tag_vocabulary(values)?,
        };
        let address = library_address(values)?;
        let store = address.map(|address| cutline_library::open(&address)).transpose()?;
        let vocabulary = match source {
            Some(source) => vocabularies::of_source(source, store.as_deref())?,
            None => Tagger::everyday()?,
        };
        Ok(Self { vocabulary, weights: tag_weights(values)?, store })
    }
}

/// A loaded model.
struct Worker {
    captioner: Captioner,
    max_bytes: usize,
    setup: Setup,
}

impl Worker {
    fn load(values: &Values, setup: Setup) -> Result<Self> {
        telemetry::start(LogSettings::for_command(values)?, LogOutput::Stderr);
        let settings = CaptionerSettings {
            vision_order: VisionOrder::AllFirst,
            ..captioner_settings(values)?
        };
        let captioner = Captioner::load(&settings)?;
        captioner.require(Ability::Caption)?;
        Ok(Self { captioner, max_bytes: settings.max_image_bytes, setup })
    }

    async fn start(self, params: TagParams) -> Result<TagRun> {
        let Self { captioner, max_bytes, setup: Setup { vocabulary, weights, store } } = self;
        let params = TagParams { weights, ..params };
        let tagger = captioner.tagger(vocabulary).await?;
        captioner.warm_tagger(&tagger, &params).await?;
        let near = store.map(|store| Arc::new(LibraryTags::new(store)) as Arc<dyn NearTags>);
        Ok(TagRun { captioner, max_bytes, near, tagger, params })
    }
}

/// Tags photos with one vocabulary. Cheap to clone.
#[derive(Clone)]
struct TagRun {
    captioner: Captioner,
    max_bytes: usize,
    near: Option<Arc<dyn NearTags>>,
    tagger: Tagger,
    params: TagParams,
}

/// A line of `--format jsonl`.
#[derive(Serialize)]
struct Row<'a> {
    path: &'a str,
    #[serde(flatten)]
    tagged: &'a Tagged,
}

impl TagRun {
    /// Tags photos, several at a time, and prints them in order. Returns whether some failed.
    async fn all(self, photos: Vec<InputPhoto>, format: Format) -> Result<bool> {
        let status = self.captioner.status();
        let busy = status.max_batch_size.saturating_add(self.captioner.decoders().workers());
        let at_once = busy.min(status.queue_capacity / 2).max(1);
        let mut photos = photos.into_iter();
        let mut pending: VecDeque<(PathBuf, JoinHandle<Result<Tagged>>)> = VecDeque::new();
        let mut failed = false;
        loop {
            while pending.len() < at_once {
                let Some(photo) = photos.next() else { break };
                let (path, run) = (photo.path.clone(), self.clone());
                pending.push_back((path, tokio::spawn(async move { run.one(&photo.path).await })));
            }
            let Some((path, task)) = pending.pop_front() else { return Ok(failed) };
            let tagged = task.await.unwrap_or_else(|join| {
                Err(Error::internal("tagging crashed, which is a defect").with_source(join))
            });
            match tagged {
                Ok(tagged) => print(&line(&path, &tagged, format)?)?,
                Err(error) => {
                    failed = true;
                    complain(&format!("{}: {error}", name::line(&path)));
                }
            }
        }
    }

    async fn one(&self, path: &Path) -> Result<Tagged> {
        let (path, max_bytes) = (path.to_owned(), self.max_bytes);
        let reading = tokio::task::spawn_blocking(move || read(&path, max_bytes));
        let bytes = reading
            .await
            .map_err(|join| Error::internal("reading crashed").with_source(join))??;
        let photo = Photo::from(bytes);
        Box::pin(self.captioner.tag(photo, &self.tagger, &self.params, self.near.clone())).await
    }
}

pub(super) fn read(path: &Path, max_bytes: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let opened = File::open(path);
    let read = opened.and_then(|file| file.take(max_bytes as u64 + 1).read_to_end(&mut bytes));
    read.map_err(|error| {
        Error::new(ErrorKind::Io, format!("the file cannot be read ({error}); check it"))
    })?;
    if bytes.len() > max_bytes {
        Err(crate::captioner::image_too_large(max_bytes))
    } else {
        Ok(bytes)
    }
}

fn line(path: &Path, tagged: &Tagged, format: Format) -> Result<String> {
    if format == Format::Jsonl {
        let row = Row { path: &name::text(path), tagged };
        let json = serde_json::to_string(&row)
            .map_err(|error| Error::internal("the tags cannot be written").with_source(error))?;
        return Ok(json + "\n");
    }
    let tags = tagged.tags.0.iter().flat_map(|(_, tags)| tags).map(|tag| tag.tag.as_str());
    Ok(format!("{}\t{}\n", name::line(path), tags.collect::<Vec<_>>().join(", ")))
}
