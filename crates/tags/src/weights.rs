//! One score from what is known about a tag: a logistic function with few weights.

use cutline_error::{Error, Result};
use serde::{Deserialize, Serialize};

/// What speaks for a tag.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Hints {
    /// By how much the model prefers it to saying nothing in particular, in nats; `None` if it was not
    /// asked.
    pub likelihood: Option<f32>,
    /// The share of the captions with a word for it, 0–1; `None` if there are none.
    pub caption: Option<f32>,
    /// The share of similar photos that have it, 0–1; `None` if there are none.
    pub near: Option<f32>,
}

/// The weights of hints. Those that are not known count nothing, and shift nothing.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weights {
    /// Of nothing.
    pub bias: f32,
    /// Of a nat.
    pub likelihood: f32,
    /// Of the share of captions.
    pub caption: f32,
    /// Of the share of similar photos.
    pub near: f32,
    /// Added for a tag that none of the similar photos has; below 0.
    pub not_near: f32,
}

/// Beyond this many nats, more makes no difference.
const MOST_NATS: f32 = 12.0;

/// The largest weight.
const MOST: f32 = 1000.0;

impl Hints {
    /// What each weight is multiplied with.
    pub(crate) fn row(self) -> [f64; 5] {
        let nats = self.likelihood.map_or(0.0, |nats| nats.clamp(-MOST_NATS, MOST_NATS));
        let (near, not_near) = match self.near {
            Some(share) if share > 0.0 => (share, 0.0),
            Some(_) => (0.0, 1.0),
            None => (0.0, 0.0),
        };
        [1.0, nats, self.caption.unwrap_or(0.0), near, not_near].map(f64::from)
    }
}

impl Weights {
    /// The score of a tag, 0–1.
    #[must_use]
    pub fn score(&self, hints: Hints) -> f32 {
        let nats = hints.likelihood.map_or(0.0, |nats| nats.clamp(-MOST_NATS, MOST_NATS));
        let near = match hints.near {
            Some(share) if share > 0.0 => self.near * share,
            Some(_) => self.not_near,
            None => 0.0,
        };
        let sum =
            self.bias + self.likelihood * nats + self.caption * hints.caption.unwrap_or(0.0) + near;
        1.0 / (1.0 + (-sum).exp())
    }

    /// Reads the weights of a file.
    ///
    /// # Errors
    /// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter), naming `weights`: these are none.
    pub fn from_json(json: &[u8]) -> Result<Self> {
        let read: Self = serde_json::from_slice(json).map_err(|error| {
            let detail = format!(
                "these are no weights ({error}); write {{\"bias\", \"likelihood\", \"caption\", \
                 \"near\", \"not_near\"}} as cutline tags fit does"
            );
            Error::parameter("weights", detail).with_source(error)
        })?;
        read.check()
    }

    /// # Errors
    /// [`InvalidParameter`](cutline_error::ErrorKind::InvalidParameter): one is no number, or too large.
    pub(crate) fn check(self) -> Result<Self> {
        let fits = |weight: &f64| weight.is_finite() && weight.abs() <= f64::from(MOST);
        if self.to_array().iter().all(fits) {
            return Ok(self);
        }
        Err(Error::parameter("weights", format!("weights are numbers from -{MOST} to {MOST}")))
    }

    pub(crate) fn to_array(self) -> [f64; 5] {
        let Self { bias, likelihood, caption, near, not_near } = self;
        [bias, likelihood, caption, near, not_near].map(f64::from)
    }

    #[allow(clippy::cast_possible_truncation)] // Enough digits.
    pub(crate) fn from_array(weights: [f64; 5]) -> Self {
        let [bias, likelihood, caption, near, not_near] = weights.map(|weight| weight as f32);
        Self { bias, likelihood, caption, near, not_near }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WEIGHTS: Weights =
        Weights { bias: -1.0, likelihood: 0.5, caption: 3.0, near: 2.0, not_near: -0.5 };

    #[test]
    fn hints_raise_the_score_and_unknown_ones_do_nothing() {
        let score = |likelihood, caption, near| WEIGHTS.score(Hints { likelihood, caption, near });
        let none = score(None, None, None);
        assert!((none - 1.0 / (1.0 + 1.0_f32.exp())).abs() < 1e-6);
        assert!(score(Some(1.0), None, None) > none);
        assert!(score(None, Some(0.2), None) > none);
        assert!(score(None, None, Some(0.2)) > none && score(None, None, Some(0.0)) < none);
        for likelihood in [f32::NEG_INFINITY, -1e30, 1e30, f32::INFINITY] {
            assert!((0.0..=1.0).contains(&score(Some(likelihood), None, None)));
        }
    }

    #[test]
    fn weights_of_a_file_are_checked() {
        let json = serde_json::to_string(&WEIGHTS).unwrap();
        assert_eq!(Weights::from_json(json.as_bytes()).unwrap(), WEIGHTS);
        for wrong in [
            "{}",
            r#"{"bias": 1, "likelihood": 1, "caption": 1, "near": 1, "not_near": 1e9}"#,
            r#"{"bias": 1, "likelihood": 1, "caption": 1, "near": 1, "not_near": 1, "more": 1}"#,
        ] {
            let error = Weights::from_json(wrong.as_bytes()).unwrap_err();
            assert_eq!(error.field(), Some("weights"), "{wrong}: {error}");
        }
    }

    #[test]
    fn a_score_is_the_sum_of_the_row_with_the_weights() {
        for near in [None, Some(0.0), Some(0.5)] {
            let hints = Hints { likelihood: Some(20.0), caption: Some(0.4), near };
            let sum: f64 = hints.row().iter().zip(WEIGHTS.to_array()).map(|(x, w)| x * w).sum();
            let score = f64::from(WEIGHTS.score(hints));
            assert!((score - 1.0 / (1.0 + (-sum).exp())).abs() < 1e-6, "{near:?}");
        }
    }
}
