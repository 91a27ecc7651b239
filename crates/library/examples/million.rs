//! Measures a large library: `cargo run --release -p cutline-library --example million -- LIBRARY [PHOTOS]`,
//! where LIBRARY is a file or, with the feature `postgres`, an address.
//! Photos, words and features are made up, the same each time.

use std::error::Error;
use std::time::Instant;

use cutline_library::{
    Author, Change, Color, ContentHash, Features, Field, ModelAuthor, NameKind, NewAsset, Probe,
    Query, Similar, Sort, open,
};

const SUBJECTS: [&str; 20] = [
    "a dog",
    "two people",
    "a man",
    "a woman",
    "a cat",
    "a child",
    "a group of people",
    "a brown horse",
    "a red car",
    "a train",
    "a plate of food",
    "a bird",
    "a bicycle",
    "a boat",
    "an old house",
    "a tree",
    "a large clock tower",
    "a laptop",
    "a surfer",
    "an elephant",
];
const ACTIONS: [&str; 12] = [
    "standing on",
    "sitting in front of",
    "running through",
    "next to",
    "lying on",
    "walking along",
    "playing with",
    "looking at",
    "parked beside",
    "in the middle of",
    "jumping over",
    "behind",
];
const PLACES: [&str; 20] = [
    "a beach",
    "the street",
    "a green field",
    "a wooden table",
    "the snow",
    "a sofa",
    "a mountain",
    "the water",
    "a bed",
    "a kitchen",
    "a fence",
    "the grass",
    "a city at night",
    "a lake",
    "a parking lot",
    "a river",
    "a market",
    "the sunset",
    "a garden",
    "a stage",
];
const TAGS: [&str; 40] = [
    "animal",
    "beach",
    "bike",
    "bird",
    "birthday",
    "boat",
    "building",
    "car",
    "cat",
    "child",
    "city",
    "clouds",
    "concert",
    "dog",
    "family",
    "flower",
    "food",
    "forest",
    "friends",
    "garden",
    "holiday",
    "horse",
    "house",
    "lake",
    "landscape",
    "mountain",
    "night",
    "party",
    "people",
    "portrait",
    "river",
    "snow",
    "sport",
    "street",
    "summer",
    "sunset",
    "train",
    "travel",
    "water",
    "winter",
];
const COLORS: [&str; 24] = [
    "black",
    "white",
    "gray",
    "silver",
    "tan",
    "brown",
    "maroon",
    "red",
    "orange",
    "gold",
    "yellow",
    "olive",
    "green",
    "teal",
    "skyblue",
    "steelblue",
    "navy",
    "purple",
    "pink",
    "beige",
    "darkgreen",
    "slategray",
    "sienna",
    "khaki",
];
const MOODS: [&str; 6] = ["calm", "warm", "dark", "vivid", "cold", "neutral"];
const DIM: usize = 384;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    /// Small numbers are more frequent, as words are.
    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        let (a, b) = (self.next() as usize % from.len(), self.next() as usize % from.len());
        &from[a.min(b)]
    }

    fn unit(&mut self) -> f32 {
        (self.next() % 20_001) as f32 / 10_000.0 - 1.0
    }
}

fn hash(number: u32) -> ContentHash {
    ContentHash::of(&number.to_le_bytes())
}

fn photo(number: u32, centers: &[Vec<f32>]) -> Change {
    let mut random = Random(u64::from(number) * 7919 + 12345);
    random.next();
    let author = Author::Model(ModelAuthor {
        name: "cutline-small".into(),
        digest: "blake3:0".repeat(8),
        parameters: "0123456789abcdef".into(),
        prompt: String::new(),
    });
    let mut asset = NewAsset::new(hash(number), author);
    let year = 2005 + number % 20;
    asset.name(
        NameKind::Path,
        format!("/srv/photos/{year}/{:02}/IMG_{number:07}.jpg", number % 12 + 1),
    );
    asset.format = Some("jpeg".into());
    (asset.width, asset.height, asset.bytes) =
        (Some(4032), Some(3024), Some(2_000_000 + random.next() % 1_000_000));
    asset.taken_at = Some(1_100_000_000_000 + (random.next() % 600_000_000) as i64 * 1000);
    asset.dhash = Some(random.next() << 32 ^ random.next());
    asset.mood = Some((*random.pick(&MOODS)).into());
    asset.colors = (0..3)
        .map(|rank| Color {
            hex: format!("#{:06x}", random.next() % 0x100_0000),
            name: (*random.pick(&COLORS)).into(),
            percent: 50 - 15 * rank,
        })
        .collect();
    let (subject, action, place) =
        (random.pick(&SUBJECTS), random.pick(&ACTIONS), random.pick(&PLACES));
    let caption = format!("{subject} {action} {place}");
    asset.text(Field::Caption, caption.clone(), Some((random.next() % 1000) as f32 / 1000.0));
    if !number.is_multiple_of(10) {
        asset.text(
            Field::AltText,
            format!("{}{}.", &caption[..1].to_uppercase(), &caption[1..]),
            Some(0.5),
        );
    }
    let tags: Vec<&str> = (0..4).map(|_| *random.pick(&TAGS)).collect();
    asset.text(Field::Tags, tags.join("\n"), None);
    let center = &centers[random.next() as usize % centers.len()];
    let vector = center.iter().map(|x| x + 0.6 * random.unit()).collect();
    asset.features = Some(Features { space: "cutline-small".into(), vector });
    Change::Asset(Box::new(asset))
}

