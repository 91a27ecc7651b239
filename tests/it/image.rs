//! Decoding and preprocessing of images of every kind, compared with Pillow and transformers
//! (`tests/goldens/image/make_image_goldens.py`).

mod avif;
mod containers;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use cutline::error::ErrorKind;
use cutline::image::{
    DecodeLimits, DecodedImage, PreprocessConfig, Resample, SampleSpace, decode, decode_for,
};
use proptest::prelude::*;

/// The side of `resized/*.png`.
const ZOO_SIZE: usize = 32;
/// The side of `photos/*.png`.
const PHOTO_SIZE: usize = 96;
/// The side of `pixel_values.bin`.
const VALUES_SIZE: usize = 32;

/// The largest allowed difference of a level from the reference, and the largest mean difference.
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
    read(&root().join("assets").join(name))
}

fn zoo_file(name: &str) -> Vec<u8> {
    read(&goldens().join("zoo").join(name))
}

/// Name and bytes of every image of the zoo.
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

/// A golden's pixels, read with the `image` crate.
fn golden(name: &str) -> (u32, u32, Vec<u8>) {
    let image = image::load_from_memory(&read(&goldens().join(name))).unwrap().into_rgb8();
    (image.width(), image.height(), image.into_raw())
}

/// The largest and the mean difference of two images of equal size.
fn difference(ours: &[u8], reference: &[u8]) -> (u8, f64) {
    assert_eq!(ours.len(), reference.len());
    let levels = || ours.iter().zip(reference).map(|(a, b)| a.abs_diff(*b));
    let mean = levels().map(f64::from).sum::<f64>() / ours.len() as f64;
    (levels().max().unwrap(), mean)
}

/// Compares two images and prints the result (`--nocapture`). Returns a message if they differ too much.
fn compare(name: &str, ours: &[u8], reference: &[u8]) -> Option<String> {
    let (max, mean) = difference(ours, reference);
    let line = format!("{name}: max {max}, mean {mean:.3}");
    println!("{line}");
    (max > MAX_LEVELS || mean > MEAN_LEVELS).then_some(line)
}

