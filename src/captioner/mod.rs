//! The use case: an image and parameters in, a caption out.
//!
//! There is one way to make a caption, and it is [`Captioner::start`]: HTTP, the command line and
//! the benches all come through here, and a whole answer is the fold of the stream of events.

mod caption;
mod info;
mod params;

pub use caption::{CacheState, Caption, Choice, ImageInfo, Timings};
pub use info::{GenerationDefaults, ModelInfo};
pub use params::{CachePolicy, CaptionParams};
