//! What is told while photos are captioned, and at the end; all of it on standard error.

use std::fmt::Write as _;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::json;

use super::inputs::{Inputs, Skip};
use crate::cli::complain;

/// How much is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum Tell {
    /// A bar on a terminal, and what failed.
    Normal,
    /// Also what was skipped, one by one.
    Verbose,
    /// Only what failed.
    Quiet,
    /// An object a line.
    Json,
}

/// Lines of progress come no faster than this.
const INTERVAL: Duration = Duration::from_secs(1);

/// Tells how far a run is.
#[derive(Debug)]
pub(in crate::cli) struct Progress {
    tell: Tell,
    bar: ProgressBar,
    begin: Instant,
    told: Instant,
    counts: Counts,
}

/// How many photos there are of each kind.
#[derive(Debug, Clone, Copy, Default, Serialize, PartialEq, Eq)]
pub(in crate::cli) struct Counts {
    /// Those that were to be done.
    pub(in crate::cli) total: usize,
    pub(in crate::cli) captioned: usize,
    pub(in crate::cli) failed: usize,
    /// Those that were done before.
    pub(in crate::cli) known: usize,
    pub(in crate::cli) skipped: usize,
}

impl Progress {
    pub(in crate::cli) fn new(tell: Tell, counts: Counts) -> Self {
        let on_terminal = io::stderr().is_terminal() && counts.total > 1;
        let shown = on_terminal && matches!(tell, Tell::Normal | Tell::Verbose);
        let bar = if shown { bar(counts.total) } else { ProgressBar::hidden() };
        let now = Instant::now();
        Self { tell, bar, begin: now, told: now, counts }
    }

    /// A photo has its caption.
    pub(in crate::cli) fn captioned(&mut self) {
        self.counts.captioned += 1;
        self.advance();
    }

    /// A photo has none, and why.
    pub(in crate::cli) fn failed(&mut self, path: &str, code: &str, why: &str) {
        self.counts.failed += 1;
        if self.tell == Tell::Json {
            complain(&json!({"event": "failed", "path": path, "code": code, "detail": why}));
        } else {
            self.bar.suspend(|| complain(&format!("{path}: {why}")));
        }
        self.bar.set_message(format!(", {} failed", self.counts.failed));
        self.advance();
    }

    /// An argument that stands for no photo; the sentence names it.
    pub(in crate::cli) fn problem(&self, what: &str) {
        if self.tell == Tell::Json {
            complain(&json!({"event": "failed", "detail": what}));
        } else {
            self.bar.suspend(|| complain(&what));
        }
    }

    /// Something that concerns no photo, as far as notes are wanted.
    pub(in crate::cli) fn note(&self, what: &str) {
        match self.tell {
            Tell::Quiet => {}
            Tell::Json => complain(&json!({"event": "note", "detail": what})),
            Tell::Normal | Tell::Verbose => self.bar.suspend(|| complain(&what)),
        }
    }

    pub(in crate::cli) fn counts(&self) -> Counts {
        self.counts
    }

    fn advance(&mut self) {
        self.bar.inc(1);
        if self.tell == Tell::Json && self.told.elapsed() >= INTERVAL {
            self.told = Instant::now();
            self.line("progress", None);
        }
    }

    /// The last word. `always`: even if there is nothing to tell but what is on standard output.
    pub(in crate::cli) fn end(&mut self, status: u8, always: bool, skipped: &str) {
        self.bar.finish_and_clear();
        match self.tell {
            Tell::Quiet => {}
            Tell::Json => self.line("end", Some(status)),
            Tell::Normal | Tell::Verbose => {
                let Counts { known, .. } = self.counts;
                if always || known > 0 || !skipped.is_empty() {
                    complain(&self.summary(skipped));
                }
            }
        }
    }

    fn summary(&self, skipped: &str) -> String {
        let Counts { captioned, failed, known, .. } = self.counts;
        let mut text = format!("{captioned} captioned");
        let rate = captioned as f64 / self.begin.elapsed().as_secs_f64();
        // Writing to a string cannot fail.
        if captioned > 0 && rate.is_finite() {
            let _ = write!(text, " ({rate:.1} images/s)");
        }
        let _ = write!(text, ", {failed} failed");
        if known > 0 {
            let _ = write!(text, ", {known} there already");
        }
        if !skipped.is_empty() {
            let _ = write!(text, "; skipped: {skipped}");
        }
        text
    }

    fn line(&self, event: &str, status: Option<u8>) {
        #[derive(Serialize)]
        struct Line<'a> {
            event: &'a str,
            #[serde(flatten)]
            counts: Counts,
            images_per_second: f64,
            elapsed_ms: u64,
            #[serde(skip_serializing_if = "Option::is_none")]
            eta_ms: Option<u64>,
            #[serde(skip_serializing_if = "Option::is_none")]
            status: Option<u8>,
        }
        let elapsed = self.begin.elapsed();
        let done = self.counts.captioned + self.counts.failed;
        let left = self.counts.total.saturating_sub(done);
        let eta = elapsed.mul_f64(left as f64 / done.max(1) as f64);
        let milliseconds = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let line = Line {
            event,
            counts: self.counts,
            images_per_second: round(self.counts.captioned as f64 / elapsed.as_secs_f64()),
            elapsed_ms: milliseconds(elapsed),
            eta_ms: (status.is_none() && done > 0).then(|| milliseconds(eta)),
            status,
        };
        if let Ok(text) = serde_json::to_string(&line) {
            complain(&text);
        }
    }
}

/// To two places.
fn round(number: f64) -> f64 {
    if number.is_finite() { (number * 100.0).round() / 100.0 } else { 0.0 }
}

fn bar(total: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} {per_sec}, {eta} left{msg}");
    ProgressBar::new(total as u64)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// What was passed over, in words; nothing if nothing was.
pub(in crate::cli) fn skipped(inputs: &Inputs) -> String {
    let kinds = [
        (Skip::Hidden, "hidden"),
        (Skip::UnknownFormat, "of unknown format"),
        (Skip::Link, "links"),
        (Skip::Folder, "folders"),
    ];
    let counted = kinds.map(|(skip, name)| (inputs.skipped(skip), name));
    let some: Vec<String> = counted
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, name)| format!("{count} {name}"))
        .collect();
    some.join(", ")
}
