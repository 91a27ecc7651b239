//! What was asked of photos, in a few letters that can be kept beside their captions.

use super::{CaptionParams, Captioner};
use cutline_image::PREPROCESSING_VERSION;

/// Hexadecimal digits: 64 bits tell apart what one person asks of one archive.
const DIGITS: usize = 16;

impl Captioner {
    /// Stands for model, precision, input size and parameters: equal ones, equal texts of the same
    /// photo. Unlike the keys of the cache it says nothing of kernels and device, so that work that
    /// was begun on one machine can go on on another, where the odd word may differ.
    #[must_use]
    pub fn fingerprint(&self, params: &CaptionParams) -> String {
        let info = self.info();
        let mut hasher = blake3::Hasher::new_derive_key("cutline 2026-11 fingerprint");
        for part in [
            info.digest.as_str(),
            &info.precision,
            &format!("{PREPROCESSING_VERSION} {:?}", info.input_size),
            &format!("{:?}", params.prompt),
            // All fields by their names, so that one that is added later counts by itself.
            &format!("{:?}", params.generation().canonical()),
            &format!("{:?}", params.text_style()),
        ] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        let mut digits = hasher.finalize().to_hex().to_string();
        digits.truncate(DIGITS);
        digits
    }
}
