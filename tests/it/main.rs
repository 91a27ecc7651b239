//! Integration tests, one crate.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod api;
mod architecture;
mod batch_size;
mod colors;
mod command_line;
#[cfg(feature = "embedded-model")]
mod examples;
mod image;
mod parity;
mod processors;
mod quantize;
mod readme;
mod repetition;
mod score;
mod settings;
#[cfg(feature = "embedded-model")]
mod tags;
mod tokenizer;
mod weights;
