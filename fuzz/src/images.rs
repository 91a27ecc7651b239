//! Image files.

use cutline::image::{
    Colors, DecodeLimits, DecodedImage, ImageFormat, ImageHeader, Measures, PreprocessConfig,
    decode, decode_for,
};
use moxcms::ColorProfile;

use crate::{Corpus, Seeds, bounded, caught, seeds};

/// Small limits, so that an input is fast and memory beyond them is noticed.
const LIMITS: DecodeLimits = DecodeLimits { max_bytes: 1 << 20, max_pixels: 1 << 16 };

/// For reading a header, whatever it claims.
const HEADER_MEMORY: usize = 100_000;

/// For a small image with odd metadata.
const MEMORY: usize = 16 << 20;

macro_rules! formats {
    ($($target:ident, $seeds:ident: $format:ident, $endings:expr;)*) => {$(
        #[doc = concat!("Decodes files of the format ", stringify!($format), ".")]
        pub fn $target(data: &[u8]) -> Corpus {
            check(data, ImageFormat::$format)
        }

        /// The images of the tests in this format.
        pub fn $seeds() -> Seeds {
            seeds::files("tests/goldens/image", &$endings)
        }
    )*};
}

formats! {
    jpeg, jpeg_seeds: Jpeg, [".jpg"];
    png, png_seeds: Png, [".png"];
    webp, webp_seeds: WebP, [".webp"];
    gif, gif_seeds: Gif, [".gif"];
    bmp, bmp_seeds: Bmp, [".bmp"];
    tiff, tiff_seeds: Tiff, [".tiff"];
    avif, avif_seeds: Avif, [".avif"];
}

/// Decodes in both ways and does everything that a request does with the result, within the memory that
/// the header of the file promises.
fn check(data: &[u8], format: ImageFormat) -> Corpus {
    if ImageFormat::of(data).ok() != Some(format) {
        return Corpus::Reject;
    }
    let header = bounded(HEADER_MEMORY, || ImageHeader::read(data, &LIMITS));
    let memory = header.as_ref().map_or(HEADER_MEMORY, |header| header.peak_bytes as usize);
    let exact = bounded(memory, || caught(|| decode(data, &LIMITS)));
    let quick = bounded(memory, || caught(|| decode_for(data, &LIMITS, 16, 16)));
    let (Some(exact), Some(quick)) = (exact, quick) else { return Corpus::Keep };
    match (exact, quick, header) {
        (Ok(exact), Ok(quick), Ok(header)) => {
            assert_eq!((exact.width, exact.height), (quick.width, quick.height));
            assert_eq!(exact.orientation, quick.orientation);
            assert_eq!((exact.format, header.format), (format, format));
            let pixels = exact.width * exact.height;
            let stored = header.width * header.height;
            // An AVIF may say that only a part of it is shown.
            assert!(
                pixels as u64 == stored || format == ImageFormat::Avif && (pixels as u64) < stored
            );
            for image in [exact, quick] {
                // The image is a part of the memory that was promised.
                bounded(memory.saturating_sub(3 * pixels), || consume(&image));
            }
        }
        (Err(exact), Err(quick), _) => assert_eq!(exact.kind(), quick.kind()),
        (exact, quick, header) => {
            panic!("{:?}, {:?} and {:?} differ", exact.err(), quick.err(), header.err())
        }
    }
    Corpus::Keep
}

fn consume(image: &DecodedImage) {
    let pixels = image.width * image.height;
    assert!(pixels > 0 && pixels as u64 <= LIMITS.max_pixels);
    assert_eq!(image.rgb.len(), 3 * pixels);
    assert!((1..=8).contains(&image.orientation));
    let config = PreprocessConfig::default().with_size(16, 16).expect("a valid size");
    let input = config.preprocess(image).expect("a decoded image can be resized");
    assert!(input.data.iter().all(|value| value.is_finite()));
    let _ = Colors::of(image);
    Measures::of(image).expect("a decoded image can be measured");
}

/// The same EXIF block means the same orientation in every container.
pub fn exif(data: &[u8]) -> Corpus {
    if data.len() > 60_000 {
        return Corpus::Reject;
    }
    let jpeg = decoded(&jpeg_with(0xE1, &[b"Exif\0\0", data].concat()));
    let png = decoded(&png_with(b"eXIf", data));
    let webp = decoded(&webp_with(b"EXIF", data));
    assert_eq!(jpeg, png, "JPEG and PNG");
    assert_eq!(jpeg, webp, "JPEG and WebP");
    Corpus::Keep
}

