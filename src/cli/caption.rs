//! `cutline caption`

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgGroup, ArgMatches, Command, value_parser};

use super::folder::inputs::{Inputs, Photo};
use super::folder::output::Output;
use super::folder::plan::{Known, Mode};
use super::folder::progress::{Counts, Progress, Tell, skipped};
use super::folder::record::{Format, Stamp};
use super::folder::results::Results;
use super::folder::sidecar::{Kind, Sidecars};
use super::folder::work::{End, Work};
use super::signals::Signals;
use super::{FAILED, options, print, runtime};
use crate::captioner::{CaptionParams, Captioner, CaptionerSettings, Style};
use crate::config::{Group, LogSettings, captioner_settings};
use crate::scheduler::VisionOrder;
use crate::telemetry::{self, Output as LogOutput};
use cutline_error::{Error, Result};
use cutline_xmp::Existing;

pub(super) const NAME: &str = "caption";
const GROUPS: [Group; 3] = [Group::Model, Group::Images, Group::Logs];

pub(super) fn command() -> Command {
    let command = Command::new(NAME)
        .about("Captions image files and folders of them")
        .args(inputs())
        .args(outputs())
        .args(again())
        .args(told())
        .group(ArgGroup::new("kept").args(["output", "sidecar"]).multiple(true))
        .after_help(
            "Examples:\n  \
             cutline caption holiday.jpg\n  \
             cutline caption -r Photos --output captions.jsonl\n  \
             cutline caption -r Photos --sidecar xmp --style alt_text\n  \
             find . -newer mark -print0 | cutline caption - --output new.csv\n  \
             cutline caption --prompt \"a photo of\" --do-sample --seed 7 holiday.jpg\n\n\
             Run the same command again to go on after a break. The exit status is 0 if all went \
             well, 1 if some failed, 2 if the command was wrong, 130 after Ctrl-C.",
        );
    let settings = GROUPS.map(Group::title);
    // -h fits a screen; --help lists the settings too.
    options::with_settings(options::with_parameters(command), &GROUPS).mut_args(|argument| {
        let is_setting = argument.get_help_heading().is_some_and(|it| settings.contains(&it));
        argument.hide_short_help(is_setting)
    })
}

fn inputs() -> [Arg; 4] {
    [
        Arg::new("files")
            .value_name("PATH")
            .help("Images, folders, patterns like '*.jpg', or - for a list of paths on stdin")
            .value_parser(value_parser!(PathBuf))
            .num_args(1..)
            .required_unless_present("stdin_image"),
        flag("recursive", "Look into the folders in folders").short('r'),
        flag("stdin_image", "Caption the one image that comes on stdin").conflicts_with("files"),
        Arg::new("limit")
            .long("limit")
            .value_name("N")
            .help("Stop after so many photos; those that are done already do not count")
            .value_parser(value_parser!(usize)),
    ]
}

fn outputs() -> [Arg; 5] {
    [
        Arg::new("format")
            .long("format")
            .value_name("FORMAT")
            .help("text, jsonl, csv or json [default: by the ending of --output, or text]")
            .value_parser(PossibleValuesParser::new(Format::NAMES))
            .hide_possible_values(true),
        Arg::new("output")
            .long("output")
            .short('o')
            .value_name("FILE")
            .help("Write to this file, photo by photo, instead of stdout")
            .value_parser(value_parser!(PathBuf)),
        Arg::new("sidecar")
            .long("sidecar")
            .value_name("KIND")
            .help("Write beside each photo: txt, json or xmp, as photo.jpg.txt and so on")
            .value_parser(PossibleValuesParser::new(Kind::NAMES))
            .hide_possible_values(true),
        flag("capital", "Start alt text with a capital letter").help_heading("Captions"),
        flag("full_stop", "End alt text with a full stop").help_heading("Captions"),
    ]
}

