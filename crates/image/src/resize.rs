//! Pillow's `Image.resize` on 8-bit RGB.

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};

use super::decode::DecodedImage;
use super::preprocess::Resample;
use cutline_error::{Error, Result};

/// Stretches `image` to `width × height`; returns `3 · width · height` bytes.
///
/// Filters and rounding match Pillow within one level. The order of the two passes is Pillow's as well;
/// it matters where a filter overshoots and is clipped between them.
///
/// # Errors
/// None for a consistent image; anything else is a defect and reported as [`Error::internal`].
pub(super) fn resize(
    image: &DecodedImage,
    width: usize,
    height: usize,
    resample: Resample,
) -> Result<Vec<u8>> {
    let from = (image.width, image.height);
    if resample == Resample::Nearest {
        return run(&image.rgb, from, (width, height), ResizeAlg::Nearest);
    }
    let algorithm = ResizeAlg::Convolution(filter(resample));
    // The library always filters columns first.
    if columns_first(from, (width, height)) {
        return run(&image.rgb, from, (width, height), algorithm);
    }
    let narrow = run(&image.rgb, from, (width, image.height), algorithm)?;
    run(&narrow, (width, image.height), (width, height), algorithm)
}

/// Pillow 13 filters columns first if the height shrinks much more than the width (pull request 9549;
/// the rule was measured on 13.0.0). Earlier versions always filtered rows first.
fn columns_first(from: (usize, usize), to: (usize, usize)) -> bool {
    let (less_width, less_height) = (from.0.saturating_sub(to.0), from.1.saturating_sub(to.1));
    less_height > 2 * less_width
}

fn filter(resample: Resample) -> FilterType {
    match resample {
        Resample::Nearest | Resample::Box => FilterType::Box,
        Resample::Lanczos => FilterType::Lanczos3,
        Resample::Bilinear => FilterType::Bilinear,
        // Catmull-Rom is the cubic with a = -0.5, as Pillow's.
        Resample::Bicubic => FilterType::CatmullRom,
        Resample::Hamming => FilterType::Hamming,
    }
}

/// One call of the library. Its typed interface, because the other one compiles the filters for
/// every kind of pixel there is, which takes minutes.
fn run(
    rgb: &[u8],
    from: (usize, usize),
    to: (usize, usize),
    algorithm: ResizeAlg,
) -> Result<Vec<u8>> {
    let source = TypedImageRef::<U8x3>::from_buffer(side(from.0)?, side(from.1)?, rgb)
        .map_err(|error| Error::internal("the image's pixels are incomplete").with_source(error))?;
    let mut resized = vec![0; 3 * to.0 * to.1];
    let mut target = TypedImage::<U8x3>::from_buffer(side(to.0)?, side(to.1)?, &mut resized)
        .map_err(|error| Error::internal("the image's size is inconsistent").with_source(error))?;
    let options = ResizeOptions::new().resize_alg(algorithm).use_alpha(false);
    Resizer::new()
        .resize_typed(&source, &mut target, &options)
        .map_err(|error| Error::internal("the image cannot be resized").with_source(error))?;
    Ok(resized)
}

fn side(length: usize) -> Result<u32> {
    u32::try_from(length)
        .map_err(|error| Error::internal("the image's side is too long").with_source(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Measured on Pillow 13.0.0, by comparing one call with two calls in each order.
    #[test]
    fn the_order_of_the_passes_matches_pillow() {
        for (from, to, expected) in [
            ((100, 100), (60, 19), true),
            ((100, 100), (60, 20), false),
            ((200, 100), (180, 59), true),
            ((200, 100), (180, 60), false),
            ((100, 200), (10, 19), true),
            ((100, 200), (10, 20), false),
            ((100, 100), (200, 99), true),
            ((12, 140), (61, 200), false),
            ((4000, 3000), (384, 384), false),
            ((3000, 4000), (384, 384), false),
        ] {
            assert_eq!(columns_first(from, to), expected, "{from:?} to {to:?}");
        }
    }
}
