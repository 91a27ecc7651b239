//! Tags in captions: whole words, in singular or plural, the longest first, so that a "hot dog" is no dog.

use std::collections::HashMap;

use crate::vocabulary::{TagId, Vocabulary};

/// The most words of a name that are compared.
const MAX_WORDS: usize = 8;

/// A tag in a caption.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The tag.
    pub tag: TagId,
    /// The words of the caption that stand for it.
    pub words: String,
}

/// Finds the tags of a vocabulary in captions.
#[derive(Debug, Clone)]
pub struct Matcher {
    /// By every form of every name.
    phrases: HashMap<String, Vec<TagId>>,
    longest: usize,
}

impl Matcher {
    /// Knows all names of the vocabulary in all their forms.
    #[must_use]
    pub fn new(vocabulary: &Vocabulary) -> Self {
        let mut phrases: HashMap<String, Vec<TagId>> = HashMap::new();
        let mut longest = 0;
        for (id, tag) in vocabulary.tags() {
            for name in tag.names() {
                let words = words(name);
                let Some((last, first)) = words.split_last() else { continue };
                longest = longest.max(words.len().min(MAX_WORDS));
                for form in forms(last) {
                    let mut phrase = first.join(" ");
                    if !phrase.is_empty() {
                        phrase.push(' ');
                    }
                    phrase += &form;
                    let tags = phrases.entry(phrase).or_default();
                    if !tags.contains(&id) {
                        tags.push(id);
                    }
                }
            }
        }
        Self { phrases, longest }
    }

    /// The tags in a caption, each once, in the order in which they occur.
    #[must_use]
    pub fn find(&self, caption: &str) -> Vec<Found> {
        let words = words(caption);
        let mut found: Vec<Found> = Vec::new();
        let mut at = 0;
        while at < words.len() {
            let lengths = (1..=self.longest.min(words.len() - at)).rev();
            let phrases = lengths.map(|length| (length, words[at..at + length].join(" ")));
            let known =
                phrases.filter_map(|(n, words)| Some((n, self.phrases.get(&words)?, words))).next();
            let Some((length, tags, words)) = known else {
                at += 1;
                continue;
            };
            for &tag in tags {
                if !found.iter().any(|other| other.tag == tag) {
                    found.push(Found { tag, words: words.clone() });
                }
            }
            at += length;
        }
        found
    }
}

/// How often the rarest word of a name was seen; `None` if `seen` knows nothing. Singular and plural are one
/// word.
pub fn rarest(name: &str, seen: impl Fn(&str) -> Option<u64>) -> Option<u64> {
    let most = |word: String| forms(&word).iter().map(|form| seen(form)).max().flatten();
    words(name).into_iter().map(most).min().flatten()
}

/// The words of a text in lower case, without signs.
pub(crate) fn words(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !c.is_alphanumeric() && c != '\'');
    words
        .map(|word| word.trim_matches('\''))
        .filter(|word| !word.is_empty())
        .map(str::to_lowercase)
        .collect()
}

/// Words whose plural follows no rule.
const IRREGULAR: [(&str, &str); 24] = [
    ("person", "people"),
    ("man", "men"),
    ("woman", "women"),
    ("fireman", "firemen"),
    ("policeman", "policemen"),
    ("child", "children"),
    ("foot", "feet"),
    ("tooth", "teeth"),
    ("goose", "geese"),
    ("mouse", "mice"),
    ("ox", "oxen"),
    ("knife", "knives"),
    ("wife", "wives"),
    ("life", "lives"),
    ("wolf", "wolves"),
    ("calf", "calves"),
    ("half", "halves"),
    ("leaf", "leaves"),
    ("loaf", "loaves"),
    ("shelf", "shelves"),
    ("scarf", "scarves"),
    ("elf", "elves"),
    ("thief", "thieves"),
    ("hoof", "hooves"),
];

