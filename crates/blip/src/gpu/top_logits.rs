//! Finds the greatest logits of many rows on the device.

use candle_core::{self as candle, DType, Tensor};

use cutline_generate::TopLogits;

/// Pieces that a row of logits is cut into; a power of two. The greatest `n` elements of a row lie
/// in the `n` pieces with the greatest maxima.
const PIECES: usize = 128;

/// Elements that candle's CUDA kernel sorts at once: it keeps a four-byte index of each in a
/// block's 48 kB of shared memory.
const MAX_SORTED: usize = 8192;

/// f32 represents all integers up to this one, so token ids survive the copy as f32.
const MAX_VOCABULARY: usize = 1 << 24;

/// Fills a row behind the vocabulary: finite, and less than any logit.
pub(super) const PADDING: f32 = f32::MIN;

/// The padded length of a row of logits: all pieces are equally long, and the lengths that are
/// sorted are powers of two. candle's sort of any other length fills the rest with invalid indices.
pub(super) fn row_length(vocabulary: usize) -> usize {
    vocabulary.next_power_of_two().max(PIECES)
}

/// How many logits are found when `wanted` are requested; `None` if the device cannot sort that
/// many.
fn count_for(wanted: usize, length: usize) -> Option<usize> {
    let count = wanted.max(1).next_power_of_two();
    let sorted = count * (length / PIECES);
    (count <= PIECES && sorted <= MAX_SORTED && length <= MAX_VOCABULARY).then_some(count)
}

/// At least `wanted` of the greatest logits of every row of `logits`, which is `[rows, length]` in
/// f32 with [`PADDING`] behind the vocabulary; `None` for a row with a logit that is not finite.
/// `None` instead of the rows if the device cannot sort that many at once.
pub(super) fn top_logits(
    logits: &Tensor,
    vocabulary: usize,
    wanted: usize,
) -> candle::Result<Option<Vec<Option<TopLogits>>>> {
    let (_, length) = logits.dims2()?;
    let Some(count) = count_for(wanted, length) else { return Ok(None) };
    let packed = select(logits, count)?.to_vec2::<f32>()?;
    Ok(Some(packed.iter().map(|row| unpack(row, count, length / PIECES, vocabulary)).collect()))
}

/// `[rows, 3 · count + 2]`: the indices of the pieces with the greatest maxima, the indices of the
/// greatest values in these pieces laid end to end, the values, and for the whole row
/// `Σ exp(logit − greatest)` and the least value.
fn select(logits: &Tensor, count: usize) -> candle::Result<Tensor> {
    let (rows, length) = logits.dims2()?;
    let piece = length / PIECES;
    // NaN has no order, and a sort over it is undefined.
    let padding = Tensor::full(PADDING, (1, 1), logits.device())?.broadcast_as((rows, length))?;
    let ordered = logits.eq(logits)?.where_cond(logits, &padding)?;
    let ordered = ordered.reshape((rows, PIECES, piece))?;

    let first = |sorted: Tensor| sorted.narrow(1, 0, count)?.contiguous();
    let pieces = first(ordered.max(2)?.arg_sort_last_dim(false)?)?;
    let members = pieces.unsqueeze(2)?.broadcast_as((rows, count, piece))?.contiguous()?;
    let members = ordered.gather(&members, 1)?.reshape((rows, count * piece))?;
    let indices = first(members.arg_sort_last_dim(false)?)?;
    let values = members.gather(&indices, 1)?;

    let greatest = values.narrow(1, 0, 1)?;
    let sum = logits.broadcast_sub(&greatest)?.exp()?.sum_keepdim(1)?;
    let least = logits.min_keepdim(1)?;
    // In one tensor, so that the device is waited for only once.
    let (pieces, indices) = (pieces.to_dtype(DType::F32)?, indices.to_dtype(DType::F32)?);
    Tensor::cat(&[&pieces, &indices, &values, &sum, &least], 1)
}

fn unpack(row: &[f32], count: usize, piece: usize, vocabulary: usize) -> Option<TopLogits> {
    let (pieces, rest) = row.split_at(count);
    let (indices, rest) = rest.split_at(count);
    let (values, rest) = rest.split_at(count);
    if !rest.iter().all(|x| x.is_finite()) {
        return None;
    }
    let token = |index: f32| {
        let index = index as usize;
        pieces[index / piece] as usize * piece + index % piece
    };
    let tokens: Vec<(u32, f32)> = indices
        .iter()
        .zip(values)
        .map(|(&index, &value)| (token(index), value))
        .filter(|(token, _)| *token < vocabulary)
        .map(|(token, value)| (token as u32, value))
        .collect();
    let complete = tokens.len() == vocabulary;
    Some(TopLogits { tokens, log_sum: rest[0].ln(), complete })
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    fn padded(rows: &[Vec<f32>]) -> Tensor {
        let length = row_length(rows[0].len());
        let fill = |row: &Vec<f32>| {
            let mut row = row.clone();
            row.resize(length, PADDING);
            row
        };
        let all: Vec<f32> = rows.iter().flat_map(fill).collect();
        Tensor::from_vec(all, (rows.len(), length), &Device::Cpu).unwrap()
    }

    fn top(rows: &[Vec<f32>], wanted: usize) -> Vec<Option<TopLogits>> {
        top_logits(&padded(rows), rows[0].len(), wanted).unwrap().unwrap()
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
            for (row, top) in rows.iter().zip(top(&rows, wanted)) {
                let top = top.unwrap();
                assert!(top.tokens.len() >= wanted, "{length} {wanted}");
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
                let expected = top(&rows, 4);
                rows[1][place] = value;
                let found = top(&rows, 4);
                let finite: Vec<bool> = found.iter().map(Option::is_some).collect();
                assert_eq!(finite, [true, false, true], "{value} at {place}");
                assert_eq!((&found[0], &found[2]), (&expected[0], &expected[2]));
            }
        }
        assert_eq!(top(&[vec![f32::NAN; 200]], 4), [None]);
    }

    #[test]
    fn a_small_vocabulary_is_returned_whole() {
        let found = top(&[vec![0.5, 0.5, -1.0]], 4).remove(0).unwrap();
        assert!(found.complete);
        let mut tokens = found.tokens;
        tokens.sort_by_key(|(token, _)| *token);
        assert_eq!(tokens, [(0, 0.5), (1, 0.5), (2, -1.0)]);
    }

    #[test]
    fn more_than_a_gpu_can_sort_is_refused() {
        assert_eq!(count_for(3, row_length(30_524)), Some(4));
        assert_eq!(count_for(22, row_length(30_524)), Some(32));
        assert_eq!(count_for(22, row_length(50_000)), None);
        assert_eq!(count_for(8, row_length(50_000)), Some(8));
        assert_eq!(count_for(200, row_length(100)), None);
    }
}
