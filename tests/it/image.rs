//! Tests: image. What the server makes of images of every kind, against what Pillow and
//! transformers make of them (`tests/goldens/image/make_image_goldens.py`).

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use cutline::error::ErrorKind;
use cutline::image::{DecodeLimits, DecodedImage, PreprocessConfig, Resample, decode};
use proptest::prelude::*;

/// The side of `resized/*.png`.
const ZOO_SIZE: usize = 32;
/// The side of `photos/*.png`.
const PHOTO_SIZE: usize = 96;
/// The side of `pixel_values.bin`.
const VALUES_SIZE: usize = 32;

/// How far a level may be from the reference's, at worst and on the average.
const MAX_LEVELS: u8 = 3;
const MEAN_LEVELS: f64 = 0.5;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn goldens() -> PathBuf {
    root().join("tests/goldens/image")
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn example(name: &str) -> Vec<u8> {
    read(&root().join("examples").join(name))
}

fn zoo_file(name: &str) -> Vec<u8> {
    read(&goldens().join("zoo").join(name))
}

/// Every image of the zoo: name and bytes.
fn zoo() -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<PathBuf> =
        fs::read_dir(goldens().join("zoo")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    files.iter().map(|path| (name(path), read(path))).collect()
}

fn decoded(bytes: &[u8]) -> DecodedImage {
    decode(bytes, &DecodeLimits::default()).unwrap()
}

fn kind(bytes: &[u8]) -> Option<ErrorKind> {
    decode(bytes, &DecodeLimits::default()).err().map(|error| error.kind())
}

fn config(width: usize, height: usize) -> PreprocessConfig {
    PreprocessConfig::default().with_size(width, height).unwrap()
}

/// A golden's pixels, read by the `image` crate alone.
fn golden(name: &str) -> (u32, u32, Vec<u8>) {
    let image = image::load_from_memory(&read(&goldens().join(name))).unwrap().into_rgb8();
    (image.width(), image.height(), image.into_raw())
}

/// The largest and the mean difference of two images of the same size.
fn difference(ours: &[u8], reference: &[u8]) -> (u8, f64) {
    assert_eq!(ours.len(), reference.len());
    let levels = || ours.iter().zip(reference).map(|(a, b)| a.abs_diff(*b));
    let mean = levels().map(f64::from).sum::<f64>() / ours.len() as f64;
    (levels().max().unwrap(), mean)
}

/// Compares, tells what was measured (`--nocapture`), and returns what is wrong.
fn compare(name: &str, ours: &[u8], reference: &[u8]) -> Option<String> {
    let (max, mean) = difference(ours, reference);
    let line = format!("{name}: max {max}, mean {mean:.3}");
    println!("{line}");
    (max > MAX_LEVELS || mean > MEAN_LEVELS).then_some(line)
}

#[test]
fn every_kind_of_image_is_what_pillow_makes_of_it() {
    let zoo = zoo();
    assert!(zoo.len() >= 50, "the zoo is incomplete: {}", zoo.len());
    let config = config(ZOO_SIZE, ZOO_SIZE);
    let mut wrong = Vec::new();
    for (name, bytes) in zoo {
        let (stem, extension) = name.split_once('.').unwrap();
        let image = match decode(&bytes, &DecodeLimits::default()) {
            Ok(image) => image,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        let format = if extension == "jpg" { "jpeg" } else { extension };
        assert_eq!(image.format.to_string(), format, "{name}");
        let (_, _, reference) = golden(&format!("resized/{stem}.png"));
        wrong.extend(compare(&name, &config.resize(&image).unwrap(), &reference));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_photos_are_what_pillow_makes_of_them() {
    let config = config(PHOTO_SIZE, PHOTO_SIZE);
    let photos =
        [("cat", 451, 300), ("coffee", 600, 400), ("astronaut", 512, 512), ("rocket", 640, 427)];
    for (name, width, height) in photos {
        let image = decoded(&example(&format!("{name}.jpg")));
        assert_eq!((image.width, image.height), (width, height), "{name}");
        let (_, _, reference) = golden(&format!("photos/{name}.png"));
        let wrong = compare(name, &config.resize(&image).unwrap(), &reference);
        assert_eq!(wrong, None);
    }
}

/// At the model's own size a small 4:2:0 photo is hardly averaged, and a decoder that interpolates
/// chroma in its own way is found out: these rows are those that differ most.
#[test]
fn a_photo_at_the_models_size_is_what_pillow_makes_of_it() {
    const FIRST_ROW: usize = 288;
    let (width, height, reference) = golden("photos/coffee_384_rows.png");
    assert_eq!((width, height), (384, 32));
    let ours = config(384, 384).resize(&decoded(&example("coffee.jpg"))).unwrap();
    let ours = &ours[FIRST_ROW * 384 * 3..][..reference.len()];
    assert_eq!(compare("coffee at 384", ours, &reference), None);
}

#[test]
fn every_resampling_is_pillows() {
    let image = decoded(&example("coffee.jpg"));
    let filters = [
        Resample::Nearest,
        Resample::Lanczos,
        Resample::Bilinear,
        Resample::Bicubic,
        Resample::Box,
        Resample::Hamming,
    ];
    for (number, resample) in filters.into_iter().enumerate() {
        let config = PreprocessConfig { resample, ..config(ZOO_SIZE, ZOO_SIZE) };
        let (_, _, reference) = golden(&format!("photos/coffee_resample_{number}.png"));
        let ours = config.resize(&image).unwrap();
        assert_eq!(compare(&format!("{resample:?}"), &ours, &reference), None);
    }
}

#[test]
fn scaling_up_is_pillows_and_the_same_size_is_a_copy() {
    let (width, height, rgb) = golden("photos/upscaled.png");
    let small = decoded(&zoo_file("webp_lossless.webp"));
    let ours = config(width as usize, height as usize).resize(&small).unwrap();
    assert_eq!(compare("upscaled", &ours, &rgb), None);
    let same = config(small.width, small.height).resize(&small).unwrap();
    assert_eq!(same, small.rgb);
}

#[test]
fn pixel_values_are_the_reference_processors() {
    let config = config(VALUES_SIZE, VALUES_SIZE);
    let values = config.preprocess(&decoded(&example("coffee.jpg"))).unwrap();
    assert_eq!((values.width, values.height), (VALUES_SIZE, VALUES_SIZE));
    let bytes = read(&goldens().join("pixel_values.bin"));
    let reference: Vec<f32> =
        bytes.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect();
    assert_eq!(values.data.len(), reference.len());
    let plane = VALUES_SIZE * VALUES_SIZE;
    let mut sum = 0.0;
    for (index, (ours, theirs)) in values.data.iter().zip(&reference).enumerate() {
        let level = f64::from((ours - theirs).abs()) * 255.0 * config.std[index / plane];
        assert!(level <= f64::from(MAX_LEVELS) + 1e-3, "value {index}: {ours} and {theirs}");
        sum += level;
    }
    let mean = sum / reference.len() as f64;
    println!("pixel values: mean {mean:.3} levels");
    assert!(mean <= MEAN_LEVELS, "mean {mean}");
}

#[test]
fn a_single_pixel_fills_the_whole_input() {
    for name in ["png_tiny.png", "jpeg_tiny.jpg"] {
        let image = decoded(&zoo_file(name));
        assert_eq!((image.width, image.height), (1, 1), "{name}");
        let filled = config(8, 6).resize(&image).unwrap();
        assert_eq!(filled.len(), 8 * 6 * 3);
        assert!(filled.chunks(3).all(|pixel| pixel == image.rgb), "{name}");
    }
}

#[test]
fn an_exif_orientation_swaps_the_sides() {
    for orientation in 1..=8 {
        let image = decoded(&zoo_file(&format!("jpeg_exif_{orientation}.jpg")));
        let expected = if orientation >= 5 { (24, 36) } else { (36, 24) };
        assert_eq!((image.width, image.height), expected, "orientation {orientation}");
    }
}

#[test]
fn what_is_no_image_is_an_unsupported_format() {
    let cases: [(&[u8], &str); 5] = [
        (b"", "empty"),
        (b"this is a text, whatever its name.jpg says", "no image"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"<svg xmlns=\"http://www.w3.org/2000/svg\"/>", "SVG"),
        (b"%PDF-1.4\n", "PDF"),
    ];
    for (bytes, part) in cases {
        let error = decode(bytes, &DecodeLimits::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnsupportedFormat);
        assert!(error.detail().contains(part), "{}", error.detail());
        assert!(error.detail().contains("send JPEG") || bytes.is_empty());
    }
}

/// The last bytes that a file can lose without losing a pixel: the checksum of the last row and the
/// end marker of PNG, the end code and trailer of GIF.
fn expendable(name: &str) -> usize {
    match name.rsplit_once('.').unwrap().1 {
        "png" => 4 + 4 + 12,
        "gif" => 4,
        _ => 0,
    }
}

#[test]
fn an_image_that_is_cut_off_is_undecodable() {
    let cut = [
        "jpeg_420.jpg",
        "jpeg_progressive.jpg",
        "jpeg_grey.jpg",
        "jpeg_restart.jpg",
        "jpeg_exif_6.jpg",
        "png_rgb.png",
        "png_interlaced.png",
        "png_grey16.png",
        "webp_lossy.webp",
        "webp_lossless.webp",
        "webp_animated.webp",
        "gif.gif",
        "bmp.bmp",
        "bmp_palette.bmp",
        "tiff.tiff",
        "tiff_lzw.tiff",
    ];
    let mut wrong = Vec::new();
    for name in cut {
        let bytes = zoo_file(name);
        for length in 20..bytes.len() - expendable(name) {
            let result = kind(&bytes[..length]);
            if result != Some(ErrorKind::UndecodableImage) {
                wrong.push(format!("{name} to {length} of {} bytes: {result:?}", bytes.len()));
            }
        }
    }
    assert!(wrong.is_empty(), "{} {:#?}", wrong.len(), &wrong[..wrong.len().min(40)]);
}

#[test]
fn a_damaged_image_is_undecodable() {
    let mut png = zoo_file("png_rgb.png");
    let middle = png.len() / 2;
    png[middle] ^= 0xFF;
    assert_eq!(kind(&png), Some(ErrorKind::UndecodableImage));

    let mut jpeg = zoo_file("jpeg_420.jpg");
    let frame = jpeg.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
    jpeg[frame + 9] = 0; // no components
    assert_eq!(kind(&jpeg), Some(ErrorKind::UndecodableImage));

    let header_only = &zoo_file("webp_lossy.webp")[..12];
    let mut webp = header_only.to_vec();
    webp[4..8].copy_from_slice(&4_u32.to_le_bytes());
    assert_eq!(kind(&webp), Some(ErrorKind::UndecodableImage));
}

/// Headers of images of 20,000 × 20,000 pixels: what a decompression bomb begins with.
fn giants() -> Vec<(&'static str, Vec<u8>)> {
    const SIDE: u16 = 20_000;
    let big = u32::from(SIDE).to_be_bytes();
    let little = u32::from(SIDE).to_le_bytes();

    let mut png = zoo_file("png_rgb.png");
    png[16..20].copy_from_slice(&big);
    png[20..24].copy_from_slice(&big);
    // The checksum of the header must hold, or it is merely damaged.
    let checksum = crc32(&png[12..29]);
    png[29..33].copy_from_slice(&checksum.to_be_bytes());

    let mut jpeg = zoo_file("jpeg_420.jpg");
    let frame = jpeg.windows(2).position(|pair| pair == [0xFF, 0xC0]).unwrap();
    jpeg[frame + 5..frame + 7].copy_from_slice(&SIDE.to_be_bytes());
    jpeg[frame + 7..frame + 9].copy_from_slice(&SIDE.to_be_bytes());

    let mut bmp = zoo_file("bmp.bmp");
    bmp[18..22].copy_from_slice(&little);
    bmp[22..26].copy_from_slice(&little);

    let mut gif = zoo_file("gif.gif");
    gif[6..8].copy_from_slice(&SIDE.to_le_bytes());
    gif[8..10].copy_from_slice(&SIDE.to_le_bytes());
    vec![("png", png), ("jpeg", jpeg), ("bmp", bmp), ("gif", gif)]
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 }
        })
    })
}

