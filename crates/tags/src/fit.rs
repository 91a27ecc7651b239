//! Weights that explain which tags were right.

use crate::weights::{Hints, Weights};

/// Iterations of the fit; it converges in about ten.
const ITERATIONS: usize = 50;
/// Halvings of a step that makes it worse.
const HALVINGS: usize = 30;
/// How much it costs to leave the weights from which a fit starts. About as much as ten tags of which it is
/// unknown whether they are right say against it.
pub const STRENGTH: f64 = 10.0;
/// The fewest photos of a fold.
const FEWEST: usize = 2;

/// What speaks for a tag of a photo, and whether people gave it.
pub type Example = (Hints, bool);

/// Weights that were fitted, and how they do on photos that they were not fitted on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fitted {
    /// The weights, fitted on all photos.
    pub weights: Weights,
    /// Photos.
    pub photos: usize,
    /// How surprising the people's tags of a photo are to the weights from which it started, in nats.
    pub before: f64,
    /// The same for weights that were fitted on the other folds.
    pub after: f64,
    /// The standard error of the difference.
    pub error: f64,
}

impl Fitted {
    /// Whether the difference on photos that were held out is more than chance may do.
    #[must_use]
    pub fn is_better(&self) -> bool {
        self.before - self.after > self.error
    }
}

/// Weights that explain which tags are right, by logistic regression: all five, each drawn to where it
/// starts with `strength`. What is not known of any tag leaves its weight where it was. `None` without right
/// and wrong tags.
#[must_use]
pub fn fit<'a>(
    start: Weights,
    strength: f64,
    examples: impl IntoIterator<Item = &'a Example>,
) -> Option<Weights> {
    let rows: Vec<([f64; 5], bool)> =
        examples.into_iter().map(|(hints, right)| (hints.row(), *right)).collect();
    let right = rows.iter().filter(|(_, right)| *right).count();
    if right == 0 || right == rows.len() {
        return None;
    }
    let origin = start.to_array();
    let mut weights = origin;
    let mut cost = cost_of(&rows, &weights, &origin, strength);
    for _ in 0..ITERATIONS {
        let step = newton(&rows, &weights, &origin, strength);
        // Far from the best weights, a whole step may lead away from them.
        let mut share = 1.0;
        let mut next = weights;
        let mut found = false;
        for _ in 0..HALVINGS {
            next = std::array::from_fn(|i| weights[i] - share * step[i]);
            let other = cost_of(&rows, &next, &origin, strength);
            if other <= cost {
                (cost, found) = (other, true);
                break;
            }
            share /= 2.0;
        }
        if !found {
            break;
        }
        weights = next;
        if step.iter().all(|step| (share * step).abs() < 1e-9) {
            break;
        }
    }
    let fitted = Weights::from_array(weights);
    fitted.check().is_ok().then_some(fitted)
}

/// Fits weights, and tells with `folds` parts of the photos, each of which is held out once, whether such a fit
/// is better than the weights from which it starts. `None` if there are fewer than two photos a fold, or no
/// right and wrong tags.
#[must_use]
pub fn fit_photos(
    start: Weights,
    strength: f64,
    photos: &[Vec<Example>],
    folds: usize,
) -> Option<Fitted> {
    if folds < 2 || photos.len() < FEWEST * folds {
        return None;
    }
    let weights = fit(start, strength, photos.iter().flatten())?;
    let (mut before, mut gains) = (0.0, Vec::with_capacity(photos.len()));
    for fold in 0..folds {
        let held_out = |n: usize| n % folds == fold;
        let others = photos.iter().enumerate().filter(|(n, _)| !held_out(*n));
        let fitted = fit(start, strength, others.flat_map(|(_, photo)| photo)).unwrap_or(start);
        for (_, photo) in photos.iter().enumerate().filter(|(n, _)| held_out(*n)) {
            let old = surprise(start, photo);
            before += old;
            gains.push(old - surprise(fitted, photo));
        }
    }
    let count = photos.len() as f64;
    let gain = gains.iter().sum::<f64>() / count;
    let spread = gains.iter().map(|one| (one - gain).powi(2)).sum::<f64>() / (count - 1.0);
    let before = before / count;
    Some(Fitted {
        weights,
        photos: photos.len(),
        before,
        after: before - gain,
        error: (spread / count).sqrt(),
    })
}

