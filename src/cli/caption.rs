//! `cutline caption`

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{ArgGroup, ArgMatches, Args, Command, FromArgMatches};
use cutline_library::Store;

use super::folder::destination::Destination;
use super::folder::inputs::{InputPhoto, Inputs, Search, SkipReason};
use super::folder::library::Library;
use super::folder::name;
use super::folder::output::Output;
use super::folder::progress::{PhotoCounts, ProgressReporter, Verbosity};
use super::folder::record::{FileStamp, OutputFormat};
use super::folder::resume::{FinishedPhotos, PhotoState, ResumeMode};
use super::folder::run::{CaptionRun, Places, RunEnd};
use super::folder::sidecar::{SidecarKind, SidecarName, Sidecars, remove_leftovers_of};
use super::signals::Signals;
use super::{FAILED, options, print, runtime, unparsed};
use crate::captioner::{CaptionParams, Captioner, CaptionerSettings, Style};
use crate::config::{
    self, Group, LogSettings, Values, captioner_settings, library_address, library_appearance,
};
use crate::engine::Ability;
use crate::prompts;
use crate::scheduler::VisionOrder;
use crate::telemetry::{self, Output as LogOutput};
use cutline_error::{Error, ErrorKind, Result};

pub(super) const NAME: &str = "caption";
/// There was nothing to do: the arguments stand for no photo.
const NO_PHOTOS: u8 = 3;
const GROUPS: [Group; 4] = [Group::Model, Group::Images, Group::Library, Group::Logs];

#[derive(Args)]
struct CaptionArgs {
    /// Images, folders, patterns like '*.jpg', or - for a list of paths on stdin
    #[arg(value_name = "PATH", required_unless_present = "stdin_image")]
    files: Vec<PathBuf>,
    /// Search subfolders too
    #[arg(short, long)]
    recursive: bool,
    /// Follow links in folders and patterns, as in lists
    #[arg(short = 'L', long)]
    follow_links: bool,
    /// Caption the one image on stdin
    #[arg(long, conflicts_with = "files")]
    stdin_image: bool,
    /// Caption at most this many photos; photos that are skipped do not count
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// text, tsv, jsonl, csv or json [default: as --output is named, or text]
    #[arg(long, value_enum, value_name = "FORMAT", hide_possible_values = true)]
    format: Option<OutputFormat>,
    /// Write to this file, photo by photo; - is stdout (the default)
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write a file next to each photo: txt, json or xmp
    #[arg(long, value_enum, value_name = "KIND", hide_possible_values = true)]
    sidecar: Option<SidecarKind>,
    /// Name it photo.jpg.txt (full, the default) or photo.txt (stem)
    #[arg(
        long,
        value_enum,
        value_name = "NAME",
        requires = "sidecar",
        hide_possible_values = true
    )]
    sidecar_name: Option<SidecarName>,
    /// Start alternative text with a capital letter
    #[arg(long, help_heading = "Captions")]
    capital: bool,
    /// End alternative text with a full stop
    #[arg(long, help_heading = "Captions")]
    full_stop: bool,
    /// Skip unchanged photos that are finished with these options (default)
    #[arg(long, requires = "saved")]
    resume: bool,
    /// Skip all photos that have a caption, whatever its options
    #[arg(long, requires = "saved", conflicts_with_all = ["resume", "overwrite"])]
    only_missing: bool,
    /// Caption all photos again; replaces --output, and sidecars of others
    #[arg(long, requires = "saved", conflicts_with = "resume")]
    overwrite: bool,
    /// Only print the paths that would be captioned
    #[arg(long)]
    dry_run: bool,
    /// Report only failures
    #[arg(short, long)]
    quiet: bool,
    /// Report each skipped file as well
    #[arg(short, long, conflicts_with = "quiet")]
    verbose: bool,
    /// Report progress as JSON, one object per line, on stderr
    #[arg(long, conflicts_with_all = ["quiet", "verbose"])]
    json_progress: bool,
}

pub(super) fn command() -> Command {
    let command = Command::new(NAME)
        .about("Captions image files and folders")
        .after_help(
            "Examples:\n  \
             cutline caption holiday.jpg\n  \
             cutline caption -r Photos --output captions.jsonl\n  \
             cutline caption -r Photos --sidecar xmp --style alt_text\n  \
             cutline caption -r Photos --library sqlite:photos.db\n  \
             find . -newer mark -print0 | cutline caption - --output new.csv\n  \
             cutline caption --prompt \"a photo of\" --do-sample --seed 7 holiday.jpg\n\n\
             To continue after an interruption, run the same command again. The exit status is 0 on \
             success, 1 if some photos have no caption, 2 if the command was wrong, 3 if there are no \
             photos, 130 after Ctrl-C.",
        );
    let command = CaptionArgs::augment_args(command)
        .group(ArgGroup::new("saved").args(["output", "sidecar", "library"]).multiple(true));
    // -h fits a screen; --help lists the settings and rare parameters as well.
    config::with_settings(options::with_parameters(command), &GROUPS).mut_args(|arg| {
        let is_setting = arg.get_env().is_some() || arg.get_long() == Some("env-file");
        let is_rare = arg.get_long().is_some_and(|long| RARE.contains(&long));
        arg.hide_short_help(is_setting || is_rare)
    })
}

