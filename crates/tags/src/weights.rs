//! One score from what is known about a tag: a logistic function with few weights.

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
#[derive(Debug, Clone, Copy, PartialEq)]
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
}

/// Iterations of the fit; it converges in about ten.
const ITERATIONS: usize = 50;
/// The weight of small weights in the fit.
const RIDGE: f64 = 1.0;

/// Weights of the likelihood and of the captions that explain which tags are right, by logistic
/// regression. `None` without right and wrong ones. The other weights stay those of `start`.
#[must_use]
pub fn fit(start: Weights, examples: &[(Hints, bool)]) -> Option<Weights> {
    let right = examples.iter().filter(|(_, right)| *right).count();
    if right == 0 || right == examples.len() {
        return None;
    }
    let row = |hints: &Hints| {
        let nats = hints.likelihood.map_or(0.0, |nats| nats.clamp(-MOST_NATS, MOST_NATS));
        [1.0, f64::from(nats), f64::from(hints.caption.unwrap_or(0.0))]
    };
    let mut weights = [0.0_f64; 3];
    for _ in 0..ITERATIONS {
        let mut gradient = [0.0_f64; 3];
        let mut curvature = [[0.0_f64; 3]; 3];
        for (hints, right) in examples {
            let row = row(hints);
            let sum: f64 = row.iter().zip(&weights).map(|(x, w)| x * w).sum();
            let p = 1.0 / (1.0 + (-sum).exp());
            let error = p - f64::from(u8::from(*right));
            for i in 0..3 {
                gradient[i] += error * row[i];
                for j in 0..3 {
                    curvature[i][j] += p * (1.0 - p) * row[i] * row[j];
                }
            }
        }
        for i in 0..3 {
            gradient[i] += RIDGE * weights[i];
            curvature[i][i] += RIDGE;
        }
        let step = solved(curvature, gradient);
        weights.iter_mut().zip(step).for_each(|(weight, step)| *weight -= step);
        if step.iter().all(|step| step.abs() < 1e-9) {
            break;
        }
    }
    let [bias, likelihood, caption] = weights.map(|weight| weight as f32);
    Some(Weights { bias, likelihood, caption, ..start })
}

/// Solves three equations by elimination; the matrix is positive definite.
fn solved(mut a: [[f64; 3]; 3], mut b: [f64; 3]) -> [f64; 3] {
    for i in 0..3 {
        for j in i + 1..3 {
            let factor = a[j][i] / a[i][i];
            let row = a[i];
            a[j].iter_mut().zip(row).for_each(|(x, y)| *x -= factor * y);
            b[j] -= factor * b[i];
        }
    }
    for i in (0..3).rev() {
        let known: f64 = (i + 1..3).map(|j| a[i][j] * b[j]).sum();
        b[i] = (b[i] - known) / a[i][i];
    }
    b
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
    fn the_fit_finds_the_weights_that_made_the_examples() {
        // Each point as often right as the weights say.
        let mut examples = Vec::new();
        for nats in -6..6 {
            for caption in [0.0, 0.5, 1.0] {
                let hints =
                    Hints { likelihood: Some(nats as f32), caption: Some(caption), near: None };
                let right = (WEIGHTS.score(hints) * 1000.0).round() as usize;
                examples.extend((0..1000).map(|n| (hints, n < right)));
            }
        }
        let fitted = fit(WEIGHTS, &examples).unwrap();
        assert!((fitted.bias - WEIGHTS.bias).abs() < 0.02, "{fitted:?}");
        assert!((fitted.likelihood - WEIGHTS.likelihood).abs() < 0.02, "{fitted:?}");
        assert!((fitted.caption - WEIGHTS.caption).abs() < 0.05, "{fitted:?}");
        assert_eq!((fitted.near, fitted.not_near), (WEIGHTS.near, WEIGHTS.not_near));
        assert_eq!(fit(WEIGHTS, &[(Hints::default(), true)]), None);
    }
}
