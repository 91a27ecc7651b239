//! Colour profiles: the colour space of an image's samples, if it is not sRGB.
//!
//! The reference ignores profiles. Photos in Display P3 or Adobe RGB then look paler to the model than
//! to people, so they are converted here. Nearly all profiles describe sRGB; those change nothing, and
//! the images stay sample for sample as in the reference.

use std::fmt;
use std::panic;
use std::sync::Arc;

use moxcms::{
    CicpColorPrimaries, CicpProfile, ColorProfile, DataColorSpace, Layout, MatrixCoefficients,
    TransferCharacteristics, Transform8BitExecutor, TransformOptions,
};

/// Profiles of cameras and screens have a few kilobytes. Longer ones are tables for printers.
pub(super) const MAX_BYTES: usize = 4 << 20;

/// A profile that changes no colour by more levels than this is one of the many variants of sRGB.
const SRGB_TOLERANCE: u8 = 2;

/// The colour space of an image's samples.
#[derive(Clone, Default)]
pub struct SampleSpace {
    /// `None` for sRGB.
    to_srgb: Option<Arc<Transform8BitExecutor>>,
}

impl SampleSpace {
    /// sRGB.
    #[must_use]
    pub fn srgb() -> Self {
        Self::default()
    }

    /// The colour space of an ICC profile for RGB. A profile that is damaged, not for RGB, or longer
    /// than 4 MiB counts as sRGB: it is no reason to refuse the image.
    pub(super) fn of_icc(profile: &[u8]) -> Self {
        if profile.is_empty() || profile.len() > MAX_BYTES {
            return Self::srgb();
        }
        let to_srgb = panic::catch_unwind(|| transform(profile)).ok().flatten();
        Self { to_srgb: to_srgb.filter(|transform| !changes_nothing(&**transform)) }
    }

    /// The colour space with these primaries and this transfer function, as code points of ITU-T H.273.
    /// Only wide gamuts of ordinary brightness are converted; all others count as sRGB, as in the
    /// reference.
    pub(super) fn of_code_points(primaries: u16, transfer: u16) -> Self {
        // BT.2020, DCI-P3 and Display P3.
        let is_wide = matches!(primaries, 9 | 11 | 12);
        // BT.709 and its equals, BT.470, sRGB, and unspecified: all are near that of sRGB.
        let is_ordinary = matches!(transfer, 1 | 2 | 4 | 5 | 6 | 13 | 14 | 15);
        let Some(primaries) = u8::try_from(primaries).ok().filter(|_| is_wide && is_ordinary)
        else {
            return Self::srgb();
        };
        let Ok(color_primaries) = CicpColorPrimaries::try_from(primaries) else {
            return Self::srgb();
        };
        let profile = ColorProfile::new_from_cicp(CicpProfile {
            color_primaries,
            transfer_characteristics: TransferCharacteristics::Srgb,
            matrix_coefficients: MatrixCoefficients::Identity,
            full_range: true,
        });
        Self { to_srgb: to_srgb(&profile) }
    }

    /// Whether samples need no conversion.
    #[must_use]
    pub fn is_srgb(&self) -> bool {
        self.to_srgb.is_none()
    }

    /// Converts `rgb`, pixels of three samples, to sRGB. Colours outside its gamut are clipped.
    pub(super) fn convert(&self, rgb: Vec<u8>) -> Vec<u8> {
        let Some(transform) = &self.to_srgb else { return rgb };
        let mut converted = vec![0; rgb.len()];
        match transform.transform(&rgb, &mut converted) {
            Ok(()) => converted,
            // Only for lengths that do not match, which does not happen here.
            Err(_) => rgb,
        }
    }
}

impl fmt::Debug for SampleSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_srgb() { "sRGB" } else { "by profile" })
    }
}

/// Two spaces are equal if both are sRGB, or if one is a clone of the other.
impl PartialEq for SampleSpace {
    fn eq(&self, other: &Self) -> bool {
        match (&self.to_srgb, &other.to_srgb) {
            (None, None) => true,
            (Some(one), Some(two)) => Arc::ptr_eq(one, two),
            _ => false,
        }
    }
}

impl Eq for SampleSpace {}

fn transform(profile: &[u8]) -> Option<Arc<Transform8BitExecutor>> {
    let profile = ColorProfile::new_from_slice(profile).ok()?;
    if profile.color_space == DataColorSpace::Rgb { to_srgb(&profile) } else { None }
}

fn to_srgb(profile: &ColorProfile) -> Option<Arc<Transform8BitExecutor>> {
    let srgb = ColorProfile::new_srgb();
    profile.create_transform_8bit(Layout::Rgb, &srgb, Layout::Rgb, TransformOptions::default()).ok()
}

/// Tests the transform on a grid of colours.
fn changes_nothing(transform: &Transform8BitExecutor) -> bool {
    let steps = || (0..=255_u8).step_by(51);
    let probe: Vec<u8> = steps()
        .flat_map(|r| steps().flat_map(move |g| steps().flat_map(move |b| [r, g, b])))
        .collect();
    let mut converted = vec![0; probe.len()];
    transform.transform(&probe, &mut converted).is_err()
        || probe.iter().zip(&converted).all(|(from, to)| from.abs_diff(*to) <= SRGB_TOLERANCE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn icc(profile: &ColorProfile) -> SampleSpace {
        SampleSpace::of_icc(&profile.encode().unwrap())
    }

    #[test]
    fn srgb_profiles_change_nothing() {
        assert!(icc(&ColorProfile::new_srgb()).is_srgb());
        let grey = vec![1, 2, 3];
        assert_eq!(SampleSpace::srgb().convert(grey.clone()), grey);
    }

    #[test]
    fn a_wide_gamut_is_converted_and_greys_stay() {
        let space = icc(&ColorProfile::new_display_p3());
        assert!(!space.is_srgb());
        let converted = space.convert(vec![255, 0, 0, 128, 128, 128, 200, 100, 100]);
        assert_eq!(converted[..3], [255, 0, 0], "clipped to the gamut of sRGB");
        assert!(converted[3..6].iter().all(|grey| grey.abs_diff(128) <= 1), "{converted:?}");
        assert!(converted[6] > 205 && converted[7] < 100, "more colourful: {converted:?}");
        assert!(!icc(&ColorProfile::new_adobe_rgb()).is_srgb());
    }

    #[test]
    fn unusable_profiles_count_as_srgb() {
        assert!(SampleSpace::of_icc(b"").is_srgb());
        assert!(SampleSpace::of_icc(&[0xAB; 500]).is_srgb());
        let whole = ColorProfile::new_display_p3().encode().unwrap();
        assert!(SampleSpace::of_icc(&whole[..whole.len() / 2]).is_srgb());
        assert!(icc(&ColorProfile::new_gray_with_gamma(2.2)).is_srgb());
    }
}