/// Options of captions that few people need.
const RARE: [&str; 8] = [
    "variables",
    "user",
    "min-new-tokens",
    "top-k",
    "top-p",
    "repetition-penalty",
    "length-penalty",
    "no-repeat-ngram-size",
];

pub(super) fn run(matches: &ArgMatches) -> Result<ExitCode> {
    let params = parameters(matches)?;
    let args = CaptionArgs::from_arg_matches(matches).map_err(unparsed)?;
    args.check_sidecar(params.style)?;
    let values = Values::of_command(matches)?;
    telemetry::start(LogSettings::for_command(&values)?, LogOutput::Stderr);
    // No one waits for a particular photo, so large batches are best.
    let settings = CaptionerSettings {
        vision_order: VisionOrder::AllFirst,
        appearance: library_appearance(&values)?,
        ..captioner_settings(&values)?
    };
    let mut inputs = if args.stdin_image {
        Inputs::of_stdin(settings.max_image_bytes)?
    } else {
        Inputs::find(&args.files, args.search())?
    };
    let photos = std::mem::take(&mut inputs.photos);
    if photos.is_empty() {
        return Ok(ExitCode::from(no_photos(&inputs, args.verbosity())));
    }
    let (output, finished) = args.open(&photos)?;
    let sidecars = args.sidecars(&photos);
    // Opened first: a model takes time to load.
    let store = args.library(&values)?;
    let params = match &store {
        Some(store) => prompts::resolve(&**store, &params, "command line", None)?,
        None => {
            params.check_recipe()?;
            params
        }
    };
    args.check_sidecar(params.style)?;
    let captioner = Captioner::load(&settings)?;
    captioner.require(Ability::Caption)?;

    let parameters = captioner.fingerprint(&params);
    let library = store.map(|store| Library::new(store, captioner.info(), &params, &parameters));
    let Unfinished { photos, refused, mut counts } =
        args.unfinished(photos, &finished, sidecars.as_ref(), library.as_ref(), &parameters)?;
    counts.add_skipped(&inputs);
    if args.dry_run {
        return dry_run(&photos, &refused, &inputs, counts, args.verbosity());
    }
    if sidecars.is_some() {
        remove_leftovers_of(&photos);
    }
    let max_bytes = settings.max_image_bytes;
    let run = CaptionRun::new(captioner, params, max_bytes, sidecars, args.overwrite);
    let run = if library.is_some() { run.with_colors() } else { run };
    let saves = args.saves() || library.is_some();
    let places = Places { output, library };
    let mut progress = ProgressReporter::new(args.verbosity(), counts);
    report_inputs(&inputs, args.verbosity(), &progress);
    report_refused(&refused, &mut progress);
    let runtime = runtime()?;
    let end = runtime.block_on(async {
        // Dropped inside the runtime, which then does not wait for the model's thread.
        let run = run;
        let signals = Signals::new()?;
        Box::pin(run.run(photos, places, &mut progress, signals)).await
    });
    // After a second signal there may be work that no one waits for.
    runtime.shutdown_background();
    Ok(ExitCode::from(finish(end?, &inputs, &mut progress, saves)))
}

fn parameters(matches: &ArgMatches) -> Result<CaptionParams> {
    let mut params = options::parameters(matches)?;
    params.capital = matches.get_flag("capital");
    params.full_stop = matches.get_flag("full_stop");
    if (params.capital || params.full_stop) && params.style != Style::AltText {
        return Err(Error::parameter(
            "style",
            "--capital and --full-stop are for alternative text; give --style alt_text with them",
        ));
    }
    Ok(params)
}

impl CaptionArgs {
    /// XMP has no place for a post, and its titles and keywords are often a person's.
    fn check_sidecar(&self, style: Style) -> Result<()> {
        if self.sidecar == Some(SidecarKind::Xmp)
            && !matches!(style, Style::Caption | Style::AltText)
        {
            return Err(Error::parameter(
                "style",
                "XMP sidecars hold captions and alternative texts; give --style caption or alt_text with \
                 them, or --sidecar txt or json",
            ));
        }
        Ok(())
    }

    fn mode(&self) -> ResumeMode {
        match (self.overwrite, self.only_missing) {
            (true, _) => ResumeMode::Overwrite,
            (_, true) => ResumeMode::OnlyMissing,
            _ => ResumeMode::Resume,
        }
    }

