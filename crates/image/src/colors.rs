//! Dominant colours: clusters of a thumbnail's pixels in OKLab, where distances approximate perceived
//! differences (Björn Ottosson, 2020, "A perceptual color space for image processing").

use std::collections::BTreeMap;
use std::sync::LazyLock;

use palette::{FromColor, LinSrgb, Oklab, Srgb, named};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::decode::DecodedImage;
use super::mood::Mood;
use super::thumbnail::thumbnail;

/// The largest number of colours that are reported.
pub const MAX_COLORS: usize = 5;

/// Colours closer to each other than this are merged. The distance of black and white is 1; the eye can
/// distinguish adjacent colours from 0.02 on.
const DISTINCT: f32 = 0.1;

/// A colour with a smaller share is left out; its pixels count for the nearest colour.
const MIN_FRACTION: f32 = 0.01;

/// The weight of a difference in hue or chroma, relative to lightness, in the choice of a name: a dark
/// brown is called black rather than navy, which is equally dark.
const HUE_IN_NAMES: f32 = 4.0;

/// Enough for the assignments to converge; more rounds change a mean by a fraction of a level.
const ROUNDS: usize = 16;

/// The dominant colours of an image and their mood.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Colors {
    /// One to five colours, the most frequent first.
    pub colors: Vec<DominantColor>,
    /// How these colours are perceived.
    pub mood: Mood,
}

impl Colors {
    /// The colours of `image`. Takes a few milliseconds for any size, because it uses a thumbnail.
    #[must_use]
    pub fn of(image: &DecodedImage) -> Self {
        let colors = dominant_colors(&thumbnail(image));
        let mood = Mood::of(&colors);
        Self { colors, mood }
    }
}

/// One of the colours that make up an image.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DominantColor {
    /// `#rrggbb`, sRGB.
    pub hex: String,
    /// Red, green, blue, 0–255, sRGB.
    pub rgb: [u8; 3],
    /// The nearest named colour of CSS, in OKLab with a and b counted twice.
    pub name: String,
    /// Share of the image's pixels, 0–1. All shares add up to 1, except for rounding.
    pub fraction: f32,
}

impl DominantColor {
    fn new(color: Oklab, fraction: f32) -> Self {
        let rgb = Srgb::<u8>::from_linear(LinSrgb::from_color(color));
        let rgb = [rgb.red, rgb.green, rgb.blue];
        let [r, g, b] = rgb;
        Self {
            hex: format!("#{r:02x}{g:02x}{b:02x}"),
            rgb,
            name: name(rgb).to_owned(),
            fraction: (fraction * 1e4).round() / 1e4,
        }
    }
}

/// The name of the CSS colour nearest to `rgb`.
#[must_use]
pub fn name(rgb: [u8; 3]) -> &'static str {
    static NAMED: LazyLock<Vec<(&'static str, Oklab)>> = LazyLock::new(|| {
        let mut entries: Vec<_> = named::entries()
            // Some colours have two names; keep the common one.
            .filter(|(name, _)| !name.contains("grey") && !matches!(*name, "aqua" | "fuchsia"))
            .map(|(name, color)| (name, oklab([color.red, color.green, color.blue])))
            .collect();
        // The library promises no order, and equally near colours must always give the same name.
        entries.sort_by_key(|(name, _)| *name);
        entries
    });
    let color = oklab(rgb);
    let far = |named: &Oklab| {
        let (l, a, b) = (named.l - color.l, named.a - color.a, named.b - color.b);
        l * l + HUE_IN_NAMES * (a * a + b * b)
    };
    NAMED
        .iter()
        .min_by(|(_, one), (_, two)| far(one).total_cmp(&far(two)))
        .map_or("black", |(name, _)| *name)
}

/// The colours of `pixels` (sRGB), the most frequent first, at most [`MAX_COLORS`]; none without pixels.
///
/// The same pixels always give the same colours: k-means starts from seeds that are chosen by weight
/// and distance, without random numbers.
#[must_use]
pub fn dominant_colors(pixels: &[[u8; 3]]) -> Vec<DominantColor> {
    let points = points(pixels);
    let total: f32 = points.iter().map(|point| point.weight).sum();
    let mut centers = seeds(&points);
    for _ in 0..ROUNDS {
        let moved = clusters(&points, &centers).iter().map(|cluster| cluster.center).collect();
        if moved == centers {
            break;
        }
        centers = moved;
    }
    let mut found = clusters(&points, &merged(clusters(&points, &centers)));
    let largest = found.iter().map(|cluster| cluster.weight).fold(0.0, f32::max);
    found.retain(|cluster| cluster.weight >= MIN_FRACTION * total || cluster.weight >= largest);
    // Pixels of colours that were left out count for their neighbours but do not change them.
    let kept: Vec<Oklab> = found.iter().map(|cluster| cluster.center).collect();
    let mut weights = vec![0.0; kept.len()];
    for point in &points {
        if let Some(index) = nearest(&kept, point.color) {
            weights[index] += point.weight;
        }
    }
    let mut colors: Vec<DominantColor> = kept
        .into_iter()
        .zip(weights)
        .map(|(center, weight)| DominantColor::new(center, weight / total))
        .collect();
    colors.sort_by(|a, b| b.fraction.total_cmp(&a.fraction).then_with(|| a.hex.cmp(&b.hex)));
    colors
}

