//! Lightness and chroma to 8-bit RGB, as ITU-T H.273 defines it.

use super::av1::{Layout, Plane};
use super::boxes::{Coding, Fault};

/// How the samples of one image become RGB.
pub(super) struct Conversion {
    layout: Layout,
    matrix: Matrix,
    /// The level of black, and the factor from a level of lightness to 0–255.
    black: f32,
    light: f32,
    /// The level of no chroma, and the factor from a difference to it to −127.5–127.5.
    neutral: f32,
    chroma: f32,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Matrix {
    /// The planes are green, blue and red.
    Identity,
    /// Lightness, and the differences of green and orange to it.
    YCgCo,
    /// Luma with these weights of red and blue, and the differences of blue and red to it.
    Luma { red: f32, blue: f32 },
}

impl Conversion {
    /// # Errors
    /// [`Fault::Unsupported`] for a matrix that is not linear in R'G'B'.
    pub(super) fn new(layout: Layout, coding: Coding) -> Result<Self, Fault> {
        let matrix = match coding.matrix {
            0 if layout.is_grey => Matrix::Luma { red: 0.299, blue: 0.114 },
            0 if !layout.halves_width => Matrix::Identity,
            0 => return Err(Fault::Damaged),
            8 => Matrix::YCgCo,
            1 => Matrix::Luma { red: 0.2126, blue: 0.0722 },
            4 => Matrix::Luma { red: 0.30, blue: 0.11 },
            // BT.601; the same if nothing is specified.
            2 | 3 | 5 | 6 => Matrix::Luma { red: 0.299, blue: 0.114 },
            7 => Matrix::Luma { red: 0.212, blue: 0.087 },
            9 => Matrix::Luma { red: 0.2627, blue: 0.0593 },
            12 => derived(coding.primaries),
            _ => return Err(Fault::Unsupported("an AVIF with unusual colour coefficients")),
        };
        let steps = f32::from(1_u16 << (layout.depth - 8));
        let most = 256.0 * steps - 1.0;
        let (black, light, chroma) = if coding.full_range {
            (0.0, 255.0 / most, 255.0 / most)
        } else {
            (16.0 * steps, 255.0 / (219.0 * steps), 255.0 / (224.0 * steps))
        };
        Ok(Self { layout, matrix, black, light, neutral: 128.0 * steps, chroma })
    }

    /// Converts planes of `width × height` samples to RGB, row after row.
    pub(super) fn convert(&self, planes: &[Plane; 3], width: usize, height: usize) -> Vec<u8> {
        let mut rgb = vec![0; 3 * width * height];
        let [mut y, mut u, mut v] = [(); 3].map(|()| vec![0.0; width]);
        let mut blended = Vec::new();
        for (row, out) in rgb.chunks_exact_mut(3 * width).enumerate() {
            self.samples(planes[0], row, &mut y);
            let out = out.as_chunks_mut::<3>().0;
            if self.layout.is_grey {
                for (out, y) in out.iter_mut().zip(&y) {
                    *out = [level((y - self.black) * self.light); 3];
                }
                continue;
            }
            self.chroma(planes[1], row, width, height, &mut blended, &mut u);
            self.chroma(planes[2], row, width, height, &mut blended, &mut v);
            self.row(&y, &u, &v, out);
        }
        rgb
    }

    /// A row of lightness, 0–255.
    pub(super) fn lightness(&self, plane: Plane, row: usize, out: &mut [u8]) {
        let mut samples = vec![0.0; out.len()];
        self.samples(plane, row, &mut samples);
        for (out, y) in out.iter_mut().zip(samples) {
            *out = level((y - self.black) * self.light);
        }
    }

    fn row(&self, y: &[f32], u: &[f32], v: &[f32], out: &mut [[u8; 3]]) {
        let samples = out.iter_mut().zip(y).zip(u.iter().zip(v));
        let samples = samples.map(|((out, y), (u, v))| (out, *y, *u, *v));
        match self.matrix {
            Matrix::Identity => samples.for_each(|(out, g, b, r)| {
                *out = [r, g, b].map(|sample| level((sample - self.black) * self.light));
            }),
            Matrix::YCgCo => samples.for_each(|(out, y, green, orange)| {
                let y = (y - self.black) * self.light;
                let green = (green - self.neutral) * self.chroma;
                let orange = (orange - self.neutral) * self.chroma;
                *out = [y - green + orange, y + green, y - green - orange].map(level);
            }),
            Matrix::Luma { red, blue } => {
                let green = 1.0 - red - blue;
                let to_red = 2.0 * (1.0 - red) * self.chroma;
                let to_blue = 2.0 * (1.0 - blue) * self.chroma;
                samples.for_each(|(out, y, cb, cr)| {
                    let y = (y - self.black) * self.light;
                    let above_red = (cr - self.neutral) * to_red;
                    let above_blue = (cb - self.neutral) * to_blue;
                    let below_green = (red * above_red + blue * above_blue) / green;
                    *out = [y + above_red, y - below_green, y + above_blue].map(level);
                });
            }
        }
    }

    /// A row of a plane.
    fn samples(&self, plane: Plane, row: usize, out: &mut [f32]) {
        let bytes = &plane.bytes[row * plane.stride..][..out.len() * self.layout.sample_bytes()];
        if self.layout.depth > 8 {
            for (out, sample) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *out = u16::from_ne_bytes(*sample).into();
            }
        } else {
            out.iter_mut().zip(bytes).for_each(|(out, sample)| *out = f32::from(*sample));
        }
    }

    /// A row of chroma as wide as the image. Where pixels share a sample, it lies between them, and is
    /// interpolated: three parts of the nearer sample, one of the other.
    fn chroma(
        &self,
        plane: Plane,
        row: usize,
        width: usize,
        height: usize,
        blended: &mut Vec<f32>,
        out: &mut [f32],
    ) {
        let (columns, rows) = self.layout.chroma_size(width, height);
        let near = if self.layout.halves_height { row / 2 } else { row };
        if !self.layout.halves_width {
            self.samples(plane, near, out);
            return;
        }
        blended.resize(2 * columns, 0.0);
        let (blended, other) = blended.split_at_mut(columns);
        self.samples(plane, near, blended);
        if self.layout.halves_height {
            let far = if row.is_multiple_of(2) {
                near.saturating_sub(1)
            } else {
                (near + 1).min(rows - 1)
            };
            self.samples(plane, far, other);
            for (near, far) in blended.iter_mut().zip(other.iter()) {
                *near = 0.75 * *near + 0.25 * far;
            }
        }
        let last = columns - 1;
        for (index, pair) in out.chunks_mut(2).enumerate() {
            let near = 0.75 * blended[index];
            pair[0] = near + 0.25 * blended[index.saturating_sub(1)];
            if let Some(second) = pair.get_mut(1) {
                *second = near + 0.25 * blended[(index + 1).min(last)];
            }
        }
    }
}

/// The weights of luma that belong to these primaries.
fn derived(primaries: u16) -> Matrix {
    let (red, blue) = match primaries {
        1 => (0.2126, 0.0722),
        9 => (0.2627, 0.0593),
        11 => (0.2095, 0.0689),
        12 => (0.2290, 0.0793),
        _ => (0.299, 0.114),
    };
    Matrix::Luma { red, blue }
}

/// The nearest level.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates")]
fn level(value: f32) -> u8 {
    (value + 0.5) as u8
}