/// Milliseconds of each call; prints the median, the 95th percentile and the most.
fn measure(
    what: &str,
    calls: usize,
    mut call: impl FnMut(usize) -> Result<usize, Box<dyn Error>>,
) -> Result<(), Box<dyn Error>> {
    let mut times = Vec::with_capacity(calls);
    let mut found = 0;
    for number in 0..calls {
        let begin = Instant::now();
        found += call(number)?;
        times.push(begin.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
    println!(
        "{what:<34} {calls:>5} calls  p50 {:>7.2} ms  p95 {:>7.2} ms  max {:>7.2} ms  ({found} found)",
        at(0.5),
        at(0.95),
        at(1.0)
    );
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().ok_or("name a library")?;
    let photos: u32 = arguments.next().map_or(Ok(1_000_000), |number| number.parse())?;
    let store = open(&address)?;
    let mut random = Random(99);
    let centers: Vec<Vec<f32>> =
        (0..200).map(|_| (0..DIM).map(|_| random.unit()).collect()).collect();
    if store.stats()?.assets == 0 {
        let begin = Instant::now();
        let mut made = 0.0;
        let mut next = 0;
        while next < photos {
            let end = (next + 1000).min(photos);
            let making = Instant::now();
            let changes: Vec<Change> = (next..end).map(|number| photo(number, &centers)).collect();
            made += making.elapsed().as_secs_f64();
            store.apply(changes)?;
            next = end;
            if next % 100_000 == 0 {
                let seconds = begin.elapsed().as_secs_f64() - made;
                println!("{next} photos, {:.0} a second", f64::from(next) / seconds);
            }
        }
        let seconds = begin.elapsed().as_secs_f64() - made;
        println!(
            "insert: {photos} photos in {seconds:.1} s, {:.0} a second",
            f64::from(photos) / seconds
        );
    }
    let stats = store.stats()?;
    println!(
        "database: {} bytes, {:.0} a photo",
        stats.bytes,
        stats.bytes as f64 / stats.assets as f64
    );
    let find =
        |query: &Query| -> Result<usize, Box<dyn Error>> { Ok(store.find(query)?.items.len()) };
    let text = |text: String| Query { text, ..Query::default() };
    let mut random = Random(4711);
    measure("search: one word", 200, |_| find(&text((*random.pick(&TAGS)).into())))?;
    measure("search: two words", 200, |_| {
        find(&text(format!("{} {}", random.pick(&TAGS), random.pick(&PLACES))))
    })?;
    measure("search: three words, rare", 200, |_| {
        find(&text(format!(
            "\"{}\" \"{}\" {}",
            random.pick(&SUBJECTS),
            random.pick(&PLACES),
            random.pick(&TAGS)
        )))
    })?;
    measure("search: a name", 200, |_| {
        find(&text(format!("{:07}", random.next() as u32 % photos)))
    })?;
    measure("search: as somebody types", 200, |_| {
        let word = *random.pick(&TAGS);
        let length = 1 + random.next() as usize % word.len();
        find(&Query { text: word[..length].into(), unfinished: true, ..Query::default() })
    })?;
    measure("search: word, colour, mood", 200, |_| {
        find(&text(format!(
            "{} color:{} mood:{}",
            random.pick(&TAGS),
            random.pick(&COLORS),
            random.pick(&MOODS)
        )))
    })?;
    measure("search: word, year", 200, |_| {
        let year = 2006 + random.next() % 15;
        find(&text(format!("{} after:{year} before:{}", random.pick(&TAGS), year + 1)))
    })?;
    measure("search: alternatives, not", 100, |_| {
        find(&text(format!(
            "{} OR {} -{}",
            random.pick(&TAGS),
            random.pick(&TAGS),
            random.pick(&TAGS)
        )))
    })?;
    measure("gallery: pages of 200", 100, {
        let mut query = Query { limit: 200, ..Query::default() };
        let store = &store;
        move |_| {
            let page = store.find(&query)?;
            query.cursor = page.next;
            Ok(page.items.len())
        }
    })?;
    measure("gallery: filters", 100, |_| {
        find(&Query {
            limit: 200,
            ..text(format!("color:{} tag:{}", random.pick(&COLORS), random.pick(&TAGS)))
        })
    })?;
    measure("gallery: least sure first", 50, |_| {
        find(&Query { limit: 200, sort: Some(Sort::Confidence), ..Query::default() })
    })?;
    measure("facets of all", 20, |_| Ok(store.facets(&Query::default())?.len()))?;
    measure("facets of a word", 20, |_| {
        Ok(store.facets(&text((*random.pick(&TAGS)).into()))?.len())
    })?;
    let begin = Instant::now();
    let similar =
        |number: u32| Similar { probe: Probe::Asset(hash(number)), limit: 50, min_score: -1.0 };
    store.similar(&similar(0))?;
    println!("similar: first call, packs the features: {:.2} s", begin.elapsed().as_secs_f64());
    measure("similar", 200, |_| Ok(store.similar(&similar(random.next() as u32 % photos))?.len()))?;
    measure("read one photo", 500, |_| {
        Ok(usize::from(store.asset(&hash(random.next() as u32 % photos))?.is_some()))
    })?;
    measure("one change, durable", 200, |number| {
        Ok(store.apply(vec![photo(photos + number as u32, &centers)])?.len())
    })?;
    let begin = Instant::now();
    println!(
        "near duplicates, 5 bits: {} groups in {:.1} s",
        store.near_duplicates(5)?.len(),
        begin.elapsed().as_secs_f64()
    );
    let begin = Instant::now();
    let report = store.check()?;
    println!("check: {} problems in {:.1} s", report.problems.len(), begin.elapsed().as_secs_f64());
    Ok(())
}