/// A word in singular and plural, with forms that no one writes among them.
pub(crate) fn forms(word: &str) -> Vec<String> {
    let mut forms = vec![word.to_owned()];
    if word.chars().count() < 2 {
        return forms;
    }
    let mut add = |form: String| {
        if form.len() > 1 && !forms.contains(&form) {
            forms.push(form);
        }
    };
    if let Some((singular, plural)) = IRREGULAR.iter().find(|(s, p)| *s == word || *p == word) {
        add((*singular).to_owned());
        add((*plural).to_owned());
        return forms;
    }
    let vowel = |c: char| "aeiou".contains(c);
    let consonant_y =
        word.strip_suffix('y').filter(|stem| stem.chars().last().is_some_and(|c| !vowel(c)));
    if let Some(stem) = consonant_y {
        add(format!("{stem}ies"));
    } else if ["s", "x", "z", "ch", "sh"].iter().any(|end| word.ends_with(end)) {
        add(format!("{word}es"));
    } else {
        add(format!("{word}s"));
        if word.ends_with('o') {
            add(format!("{word}es"));
        }
    }
    // The name may be a plural itself.
    if let Some(stem) = word.strip_suffix("ies").filter(|stem| stem.len() > 1) {
        add(format!("{stem}y"));
        add(format!("{stem}ie"));
    } else if let Some(stem) = word.strip_suffix("es").filter(|stem| stem.len() > 2) {
        if ["s", "x", "z", "ch", "sh", "o"].iter().any(|end| stem.ends_with(end)) {
            add(stem.to_owned());
        }
        add(format!("{stem}e"));
    } else if let Some(stem) = word.strip_suffix('s').filter(|stem| stem.len() > 2)
        && !stem.ends_with(['s', 'u', 'i'])
    {
        add(stem.to_owned());
    } else if word == "skis" {
        add("ski".to_owned());
    }
    forms
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vocabulary(text: &str) -> Vocabulary {
        Vocabulary::parse(text.as_bytes()).unwrap()
    }

    fn found(vocabulary: &Vocabulary, caption: &str) -> Vec<String> {
        let matcher = Matcher::new(vocabulary);
        let found = matcher.find(caption);
        found.iter().map(|found| vocabulary.tag(found.tag).name().to_owned()).collect()
    }

    #[test]
    fn singular_and_plural_are_one() {
        for (name, written) in [
            ("dog", "dogs"),
            ("bus", "buses"),
            ("box", "boxes"),
            ("bench", "benches"),
            ("puppy", "puppies"),
            ("boy", "boys"),
            ("tomato", "tomatoes"),
            ("person", "people"),
            ("knife", "knives"),
            ("skis", "ski"),
            ("scissors", "scissors"),
            ("cookies", "cookie"),
            ("ladies", "lady"),
            ("donuts", "donut"),
            ("traffic light", "traffic lights"),
            ("glasses", "glass"),
            ("horses", "horse"),
        ] {
            let own = vocabulary(name);
            assert_eq!(found(&own, &format!("a photo of {written}, near")), [name], "{written}");
        }
        for (name, written) in [("bus", "bu"), ("glass", "glas"), ("cat", "catch"), ("a", "as")] {
            assert!(found(&vocabulary(name), written).is_empty(), "{name}: {written}");
        }
    }

    #[test]
    fn the_longest_name_counts_and_each_tag_once() {
        let both = vocabulary("dog: hound\nhot dog\nstreet\nstreet sign\nt-shirt");
        assert_eq!(found(&both, "a hot dog and a Hot Dog"), ["hot dog"]);
        assert_eq!(found(&both, "a dog, a hound; a hot day"), ["dog"]);
        assert_eq!(found(&both, "a street sign on a street"), ["street sign", "street"]);
        assert_eq!(found(&both, "a man in a t - shirt"), ["t-shirt"]);
        assert!(found(&both, "").is_empty());
        let words = Matcher::new(&both).find("two hounds");
        assert_eq!(words[0].words, "hounds");
    }

    #[test]
    fn a_name_is_as_rare_as_its_rarest_word() {
        let seen = |word: &str| match word {
            "hot" => Some(240),
            "dogs" => Some(2153),
            "dog" => Some(8974),
            _ => Some(0),
        };
        for (name, count) in [("dog", 8974), ("hot dogs", 240), ("hot tub", 0), ("Dogs", 8974)] {
            assert_eq!(rarest(name, seen), Some(count), "{name}");
        }
        assert_eq!(rarest("dog", |_| None), None);
    }
}
