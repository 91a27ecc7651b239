//! The report about the captions of many photos.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use clap::Args;
use serde::Serialize;

use crate::captioner::repeats_itself;
use cutline_error::{Error, Result};

/// Paths of each kind in the table; JSON has all of them.
const SHOWN: usize = 5;

/// A photo and its caption, if it has one.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct CheckedPhoto {
    pub(super) path: String,
    pub(super) text: Option<String>,
    pub(super) confidence: Option<f64>,
}

/// Which captions are suspicious.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct CheckRules {
    /// Count captions with more characters than this as too long
    #[arg(long, value_name = "N", default_value = "125")]
    pub(super) max_chars: usize,
    /// Report captions with fewer words than this
    #[arg(long, value_name = "N", default_value = "3")]
    pub(super) min_words: usize,
    /// Report captions with a lower confidence, where it is known
    #[arg(long, value_name = "N", default_value = "0.2")]
    pub(super) min_confidence: f64,
}

/// What was found in the captions.
#[derive(Debug, Serialize)]
pub(super) struct CheckReport<'a> {
    photos: usize,
    described: usize,
    /// The share of photos that have a caption, from 0 to 1.
    pub(super) coverage: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    characters: Option<CaptionLengths>,
    duplicates: Vec<Duplicate<'a>>,
    suspicious: Vec<Suspect<'a>>,
    missing: Vec<&'a str>,
}

/// The lengths of the captions in characters.
#[derive(Debug, Serialize)]
struct CaptionLengths {
    least: usize,
    median: usize,
    mean: f64,
    most: usize,
    /// Captions that are longer than the rules allow.
    too_many: usize,
}

/// A caption that several photos have.
#[derive(Debug, Serialize)]
struct Duplicate<'a> {
    text: &'a str,
    paths: Vec<&'a str>,
}

/// A suspicious caption.
#[derive(Debug, Serialize)]
struct Suspect<'a> {
    path: &'a str,
    text: &'a str,
    why: Vec<Suspicion>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Suspicion {
    Repetition,
    TooShort,
    TooLong,
    LowConfidence,
}

impl Suspicion {
    const ALL: [(Self, &'static str); 4] = [
        (Self::Repetition, "repetition"),
        (Self::TooShort, "too short"),
        (Self::TooLong, "too long"),
        (Self::LowConfidence, "low confidence"),
    ];
}

impl<'a> CheckReport<'a> {
    /// Checks `photos`, of which there is at least one.
    pub(super) fn new(photos: &'a [CheckedPhoto], rules: CheckRules) -> Self {
        let described: Vec<(&CheckedPhoto, &str)> =
            photos.iter().filter_map(|photo| Some((photo, photo.text.as_deref()?))).collect();
        let missing = photos.iter().filter(|photo| photo.text.is_none());
        let suspect = |(photo, text): &(&'a CheckedPhoto, &'a str)| {
            let why = suspicions(photo, text, rules);
            (!why.is_empty()).then_some(Suspect { path: &photo.path, text, why })
        };
        Self {
            photos: photos.len(),
            described: described.len(),
            coverage: described.len() as f64 / photos.len().max(1) as f64,
            characters: CaptionLengths::of(&described, rules.max_chars),
            duplicates: duplicates(&described),
            suspicious: described.iter().filter_map(suspect).collect(),
            missing: missing.map(|photo| photo.path.as_str()).collect(),
        }
    }

    pub(super) fn json(&self) -> Result<String> {
        serde_json::to_string_pretty(self)
            .map(|text| text + "\n")
            .map_err(|error| Error::internal("the report cannot be printed").with_source(error))
    }

