//! What an experiment shows.

use cutline_error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::str::FromStr;
use utoipa::ToSchema;

use crate::statistics::{
    Interval, bootstrap, bootstrap_difference, difference_of_shares, mean, wilson,
};

/// What an experiment is decided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema, Default)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// The share of texts that a person accepted, of those that a person decided about; more is better.
    #[default]
    Accepted,
    /// The share of their words that people changed; less is better.
    Edited,
    /// The model's confidence; more is better.
    Confidence,
    /// The time of a caption in milliseconds; less is better.
    Latency,
    /// What a caption costs; less is better.
    Cost,
}

impl Metric {
    /// The name in the interfaces.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "accepted",
            Self::Edited => "edited",
            Self::Confidence => "confidence",
            Self::Latency => "latency",
            Self::Cost => "cost",
        }
    }

    const fn more_is_better(self) -> bool {
        matches!(self, Self::Accepted | Self::Confidence)
    }
}

impl FromStr for Metric {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let all = [Self::Accepted, Self::Edited, Self::Confidence, Self::Latency, Self::Cost];
        all.into_iter().find(|metric| metric.as_str() == text).ok_or_else(|| {
            Error::parameter(
                "metric",
                "the metric is accepted, edited, confidence, latency or cost; correct it",
            )
        })
    }
}

/// What a person decided about a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Accepted as it is, or praised.
    Accepted,
    /// Replaced by another one.
    Edited,
    /// Refused, or criticised.
    Rejected,
}

/// One caption of an experiment, and what became of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The version of the prompt.
    pub version: u32,
    /// What a person decided, if one did.
    pub decision: Option<Decision>,
    /// The share of the words that were changed, 0–1, if somebody changed any.
    pub edit: Option<f64>,
    /// The model's confidence.
    pub confidence: Option<f64>,
    /// Milliseconds.
    pub latency: Option<f64>,
    /// What it cost, where this is known.
    pub cost: Option<f64>,
}

/// What a variant shows in one metric.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, ToSchema)]
pub struct Estimate {
    /// The number of captions that it is known of.
    pub n: u64,
    /// Their mean, or the share.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub mean: Option<f64>,
    /// The 95 % interval: Wilson's for shares, a bootstrap's for means.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub interval: Option<Interval>,
}

/// What a variant shows.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Arm {
    /// The version of the prompt.
    pub version: u32,
    /// Captions that were made with it.
    pub exposures: u64,
    /// The share of accepted texts.
    pub accepted: Estimate,
    /// The share of the words that people changed.
    pub edited: Estimate,
    /// The model's confidence.
    pub confidence: Estimate,
    /// Milliseconds.
    pub latency: Estimate,
    /// What a caption costs, where that is known.
    pub cost: Estimate,
}

/// What an experiment shows.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct Report {
    /// What it is decided by.
    pub metric: Metric,
    /// The captions of each variant with which the metric is known, before which there is no verdict.
    pub planned: u64,
    /// The variants in their order.
    pub arms: Vec<Arm>,
    /// What follows.
    pub verdict: Verdict,
}

/// What follows from an experiment.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// The planned number is not reached.
    TooEarly {
        /// What the variant with the fewest has.
        n: u64,
    },
    /// This version is better than every other one: the 95 % intervals of the differences, widened for their
    /// number, leave no zero.
    Better {
        /// The version.
        version: u32,
    },
    /// The planned number is reached, and no version is better than all others.
    NoDifference,
}

/// The values of one variant.
#[derive(Default)]
struct Values {
    decided: u64,
    accepted: u64,
    edited: Vec<f64>,
    confidence: Vec<f64>,
    latency: Vec<f64>,
    cost: Vec<f64>,
    all: u64,
}

/// The report of an experiment with these versions.
#[must_use]
pub fn report(metric: Metric, planned: u64, versions: &[u32], outcomes: &[Outcome]) -> Report {
    let values: Vec<Values> =
        versions.iter().map(|version| Values::of(*version, outcomes)).collect();
    let arms = versions.iter().zip(&values).map(|(version, values)| values.arm(*version)).collect();
    let verdict = verdict(metric, planned, versions, &values);
    Report { metric, planned, arms, verdict }
}

impl Values {
    fn of(version: u32, outcomes: &[Outcome]) -> Self {
        let mut values = Self::default();
        for outcome in outcomes.iter().filter(|outcome| outcome.version == version) {
            values.all += 1;
            values.decided += u64::from(outcome.decision.is_some());
            values.accepted += u64::from(outcome.decision == Some(Decision::Accepted));
            // A text that was accepted was changed by nothing.
            let unchanged = (outcome.decision == Some(Decision::Accepted)).then_some(0.0);
            values.edited.extend(outcome.edit.or(unchanged));
            values.confidence.extend(outcome.confidence);
            values.latency.extend(outcome.latency);
            values.cost.extend(outcome.cost);
        }
        values
    }

