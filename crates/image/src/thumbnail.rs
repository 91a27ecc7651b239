//! A small sample of an image's pixels.

use super::decode::DecodedImage;

/// The longer side, in pixels.
const SIDE: usize = 128;

/// Scales `image` down so that its longer side has at most 128 pixels, as sRGB.
///
/// Each pixel is the mean of four pixels of its cell. Reading the whole cell would cost time and gain
/// nothing, because the thumbnail serves for shares of colours, not details. So the time does not
/// depend on the image's size.
pub(super) fn thumbnail(image: &DecodedImage) -> Vec<[u8; 3]> {
    let longer = image.width.max(image.height);
    let scaled = |side: usize| if longer > SIDE { (side * SIDE / longer).max(1) } else { side };
    let (width, height) = (scaled(image.width), scaled(image.height));
    let pixels = image.rgb.as_chunks::<3>().0;
    let columns: Vec<[usize; 2]> =
        (0..width).map(|column| quarters(column, width, image.width)).collect();
    let mut mean = Vec::with_capacity(3 * width * height);
    for row in 0..height {
        let [upper, lower] = quarters(row, height, image.height).map(|y| y * image.width);
        for [left, right] in &columns {
            let four =
                [upper + left, upper + right, lower + left, lower + right].map(|at| pixels[at]);
            mean.extend([0, 1, 2].map(|channel| {
                let sum: u16 = four.iter().map(|pixel| u16::from(pixel[channel])).sum();
                u8::try_from((sum + 2) / 4).unwrap_or(u8::MAX)
            }));
        }
    }
    image.space.convert(mean).as_chunks::<3>().0.to_vec()
}

/// The pixels at one and at three quarters of cell `index`, if `length` pixels are divided into `cells`.
fn quarters(index: usize, cells: usize, length: usize) -> [usize; 2] {
    [1, 3].map(|quarter| (4 * index + quarter) * length / (4 * cells))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ImageFormat, SampleSpace};

    fn image(width: usize, height: usize, pixel: impl Fn(usize, usize) -> [u8; 3]) -> DecodedImage {
        let rgb = (0..height)
            .flat_map(|y| (0..width).map(move |x| (x, y)))
            .flat_map(|(x, y)| pixel(x, y))
            .collect();
        let (format, space) = (ImageFormat::Png, SampleSpace::srgb());
        DecodedImage { rgb, width, height, format, orientation: 1, space }
    }

    #[test]
    fn a_small_image_is_its_own_thumbnail() {
        let small = image(3, 2, |x, y| [x as u8, y as u8, 9]);
        assert_eq!(thumbnail(&small).as_flattened(), small.rgb);
        let largest = image(128, 1, |x, _| [x as u8; 3]);
        assert_eq!(thumbnail(&largest).as_flattened(), largest.rgb);
    }

    #[test]
    fn a_large_image_keeps_its_shape_and_shares() {
        let large = image(1000, 10, |x, _| if x < 500 { [200, 0, 0] } else { [0, 0, 100] });
        let small = thumbnail(&large);
        assert_eq!(small.len(), 128);
        assert_eq!(small.iter().filter(|pixel| **pixel == [200, 0, 0]).count(), 64);
        assert_eq!(small.iter().filter(|pixel| **pixel == [0, 0, 100]).count(), 64);
        assert_eq!(thumbnail(&image(65_000, 1, |_, _| [7; 3])), vec![[7; 3]; 128]);
    }

    #[test]
    fn a_cell_is_the_mean_of_four() {
        let stripes = image(256, 256, |x, _| if x % 2 == 0 { [0; 3] } else { [255; 3] });
        assert!(thumbnail(&stripes).iter().all(|pixel| *pixel == [128; 3]));
    }
}
