//! RGB to the normalised planes that the model reads, as transformers' `BlipImageProcessor` makes them,
//! configured by a checkpoint's `preprocessor_config.json`.

use serde_json::{Map, Value};

use super::decode::DecodedImage;
use super::resize::resize;
use cutline_error::{Error, ErrorKind, Result};

/// Increased whenever the same bytes give different pixel values than before. It is part of cache keys
/// and fingerprints, so that old results are not mistaken for present ones.
pub const PREPROCESSING_VERSION: u32 = 2;

/// A preprocessed image: normalised RGB planes, channel-first, `3 × height × width`.
#[derive(Debug, Clone, PartialEq)]
pub struct PixelValues {
    /// `3 · height · width` values, plane after plane, row after row.
    pub data: Vec<f32>,
    /// Pixels a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
}

/// The resampling filter; Pillow's `Resampling`.
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
    /// The mean of the covered pixels.
    Box,
    /// A Hamming window.
    Hamming,
}

/// How an image becomes the model's input. [`PreprocessConfig::default`] is that of
/// `BlipImageProcessor` (transformers 5.23, `models/blip/image_processing_blip.py`);
/// [`PreprocessConfig::from_json`] reads a checkpoint's `preprocessor_config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct PreprocessConfig {
    /// Width of the model's input, in pixels.
    pub width: usize,
    /// Height of the model's input, in pixels.
    pub height: usize,
    /// The filter that stretches an image to that size.
    pub resample: Resample,
    /// The factor for levels (0–255).
    pub rescale_factor: f64,
    /// Subtracted next, for red, green and blue.
    pub mean: [f64; 3],
    /// The divisor in the last step, for red, green and blue; not zero.
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
    /// The largest side that can be configured. Position embeddings end long before.
    pub const MAX_SIDE: usize = 8192;

    /// The same configuration for an input of `width × height` pixels.
    ///
    /// # Errors
    /// [`ErrorKind::Config`] when a side is 0 or over
    /// [`Self::MAX_SIDE`]. The engine checks that the model's patches fit.
    pub fn with_size(self, width: usize, height: usize) -> Result<Self> {
        let allowed = 1..=Self::MAX_SIDE;
        if !allowed.contains(&width) || !allowed.contains(&height) {
            return Err(Error::new(
                ErrorKind::Config,
                format!(
                    "images cannot be scaled to {width}×{height}; give sides between 1 and {}",
                    Self::MAX_SIDE
                ),
            ));
        }
        Ok(Self { width, height, ..self })
    }

    /// Bytes of one input image, as [`preprocess`](Self::preprocess) returns it.
    #[must_use]
    pub fn input_bytes(&self) -> usize {
        3 * self.width * self.height * size_of::<f32>()
    }

    /// Stretches, rescales and normalises `image`: `3 × height × width` values.
    ///
    /// # Errors
    /// None for an image from [`decode`](super::decode()); anything else is a defect and reported as
    /// [`ErrorKind::Internal`].
    pub fn preprocess(&self, image: &DecodedImage) -> Result<PixelValues> {
        Ok(self.normalize(&self.resize(image)?))
    }

    /// Stretches `image` to `width × height` without keeping its aspect ratio. Returns
    /// `3 · width · height` bytes of sRGB: red, green, blue, row after row.
    ///
    /// # Errors
    /// None for an image from [`decode`](super::decode()); anything else is a defect and reported as
    /// [`ErrorKind::Internal`].
    pub fn resize(&self, image: &DecodedImage) -> Result<Vec<u8>> {
        Ok(image.space.convert(resize(image, self.width, self.height, self.resample)?))
    }

    /// Converts levels, which are red, green and blue of each pixel in turn, to values.
    #[must_use]
    pub fn normalize(&self, rgb: &[u8]) -> PixelValues {
        let plane = self.width * self.height;
        let mut data = Vec::with_capacity(3 * plane);
        for channel in 0..3 {
            // There are only 256 levels.
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

/// Steps of other processors that are not implemented. Asking for one is an error: without it the
/// model would see different images from those it was trained on.
const ABSENT_STEPS: [&str; 6] = [
    "do_center_crop",
    "do_pad",
    "do_thumbnail",
    "do_align_long_axis",
    "do_reduce_labels",
    "do_flip_channel_order",
];

impl PreprocessConfig {
    /// Reads a `preprocessor_config.json` from the hub. Missing keys, or a missing file, give the
    /// defaults. `do_convert_rgb` is ignored: the model only takes RGB.
    ///
    /// # Errors
    /// [`ErrorKind::Model`]: the file is not a JSON object, a value has the wrong type or range, or a
    /// step is not implemented. The detail names the key.
    pub fn from_json(json: Option<&[u8]>) -> Result<Self> {
        let Some(json) = json else { return Ok(Self::default()) };
        let keys: Map<String, Value> = serde_json::from_slice(json).map_err(|error| {
            Error::model("preprocessor_config.json is not a JSON object; fetch it again")
                .with_source(error)
        })?;
        let keys = Keys(keys);
        keys.refuse_absent_steps()?;

        let default = Self::default();
        let (width, height) = keys.size()?.unwrap_or((default.width, default.height));
        let mut config = default.with_size(width, height).map_err(|error| {
            Error::model(format!("preprocessor_config.json: \"size\": {error}"))
        })?;
        if let Some(resample) = keys.resample()? {
            config.resample = resample;
        }
        if let Some(factor) = keys.number("rescale_factor")? {
            config.rescale_factor = factor;
        }
        if let Some(mean) = keys.channels("image_mean")? {
            config.mean = mean;
        }
        if let Some(std) = keys.channels("image_std")? {
            config.std = std;
        }
        if keys.flag("do_rescale")? == Some(false) {
            config.rescale_factor = 1.0;
        }
        if keys.flag("do_normalize")? == Some(false) {
            (config.mean, config.std) = ([0.0; 3], [1.0; 3]);
        }
        if config.std.contains(&0.0) {
            return Err(refuse("image_std", "must not be 0"));
        }
        Ok(config)
    }
}

fn refuse(key: &str, why: &str) -> Error {
    Error::new(ErrorKind::Model, format!("preprocessor_config.json: \"{key}\" {why}"))
}

struct Keys(Map<String, Value>);

impl Keys {
    /// transformers treats `null` like a missing key.
    fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn refuse_absent_steps(&self) -> Result<()> {
        for key in ABSENT_STEPS {
            if self.flag(key)? == Some(true) {
                return Err(refuse(
                    key,
                    "asks for a step that is not supported; use another checkpoint",
                ));
            }
        }
        if self.flag("do_resize")? == Some(false) {
            return Err(refuse("do_resize", "must be true: all images of the model have one size"));
        }
        Ok(())
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.get(key)
            .map(|value| value.as_bool().ok_or_else(|| refuse(key, "must be true or false")))
            .transpose()
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        self.get(key)
            .map(|value| value.as_f64().ok_or_else(|| refuse(key, "must be a number")))
            .transpose()
    }

    /// One number for each channel, or one for all.
    fn channels(&self, key: &str) -> Result<Option<[f64; 3]>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        if let Some(all) = value.as_f64() {
            return Ok(Some([all; 3]));
        }
        let numbers: Option<Vec<f64>> =
            value.as_array().and_then(|list| list.iter().map(Value::as_f64).collect());
        match numbers.as_deref() {
            Some(&[red, green, blue]) => Ok(Some([red, green, blue])),
            _ => Err(refuse(key, "must be three numbers")),
        }
    }

    /// `(width, height)`, from `{"height": 384, "width": 384}` or, in older files, `384`.
    fn size(&self) -> Result<Option<(usize, usize)>> {
        let Some(value) = self.get("size") else { return Ok(None) };
        let side = |value: Option<&Value>| {
            value.and_then(Value::as_u64).and_then(|side| usize::try_from(side).ok())
        };
        let sides = match value {
            Value::Object(sides) => side(sides.get("width")).zip(side(sides.get("height"))),
            number => side(Some(number)).map(|side| (side, side)),
        };
        let why = "must be a number, or an object with \"height\" and \"width\"; \
                   sizes that keep the aspect ratio are not supported";
        sides.map(Some).ok_or_else(|| refuse("size", why))
    }

    /// Pillow's `Resampling`, as its number.
    fn resample(&self) -> Result<Option<Resample>> {
        let Some(value) = self.get("resample") else { return Ok(None) };
        let resample = match value.as_u64() {
            Some(0) => Resample::Nearest,
            Some(1) => Resample::Lanczos,
            Some(2) => Resample::Bilinear,
            Some(3) => Resample::Bicubic,
            Some(4) => Resample::Box,
            Some(5) => Resample::Hamming,
            _ => return Err(refuse("resample", "must be one of Pillow's numbers, 0 to 5")),
        };
        Ok(Some(resample))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<PreprocessConfig> {
        PreprocessConfig::from_json(Some(json.as_bytes()))
    }

    #[test]
    fn missing_keys_give_blips_defaults() {
        assert_eq!(PreprocessConfig::from_json(None).unwrap(), PreprocessConfig::default());
        assert_eq!(parse("{}").unwrap(), PreprocessConfig::default());
        assert_eq!(
            parse(r#"{"size": null, "resample": null, "do_pad": null}"#).unwrap(),
            PreprocessConfig::default()
        );
    }

    /// The file of `Salesforce/blip-image-captioning-base`.
    #[test]
    fn the_hubs_file_is_read() {
        let config = parse(
            r#"{"do_normalize": true, "do_resize": true,
                "image_mean": [0.48145466, 0.4578275, 0.40821073],
                "image_processor_type": "BlipImageProcessor",
                "image_std": [0.26862954, 0.26130258, 0.27577711],
                "processor_class": "BlipProcessor", "resample": 3,
                "size": {"height": 384, "width": 384}, "size_divisor": 32}"#,
        );
        assert_eq!(config.unwrap(), PreprocessConfig::default());
    }

    #[test]
    fn every_key_has_its_effect() {
        let config = parse(
            r#"{"size": {"height": 96, "width": 128}, "resample": 2, "rescale_factor": 0.5,
                "image_mean": 0.5, "image_std": [1, 2, 4]}"#,
        )
        .unwrap();
        assert_eq!((config.width, config.height), (128, 96));
        assert_eq!(config.resample, Resample::Bilinear);
        assert_eq!((config.rescale_factor, config.mean), (0.5, [0.5; 3]));
        assert_eq!(config.std, [1.0, 2.0, 4.0]);
        let config = parse(r#"{"size": 224, "do_rescale": false, "do_normalize": false}"#).unwrap();
        assert_eq!((config.width, config.height), (224, 224));
        assert_eq!((config.rescale_factor, config.mean, config.std), (1.0, [0.0; 3], [1.0; 3]));
    }

    #[test]
    fn unsupported_values_are_named() {
        for (json, key) in [
            (r#"{"do_center_crop": true}"#, "do_center_crop"),
            (r#"{"do_pad": true}"#, "do_pad"),
            (r#"{"do_resize": false}"#, "do_resize"),
            (r#"{"do_normalize": "yes"}"#, "do_normalize"),
            (r#"{"size": {"shortest_edge": 384}}"#, "size"),
            (r#"{"size": 0}"#, "size"),
            (r#"{"size": 100000}"#, "size"),
            (r#"{"resample": 6}"#, "resample"),
            (r#"{"rescale_factor": "1/255"}"#, "rescale_factor"),
            (r#"{"image_mean": [0.5, 0.5]}"#, "image_mean"),
            (r#"{"image_std": [1, 0, 1]}"#, "image_std"),
        ] {
            let error = parse(json).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Model);
            assert!(error.detail().contains(&format!("\"{key}\"")), "{}", error.detail());
        }
        assert_eq!(parse("[]").unwrap_err().kind(), ErrorKind::Model);
    }
}
