//! Checks of a TIFF before it is decoded.
//!
//! The decoder allocates memory for as many values as a field of the directory announces, up to
//! 256 MiB, before it finds that the file has none. One wrong byte is enough. At tiles that hold one
//! colour each, it panics.

use super::format::ImageFormat;
use super::header::Needs;
use cutline_error::{Error, ErrorKind, Result};

/// Refuses a file if a field of its first directory announces more bytes than the file has, or if
/// its image is in a layout at which the decoder panics.
///
/// # Errors
/// [`ErrorKind::UndecodableImage`] or [`ErrorKind::UnsupportedFormat`]. The decoder finds all other
/// errors in the directory.
pub(super) fn check_fields(bytes: &[u8]) -> Result<()> {
    let (kind, detail) = match Directory::first(bytes) {
        Some(directory) if !directory.fits() => (
            ErrorKind::UndecodableImage,
            format!(
                "the {} image is damaged or cut off; open it, save it again and resend",
                ImageFormat::Tiff
            ),
        ),
        Some(directory) if directory.has_planar_tiles() => (
            ErrorKind::UnsupportedFormat,
            format!(
                "this kind of {} image, with tiles of one colour each, is not supported; save it as \
                 plain 8-bit JPEG or PNG",
                ImageFormat::Tiff
            ),
        ),
        _ => return Ok(()),
    };
    Err(Error::new(kind, detail))
}

/// The decoder holds every value of a field in this many bytes.
const VALUE_BYTES: u64 = 32;

/// Compression by JPEG, one file for each strip or tile.
const JPEG: u64 = 7;

/// What the decoder will need. `None` if the file has no directory with a size.
pub(super) fn needs(bytes: &[u8]) -> Option<Needs> {
    let directory = Directory::first(bytes)?;
    let (width, height) = (directory.value(256)?, directory.value(257)?);
    let bits = directory.value(258).unwrap_or(1).max(1);
    let samples = directory.value(277).unwrap_or(1);
    let pixels = width.saturating_mul(height);
    let stored = pixels.saturating_mul(samples.saturating_mul(bits)).div_ceil(8);
    // Every strip or tile that is a JPEG is decoded into memory of its own, progressive ones by way
    // of coefficients of 16 bits.
    let copies = if directory.value(259) == Some(JPEG) { 4 } else { 1 };
    Some(Needs {
        width,
        height,
        pixel: samples.saturating_mul(bits.div_ceil(8)),
        working: stored.saturating_add(height).saturating_mul(copies),
        metadata: directory.values().saturating_mul(VALUE_BYTES),
    })
}

/// A directory of fields.
struct Directory<'f> {
    file: &'f [u8],
    little: bool,
    /// BigTIFF has counts and offsets of 64 bits.
    big: bool,
    /// The offset of the first field.
    fields: usize,
    count: usize,
}

impl<'f> Directory<'f> {
    fn first(file: &'f [u8]) -> Option<Self> {
        let little = file.starts_with(b"II");
        let directory = Self { file, little, big: false, fields: 0, count: 0 };
        let big = directory.number(2, 2)? == 43;
        let offset =
            usize::try_from(if big { directory.number(8, 8)? } else { directory.number(4, 4)? });
        let (offset, width) = (offset.ok()?, if big { 8 } else { 2 });
        let count = usize::try_from(directory.number(offset, width)?).ok()?;
        Some(Self { big, fields: offset.checked_add(width)?, count, ..directory })
    }

    fn fits(&self) -> bool {
        self.fields().all(|field| field.bytes() <= self.file.len() as u64)
    }

    /// Whether the image is cut into tiles that hold one sample of each pixel.
    fn has_planar_tiles(&self) -> bool {
        let samples = self.value(277).unwrap_or(1);
        samples > 1 && self.value(284) == Some(2) && self.value(322).is_some()
    }

    /// The fields that are inside the file.
    fn fields(&self) -> impl Iterator<Item = Field> {
        let (size, width) = if self.big { (20, 8) } else { (12, 4) };
        (0..self.count).map_while(move |index| {
            let at = self.fields.checked_add(index.checked_mul(size)?)?;
            Some(Field {
                tag: self.number(at, 2)?,
                kind: self.number(at.checked_add(2)?, 2)?,
                count: self.number(at + 4, width)?,
                value: at + 4 + width,
            })
        })
    }

    /// How many values the fields have together.
    fn values(&self) -> u64 {
        self.fields().fold(0, |sum, field| field.count.saturating_add(sum))
    }

    /// The first value of the field with this tag, if it is a whole number.
    fn value(&self, tag: u64) -> Option<u64> {
        let field = self.fields().find(|field| field.tag == tag)?;
        let width = match field.kind {
            1 => 1,
            3 => 2,
            4 | 13 => 4,
            16 | 18 => 8,
            _ => return None,
        };
        let room = if self.big { 8 } else { 4 };
        let at = match field.bytes() {
            0 => return None,
            bytes if bytes <= room as u64 => field.value,
            _ => usize::try_from(self.number(field.value, room)?).ok()?,
        };
        self.number(at, width)
    }

