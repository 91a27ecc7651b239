//! The contents of the boxes that an AVIF is made of.

/// The most parts that the bytes of an item are stored in.
const MAX_EXTENTS: usize = 256;

/// The most items and associations that are looked at. A file has one for each tile and a few more.
pub(super) const MAX_ENTRIES: usize = 1024;

/// Why the boxes cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// They contradict each other, or end too early.
    Damaged,
    /// They hold something that is not implemented.
    Unsupported(&'static str),
}

pub(super) type Result<T> = std::result::Result<T, Fault>;

/// Code points of ITU-T H.273.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Coding {
    pub primaries: u16,
    pub transfer: u16,
    pub matrix: u16,
    /// Whether samples use all values, not 16 to 235 of 255.
    pub full_range: bool,
}

/// The boxes of `bytes`, one after another: name and content. Ends at the first that is cut off.
pub(super) fn boxes(mut bytes: &[u8]) -> impl Iterator<Item = (&[u8; 4], &[u8])> {
    std::iter::from_fn(move || {
        let [a, b, c, d, name @ ..] = bytes.first_chunk::<8>()?;
        let name = name.first_chunk::<4>()?;
        let (head, length) = match u32::from_be_bytes([*a, *b, *c, *d]) {
            // The rest of the file.
            0 => (8, bytes.len()),
            1 => {
                let long = bytes.get(8..)?.first_chunk::<8>()?;
                (16, usize::try_from(u64::from_be_bytes(*long)).ok()?)
            }
            length => (8, usize::try_from(length).ok()?),
        };
        let content = bytes.get(head..length)?;
        bytes = &bytes[length..];
        Some((name, content))
    })
}

/// Big-endian numbers, one after another.
#[derive(Clone, Copy)]
pub(super) struct Numbers<'f>(pub &'f [u8]);

impl<'f> Numbers<'f> {
    /// The next number of `width` bytes, at most 8; 0 bytes are the number 0.
    pub(super) fn number(&mut self, width: usize) -> Result<u64> {
        Ok(self.bytes(width)?.iter().fold(0, |number, byte| (number << 8) | u64::from(*byte)))
    }

    pub(super) fn byte(&mut self) -> Result<u8> {
        Ok(self.bytes(1)?.first().copied().unwrap_or_default())
    }

    pub(super) fn short(&mut self) -> Result<u16> {
        let [a, b] = *self.bytes(2)?.first_chunk().ok_or(Fault::Damaged)?;
        Ok(u16::from_be_bytes([a, b]))
    }

    pub(super) fn long(&mut self) -> Result<u32> {
        let [a, b, c, d] = *self.bytes(4)?.first_chunk().ok_or(Fault::Damaged)?;
        Ok(u32::from_be_bytes([a, b, c, d]))
    }

    pub(super) fn bytes(&mut self, count: usize) -> Result<&'f [u8]> {
        let (bytes, rest) = self.0.split_at_checked(count).ok_or(Fault::Damaged)?;
        self.0 = rest;
        Ok(bytes)
    }

    /// A whole number of items or entries, limited to what a sane file has.
    fn count(&mut self, width: usize) -> Result<usize> {
        let count = usize::try_from(self.number(width)?).map_err(|_| Fault::Damaged)?;
        if count > MAX_ENTRIES {
            Err(Fault::Unsupported("an AVIF of thousands of parts"))
        } else {
            Ok(count)
        }
    }

    /// The version and the flags of a box.
    pub(super) fn version(&mut self) -> Result<(u8, u32)> {
        let long = self.long()?;
        Ok(((long >> 24) as u8, long & 0xFF_FFFF))
    }
}

/// Where the bytes of an item are.
pub(super) struct Location {
    pub item: u32,
    /// In the box `idat` instead of the file.
    pub in_data: bool,
    /// Offset and length; a length of 0 is the rest.
    pub extents: Vec<(u64, u64)>,
}

/// A derived image that is put together from tiles of equal size.
pub(super) struct Grid {
    pub rows: usize,
    pub columns: usize,
    pub width: u32,
    pub height: u32,
}

impl Grid {
    pub(super) fn read(mut content: Numbers) -> Result<Self> {
        content.byte()?;
        let is_long = content.byte()? & 1 == 1;
        let (rows, columns) = (content.byte()?, content.byte()?);
        let mut side = || if is_long { content.long() } else { content.short().map(u32::from) };
        let (width, height) = (side()?, side()?);
        Ok(Self { rows: usize::from(rows) + 1, columns: usize::from(columns) + 1, width, height })
    }
}

/// The primary item.
pub(super) fn primary(mut content: Numbers) -> Result<u32> {
    let (version, _) = content.version()?;
    if version == 0 { content.short().map(u32::from) } else { content.long() }
}

