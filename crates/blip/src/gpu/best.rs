//! The best tokens of many rows of logits, found on the device.

use candle_core::{self as candle, DType, Tensor};

/// Pieces that a row of logits is cut into; a power of two. The best `n` elements of a row lie in
/// the `n` pieces with the greatest maxima.
const PIECES: usize = 128;

/// Elements that candle's CUDA kernel sorts at once: it keeps an index of four bytes for each in a
/// block's 48 kB of shared memory.
const MAX_SORTED: usize = 8192;

/// Numbers of tokens that f32 counts without gaps.
const MAX_VOCABULARY: usize = 1 << 24;

/// What stands where a row is longer than the vocabulary: finite, and less than any logit.
pub(super) const NOTHING: f32 = f32::MIN;

/// The length of a row of logits over this vocabulary, filled up so that all pieces are equal and
/// sorts are of a power of two: those of other lengths mark the rest with indices that are not
/// there.
pub(super) fn row_length(vocabulary: usize) -> usize {
    vocabulary.next_power_of_two().max(PIECES)
}

/// The greatest logits of a row.
#[derive(Debug, Clone, PartialEq)]
pub struct BestTokens {
    /// Tokens and their logits, none twice, the greatest logit first; of equal ones any.
    pub tokens: Vec<(u32, f32)>,
    /// `ln Σ exp(logit − greatest)` over the whole vocabulary.
    pub log_sum: f32,
    /// Whether every logit of the row is finite.
    pub finite: bool,
}

/// How many of the best are found when `wanted` are asked for; `None` if that is too many.
fn rounded(wanted: usize, length: usize) -> Option<usize> {
    let count = wanted.max(1).next_power_of_two();
    let sorted = count * (length / PIECES);
    (count <= PIECES && sorted <= MAX_SORTED && length <= MAX_VOCABULARY).then_some(count)
}

/// At least `wanted` of the best of every row of `logits`, `[rows, length]` in f32 and filled up with
/// [`NOTHING`] behind the vocabulary. `None` if that is more than the device sorts at once.
pub(super) fn best_tokens(
    logits: &Tensor,
    vocabulary: usize,
    wanted: usize,
) -> candle::Result<Option<Vec<BestTokens>>> {
    let (_, length) = logits.dims2()?;
    let Some(count) = rounded(wanted, length) else { return Ok(None) };
    let packed = select(logits, count)?.to_vec2::<f32>()?;
    Ok(Some(packed.iter().map(|row| unpack(row, count, length / PIECES, vocabulary)).collect()))
}

/// `[rows, 3 · count + 2]`: the best pieces, places in them taken together, the values there, and of
/// the whole row `Σ exp(logit − greatest)` and the least value.
fn select(logits: &Tensor, count: usize) -> candle::Result<Tensor> {
    let (rows, length) = logits.dims2()?;
    let piece = length / PIECES;
    // NaN has no place in an order, and a sort that finds one may do anything.
    let nothing = Tensor::full(NOTHING, (1, 1), logits.device())?.broadcast_as((rows, length))?;
    let ordered = logits.eq(logits)?.where_cond(logits, &nothing)?;
    let ordered = ordered.reshape((rows, PIECES, piece))?;

    let first = |sorted: Tensor| sorted.narrow(1, 0, count)?.contiguous();
    let pieces = first(ordered.max(2)?.arg_sort_last_dim(false)?)?;
    let places = pieces.unsqueeze(2)?.broadcast_as((rows, count, piece))?.contiguous()?;
    let members = ordered.gather(&places, 1)?.reshape((rows, count * piece))?;
    let places = first(members.arg_sort_last_dim(false)?)?;
    let values = members.gather(&places, 1)?;

    let greatest = values.narrow(1, 0, 1)?;
    let sum = logits.broadcast_sub(&greatest)?.exp()?.sum_keepdim(1)?;
    let least = logits.min_keepdim(1)?;
    // One tensor, for one copy: whoever waits for a device waits as seldom as possible.
    let (pieces, places) = (pieces.to_dtype(DType::F32)?, places.to_dtype(DType::F32)?);
    Tensor::cat(&[&pieces, &places, &values, &sum, &least], 1)
}

