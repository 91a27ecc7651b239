//! English words without their endings: Porter's algorithm of 1980, with the details of SQLite's FTS5, so
//! that both stores find the same.

/// Suffixes with their replacements, the longer ones of the same ending first.
type Rules = &'static [(&'static str, &'static str)];

const STEP_2: Rules = &[
    ("ational", "ate"),
    ("tional", "tion"),
    ("enci", "ence"),
    ("anci", "ance"),
    ("izer", "ize"),
    ("logi", "log"),
    ("bli", "ble"),
    ("alli", "al"),
    ("entli", "ent"),
    ("eli", "e"),
    ("ousli", "ous"),
    ("ization", "ize"),
    ("ation", "ate"),
    ("ator", "ate"),
    ("alism", "al"),
    ("iveness", "ive"),
    ("fulness", "ful"),
    ("ousness", "ous"),
    ("aliti", "al"),
    ("iviti", "ive"),
    ("biliti", "ble"),
];
const STEP_3: Rules = &[
    ("icate", "ic"),
    ("ative", ""),
    ("alize", "al"),
    ("iciti", "ic"),
    ("ical", "ic"),
    ("ful", ""),
    ("ness", ""),
];
const STEP_4: &[&str] = &[
    "al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "ou",
    "ism", "ate", "iti", "ous", "ive", "ize",
];

/// Words of more bytes stay as they are.
const LONGEST: usize = 64;

/// Whether each letter is a consonant. A `y` is one unless a consonant stands before it.
fn consonants(word: &str) -> impl Iterator<Item = bool> + '_ {
    let mut before = false;
    word.bytes().map(move |letter| {
        before = !(matches!(letter, b'a' | b'e' | b'i' | b'o' | b'u') || letter == b'y' && before);
        before
    })
}

/// How often consonants follow vowels.
fn measure(word: &str) -> usize {
    let mut count = 0;
    let mut after_vowel = false;
    for consonant in consonants(word) {
        count += usize::from(consonant && after_vowel);
        after_vowel = !consonant;
    }
    count
}

fn has_vowel(word: &str) -> bool {
    consonants(word).any(|consonant| !consonant)
}

/// Whether it ends with a consonant, a vowel and a consonant other than w, x and y.
fn ends_short(word: &str) -> bool {
    let all: Vec<bool> = consonants(word).collect();
    all.ends_with(&[true, false, true]) && !word.ends_with(['w', 'x', 'y'])
}

/// Takes the ending of one rule, if `allowed` says so about what is left.
fn replace(word: &mut String, rules: Rules, allowed: impl Fn(&str) -> bool) {
    let found = rules.iter().filter(|(suffix, _)| rest(word, suffix).is_some());
    let Some((suffix, with)) = found.max_by_key(|(suffix, _)| suffix.len()) else { return };
    if let Some(stem) = rest(word, suffix).filter(|stem| allowed(stem)) {
        *word = format!("{stem}{with}");
    }
}

/// What is in front of `suffix`, if anything is.
fn rest<'a>(word: &'a str, suffix: &str) -> Option<&'a str> {
    word.strip_suffix(suffix).filter(|stem| !stem.is_empty())
}

/// The stem of a word in small letters.
pub(super) fn stem(word: &str) -> String {
    let mut word = word.to_owned();
    if word.len() <= 2 || word.len() >= LONGEST {
        return word;
    }
    plurals(&mut word);
    past(&mut word);
    if let Some(stem) = word.strip_suffix('y').filter(|stem| has_vowel(stem)) {
        word = format!("{stem}i");
    }
    replace(&mut word, STEP_2, |stem| measure(stem) > 0);
    replace(&mut word, STEP_3, |stem| measure(stem) > 0);
    let found = STEP_4.iter().filter(|suffix| rest(&word, suffix).is_some());
    if let Some(suffix) = found.max_by_key(|suffix| suffix.len()) {
        let stem = &word[..word.len() - suffix.len()];
        if measure(stem) > 1 && (*suffix != "ion" || stem.ends_with(['s', 't'])) {
            word.truncate(stem.len());
        }
    }
    if let Some(stem) = word.strip_suffix('e')
        && (measure(stem) > 1 || measure(stem) == 1 && !ends_short(stem))
    {
        word.pop();
    }
    if word.ends_with("ll") && measure(&word[..word.len() - 1]) > 1 {
        word.pop();
    }
    word
}

fn plurals(word: &mut String) {
    for (suffix, with) in [("sses", "ss"), ("ies", "i"), ("ss", "ss"), ("s", "")] {
        if let Some(stem) = rest(word, suffix) {
            *word = format!("{stem}{with}");
            return;
        }
    }
}

fn past(word: &mut String) {
    if let Some(stem) = rest(word, "eed") {
        if measure(stem) > 0 {
            word.pop();
        }
        return;
    }
    let stem = rest(word, "ed").or_else(|| rest(word, "ing")).filter(|stem| has_vowel(stem));
    let Some(stem) = stem.map(str::to_owned) else { return };
    *word = stem;
    if ["at", "bl", "iz"].iter().any(|end| word.ends_with(end)) {
        word.push('e');
        return;
    }
    let last = word.chars().last().filter(char::is_ascii);
    match last {
        Some(last)
            if !matches!(last, 'a' | 'e' | 'i' | 'o' | 'u' | 'l' | 's' | 'z')
                && word.ends_with([last].repeat(2).iter().collect::<String>().as_str()) =>
        {
            word.pop();
        }
        _ if measure(word) == 1 && ends_short(word) => word.push('e'),
        _ => {}
    }
}