    /// The whole number in `width` bytes at `offset`, if they are there.
    fn number(&self, offset: usize, width: usize) -> Option<u64> {
        let bytes = self.file.get(offset..offset.checked_add(width)?)?;
        let add = |number: u64, byte: &u8| (number << 8) | u64::from(*byte);
        Some(if self.little { bytes.iter().rev().fold(0, add) } else { bytes.iter().fold(0, add) })
    }
}

/// A field of a directory.
struct Field {
    tag: u64,
    /// The type of the values.
    kind: u64,
    count: u64,
    /// The offset of the values, or of their offset.
    value: usize,
}

impl Field {
    fn bytes(&self) -> u64 {
        self.count.saturating_mul(value_bytes(self.kind))
    }
}

/// Bytes of one value of a field's type.
fn value_bytes(kind: u64) -> u64 {
    match kind {
        3 | 8 => 2,
        4 | 9 | 11 | 13 => 4,
        5 | 10 | 12 | 16..=18 => 8,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with one field of this kind and count.
    fn tiff(kind: u16, count: u32) -> Vec<u8> {
        let head = [&b"II*\0"[..], &8_u32.to_le_bytes(), &1_u16.to_le_bytes()].concat();
        let field =
            [&258_u16.to_le_bytes()[..], &kind.to_le_bytes(), &count.to_le_bytes(), &[0; 4]];
        [head, field.concat(), vec![0; 6]].concat()
    }

    #[test]
    fn a_field_larger_than_the_file_is_refused() {
        assert_eq!(tiff(3, 3).len(), 28);
        assert!(check_fields(&tiff(3, 14)).is_ok());
        assert!(check_fields(&tiff(1, 28)).is_ok());
        for (kind, count) in [(3, 15), (1, 29), (12, 4), (16, u32::MAX)] {
            let error = check_fields(&tiff(kind, count)).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UndecodableImage, "{kind} {count}");
        }
    }

    #[test]
    fn tiles_of_one_colour_each_are_refused() {
        /// A black image of 32 × 16 pixels, in two tiles or in two for each colour.
        fn tiled(planar: u32) -> Vec<u8> {
            let tiles: u32 = if planar == 2 { 6 } else { 2 };
            let (size, lists) = (32 * 16 * 3, 8 + 32 * 16 * 3);
            let length = size / tiles;
            let offsets = (0..tiles).flat_map(|tile| (8 + tile * length).to_le_bytes());
            let lengths = (0..tiles).flat_map(|_| length.to_le_bytes());
            let fields: [(u16, u16, u32, u32); 11] = [
                (256, 3, 1, 32),
                (257, 3, 1, 16),
                (258, 3, 1, 8),
                (259, 3, 1, 1),
                (262, 3, 1, 2),
                (277, 3, 1, 3),
                (284, 3, 1, planar),
                (322, 3, 1, 16),
                (323, 3, 1, 16),
                (324, 4, tiles, lists),
                (325, 4, tiles, lists + tiles * 4),
            ];
            let mut file = [&b"II*\0"[..], &(lists + tiles * 8).to_le_bytes()].concat();
            file.resize(lists as usize, 0);
            file.extend(offsets.chain(lengths));
            file.extend(11_u16.to_le_bytes());
            for (tag, kind, count, value) in fields {
                file.extend(tag.to_le_bytes().into_iter().chain(kind.to_le_bytes()));
                file.extend(count.to_le_bytes().into_iter().chain(value.to_le_bytes()));
            }
            file.extend([0; 4]);
            file
        }

        let decode = |file: &[u8]| crate::decode(file, &crate::DecodeLimits::default());
        let image = decode(&tiled(1)).unwrap();
        assert_eq!((image.width, image.height), (32, 16));
        let error = decode(&tiled(2)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnsupportedFormat);
        assert!(error.detail().contains("save it as"), "{}", error.detail());
    }

    #[test]
    fn both_byte_orders_and_sizes_are_read() {
        let motorola =
            [&b"MM\0*\0\0\0\x08\0\x01"[..], b"\x01\x02\0\x04\0\0\0\x09", &[0; 8]].concat();
        assert!(check_fields(&motorola).is_err());
        let big = [
            &b"II\x2B\0\x08\0\0\0"[..],
            &16_u64.to_le_bytes(),
            &1_u64.to_le_bytes(),
            b"\x02\x01\x01\0",
            &(1_u64 << 40).to_le_bytes(),
            &[0; 16],
        ]
        .concat();
        assert!(check_fields(&big).is_err());
        // A missing directory cannot be too large; the decoder refuses it.
        assert!(check_fields(&big[..30]).is_ok());
        assert!(check_fields(b"II*\0\xFF\xFF\xFF\xFF").is_ok());
        assert!(check_fields(b"II").is_ok());
    }
}
