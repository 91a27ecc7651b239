//! A checkpoint's `preprocessor_config.json`.

use serde_json::{Map, Value};

use super::preprocess::{PreprocessConfig, Resample};
use cutline_error::{Error, ErrorKind, Result};

/// Steps that some processors have and this one does not: asking for one is an error, for leaving
/// it out would give the model other images than it was trained on.
const ABSENT_STEPS: [&str; 6] = [
    "do_center_crop",
    "do_pad",
    "do_thumbnail",
    "do_align_long_axis",
    "do_reduce_labels",
    "do_flip_channel_order",
];

impl PreprocessConfig {
    /// Reads a `preprocessor_config.json` as the hub has it. What it does not say, and everything
    /// when there is none, is the default. `do_convert_rgb` is ignored: the model knows only RGB.
    ///
    /// # Errors
    /// [`ErrorKind::Model`]: no JSON object, a value of the wrong type or range, or a step that is
    /// not implemented; the detail names the key.
    pub fn from_json(json: Option<&[u8]>) -> Result<Self> {
        let Some(json) = json else { return Ok(Self::default()) };
        let keys: Map<String, Value> = serde_json::from_slice(json).map_err(|error| {
            Error::model("preprocessor_config.json is no JSON object; fetch it again")
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
    /// Absent and `null` are the same to transformers.
    fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|value| !value.is_null())
    }

    fn refuse_absent_steps(&self) -> Result<()> {
        for key in ABSENT_STEPS {
            if self.flag(key)? == Some(true) {
                return Err(refuse(key, "asks for a step that is not supported"));
            }
        }
        if self.flag("do_resize")? == Some(false) {
            return Err(refuse("do_resize", "must be true: the model needs images of one size"));
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
                   sizes that keep the aspect are not supported";
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
    fn nothing_said_is_blips_default() {
        assert_eq!(PreprocessConfig::from_json(None).unwrap(), PreprocessConfig::default());
        assert_eq!(parse("{}").unwrap(), PreprocessConfig::default());
        assert_eq!(
            parse(r#"{"size": null, "resample": null, "do_pad": null}"#).unwrap(),
            PreprocessConfig::default()
        );
    }

    /// As `Salesforce/blip-image-captioning-base` has it.
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
    fn what_is_not_supported_is_named() {
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
