//! What a model says about itself in `cutline.json`, a file that only this program reads: its own
//! defaults of decoding, what its confidence is worth, and how often training showed it a word.

use std::collections::HashMap;

use serde::Deserialize;

use crate::engine::GenerationParams;
use cutline_error::{Error, Result};

/// The content of `cutline.json`. Every part may be missing.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelExtras {
    /// The defaults of decoding; those of transformers where it has none.
    pub generation: DecodingDefaults,
    /// What a confidence is worth.
    pub confidence: Calibration,
    /// How often a word was in the captions of the training; `None` if that is not known.
    pub support: Option<HashMap<String, u64>>,
}

impl ModelExtras {
    /// Reads the file; without one there are no extras.
    ///
    /// # Errors
    /// [`Model`](cutline_error::ErrorKind::Model): the file is broken, or a value is out of range.
    pub fn from_json(json: Option<&[u8]>) -> Result<Self> {
        let Some(json) = json else { return Ok(Self::default()) };
        let broken = |why: String| {
            Error::model(format!("cutline.json {why}; fetch the model again, or remove the file"))
        };
        let extras: Self = serde_json::from_slice(json)
            .map_err(|error| broken(format!("is not what it should be ({error})")))?;
        extras.generation.params().validate().map_err(|error| broken(format!("says: {error}")))?;
        if !extras.confidence.is_sound() {
            return Err(broken("has points of confidence that do not rise from 0 to 1".to_owned()));
        }
        Ok(extras)
    }
}

/// A model's defaults of decoding.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DecodingDefaults {
    /// Default of `max_new_tokens`.
    pub max_new_tokens: usize,
    /// Default of `min_new_tokens`.
    pub min_new_tokens: usize,
    /// Default of `num_beams`.
    pub num_beams: usize,
    /// Default of `length_penalty`.
    pub length_penalty: f32,
    /// Default of `repetition_penalty`.
    pub repetition_penalty: f32,
    /// Default of `no_repeat_ngram_size`.
    pub no_repeat_ngram_size: usize,
}

impl Default for DecodingDefaults {
    fn default() -> Self {
        let general = GenerationParams::default();
        Self {
            max_new_tokens: general.max_new_tokens,
            min_new_tokens: general.min_new_tokens,
            num_beams: general.num_beams,
            length_penalty: general.length_penalty,
            repetition_penalty: general.repetition_penalty,
            no_repeat_ngram_size: general.no_repeat_ngram_size,
        }
    }
}

impl DecodingDefaults {
    fn params(self) -> GenerationParams {
        GenerationParams {
            max_new_tokens: self.max_new_tokens,
            min_new_tokens: self.min_new_tokens,
            num_beams: self.num_beams,
            length_penalty: self.length_penalty,
            repetition_penalty: self.repetition_penalty,
            no_repeat_ngram_size: self.no_repeat_ngram_size,
            ..GenerationParams::default()
        }
    }
}

/// Points of a rising line from the probability that the model gives its caption to the share of
/// captions that were right where it was measured. Without points every value stays as it is.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(transparent)]
pub struct Calibration(Vec<[f32; 2]>);

impl Calibration {
    /// Whether all values are from 0 to 1, and both rise.
    fn is_sound(&self) -> bool {
        let within = self.0.iter().flatten().all(|value| (0.0..=1.0).contains(value));
        within && self.0.windows(2).all(|pair| pair[0][0] < pair[1][0] && pair[0][1] <= pair[1][1])
    }

    /// The share of right captions among those with this `confidence`.
    #[must_use]
    pub fn share(&self, confidence: f32) -> f32 {
        let (Some(&[first, least]), Some(&[last, most])) = (self.0.first(), self.0.last()) else {
            return confidence;
        };
        if confidence <= first || confidence.is_nan() {
            return least;
        }
        if confidence >= last {
            return most;
        }
        let above = self.0.partition_point(|point| point[0] <= confidence);
        let ([left, low], [right, high]) = (self.0[above - 1], self.0[above]);
        low + (high - low) * (confidence - left) / (right - left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<ModelExtras> {
        ModelExtras::from_json(Some(json.as_bytes()))
    }

    #[test]
    fn without_a_file_the_defaults_are_those_of_transformers() {
        let extras = ModelExtras::from_json(None).unwrap();
        assert_eq!(extras.generation.params(), GenerationParams::default());
        assert_eq!((extras.confidence.share(0.3), extras.support), (0.3, None));
        assert_eq!(read("{}").unwrap(), ModelExtras::default());
    }

    #[test]
    fn what_the_file_leaves_out_keeps_its_default() {
        let extras = read(r#"{"generation": {"num_beams": 3}, "support": {"cat": 7}}"#).unwrap();
        assert_eq!(extras.generation.num_beams, 3);
        assert_eq!(extras.generation.max_new_tokens, 20);
        assert_eq!(extras.support.unwrap()["cat"], 7);
    }

    #[test]
    fn a_broken_file_is_refused_with_the_reason() {
        for (json, why) in [
            (r#"{"generation": {"num_beams": 0}}"#, "num_beams"),
            (r#"{"generation": {"beams": 3}}"#, "beams"),
            (r#"{"confidence": [[0.2, 0.5], [0.1, 0.6]]}"#, "confidence"),
            (r#"{"confidence": [[0.2, 0.5], [0.3, 0.4]]}"#, "confidence"),
            (r#"{"confidence": [[0.2, 1.5]]}"#, "confidence"),
            ("7", "cutline.json"),
        ] {
            let error = read(json).unwrap_err();
            assert!(error.detail().contains(why), "{json}: {error}");
        }
    }

    #[test]
    fn confidence_lies_on_the_line_and_never_beyond_its_ends() {
        let line =
            read(r#"{"confidence": [[0.2, 0.4], [0.4, 0.8], [0.6, 0.9]]}"#).unwrap().confidence;
        for (confidence, share) in
            [(0.0, 0.4), (0.2, 0.4), (0.3, 0.6), (0.4, 0.8), (0.5, 0.85), (0.9, 0.9)]
        {
            assert!((line.share(confidence) - share).abs() < 1e-6, "{confidence}");
        }
        assert_eq!(line.share(f32::NAN).to_bits(), 0.4_f32.to_bits());
    }
}
