//! A job's part of its request's trace. Where nobody collects traces, none of it costs more than a
//! look at a flag.

use tracing::{Level, Span};

/// The request, and the stage that its job is in.
#[derive(Debug)]
pub(super) struct JobTrace {
    request: Span,
    stage: Span,
}

impl JobTrace {
    /// The job waits, on behalf of whoever calls this.
    pub(super) fn waits() -> Self {
        let request = Span::current();
        let stage = tracing::info_span!(target: "trace", parent: &request, "queue");
        Self { request, stage }
    }

    /// The stage that it is in is over. A span that takes another's place would begin before that
    /// one ends.
    pub(super) fn leaves(&mut self) {
        self.stage = Span::none();
    }

    /// Its image goes through the vision tower.
    pub(super) fn vision(&mut self) {
        self.leaves();
        self.stage = tracing::info_span!(target: "trace", parent: &self.request, "vision");
    }

    /// Its caption is written; `rows` captions or beams at once.
    pub(super) fn decoder(&mut self, rows: usize) {
        self.leaves();
        self.stage = tracing::info_span!(target: "trace", parent: &self.request, "decoder", rows);
    }

    /// It took a step, in a batch of so many rows.
    pub(super) fn step(&self, batch: usize) {
        tracing::event!(target: "trace", parent: &self.stage, Level::INFO, batch, "step");
    }
}
