//! `cutline eval`

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgMatches, Args, Command, FromArgMatches};
use serde::Serialize;
use serde_json::Value;

use super::folder::results::{Results, name_of};
use super::{complain, print, unparsed};
use crate::text;
use cutline_error::{Error, ErrorKind, Result};
use cutline_score::{Pair, Scores};

pub(super) const NAME: &str = "eval";

/// The most bytes of references: they are held in memory.
const MAX_BYTES: u64 = 1 << 30;

#[derive(Args)]
struct EvalArgs {
    /// A file that cutline caption wrote (jsonl, csv, json, text), or COCO results
    #[arg(value_name = "RESULTS")]
    results: PathBuf,
    /// COCO captions (json), or one line per photo: {"path", "captions"}
    #[arg(long, value_name = "FILE")]
    references: PathBuf,
    /// Print a JSON object instead of a table
    #[arg(long)]
    json: bool,
}

pub(super) fn command() -> Command {
    EvalArgs::augment_args(Command::new(NAME))
        .about("Scores captions against references: CIDEr-D, BLEU-4 and ROUGE-L")
        .after_help(
            "Photos are matched by path, else by file name, else by id. Photos missing from either \
             file are skipped and listed.\n\n\
             Examples:\n  \
             cutline eval captions.jsonl --references captions_val2017.json\n  \
             cutline eval captions.csv --references mine.jsonl --json",
        )
}

pub(super) fn run(matches: &ArgMatches) -> Result<ExitCode> {
    let args = EvalArgs::from_arg_matches(matches).map_err(unparsed)?;
    let mut references = References::read(&args.references)?;
    // Of a photo that was captioned again, the last caption counts.
    let mut captions = BTreeMap::new();
    for entry in Results::read(&args.results)?.entries {
        captions
            .insert(entry.path.clone(), if entry.fallback { String::new() } else { entry.caption });
    }
    let mut pairs = Vec::new();
    let mut without = Vec::new();
    for (path, caption) in &captions {
        match references.take(path) {
            Some(texts) => pairs.push(Pair::new(caption, texts.iter().map(String::as_str))),
            None => without.push(path.as_str()),
        }
    }
    report_skipped("photos have no references and are skipped", &without);
    let unused: Vec<&str> = references.by_name.keys().map(String::as_str).collect();
    report_skipped("photos with references have no caption and are skipped", &unused);
    if pairs.is_empty() {
        return Err(Error::new(
            ErrorKind::Io,
            "no photo in the results has references; check that both name the same files",
        ));
    }
    let report = EvalReport { photos: pairs.len(), scores: Scores::of(&pairs) };
    print(&report.text(args.json)?)?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct EvalReport {
    photos: usize,
    #[serde(flatten)]
    scores: Scores,
}

impl EvalReport {
    fn text(&self, json: bool) -> Result<String> {
        if json {
            let text = serde_json::to_string(self);
            return text.map(|text| text + "\n").map_err(|error| {
                Error::internal("the scores cannot be printed").with_source(error)
            });
        }
        let Scores { cider_d, bleu_4, rouge_l } = self.scores;
        Ok(format!(
            "photos   {}\nCIDEr-D  {cider_d:.4}\nBLEU-4   {bleu_4:.4}\nROUGE-L  {rouge_l:.4}\n",
            self.photos
        ))
    }
}

/// Writes one line with a few of `paths`, if there are any.
fn report_skipped(what: &str, paths: &[&str]) {
    const SHOWN: usize = 3;
    if paths.is_empty() {
        return;
    }
    let some = paths.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
    let more = if paths.len() > SHOWN { ", …" } else { "" };
    complain(&format!("{} {what}: {some}{more}", paths.len()));
}

/// Captions that people wrote, by the name of the photo.
#[derive(Debug, Default)]
pub(super) struct References {
    by_name: BTreeMap<String, Vec<String>>,
    /// Other names of the same photos: file names and ids.
    aliases: HashMap<String, String>,
}

impl References {
    fn read(path: &Path) -> Result<Self> {
        let failed = |what: String| {
            let detail = format!(
                "{}: {what}; give COCO captions, or lines of {{\"path\": …, \
                 \"captions\": […]}}",
                path.display()
            );
            Error::new(ErrorKind::Config, detail)
        };
        let mut bytes = Vec::new();
        let opened = File::open(path);
        let read = opened.and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes));
        read.map_err(|error| {
            let detail = format!("{}: cannot be read ({error}); check the path", path.display());
            Error::new(ErrorKind::Io, detail)
        })?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(failed(format!("it has more than {MAX_BYTES} bytes")));
        }
        let bytes = text::without_mark(&bytes).map_err(|why| failed(why.to_owned()))?;
        Self::parse(bytes).map_err(failed)
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut references = Self::default();
        match serde_json::from_slice::<Value>(bytes) {
            Ok(whole) if whole["annotations"].is_array() => references.coco(&whole)?,
            Ok(Value::Array(rows)) => {
                rows.iter().enumerate().try_for_each(|(at, row)| references.row(row, at + 1))?;
            }
            // A single line is an object too, and several lines are not valid JSON.
            _ => {
                for (at, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
                    if line.trim_ascii().is_empty() {
                        continue;
                    }
                    let row = serde_json::from_slice(line)
                        .map_err(|error| format!("line {} is not JSON ({error})", at + 1))?;
                    references.row(&row, at + 1)?;
                }
            }
        }
        Ok(references)
    }

    /// `{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}`
    fn coco(&mut self, whole: &Value) -> Result<(), String> {
        let mut files = HashMap::new();
        for image in whole["images"].as_array().into_iter().flatten() {
            if let (Some(id), Some(file)) = (name_of(&image["id"]), name_of(&image["file_name"])) {
                self.aliases.insert(id.clone(), file.clone());
                files.insert(id, file);
            }
        }
        let annotations = whole["annotations"].as_array().into_iter().flatten();
        for (at, annotation) in annotations.enumerate() {
            let id = name_of(&annotation["image_id"]).zip(annotation["caption"].as_str());
            let (id, caption) =
                id.ok_or_else(|| format!("annotation {} lacks image_id or caption", at + 1))?;
            let name = files.get(&id).cloned().unwrap_or(id);
            self.add(name, [caption.to_owned()]);
        }
        Ok(())
    }

    fn row(&mut self, row: &Value, number: usize) -> Result<(), String> {
        let name = ["path", "file", "file_name", "image", "image_id", "id"]
            .iter()
            .find_map(|name| name_of(&row[*name]));
        let texts: Option<Vec<String>> =
            ["captions", "references", "caption"].iter().find_map(|name| match &row[*name] {
                Value::String(text) => Some(vec![text.clone()]),
                Value::Array(texts) => {
                    texts.iter().map(|text| text.as_str().map(str::to_owned)).collect()
                }
                _ => None,
            });
        let (Some(name), Some(texts)) = (name, texts) else {
            return Err(format!("line {number} lacks path or captions"));
        };
        self.add(name, texts);
        Ok(())
    }

    fn add(&mut self, name: String, texts: impl IntoIterator<Item = String>) {
        if let Some(file) = file_name(&name) {
            self.aliases.entry(file.to_owned()).or_insert_with(|| name.clone());
        }
        self.by_name.entry(name).or_default().extend(texts);
    }

    /// Removes and returns the references of the photo that the results call `path`.
    fn take(&mut self, path: &str) -> Option<Vec<String>> {
        let file = file_name(path).unwrap_or(path);
        let alias = [path, file].into_iter().find_map(|name| self.aliases.get(name));
        let names = [Some(path), Some(file), alias.map(String::as_str)];
        names.into_iter().flatten().find_map(|name| self.by_name.remove(name))
    }
}

