//! RGB to the normalised planes that the model reads: transformers' `BlipImageProcessor`.

use super::decode::DecodedImage;
use super::pixel_values::PixelValues;
use super::resize::resize;
use cutline_error::{Error, Result};

/// Raised whenever the same bytes become other pixel values than before, so that nobody mistakes
/// what was computed of the old ones for what would be computed now.
pub const PREPROCESSING_VERSION: u32 = 1;

/// How a pixel's value is found in the image before: Pillow's `Resampling`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resample {
    /// The nearest pixel.
    Nearest,
    /// Windowed sinc over three lobes.
    Lanczos,
    /// A triangle.
    Bilinear,
    /// The cubic with a = -0.5.
    Bicubic,
    /// The mean of the pixels that are covered.
    Box,
    /// A Hamming window.
    Hamming,
}

/// What is done to an image before the model sees it. [`PreprocessConfig::default`] is that of
/// `BlipImageProcessor` (transformers 5.23, `models/blip/image_processing_blip.py`), and
/// [`PreprocessConfig::from_json`] reads a checkpoint's `preprocessor_config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct PreprocessConfig {
    /// Pixels a row that every image is stretched to.
    pub width: usize,
    /// Rows that every image is stretched to.
    pub height: usize,
    /// How it is stretched.
    pub resample: Resample,
    /// What a level (0–255) is multiplied by.
    pub rescale_factor: f64,
    /// Subtracted after that, for red, green and blue.
    pub mean: [f64; 3],
    /// Divided by at last, for red, green and blue; not zero.
    pub std: [f64; 3],
}

impl Default for PreprocessConfig {
    fn default() -> Self {
        Self {
            width: 384,
            height: 384,
            resample: Resample::Bicubic,
            rescale_factor: 1.0 / 255.0,
            // OPENAI_CLIP_MEAN and OPENAI_CLIP_STD of transformers' `image_utils.py`.
            mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
            std: [0.268_629_54, 0.261_302_58, 0.275_777_11],
        }
    }
}

impl PreprocessConfig {
    /// The largest side that can be asked for; position embeddings end long before.
    pub const MAX_SIDE: usize = 8192;

    /// The same, for images of `width × height`.
    ///
    /// # Errors
    /// [`ErrorKind::Config`](cutline_error::ErrorKind::Config) when a side is 0 or over
    /// [`Self::MAX_SIDE`]. Whether the model's patches fit is the engine's to say.
    pub fn with_size(self, width: usize, height: usize) -> Result<Self> {
        let allowed = 1..=Self::MAX_SIDE;
        if !allowed.contains(&width) || !allowed.contains(&height) {
            return Err(Error::new(
                cutline_error::ErrorKind::Config,
                format!(
                    "images cannot be scaled to {width}×{height}; give sides between 1 and {}",
                    Self::MAX_SIDE
                ),
            ));
        }
        Ok(Self { width, height, ..self })
    }

    /// Bytes of what [`preprocess`](Self::preprocess) makes of any image.
    #[must_use]
    pub fn input_bytes(&self) -> usize {
        3 * self.width * self.height * size_of::<f32>()
    }

    /// Stretches, rescales and normalises `image`: `3 × height × width` values.
    ///
    /// # Errors
    /// None for an image that [`decode`](super::decode()) made; a defect is internal.
    pub fn preprocess(&self, image: &DecodedImage) -> Result<PixelValues> {
        Ok(self.normalize(&self.resize(image)?))
    }

    /// Stretches `image` to `width × height`, without keeping its aspect: `3 · width · height`
    /// bytes of sRGB, red, green, blue, row after row.
    ///
    /// # Errors
    /// None for an image that [`decode`](super::decode()) made; a defect is internal.
    pub fn resize(&self, image: &DecodedImage) -> Result<Vec<u8>> {
        Ok(image.space.convert(resize(image, self.width, self.height, self.resample)?))
    }

    /// Levels to values: a table of 256 for each plane says all that can come out.
    fn normalize(&self, rgb: &[u8]) -> PixelValues {
        let plane = self.width * self.height;
        let mut data = Vec::with_capacity(3 * plane);
        for channel in 0..3 {
            let table = self.table(channel);
            let levels = rgb.as_chunks::<3>().0.iter();
            data.extend(levels.map(|pixel| table[usize::from(pixel[channel])]));
        }
        PixelValues { data, width: self.width, height: self.height }
    }

    fn table(&self, channel: usize) -> [f32; 256] {
        let mut level = 0.0;
        [(); 256].map(|()| {
            let value = (level * self.rescale_factor - self.mean[channel]) / self.std[channel];
            level += 1.0;
            #[expect(clippy::cast_possible_truncation, reason = "the model reads single precision")]
            let value = value as f32;
            value
        })
    }
}
