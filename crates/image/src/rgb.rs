//! Every colour type of the decoders to 8-bit RGB, as in the reference: `convert_to_rgb` of
//! transformers 5 (`image_transforms.py`), which uses Pillow.
//!
//! - Transparency is composited over white, in [`over_white`].
//! - Grey is repeated.
//! - Of 16 bits, the upper 8 are kept, as Pillow does for colour. For grey, Pillow's `I;16` → `RGB`
//!   clips at 255, which turns nearly every 16-bit photo white; that is not copied here.

use image::ColorType;

use cutline_error::{Error, ErrorKind, Result};

/// How the alpha of an image is to be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Alpha {
    /// Opacity beside the colours.
    Straight,
    /// Opacity that the colours were multiplied by.
    Premultiplied,
    /// No opacity.
    Ignored,
}

/// `pixels` (rows without padding, 16-bit samples in native order) as 8-bit RGB.
///
/// # Errors
/// [`ErrorKind::UnsupportedFormat`] for floating-point samples, which do not define white.
pub(super) fn to_rgb8(pixels: Vec<u8>, color: ColorType, alpha: Alpha) -> Result<Vec<u8>> {
    match alpha {
        Alpha::Straight => on_white(pixels, color, over_white),
        Alpha::Premultiplied => on_white(pixels, color, premultiplied_over_white),
        Alpha::Ignored => on_white(pixels, color, |value, _| value),
    }
}

/// `over` puts a value with its alpha on white.
fn on_white(
    pixels: Vec<u8>,
    color: ColorType,
    over: impl Fn(u8, u8) -> u8 + Copy,
) -> Result<Vec<u8>> {
    match color {
        ColorType::Rgb8 => Ok(pixels),
        ColorType::L8 => Ok(widen::<1>(&pixels, |[y]| [y; 3])),
        ColorType::La8 => Ok(widen::<2>(&pixels, |[y, a]| [over(y, a); 3])),
        ColorType::Rgba8 => {
            Ok(narrow::<4>(pixels, |[r, g, b, a]| [over(r, a), over(g, a), over(b, a)]))
        }
        ColorType::L16 => Ok(widen::<2>(&pixels, |y| [high(y); 3])),
        ColorType::La16 => {
            Ok(narrow::<4>(pixels, |[y0, y1, a0, a1]| [over(high([y0, y1]), high([a0, a1])); 3]))
        }
        ColorType::Rgb16 => Ok(narrow::<6>(pixels, |[r0, r1, g0, g1, b0, b1]| {
            [high([r0, r1]), high([g0, g1]), high([b0, b1])]
        })),
        ColorType::Rgba16 => Ok(narrow::<8>(pixels, |[r0, r1, g0, g1, b0, b1, a0, a1]| {
            let alpha = high([a0, a1]);
            [[r0, r1], [g0, g1], [b0, b1]].map(|sample| over(high(sample), alpha))
        })),
        other => Err(Error::new(
            ErrorKind::UnsupportedFormat,
            format!(
                "images with samples of type {other:?} are not supported; send 8 or 16 bits per sample"
            ),
        )),
    }
}

/// CMYK of a JPEG to RGB, as in Pillow's `Convert.c`. The inks are inverted (255 is no ink), as Adobe
/// writes them and Pillow always assumes.
pub(super) fn inverted_cmyk_to_rgb8(pixels: Vec<u8>) -> Vec<u8> {
    narrow::<4>(pixels, |[c, m, y, k]| [c, m, y].map(|ink| under_black(ink, k)))
}

/// The light `k` under an inverted ink: `k - (255 - ink) * k / 255`, rounded as Pillow does.
fn under_black(ink: u8, k: u8) -> u8 {
    let product = u32::from(255 - ink) * u32::from(k) + 0x80;
    let absorbed = ((product >> 8) + product) >> 8;
    k.saturating_sub(u8::try_from(absorbed).unwrap_or(u8::MAX))
}

/// `value` with opacity `alpha` over white: Pillow's `AlphaComposite.c` for an opaque background,
/// rounding included.
pub(super) fn over_white(value: u8, alpha: u8) -> u8 {
    const HALF: u32 = 0x80;
    let (value, alpha) = (u32::from(value), u32::from(alpha));
    // Pillow carries 7 more bits through this division by 255. They are zero for an opaque
    // background.
    let sum = value * alpha + 255 * (255 - alpha) + HALF;
    u8::try_from(((sum >> 8) + sum) >> 8).unwrap_or(u8::MAX)
}

/// `value`, which was multiplied by `alpha`, over white. A value above its alpha, which is not possible,
/// gives white.
pub(super) fn premultiplied_over_white(value: u8, alpha: u8) -> u8 {
    value.saturating_add(255 - alpha)
}

fn high(sample: [u8; 2]) -> u8 {
    u16::from_ne_bytes(sample).to_be_bytes()[0]
}

/// Converts pixels of fewer than three bytes into a new vector.
fn widen<const N: usize>(pixels: &[u8], convert: impl Fn([u8; N]) -> [u8; 3]) -> Vec<u8> {
    pixels.as_chunks::<N>().0.iter().flat_map(|&pixel| convert(pixel)).collect()
}