fn file_name(path: &str) -> Option<&str> {
    Path::new(path).file_name().and_then(|name| name.to_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_formats_of_references_are_read() {
        for text in [
            r#"{"images": [{"id": 7, "file_name": "a.jpg"}],
                "annotations": [{"image_id": 7, "caption": "x"}, {"image_id": 7, "caption": "y"}]}"#,
            r#"[{"image_id": "a.jpg", "caption": "x"}, {"image_id": "a.jpg", "caption": "y"}]"#,
            "{\"path\": \"album/a.jpg\", \"captions\": [\"x\", \"y\"]}\n",
            "{\"file\": \"a.jpg\", \"references\": [\"x\"]}\n\n{\"file\": \"a.jpg\", \"caption\": \"y\"}",
        ] {
            let mut references = References::parse(text.as_bytes()).unwrap();
            assert_eq!(references.take("other/a.jpg").unwrap(), ["x", "y"], "{text}");
            assert_eq!(references.take("a.jpg"), None, "once: {text}");
        }
        let coco = r#"{"images": [{"id": 7, "file_name": "a.jpg"}],
                       "annotations": [{"image_id": 7, "caption": "x"}]}"#;
        assert_eq!(References::parse(coco.as_bytes()).unwrap().take("7").unwrap(), ["x"]);
        for text in ["{\"path\": \"a\"}\n{", "[1]", "{\"annotations\": [{}]}"] {
            assert!(References::parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