/// The negative logarithm of the probability that the weights give to what people said of the tags.
fn surprise(weights: Weights, photo: &[Example]) -> f64 {
    let weights = weights.to_array();
    photo.iter().map(|(hints, right)| loss(sum(&hints.row(), &weights), *right)).sum()
}

fn sum(row: &[f64; 5], weights: &[f64; 5]) -> f64 {
    row.iter().zip(weights).map(|(x, w)| x * w).sum()
}

/// ln(1 + eˣ), without overflow; of a right tag, x is the other way round.
fn loss(sum: f64, right: bool) -> f64 {
    let x = if right { -sum } else { sum };
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

fn cost_of(rows: &[([f64; 5], bool)], weights: &[f64; 5], origin: &[f64; 5], strength: f64) -> f64 {
    let losses: f64 = rows.iter().map(|(row, right)| loss(sum(row, weights), *right)).sum();
    let moved: f64 = weights.iter().zip(origin).map(|(w, o)| (w - o).powi(2)).sum();
    losses + 0.5 * strength * moved
}

/// The step that leads to the minimum of the parabola that fits here.
fn newton(
    rows: &[([f64; 5], bool)],
    weights: &[f64; 5],
    origin: &[f64; 5],
    strength: f64,
) -> [f64; 5] {
    let mut gradient = [0.0_f64; 5];
    let mut curvature = [[0.0_f64; 5]; 5];
    for (row, right) in rows {
        let p = 1.0 / (1.0 + (-sum(row, weights)).exp());
        let error = p - f64::from(u8::from(*right));
        for i in 0..5 {
            gradient[i] += error * row[i];
            for j in 0..5 {
                curvature[i][j] += p * (1.0 - p) * row[i] * row[j];
            }
        }
    }
    for i in 0..5 {
        gradient[i] += strength * (weights[i] - origin[i]);
        curvature[i][i] += strength;
    }
    solved(curvature, gradient)
}

/// Solves the equations by elimination; the matrix is positive definite.
fn solved<const N: usize>(mut a: [[f64; N]; N], mut b: [f64; N]) -> [f64; N] {
    for i in 0..N {
        for j in i + 1..N {
            let factor = a[j][i] / a[i][i];
            let row = a[i];
            a[j].iter_mut().zip(row).for_each(|(x, y)| *x -= factor * y);
            b[j] -= factor * b[i];
        }
    }
    for i in (0..N).rev() {
        let known: f64 = (i + 1..N).map(|j| a[i][j] * b[j]).sum();
        b[i] = (b[i] - known) / a[i][i];
    }
    b
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Weights =
        Weights { bias: -1.0, likelihood: 0.5, caption: 3.0, near: 2.0, not_near: -0.5 };
    const OTHER: Weights =
        Weights { bias: -2.0, likelihood: 0.8, caption: 1.5, near: 3.0, not_near: -1.5 };

    fn hints() -> impl Iterator<Item = Hints> {
        (-6..6).flat_map(|nats| {
            [0.0, 0.5, 1.0].into_iter().flat_map(move |caption| {
                [None, Some(0.0), Some(0.3), Some(1.0)].into_iter().map(move |near| Hints {
                    likelihood: Some(nats as f32),
                    caption: Some(caption),
                    near,
                })
            })
        })
    }

    fn close(a: Weights, b: Weights, most: f32) -> bool {
        let pairs = a.to_array().into_iter().zip(b.to_array());
        pairs.into_iter().all(|(a, b)| (a - b).abs() < f64::from(most))
    }

    /// Photos whose tags are right as often as `truth` says; the same in every run.
    fn photos(truth: Weights, count: usize) -> Vec<Vec<Example>> {
        let mut state = 7_u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as f32 / (1_u32 << 24) as f32
        };
        let all: Vec<Hints> = hints().collect();
        (0..count)
            .map(|_| {
                let tags = (0..30).map(|_| {
                    let hints = all[(random() * all.len() as f32) as usize % all.len()];
                    (hints, random() < truth.score(hints))
                });
                tags.collect()
            })
            .collect()
    }

    #[test]
    fn the_fit_finds_all_five_weights_that_made_the_examples() {
        // Each point as often right as the weights say.
        let mut examples = Vec::new();
        for hints in hints() {
            let right = (OTHER.score(hints) * 1000.0).round() as usize;
            examples.extend((0..1000).map(|n| (hints, n < right)));
        }
        let fitted = fit(START, 1.0, &examples).unwrap();
        assert!(close(fitted, OTHER, 0.05), "{fitted:?}");
        assert_eq!(fit(START, 1.0, &[(Hints::default(), true)]), None);
    }

    #[test]
    fn few_examples_move_the_weights_little_and_unknown_hints_not_at_all() {
        let photos = photos(OTHER, 300);
        let distance = |fitted: Weights| -> f64 {
            let pairs = fitted.to_array().into_iter().zip(START.to_array());
            pairs.into_iter().map(|(a, b)| (a - b).abs()).sum()
        };
        let of = |count: usize, strength: f64| {
            distance(fit(START, strength, photos[..count].iter().flatten()).unwrap())
        };
        assert!(of(300, 10.0) > 2.0 * of(3, 10.0), "{} {}", of(300, 10.0), of(3, 10.0));
        assert!(of(300, 1e12) < 1e-6);
        let alone = |hints: Hints| Hints { near: None, caption: None, ..hints };
        let some: Vec<Example> =
            photos.iter().flatten().map(|(hints, right)| (alone(*hints), *right)).collect();
        let fitted = fit(START, STRENGTH, &some).unwrap();
        assert!((fitted.likelihood - START.likelihood).abs() > 0.05, "{fitted:?}");
        let kept = [fitted.caption, fitted.near, fitted.not_near];
        assert_eq!(kept, [START.caption, START.near, START.not_near]);
    }

    #[test]
    fn extreme_examples_do_not_lead_astray() {
        // Everything that the model prefers is right, and nothing else: without the ridge, no weight is large
        // enough.
        let one = |nats: f32| (Hints { likelihood: Some(nats), ..Hints::default() }, nats > 0.0);
        let examples: Vec<Example> =
            (0..2000).map(|n| one(if n % 2 == 0 { 1e30 } else { -1e30 })).collect();
        let far = Weights { bias: 30.0, likelihood: -9.0, ..START };
        for start in [START, far] {
            let fitted = fit(start, STRENGTH, &examples).unwrap();
            assert!(fitted.likelihood > 0.2 && fitted.likelihood < 5.0, "{fitted:?}");
        }
    }

    #[test]
    fn only_what_helps_on_held_out_photos_is_better() {
        let fitted = fit_photos(START, STRENGTH, &photos(OTHER, 200), 5).unwrap();
        assert!(fitted.is_better() && fitted.photos == 200, "{fitted:?}");
        assert!(fitted.after < fitted.before, "{fitted:?}");
        // Made by the weights from which it starts: there is nothing to gain.
        let fitted = fit_photos(START, STRENGTH, &photos(START, 200), 5).unwrap();
        assert!(!fitted.is_better(), "{fitted:?}");
        assert_eq!(fit_photos(START, STRENGTH, &photos(OTHER, 9), 5), None, "too few");
    }

    #[test]
    fn a_photo_is_judged_by_weights_that_have_not_seen_it() {
        let photos = photos(OTHER, 8);
        let fitted = fit_photos(START, STRENGTH, &photos, 4).unwrap();
        let mut after = 0.0;
        for (n, photo) in photos.iter().enumerate() {
            let others = photos.iter().enumerate().filter(|(m, _)| m % 4 != n % 4);
            let weights = fit(START, STRENGTH, others.flat_map(|(_, photo)| photo)).unwrap();
            for (hints, right) in photo {
                let score = f64::from(weights.score(*hints));
                after -= if *right { score.ln() } else { (1.0 - score).ln() };
            }
        }
        assert!((fitted.after - after / 8.0).abs() < 1e-3, "{} {after}", fitted.after);
    }
}