    fn verbosity(&self) -> Verbosity {
        match (self.quiet, self.verbose, self.json_progress) {
            (true, ..) => Verbosity::Quiet,
            (_, true, _) => Verbosity::Verbose,
            (.., true) => Verbosity::Json,
            _ => Verbosity::Normal,
        }
    }

    fn search(&self) -> Search {
        Search { recursive: self.recursive, follow_links: self.follow_links }
    }

    /// Whether the results outlive the run, in files.
    fn saves(&self) -> bool {
        let is_file = |path| matches!(Destination::of(path), Ok(Destination::File(_)));
        self.sidecar.is_some() || self.output.as_deref().is_some_and(is_file)
    }

    /// Where rows are written, and what earlier runs wrote. Sidecars alone need no rows.
    fn open(&self, photos: &[InputPhoto]) -> Result<(Option<Output>, FinishedPhotos)> {
        let format = self.format.unwrap_or_else(|| {
            self.output.as_deref().map_or(OutputFormat::Text, OutputFormat::of_path)
        });
        let destination = match (&self.output, self.sidecar) {
            (Some(path), _) => Destination::of(path)?,
            (None, None) => Destination::Stdout,
            (None, Some(_)) => return Ok((None, FinishedPhotos::new(None, false))),
        };
        if let Destination::File(path) = &destination {
            refuse_photo(path, photos)?;
        }
        let (output, entries) = match &destination {
            Destination::File(path) if self.dry_run && !self.overwrite => {
                (None, Some(Output::read(path, format, photos)?))
            }
            _ if self.dry_run => (None, None),
            _ => {
                let (output, entries) = Output::open(&destination, format, self.overwrite, photos)?;
                (Some(output), entries)
            }
        };
        Ok((output, FinishedPhotos::new(entries, true)))
    }

    fn sidecars(&self, photos: &[InputPhoto]) -> Option<Sidecars> {
        let naming = self.sidecar_name.unwrap_or_default();
        let mut sidecars = Sidecars::new(self.sidecar?, naming, photos);
        if let Some(output) = &self.output {
            sidecars.reserve(output);
        }
        Some(sidecars)
    }

    /// The library, if one is named. A rehearsal makes none.
    fn library(&self, values: &Values) -> Result<Option<Arc<dyn Store>>> {
        let Some(address) = library_address(values)? else { return Ok(None) };
        if self.dry_run && !cutline_library::exists(&address)? {
            return Ok(None);
        }
        cutline_library::open(&address).map(Some)
    }

    /// The photos that are left to caption, and the numbers of those and of the finished ones.
    fn unfinished(
        &self,
        photos: Vec<InputPhoto>,
        finished: &FinishedPhotos,
        sidecars: Option<&Sidecars>,
        library: Option<&Library>,
        parameters: &str,
    ) -> Result<Unfinished> {
        let mut unfinished = Unfinished::default();
        for photo in photos {
            let stamp = FileStamp::of(&photo.path, parameters);
            let state = finished.state(&photo, stamp.as_ref(), sidecars, self.mode());
            match self.with_library(state, library, &photo, stamp.as_ref())? {
                PhotoState::Finished => unfinished.counts.known += 1,
                PhotoState::Refused(error) => unfinished.refused.push((photo, error)),
                PhotoState::Due if unfinished.photos.len() < self.limit.unwrap_or(usize::MAX) => {
                    unfinished.photos.push(photo);
                }
                PhotoState::Due => {}
            }
        }
        unfinished.counts.total = unfinished.photos.len() + unfinished.refused.len();
        Ok(unfinished)
    }

    /// A photo is finished if it is so in files, if there are any, and in the library, if there is one.
    fn with_library(
        &self,
        state: PhotoState,
        library: Option<&Library>,
        photo: &InputPhoto,
        stamp: Option<&FileStamp>,
    ) -> Result<PhotoState> {
        let Some(library) = library else { return Ok(state) };
        let decided = match state {
            PhotoState::Refused(_) => return Ok(state),
            PhotoState::Finished => true,
            PhotoState::Due => !self.saves(),
        };
        let finished = decided && library.is_finished(photo, stamp, self.mode())?;
        Ok(if finished { PhotoState::Finished } else { PhotoState::Due })
    }
}

/// The photos that no earlier run finished.
#[derive(Default)]
struct Unfinished {
    photos: Vec<InputPhoto>,
    /// Photos whose captions could not be written, and why.
    refused: Vec<(InputPhoto, Error)>,
    counts: PhotoCounts,
}

