//! AV1, as it is used in AVIF: one still image.
//!
//! The decoder is `rusty_av1d`, a translation of dav1d to Rust. It runs on one thread, so that a panic
//! reaches the caller, and refuses frames of more pixels than its limit before it allocates for them.

use std::panic::{self, AssertUnwindSafe};

use rusty_av1d::{
    Decoder, Picture, PixelLayout, PlanarImageComponent, Rav1dError, Settings, pixel,
};

use super::boxes::{Coding, Fault};
use super::units::{MAX_FRAMES, Units};

/// A decoded frame.
pub(super) struct Frame {
    picture: Picture,
    layout: Layout,
    /// How the samples become colours, as the coded data says.
    pub coding: Coding,
}

/// The kinds of samples that a frame has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    /// Bits of a sample: 8, 10 or 12.
    pub depth: u8,
    /// Whether there is only lightness.
    pub is_grey: bool,
    /// Whether two neighbours in a row share their chroma.
    pub halves_width: bool,
    /// Whether two neighbours in a column share their chroma.
    pub halves_height: bool,
}

/// Rows of samples: 8 bits in a byte, more in two bytes in native order.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plane<'p> {
    pub bytes: &'p [u8],
    /// Bytes from one row to the next.
    pub stride: usize,
}

impl Layout {
    /// Bytes of a sample.
    pub(super) fn sample_bytes(self) -> usize {
        if self.depth > 8 { 2 } else { 1 }
    }

    /// Width and height of the chroma planes.
    pub(super) fn chroma_size(self, width: usize, height: usize) -> (usize, usize) {
        let half = |side: usize, halves: bool| if halves { side.div_ceil(2) } else { side };
        (half(width, self.halves_width), half(height, self.halves_height))
    }
}

impl Frame {
    /// Decodes the coded bytes of one image, which are in one or more parts. `max_pixels` limits the size
    /// of a frame, and `most` what else decoding may take.
    pub(super) fn decode(parts: &[&[u8]], max_pixels: u32, most: &Units) -> Result<Self, Fault> {
        let coded = parts.concat();
        let units = Units::read(&coded)?;
        if units.with(most) != *most {
            return Err(Fault::Damaged);
        }
        let mut settings = Settings::new();
        settings.set_n_threads(1);
        settings.set_max_frame_delay(1);
        settings.set_all_layers(false);
        settings.set_frame_size_limit(max_pixels);
        let mut decoder = Decoder::with_settings(&settings).map_err(|_| Fault::Damaged)?;
        let decode = AssertUnwindSafe(|| first_picture(&mut decoder, coded).map(Self::new));
        let frame = panic::catch_unwind(decode).unwrap_or(Err(Fault::Damaged));
        // A decoder that has panicked may do so again; during the first panic, that would end the
        // process.
        let closed = panic::catch_unwind(AssertUnwindSafe(|| drop(decoder)));
        closed.map_err(|_| Fault::Damaged)?;
        frame
    }

    fn new(picture: Picture) -> Self {
        let layout = picture.pixel_layout();
        let layout = Layout {
            depth: picture.bits_per_component().map_or(8, |bits| bits.0),
            is_grey: layout == PixelLayout::I400,
            halves_width: matches!(layout, PixelLayout::I420 | PixelLayout::I422),
            halves_height: layout == PixelLayout::I420,
        };
        let coding = Coding {
            primaries: picture.color_primaries() as u16,
            transfer: picture.transfer_characteristic() as u16,
            matrix: picture.matrix_coefficients() as u16,
            full_range: picture.color_range() == pixel::YUVRange::Full,
        };
        Self { picture, layout, coding }
    }

    pub(super) fn width(&self) -> usize {
        self.picture.width() as usize
    }

    pub(super) fn height(&self) -> usize {
        self.picture.height() as usize
    }

    pub(super) fn layout(&self) -> Layout {
        self.layout
    }

    /// The planes: lightness, and two of chroma if there are any.
    pub(super) fn planes(&self) -> [Plane<'_>; 3] {
        use PlanarImageComponent::{U, V, Y};
        let is_grey = self.layout.is_grey;
        [Y, U, V].map(|component| {
            if is_grey && component != Y {
                return Plane { bytes: &[], stride: 0 };
            }
            let stride = self.picture.stride(component) as usize;
            Plane { bytes: self.picture.plane(component), stride }
        })
    }
}

fn first_picture(decoder: &mut Decoder, coded: Vec<u8>) -> Result<Picture, Fault> {
    let mut sent = decoder.send_data(coded.into(), None, None, None);
    for _ in 0..=MAX_FRAMES {
        if sent.is_err_and(|error| error != Rav1dError::TryAgain) {
            return Err(Fault::Damaged);
        }
        match decoder.get_picture() {
            Ok(picture) => return Ok(picture),
            Err(Rav1dError::TryAgain) => sent = decoder.send_pending_data(),
            Err(_) => return Err(Fault::Damaged),
        }
    }
    Err(Fault::Damaged)
}
