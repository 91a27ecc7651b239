//! JPEGs that lack their end marker: complete, or cut off?
//!
//! Some cameras and programs leave the two bytes away. The coded data does not say where it ends, and
//! the decoder fills up what is missing. So the image is decoded twice, with different bytes after the
//! end of the file: only if something is missing do they become pixels.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::jpeg::{END_OF_IMAGE, START_OF_SCAN, frame, next_marker};
use cutline_error::Result;

/// Bytes for missing data. Much less is enough to change a pixel.
const FILLER: usize = 64;

/// The file with an end marker; `None` if rows, components or refinements are missing. `decode` returns
/// the pixels of a file.
///
/// # Errors
/// Those of `decode`.
pub(super) fn closed(
    bytes: &[u8],
    decode: impl Fn(&[u8]) -> Result<Vec<u8>>,
) -> Result<Option<Vec<u8>>> {
    // Half an end marker.
    let coded = bytes.strip_suffix(&[0xFF]).unwrap_or(bytes);
    if !scans_are_complete(coded) {
        return Ok(None);
    }
    let with = |filler: &[u8]| {
        let pixels = decode(&[coded, filler, &[0xFF, END_OF_IMAGE]].concat())?;
        let mut hasher = DefaultHasher::new();
        pixels.hash(&mut hasher);
        Ok(hasher.finish())
    };
    let restart = next_restart(coded);
    if with(&filler(0x00, 0x1D, restart))? != with(&filler(0xFE, 0x35, restart))? {
        return Ok(None);
    }
    Ok(Some([coded, &[0xFF, END_OF_IMAGE]].concat()))
}

/// Bytes that are coded data to a decoder that lacks some, and else skipped: a pattern, and one after
/// each restart marker, from the one that comes next.
fn filler(first: u8, step: u8, restart: u8) -> Vec<u8> {
    let mut byte = first;
    let mut pattern = move || {
        byte = byte.wrapping_add(step);
        byte.min(0xFE)
    };
    let mut filler = vec![first];
    filler.extend((1..FILLER).map(|_| pattern()));
    for number in 0..8 {
        filler.extend([0xFF, 0xD0 | ((restart + number) & 7)]);
        filler.extend((0..FILLER).map(|_| pattern()));
    }
    filler
}

/// The number, from 0 to 7, of the restart marker that would come next.
fn next_restart(coded: &[u8]) -> u8 {
    let pairs = coded.windows(2).rev();
    let mut last = pairs.take_while(|pair| pair != &[0xFF, START_OF_SCAN]);
    last.find_map(|pair| match pair {
        [0xFF, marker @ 0xD0..=0xD7] => Some((marker + 1) & 7),
        _ => None,
    })
    .unwrap_or(0)
}

/// Whether every coefficient of every component was sent with all of its bits. A progressive image
/// begins with few coefficients of few bits, and without an end marker may lack the rest.
fn scans_are_complete(coded: &[u8]) -> bool {
    let Some(frame) = frame(coded) else { return false };
    let identifiers: Vec<u8> =
        frame.components.iter().map(|[identifier, ..]| *identifier).collect();
    let mut complete = vec![[false; 64]; identifiers.len()];
    let mut rest = coded.get(2..).unwrap_or_default();
    while let Some((marker, data)) = next_marker(&mut rest) {
        if marker != START_OF_SCAN {
            continue;
        }
        let Some((count, data)) = data.split_first() else { return false };
        let Some((parts, [first, last, bits, ..])) = data.split_at_checked(2 * usize::from(*count))
        else {
            return false;
        };
        if first > last || *last > 63 {
            return false;
        }
        let band = usize::from(*first)..=usize::from(*last);
        for [component, _] in parts.as_chunks::<2>().0 {
            let Some(index) = identifiers.iter().position(|known| known == component) else {
                return false;
            };
            // The lower four bits tell how many bits of a coefficient are still to come.
            complete[index][band.clone()].fill(bits & 15 == 0);
        }
    }
    complete.iter().flatten().all(|is_complete| *is_complete)
}
