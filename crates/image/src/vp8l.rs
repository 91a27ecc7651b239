//! How much memory the prefix codes of a lossless WebP will take.
//!
//! An image may have 65,536 groups of five codes. The decoder makes a table of 4 kB for each code, of
//! which the file needs only a dozen bytes: a file of 4 MB would take more than 1 GB. So the codes are read
//! here as far as they are needed to add up their tables. Of the small images before them, only the
//! largest number of a group counts, and copies of earlier pixels cannot make it larger.

/// The decoder looks up this many bits at a time.
const TABLE_BITS: u16 = 10;

/// Bytes of an entry of a table, and of the two nodes of the tree for a code that is longer.
const ENTRY: u64 = 4;
const NODES: u64 = 2 * 16;

/// Bytes of a code beside its table and tree.
const CODE: u64 = 80;

/// The codes of a group: green, lengths and cache; red, blue and alpha; distances.
const ALPHABETS: [usize; 5] = [256 + LENGTHS, 256, 256, 256, 40];
const LENGTHS: usize = 24;

/// The order in which the lengths of the codes for lengths are stored.
const LENGTH_ORDER: [usize; 19] =
    [17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

/// Bytes of the tables for the codes of an image of `width × height`. `data` begins with the transforms.
/// `None` if it is damaged.
pub(super) fn table_bytes(data: &[u8], width: u32, height: u32) -> Option<u64> {
    let mut bits = Bits { data, next: 0 };
    let mut width = width;
    // Each of the four transforms can be there once.
    for _ in 0..4 {
        if bits.read(1)? == 0 {
            break;
        }
        match bits.read(2)? {
            0 | 1 => {
                let block = bits.read(3)? + 2;
                skip_image(&mut bits, blocks(width, block), blocks(height, block))?;
            }
            3 => {
                let colors = bits.read(8)? + 1;
                skip_image(&mut bits, colors, 1)?;
                // Several indices of few bits are in one pixel.
                width = match colors {
                    0..=2 => blocks(width, 3),
                    3..=4 => blocks(width, 2),
                    5..=16 => blocks(width, 1),
                    _ => width,
                };
            }
            _ => {}
        }
    }
    let cache = cache_size(&mut bits)?;
    let mut groups = 1;
    if bits.read(1)? == 1 {
        let block = bits.read(3)? + 2;
        groups += skip_image(&mut bits, blocks(width, block), blocks(height, block))?;
    }
    let mut total = 0_u64;
    for _ in 0..groups {
        for code in group(&mut bits, cache)? {
            total += code.bytes;
        }
    }
    Some(total)
}

/// How many blocks of 2^`bits` pixels a side has.
fn blocks(side: u32, bits: u32) -> u32 {
    side.div_ceil(1 << bits)
}

/// The number of colours in the cache.
fn cache_size(bits: &mut Bits) -> Option<usize> {
    if bits.read(1)? == 0 { Some(0) } else { Some(1 << bits.read(4)?) }
}

fn group(bits: &mut Bits, cache: usize) -> Option<[Code; 5]> {
    let [green, red, blue, alpha, distance] = ALPHABETS;
    Some([
        Code::read(bits, green + cache)?,
        Code::read(bits, red)?,
        Code::read(bits, blue)?,
        Code::read(bits, alpha)?,
        Code::read(bits, distance)?,
    ])
}

/// Reads the pixels of an image with one group of codes. Returns the largest number in its red and green.
fn skip_image(bits: &mut Bits, width: u32, height: u32) -> Option<u32> {
    let cache = cache_size(bits)?;
    let [green, red, blue, alpha, distance] = group(bits, cache)?;
    let mut left = u64::from(width) * u64::from(height);
    let mut largest = 0;
    while left > 0 {
        let symbol = green.symbol(bits)?;
        let read = match usize::from(symbol) {
            0..256 => {
                largest = largest.max((u32::from(red.symbol(bits)?) << 8) | u32::from(symbol));
                blue.symbol(bits)?;
                alpha.symbol(bits)?;
                1
            }
            256..280 => {
                let length = number(bits, symbol - 256)?;
                let prefix = distance.symbol(bits)?;
                number(bits, prefix)?;
                length
            }
            // A colour of the cache.
            _ => 1,
        };
        left = left.saturating_sub(read);
    }
    Some(largest)
}

/// A number that is stored as a prefix and further bits.
fn number(bits: &mut Bits, prefix: u16) -> Option<u64> {
    if prefix < 4 {
        return Some(u64::from(prefix) + 1);
    }
    let further = u32::from((prefix - 2) >> 1);
    let offset = (2 + (u64::from(prefix) & 1)) << further;
    Some(offset + u64::from(bits.read(further)?) + 1)
}

/// A prefix code.
struct Code {
    /// How many symbols have a code of each length; index 0 is not used.
    counts: [u16; 16],
    /// The symbols by the order of their codes. A single one has no bits.
    symbols: Vec<u16>,
    /// The memory that the decoder takes for it.
    bytes: u64,
}

impl Code {
    fn read(bits: &mut Bits, alphabet: usize) -> Option<Self> {
        if bits.read(1)? == 0 {
            return Self::of_lengths(&lengths(bits, alphabet)?);
        }
        let two = bits.read(1)? == 1;
        let wide = bits.read(1)? == 1;
        let first = u16::try_from(bits.read(if wide { 8 } else { 1 })?).ok()?;
        let symbols =
            if two { vec![first, u16::try_from(bits.read(8)?).ok()?] } else { vec![first] };
        if symbols.iter().any(|symbol| usize::from(*symbol) >= alphabet) {
            return None;
        }
        let mut counts = [0; 16];
        counts[1] = 2;
        Some(Self { counts, symbols, bytes: CODE + 3 * NODES })
    }

    /// The canonical code of symbols with these lengths.
    fn of_lengths(lengths: &[u8]) -> Option<Self> {
        let mut counts = [0_u16; 16];
        let used = || lengths.iter().enumerate().filter(|(_, length)| **length > 0);
        for (_, length) in used() {
            counts[usize::from(*length)] += 1;
        }
        let mut symbols = Vec::with_capacity(counts.iter().map(|count| usize::from(*count)).sum());
        for length in 1..16_u8 {
            let mine = used().filter(|(_, other)| **other == length);
            symbols.extend(mine.filter_map(|(symbol, _)| u16::try_from(symbol).ok()));
        }
        let longest = u16::try_from(counts.iter().rposition(|count| *count > 0)?).ok()?;
        let long: u64 =
            counts[usize::from(TABLE_BITS) + 1..].iter().map(|count| u64::from(*count)).sum();
        let bytes = CODE + (ENTRY << longest.min(TABLE_BITS)) + long * NODES;
        Some(Self { counts, symbols, bytes })
    }

    /// The next symbol.
    fn symbol(&self, bits: &mut Bits) -> Option<u16> {
        if let [only] = self.symbols[..] {
            return Some(only);
        }
        // The codes of each length are consecutive numbers.
        let (mut code, mut first, mut index) = (0_u32, 0_u32, 0_usize);
        for count in &self.counts[1..] {
            code |= bits.read(1)?;
            let count = u32::from(*count);
            if code < first + count {
                return self.symbols.get(index + (code - first) as usize).copied();
            }
            index += count as usize;
            first = (first + count) << 1;
            code <<= 1;
        }
        None
    }
}

/// The lengths of the codes of an alphabet, which are themselves coded.
fn lengths(bits: &mut Bits, alphabet: usize) -> Option<Vec<u8>> {
    let mut of_lengths = [0; 19];
    let count = 4 + bits.read(4)? as usize;
    for index in LENGTH_ORDER.get(..count)? {
        of_lengths[*index] = u8::try_from(bits.read(3)?).ok()?;
    }
    let code = Code::of_lengths(&of_lengths)?;
    let mut stored = alphabet;
    if bits.read(1)? == 1 {
        let width = 2 + 2 * bits.read(3)?;
        stored = 2 + bits.read(width)? as usize;
        if stored > alphabet {
            return None;
        }
    }
    let mut lengths = Vec::with_capacity(alphabet);
    let mut previous = 8;
    for _ in 0..stored {
        if lengths.len() == alphabet {
            break;
        }
        let (length, repeat) = match u8::try_from(code.symbol(bits)?).ok()? {
            length @ 0..16 => (length, 1),
            16 => (previous, 3 + bits.read(2)?),
            17 => (0, 3 + bits.read(3)?),
            _ => (0, 11 + bits.read(7)?),
        };
        if length > 0 {
            previous = length;
        }
        lengths.extend((0..repeat).map(|_| length));
        if lengths.len() > alphabet {
            return None;
        }
    }
    lengths.resize(alphabet, 0);
    Some(lengths)
}

/// Bits, the lowest of each byte first.
struct Bits<'d> {
    data: &'d [u8],
    next: usize,
}