    pub(super) fn table(&self, rules: CheckRules) -> String {
        let mut text = String::new();
        let percent = self.coverage * 100.0;
        // Writing to a string cannot fail.
        let _ = writeln!(text, "photos          {}", self.photos);
        let _ = writeln!(text, "with a caption  {} ({percent:.1} %)", self.described);
        if let Some(CaptionLengths { least, median, mean, most, too_many }) = &self.characters {
            let _ = writeln!(
                text,
                "characters      {least} to {most}, median {median}, mean {mean:.1}; {too_many} \
                 with more than {}",
                rules.max_chars
            );
        }
        let photos: usize = self.duplicates.iter().map(|duplicate| duplicate.paths.len()).sum();
        let _ =
            writeln!(text, "duplicates      {} texts of {photos} photos", self.duplicates.len());
        for Duplicate { text: same, paths } in self.duplicates.iter().take(SHOWN) {
            let _ = writeln!(text, "  {} × {same}", paths.len());
        }
        for (why, name) in Suspicion::ALL {
            let found: Vec<_> =
                self.suspicious.iter().filter(|suspect| suspect.why.contains(&why)).collect();
            let _ = writeln!(text, "{name:<15} {}", found.len());
            for Suspect { path, text: said, .. } in found.iter().take(SHOWN) {
                let _ = writeln!(text, "  {path}: {said}");
            }
        }
        let _ = writeln!(text, "without caption {}", self.missing.len());
        for path in self.missing.iter().take(SHOWN) {
            let _ = writeln!(text, "  {path}");
        }
        text
    }
}

fn suspicions(photo: &CheckedPhoto, text: &str, rules: CheckRules) -> Vec<Suspicion> {
    let holds = [
        (Suspicion::Repetition, repeats_itself(text)),
        (Suspicion::TooShort, text.split_whitespace().count() < rules.min_words),
        (Suspicion::TooLong, text.chars().count() > rules.max_chars),
        (
            Suspicion::LowConfidence,
            photo.confidence.is_some_and(|confidence| confidence < rules.min_confidence),
        ),
    ];
    holds.into_iter().filter_map(|(why, holds)| holds.then_some(why)).collect()
}

impl CaptionLengths {
    fn of(described: &[(&CheckedPhoto, &str)], max_chars: usize) -> Option<Self> {
        let mut counts: Vec<usize> =
            described.iter().map(|(_, text)| text.chars().count()).collect();
        counts.sort_unstable();
        let mean = counts.iter().sum::<usize>() as f64 / counts.len().max(1) as f64;
        Some(Self {
            least: *counts.first()?,
            median: *counts.get(counts.len() / 2)?,
            mean: (mean * 10.0).round() / 10.0,
            most: *counts.last()?,
            too_many: counts.iter().filter(|count| **count > max_chars).count(),
        })
    }
}

/// The captions of more than one photo, the most frequent first.
fn duplicates<'a>(described: &[(&'a CheckedPhoto, &'a str)]) -> Vec<Duplicate<'a>> {
    let mut by_text: BTreeMap<String, Duplicate<'a>> = BTreeMap::new();
    for (photo, text) in described {
        by_text
            .entry(text.trim().to_lowercase())
            .or_insert_with(|| Duplicate { text, paths: Vec::new() })
            .paths
            .push(&photo.path);
    }
    let mut found: Vec<_> =
        by_text.into_values().filter(|duplicate| duplicate.paths.len() > 1).collect();
    found.sort_by_key(|duplicate| std::cmp::Reverse(duplicate.paths.len()));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suspicious_captions_are_reported_once_with_their_reason() {
        let photo = |path: &str, text: &str, confidence| CheckedPhoto {
            path: path.into(),
            text: (!text.is_empty()).then(|| text.into()),
            confidence,
        };
        let photos = [
            photo("a", "a cat on a sofa", Some(0.9)),
            photo("b", "A cat on a sofa", Some(0.1)),
            photo("c", "a dog dog runs", None),
            photo("d", "boat", None),
            photo("e", "a very long text about a house", None),
            photo("f", "", Some(0.9)),
        ];
        let rules = CheckRules { max_chars: 20, min_words: 3, min_confidence: 0.2 };
        let report = CheckReport::new(&photos, rules);
        assert_eq!(
            (report.photos, report.described, report.missing.as_slice()),
            (6, 5, &["f"][..])
        );
        assert!((report.coverage - 5.0 / 6.0).abs() < 1e-9);
        assert_eq!(report.duplicates.len(), 1);
        assert_eq!(report.duplicates[0].paths, ["a", "b"]);
        let why: Vec<_> = report.suspicious.iter().map(|s| (s.path, s.why.clone())).collect();
        assert_eq!(
            why,
            [
                ("b", vec![Suspicion::LowConfidence]),
                ("c", vec![Suspicion::Repetition]),
                ("d", vec![Suspicion::TooShort]),
                ("e", vec![Suspicion::TooLong]),
            ]
        );
        let characters = report.characters.as_ref().unwrap();
        assert_eq!((characters.least, characters.median, characters.most), (4, 15, 30));
        assert_eq!(characters.too_many, 1);
        let table = report.table(rules);
        assert!(table.contains("5 (83.3 %)") && table.contains("2 × a cat"), "{table}");
        let none = [photo("a", "", None)];
        assert!(CheckReport::new(&none, rules).table(rules).contains("0 (0.0 %)"));
    }
}
