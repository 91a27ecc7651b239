//! Finds the greatest logits of many rows on the device.

use candle_core::{self as candle, Tensor};

use cutline_cuda::Operations;
use cutline_generate::TopLogits;

/// The most logits that are found on the device. Each costs it a pass over the row's candidates.
const MAX_COUNT: usize = 128;

/// f32 represents all integers up to this one, so token ids survive the copy as f32.
const MAX_VOCABULARY: usize = 1 << 24;

/// `wanted` of the greatest logits of every row of `logits`, `[rows, vocabulary]` in f32; `None` for a
/// row with a logit that is not finite. `None` instead of the rows if those are more than the device
/// should look for.
pub(super) fn top_logits(
    with: Operations,
    logits: &Tensor,
    wanted: usize,
) -> candle::Result<Option<Vec<Option<TopLogits>>>> {
    let (_, vocabulary) = logits.dims2()?;
    let count = wanted.clamp(1, vocabulary);
    if count > MAX_COUNT || vocabulary > MAX_VOCABULARY {
        return Ok(None);
    }
    let packed = with.best(logits, count)?.to_vec2::<f32>()?;
    Ok(Some(packed.iter().map(|row| unpack(row, count, vocabulary)).collect()))
}

/// Reads a row of [`cutline_cuda::best`].
fn unpack(row: &[f32], count: usize, vocabulary: usize) -> Option<TopLogits> {
    let (indices, rest) = row.split_at(count);
    let (values, rest) = rest.split_at(count);
    let [sum, 0.0] = *rest else { return None };
    let tokens = indices.iter().zip(values).map(|(index, value)| (*index as u32, *value)).collect();
    Some(TopLogits { tokens, log_sum: sum.ln(), complete: count == vocabulary })
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn top(rows: &[Vec<f32>], wanted: usize) -> Option<Vec<Option<TopLogits>>> {
        let all: Vec<f32> = rows.concat();
        let logits = Tensor::from_vec(all, (rows.len(), rows[0].len()), &Device::Cpu).unwrap();
        top_logits(Operations::CUTLINE, &logits, wanted).unwrap()
    }

    /// A row of numbers, many of them equal.
    fn row(seed: usize, length: usize) -> Vec<f32> {
        (0..length)
            .map(|i| (((i * 7919 + seed * 104_729) % 613) as f32 / 40.0).sin() * 9.0)
            .collect()
    }

    #[test]
    fn the_greatest_logits_are_found() {
        for (length, wanted) in [(80, 3), (80, 22), (1000, 8), (30_524, 3), (30_524, 22)] {
            let rows: Vec<Vec<f32>> = (0..5).map(|seed| row(seed, length)).collect();
            for (row, top) in rows.iter().zip(top(&rows, wanted).unwrap()) {
                let top = top.unwrap();
                assert_eq!((top.tokens.len(), top.complete), (wanted, false));
                let mut sorted = row.clone();
                sorted.sort_by(|a, b| b.total_cmp(a));
                for ((token, value), expected) in top.tokens.iter().zip(&sorted) {
                    assert_eq!((value, row[*token as usize]), (expected, *expected));
                }
                let mut tokens: Vec<u32> = top.tokens.iter().map(|(token, _)| *token).collect();
                tokens.sort_unstable();
                tokens.dedup();
                assert_eq!(tokens.len(), top.tokens.len(), "no token twice");
                let max = f64::from(sorted[0]);
                let sum: f64 = row.iter().map(|x| (f64::from(*x) - max).exp()).sum();
                assert!((f64::from(top.log_sum) - sum.ln()).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn a_number_that_is_not_finite_spoils_its_row_only() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN] {
            for place in [0, 77, 999] {
                let mut rows = vec![row(1, 1000), row(2, 1000), row(3, 1000)];
                let expected = top(&rows, 4).unwrap();
                rows[1][place] = value;
                let found = top(&rows, 4).unwrap();
                let finite: Vec<bool> = found.iter().map(Option::is_some).collect();
                assert_eq!(finite, [true, false, true], "{value} at {place}");
                assert_eq!((&found[0], &found[2]), (&expected[0], &expected[2]));
            }
        }
        assert_eq!(top(&[vec![f32::NAN; 200]], 4).unwrap(), [None]);
    }

    #[test]
    fn a_small_vocabulary_is_returned_whole() {
        let found = top(&[vec![0.5, 0.5, -1.0]], 4).unwrap().remove(0).unwrap();
        assert!(found.complete);
        assert_eq!(found.tokens, [(0, 0.5), (1, 0.5), (2, -1.0)]);
    }

    #[test]
    fn more_than_the_device_should_look_for_is_refused() {
        assert!(top(&[row(1, 1000)], 128).is_some());
        assert_eq!(top(&[row(1, 1000)], 129), None);
    }
}
