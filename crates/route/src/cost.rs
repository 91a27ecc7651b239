//! What an answer costs. What is not known has no cost; it is never taken for 0.

use serde::Deserialize;

/// What a backend takes for an answer, in the operator's currency.
#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Price {
    /// For each image.
    pub per_image: Option<f64>,
    /// For 1,000 tokens of the request, the image's among them.
    pub per_1k_in: Option<f64>,
    /// For 1,000 tokens of the answer.
    pub per_1k_out: Option<f64>,
}

/// The tokens of an answer, as far as the backend told them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Tokens of the request.
    pub input: Option<u64>,
    /// Tokens of the answer.
    pub output: Option<u64>,
    /// The answer was made before, so it costs nothing again.
    pub cached: bool,
}

impl Price {
    /// Whether all prices are numbers that make sense.
    pub(crate) fn is_sound(&self) -> bool {
        let all = [self.per_image, self.per_1k_in, self.per_1k_out];
        all.into_iter().flatten().all(|price| price.is_finite() && price >= 0.0)
    }

    /// The cost of one image's answer; `None` if there is no price, or if it depends on tokens that the
    /// backend did not tell.
    #[must_use]
    pub fn cost(&self, usage: Usage) -> Option<f64> {
        let by_token = |price: Option<f64>, tokens: Option<u64>| match (price, tokens) {
            (None, _) => Some(0.0),
            (Some(price), Some(tokens)) => Some(price * tokens as f64 / 1000.0),
            (Some(_), None) => None,
        };
        if *self == Self::default() {
            return None;
        }
        if usage.cached {
            return Some(0.0);
        }
        let tokens =
            by_token(self.per_1k_in, usage.input)? + by_token(self.per_1k_out, usage.output)?;
        Some(self.per_image.unwrap_or(0.0) + tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_costs_are_none_and_never_zero() {
        let told = Usage { input: Some(2000), output: Some(500), cached: false };
        let tokens = Price { per_1k_in: Some(0.5), per_1k_out: Some(2.0), per_image: None };
        assert_eq!(Price::default().cost(told), None);
        assert_eq!(tokens.cost(told), Some(2.0));
        assert_eq!(tokens.cost(Usage { output: None, ..told }), None);
        let image = Price { per_image: Some(0.25), ..Price::default() };
        assert_eq!(image.cost(Usage::default()), Some(0.25));
        assert_eq!(Price { per_image: Some(0.25), ..tokens }.cost(told), Some(2.25));
        let again = Usage { cached: true, output: None, ..told };
        assert_eq!(tokens.cost(again), Some(0.0), "nobody is asked for an answer of the cache");
        assert_eq!(Price::default().cost(again), None);
        let free = Price { per_image: Some(0.0), ..Price::default() };
        assert_eq!(free.cost(Usage::default()), Some(0.0), "a price of 0 is known");
    }
}