/// Whoever names a photo as the output has mistyped, or a pattern after `-o` named several files. Results
/// are texts, so no other data is replaced either, not even with `--overwrite`.
fn refuse_photo(output: &Path, photos: &[InputPhoto]) -> Result<()> {
    let Ok(target) = output.canonicalize() else { return Ok(()) };
    let is_target =
        |photo: &&InputPhoto| photo.path.canonicalize().is_ok_and(|path| path == target);
    if photos.iter().find(is_target).is_some() {
        let detail = format!("{}: is one of the photos; give another --output", name::line(output));
        return Err(Error::new(ErrorKind::Config, detail));
    }
    if is_binary(&target) {
        let detail = format!(
            "{}: is not a text file, so it cannot hold results of cutline; give another --output",
            name::line(output)
        );
        return Err(Error::new(ErrorKind::Config, detail));
    }
    Ok(())
}

/// Whether a regular file begins like binary data: no text has a zero byte, and images, videos, archives
/// and databases have one in their first bytes. Devices and pipes are not read.
fn is_binary(path: &Path) -> bool {
    let start = || {
        let mut start = Vec::new();
        File::open(path)?.take(1024).read_to_end(&mut start)?;
        Ok::<_, io::Error>(start)
    };
    // A file that cannot be read is reported when it is opened as the output.
    path.is_file() && start().is_ok_and(|start| start.contains(&0))
}

fn report_refused(refused: &[(InputPhoto, Error)], progress: &mut ProgressReporter) {
    for (photo, error) in refused {
        progress.failed(&photo.name(), error.kind().code(), error.detail());
    }
}

/// Reports what was skipped and what was not found.
fn report_inputs(inputs: &Inputs, verbosity: Verbosity, progress: &ProgressReporter) {
    if verbosity == Verbosity::Verbose {
        for (path, reason) in &inputs.skipped {
            progress.note(&format!("{}: skipped: it {reason}", name::line(path)));
        }
    }
    for problem in inputs.problems.iter().chain(&inputs.unreadable()) {
        progress.problem(problem);
    }
}

/// Reports that there is nothing to do, and returns the exit status. The output stays as it is.
fn no_photos(inputs: &Inputs, verbosity: Verbosity) -> u8 {
    let mut counts = PhotoCounts::default();
    counts.add_skipped(inputs);
    let mut progress = ProgressReporter::new(verbosity, counts);
    report_inputs(inputs, verbosity, &progress);
    let status = if inputs.incomplete() { FAILED } else { NO_PHOTOS };
    if status == NO_PHOTOS {
        let remedy = if inputs.skipped(SkipReason::Folder) > 0 {
            "give --recursive to search subfolders"
        } else if inputs.skipped(SkipReason::Link) > 0 {
            "give --follow-links to follow links"
        } else {
            "check the paths"
        };
        progress.problem(&format!("there are no photos to caption; {remedy}"));
    }
    progress.end(status, false, &inputs.skipped_summary());
    status
}

fn dry_run(
    photos: &[InputPhoto],
    refused: &[(InputPhoto, Error)],
    inputs: &Inputs,
    counts: PhotoCounts,
    verbosity: Verbosity,
) -> Result<ExitCode> {
    let mut progress = ProgressReporter::new(verbosity, PhotoCounts::default());
    report_inputs(inputs, verbosity, &progress);
    report_refused(refused, &mut progress);
    let paths: String = photos.iter().map(|photo| photo.name() + "\n").collect();
    print(&paths)?;
    let mut summary = format!("{} would be captioned", photos.len());
    if counts.known > 0 {
        summary += &format!(", {} there already", counts.known);
    }
    let skipped = inputs.skipped_summary();
    if !skipped.is_empty() {
        summary += &format!("; skipped: {skipped}");
    }
    progress.note(&summary);
    let done = !inputs.incomplete() && refused.is_empty();
    Ok(ExitCode::from(if done { 0 } else { FAILED }))
}

/// Reports the end of the run, and returns the exit status.
fn finish(end: RunEnd, inputs: &Inputs, progress: &mut ProgressReporter, saves: bool) -> u8 {
    let failed = progress.counts().failed > 0 || inputs.incomplete();
    let status = match end {
        RunEnd::Interrupted(status) => status,
        RunEnd::ReaderLeft => return 0,
        RunEnd::Done if failed => FAILED,
        RunEnd::Done => 0,
    };
    progress.end(status, saves, &inputs.skipped_summary());
    if matches!(end, RunEnd::Interrupted(_)) {
        let PhotoCounts { total, captioned, failed, .. } = progress.counts();
        let left = total.saturating_sub(captioned + failed);
        let remedy = if saves {
            "run the same command again to continue"
        } else {
            "with --output FILE or --sidecar KIND, the same command could continue from here"
        };
        progress.note(&format!("interrupted: {left} of {total} photos are left; {remedy}"));
    }
    status
}
