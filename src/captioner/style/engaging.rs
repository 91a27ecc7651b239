//! The style `engaging`: a short, warm post.
//!
//! The first sentence is the caption. What follows is about light and colours only, because nothing else
//! is known: the mood is that of the colours. Which of several phrases is taken follows from the words of
//! the caption, so that a page of photos is not monotonous and a photo always gets the same text.

use cutline_image::{Colors, MoodLabel};

use super::{capitalized, cut, describing, is_loose};

/// Colours above this warmth are called warm, and below the other one cool.
const WARM: f32 = 0.56;
const COOL: f32 = 0.44;

/// Colours with less of the photo than this are not named.
const SMALLEST_SHARE: f32 = 0.15;

/// The text as a post of at most `most` characters; empty if it describes nothing.
pub(super) fn write(text: &str, most: usize, emoji: bool, colors: Option<&Colors>) -> String {
    let mut post = first_sentence(text, most);
    if post.is_empty() {
        return post;
    }
    let kept = post.clone();
    if post.ends_with(char::is_alphanumeric) && post.chars().count() < most {
        post.push('.');
    }
    let mut add = |more: &str| {
        let fits = post.chars().count() + 1 + more.chars().count() <= most;
        if fits {
            post.push(' ');
            post.push_str(more);
        }
        fits
    };
    if let Some(colors) = colors {
        let mood = mood(&kept, colors.mood.label);
        let tones = tones(colors).map(|tones| format!("{mood}, in {tones}."));
        if !tones.is_some_and(|both| add(&both)) {
            add(&format!("{mood}."));
        }
    }
    if emoji {
        let light = colors.map(|colors| light(colors.mood.label));
        let marks: String = subject(&kept).into_iter().chain(light).collect();
        if !marks.is_empty() {
            add(&marks);
        }
    }
    post
}

/// The caption as a sentence, without its full stop.
pub(super) fn first_sentence(text: &str, most: usize) -> String {
    let Some(words) = describing(text) else { return String::new() };
    let text = cut(&words, most);
    // A capital may be more than one letter.
    let mut text: String =
        capitalized(text.trim_end_matches(is_loose)).chars().take(most).collect();
    text.truncate(text.trim_end().len());
    text
}

/// A phrase for how the colours feel.
fn mood(text: &str, label: MoodLabel) -> &'static str {
    let phrases: [&str; 3] = match label {
        MoodLabel::Energetic => {
            ["Bold and full of energy", "Bright, bold and lively", "Colour turned all the way up"]
        }
        MoodLabel::Happy => ["Bright and cheerful", "Light and full of cheer", "Happy colours"],
        MoodLabel::Calm => ["Soft and calm", "Light, calm and easy", "A quiet, gentle palette"],
        MoodLabel::Tense => ["Deep and striking", "Rich and intense", "Strong, deep colours"],
        MoodLabel::Dark => ["Deep in shadow", "Dark and moody", "Hardly any light"],
        // Also for labels that do not exist yet.
        _ => ["Quiet and muted", "Hushed and gentle", "Soft-spoken colours"],
    };
    let at = blake3::hash(text.as_bytes()).as_bytes()[0];
    phrases[usize::from(at) % phrases.len()]
}

/// The plain colours of the photo, such as "warm browns and greens".
fn tones(colors: &Colors) -> Option<String> {
    let mut named: Vec<&str> = Vec::new();
    for color in colors.colors.iter().filter(|color| color.fraction >= SMALLEST_SHARE) {
        if let Some(plain) = plain(&color.name).filter(|plain| !named.contains(plain)) {
            named.push(plain);
        }
    }
    named.truncate(2);
    let temperature = match colors.mood.warmth {
        warmth if warmth >= WARM => "warm ",
        warmth if warmth <= COOL => "cool ",
        _ => "",
    };
    (!named.is_empty()).then(|| format!("{temperature}{}", named.join(" and ")))
}

