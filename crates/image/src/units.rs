//! The units (OBU) that AV1 data is made of, as far as they decide what decoding takes; sections 5.3 to
//! 5.5 of the specification. The decoder limits only the pixels of a frame.

use super::boxes::Fault;

/// A still image is one frame. A layered one has up to four, and encoders may hide a few more. Each may
/// cost as much time as a whole image, however few bytes it has.
pub(super) const MAX_FRAMES: u32 = 8;

/// A frame may be divided into 4096 tiles, each in a unit of its own.
const MAX_UNITS: usize = 8192;

/// What decoding the units may take.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Units {
    /// Headers of frames. The decoder may hold all frames at a time.
    pub frames: u32,
    /// The largest profile: 0 has halved chroma and at most 10 bits.
    pub profile: u8,
    /// Bytes of a sample.
    pub sample_bytes: u8,
    /// Bits of the width and the height of a frame.
    pub side_bits: [u8; 2],
    /// Whether frames may be coded with fewer columns. Such a frame is held in both sizes.
    pub widens: bool,
}

impl Units {
    /// The most that data may take.
    pub(super) const MOST: Self =
        Self { frames: MAX_FRAMES, profile: 2, sample_bytes: 2, side_bits: [16; 2], widens: true };

    /// Walks over the units of the coded bytes of an image.
    pub(super) fn read(coded: &[u8]) -> Result<Self, Fault> {
        const SEQUENCE_HEADER: u8 = 1;
        const FRAME_HEADER: u8 = 3;
        const FRAME: u8 = 6;
        // The decoder takes it for the first if that is missing.
        const REPEATED_FRAME_HEADER: u8 = 7;
        let mut all = Self::default();
        let mut rest = coded;
        for _ in 0..MAX_UNITS {
            let [head, tail @ ..] = rest else { return Ok(all) };
            rest = tail;
            let (has_extension, has_size) = (head & 4 != 0, head & 2 != 0);
            if has_extension {
                rest = rest.get(1..).ok_or(Fault::Damaged)?;
            }
            let size = if has_size { variable_length(&mut rest)? } else { rest.len() };
            let (content, after) = rest.split_at_checked(size).ok_or(Fault::Damaged)?;
            rest = after;
            match (head >> 3) & 15 {
                SEQUENCE_HEADER => {
                    let sequence = sequence(&mut Bits { bytes: content, at: 0 })?;
                    all = all.with(&sequence);
                }
                FRAME_HEADER | FRAME | REPEATED_FRAME_HEADER => all.frames += 1,
                _ => {}
            }
            if all.frames > MAX_FRAMES {
                return Err(Fault::Unsupported("an AVIF of many frames"));
            }
        }
        Err(Fault::Unsupported("an AVIF of thousands of parts"))
    }

    /// What two images take at most.
    pub(super) fn with(self, other: &Self) -> Self {
        let [width, height] = self.side_bits;
        Self {
            frames: self.frames.max(other.frames),
            profile: self.profile.max(other.profile),
            sample_bytes: self.sample_bytes.max(other.sample_bytes),
            side_bits: [width.max(other.side_bits[0]), height.max(other.side_bits[1])],
            widens: self.widens || other.widens,
        }
    }
}

/// Reads the header of a sequence up to the number of bits.
fn sequence(bits: &mut Bits) -> Result<Units, Fault> {
    let profile = bits.take(3)? as u8;
    bits.take(1)?;
    let is_reduced = bits.flag()?;
    if is_reduced {
        bits.take(5)?;
    } else {
        // Times are for films, and so many fields that assuming the most is simpler.
        if bits.flag()? {
            return Ok(Units { frames: 0, profile, ..Units::MOST });
        }
        operating_points(bits)?;
    }
    let side_bits = [bits.take(4)? as u8 + 1, bits.take(4)? as u8 + 1];
    bits.take(side_bits[0].into())?;
    bits.take(side_bits[1].into())?;
    if !is_reduced && bits.flag()? {
        bits.take(7)?;
    }
    bits.take(3)?;
    if !is_reduced {
        tools(bits)?;
    }
    let widens = bits.flag()?;
    bits.take(2)?;
    let sample_bytes = if bits.flag()? { 2 } else { 1 };
    Ok(Units { frames: 0, profile, sample_bytes, side_bits, widens })
}

fn operating_points(bits: &mut Bits) -> Result<(), Fault> {
    let has_delays = bits.flag()?;
    for _ in 0..=bits.take(5)? {
        bits.take(12)?;
        let level = bits.take(5)?;
        if level > 7 {
            bits.take(1)?;
        }
        if has_delays && bits.flag()? {
            bits.take(4)?;
        }
    }
    Ok(())
}