fn decoded(file: &[u8]) -> u8 {
    let image = bounded(MEMORY, || decode(file, &LIMITS)).expect("metadata is no reason to refuse");
    image.orientation
}

/// The EXIF blocks of the tests' images, and orientations in either byte order and both integer types.
pub fn exif_seeds() -> Seeds {
    let block = |little: bool, kind: u8, orientation: u8| {
        let number = |value: u8, width: usize| {
            let mut bytes = vec![0; width];
            bytes[if little { 0 } else { width - 1 }] = value;
            bytes
        };
        let value = if kind == 3 {
            [number(orientation, 2), vec![0; 2]].concat()
        } else {
            number(orientation, 4)
        };
        let head = [if little { b"II".to_vec() } else { b"MM".to_vec() }, number(42, 2)].concat();
        let mut tag = vec![0x01, 0x12];
        if little {
            tag.reverse();
        }
        [head, number(8, 4), number(1, 2), tag, number(kind, 2), number(1, 4), value, vec![0; 4]]
            .concat()
    };
    let prefixed = [b"Exif\0\0".to_vec(), block(true, 3, 6)].concat();
    seeds::texts([
        block(true, 3, 6),
        block(false, 3, 8),
        block(true, 4, 3),
        block(false, 4, 5),
        prefixed,
    ])
}

/// Colour profiles, as a JPEG carries them.
pub fn icc(data: &[u8]) -> Corpus {
    if data.len() > 60_000 {
        return Corpus::Reject;
    }
    let file = jpeg_with(0xE2, &[b"ICC_PROFILE\0\x01\x01", data].concat());
    // Tables of a profile for printers are expanded.
    let image =
        bounded(128 << 20, || decode(&file, &LIMITS)).expect("a profile is no reason to refuse");
    consume(&image);
    Corpus::Keep
}

/// Profiles of matrices and curves, and the sRGB profile.
pub fn icc_seeds() -> Seeds {
    let profiles = [
        ColorProfile::new_srgb(),
        ColorProfile::new_display_p3(),
        ColorProfile::new_adobe_rgb(),
        ColorProfile::new_gray_with_gamma(2.2),
        ColorProfile::new_bt2020(),
    ];
    seeds::texts(profiles.map(|profile| profile.encode().expect("a profile of the library")))
}

const TINY_JPEG: &[u8] = include_bytes!("../../tests/goldens/image/zoo/jpeg_tiny.jpg");
const TINY_PNG: &[u8] = include_bytes!("../../tests/goldens/image/zoo/png_tiny.png");
const LOSSY_WEBP: &[u8] = include_bytes!("../../tests/goldens/image/zoo/webp_lossy.webp");

/// A small JPEG with a segment at its beginning.
fn jpeg_with(marker: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len() + 2).expect("a short segment").to_be_bytes();
    [&TINY_JPEG[..2], &[0xFF, marker], &length, content, &TINY_JPEG[2..]].concat()
}

/// A small PNG with a chunk after its header. With `cfg(fuzzing)` the decoder ignores checksums.
fn png_with(name: &[u8; 4], content: &[u8]) -> Vec<u8> {
    let (head, rest) = TINY_PNG.split_at(33);
    let length = u32::try_from(content.len()).expect("a short chunk").to_be_bytes();
    [head, &length, name, content, &[0; 4], rest].concat()
}

/// A small WebP with a chunk of metadata after its image.
fn webp_with(name: &[u8; 4], content: &[u8]) -> Vec<u8> {
    let chunk = |name: &[u8; 4], content: &[u8]| {
        let length = u32::try_from(content.len()).expect("a short chunk").to_le_bytes();
        [&name[..], &length, content, if content.len() % 2 == 1 { &[0] } else { &[] }].concat()
    };
    // `VP8 `, its length, the tag and the start code of the frame, then its sides.
    let side = |at: usize| u16::from_le_bytes([LOSSY_WEBP[at], LOSSY_WEBP[at + 1]]) - 1;
    let sides =
        [26, 28].map(|at| side(at).to_le_bytes()).map(|[low, high]| [low, high, 0]).concat();
    let flags: &[u8] = &[if name == b"EXIF" { 0x08 } else { 0x20 }, 0, 0, 0];
    let extended = chunk(b"VP8X", &[flags, &sides].concat());
    let body = [b"WEBP", &extended[..], &LOSSY_WEBP[12..], &chunk(name, content)].concat();
    let length = u32::try_from(body.len()).expect("a short file").to_le_bytes();
    [b"RIFF", &length[..], &body].concat()
}
