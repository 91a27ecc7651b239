//! How colours are perceived, by two published models.
//!
//! - Valence and energy: Patricia Valdez and Albert Mehrabian, "Effects of color on emotions", Journal
//!   of Experimental Psychology: General 123 (1994): pleasure = 0.69 · brightness + 0.22 · saturation,
//!   arousal = −0.31 · brightness + 0.60 · saturation. They measured Munsell's value and chroma, to
//!   which CIELAB's L* and C* correspond.
//! - Warmth: Li-Chen Ou, M. Ronnier Luo, Andrée Woodcock and Angela Wright, "A study of colour emotion
//!   and colour preference. Part I", Color Research and Application 29 (2004):
//!   warm–cool = −0.5 + 0.02 · C*^1.07 · cos(h − 50°).
//!
//! Both studies asked people about patches of colour. The mood is derived from a photo's colours alone,
//! not from its content.

use palette::{FromColor, Lab, LinSrgb, Srgb};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::colors::DominantColor;

/// The C* of full saturation; the primaries of sRGB have 105 to 134.
const FULL_CHROMA: f32 = 100.0;

/// Pleasure ranges from 0 to this; arousal has a range of the same length.
const RANGE: f32 = 0.69 + 0.22;

/// Arousal is at least minus this.
const LEAST_AROUSAL: f32 = 0.31;

/// The valence of an image of medium lightness and little colour (L* of 50, saturation of 0.15). The
/// model's pleasure has no neutral point of its own.
const NEUTRAL_VALENCE: f32 = 0.42;
/// The energy at which the model's arousal is 0: colours above it stir, colours below it soothe.
const NEUTRAL_ENERGY: f32 = LEAST_AROUSAL / RANGE;

/// Below this valence an image is so dark that no other label fits.
const DARK_VALENCE: f32 = 0.25;

/// The model's warmth of the warmest colours of sRGB, relative to grey.
const WARMEST: f32 = 4.0;

/// How the colours of an image are perceived. All numbers are 0–1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Mood {
    /// The region of valence and energy.
    pub label: MoodLabel,
    /// Unpleasant to pleasant: pleasure of Valdez and Mehrabian, whose maximum is 0.91.
    pub valence: f32,
    /// Soothing to stirring: arousal of Valdez and Mehrabian, −0.31 to 0.60; 0.341 stands for 0.
    pub energy: f32,
    /// Cool to warm; grey is 0.5.
    pub warmth: f32,
    /// Mean L* of CIELAB, divided by 100.
    pub brightness: f32,
    /// Mean C* of CIELAB, divided by 100 and at most 1 for each colour.
    pub saturation: f32,
}

/// A region of the plane of valence and energy, after James Russell's circumplex (1980).
///
/// The plane is divided at valence 0.42, the value of an image of medium lightness and little colour,
/// and at energy 0.341, where the model's arousal is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum MoodLabel {
    /// Pleasant and stirring, more stirring than pleasant: strong colours.
    Energetic,
    /// Pleasant and stirring, at least as pleasant as stirring: strong and light colours.
    Happy,
    /// Pleasant and soothing: light colours.
    Calm,
    /// Less pleasant and soothing: subdued colours.
    Melancholic,
    /// Less pleasant and stirring: strong and deep colours.
    Tense,
    /// Valence below 0.25: hardly any light.
    Dark,
}

impl MoodLabel {
    /// The label of a point of the plane; both coordinates 0–1.
    #[must_use]
    pub fn of(valence: f32, energy: f32) -> Self {
        let (pleasant, stirring) = (valence - NEUTRAL_VALENCE, energy - NEUTRAL_ENERGY);
        match (pleasant >= 0.0, stirring >= 0.0) {
            _ if valence < DARK_VALENCE => Self::Dark,
            (true, true) if stirring > pleasant => Self::Energetic,
            (true, true) => Self::Happy,
            (true, false) => Self::Calm,
            (false, true) => Self::Tense,
            (false, false) => Self::Melancholic,
        }
    }
}

impl Mood {
    /// The mood of an image with these colours, weighted by their fractions; without colours, the mood
    /// of black.
    #[must_use]
    pub fn of(colors: &[DominantColor]) -> Self {
        let total: f32 = colors.iter().map(|color| color.fraction).sum();
        let (mut brightness, mut saturation, mut warmth) = (0.0, 0.0, 0.0);
        for color in colors {
            let share = color.fraction / total;
            let perceived = PerceivedColor::of(color.rgb);
            brightness += share * perceived.brightness;
            saturation += share * perceived.saturation;
            warmth += share * perceived.warmth;
        }
        let pleasure = 0.69 * brightness + 0.22 * saturation;
        let arousal = -0.31 * brightness + 0.60 * saturation;
        let (valence, energy) = (pleasure / RANGE, (arousal + LEAST_AROUSAL) / RANGE);
        let warmth = if colors.is_empty() { 0.5 } else { warmth };
        Self {
            label: MoodLabel::of(valence, energy),
            valence: thousandths(valence),
            energy: thousandths(energy),
            warmth: thousandths(warmth),
            brightness: thousandths(brightness),
            saturation: thousandths(saturation),
        }
    }
}