/// The tools for frames that refer to others.
fn tools(bits: &mut Bits) -> Result<(), Fault> {
    bits.take(4)?;
    let has_order = bits.flag()?;
    if has_order {
        bits.take(2)?;
    }
    // Tools for screens, and whole pixels with them: 2 stands for a choice in each frame.
    let screen = if bits.flag()? { 2 } else { bits.take(1)? };
    if screen > 0 && !bits.flag()? {
        bits.take(1)?;
    }
    if has_order {
        bits.take(3)?;
    }
    Ok(())
}

/// Bits, from the highest of each byte.
struct Bits<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl Bits<'_> {
    /// The next number of `count` bits, at most 16.
    fn take(&mut self, count: usize) -> Result<u32, Fault> {
        let mut number = 0;
        for _ in 0..count {
            let byte = self.bytes.get(self.at / 8).ok_or(Fault::Damaged)?;
            number = (number << 1) | u32::from((byte >> (7 - self.at % 8)) & 1);
            self.at += 1;
        }
        Ok(number)
    }

    fn flag(&mut self) -> Result<bool, Fault> {
        Ok(self.take(1)? == 1)
    }
}

/// A number in the lower seven bits of each byte; the highest says that another follows.
fn variable_length(rest: &mut &[u8]) -> Result<usize, Fault> {
    let mut number = 0_u64;
    for index in 0..8 {
        let (byte, tail) = rest.split_first().ok_or(Fault::Damaged)?;
        *rest = tail;
        number |= u64::from(byte & 0x7F) << (7 * index);
        if byte & 0x80 == 0 {
            return usize::try_from(number).map_err(|_| Fault::Damaged);
        }
    }
    Err(Fault::Damaged)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A unit of this kind.
    fn unit(kind: u8, content: &[u8]) -> Vec<u8> {
        [&[kind << 3 | 2, u8::try_from(content.len()).unwrap()], content].concat()
    }

    /// What a sequence header and an empty frame take.
    fn read(header: &[u8]) -> Result<Units, Fault> {
        Units::read(&[unit(1, header), unit(6, &[])].concat())
    }

    #[test]
    fn headers_tell_what_the_data_takes() {
        let expected = |profile, sample_bytes, side_bits| {
            Ok(Units { frames: 1, profile, sample_bytes, side_bits, widens: false })
        };
        // 72 × 48 pixels by libaom: 8 bits, 10 bits, and 12 bits with 4:4:4.
        let header = [0x18, 0x19, 0x63, 0xDE, 0xD1, 0x01, 0x0D, 0x06, 0x84];
        assert_eq!(read(&header), expected(0, 1, [7, 6]));
        let deep = [0x18, 0x19, 0x63, 0xDE, 0xC5, 0x01, 0x0D, 0x06, 0x84];
        assert_eq!(read(&deep), expected(0, 2, [7, 6]));
        let deepest = [0x58, 0x19, 0x63, 0xDE, 0xC6, 0x80, 0x86, 0x83, 0x44];
        assert_eq!(read(&deepest), expected(2, 2, [7, 6]));
        // Of an animation of 36 × 24 pixels, with the tools for frames that refer to others.
        let film = [0, 0, 0, 0x02, 0xA4, 0x77, 0x36, 0xBE, 0x64, 0x04, 0x34, 0x1A, 0x10];
        assert_eq!(read(&film), expected(0, 1, [6, 5]));
        // The same with times is not read further.
        assert_eq!(read(&[0x04]), Ok(Units { frames: 1, profile: 0, ..Units::MOST }));
        // The bit for frames with fewer columns.
        let widening = [0x18, 0x19, 0x63, 0xDE, 0xF1, 0x01, 0x0D, 0x06, 0x84];
        assert!(read(&widening).unwrap().widens);
        for end in 0..5 {
            assert_eq!(read(&header[..end]), Err(Fault::Damaged), "{end} bytes");
        }
        // Of several headers, the most counts.
        let both = Units::read(&[unit(1, &film), unit(1, &deepest)].concat());
        assert_eq!(both, Ok(Units { frames: 0, ..read(&deepest).unwrap() }));
    }

    #[test]
    fn every_kind_of_frame_header_counts() {
        for kind in [3, 6, 7] {
            let most = MAX_FRAMES as usize;
            assert_eq!(Units::read(&unit(kind, &[]).repeat(most)).unwrap().frames, MAX_FRAMES);
            let more = Units::read(&unit(kind, &[]).repeat(most + 1));
            assert!(matches!(more, Err(Fault::Unsupported(_))), "{more:?}");
        }
        let padding = Units::read(&unit(15, &[]).repeat(MAX_UNITS + 1));
        assert!(matches!(padding, Err(Fault::Unsupported(_))), "{padding:?}");
    }
}
