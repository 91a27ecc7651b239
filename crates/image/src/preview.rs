//! A small picture of a photo for people, and a hash by which near duplicates are found. Both are made of
//! the model's input, so that the photo's many pixels are read only once.

use jpeg_encoder::{ColorType, Encoder, SamplingFactor};

use super::decode::DecodedImage;
use super::preprocess::{PreprocessConfig, Resample};
use super::profile::SampleSpace;
use super::resize::resize;
use cutline_error::{Error, Result};

/// The longer side of a thumbnail at most, in pixels.
pub const THUMBNAIL_SIDE: usize = 256;

/// Of JPEG: about 6 KB for a photo.
const QUALITY: u8 = 76;

/// The difference hash: columns and rows of cells. Each bit compares a cell with the one to its right.
const CELLS: (usize, usize) = (9, 8);

/// The input of a model as 8-bit sRGB: a photo that was stretched.
#[derive(Debug, Clone)]
pub struct Stretched {
    image: DecodedImage,
    /// Width and height of the photo.
    photo: (usize, usize),
}

impl Stretched {
    /// What [`PreprocessConfig::resize`] made of `photo`.
    #[must_use]
    pub fn new(rgb: Vec<u8>, config: &PreprocessConfig, photo: &DecodedImage) -> Self {
        let image = DecodedImage {
            rgb,
            width: config.width,
            height: config.height,
            format: photo.format,
            orientation: 1,
            space: SampleSpace::srgb(),
        };
        Self { image, photo: (photo.width, photo.height) }
    }

    /// The levels.
    #[must_use]
    pub fn rgb(&self) -> &[u8] {
        &self.image.rgb
    }

    /// A JPEG file in the photo's own shape, with at most 256 pixels along the longer side, and not more
    /// than the stretched photo has: enlarging it would show nothing more and take longer.
    ///
    /// # Errors
    /// None for consistent sizes; anything else is a defect and reported as an internal error.
    pub fn thumbnail(&self) -> Result<Vec<u8>> {
        let (width, height) = shape(self.photo, self.image.width.max(self.image.height));
        let rgb = resize(&self.image, width, height, Resample::Bilinear)?;
        jpeg(&rgb, width, height)
    }

    /// The 64-bit difference hash of the luma. Smaller copies and other encodings of a photo differ in few
    /// bits.
    ///
    /// # Errors
    /// As [`thumbnail`](Self::thumbnail).
    pub fn difference_hash(&self) -> Result<u64> {
        let cells = resize(&self.image, CELLS.0, CELLS.1, Resample::Box)?;
        let luma = |pixel: &[u8; 3]| {
            let [red, green, blue] = pixel.map(u32::from);
            299 * red + 587 * green + 114 * blue
        };
        let luma: Vec<u32> = cells.as_chunks::<3>().0.iter().map(luma).collect();
        let rows = luma.chunks_exact(CELLS.0);
        let bits = rows.flat_map(|row| row.windows(2).map(|pair| u64::from(pair[0] < pair[1])));
        Ok(bits.fold(0, |hash, bit| hash << 1 | bit))
    }
}

/// A JPEG file of `photo` in sRGB and without metadata, with at most `side` pixels along the longer side.
///
/// # Errors
/// None for consistent sizes; anything else is a defect and reported as an internal error.
pub fn jpeg_within(photo: &DecodedImage, side: usize) -> Result<Vec<u8>> {
    let (width, height) = within((photo.width, photo.height), side);
    let rgb = photo.space.convert(resize(photo, width, height, Resample::Bicubic)?);
    jpeg(&rgb, width, height)
}

/// Width and height of a photo's thumbnail, made of a copy with at most `known` pixels along a side.
fn shape(photo: (usize, usize), known: usize) -> (usize, usize) {
    within(photo, THUMBNAIL_SIDE.min(known))
}

/// Width and height in the same proportion, the longer one at most `side`.
fn within((width, height): (usize, usize), side: usize) -> (usize, usize) {
    let longer = width.max(height);
    if longer <= side {
        return (width, height);
    }
    let scaled = |length: usize| ((length * side + longer / 2) / longer).max(1);
    (scaled(width), scaled(height))
}