/// One colour, each property 0–1.
struct PerceivedColor {
    brightness: f32,
    saturation: f32,
    warmth: f32,
}

impl PerceivedColor {
    fn of([red, green, blue]: [u8; 3]) -> Self {
        let linear: LinSrgb = Srgb::new(red, green, blue).into_linear();
        let lab = Lab::from_color(linear);
        let chroma = lab.a.hypot(lab.b);
        let hue = lab.b.atan2(lab.a);
        let warmer = 0.02 * chroma.powf(1.07) * (hue - 50_f32.to_radians()).cos();
        Self {
            brightness: (lab.l / 100.0).clamp(0.0, 1.0),
            saturation: (chroma / FULL_CHROMA).min(1.0),
            warmth: (0.5 + warmer / (2.0 * WARMEST)).clamp(0.0, 1.0),
        }
    }
}

/// Three digits are more than the models justify and short enough to read.
fn thousandths(value: f32) -> f32 {
    (value * 1e3).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mood(rgb: [u8; 3]) -> Mood {
        let color = DominantColor { hex: String::new(), rgb, name: String::new(), fraction: 1.0 };
        Mood::of(&[color])
    }

    /// Computed by hand from the CIE's L* and C* of these colours.
    #[test]
    fn the_models_match_values_computed_by_hand() {
        // Mid grey: L* 53.59, C* 0.
        let grey = mood([128; 3]);
        assert_eq!((grey.brightness, grey.saturation, grey.warmth), (0.536, 0.0, 0.5));
        assert_eq!(grey.valence, thousandths(0.69 * 0.5359 / 0.91));
        assert_eq!(grey.energy, thousandths((0.31 - 0.31 * 0.5359) / 0.91));
        // Red: L* 53.24, C* 104.55, h 40.0°.
        let red = mood([255, 0, 0]);
        assert_eq!((red.brightness, red.saturation), (0.532, 1.0));
        let warmer = 0.02 * 104.55_f32.powf(1.07) * 10_f32.to_radians().cos();
        assert!((red.warmth - (0.5 + warmer / 8.0)).abs() < 2e-3, "{red:?}");
        assert!(mood([0, 0, 255]).warmth < 0.4 && mood([255, 165, 0]).warmth > 0.7);
    }

    #[test]
    fn every_number_stays_within_its_range() {
        let steps = || (0..=255_u8).step_by(17);
        for rgb in steps().flat_map(|r| steps().flat_map(move |g| steps().map(move |b| [r, g, b])))
        {
            let Mood { label: _, valence, energy, warmth, brightness, saturation } = mood(rgb);
            for value in [valence, energy, warmth, brightness, saturation] {
                assert!((0.0..=1.0).contains(&value), "{rgb:?}: {:?}", mood(rgb));
            }
        }
    }

    #[test]
    fn each_region_has_its_label() {
        for (rgb, label) in [
            ([255, 0, 0], MoodLabel::Energetic),
            ([255, 255, 0], MoodLabel::Happy),
            ([200, 225, 240], MoodLabel::Calm),
            ([255, 255, 255], MoodLabel::Calm),
            ([110, 115, 120], MoodLabel::Melancholic),
            ([120, 0, 30], MoodLabel::Tense),
            ([20, 22, 26], MoodLabel::Dark),
            ([0, 0, 0], MoodLabel::Dark),
        ] {
            assert_eq!(mood(rgb).label, label, "{rgb:?} {:?}", mood(rgb));
        }
        assert_eq!(MoodLabel::of(NEUTRAL_VALENCE, NEUTRAL_ENERGY), MoodLabel::Happy);
        assert_eq!(MoodLabel::of(DARK_VALENCE, 0.0), MoodLabel::Melancholic);
        assert_eq!(MoodLabel::of(DARK_VALENCE, 1.0), MoodLabel::Tense);
        assert_eq!(MoodLabel::of(0.24, 1.0), MoodLabel::Dark);
    }

    #[test]
    fn colours_are_weighted_by_their_fraction() {
        let color = |rgb, fraction| DominantColor {
            hex: String::new(),
            rgb,
            name: String::new(),
            fraction,
        };
        let mixed = Mood::of(&[color([255; 3], 0.75), color([0; 3], 0.25)]);
        assert_eq!(mixed.brightness, 0.75);
        assert_eq!(Mood::of(&[]).label, MoodLabel::Dark);
        assert_eq!(Mood::of(&[]).warmth, 0.5);
    }
}
