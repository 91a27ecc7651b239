//! Many photos at once: where they come from, and where their captions are written.
//!
//! - `inputs`: which photos are meant; `pattern`: which paths match a pattern; `name`: paths as text;
//! - `resume`: which of them earlier runs have finished;
//! - `run`: captions the others, several at a time;
//! - `record`: what is written about a photo; `spreadsheet`: as a table; `output`: to one
//!   `destination`; `sidecar`: to a file next to each photo; `library`: to a library; `results`: reads
//!   what was written;
//! - `mark`: proves that a file is ours; `replace`: replaces a whole file;
//! - `progress`: reports progress and the summary.

pub(super) mod destination;
pub(super) mod inputs;
pub(super) mod library;
mod mark;
pub(super) mod name;
pub(super) mod output;
mod pattern;
pub(super) mod progress;
pub(super) mod record;
mod replace;
pub(super) mod results;
pub(super) mod resume;
pub(super) mod run;
pub(super) mod sidecar;
mod spreadsheet;
