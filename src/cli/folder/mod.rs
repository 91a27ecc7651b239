//! Many photos at once: where they come from, and where their captions are written.
//!
//! - `inputs`: which photos are meant; `pattern`: which paths match a pattern;
//! - `resume`: which of them earlier runs have finished;
//! - `run`: captions the others, several at a time;
//! - `record`: what is written about a photo; `output`: to one file or standard output; `sidecar`:
//!   to a file next to each photo; `results`: reads what was written;
//! - `progress`: reports progress and the summary.

pub(super) mod inputs;
pub(super) mod output;
mod pattern;
pub(super) mod progress;
pub(super) mod record;
pub(super) mod results;
pub(super) mod resume;
pub(super) mod run;
pub(super) mod sidecar;