/// Pixels of nearly the same colour.
#[derive(Debug, Clone, Copy)]
struct Point {
    color: Oklab,
    /// Number of pixels.
    weight: f32,
}

/// Merges pixels with equal upper 5 bits of all samples into one point, at their mean. A thumbnail has
/// a few hundred points.
fn points(pixels: &[[u8; 3]]) -> Vec<Point> {
    let mut bins: BTreeMap<[u8; 3], Sum> = BTreeMap::new();
    for pixel in pixels {
        bins.entry(pixel.map(|sample| sample >> 3)).or_default().add(oklab(*pixel), 1.0);
    }
    bins.values().map(|sum| Point { color: sum.mean(), weight: sum.weight }).collect()
}

/// The seeds of the clustering: first the heaviest point, then always the point with the largest
/// product of weight and squared distance, among those distinct from all earlier seeds.
fn seeds(points: &[Point]) -> Vec<Oklab> {
    let mut centers: Vec<Oklab> = Vec::new();
    // Without a seed, all points are equally far.
    let mut far = vec![1.0_f32; points.len()];
    while centers.len() < MAX_COLORS {
        let mut best: Option<(usize, f32)> = None;
        for (index, (point, far)) in points.iter().zip(&far).enumerate() {
            let score = point.weight * far;
            if *far > DISTINCT * DISTINCT && best.is_none_or(|(_, before)| score > before) {
                best = Some((index, score));
            }
        }
        let Some((index, _)) = best else { break };
        let seed = points[index].color;
        for (point, far) in points.iter().zip(&mut far) {
            let distance = distance2(point.color, seed);
            *far = if centers.is_empty() { distance } else { far.min(distance) };
        }
        centers.push(seed);
    }
    centers
}

#[derive(Debug, Clone, Copy)]
struct Cluster {
    center: Oklab,
    weight: f32,
}

/// Assigns the points to their nearest centres; returns mean and weight of each centre with points.
fn clusters(points: &[Point], centers: &[Oklab]) -> Vec<Cluster> {
    let mut sums = vec![Sum::default(); centers.len()];
    for point in points {
        if let Some(index) = nearest(centers, point.color) {
            sums[index].add(point.color, point.weight);
        }
    }
    sums.iter()
        .filter(|sum| sum.weight > 0.0)
        .map(|sum| Cluster { center: sum.mean(), weight: sum.weight })
        .collect()
}

/// The centres after merging those that are not distinct, the closest pair first.
fn merged(mut clusters: Vec<Cluster>) -> Vec<Oklab> {
    while let Some((one, two)) = closest_pair(&clusters) {
        let other = clusters.remove(two);
        let cluster = &mut clusters[one];
        let mut sum = Sum::default();
        sum.add(cluster.center, cluster.weight);
        sum.add(other.center, other.weight);
        *cluster = Cluster { center: sum.mean(), weight: sum.weight };
    }
    clusters.into_iter().map(|cluster| cluster.center).collect()
}

/// The two nearest clusters that are not distinct, the lower index first.
fn closest_pair(clusters: &[Cluster]) -> Option<(usize, usize)> {
    let mut closest = None;
    let mut least = DISTINCT * DISTINCT;
    for (one, a) in clusters.iter().enumerate() {
        for (two, b) in clusters.iter().enumerate().skip(one + 1) {
            let distance = distance2(a.center, b.center);
            if distance < least {
                (closest, least) = (Some((one, two)), distance);
            }
        }
    }
    closest
}

fn nearest(centers: &[Oklab], color: Oklab) -> Option<usize> {
    let mut best = None;
    let mut least = f32::INFINITY;
    for (index, center) in centers.iter().enumerate() {
        let distance = distance2(*center, color);
        if distance < least {
            (best, least) = (Some(index), distance);
        }
    }
    best
}

/// A weighted sum of colours.
#[derive(Debug, Clone, Copy, Default)]
struct Sum {
    l: f32,
    a: f32,
    b: f32,
    weight: f32,
}

