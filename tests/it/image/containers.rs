//! What containers say beside the pixels: orientation, the meaning of alpha, and where the image ends.

use cutline::error::ErrorKind;
use cutline::image::{DecodedImage, ImageHeader};

use super::{DecodeLimits, decode, decoded, kind, zoo_file};

/// EXIF with an orientation of 6 in a field of this type, which is that wide.
fn exif(kind: u16, width: usize, is_little: bool) -> Vec<u8> {
    let order = |mut bytes: Vec<u8>| {
        if is_little {
            bytes.reverse();
        }
        bytes
    };
    let short = |value: u16| order(value.to_be_bytes().to_vec());
    let long = |value: u32| order(value.to_be_bytes().to_vec());
    let mut value = order([vec![0; width - 1], vec![6]].concat());
    value.resize(4, 0);
    let head = if is_little { b"II" } else { b"MM" };
    let field = [short(0x0112), short(kind), long(1), value].concat();
    [head.to_vec(), short(42), long(8), short(1), field, long(0)].concat()
}

/// EXIF in every type of whole numbers and either byte order, with and without the prefix of JPEG.
fn exifs() -> Vec<Vec<u8>> {
    let types = [(1, 1), (3, 2), (4, 4), (8, 2), (9, 4)];
    let plain = types
        .into_iter()
        .flat_map(|(kind, width)| [true, false].map(|is_little| exif(kind, width, is_little)));
    plain.flat_map(|exif| [[&b"Exif\0\0"[..], &exif].concat(), exif]).collect()
}

fn jpeg_with(exif: &[u8]) -> Vec<u8> {
    let jpeg = zoo_file("jpeg_tiny.jpg");
    let data = [b"Exif\0\0", exif].concat();
    let length = u16::try_from(data.len() + 2).unwrap().to_be_bytes();
    [&jpeg[..2], b"\xFF\xE1", &length, &data, &jpeg[2..]].concat()
}

fn png_chunk(name: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let length = u32::try_from(data.len()).unwrap().to_be_bytes();
    let body = [&name[..], data].concat();
    [&length[..], &body, &crc32(&body).to_be_bytes()].concat()
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |sum, byte| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            if sum & 1 == 1 { (sum >> 1) ^ 0xEDB8_8320 } else { sum >> 1 }
        })
    })
}

/// The metadata before or after the pixels.
fn png_with(exif: &[u8], is_last: bool) -> Vec<u8> {
    let png = zoo_file("png_tiny.png");
    let at = if is_last { png.len() - 12 } else { 33 };
    [&png[..at], &png_chunk(b"eXIf", exif), &png[at..]].concat()
}

/// A WebP whose header announces `flags`, with `chunks` after the image.
fn webp_with(flags: u8, chunks: &[(&[u8; 4], &[u8])]) -> Vec<u8> {
    let webp = zoo_file("webp_lossless.webp");
    let header = [&[flags, 0, 0, 0][..], &[71, 0, 0], &[47, 0, 0]].concat();
    let chunk = |name: &[u8], data: &[u8]| {
        let padding = vec![0; data.len() % 2];
        [name, &u32::try_from(data.len()).unwrap().to_le_bytes(), data, &padding].concat()
    };
    let mut body = [b"WEBP", &chunk(b"VP8X", &header)[..], &webp[12..]].concat();
    chunks.iter().for_each(|(name, data)| body.extend(chunk(&name[..], data)));
    [&b"RIFF"[..], &u32::try_from(body.len()).unwrap().to_le_bytes(), &body].concat()
}

#[test]
fn an_orientation_is_read_in_every_type_byte_order_and_container() {
    for exif in exifs() {
        for (name, bytes) in [
            ("jpeg", jpeg_with(&exif)),
            ("png", png_with(&exif, false)),
            ("png, last", png_with(&exif, true)),
            ("webp", webp_with(8, &[(b"EXIF", &exif)])),
        ] {
            assert_eq!(decoded(&bytes).orientation, 6, "{name} {exif:?}");
        }
    }
}

