//! AVIF, compared with libavif (`decoded/avif*.png`).

use cutline::error::ErrorKind;
use cutline::image::ImageHeader;

use super::{DecodeLimits, decode, decoded, difference, golden, kind, zoo, zoo_file};

/// The largest difference of a level, and the largest mean difference. For 8 bits, libavif rounds
/// interpolated chroma to whole levels.
const MAX_LEVELS: u8 = 2;
const MEAN_LEVELS: f64 = 0.5;

#[test]
fn every_kind_of_avif_matches_libavif() {
    let avifs = zoo().into_iter().filter(|(name, _)| name.ends_with(".avif"));
    let mut wrong = Vec::new();
    let mut count = 0;
    for (name, bytes) in avifs {
        count += 1;
        let image = match decode(&bytes, &DecodeLimits::default()) {
            Ok(image) => image,
            Err(error) => {
                wrong.push(format!("{name}: {error}"));
                continue;
            }
        };
        let stem = name.strip_suffix(".avif").unwrap();
        let (width, height, reference) = golden(&format!("decoded/{stem}.png"));
        let size = (u32::try_from(image.width).unwrap(), u32::try_from(image.height).unwrap());
        assert_eq!(size, (width, height), "{name}");
        let (max, mean) = difference(&image.rgb, &reference);
        println!("{name}: max {max}, mean {mean:.3}");
        if max > MAX_LEVELS || mean > MEAN_LEVELS {
            wrong.push(format!("{name}: max {max}, mean {mean:.3}"));
        }
    }
    assert!(count >= 30, "files are missing: {count}");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_boxes_turn_an_avif() {
    for orientation in 1..=8_u8 {
        let image = decoded(&zoo_file(&format!("avif_exif_{orientation}.avif")));
        assert_eq!(image.orientation, orientation);
    }
    // A quarter to the left, then top and bottom.
    assert_eq!(decoded(&zoo_file("avif_turned_and_mirrored.avif")).orientation, 5);
}

#[test]
fn only_a_wide_gamut_of_an_avif_is_converted() {
    assert!(!decoded(&zoo_file("avif_icc_p3.avif")).space.is_srgb());
    assert!(
        decoded(&zoo_file("avif_10_bt2020.avif")).space.is_srgb(),
        "only its matrix is BT.2020's"
    );
    // The same code points, with the primaries of Display P3.
    let mut bytes = zoo_file("avif_bt709.avif");
    let at = position(&bytes, b"nclx");
    bytes[at + 5] = 12;
    assert!(!decoded(&bytes).space.is_srgb());
}

fn position(bytes: &[u8], part: &[u8]) -> usize {
    bytes.windows(part.len()).position(|window| window == part).unwrap()
}

#[test]
fn an_avif_that_is_cut_off_is_undecodable() {
    for name in ["avif.avif", "avif_alpha.avif", "avif_grid.avif", "avif_12_444.avif"] {
        let bytes = zoo_file(name);
        let step = bytes.len() / 200 + 1;
        for length in (40..bytes.len()).step_by(step).chain([bytes.len() - 1]) {
            let found = kind(&bytes[..length]);
            let is_refused =
                matches!(found, Some(ErrorKind::UndecodableImage | ErrorKind::UnsupportedFormat));
            assert!(is_refused, "{name} to {length} of {}: {found:?}", bytes.len());
        }
    }
}

#[test]
fn a_size_that_contradicts_the_coded_data_is_refused_before_it_is_decoded() {
    let bytes = zoo_file("avif.avif");
    let sides = position(&bytes, b"ispe") + 8;
    assert_eq!(bytes[sides..sides + 8], [0, 0, 0, 72, 0, 0, 0, 48]);
    let with = |width: u32, height: u32| {
        let mut bytes = bytes.clone();
        bytes[sides..sides + 4].copy_from_slice(&width.to_be_bytes());
        bytes[sides + 4..sides + 8].copy_from_slice(&height.to_be_bytes());
        bytes
    };
    let header = |bytes: &[u8]| ImageHeader::read(bytes, &DecodeLimits::default());
    let honest = header(&bytes).unwrap();
    assert_eq!((honest.width, honest.height), (72, 48));
    assert_eq!(kind(&with(71, 48)), Some(ErrorKind::UndecodableImage));
    assert_eq!(kind(&with(4000, 3000)), Some(ErrorKind::UndecodableImage));
    assert_eq!(header(&with(20_000, 20_000)).unwrap_err().kind(), ErrorKind::ImageTooLarge);
    assert_eq!(kind(&with(20_000, 20_000)), Some(ErrorKind::ImageTooLarge));
    // The memory that these need is more than 64 bits can say.
    for (width, height) in [(u32::MAX, u32::MAX), (0xF6FF_DBFF, 0xDC00_0018)] {
        assert_eq!(kind(&with(width, height)), Some(ErrorKind::ImageTooLarge));
    }
    assert_eq!(kind(&with(0, 48)), Some(ErrorKind::UndecodableImage));
}

#[test]
fn only_the_part_inside_the_clean_aperture_is_shown() {
    let bytes = zoo_file("avif_exif_3.avif");
    // The property that turns the image becomes one that crops it: width, height, and the offset of its
    // centre, each a fraction.
    let clap: Vec<u8> = [20_u32, 1, 10, 1, 2, 2, u32::MAX, 1]
        .iter()
        .flat_map(|number| number.to_be_bytes())
        .collect();
    let clap = [&40_u32.to_be_bytes()[..], b"clap", &clap].concat();
    let turn = position(&bytes, b"irot") - 4;
    let mut cropped = [&bytes[..turn], &clap, &bytes[turn + 9..]].concat();
    let grown = u32::try_from(clap.len() - 9).unwrap();
    for name in [b"meta", b"iprp", b"ipco"] {
        let at = position(&cropped, name) - 4;
        let length = u32::from_be_bytes(cropped[at..at + 4].try_into().unwrap()) + grown;
        cropped[at..at + 4].copy_from_slice(&length.to_be_bytes());
    }
    // The place of the coded data, in the table of items.
    let data = u32::try_from(position(&bytes, b"mdat") + 4).unwrap();
    let place = position(&cropped, b"iloc");
    let end = position(&cropped, b"iinf");
    for at in place..end - 4 {
        let offset = u32::from_be_bytes(cropped[at..at + 4].try_into().unwrap());
        if offset == data {
            cropped[at..at + 4].copy_from_slice(&(offset + grown).to_be_bytes());
        }
    }
    let (part, whole) = (decoded(&cropped), decoded(&zoo_file("avif_exif_1.avif")));
    assert_eq!((part.width, part.height), (20, 10));
    let (left, top) = (9, 6);
    for (row, pixels) in part.rgb.chunks(3 * 20).enumerate() {
        let from = 3 * ((top + row) * whole.width + left);
        assert_eq!(pixels, &whole.rgb[from..from + 3 * 20], "row {row}");
    }
}

/// Each unit of coded data may cost as much time as an image, however short it is.
#[test]
fn an_avif_of_many_frames_is_refused() {
    let bytes = zoo_file("avif.avif");
    let start = std::time::Instant::now();
    let data = position(&bytes, b"mdat");
    // Frame headers without content, in front of the data, as many as fit: the kind for a frame, for a
    // header, and for its repetition, which the decoder takes for a header.
    for kind in [0x32, 0x1A, 0x3A] {
        let mut many = bytes.clone();
        let units = [kind, 0x00].repeat((bytes.len() - data - 4) / 2);
        many[data + 4..][..units.len()].copy_from_slice(&units);
        let error = decode(&many, &DecodeLimits::default()).unwrap_err();
        assert!(error.detail().contains("frames"), "{kind}: {}", error.detail());
    }
    assert!(start.elapsed().as_secs() < 5);
}
