//! Image captions on your own machine: BLIP behind an HTTP server and a command line.
//!
//! ```
//! # #[cfg(feature = "embedded-model")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use cutline::{CaptionParams, Captioner, CaptionerSettings};
//!
//! // Loads the embedded model. Clones of a captioner are cheap and share the model.
//! let captioner = Captioner::load(&CaptionerSettings::default())?;
//! let photo = std::fs::read("assets/cat.jpg")?;
//! let caption = captioner.caption(photo, CaptionParams::default()).await?;
//! assert_eq!(caption.caption, "a cat sitting on top of a table");
//! # Ok(())
//! # }
//! # #[cfg(not(feature = "embedded-model"))]
//! # fn main() {}
//! ```
//!
//! # The way of a request
//!
//! Each module only imports modules below it.
//!
//! | module | what it does |
//! |---|---|
//! | [`cli`] | parses the command line and runs one command |
//! | [`http`] | parses requests, applies limits, and writes answers and errors |
//! | [`mcp`] | tools of the Model Context Protocol, for the command line and for HTTP |
//! | [`config`] | all settings: names, defaults, ranges |
//! | [`fetch`] | images by URL, from hosts that the operator allows |
//! | [`library`], [`near_tags`] | captions on their way into a library; tags of similar photos in it |
//! | [`accounts`] | keys in the library: what they may use, and have used |
//! | [`captioner`] | the use case: photos and parameters in, captions out |
//! | [`cache`] | stores answers, and lets equal requests share one computation |
//! | [`tokenizer`] | prompts to token ids, token ids to text |
//! | [`scheduler`] | queues jobs and batches them continuously on one model thread |
//! | [`engine`] | loads a checkpoint, encodes images, and decodes captions step by step |
//! | [`metrics`], [`telemetry`] | counters for Prometheus, logs, traces |
//!
//! The parts that stand alone are crates, which this crate re-exports: [`image`](mod@image) decodes and
//! resizes photos, [`blip`] is the model, [`generate`] chooses the next token, [`kernels`] does the
//! arithmetic on CPUs, [`score`] compares captions with references, [`tags`] has vocabularies of tags,
//! [`templates`] has prompts and what experiments with them show, [`xmp`] edits sidecar files, and
//! [`error`] is the error type of all of them.

pub mod accounts;
pub mod cache;
pub mod captioner;
pub mod cli;
pub mod config;
pub mod engine;
pub mod fetch;
pub mod http;
pub mod library;
pub mod mcp;
pub mod metrics;
pub mod near_tags;
mod prompts;
pub mod routing;
pub mod scheduler;
pub mod telemetry;
mod text;
pub mod tokenizer;
mod vocabularies;

pub use cutline_blip as blip;
pub use cutline_error as error;
pub use cutline_generate as generate;
pub use cutline_image as image;
pub use cutline_kernels as kernels;
pub use cutline_prompts as templates;
pub use cutline_score as score;
pub use cutline_tags as tags;
pub use cutline_xmp as xmp;

#[doc(inline)]
pub use captioner::{Caption, CaptionParams, Captioner, CaptionerSettings};
#[doc(inline)]
pub use config::Settings;
#[doc(inline)]
pub use error::Error;