impl Bits<'_> {
    /// The next `count` bits as a number, at most 32.
    fn read(&mut self, count: u32) -> Option<u32> {
        let mut number = 0;
        for index in 0..count {
            let byte = self.data.get(self.next / 8)?;
            number |= u32::from((byte >> (self.next % 8)) & 1) << index;
            self.next += 1;
        }
        Some(number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes bits, the lowest of each byte first.
    #[derive(Default)]
    struct Writer {
        bytes: Vec<u8>,
        used: u32,
    }

    impl Writer {
        fn write(&mut self, count: u32, number: u32) {
            for index in 0..count {
                if self.used.is_multiple_of(8) {
                    self.bytes.push(0);
                }
                *self.bytes.last_mut().unwrap() |=
                    u8::try_from((number >> index) & 1).unwrap() << (self.used % 8);
                self.used += 1;
            }
        }

        /// A code of one symbol of 8 bits.
        fn single(&mut self, symbol: u32) {
            self.write(3, 0b101);
            self.write(8, symbol);
        }

        /// A code with symbols of 1, 2, …, 10 and once more 10 bits, which fills a table.
        fn full(&mut self) {
            self.write(1, 0);
            // Fourteen lengths, up to that of 10: those of 1 to 10 have 4 bits or less.
            self.write(4, 10);
            for index in &LENGTH_ORDER[..14] {
                let length = match index {
                    1..=6 => 3,
                    7..=10 => 4,
                    _ => 0,
                };
                self.write(3, length);
            }
            // Eleven lengths are stored.
            self.write(1, 1);
            self.write(3, 1);
            self.write(4, 9);
            for length in [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10] {
                // Their codes, the highest bit first.
                let (code, width) = if length <= 6 { (length - 1, 3) } else { (length + 5, 4) };
                for bit in (0..width).rev() {
                    self.write(1, (code >> bit) & 1);
                }
            }
        }
    }

    /// An image of 4 × 4 pixels that names a group of this number.
    fn image(groups: u32) -> Vec<u8> {
        let mut bits = Writer::default();
        // No transform, no cache, but groups in blocks of 4 × 4.
        bits.write(1, 0);
        bits.write(1, 0);
        bits.write(1, 1);
        bits.write(3, 0);
        // The image of one block.
        bits.write(1, 0);
        bits.single((groups - 1) & 0xFF);
        bits.single((groups - 1) >> 8);
        (0..3).for_each(|_| bits.single(0));
        (0..groups * 5).for_each(|_| bits.full());
        bits.bytes
    }

    #[test]
    fn tables_are_added_up() {
        let one = table_bytes(&image(1), 4, 4).unwrap();
        assert_eq!(one, 5 * (4096 + CODE));
        assert_eq!(table_bytes(&image(300), 4, 4), Some(300 * one));
    }

    #[test]
    fn what_is_cut_off_has_no_tables() {
        let bytes = image(3);
        for length in 0..bytes.len() - 1 {
            assert_eq!(table_bytes(&bytes[..length], 4, 4), None, "{length}");
        }
    }

    /// The amplification is what makes the check necessary.
    #[test]
    fn an_image_of_many_groups_is_refused_before_its_tables_are_made() {
        let data = image(20_000);
        assert!(data.len() < 2 << 20, "{}", data.len());
        let head = [0x2F, 3, 0xC0, 0, 0];
        let chunk = [&head[..], &data].concat();
        let length = u32::try_from(chunk.len()).unwrap();
        let body = [&b"WEBPVP8L"[..], &length.to_le_bytes(), &chunk].concat();
        let length = u32::try_from(body.len()).unwrap();
        let file = [&b"RIFF"[..], &length.to_le_bytes(), &body].concat();
        let limits = crate::DecodeLimits::default();
        assert!(crate::ImageHeader::read(&file, &limits).unwrap().peak_bytes < 100 << 20);
        let error = crate::decode(&file, &limits).unwrap_err();
        assert_eq!(error.kind(), cutline_error::ErrorKind::UndecodableImage);
        assert!(error.detail().contains("save it again"), "{}", error.detail());
    }
}