/// A TIFF of one strip. Each field is a tag, a type (1 to 4), and values; `extra` are further fields.
fn tiff(width: u32, height: u32, bits: u16, samples: &[u8], extra: &[(u16, u16, u32)]) -> Vec<u8> {
    let count = samples.len() * 8 / (usize::from(bits) * width as usize * height as usize);
    let count = u16::try_from(count).unwrap();
    let mut fields = vec![
        (256, 4, 1, width),
        (257, 4, 1, height),
        (258, 3, u32::from(count), 8),
        (259, 3, 1, 1),
        (262, 3, 1, if count > 2 { 2 } else { 1 }),
        (273, 4, 1, 16),
        (277, 3, 1, u32::from(count)),
        (278, 4, 1, height),
        (279, 4, 1, u32::try_from(samples.len()).unwrap()),
    ];
    fields.extend(extra.iter().map(|(tag, kind, value)| (*tag, *kind, 1, *value)));
    fields.sort_unstable();
    let directory = 16 + u32::try_from(samples.len()).unwrap();
    let mut file = [&b"II*\0"[..], &directory.to_le_bytes()].concat();
    file.extend([bits; 4].iter().flat_map(|bits| bits.to_le_bytes()));
    file.extend(samples);
    file.extend(u16::try_from(fields.len()).unwrap().to_le_bytes());
    for (tag, kind, values, value) in fields {
        // The four numbers of bits are before the strip. One or two fit into the field.
        let value = match (tag, values) {
            (258, 1 | 2) => u32::from(bits) * 0x1_0001,
            _ => value,
        };
        file.extend([u16::to_le_bytes(tag), u16::to_le_bytes(kind)].concat());
        file.extend([values.to_le_bytes(), value.to_le_bytes()].concat());
    }
    file.extend([0; 4]);
    file
}

#[test]
fn a_tiff_has_its_orientation_in_any_type() {
    for kind in [1, 3, 4, 8, 9] {
        let image = decoded(&tiff(2, 1, 8, &[1, 2, 3, 4, 5, 6], &[(274, kind, 6)]));
        assert_eq!((image.orientation, image.width, image.height), (6, 1, 2), "{kind}");
    }
}

#[test]
fn alpha_in_a_tiff_is_what_the_file_says() {
    let samples = [100, 50, 0, 100, 255, 128, 7, 255, 0, 0, 0, 0];
    let wide: Vec<u8> = samples.iter().flat_map(|sample| [0, *sample]).collect();
    let pixels = |bits, samples: &[u8], extra: &[_]| decoded(&tiff(3, 1, bits, samples, extra)).rgb;
    let multiplied = [255, 205, 155, 255, 128, 7, 255, 255, 255];
    assert_eq!(pixels(8, &samples, &[(338, 3, 1)]), multiplied, "associated");
    assert_eq!(pixels(16, &wide, &[(338, 3, 1)]), multiplied, "associated, 16 bits");
    let straight = [194, 175, 155, 255, 128, 7, 255, 255, 255];
    assert_eq!(pixels(8, &samples, &[(338, 3, 2)]), straight, "unassociated");
    assert_eq!(pixels(8, &samples, &[]), straight, "nothing said");
    let opaque = [100, 50, 0, 255, 128, 7, 0, 0, 0];
    assert_eq!(pixels(8, &samples, &[(338, 3, 0)]), opaque, "unspecified");
}

/// A bitmap with 32 bits a pixel and a mask for alpha.
fn bitmap(pixels: &[[u8; 4]]) -> Vec<u8> {
    let masks = [0x00FF_0000_u32, 0xFF00, 0xFF, 0xFF00_0000];
    let head = 14 + 108;
    let size = head + 4 * u32::try_from(pixels.len()).unwrap();
    let mut file = [&b"BM"[..], &size.to_le_bytes(), &[0; 4], &head.to_le_bytes()].concat();
    file.extend(108_u32.to_le_bytes());
    file.extend(u32::try_from(pixels.len()).unwrap().to_le_bytes());
    file.extend([1, 0, 0, 0, 1, 0, 32, 0, 3, 0, 0, 0]);
    file.extend([0; 20]);
    file.extend(masks.iter().flat_map(|mask| mask.to_le_bytes()));
    file.resize(head as usize, 0);
    file.extend(pixels.as_flattened());
    file
}