/// What is done about photos that were done before.
fn again() -> [Arg; 4] {
    [
        flag("resume", "Skip what was done of the same file with the same options (the default)")
            .requires("kept"),
        flag("only_missing", "Skip whatever has a caption, made with whatever options")
            .requires("kept")
            .conflicts_with_all(["resume", "overwrite"]),
        flag("overwrite", "Do everything anew; what is in --output is thrown away")
            .requires("kept")
            .conflicts_with("resume"),
        flag("dry_run", "Print the paths that would be captioned, and do nothing"),
    ]
}

fn told() -> [Arg; 3] {
    [
        flag("quiet", "Tell only of what failed").short('q'),
        flag("verbose", "Tell also of each file that is skipped")
            .short('v')
            .conflicts_with("quiet"),
        flag("json_progress", "Tell everything as JSON, an object a line, on stderr")
            .conflicts_with_all(["quiet", "verbose"]),
    ]
}

fn flag(name: &'static str, help: &'static str) -> Arg {
    let option = match name {
        "stdin_image" => "stdin-image",
        "full_stop" => "full-stop",
        "only_missing" => "only-missing",
        "dry_run" => "dry-run",
        "json_progress" => "json-progress",
        name => name,
    };
    Arg::new(name).long(option).help(help).action(ArgAction::SetTrue)
}

