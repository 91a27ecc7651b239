//! Image captions on the machine in front of you: BLIP behind an HTTP server and a command line.
//!
//! # Layout
//!
//! Imports go downwards only:
//!
//! ```text
//! main → http → captioner → {batching, image, text} → engine → {generate, blip} → candle
//! ```

pub mod engine;
pub mod error;
pub mod generate;