#[test]
fn a_bitmap_without_any_opacity_is_opaque() {
    let blank = bitmap(&[[10, 20, 30, 0], [40, 50, 60, 0]]);
    assert_eq!(decoded(&blank).rgb, [30, 20, 10, 60, 50, 40]);
    // One visible pixel, and the others are meant to be invisible.
    let partly = bitmap(&[[10, 20, 30, 0], [40, 50, 60, 255]]);
    assert_eq!(decoded(&partly).rgb, [255, 255, 255, 60, 50, 40]);
}

fn same_pixels(whole: &[u8], cut: &[u8], name: &str) {
    let header = ImageHeader::read(cut, &DecodeLimits::default()).unwrap();
    let (whole, cut): (DecodedImage, DecodedImage) = (decoded(whole), decoded(cut));
    assert_eq!(whole, cut, "{name}");
    assert_eq!(header.format, cut.format, "{name}");
}

#[test]
fn a_jpeg_that_lacks_only_its_end_marker_is_complete() {
    let names =
        ["420", "444", "progressive", "progressive_grey", "restart", "grey", "cmyk", "tiny"];
    for name in names {
        let whole = zoo_file(&format!("jpeg_{name}.jpg"));
        assert!(whole.ends_with(b"\xFF\xD9"), "{name}");
        for missing in 1..=2 {
            same_pixels(&whole, &whole[..whole.len() - missing], name);
        }
        // Padding of a memory card after the last row.
        let padded = [&whole[..whole.len() - 2], &[0; 700]].concat();
        same_pixels(&whole, &padded, name);
    }
}

#[test]
fn a_progressive_jpeg_without_its_last_scans_is_cut_off() {
    let whole = zoo_file("jpeg_progressive.jpg");
    let scans: Vec<usize> = whole
        .windows(2)
        .enumerate()
        .filter(|(_, pair)| pair == &[0xFF, 0xDA])
        .map(|(at, _)| at)
        .collect();
    assert!(scans.len() > 5, "{scans:?}");
    for at in scans {
        assert_eq!(kind(&whole[..at]), Some(ErrorKind::UndecodableImage), "{at}");
    }
}

#[test]
fn other_formats_need_no_end_either() {
    for name in ["png_rgb.png", "png_interlaced.png", "png_palette.png", "png_grey16.png"] {
        let png = zoo_file(name);
        // The checksum of the pixels' chunk, and the chunk after it.
        for missing in 1..=16 {
            same_pixels(&png, &png[..png.len() - missing], name);
        }
    }
    let late = png_with(&exif(3, 2, true), true);
    assert_eq!(decoded(&late[..late.len() - 12]).orientation, 6);
    let gif = zoo_file("gif.gif");
    same_pixels(&gif, &gif[..gif.len() - 1], "gif");
    let metadata: &[(&[u8; 4], &[u8])] = &[(b"EXIF", &[1; 30]), (b"XMP ", &[2; 40])];
    let webp = webp_with(0x0C, metadata);
    let image_end = webp.len() - 38 - 48;
    for end in image_end..webp.len() {
        same_pixels(&webp, &webp[..end], &format!("webp to {end} of {}", webp.len()));
    }
    assert_eq!(kind(&webp[..image_end - 2]), Some(ErrorKind::UndecodableImage));
    let animation = zoo_file("webp_animated.webp");
    same_pixels(&animation, &animation[..animation.len() - 20], "webp, second frame");
}

#[test]
fn photos_of_iphones_are_named_and_say_what_to_do() {
    let signature = b"\x89PNG\r\n\x1A\n";
    let png = zoo_file("png_rgb.png");
    let chunk = png_chunk(b"CgBI", &[0x50, 0, 0x20, 6]);
    let of_an_app = [&signature[..], &chunk, &png[8..]].concat();
    let heic = b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic";
    for (bytes, parts) in [
        (&of_an_app[..], ["CgBI", "send the PNG", "pngcrush"]),
        (&heic[..], ["HEIC", "send JPEG", "heif-convert"]),
    ] {
        let error = decode(bytes, &DecodeLimits::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnsupportedFormat);
        for part in parts {
            assert!(error.detail().contains(part), "{}", error.detail());
        }
    }
}
