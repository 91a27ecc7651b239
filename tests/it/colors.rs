//! Colours, mood and measures of images with known results.

use std::fs;
use std::path::Path;

use cutline::image::{Colors, DecodeLimits, Measures, MoodLabel, decode, decode_for};
use image::{ImageFormat, Rgb, RgbImage};

fn example(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets").join(name);
    fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn png(width: u32, height: u32, pixel: impl Fn(u32, u32) -> [u8; 3]) -> Vec<u8> {
    let image = RgbImage::from_fn(width, height, |x, y| Rgb(pixel(x, y)));
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

fn colors_of(bytes: &[u8]) -> Colors {
    Colors::of(&decode(bytes, &DecodeLimits::default()).unwrap())
}

fn near(one: [u8; 3], two: [u8; 3], levels: u8) -> bool {
    one.iter().zip(two).all(|(a, b)| a.abs_diff(b) <= levels)
}

#[test]
fn half_red_and_half_blue_in_any_size() {
    for (width, height) in [(2, 1), (64, 64), (1000, 3), (1600, 1200)] {
        let bytes =
            png(width, height, |x, _| if x < width / 2 { [255, 0, 0] } else { [0, 0, 255] });
        let Colors { colors, mood } = colors_of(&bytes);
        let found: Vec<_> = colors.iter().map(|c| (&*c.hex, &*c.name, c.fraction)).collect();
        assert_eq!(found, [("#0000ff", "blue", 0.5), ("#ff0000", "red", 0.5)], "{width}×{height}");
        assert_eq!(mood.label, MoodLabel::Energetic);
        assert_eq!(mood.saturation, 1.0);
        // L* of red is 53.24 and of blue 32.30.
        assert!((mood.brightness - 0.428).abs() < 2e-3, "{mood:?}");
    }
}

#[test]
fn a_grey_ramp_has_five_greys_and_neutral_warmth() {
    let Colors { colors, mood } = colors_of(&png(512, 40, |x, _| [(x / 2) as u8; 3]));
    assert_eq!(colors.len(), 5);
    for color in &colors {
        assert!(near(color.rgb, [color.rgb[1]; 3], 1), "{color:?}");
        assert!((0.1..0.35).contains(&color.fraction), "{color:?}");
    }
    assert!((mood.warmth - 0.5).abs() < 0.01 && mood.saturation < 0.01, "{mood:?}");
    assert_eq!(mood.label, MoodLabel::Melancholic);
}

#[test]
fn a_noisy_colour_is_one_colour() {
    // Up to ±20 levels on each sample, from a hash of the position.
    let noise = |x: u32, y: u32, channel: u32| {
        let parts = [(x, 73_856_093), (y, 19_349_663), (channel, 83_492_791_u32)];
        let hash = parts.iter().fold(0, |hash, (part, prime)| hash ^ part.wrapping_mul(*prime));
        (hash.wrapping_mul(2_654_435_761) >> 16) as i32 % 41 - 20
    };
    let base = [46, 139, 87];
    let bytes = png(700, 500, |x, y| {
        [0, 1, 2].map(|c| (base[c] + noise(x, y, c as u32)).clamp(0, 255) as u8)
    });
    let Colors { colors, .. } = colors_of(&bytes);
    assert_eq!(colors.len(), 1, "{colors:?}");
    assert!(near(colors[0].rgb, [46, 139, 87], 4), "{colors:?}");
    assert_eq!((&*colors[0].name, colors[0].fraction), ("seagreen", 1.0));
}

/// The results when the clustering was written. A change here is a change for users.
#[test]
fn the_example_photos_have_their_colours() {
    type Known = (&'static str, &'static [([u8; 3], f32)], MoodLabel);
    let known: [Known; 4] = [
        (
            "astronaut.jpg",
            &[
                ([192, 103, 75], 0.244),
                ([182, 166, 159], 0.1994),
                ([216, 206, 203], 0.191),
                ([2, 1, 1], 0.1887),
                ([92, 51, 48], 0.177),
            ],
            MoodLabel::Melancholic,
        ),
        (
            "cat.jpg",
            &[
                ([152, 114, 87], 0.4629),
                ([182, 151, 135], 0.2565),
                ([117, 78, 51], 0.2347),
                ([59, 36, 20], 0.046),
            ],
            MoodLabel::Calm,
        ),
        (
            "coffee.jpg",
            &[
                ([167, 68, 31], 0.3385),
                ([199, 124, 73], 0.3132),
                ([38, 11, 5], 0.1513),
                ([233, 200, 168], 0.1035),
                ([106, 28, 12], 0.0935),
            ],
            MoodLabel::Energetic,
        ),
        (
            "rocket.jpg",
            &[
                ([24, 42, 67], 0.6116),
                ([63, 81, 109], 0.339),
                ([159, 120, 85], 0.0337),
                ([223, 192, 143], 0.0157),
            ],
            MoodLabel::Dark,
        ),
    ];
    let mut wrong = Vec::new();
    for (name, expected, label) in known {
        let Colors { colors, mood } = colors_of(&example(name));
        let same = colors.len() == expected.len()
            && colors.iter().zip(expected).all(|(color, (rgb, fraction))| {
                near(color.rgb, *rgb, 2) && (color.fraction - fraction).abs() < 0.01
            });
        if !same || mood.label != label {
            let found: Vec<_> = colors.iter().map(|c| (c.rgb, c.fraction, &c.name)).collect();
            wrong.push(format!("{name}: {found:?} {mood:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn both_jpeg_decoders_give_the_same_colours() {
    let bytes = example("coffee.jpg");
    let limits = DecodeLimits::default();
    let exact = Colors::of(&decode(&bytes, &limits).unwrap());
    let quick = Colors::of(&decode_for(&bytes, &limits, 64, 64).unwrap());
    assert_eq!(exact.colors.len(), quick.colors.len());
    for (one, two) in exact.colors.iter().zip(&quick.colors) {
        assert!(near(one.rgb, two.rgb, 2), "{one:?} {two:?}");
    }
}

#[test]
fn measures_of_known_pictures_are_right() {
    let measure =
        |bytes: &[u8]| Measures::of(&decode(bytes, &DecodeLimits::default()).unwrap()).unwrap();
    let board = measure(&png(100, 80, |x, y| [if (x + y) % 2 == 0 { 255 } else { 0 }; 3]));
    assert_eq!((board.brightness, board.contrast, board.sharpness), (0.5, 0.5, 1_040_400.0));
    // The pattern is averaged away when the image is scaled for measuring.
    let fine = measure(&png(2048, 2048, |x, y| [if (x + y) % 2 == 0 { 255 } else { 0 }; 3]));
    assert!(fine.contrast < 0.01 && fine.sharpness < 1.0, "{fine:?}");
    let photo = measure(&example("coffee.jpg"));
    assert!((0.1..0.9).contains(&photo.brightness) && photo.contrast > 0.1, "{photo:?}");
    assert!(photo.sharpness > 50.0 && photo.colorfulness > 15.0, "{photo:?}");
}
