//! `cutline caption`

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgMatches, Command, value_parser};
use serde::Serialize;
use tokio::task::JoinHandle;

use super::{FAILED, complain, options, runtime, unwritable};
use crate::captioner::{Caption, CaptionParams, Captioner};
use crate::config::{Group, LogSettings, captioner_settings};
use crate::error::{Error, ErrorKind, Result};
use crate::telemetry::{self, Output};

pub(super) const NAME: &str = "caption";
const GROUPS: [Group; 3] = [Group::Model, Group::Images, Group::Logs];

pub(super) fn command() -> Command {
    let command = Command::new(NAME)
        .about("Prints captions of image files")
        .arg(
            Arg::new("files")
                .value_name("FILE")
                .help("Images, captioned in this order; a bad one does not stop the others")
                .value_parser(value_parser!(PathBuf))
                .num_args(1..)
                .required(true),
        )
        .arg(
            Arg::new("format")
                .long("format")
                .value_name("FORMAT")
                .help(
                    "text: path, tab, caption; json: one array; jsonl: one object a line \
                     [default: text]",
                )
                .value_parser(PossibleValuesParser::new(["text", "json", "jsonl"]))
                .hide_possible_values(true),
        )
        .after_help(
            "Examples:\n  \
             cutline caption holiday.jpg\n  \
             cutline caption *.jpg --num-beams 3 --format jsonl > captions.jsonl\n  \
             cutline caption --prompt \"a photo of\" --do-sample --seed 7 holiday.jpg\n\n\
             The exit status is 1 when a file could not be captioned; the others are printed.",
        );
    options::with_settings(options::with_parameters(command), &GROUPS)
}

pub(super) fn run(matches: &ArgMatches) -> Result<ExitCode> {
    let params = options::parameters(matches)?;
    let values = options::values(matches, &GROUPS)?;
    telemetry::start(LogSettings::for_command(&values)?, Output::Stderr);
    let settings = captioner_settings(&values)?;
    let format = match matches.get_one::<String>("format").map(String::as_str) {
        Some("json") => Format::Json,
        Some("jsonl") => Format::JsonLines,
        _ => Format::Text,
    };
    let files = matches.get_many::<PathBuf>("files").unwrap_or_default().cloned();
    let captioner = Captioner::load(&settings)?;
    let work = Work {
        // Enough to keep model and decoders busy, and no more: their bytes are in memory.
        at_once: (captioner.status().max_batch_size + settings.max_workers)
            .min(settings.queue_capacity),
        max_bytes: settings.max_image_bytes,
        captioner,
        params,
    };
    let printer = Printer { out: io::stdout(), format, rows: 0 };
    runtime()?.block_on(Box::pin(work.caption(files, printer)))
}

/// What is done to every file.
struct Work {
    captioner: Captioner,
    params: CaptionParams,
    max_bytes: usize,
    at_once: usize,
}

impl Work {
    /// Captions `files`, several at once, and prints them in their order.
    async fn caption(
        &self,
        mut files: impl Iterator<Item = PathBuf>,
        mut printer: Printer<impl Write>,
    ) -> Result<ExitCode> {
        let mut started = VecDeque::new();
        let mut failed = false;
        let mut written = printer.begin();
        while written.is_ok() {
            started.extend(
                files
                    .by_ref()
                    .take(self.at_once.saturating_sub(started.len()))
                    .map(|path| (self.start(path.clone()), path)),
            );
            let Some((task, path)) = started.pop_front() else { break };
            let result = task.await.unwrap_or_else(|join| {
                Err(Error::internal("captioning crashed, which is a defect").with_source(join))
            });
            match result {
                Ok(caption) => written = printer.row(&path, &caption),
                Err(error) => {
                    failed = true;
                    complain(&format!("{}: {error}", path.display()));
                }
            }
        }
        match written.and_then(|()| printer.end()) {
            // Whoever read this has seen enough.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(ExitCode::SUCCESS),
            Err(error) => Err(unwritable(error)),
            Ok(()) if failed => Ok(ExitCode::from(FAILED)),
            Ok(()) => Ok(ExitCode::SUCCESS),
        }
    }

    fn start(&self, path: PathBuf) -> JoinHandle<Result<Caption>> {
        let (captioner, params) = (self.captioner.clone(), self.params.clone());
        let max_bytes = self.max_bytes;
        tokio::spawn(async move {
            let bytes = tokio::task::spawn_blocking(move || read(&path, max_bytes))
                .await
                .map_err(|join| Error::internal("reading crashed").with_source(join))??;
            captioner.caption(bytes, params).await
        })
    }
}

/// The file, or as much of it as shows that it is too large.
fn read(path: &Path, max_bytes: usize) -> Result<Vec<u8>> {
    let limit = u64::try_from(max_bytes).unwrap_or(u64::MAX).saturating_add(1);
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(limit).read_to_end(&mut bytes))
        .map_err(|error| Error::new(ErrorKind::Io, format!("cannot be read: {error}")))?;
    if bytes.len() > max_bytes {
        return Err(Error::new(
            ErrorKind::ImageTooLarge,
            format!("has more than {max_bytes} bytes; scale it down or raise MAX_IMAGE_SIZE"),
        ));
    }
    Ok(bytes)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    Text,
    Json,
    JsonLines,
}

/// Writes results as they come.
struct Printer<W> {
    out: W,
    format: Format,
    rows: usize,
}

/// The caption as HTTP has it, with the file before it.
#[derive(Serialize)]
struct Row<'a> {
    path: &'a str,
    #[serde(flatten)]
    caption: &'a Caption,
}

impl<W: Write> Printer<W> {
    fn begin(&mut self) -> io::Result<()> {
        if self.format == Format::Json { write!(self.out, "[") } else { Ok(()) }
    }

    fn row(&mut self, path: &Path, caption: &Caption) -> io::Result<()> {
        let path = &*path.to_string_lossy();
        self.rows += 1;
        match self.format {
            Format::Text => {
                for choice in &caption.captions {
                    writeln!(self.out, "{path}\t{}", choice.text)?;
                }
                Ok(())
            }
            Format::Json => {
                let comma = if self.rows == 1 { "" } else { "," };
                write!(self.out, "{comma}\n{}", serde_json::to_string(&Row { path, caption })?)
            }
            Format::JsonLines => {
                writeln!(self.out, "{}", serde_json::to_string(&Row { path, caption })?)
            }
        }
    }

    fn end(&mut self) -> io::Result<()> {
        if self.format == Format::Json {
            let newline = if self.rows == 0 { "" } else { "\n" };
            writeln!(self.out, "{newline}]")?;
        }
        self.out.flush()
    }
}