/// The plain word, in the plural, for a colour of CSS.
fn plain(name: &str) -> Option<&'static str> {
    const PLAIN: [(&[&str], &str); 11] = [
        (&["brown", "sienna", "peru", "chocolate", "maroon"], "browns"),
        (&["tan", "wheat", "beige", "linen", "bisque", "khaki", "burlywood"], "sandy tones"),
        (&["green", "olive", "lime", "chartreuse"], "greens"),
        (&["blue", "navy", "indigo"], "blues"),
        (&["teal", "cyan", "aqua", "turquoise"], "blue-greens"),
        (&["pink", "rose", "salmon"], "pinks"),
        (&["red", "crimson", "firebrick", "tomato"], "reds"),
        (&["orange", "coral"], "oranges"),
        (&["gold", "yellow"], "golds"),
        (&["purple", "violet", "orchid", "plum", "magenta", "lavender"], "purples"),
        (&["gray", "grey", "silver", "gainsboro", "black", "white", "snow"], "greys"),
    ];
    // The end of a name is its colour: "yellowgreen" is a green.
    let ends = |parts: &&(&[&str], &str)| parts.0.iter().any(|part| name.ends_with(part));
    let has = |parts: &&(&[&str], &str)| parts.0.iter().any(|part| name.contains(part));
    PLAIN.iter().find(ends).or_else(|| PLAIN.iter().find(has)).map(|(_, plain)| *plain)
}

const fn light(label: MoodLabel) -> char {
    match label {
        MoodLabel::Energetic => '🎉',
        MoodLabel::Happy => '😊',
        MoodLabel::Calm => '✨',
        MoodLabel::Tense => '🔥',
        MoodLabel::Dark => '🌙',
        _ => '💭',
    }
}

/// The emoji of the first thing in the text that has one.
fn subject(text: &str) -> Option<char> {
    let words = text.split(|c: char| !c.is_alphanumeric()).map(str::to_lowercase);
    words.filter(|word| !word.is_empty()).find_map(|word| {
        let one = |word: &str| SUBJECTS.iter().find(|(names, _)| names.contains(&word));
        let found = one(&word).or_else(|| one(word.strip_suffix('s')?));
        found.map(|(_, emoji)| *emoji)
    })
}

/// Things of which captions speak often.
const SUBJECTS: [(&[&str], char); 62] = [
    (&["dog", "puppy", "puppie"], '🐶'),
    (&["cat", "kitten"], '🐱'),
    (&["horse", "pony"], '🐴'),
    (&["cow", "bull", "cattle"], '🐮'),
    (&["sheep", "lamb"], '🐑'),
    (&["elephant"], '🐘'),
    (&["bear"], '🐻'),
    (&["giraffe"], '🦒'),
    (&["zebra"], '🦓'),
    (&["monkey"], '🐒'),
    (&["rabbit", "bunny"], '🐰'),
    (&["bird", "parrot"], '🐦'),
    (&["duck"], '🦆'),
    (&["fish"], '🐟'),
    (&["butterfly"], '🦋'),
    (&["bee"], '🐝'),
    (&["baby", "toddler"], '👶'),
    (&["bride", "groom", "wedding"], '💍'),
    (&["birthday", "cake"], '🎂'),
    (&["pizza"], '🍕'),
    (&["burger", "hamburger"], '🍔'),
    (&["sandwich"], '🥪'),
    (&["salad"], '🥗'),
    (&["banana"], '🍌'),
    (&["apple"], '🍎'),
    (&["strawberry", "strawberrie"], '🍓'),
    (&["bread"], '🍞'),
    (&["coffee", "cup", "mug"], '☕'),
    (&["wine"], '🍷'),
    (&["beer"], '🍺'),
    (&["dessert", "icecream"], '🍨'),
    (&["donut", "doughnut"], '🍩'),
    (&["food", "plate", "meal"], '🍴'),
    (&["beach", "sand"], '🏖'),
    (&["ocean", "sea", "wave", "surfer", "surfboard"], '🌊'),
    (&["mountain"], '⛰'),
    (&["snow", "snowboarder", "skier", "ski"], '⛄'),
    (&["tree", "forest"], '🌳'),
    (&["flower", "tulip"], '🌷'),
    (&["rose"], '🌹'),
    (&["sunset", "sunrise"], '🌅'),
    (&["rain", "umbrella"], '☔'),
    (&["moon"], '🌙'),
    (&["star"], '⭐'),
    (&["rainbow"], '🌈'),
    (&["city", "skyline", "skyscraper"], '🌆'),
    (&["castle"], '🏰'),
    (&["house", "home"], '🏡'),
    (&["bridge"], '🌉'),
    (&["car", "truck"], '🚗'),
    (&["bus", "buse"], '🚌'),
    (&["train"], '🚆'),
    (&["airplane", "plane", "jet"], '✈'),
    (&["boat", "ship", "sailboat"], '⛵'),
    (&["bike", "bicycle", "cyclist"], '🚲'),
    (&["motorcycle"], '🏍'),
    (&["rocket"], '🚀'),
    (&["soccer"], '⚽'),
    (&["basketball"], '🏀'),
    (&["baseball"], '⚾'),
    (&["tennis"], '🎾'),
    (&["guitar", "piano", "violin", "band"], '🎵'),
];
