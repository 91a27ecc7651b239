//! What a model sees of an image.

/// A preprocessed image: normalised RGB planes, channel-first, `3 × height × width`.
#[derive(Debug, Clone, PartialEq)]
pub struct PixelValues {
    /// `3 · height · width` values, plane after plane, row after row.
    pub data: Vec<f32>,
    /// Pixels a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
}