pub(super) fn run(matches: &ArgMatches) -> Result<ExitCode> {
    let params = parameters(matches)?;
    let values = options::values(matches, &GROUPS)?;
    telemetry::start(LogSettings::for_command(&values)?, LogOutput::Stderr);
    // Nobody waits for one of the photos, so whole batches are best.
    let settings =
        CaptionerSettings { vision_order: VisionOrder::AllFirst, ..captioner_settings(&values)? };
    let mut inputs = if matches.get_flag("stdin_image") {
        Inputs::of_stdin(settings.max_image_bytes)?
    } else {
        let files = matches.get_many::<PathBuf>("files").unwrap_or_default();
        Inputs::find(files, matches.get_flag("recursive"))?
    };
    let photos = std::mem::take(&mut inputs.photos);
    let asked = Asked::new(matches, &photos);
    let (output, known) = asked.open()?;
    let captioner = Captioner::load(&settings)?;

    let existing = match asked.mode {
        Mode::Overwrite => Existing::Replace,
        Mode::Resume | Mode::OnlyMissing => Existing::Keep,
    };
    let parameters = captioner.fingerprint(&params);
    let (photos, mut counts) = asked.left(photos, &known, &parameters);
    counts.skipped = inputs.skipped.len();
    if asked.dry_run {
        return dry_run(&photos, &inputs, counts, asked.tell);
    }
    let always = asked.kept();
    let Asked { sidecars, tell, .. } = asked;
    let sidecars = sidecars.map(|sidecars| (sidecars, existing));
    let work = Work::new(captioner, params, settings.max_image_bytes, sidecars);
    let mut progress = Progress::new(tell, counts);
    tell_of(&inputs, tell, &progress);
    let runtime = runtime()?;
    let end = runtime.block_on(async {
        let signals = Signals::new()?;
        Box::pin(work.run(photos, output, &mut progress, signals)).await
    })?;
    Ok(ExitCode::from(finish(end, &inputs, &mut progress, always)))
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

/// Where results go and what counts as done.
struct Asked {
    format: Format,
    output: Option<PathBuf>,
    sidecars: Option<Sidecars>,
    mode: Mode,
    limit: usize,
    dry_run: bool,
    tell: Tell,
}

impl Asked {
    fn new(matches: &ArgMatches, photos: &[Photo]) -> Self {
        let output = matches.get_one::<PathBuf>("output").cloned();
        let format = match matches.get_one::<String>("format") {
            Some(name) => Format::named(name),
            None => output.as_deref().map_or(Format::Text, Format::of_path),
        };
        let sidecars = matches
            .get_one::<String>("sidecar")
            .map(|name| Sidecars::new(Kind::named(name), photos));
        let is = |name| matches.get_flag(name);
        let mode = match (is("overwrite"), is("only_missing")) {
            (true, _) => Mode::Overwrite,
            (_, true) => Mode::OnlyMissing,
            _ => Mode::Resume,
        };
        let tell = match (is("quiet"), is("verbose"), is("json_progress")) {
            (true, ..) => Tell::Quiet,
            (_, true, _) => Tell::Verbose,
            (.., true) => Tell::Json,
            _ => Tell::Normal,
        };
        let limit = matches.get_one::<usize>("limit").copied().unwrap_or(usize::MAX);
        Self { format, output, sidecars, mode, limit, dry_run: is("dry_run"), tell }
    }

    /// Whether what is done stays when the program ends.
    fn kept(&self) -> bool {
        self.output.is_some() || self.sidecars.is_some()
    }

    /// Where rows go, and what is there. Sidecars alone need no rows.
    fn open(&self) -> Result<(Option<Output>, Known)> {
        let anew = self.mode == Mode::Overwrite;
        match (&self.output, &self.sidecars) {
            (Some(path), _) if self.dry_run => Ok((None, self.look(path)?)),
            (Some(path), _) => {
                let (output, entries) = Output::file(path, self.format, anew)?;
                Ok((Some(output), Known::new(Some(entries))))
            }
            (None, Some(_)) => Ok((None, Known::new(None))),
            (None, None) => Ok((Some(Output::stdout(self.format)), Known::new(None))),
        }
    }

    /// What is in the file of results, without touching it.
    fn look(&self, path: &Path) -> Result<Known> {
        let entries = if path.exists() { Results::read(path)?.entries } else { Vec::new() };
        Ok(Known::new(Some(entries)))
    }

    /// The photos that are to be done, and how many there are of which kind.
    fn left(&self, photos: Vec<Photo>, known: &Known, parameters: &str) -> (Vec<Photo>, Counts) {
        let mut counts = Counts::default();
        let mut left = Vec::new();
        for photo in photos {
            let stamp = Stamp::of(&photo.path, parameters);
            if known.has(&photo, stamp.as_ref(), self.sidecars.as_ref(), self.mode) {
                counts.known += 1;
            } else if left.len() < self.limit {
                left.push(photo);
            }
        }
        counts.total = left.len();
        (left, counts)
    }
}

/// What was passed over, and what was not found.
fn tell_of(inputs: &Inputs, tell: Tell, progress: &Progress) {
    if tell == Tell::Verbose {
        for (path, why) in &inputs.skipped {
            progress.note(&format!("{}: skipped: it {why}", path.display()));
        }
    }
    for problem in &inputs.problems {
        progress.problem(problem);
    }
}

fn dry_run(photos: &[Photo], inputs: &Inputs, counts: Counts, tell: Tell) -> Result<ExitCode> {
    let progress = Progress::new(tell, Counts::default());
    tell_of(inputs, tell, &progress);
    let paths: String = photos.iter().map(|photo| photo.name() + "\n").collect();
    print(&paths)?;
    let mut told = format!("{} would be captioned", counts.total);
    if counts.known > 0 {
        told += &format!(", {} there already", counts.known);
    }
    let skipped = skipped(inputs);
    if !skipped.is_empty() {
        told += &format!("; skipped: {skipped}");
    }
    progress.note(&told);
    Ok(ExitCode::from(if inputs.problems.is_empty() { 0 } else { FAILED }))
}

/// The last words, and the exit status.
fn finish(end: End, inputs: &Inputs, progress: &mut Progress, kept: bool) -> u8 {
    let failed = progress.counts().failed > 0 || !inputs.problems.is_empty();
    let status = match end {
        End::Interrupted(status) => status,
        // Whoever read this has seen enough.
        End::ReaderLeft => return 0,
        End::Done if failed => FAILED,
        End::Done => 0,
    };
    progress.end(status, kept, &skipped(inputs));
    if matches!(end, End::Interrupted(_)) {
        let Counts { total, captioned, failed, .. } = progress.counts();
        let left = total.saturating_sub(captioned + failed);
        let how = if kept {
            "run the same command again to go on"
        } else {
            "with --output FILE or --sidecar KIND it could go on from here"
        };
        progress.note(&format!("interrupted: {left} of {total} photos are left; {how}"));
    }
    status
}