/// Converts pixels of more than three bytes in place: writing never overtakes reading.
fn narrow<const N: usize>(mut pixels: Vec<u8>, convert: impl Fn([u8; N]) -> [u8; 3]) -> Vec<u8> {
    let count = pixels.len() / N;
    for index in 0..count {
        let mut pixel = [0; N];
        pixel.copy_from_slice(&pixels[index * N..][..N]);
        pixels[index * 3..][..3].copy_from_slice(&convert(pixel));
    }
    pixels.truncate(count * 3);
    pixels
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The arithmetic of Pillow's `AlphaComposite.c`, line by line, for a white opaque background.
    fn pillow(value: u32, alpha: u32) -> u32 {
        if alpha == 0 {
            return 255;
        }
        let out = alpha * 255 + 255 * (255 - alpha);
        let coef1 = alpha * 255 * 255 * (1 << 7) / out;
        let coef2 = 255 * (1 << 7) - coef1;
        let sum = value * coef1 + 255 * coef2 + (0x80 << 7);
        (((sum >> 8) + sum) >> 8) >> 7
    }

    #[test]
    fn compositing_is_pillows_for_every_value_and_alpha() {
        for value in 0..=255_u8 {
            for alpha in 0..=255_u8 {
                let expected = pillow(u32::from(value), u32::from(alpha));
                assert_eq!(u32::from(over_white(value, alpha)), expected, "{value} {alpha}");
            }
        }
    }

    #[test]
    fn sixteen_bits_keep_their_upper_half_in_every_layout() {
        let samples = |values: &[u16]| -> Vec<u8> {
            values.iter().flat_map(|value| value.to_ne_bytes()).collect()
        };
        let grey = to_rgb8(samples(&[0x12FF, 0xFE00]), ColorType::L16, Alpha::Straight).unwrap();
        assert_eq!(grey, [0x12, 0x12, 0x12, 0xFE, 0xFE, 0xFE]);
        let color = samples(&[0x01FF, 0x02FF, 0x03FF, 0xFFFF, 0x8000, 0]);
        assert_eq!(
            to_rgb8(color, ColorType::Rgb16, Alpha::Straight).unwrap(),
            [1, 2, 3, 255, 128, 0]
        );
        let clear = samples(&[0x01FF, 0x02FF, 0x03FF, 0, 0x0400, 0x0500, 0x0600, 0xFFFF]);
        assert_eq!(
            to_rgb8(clear, ColorType::Rgba16, Alpha::Straight).unwrap(),
            [255, 255, 255, 4, 5, 6]
        );
        let grey_alpha = samples(&[0x0700, 0xFFFF, 0x0700, 0]);
        assert_eq!(
            to_rgb8(grey_alpha, ColorType::La16, Alpha::Straight).unwrap(),
            [7, 7, 7, 255, 255, 255]
        );
    }

    #[test]
    fn multiplied_colours_are_not_multiplied_again() {
        let rgba = || vec![100, 50, 0, 100, 255, 128, 7, 255, 9, 9, 9, 0];
        let on = |alpha| to_rgb8(rgba(), ColorType::Rgba8, alpha).unwrap();
        assert_eq!(on(Alpha::Premultiplied), [255, 205, 155, 255, 128, 7, 255, 255, 255]);
        assert_eq!(on(Alpha::Straight), [194, 175, 155, 255, 128, 7, 255, 255, 255]);
        assert_eq!(on(Alpha::Ignored), [100, 50, 0, 255, 128, 7, 9, 9, 9]);
        // Multiplying and compositing is the same as compositing alone, within the rounding.
        for (value, alpha) in (0..=255_u8).flat_map(|value| (0..=255).map(move |a| (value, a))) {
            let multiplied = (u16::from(value) * u16::from(alpha) + 127) / 255;
            let ours = premultiplied_over_white(u8::try_from(multiplied).unwrap(), alpha);
            assert!(ours.abs_diff(over_white(value, alpha)) <= 1, "{value} {alpha}");
        }
        let wide = |values: [u16; 4]| values.map(u16::to_ne_bytes).as_flattened().to_vec();
        let half = wide([0x8000, 0x4000, 0, 0x8000]);
        let on_white = to_rgb8(half, ColorType::Rgba16, Alpha::Premultiplied).unwrap();
        assert_eq!(on_white, [255, 191, 127]);
        let grey = to_rgb8(vec![60, 100], ColorType::La8, Alpha::Premultiplied).unwrap();
        assert_eq!(grey, [215; 3]);
    }

    #[test]
    fn inverted_inks_become_rgb() {
        let pixels = vec![255, 255, 255, 255, 0, 128, 255, 255, 255, 128, 0, 100, 9, 9, 9, 0];
        assert_eq!(
            inverted_cmyk_to_rgb8(pixels),
            [255, 255, 255, 0, 128, 255, 100, 50, 0, 0, 0, 0]
        );
    }

    #[test]
    fn floating_point_is_refused() {
        let error = to_rgb8(vec![0; 12], ColorType::Rgb32F, Alpha::Straight).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnsupportedFormat);
    }
}