impl Sum {
    fn add(&mut self, color: Oklab, weight: f32) {
        self.l += color.l * weight;
        self.a += color.a * weight;
        self.b += color.b * weight;
        self.weight += weight;
    }

    fn mean(&self) -> Oklab {
        Oklab::new(self.l / self.weight, self.a / self.weight, self.b / self.weight)
    }
}

fn oklab([red, green, blue]: [u8; 3]) -> Oklab {
    let linear: LinSrgb = Srgb::new(red, green, blue).into_linear();
    Oklab::from_color(linear)
}

/// The squared distance in OKLab.
fn distance2(one: Oklab, two: Oklab) -> f32 {
    let (l, a, b) = (one.l - two.l, one.a - two.a, one.b - two.b);
    l * l + a * a + b * b
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(color: &DominantColor, rgb: [u8; 3], levels: u8) -> bool {
        color.rgb.iter().zip(rgb).all(|(a, b)| a.abs_diff(b) <= levels)
    }

    #[test]
    fn halves_of_red_and_blue_are_exact() {
        let pixels = [vec![[255, 0, 0]; 500], vec![[0, 0, 255]; 500]].concat();
        let colors = dominant_colors(&pixels);
        let expected = [("#0000ff", "blue"), ("#ff0000", "red")];
        assert_eq!(colors.len(), 2);
        for (color, (hex, name)) in colors.iter().zip(expected) {
            assert_eq!((&*color.hex, &*color.name, color.fraction), (hex, name, 0.5));
        }
    }

    #[test]
    fn stray_pixels_count_for_their_neighbour_and_change_no_colour() {
        let pixels = [vec![[255, 0, 0]; 997], vec![[0, 255, 0]; 3]].concat();
        let colors = dominant_colors(&pixels);
        assert_eq!(colors.len(), 1);
        assert_eq!((colors[0].rgb, colors[0].fraction), ([255, 0, 0], 1.0));
    }

    #[test]
    fn a_grey_ramp_has_five_greys_of_similar_size() {
        let pixels: Vec<[u8; 3]> = (0..=255_u8).map(|level| [level; 3]).collect();
        let colors = dominant_colors(&pixels);
        assert_eq!(colors.len(), MAX_COLORS);
        for color in &colors {
            assert!(near(color, [color.rgb[0]; 3], 1), "{color:?}");
            assert!((0.1..0.35).contains(&color.fraction), "{color:?}");
        }
        let sum: f32 = colors.iter().map(|color| color.fraction).sum();
        assert!((sum - 1.0).abs() < 1e-3);
    }

    #[test]
    fn noise_around_a_colour_is_that_colour() {
        // The sum of three uniform numbers is nearly bell-shaped.
        let mut state = 1_u32;
        let mut noise = || {
            (0..3).fold(0_i32, |sum, _| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                sum + (state >> 24) as i32 % 17 - 8
            })
        };
        let pixels: Vec<[u8; 3]> = (0..16_384)
            .map(|_| [60, 140, 200].map(|level: i32| (level + noise()).clamp(0, 255) as u8))
            .collect();
        let colors = dominant_colors(&pixels);
        assert_eq!(colors.len(), 1, "{colors:?}");
        assert!(near(&colors[0], [60, 140, 200], 3), "{colors:?}");
        assert_eq!((&*colors[0].name, colors[0].fraction), ("steelblue", 1.0));
    }

    #[test]
    fn the_order_of_the_pixels_only_changes_rounding() {
        let pixels: Vec<[u8; 3]> = (0..3000_u32)
            .map(|i| [i * 7 % 256, i * 31 % 200, i * 3 % 90].map(|v| v as u8))
            .collect();
        assert_eq!(dominant_colors(&pixels), dominant_colors(&pixels));
        let mut turned = pixels.clone();
        turned.reverse();
        for (one, two) in dominant_colors(&pixels).iter().zip(dominant_colors(&turned)) {
            assert!(near(one, two.rgb, 1) && (one.fraction - two.fraction).abs() < 1e-3);
        }
    }

    #[test]
    fn names_are_those_of_css() {
        for (rgb, expected) in [
            ([0, 255, 255], "cyan"),
            ([255, 0, 255], "magenta"),
            ([128, 128, 128], "gray"),
            ([47, 79, 79], "darkslategray"),
            ([254, 165, 1], "orange"),
            ([1, 0, 2], "black"),
        ] {
            assert_eq!(name(rgb), expected, "{rgb:?}");
        }
        for (name_, color) in named::entries() {
            let found = named::from_str(name([color.red, color.green, color.blue]));
            assert_eq!(found, Some(color), "{name_}");
        }
        assert!(dominant_colors(&[]).is_empty());
    }
}
