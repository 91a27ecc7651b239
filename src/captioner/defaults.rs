//! A model's own defaults of decoding, for the parameters that a request does not name.

use super::info::GenerationDefaults;
use super::params::CaptionParams;
use crate::engine::GenerationParams;

/// The parameters for which a model may have its own default.
const DEFAULTED: [&str; 6] = [
    "max_new_tokens",
    "min_new_tokens",
    "num_beams",
    "length_penalty",
    "repetition_penalty",
    "no_repeat_ngram_size",
];

/// Which parameters of decoding a request names, even if with the general default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Given(u8);

impl Given {
    /// Those among `names` for which a model may have its own default.
    pub fn of<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Self(names.into_iter().fold(0, |bits, name| bits | Self::bit(name)))
    }

    fn has(self, name: &str) -> bool {
        self.0 & Self::bit(name) != 0
    }

    fn bit(name: &str) -> u8 {
        DEFAULTED.iter().position(|one| *one == name).map_or(0, |at| 1 << at)
    }
}

impl CaptionParams {
    /// The same parameters, with the model's `own` defaults for those that are neither named nor
    /// different from the general default. Sampling keeps the general ones: a model's own are for its
    /// best caption.
    #[must_use]
    pub fn with_defaults(&self, own: &GenerationDefaults) -> Self {
        let mut params = self.clone();
        if self.do_sample {
            return params;
        }
        let (given, general) = (self.given, GenerationParams::default());
        let free = |name: &str, unchanged: bool| unchanged && !given.has(name);
        if free("max_new_tokens", self.max_new_tokens == general.max_new_tokens) {
            params.max_new_tokens = own.max_new_tokens.max(self.min_new_tokens);
        }
        if free("min_new_tokens", self.min_new_tokens == general.min_new_tokens) {
            params.min_new_tokens = own.min_new_tokens.min(params.max_new_tokens);
        }
        if free("num_beams", self.num_beams == general.num_beams) {
            params.num_beams = own.num_beams;
        }
        let same = |one: f32, other: f32| one.to_bits() == other.to_bits();
        if free("length_penalty", same(self.length_penalty, general.length_penalty)) {
            params.length_penalty = own.length_penalty;
        }
        if free("repetition_penalty", same(self.repetition_penalty, general.repetition_penalty)) {
            params.repetition_penalty = own.repetition_penalty;
        }
        let size = self.no_repeat_ngram_size;
        if free("no_repeat_ngram_size", size == general.no_repeat_ngram_size) {
            params.no_repeat_ngram_size = own.no_repeat_ngram_size;
        }
        params
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::captioner::ParameterFields;

    fn fields(pairs: &[(&str, &str)]) -> CaptionParams {
        let mut fields = ParameterFields::default();
        for (name, text) in pairs {
            fields.add_text(name, text).unwrap();
        }
        fields.finish().unwrap()
    }

    fn own() -> GenerationDefaults {
        GenerationDefaults {
            max_new_tokens: 16,
            max_new_tokens_limit: 64,
            min_new_tokens: 5,
            num_beams: 3,
            num_beams_limit: 10,
            num_captions_limit: 10,
            length_penalty: 0.5,
            repetition_penalty: 1.5,
            no_repeat_ngram_size: 2,
        }
    }

    #[test]
    fn a_model_has_its_own_defaults() {
        let params = CaptionParams::default().with_defaults(&own());
        assert_eq!((params.max_new_tokens, params.min_new_tokens, params.num_beams), (16, 5, 3));
        assert_eq!((params.length_penalty, params.repetition_penalty), (0.5, 1.5));
        assert_eq!(params.no_repeat_ngram_size, 2);
    }

    #[test]
    fn what_a_request_names_wins_over_the_models_default() {
        for (name, text) in [
            ("max_new_tokens", "20"),
            ("min_new_tokens", "0"),
            ("num_beams", "1"),
            ("length_penalty", "1"),
            ("repetition_penalty", "1"),
            ("no_repeat_ngram_size", "0"),
        ] {
            let params = fields(&[(name, text)]).with_defaults(&own());
            let value = serde_json::to_value(params).unwrap()[name].as_f64().unwrap();
            assert_eq!(value, text.parse::<f64>().unwrap(), "{name}");
        }
        let in_code = CaptionParams { num_beams: 2, max_new_tokens: 3, ..CaptionParams::default() };
        let params = in_code.with_defaults(&own());
        assert_eq!((params.num_beams, params.max_new_tokens, params.min_new_tokens), (2, 3, 3));
        params.validate().unwrap();
        let long = fields(&[("min_new_tokens", "18")]).with_defaults(&own());
        assert_eq!((long.min_new_tokens, long.max_new_tokens), (18, 18));
        let sampled = fields(&[("do_sample", "true")]);
        assert_eq!(sampled.with_defaults(&own()), sampled);
    }
}
