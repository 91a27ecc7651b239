//! How to decode, in the words of servers for language models.

use crate::captioner::{CaptionParams, Captioner};

/// What a request says about sampling.
#[derive(Debug, Default)]
pub(super) struct Sampling {
    pub(super) temperature: Option<f64>,
    pub(super) top_p: Option<f64>,
    pub(super) top_k: Option<i64>,
    pub(super) seed: Option<i64>,
}

/// Up to this temperature the most likely token is taken. Some clients always send 0.1 and mean "no
/// surprises"; sampling would keep their answers out of the cache.
const COLD: f64 = 0.2;

/// The highest temperature that these servers accept.
const HOT: f64 = 2.0;

impl Sampling {
    /// The native parameters. What is out of range is clamped. Without a temperature nothing is sampled.
    pub(super) fn apply(&self, params: &mut CaptionParams) {
        let Some(temperature) = self.temperature.filter(|t| *t > COLD) else { return };
        params.do_sample = true;
        params.num_beams = 1;
        params.temperature = temperature.min(HOT) as f32;
        if let Some(top_p) = self.top_p.filter(|p| *p > 0.0) {
            params.top_p = top_p.min(1.0) as f32;
        }
        if let Some(top_k) = self.top_k.and_then(|k| usize::try_from(k).ok()) {
            params.top_k = top_k.min(1 << 20);
        }
        params.seed = self.seed.map(i64::cast_unsigned);
    }
}

/// Sets the maximum number of tokens to `wanted`, within what the model writes by default: chat clients
/// ask for thousands.
pub(super) fn limit_tokens(params: &mut CaptionParams, wanted: Option<u64>, captioner: &Captioner) {
    let most = captioner.info().generation.max_new_tokens.max(params.max_new_tokens);
    if let Some(wanted) = wanted {
        params.max_new_tokens = usize::try_from(wanted).unwrap_or(most).clamp(1, most);
        params.min_new_tokens = params.min_new_tokens.min(params.max_new_tokens);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(sampling: &Sampling) -> CaptionParams {
        let mut params = CaptionParams::default();
        sampling.apply(&mut params);
        params.validate().unwrap();
        params
    }

    #[test]
    fn only_a_warm_temperature_samples() {
        let given = Sampling { temperature: Some(0.1), top_p: Some(0.5), ..Sampling::default() };
        assert_eq!(applied(&given), CaptionParams::default());
        let none = Sampling { top_p: Some(0.5), seed: Some(1), ..Sampling::default() };
        assert_eq!(applied(&none), CaptionParams::default());
        let hot = Sampling {
            temperature: Some(1e300),
            top_p: Some(7.0),
            top_k: Some(i64::MAX),
            seed: Some(-1),
        };
        let params = applied(&hot);
        assert!(params.do_sample);
        assert_eq!((params.temperature, params.top_p, params.seed), (2.0, 1.0, Some(u64::MAX)));
        let odd = Sampling { temperature: Some(f64::NAN), ..Sampling::default() };
        assert_eq!(applied(&odd), CaptionParams::default());
    }
}
