//! Brightness, contrast, sharpness and colourfulness of an image.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::decode::DecodedImage;
use super::preprocess::{PreprocessConfig, Resample};
use cutline_error::Result;

/// The longer side, in pixels, of the scaled copy that is measured. Sharpness depends on the scale:
/// without scaling it would differ between a photo and its smaller copy.
pub const MEASURED_SIDE: usize = 512;

/// Four measures of an image, taken on sRGB samples after averaging pixels so that the longer side has
/// at most 512.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Measures {
    /// Mean luma (Rec. 601) divided by 255: 0 is black, 1 is white.
    pub brightness: f32,
    /// Root mean square contrast: the standard deviation of the luma divided by 255, from 0 for an
    /// even surface to 0.5 for half black, half white.
    pub contrast: f32,
    /// Variance of the Laplacian (4 neighbours) of the luma in levels of 255, 0 and more. Blurred
    /// photos have less than about 100, sharp ones several hundred to thousands.
    pub sharpness: f32,
    /// Colourfulness of David Hasler and Sabine Süsstrunk, "Measuring colourfulness in natural
    /// images" (2003), in levels of 255: 0 is grey, 15 slightly, 45 quite and 109 extremely colourful.
    pub colorfulness: f32,
}

impl Measures {
    /// Measures `image`.
    ///
    /// # Errors
    /// None for an image from [`decode`](super::decode()); anything else is a defect and reported as
    /// an internal error.
    pub fn of(image: &DecodedImage) -> Result<Self> {
        let longer = image.width.max(image.height);
        let scaled = |side: usize| {
            if longer > MEASURED_SIDE { (side * MEASURED_SIDE / longer).max(1) } else { side }
        };
        let (width, height) = (scaled(image.width), scaled(image.height));
        let config = PreprocessConfig { resample: Resample::Box, ..PreprocessConfig::default() };
        let rgb = config.with_size(width, height)?.resize(image)?;
        Ok(Self::of_rgb(rgb.as_chunks::<3>().0, width))
    }

    fn of_rgb(pixels: &[[u8; 3]], width: usize) -> Self {
        let luma: Vec<f64> = pixels.iter().map(|pixel| luma(*pixel)).collect();
        let light = Moments::of(luma.iter().copied());
        Self {
            brightness: rounded(light.mean / 255.0, 1e4),
            contrast: rounded(light.variance.sqrt() / 255.0, 1e4),
            sharpness: rounded(Moments::of(laplacian(&luma, width)).variance, 1e2),
            colorfulness: rounded(colorfulness(pixels), 1e2),
        }
    }
}

fn luma([red, green, blue]: [u8; 3]) -> f64 {
    0.299 * f64::from(red) + 0.587 * f64::from(green) + 0.114 * f64::from(blue)
}

/// The sum of the four neighbours minus four times the pixel, for all inner pixels.
fn laplacian(luma: &[f64], width: usize) -> impl Iterator<Item = f64> {
    let rows: Vec<&[f64]> = luma.chunks_exact(width).collect();
    let inner = 1..rows.len().saturating_sub(1);
    inner.flat_map(move |y| {
        let (above, row, below) = (rows[y - 1], rows[y], rows[y + 1]);
        let inner = 1..row.len().saturating_sub(1);
        inner.map(move |x| above[x] + below[x] + row[x - 1] + row[x + 1] - 4.0 * row[x])
    })
}

fn colorfulness(pixels: &[[u8; 3]]) -> f64 {
    let samples = || pixels.iter().map(|pixel| pixel.map(f64::from));
    let red_green = Moments::of(samples().map(|[red, green, _]| red - green));
    let yellow_blue =
        Moments::of(samples().map(|[red, green, blue]| f64::midpoint(red, green) - blue));
    (red_green.variance + yellow_blue.variance).sqrt()
        + 0.3 * red_green.mean.hypot(yellow_blue.mean)
}

/// Mean and variance; both 0 without values.
struct Moments {
    mean: f64,
    variance: f64,
}

impl Moments {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
        for value in values {
            count += 1.0;
            sum += value;
            squares += value * value;
        }
        if count == 0.0 {
            return Self { mean: 0.0, variance: 0.0 };
        }
        let mean = sum / count;
        // Rounding may give a tiny negative variance.
        Self { mean, variance: (squares / count - mean * mean).max(0.0) }
    }
}

fn rounded(value: f64, steps: f64) -> f32 {
    #[expect(clippy::cast_possible_truncation, reason = "already rounded to few digits")]
    let narrow = ((value * steps).round() / steps) as f32;
    narrow
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(width: usize, height: usize, pixel: impl Fn(usize, usize) -> [u8; 3]) -> Vec<[u8; 3]> {
        (0..width * height).map(|at| pixel(at % width, at / width)).collect()
    }

    #[test]
    fn an_even_surface_has_only_brightness() {
        let measures = Measures::of_rgb(&grid(8, 8, |_, _| [51; 3]), 8);
        let Measures { brightness, contrast, sharpness, colorfulness } = measures;
        assert_eq!((brightness, contrast, sharpness, colorfulness), (0.2, 0.0, 0.0, 0.0));
        // Too small for an inner pixel.
        assert_eq!(Measures::of_rgb(&[[255; 3]], 1).sharpness, 0.0);
        assert_eq!(Measures::of_rgb(&[[255; 3], [0; 3]], 1).contrast, 0.5);
    }

    #[test]
    fn a_chessboard_has_the_highest_sharpness_and_contrast() {
        let board = grid(10, 10, |x, y| [if (x + y) % 2 == 0 { 255 } else { 0 }; 3]);
        let measures = Measures::of_rgb(&board, 10);
        assert_eq!((measures.brightness, measures.contrast), (0.5, 0.5));
        assert_eq!(measures.sharpness, 1020.0 * 1020.0);
        assert_eq!(measures.colorfulness, 0.0);
    }

    #[test]
    fn colourfulness_matches_the_paper() {
        // Half red, half blue: rg is 255 and 0, yb is 127.5 and -255.
        let halves = grid(4, 2, |x, _| if x < 2 { [255, 0, 0] } else { [0, 0, 255] });
        let spread = (127.5_f64 * 127.5 + 191.25 * 191.25).sqrt();
        let expected = spread + 0.3 * (127.5_f64.hypot(63.75));
        let measured = f64::from(Measures::of_rgb(&halves, 4).colorfulness);
        assert!((measured - expected).abs() < 0.01, "{measured} {expected}");
    }
}
