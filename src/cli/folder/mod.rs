//! Many photos at once: where they come from, and where their captions go.
//!
//! - `inputs`: which photos are meant;
//! - `record`: what is written of a photo, and in what format;
//! - `results`: reading that again; `output`: appending to it;
//! - `sidecar`: captions beside their photos;
//! - `plan`: what is done already and what is left;
//! - `work`: captioning what is left, with several in hand;
//! - `progress`: what is told meanwhile, and at the end.

pub(super) mod inputs;
pub(super) mod output;
pub(super) mod plan;
pub(super) mod progress;
pub(super) mod record;
pub(super) mod results;
pub(super) mod sidecar;
pub(super) mod work;