/// Identifier and type of each item.
pub(super) fn items(mut content: Numbers) -> Result<Vec<(u32, [u8; 4])>> {
    let (version, _) = content.version()?;
    content.count(if version == 0 { 2 } else { 4 })?;
    let entries = boxes(content.0).filter(|(name, _)| *name == b"infe").take(MAX_ENTRIES);
    entries
        .map(|(_, content)| {
            let mut content = Numbers(content);
            let (version, _) = content.version()?;
            let item = if version == 3 { content.long()? } else { content.short()?.into() };
            content.short()?;
            Ok((item, *content.bytes(4)?.first_chunk().ok_or(Fault::Damaged)?))
        })
        .collect()
}

/// Where the items are.
pub(super) fn locations(mut content: Numbers) -> Result<Vec<Location>> {
    let (version, _) = content.version()?;
    let sizes = content.short()?;
    let size = |shift: u16| usize::from((sizes >> shift) & 15);
    let (offset, length, base) = (size(12), size(8), size(4));
    let index = if version == 0 { 0 } else { size(0) };
    if [offset, length, base, index].iter().any(|size| !matches!(size, 0 | 4 | 8)) {
        return Err(Fault::Damaged);
    }
    let wide = if version == 2 { 4 } else { 2 };
    let count = content.count(wide)?;
    let mut extents_left = MAX_ENTRIES;
    (0..count)
        .map(|_| {
            let item = u32::try_from(content.number(wide)?).map_err(|_| Fault::Damaged)?;
            let method = if version == 0 { 0 } else { content.short()? & 15 };
            content.short()?;
            let base = content.number(base)?;
            let extents = usize::from(content.short()?);
            extents_left = extents_left.checked_sub(extents).ok_or(Fault::Damaged)?;
            if method > 1 || extents > MAX_EXTENTS {
                return Err(Fault::Unsupported("an AVIF whose items are made of others"));
            }
            let extents = (0..extents)
                .map(|_| {
                    content.number(index)?;
                    let at = content.number(offset)?;
                    let length = content.number(length)?;
                    Ok((base.checked_add(at).ok_or(Fault::Damaged)?, length))
                })
                .collect::<Result<_>>()?;
            Ok(Location { item, in_data: method == 1, extents })
        })
        .collect()
}

/// Type, from and to of each reference.
pub(super) fn references(mut content: Numbers) -> Result<Vec<([u8; 4], u32, u32)>> {
    let (version, _) = content.version()?;
    let wide = if version == 0 { 2 } else { 4 };
    let mut found = Vec::new();
    for (kind, content) in boxes(content.0) {
        let mut content = Numbers(content);
        let item = |content: &mut Numbers| {
            u32::try_from(content.number(wide)?).map_err(|_| Fault::Damaged)
        };
        let from = item(&mut content)?;
        for _ in 0..content.short()? {
            if found.len() == MAX_ENTRIES {
                return Err(Fault::Unsupported("an AVIF of thousands of parts"));
            }
            found.push((*kind, from, item(&mut content)?));
        }
    }
    Ok(found)
}

/// Adds which item has which property.
pub(super) fn associations(mut content: Numbers, found: &mut Vec<(u32, usize)>) -> Result<()> {
    let (version, flags) = content.version()?;
    let count = content.long()?;
    for _ in 0..count {
        let item = if version == 0 { content.short()?.into() } else { content.long()? };
        for _ in 0..content.byte()? {
            // The highest bit says that the property is essential.
            let index = if flags & 1 == 1 {
                usize::from(content.short()? & 0x7FFF)
            } else {
                usize::from(content.byte()? & 0x7F)
            };
            if found.len() == MAX_ENTRIES {
                return Err(Fault::Unsupported("an AVIF of thousands of parts"));
            }
            found.push((item, index));
        }
    }
    Ok(())
}

pub(super) fn coding(mut content: Numbers) -> Result<Coding> {
    Ok(Coding {
        primaries: content.short()?,
        transfer: content.short()?,
        matrix: content.short()?,
        full_range: content.byte()? >> 7 == 1,
    })
}

/// The clean aperture: left, top, width, height. It is given by its size and the offset of its centre
/// from that of the image, as fractions.
pub(super) fn crop(mut content: Numbers, width: u32, height: u32) -> Result<[u32; 4]> {
    let mut fraction = || {
        let (numerator, denominator) = (content.long()?.cast_signed(), content.long()?);
        if denominator == 0 {
            return Err(Fault::Damaged);
        }
        Ok(f64::from(numerator) / f64::from(denominator))
    };
    let (cropped_width, cropped_height) = (fraction()?, fraction()?);
    let (right, down) = (fraction()?, fraction()?);
    let start = |whole: u32, part: f64, shift: f64| (f64::from(whole) - part) / 2.0 + shift;
    let (left, top) = (start(width, cropped_width, right), start(height, cropped_height, down));
    let inside = |start: f64, part: f64, whole: u32| {
        start >= 0.0 && part >= 1.0 && (start + part).round() <= f64::from(whole)
    };
    if !inside(left, cropped_width, width) || !inside(top, cropped_height, height) {
        return Err(Fault::Damaged);
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "they are inside the image"
    )]
    Ok([left, top, cropped_width, cropped_height].map(|number| number.round() as u32))
}