#[test]
fn giants_are_refused_before_memory_is_taken() {
    for (name, bytes) in giants() {
        let start = std::time::Instant::now();
        let error = decode(&bytes, &DecodeLimits::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ImageTooLarge, "{name}: {error}");
        assert!(error.detail().contains("20000×20000"), "{name}: {error}");
        assert!(error.detail().contains("100000000"), "{name}: {error}");
        // 1.2 GB could not even be zeroed in this time.
        assert!(start.elapsed().as_millis() < 100, "{name}: {:?}", start.elapsed());
    }
}

#[test]
fn limits_hold_at_their_edge() {
    let bytes = zoo_file("jpeg_420.jpg");
    let exact = DecodeLimits { max_bytes: bytes.len(), max_pixels: 72 * 48 };
    assert!(decode(&bytes, &exact).is_ok());
    let error = decode(&bytes, &DecodeLimits { max_bytes: bytes.len() - 1, ..exact }).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ImageTooLarge);
    assert!(error.detail().contains(&bytes.len().to_string()), "{error}");
    let error = decode(&bytes, &DecodeLimits { max_pixels: 72 * 48 - 1, ..exact }).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ImageTooLarge);
    assert!(error.detail().contains("3456") && error.detail().contains("3455"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

    /// Whatever happens to an image's bytes, the answer is an image that keeps its promises, or an
    /// error that is the image's fault.
    #[test]
    fn no_bytes_bring_the_decoder_down(
        pick in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        static ZOO: LazyLock<Vec<(String, Vec<u8>)>> = LazyLock::new(zoo);
        let (name, mut bytes) = ZOO[pick.index(ZOO.len())].clone();
        for (index, value) in changes {
            // Half of the changes go to the first bytes, where the structure is.
            let length = if value % 2 == 0 { bytes.len().min(200) } else { bytes.len() };
            bytes[index.index(length)] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let limits = DecodeLimits { max_pixels: 1_000_000, ..Default::default() };
        match decode(&bytes, &limits) {
            Ok(image) => {
                prop_assert!(image.width > 0 && image.height > 0, "{}", name);
                prop_assert_eq!(image.rgb.len(), 3 * image.width * image.height, "{}", name);
                prop_assert_eq!(config(8, 8).resize(&image).unwrap().len(), 8 * 8 * 3);
            }
            Err(error) => prop_assert!(
                matches!(
                    error.kind(),
                    ErrorKind::ImageTooLarge | ErrorKind::UnsupportedFormat | ErrorKind::UndecodableImage
                ),
                "{}: {:?}", name, error
            ),
        }
    }
}
