//! Checks of a TIFF before it is decoded.
//!
//! The decoder allocates memory for as many values as a field of the directory announces, up to
//! 256 MiB, before it finds that the file has none. One wrong byte is enough. At tiles that hold one
//! colour each, it panics.

use super::exif;
use super::format::ImageFormat;
use super::header::Needs;
use super::jpeg;
use super::rgb::Alpha;
use cutline_error::{Error, ErrorKind, Result};

/// Refuses a file if a field of its first directory announces more bytes than the file has, if a part
/// of the image has more pixels than its place, or if the image is in a layout at which the decoder panics.
///
/// # Errors
/// [`ErrorKind::UndecodableImage`] or [`ErrorKind::UnsupportedFormat`]. The decoder finds all other
/// errors in the directory.
pub(super) fn check_fields(bytes: &[u8]) -> Result<()> {
    let (kind, detail) = match Directory::first(bytes) {
        Some(directory) if !directory.fits() || !directory.jpegs_fit() => (
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

/// How the samples beside the colours are to be understood.
pub(super) fn alpha(bytes: &[u8]) -> Alpha {
    match Directory::first(bytes).and_then(|directory| directory.value(EXTRA_SAMPLES)) {
        Some(0) => Alpha::Ignored,
        Some(1) => Alpha::Premultiplied,
        // The usual one, and what is assumed if nothing is said.
        _ => Alpha::Straight,
    }
}

/// The meaning of samples beside the colours: 0 unspecified, 1 associated alpha, 2 alpha.
const EXTRA_SAMPLES: u64 = 338;

/// The decoder holds every value of a field in this many bytes.
const VALUE_BYTES: u64 = 32;

/// Compression by JPEG, one file for each strip or tile.
const JPEG: u64 = 7;
const COMPRESSION: u64 = 259;

/// A tile may have sides of this length even if the image has not.
const LEAST_PART: u64 = 1024;

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
    let working = stored.saturating_add(height);
    let working = if directory.value(COMPRESSION) == Some(JPEG) {
        let least = (LEAST_PART * LEAST_PART).saturating_mul(samples);
        working.max(least).saturating_mul(4)
    } else {
        working
    };
    Some(Needs {
        width,
        height,
        pixel: samples.saturating_mul(bits.div_ceil(8)),
        working,
        // Fields that claim more than the file has are refused before anything is read.
        metadata: if directory.fits() { directory.values().saturating_mul(VALUE_BYTES) } else { 0 },
        is_turned: exif::is_turned(exif::orientation(bytes)),
    })
}

/// A directory of fields.
pub(super) struct Directory<'f> {
    file: &'f [u8],
    little: bool,
    /// BigTIFF has counts and offsets of 64 bits.
    big: bool,
    /// The offset of the first field.
    fields: usize,
    count: usize,
}

impl<'f> Directory<'f> {
    /// The first directory of a TIFF. It is not checked that `file` is one.
    pub(super) fn first(file: &'f [u8]) -> Option<Self> {
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
    pub(super) fn value(&self, tag: u64) -> Option<u64> {
        self.numbers(tag)?.next()
    }

    /// The values of the field with this tag, if they are whole numbers, as far as they are there.
    fn numbers(&self, tag: u64) -> Option<impl Iterator<Item = u64>> {
        let field = self.fields().find(|field| field.tag == tag)?;
        let width = match field.kind {
            // Signed numbers that are not negative have the same bytes.
            1 | 6 | 7 => 1,
            3 | 8 => 2,
            4 | 9 | 13 => 4,
            16..=18 => 8,
            _ => return None,
        };
        let room = if self.big { 8 } else { 4 };
        let at = if field.bytes() <= room as u64 {
            field.value
        } else {
            usize::try_from(self.number(field.value, room)?).ok()?
        };
        let count = usize::try_from(field.count).ok()?;
        Some(
            (0..count).map_while(move |index| {
                self.number(at.checked_add(index.checked_mul(width)?)?, width)
            }),
        )
    }

    /// Whether no strip or tile that is a JPEG is larger than its place: the decoder would allocate
    /// memory for all of its pixels.
    fn jpegs_fit(&self) -> bool {
        if self.value(COMPRESSION) != Some(JPEG) {
            return true;
        }
        let side = |image, parts: [u64; 2]| {
            let image = self.value(image).unwrap_or(0);
            let part = parts.into_iter().find_map(|tag| self.value(tag)).unwrap_or(image);
            part.min(image.max(LEAST_PART)).next_multiple_of(16)
        };
        let (width, height) = (side(256, [322, 322]), side(257, [323, 278]));
        let (offsets, lengths) = if self.value(322).is_some() { (324, 325) } else { (273, 279) };
        let (Some(offsets), Some(lengths)) = (self.numbers(offsets), self.numbers(lengths)) else {
            return true;
        };
        offsets.zip(lengths).all(|(offset, length)| {
            let part = usize::try_from(offset).ok().and_then(|offset| self.file.get(offset..));
            let part = part.unwrap_or_default();
            let length = part.len().min(usize::try_from(length).unwrap_or(usize::MAX));
            jpeg::size(&part[..length])
                .is_none_or(|(across, down)| across <= width && down <= height)
        })
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
    fn a_false_count_claims_no_memory() {
        // A width, a height, and a colour profile of 2 GiB.
        let head = [&b"II*\0"[..], &8_u32.to_le_bytes(), &3_u16.to_le_bytes()].concat();
        let field = |tag: u16, kind: u16, count: u32, value: u32| {
            let (tag, kind) = (tag.to_le_bytes(), kind.to_le_bytes());
            [&tag[..], &kind, &count.to_le_bytes(), &value.to_le_bytes()].concat()
        };
        let fields =
            [field(256, 4, 1, 60), field(257, 4, 1, 40), field(34675, 7, i32::MAX as u32, 8)];
        let file = [head, fields.concat(), vec![0; 4]].concat();
        assert_eq!(needs(&file).unwrap().metadata, 0);
        assert_eq!(check_fields(&file).unwrap_err().kind(), ErrorKind::UndecodableImage);
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

    /// A file of one strip that is a JPEG of this size, in an image of 32 × 16.
    fn jpeg_strip(width: u16, height: u16) -> Vec<u8> {
        let strip = [
            &b"\xFF\xD8\xFF\xC0\x00\x0B\x08"[..],
            &height.to_be_bytes(),
            &width.to_be_bytes(),
            b"\x01\x01\x11\x00\xFF\xDA\x00\x08\x01\x01\x00\x00\x3F\x00\x00",
        ]
        .concat();
        let length = u32::try_from(strip.len()).unwrap();
        let fields = [(256, 32), (257, 16), (258, 8), (259, 7), (273, 8), (277, 1), (279, length)];
        let mut file = [&b"II*\0"[..], &(8 + length).to_le_bytes(), &strip].concat();
        file.extend(u16::try_from(fields.len()).unwrap().to_le_bytes());
        for (tag, value) in fields {
            file.extend([&u16::to_le_bytes(tag)[..], &[4, 0, 1, 0, 0, 0]].concat());
            file.extend(u32::to_le_bytes(value));
        }
        file
    }

    #[test]
    fn a_jpeg_in_a_tiff_must_fit_its_place() {
        for (width, height, is_sound) in
            [(32, 16, true), (17, 3, true), (33, 16, false), (32, 60_000, false)]
        {
            let file = jpeg_strip(width, height);
            assert_eq!(check_fields(&file).is_ok(), is_sound, "{width} × {height}");
        }
        let needs = needs(&jpeg_strip(32, 16)).unwrap();
        assert!(needs.working >= 1024 * 1024, "{}", needs.working);
    }
}
