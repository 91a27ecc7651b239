//! Progress and summary of a run, on standard error.

use std::fmt::Write as _;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use serde_json::json;

use super::inputs::{Inputs, SkipReason};
use crate::cli::complain;

/// How much is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum Verbosity {
    /// A progress bar on a terminal, and each failure.
    Normal,
    /// Each skipped file as well.
    Verbose,
    /// Only failures.
    Quiet,
    /// One JSON object per line.
    Json,
}

/// The least time between two lines of progress.
const INTERVAL: Duration = Duration::from_secs(1);

/// Reports the progress of a run.
#[derive(Debug)]
pub(in crate::cli) struct ProgressReporter {
    verbosity: Verbosity,
    bar: ProgressBar,
    begin: Instant,
    last_line: Instant,
    counts: PhotoCounts,
}

/// Numbers of photos.
#[derive(Debug, Clone, Copy, Default, Serialize, PartialEq, Eq)]
pub(in crate::cli) struct PhotoCounts {
    /// Photos that the run is to caption.
    pub(in crate::cli) total: usize,
    pub(in crate::cli) captioned: usize,
    pub(in crate::cli) failed: usize,
    /// Photos that an earlier run finished.
    pub(in crate::cli) known: usize,
    /// Files that are no photos, or are not meant.
    pub(in crate::cli) skipped: usize,
    /// Photos in formats that cannot be read.
    pub(in crate::cli) unreadable: usize,
}

impl PhotoCounts {
    /// Counts the files that were found but are not captioned.
    pub(in crate::cli) fn add_skipped(&mut self, inputs: &Inputs) {
        self.unreadable = inputs.skipped(SkipReason::UnreadableFormat);
        self.skipped = inputs.skipped.len() - self.unreadable;
    }
}

impl ProgressReporter {
    pub(in crate::cli) fn new(verbosity: Verbosity, counts: PhotoCounts) -> Self {
        let on_terminal = io::stderr().is_terminal() && counts.total > 1;
        let shown = on_terminal && matches!(verbosity, Verbosity::Normal | Verbosity::Verbose);
        let bar = if shown { bar(counts.total) } else { ProgressBar::hidden() };
        let now = Instant::now();
        Self { verbosity, bar, begin: now, last_line: now, counts }
    }

    /// Counts a captioned photo.
    pub(in crate::cli) fn captioned(&mut self) {
        self.counts.captioned += 1;
        self.advance();
    }

    /// Counts and reports a photo that has no caption.
    pub(in crate::cli) fn failed(&mut self, path: &str, code: &str, why: &str) {
        self.counts.failed += 1;
        if self.verbosity == Verbosity::Json {
            complain(&json!({"event": "failed", "path": path, "code": code, "detail": why}));
        } else {
            self.bar.suspend(|| complain(&format!("{path}: {why}")));
        }
        self.bar.set_message(format!(", {} failed", self.counts.failed));
        self.advance();
    }

    /// Reports an argument that matches no photo; the sentence names it.
    pub(in crate::cli) fn problem(&self, what: &str) {
        if self.verbosity == Verbosity::Json {
            complain(&json!({"event": "failed", "detail": what}));
        } else {
            self.bar.suspend(|| complain(&what));
        }
    }

    /// Reports something about the whole run.
    pub(in crate::cli) fn note(&self, what: &str) {
        match self.verbosity {
            Verbosity::Quiet => {}
            Verbosity::Json => complain(&json!({"event": "note", "detail": what})),
            Verbosity::Normal | Verbosity::Verbose => self.bar.suspend(|| complain(&what)),
        }
    }

    pub(in crate::cli) fn counts(&self) -> PhotoCounts {
        self.counts
    }

    fn advance(&mut self) {
        self.bar.inc(1);
        if self.verbosity == Verbosity::Json && self.last_line.elapsed() >= INTERVAL {
            self.last_line = Instant::now();
            self.line("progress", None);
        }
    }

    /// Reports the end of the run. Without `always` there is a summary only if it says more than
    /// standard output does.
    pub(in crate::cli) fn end(&mut self, status: u8, always: bool, skipped: &str) {
        self.bar.finish_and_clear();
        match self.verbosity {
            Verbosity::Quiet => {}
            Verbosity::Json => self.line("end", Some(status)),
            Verbosity::Normal | Verbosity::Verbose => {
                let PhotoCounts { known, unreadable, .. } = self.counts;
                if always || known > 0 || unreadable > 0 || !skipped.is_empty() {
                    complain(&self.summary(skipped));
                }
            }
        }
    }

    fn summary(&self, skipped: &str) -> String {
        let PhotoCounts { captioned, failed, known, unreadable, .. } = self.counts;
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
        if unreadable > 0 {
            let _ = write!(text, ", {unreadable} in formats that cannot be read");
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
            counts: PhotoCounts,
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

/// To two decimal places.
fn round(number: f64) -> f64 {
    if number.is_finite() { (number * 100.0).round() / 100.0 } else { 0.0 }
}

fn bar(total: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} {per_sec}, {eta} left{msg}");
    ProgressBar::new(total as u64)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}
