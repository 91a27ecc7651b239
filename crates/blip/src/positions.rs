//! Resampling of the position embedding for images of another size than the model's own.

/// Interpolates a `side × side` grid of vectors to `rows × columns`, row after row.
///
/// `grid` holds `side² · width` values, one vector of `width` after another. Computes the same as
/// `torch.nn.functional.interpolate(mode="bicubic", align_corners=False)`: cubic convolution with
/// a = −0.75, pixel centres at half integers, coordinates outside the grid clamped to its edge.
pub(crate) fn bicubic(
    grid: &[f32],
    side: usize,
    width: usize,
    rows: usize,
    columns: usize,
) -> Vec<f32> {
    let across: Vec<_> = (0..columns).map(|x| taps(x, side, columns)).collect();
    let mut out = Vec::with_capacity(rows * columns * width);
    for y in 0..rows {
        let (from_rows, row_weights) = taps(y, side, rows);
        for (from_columns, column_weights) in &across {
            out.extend((0..width).map(|channel| {
                let line = |row: usize| -> f32 {
                    let value = |column: usize| grid[(row * side + column) * width + channel];
                    from_columns.iter().zip(column_weights).map(|(&c, w)| value(c) * w).sum()
                };
                from_rows.iter().zip(row_weights).map(|(&r, w)| line(r) * w).sum::<f32>()
            }));
        }
    }
    out
}

/// The four source indices that target index `to` of `out` reads along an axis of `side`, and
/// their weights.
fn taps(to: usize, side: usize, out: usize) -> ([usize; 4], [f32; 4]) {
    const A: f32 = -0.75;
    let scale = side as f32 / out as f32;
    let centre = scale * (to as f32 + 0.5) - 0.5;
    let t = centre - centre.floor();
    let last = side as isize - 1;
    let index = |n: isize| (centre.floor() as isize + n).clamp(0, last).unsigned_abs();
    let near = |x: f32| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f32| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    (
        [index(-1), index(0), index(1), index(2)],
        [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)],
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_size_is_the_identity() {
        let grid: Vec<f32> = (0..9 * 2).map(|v| v as f32).collect();
        assert_eq!(bicubic(&grid, 3, 2, 3, 3), grid);
    }

    #[test]
    fn agrees_with_torch() {
        // torch.nn.functional.interpolate(torch.arange(9.).view(1, 1, 3, 3), size=(2, 4),
        //                                 mode="bicubic", align_corners=False)
        let grid: Vec<f32> = (0..9).map(|v| v as f32).collect();
        let expected = [
            0.502_441_4,
            1.104_003_9,
            2.044_433_6,
            2.645_996,
            5.354_004,
            5.955_566_4,
            6.895_996,
            7.497_558_6,
        ];
        for (ours, torch) in bicubic(&grid, 3, 1, 2, 4).iter().zip(expected) {
            assert!((ours - torch).abs() < 1e-5, "{ours} {torch}");
        }
    }
}