fn unpack(row: &[f32], count: usize, piece: usize, vocabulary: usize) -> BestTokens {
    let (pieces, rest) = row.split_at(count);
    let (places, rest) = rest.split_at(count);
    let (values, rest) = rest.split_at(count);
    let token = |place: f32| {
        let place = place as usize;
        pieces[place / piece] as usize * piece + place % piece
    };
    let tokens = places.iter().zip(values).map(|(&place, &value)| (token(place), value));
    BestTokens {
        tokens: tokens
            .filter(|(token, _)| *token < vocabulary)
            .map(|(token, value)| (token as u32, value))
            .collect(),
        log_sum: rest[0].ln(),
        finite: rest.iter().all(|x| x.is_finite()),
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn padded(rows: &[Vec<f32>]) -> Tensor {
        let length = row_length(rows[0].len());
        let fill = |row: &Vec<f32>| {
            let mut row = row.clone();
            row.resize(length, NOTHING);
            row
        };
        let all: Vec<f32> = rows.iter().flat_map(fill).collect();
        Tensor::from_vec(all, (rows.len(), length), &Device::Cpu).unwrap()
    }

    fn best(rows: &[Vec<f32>], wanted: usize) -> Vec<BestTokens> {
        best_tokens(&padded(rows), rows[0].len(), wanted).unwrap().unwrap()
    }

    /// Some row of numbers with many equal ones.
    fn row(seed: usize, length: usize) -> Vec<f32> {
        (0..length)
            .map(|i| (((i * 7919 + seed * 104_729) % 613) as f32 / 40.0).sin() * 9.0)
            .collect()
    }

    #[test]
    fn they_are_the_greatest_and_none_is_missing() {
        for (length, wanted) in [(80, 3), (80, 22), (1000, 8), (30_524, 3), (30_524, 22)] {
            let rows: Vec<Vec<f32>> = (0..5).map(|seed| row(seed, length)).collect();
            for (row, best) in rows.iter().zip(best(&rows, wanted)) {
                assert!(best.finite && best.tokens.len() >= wanted, "{length} {wanted}");
                let mut sorted = row.clone();
                sorted.sort_by(|a, b| b.total_cmp(a));
                for ((token, value), expected) in best.tokens.iter().zip(&sorted) {
                    assert_eq!((value, row[*token as usize]), (expected, *expected));
                }
                let mut tokens: Vec<u32> = best.tokens.iter().map(|(token, _)| *token).collect();
                tokens.sort_unstable();
                tokens.dedup();
                assert_eq!(tokens.len(), best.tokens.len(), "none twice");
                let max = f64::from(sorted[0]);
                let sum: f64 = row.iter().map(|x| (f64::from(*x) - max).exp()).sum();
                assert!((f64::from(best.log_sum) - sum.ln()).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn a_number_that_is_not_finite_is_told_and_concerns_its_row_only() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN] {
            for place in [0, 77, 999] {
                let mut rows = vec![row(1, 1000), row(2, 1000), row(3, 1000)];
                let expected = best(&rows, 4);
                rows[1][place] = value;
                let found = best(&rows, 4);
                let finite: Vec<bool> = found.iter().map(|row| row.finite).collect();
                assert_eq!(finite, [true, false, true], "{value} at {place}");
                assert_eq!((&found[0], &found[2]), (&expected[0], &expected[2]));
            }
        }
        let nothing_but = best(&[vec![f32::NAN; 200]], 4);
        assert!(!nothing_but[0].finite);
    }

    #[test]
    fn a_small_vocabulary_is_given_whole() {
        let found = best(&[vec![0.5, 0.5, -1.0]], 4);
        let mut tokens = found[0].tokens.clone();
        tokens.sort_by_key(|(token, _)| *token);
        assert_eq!(tokens, [(0, 0.5), (1, 0.5), (2, -1.0)]);
    }

    #[test]
    fn what_a_gpu_could_not_sort_is_refused() {
        assert_eq!(rounded(3, row_length(30_524)), Some(4));
        assert_eq!(rounded(22, row_length(30_524)), Some(32));
        assert_eq!(rounded(22, row_length(50_000)), None);
        assert_eq!(rounded(8, row_length(50_000)), Some(8));
        assert_eq!(rounded(200, row_length(100)), None);
    }
}
