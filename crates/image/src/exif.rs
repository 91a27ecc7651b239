//! The orientation in EXIF metadata, which is a small TIFF in every container.

use image::metadata::Orientation;

use super::tiff::Directory;

/// The orientation's tag.
const ORIENTATION: u64 = 0x0112;

/// What JPEG puts before EXIF. Programs copy it into other containers, where it does not belong.
pub(super) const PREFIX: &[u8] = b"Exif\0\0";

/// The orientation in `exif`, or in a TIFF. Without one, and with a damaged one, an image is shown as it is
/// stored.
///
/// The standard demands 16 bits. Programs write it in every type of whole numbers, in either byte order.
pub(super) fn orientation(exif: &[u8]) -> Orientation {
    find(exif).unwrap_or(Orientation::NoTransforms)
}

/// Whether an orientation makes columns of rows, which takes a copy of the image.
pub(super) fn is_turned(orientation: Orientation) -> bool {
    orientation.to_exif() >= 5
}

fn find(exif: &[u8]) -> Option<Orientation> {
    let mut exif = exif;
    while let Some(rest) = exif.strip_prefix(PREFIX) {
        exif = rest;
    }
    if !exif.starts_with(b"II") && !exif.starts_with(b"MM") {
        return None;
    }
    let value = Directory::first(exif)?.value(ORIENTATION)?;
    Orientation::from_exif(u8::try_from(value).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// EXIF with an orientation of 6 in this type.
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
        let field = [short(0x0112), short(kind), long(1), value];
        [head.to_vec(), short(42), long(8), short(1), field.concat(), long(0)].concat()
    }

    #[test]
    fn every_type_of_whole_numbers_is_read_in_both_byte_orders() {
        for is_little in [true, false] {
            for (kind, width) in [(1, 1), (3, 2), (4, 4), (6, 1), (7, 1), (8, 2), (9, 4), (13, 4)] {
                let exif = exif(kind, width, is_little);
                let found = find(&exif);
                assert_eq!(found, Some(Orientation::Rotate90), "{kind} {is_little}");
            }
            for (kind, width) in [(2, 1), (5, 4), (11, 4)] {
                assert_eq!(find(&exif(kind, width, is_little)), None, "{kind}");
            }
        }
    }

    #[test]
    fn a_prefix_is_skipped_however_often_it_was_copied() {
        let exif = exif(3, 2, true);
        for count in 0..3 {
            let prefixed = [PREFIX.repeat(count), exif.clone()].concat();
            assert_eq!(find(&prefixed), Some(Orientation::Rotate90), "{count}");
        }
    }

    #[test]
    fn anything_else_has_no_orientation() {
        let exif = exif(3, 2, true);
        for length in 0..20 {
            assert_eq!(find(&exif[..length]), None, "{length}");
        }
        assert_eq!(find(b"\0\0II*\0"), None);
        let nine = [&exif[..18], &[9, 0, 0, 0, 0, 0, 0, 0]].concat();
        assert_eq!(find(&nine), None);
    }
}
