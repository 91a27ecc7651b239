//! `cutline library import` and `export`.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgMatches, Args, Command, FromArgMatches};
use cutline_library::transfer::{Format, ImportReport, Importer, export as write, export_xmp};
use cutline_library::{Author, Query};

use super::{address, open, print_json};
use crate::cli::folder::inputs::{Inputs, Search};
use crate::cli::{FAILED, complain, unparsed, unwritable};
use cutline_error::{Error, ErrorKind, Result};

pub(super) const IMPORT: &str = "import";
pub(super) const EXPORT: &str = "export";

#[derive(Args)]
struct ImportArgs {
    /// Photos and folders, whose sidecars are read, and files of JSON Lines or CSV
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,
    /// Search subfolders too
    #[arg(short, long)]
    recursive: bool,
    /// Follow links in folders
    #[arg(short = 'L', long)]
    follow_links: bool,
    /// Language of the texts
    #[arg(long, default_value = "en")]
    lang: String,
    /// A model of this name wrote the texts, so that other models may replace them
    #[arg(long, value_name = "MODEL")]
    by_model: Option<String>,
    /// Print the report as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn import_command() -> Command {
    ImportArgs::augment_args(Command::new(IMPORT))
        .about("Imports texts from sidecars, and from files that cutline or others wrote")
        .after_help(
            "Photos are known by their content, so the files must be there, unless rows have hashes. Of each \
             photo photo.jpg.xmp or photo.xmp is read, then .json and .txt: description, alternative text and \
             keywords, of Lightroom, digiKam and others. A table has a header with path or hash, and with \
             caption, alt_text or tags (separated by semicolons).\n\n\
             Texts count as those of people, which no model replaces, unless they are rows of cutline \
             caption, or --by-model is given.",
        )
}

pub(super) fn import(matches: &ArgMatches) -> Result<ExitCode> {
    let args = ImportArgs::from_arg_matches(matches).map_err(unparsed)?;
    let store = cutline_library::open(&address(matches)?)?;
    let author = match &args.by_model {
        Some(name) => Author::model(name.clone()),
        None => Author::import("import"),
    };
    let mut importer = Importer::new(&*store, author, &args.lang);
    let (tables, photos): (Vec<&PathBuf>, Vec<&PathBuf>) =
        args.paths.iter().partition(|path| table_format(path).is_some());
    for path in tables {
        import_file(&mut importer, path)?;
    }
    let mut incomplete = false;
    if !photos.is_empty() {
        let search = Search { recursive: args.recursive, follow_links: args.follow_links };
        let inputs = Inputs::find(photos, search)?;
        inputs.problems.iter().for_each(|problem| complain(problem));
        incomplete = !inputs.problems.is_empty();
        for photo in &inputs.photos {
            importer.photo(&photo.path)?;
        }
    }
    let report = importer.finish()?;
    report.problems.iter().for_each(|problem| complain(problem));
    if args.json {
        print_json(&report)?;
    } else {
        complain(&summary(&report));
    }
    let failed = incomplete || report.skipped > 0;
    Ok(ExitCode::from(if failed { FAILED } else { 0 }))
}

fn summary(report: &ImportReport) -> String {
    let mut summary = format!(
        "{} photos added, {} known; {} texts taken, {} suggested, {} unchanged, {} skipped",
        report.added,
        report.known,
        report.texts,
        report.suggested,
        report.unchanged,
        report.skipped
    );
    if let Some(run) = report.run {
        summary += &format!("; to take it back: cutline library undo {run}");
    }
    summary
}

/// Whether the file is a table, and whether it is CSV.
fn table_format(path: &Path) -> Option<bool> {
    let extension = path.extension()?.to_str()?.to_ascii_lowercase();
    match extension.as_str() {
        "csv" => Some(true),
        "jsonl" | "ndjson" => Some(false),
        _ => None,
    }
}

fn import_file(importer: &mut Importer<'_>, path: &Path) -> Result<()> {
    let unreadable = |error: &dyn std::fmt::Display| {
        Error::new(ErrorKind::Io, format!("{}: {error}", path.display()))
    };
    let file = File::open(path)
        .map_err(|error| unreadable(&format!("cannot be read ({error}); check the path")))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    let mut file = BufReader::new(file);
    let imported = match table_format(path) {
        Some(true) => importer.csv(&mut file, folder),
        _ => importer.json_lines(&mut file, folder),
    };
    imported.map_err(|error| match error.kind() {
        ErrorKind::Io => unreadable(&error),
        _ => error,
    })
}

#[derive(Args)]
struct ExportArgs {
    /// Only photos that this search finds; see cutline library search
    #[arg(value_name = "QUERY", allow_hyphen_values = true)]
    query: Vec<String>,
    /// jsonl, csv, coco, xmp, or pairs (what models wrote and what people made of it)
    #[arg(long, default_value = "jsonl")]
    format: String,
    /// Write to this file, which must not exist; for xmp, an empty or new folder
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Language of the texts in csv, coco and xmp
    #[arg(long, default_value = "en")]
    lang: String,
}

pub(super) fn export_command() -> Command {
    ExportArgs::augment_args(Command::new(EXPORT))
        .about("Writes photos with their texts for other programs")
        .after_help(
            "Options stand before the query.\n\n\
             Examples:\n  \
             cutline library export > photos.jsonl\n  \
             cutline library export --format csv --output photos.csv tag:holiday\n  \
             cutline library export --format xmp --output sidecars is:reviewed",
        )
}

pub(super) fn export(matches: &ArgMatches) -> Result<ExitCode> {
    let args = ExportArgs::from_arg_matches(matches).map_err(unparsed)?;
    let query = Query { text: args.query.join(" "), ..Query::default() };
    if args.format == "xmp" {
        let folder = args.output.as_deref().ok_or_else(|| {
            Error::parameter("output", "sidecars need a folder; give --output FOLDER")
        })?;
        let written = export_xmp(&*open(matches)?, &query, &args.lang, folder)?;
        complain(&format!("{written} sidecars written"));
        return Ok(ExitCode::SUCCESS);
    }
    let format: Format = args.format.parse()?;
    let store = open(matches)?;
    let written = match &args.output {
        Some(path) => {
            let file = File::create_new(path).map_err(|error| {
                let file = path.display();
                Error::new(
                    ErrorKind::Io,
                    format!("{file} cannot be written ({error}); name a file that does not exist"),
                )
            })?;
            let mut file = BufWriter::new(file);
            let written = write(&*store, &query, &args.lang, format, &mut file)?;
            file.flush().map_err(unwritable)?;
            written
        }
        None => {
            let mut out = Pipe(BufWriter::new(io::stdout().lock()));
            write(&*store, &query, &args.lang, format, &mut out)?
        }
    };
    complain(&format!("{written} written"));
    Ok(ExitCode::SUCCESS)
}

/// Standard output. A reader that closes it, as `head` does, is not a failure.
struct Pipe<W>(W);

impl<W: Write> Write for Pipe<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(bytes.len()),
            written => written,
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self.0.flush() {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            flushed => flushed,
        }
    }
}
