//! Captions one photo with the library:
//!
//! ```text
//! cargo run --release --example caption_photo assets/cat.jpg
//! ```

use std::error::Error;
use std::path::Path;

use cutline::captioner::{CaptionParams, Captioner, CaptionerSettings};
use cutline::config::{Values, captioner_settings};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let photo = std::env::args().nth(1).ok_or("usage: caption_photo PHOTO")?;
    // The embedded model, unless the environment or `.env` names another one, for example
    // MODEL=Salesforce/blip-image-captioning-base.
    let settings = captioner_settings(&Values::of_process())?;
    println!("{}", caption(settings, Path::new(&photo)).await?);
    Ok(())
}

/// The caption of the photo at `path`.
pub(crate) async fn caption(
    settings: CaptionerSettings,
    path: &Path,
) -> Result<String, Box<dyn Error>> {
    // Loading takes a moment and blocks. Load once, then share clones: they are cheap.
    let captioner = tokio::task::spawn_blocking(move || Captioner::load(&settings)).await??;
    let caption = captioner.caption(std::fs::read(path)?, CaptionParams::default()).await?;
    Ok(caption.caption)
}