#[test]
fn every_kind_of_image_matches_pillow() {
    let zoo = zoo();
    assert!(zoo.len() >= 90, "the zoo is incomplete: {}", zoo.len());
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
fn the_photos_match_pillow() {
    let config = config(PHOTO_SIZE, PHOTO_SIZE);
    let photos =
        [("cat", 451, 300), ("coffee", 600, 400), ("astronaut", 512, 512), ("rocket", 640, 427)];
    for (name, width, height) in photos {
        let image = decoded(&example(&format!("{name}.jpg")));
        assert_eq!((image.width, image.height), (width, height), "{name}");
        // One of them has a wide gamut, which the reference ignores.
        let image = DecodedImage { space: SampleSpace::srgb(), ..image };
        let (_, _, reference) = golden(&format!("photos/{name}.png"));
        let wrong = compare(name, &config.resize(&image).unwrap(), &reference);
        assert_eq!(wrong, None);
    }
}

/// At the model's size a small 4:2:0 photo is hardly averaged, so a different interpolation of chroma
/// would show. These rows differ most.
#[test]
fn a_photo_at_the_models_size_matches_pillow() {
    const FIRST_ROW: usize = 288;
    let (width, height, reference) = golden("photos/coffee_384_rows.png");
    assert_eq!((width, height), (384, 32));
    let ours = config(384, 384).resize(&decoded(&example("coffee.jpg"))).unwrap();
    let ours = &ours[FIRST_ROW * 384 * 3..][..reference.len()];
    assert_eq!(compare("coffee at 384", ours, &reference), None);
}

#[test]
fn every_resampling_filter_matches_pillow() {
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
fn scaling_up_matches_pillow_and_the_same_size_is_a_copy() {
    let (width, height, rgb) = golden("photos/upscaled.png");
    let small = decoded(&zoo_file("webp_lossless.webp"));
    let ours = config(width as usize, height as usize).resize(&small).unwrap();
    assert_eq!(compare("upscaled", &ours, &rgb), None);
    let same = config(small.width, small.height).resize(&small).unwrap();
    assert_eq!(same, small.rgb);
}

#[test]
fn pixel_values_match_the_reference_processor() {
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
    for (name, extension) in
        [("jpeg", "jpg"), ("png", "png"), ("webp", "webp"), ("tiff", "tiff"), ("avif", "avif")]
    {
        for orientation in 1..=8_u8 {
            let image = decoded(&zoo_file(&format!("{name}_exif_{orientation}.{extension}")));
            let expected = if orientation >= 5 { (24, 36) } else { (36, 24) };
            assert_eq!((image.width, image.height), expected, "{name} {orientation}");
            assert_eq!(image.orientation, orientation, "{name}");
        }
    }
}

#[test]
fn only_a_wide_gamut_is_converted() {
    let ignored = ["jpeg_420.jpg", "jpeg_icc_srgb.jpg", "png_icc_srgb.png", "tiff_adobe_rgb.tiff"];
    for name in ignored {
        assert!(decoded(&zoo_file(name)).space.is_srgb(), "{name}");
    }
    let size = config(ZOO_SIZE, ZOO_SIZE);
    for name in ["jpeg_icc_p3.jpg", "jpeg_icc_adobe.jpg", "png_icc_p3.png", "webp_icc_p3.webp"] {
        let image = decoded(&zoo_file(name));
        assert!(!image.space.is_srgb(), "{name}");
        let as_stored = DecodedImage { space: SampleSpace::srgb(), ..image.clone() };
        let (stored, seen) = (size.resize(&as_stored).unwrap(), size.resize(&image).unwrap());
        assert!(
            difference(&stored, &seen).0 > MAX_LEVELS,
            "{name}: the profile must change something"
        );
    }
    let (_, _, reference) = golden("photos/rocket_icc.png");
    let seen = config(PHOTO_SIZE, PHOTO_SIZE).resize(&decoded(&example("rocket.jpg"))).unwrap();
    assert_eq!(compare("rocket by its profile", &seen, &reference), None);
}

/// A JPEG large enough for the faster decoder: a photo, scaled up, with hard edges, saturated colours
/// and chroma at half the size.
fn large_jpeg(width: usize, height: usize) -> Vec<u8> {
    let photo = decoded(&example("coffee.jpg"));
    let mut rgb = config(width, height).resize(&photo).unwrap();
    for (index, pixel) in rgb.as_chunks_mut::<3>().0.iter_mut().enumerate() {
        let (x, y) = (index % width, index / width);
        if y > height / 2 && (x / 37 + y / 23) % 2 == 0 {
            *pixel = if (x * 7 + y * 3) / 11 % 2 == 0 { [255, 0, 0] } else { [0, 0, 255] };
        }
    }
    let mut encoder = mozjpeg::Compress::new(mozjpeg::ColorSpace::JCS_RGB);
    encoder.set_size(width, height);
    encoder.set_fastest_defaults();
    encoder.set_chroma_sampling_pixel_sizes((2, 2), (2, 2));
    encoder.set_quality(85.0);
    let mut encoder = encoder.start_compress(Vec::new()).unwrap();
    encoder.write_scanlines(&rgb).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn the_faster_decoder_is_used_only_for_images_that_are_scaled_down_much() {
    const SIDE: usize = 96;
    let bytes = large_jpeg(4 * SIDE + 40, 4 * SIDE);
    let exact = decoded(&bytes);
    let quick = decode_for(&bytes, &DecodeLimits::default(), SIDE, SIDE).unwrap();
    assert_eq!((quick.width, quick.height), (exact.width, exact.height));
    assert_ne!(quick.rgb, exact.rgb, "the faster decoder was not used");
    let size = config(SIDE, SIDE);
    let (exact, quick) = (size.resize(&exact).unwrap(), size.resize(&quick).unwrap());
    let (max, mean) = difference(&quick, &exact);
    println!("faster: max {max}, mean {mean:.3}");
    assert!(max <= MAX_LEVELS && mean <= MEAN_LEVELS, "max {max}, mean {mean}");

    let closer = decode_for(&bytes, &DecodeLimits::default(), SIDE + 1, SIDE).unwrap();
    assert_eq!(closer, decoded(&bytes), "not scaled down enough for the faster decoder");
    // If the faster decoder finds an error, the exact one decides.
    let mut damaged = bytes.clone();
    let middle = damaged.len() / 2;
    damaged[middle..middle + 40].fill(0xFF);
    let one = decode(&damaged, &DecodeLimits::default());
    let two = decode_for(&damaged, &DecodeLimits::default(), SIDE, SIDE);
    assert_eq!(one.is_ok(), two.is_ok());
    let cut = &bytes[..bytes.len() / 2];
    let error = decode_for(cut, &DecodeLimits::default(), SIDE, SIDE).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UndecodableImage);
}

#[test]
fn files_that_are_no_images_are_unsupported() {
    let cases: [(&[u8], &str); 5] = [
        (b"", "empty"),
        (b"this is a text, even if its name is photo.jpg", "not a supported image"),
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

/// Bytes at the end of a file that hold no pixels: the end marker of JPEG and padding; the end
/// code, the checksums and the end marker of PNG; the end code and trailer of GIF; the padding of WebP.
fn expendable(name: &str) -> usize {
    match name.rsplit_once('.').unwrap().1 {
        "png" => 1 + 4 + 4 + 12,
        "gif" => 4,
        "jpg" => 3,
        "webp" => 1,
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
        "webp_alpha.webp",
        "gif.gif",
        "bmp.bmp",
        "bmp_palette.bmp",
        "tiff.tiff",
        "tiff_lzw.tiff",
    ];
    let mut wrong = Vec::new();
    for name in cut {
        let bytes = zoo_file(name);
        let whole = decoded(&bytes);
        for length in 20..bytes.len() {
            let is_complete = length >= bytes.len() - expendable(name);
            match decode(&bytes[..length], &DecodeLimits::default()) {
                Err(error) if error.kind() == ErrorKind::UndecodableImage => {}
                Ok(image) if is_complete && image == whole => {}
                other => wrong.push(format!(
                    "{name} to {length} of {} bytes: {:?}",
                    bytes.len(),
                    other.map(|image| image.rgb.len())
                )),
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

/// Every file of `refused`: expected error code, name and bytes.
fn refused() -> Vec<(String, String, Vec<u8>)> {
    let mut files = Vec::new();
    for folder in fs::read_dir(goldens().join("refused")).unwrap() {
        let folder = folder.unwrap();
        for file in fs::read_dir(folder.path()).unwrap() {
            let file = file.unwrap();
            let text = |name: std::ffi::OsString| name.into_string().unwrap();
            files.push((text(folder.file_name()), text(file.file_name()), read(&file.path())));
        }
    }
    files.sort();
    files
}

#[test]
fn every_kind_of_damage_and_excess_has_its_error() {
    let refused = refused();
    assert!(refused.len() >= 30, "files are missing: {}", refused.len());
    let mut wrong = Vec::new();
    for (code, name, bytes) in refused {
        let start = std::time::Instant::now();
        match decode(&bytes, &DecodeLimits::default()) {
            Ok(image) => wrong.push(format!("{name}: {}×{}", image.width, image.height)),
            Err(error) if error.kind().code() != code => wrong.push(format!("{name}: {error:?}")),
            Err(error) => {
                let detail = error.detail();
                println!("{code} {name}: {detail}");
                if name == "pixels.webp" {
                    // Its sides have 14 bits.
                    assert!(detail.contains("16000×16000"), "{detail}");
                } else if name.starts_with("pixels") {
                    assert!(detail.contains("20000×20000"), "{name}: {detail}");
                    assert!(detail.contains("100000000"), "{name}: {detail}");
                }
            }
        }
        // This time is too short to even zero 1.2 GB.
        if code == "image_too_large" {
            assert!(start.elapsed().as_millis() < 100, "{name}: {:?}", start.elapsed());
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
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

    /// For any change to an image's bytes, the result is a consistent image or an error that blames
    /// the image.
    #[test]
    fn no_bytes_crash_the_decoder(
        pick in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in prop::option::of(any::<prop::sample::Index>()),
        graft in prop::option::of(any::<[prop::sample::Index; 3]>()),
    ) {
        static ZOO: LazyLock<Vec<(String, Vec<u8>)>> = LazyLock::new(zoo);
        let (name, mut bytes) = ZOO[pick.index(ZOO.len())].clone();
        for (index, value) in changes {
            // Half of the changes go to the first bytes, where the structure is.
            let length = if value % 2 == 0 { bytes.len().min(200) } else { bytes.len() };
            bytes[index.index(length)] = value;
        }
        if let Some([other, from, at]) = graft {
            // The head of one image, the tail of another.
            let (_, other) = &ZOO[other.index(ZOO.len())];
            bytes.truncate(at.index(bytes.len()));
            bytes.extend_from_slice(&other[from.index(other.len())..]);
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len().max(1)));
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
