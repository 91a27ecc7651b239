//! Arithmetic on rows of scores.

/// `x − max − ln Σ exp(x − max)` of a row, as PyTorch computes it in f32.
pub(super) fn log_softmax(row: &[f32]) -> Vec<f32> {
    let normalisation = Normalisation::of(row);
    row.iter().map(|x| normalisation.log_probability(*x)).collect()
}

/// [`log_softmax`] at one index.
pub(super) fn log_probability(row: &[f32], index: usize) -> f32 {
    Normalisation::of(row).log_probability(row[index])
}

/// The `count` greatest values of [`log_softmax`] with their indices, greatest first, ties in order.
pub(super) fn most_probable(row: &[f32], count: usize) -> Vec<(u32, f32)> {
    let normalisation = Normalisation::of(row);
    let best = top_indices(row, count).into_iter();
    best.map(|index| (index as u32, normalisation.log_probability(row[index]))).collect()
}

/// What turns the logits of a row into logarithms of probabilities.
#[derive(Debug, Clone, Copy)]
pub(super) struct Normalisation {
    max: f32,
    /// `ln Σ exp(x − max)`.
    log_sum: f32,
}

impl Normalisation {
    pub(super) fn of(row: &[f32]) -> Self {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|x| f64::from((x - max).exp())).sum();
        Self { max, log_sum: sum.ln() as f32 }
    }

    pub(super) fn log_probability(self, logit: f32) -> f32 {
        (logit - self.max) - self.log_sum
    }
}

/// The index of the greatest value; the first of a tie, as in PyTorch.
pub(super) fn argmax(row: &[f32]) -> usize {
    let mut best = 0;
    for (index, value) in row.iter().enumerate() {
        if *value > row[best] {
            best = index;
        }
    }
    best
}

/// The indices of the `count` greatest values, greatest first, ties in order.
pub(super) fn top_indices(values: &[f32], count: usize) -> Vec<usize> {
    let mut best: Vec<usize> = Vec::with_capacity(count + 1);
    for (index, value) in values.iter().enumerate() {
        if best.len() == count && best.last().is_none_or(|&last| *value <= values[last]) {
            continue;
        }
        let position = best.partition_point(|&other| values[other] >= *value);
        best.insert(position, index);
        best.truncate(count);
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_softmax_adds_up_to_one() {
        let row = [1.0, -3.0, 0.5, 100.0, 99.0];
        let total: f32 = log_softmax(&row).iter().map(|x| x.exp()).sum();
        assert!((total - 1.0).abs() < 1e-6);
        assert_eq!(log_softmax(&row)[4], log_probability(&row, 4));
        let all = log_softmax(&row);
        assert_eq!(most_probable(&row, 2), [(3, all[3]), (4, all[4])]);
        assert_eq!(most_probable(&row, 9).len(), row.len());
    }

    #[test]
    fn the_first_of_equal_values_wins() {
        let row = [1.0, 7.0, 3.0, 7.0, 3.0, f32::NEG_INFINITY];
        assert_eq!(argmax(&row), 1);
        assert_eq!(top_indices(&row, 4), [1, 3, 2, 4]);
        assert_eq!(top_indices(&row, 9), [1, 3, 2, 4, 0, 5]);
        assert_eq!(argmax(&[f32::NEG_INFINITY; 3]), 0);
    }
}