    fn arm(&self, version: u32) -> Arm {
        let mean_of = |values: &[f64]| Estimate {
            n: values.len() as u64,
            mean: (!values.is_empty()).then(|| mean(values)),
            interval: bootstrap(values),
        };
        let share = self.accepted as f64 / self.decided.max(1) as f64;
        Arm {
            version,
            exposures: self.all,
            accepted: Estimate {
                n: self.decided,
                mean: (self.decided > 0).then_some(share),
                interval: wilson(self.accepted, self.decided),
            },
            edited: mean_of(&self.edited),
            confidence: mean_of(&self.confidence),
            latency: mean_of(&self.latency),
            cost: mean_of(&self.cost),
        }
    }

    fn series(&self, metric: Metric) -> &[f64] {
        match metric {
            Metric::Accepted => &[],
            Metric::Edited => &self.edited,
            Metric::Confidence => &self.confidence,
            Metric::Latency => &self.latency,
            Metric::Cost => &self.cost,
        }
    }

    fn n(&self, metric: Metric) -> u64 {
        match metric {
            Metric::Accepted => self.decided,
            other => self.series(other).len() as u64,
        }
    }

    /// Whether it is better than another one in `metric`. `others` differences are looked at, each of which
    /// could be so by chance: their intervals are widened in proportion.
    fn is_better(&self, other: &Self, metric: Metric, others: usize) -> bool {
        let interval = match metric {
            Metric::Accepted => {
                difference_of_shares((self.accepted, self.decided), (other.accepted, other.decided))
            }
            metric => bootstrap_difference(self.series(metric), other.series(metric)),
        };
        let Some(Interval { low, high }) = interval else { return false };
        // Bonferroni's correction, for two to four variants: the quantile of the normal distribution for one,
        // two and three differences, divided by that for one.
        let wider = [1.0, 1.0, 1.144, 1.221][others.min(3)];
        let (middle, half) = (f64::midpoint(low, high), (high - low) / 2.0 * wider);
        if metric.more_is_better() { middle - half > 0.0 } else { middle + half < 0.0 }
    }
}

fn verdict(metric: Metric, planned: u64, versions: &[u32], values: &[Values]) -> Verdict {
    let n = values.iter().map(|values| values.n(metric)).min().unwrap_or_default();
    if n < planned.max(2) {
        return Verdict::TooEarly { n };
    }
    let others = values.len().saturating_sub(1);
    let best = values.iter().enumerate().find(|(at, one)| {
        let mut rest = values.iter().enumerate().filter(|(other, _)| other != at);
        rest.all(|(_, other)| one.is_better(other, metric, others))
    });
    match best {
        Some((at, _)) if others > 0 => Verdict::Better { version: versions[at] },
        _ => Verdict::NoDifference,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `accepted` of `all` texts of a version.
    fn outcomes(version: u32, accepted: usize, all: usize) -> Vec<Outcome> {
        let one = |at: usize| Outcome {
            version,
            decision: Some(if at < accepted { Decision::Accepted } else { Decision::Edited }),
            edit: (at >= accepted).then_some(0.5),
            confidence: Some(0.8),
            latency: Some(f64::from(version) * 100.0 + (at % 7) as f64),
            cost: None,
        };
        (0..all).map(one).collect()
    }

    #[test]
    fn there_is_no_verdict_before_the_planned_number() {
        // Already clear, and still too early.
        let seen = [outcomes(1, 40, 49), outcomes(2, 5, 60)].concat();
        let early = report(Metric::Accepted, 50, &[1, 2], &seen);
        assert_eq!(early.verdict, Verdict::TooEarly { n: 49 });
        let seen = [outcomes(1, 40, 50), outcomes(2, 5, 60)].concat();
        let enough = report(Metric::Accepted, 50, &[1, 2], &seen);
        assert_eq!(enough.verdict, Verdict::Better { version: 1 });
        assert_eq!(enough.arms[0].accepted.n, 50);
        assert_eq!(enough.arms[0].accepted.mean, Some(0.8));
        assert_eq!(enough.arms[0].accepted.interval, wilson(40, 50));
        assert_eq!(enough.arms[0].cost, Estimate { n: 0, mean: None, interval: None });
        // The mean edit of version 2: 55 of 60 changed half of their words.
        assert!((enough.arms[1].edited.mean.unwrap() - 55.0 / 120.0).abs() < 1e-9);
    }

    #[test]
    fn versions_that_are_alike_have_no_winner() {
        let seen = [outcomes(1, 30, 50), outcomes(2, 29, 50)].concat();
        assert_eq!(report(Metric::Accepted, 50, &[1, 2], &seen).verdict, Verdict::NoDifference);
        let none = report(Metric::Accepted, 0, &[1, 2], &[]);
        assert_eq!(none.verdict, Verdict::TooEarly { n: 0 });
    }

    #[test]
    fn less_latency_is_better() {
        let seen = [outcomes(1, 9, 20), outcomes(2, 9, 20), outcomes(3, 9, 20)].concat();
        let found = report(Metric::Latency, 20, &[3, 1, 2], &seen);
        assert_eq!(found.verdict, Verdict::Better { version: 1 });
        assert_eq!(found.arms[0].version, 3);
    }
}