/// A baseline file. mozjpeg takes twice as long: its SIMD needs an assembler to build.
fn jpeg(rgb: &[u8], width: usize, height: usize) -> Result<Vec<u8>> {
    let side = |length: usize| {
        u16::try_from(length)
            .map_err(|error| Error::internal("a thumbnail is too large").with_source(error))
    };
    let mut file = Vec::with_capacity(16 << 10);
    let mut encoder = Encoder::new(&mut file, QUALITY);
    encoder.set_sampling_factor(SamplingFactor::F_2_2);
    encoder
        .encode(rgb, side(width)?, side(height)?, ColorType::Rgb)
        .map_err(|error| Error::internal("a thumbnail cannot be encoded").with_source(error))?;
    file.shrink_to_fit();
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{DecodeLimits, ImageFormat, decode};

    fn photo(width: usize, height: usize, pixel: impl Fn(f32, f32) -> [u8; 3]) -> DecodedImage {
        let at = |n: usize, length: usize| n as f32 / length as f32;
        let rgb = (0..height)
            .flat_map(|y| (0..width).map(move |x| (x, y)))
            .flat_map(|(x, y)| pixel(at(x, width), at(y, height)))
            .collect();
        let (format, space) = (ImageFormat::Png, SampleSpace::srgb());
        DecodedImage { rgb, width, height, format, orientation: 1, space }
    }

    #[test]
    fn a_photo_is_scaled_down_and_loses_its_metadata() {
        let wide = photo(2400, 1200, |x, y| [(x * 255.0) as u8, (y * 255.0) as u8, 90]);
        let jpeg = jpeg_within(&wide, 1024).unwrap();
        let small = decode(&jpeg, &DecodeLimits::default()).unwrap();
        assert_eq!((small.width, small.height, small.format), (1024, 512, ImageFormat::Jpeg));
        let middle = &small.rgb[3 * (256 * 1024 + 512)..][..3];
        let expected = [127.0, 127.0, 90.0];
        let near = |(have, want): (&u8, f32)| (f32::from(*have) - want).abs() < 6.0;
        assert!(middle.iter().zip(expected).all(near), "{middle:?}");
        assert!(!jpeg.windows(4).any(|four| four == b"Exif"));
        let tiny = jpeg_within(&photo(20, 10, |_, _| [9, 9, 9]), 1024).unwrap();
        assert_eq!(decode(&tiny, &DecodeLimits::default()).unwrap().width, 20, "never enlarged");
    }

    fn stretched(photo: &DecodedImage) -> Stretched {
        let config = PreprocessConfig::default();
        Stretched::new(config.resize(photo).unwrap(), &config, photo)
    }

    /// Waves, so that neighbouring cells differ.
    fn waves(x: f32, y: f32) -> [u8; 3] {
        let level = |phase: f32| (127.0 + 120.0 * (9.0 * x + phase + 5.0 * y * y).sin()) as u8;
        [level(0.0), level(1.0), level(2.0)]
    }

    #[test]
    fn a_thumbnail_has_the_shape_and_colours_of_the_photo() {
        let wide = photo(1200, 300, |x, _| if x < 0.5 { [200, 30, 30] } else { [20, 20, 180] });
        let file = stretched(&wide).thumbnail().unwrap();
        let small = decode(&file, &DecodeLimits::default()).unwrap();
        assert_eq!((small.width, small.height), (256, 64));
        for (x, expected) in [(40, [200, 30, 30]), (220, [20, 20, 180])] {
            let found = &small.rgb[3 * (32 * 256 + x)..][..3];
            let far = found.iter().zip(expected).any(|(a, b)| a.abs_diff(b) > 12);
            assert!(!far, "{found:?} at {x}");
        }
    }

    #[test]
    fn a_small_photo_is_not_enlarged_and_none_vanishes() {
        let small = stretched(&photo(40, 30, waves)).thumbnail().unwrap();
        let small = decode(&small, &DecodeLimits::default()).unwrap();
        assert_eq!((small.width, small.height), (40, 30));
        assert_eq!(shape((60_000, 1), 384), (256, 1));
        assert_eq!(shape((3000, 4000), 384), (192, 256));
        assert_eq!(shape((3000, 4000), 224), (168, 224));
        assert_eq!(shape((250, 100), 224), (224, 90));
    }

    #[test]
    fn copies_have_nearly_the_same_hash_and_other_photos_do_not() {
        let hash = |photo: &DecodedImage| stretched(photo).difference_hash().unwrap();
        let one = hash(&photo(900, 600, waves));
        let copy = hash(&photo(450, 300, |x, y| waves(x, y).map(|level| level / 8 * 8)));
        let other = hash(&photo(900, 600, |x, y| waves(y, x)));
        assert!((one ^ copy).count_ones() <= 4, "{one:x} {copy:x}");
        assert!((one ^ other).count_ones() > 12, "{one:x} {other:x}");
        // From dark to light all bits are set, and from light to dark none.
        assert_eq!(hash(&photo(90, 80, |x, _| [(255.0 * x) as u8; 3])), u64::MAX);
        assert_eq!(hash(&photo(90, 80, |x, _| [255 - (255.0 * x) as u8; 3])), 0);
    }
}
