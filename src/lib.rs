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
pub mod batching;
pub mod blip;
pub mod cache;
pub mod captioner;
pub mod cli;
pub mod config;
pub mod engine;
pub mod error;
pub mod generate;
pub mod http;
pub mod image;
pub mod kernels;
pub mod metrics;
pub mod score;
pub mod telemetry;
pub mod text;
pub mod xmp;
