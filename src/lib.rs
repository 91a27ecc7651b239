//! Image captions on the machine in front of you: BLIP behind an HTTP server and a command line.
//!
//! # Layout
//!
//! Imports go downwards only:
//!
//! ```text
//! main → {http, cli} → captioner → {cache, batching, image, text} → engine → {generate, blip} → candle
//! ```
//!
//! `metrics` and `error` lie below all of them.
pub mod cache;
pub mod captioner;
pub mod cli;
pub mod config;
pub mod engine;
pub mod http;
pub mod metrics;
pub mod scheduler;
pub mod telemetry;
pub mod tokenizer;

pub use cutline_blip as blip;
pub use cutline_error as error;
pub use cutline_generate as generate;
pub use cutline_image as image;
pub use cutline_kernels as kernels;
pub use cutline_score as score;
pub use cutline_xmp as xmp;
