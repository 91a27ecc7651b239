use super::*;
use crate::captioner::TokenSequence;
use crate::engine::FinishReason;
use proptest::prelude::*;

fn alt(text: &str) -> String {
    TextStyle::alt_text().apply(text, None)
}

#[test]
fn introductions_are_removed() {
    for (text, expected) in [
        ("a picture of a cat", "a cat"),
        ("An image of two dogs", "two dogs"),
        ("this is a photo of a picture of the moon", "the moon"),
        ("the photograph shows a bridge", "a bridge"),
        ("there is an image that shows a boat", "a boat"),
        ("photos of cakes", "cakes"),
        ("a picture frame on a wall", "a picture frame on a wall"),
        ("a black and white photo of a man", "a black and white photo of a man"),
        ("a man taking a picture of a dog", "a man taking a picture of a dog"),
        ("there is a cat", "there is a cat"),
        ("a picture of", ""),
        ("an image of the", ""),
        ("  ", ""),
    ] {
        assert_eq!(alt(text), expected, "{text}");
    }
}

#[test]
fn direct_repetitions_are_removed() {
    for (text, expected) in [
        ("a cat cat sitting", "a cat sitting"),
        ("a man and a man and a man in a hat", "a man and a man in a hat"),
        ("a red, red, Red ball", "a Red ball"),
        ("on the left on the left on the left", "on the left"),
        ("a dog and a cat and a dog", "a dog and a cat and a dog"),
        ("no no no no", "no"),
    ] {
        assert_eq!(alt(text), expected, "{text}");
    }
    assert!(repeats_itself("a cat cat") && repeats_itself("a red hat on a red hat on it"));
    assert!(!repeats_itself("a cat and a cat") && !repeats_itself(""));
}

#[test]
fn a_shortened_text_does_not_end_with_a_dangling_word() {
    let style = TextStyle { max_chars: Some(20), ..TextStyle::alt_text() };
    assert_eq!(style.apply("a dog on the sofa in", None), "a dog on the sofa in", "20 characters");
    assert_eq!(style.apply("a dog on the sofa in a room", None), "a dog on the sofa");
    assert_eq!(style.apply("äöü äöü1 äöü2 äöü3 äö", None), "äöü äöü1 äöü2 äöü3", "not bytes");
    assert_eq!(style.apply(&"x".repeat(30), None), "x".repeat(20));
    let stop = TextStyle { full_stop: true, ..style };
    assert_eq!(stop.apply("a dog on the sofa ok", None), "a dog on the sofa.");
    let long = (0..60).map(|n| n.to_string()).collect::<Vec<_>>().join(" ");
    let said = alt(&long);
    assert!((120..=125).contains(&said.len()) && long.starts_with(&said), "{said}");
}

#[test]
fn capital_letter_and_full_stop_are_optional() {
    assert_eq!(alt("a cat ."), "a cat");
    let both = TextStyle { capital: true, full_stop: true, ..TextStyle::alt_text() };
    assert_eq!(both.apply("élan and a cat", None), "Élan and a cat.");
    assert_eq!(both.apply("a cat!", None), "A cat!");
    assert_eq!(both.apply("a photo of", None), "");
    assert_eq!(both.so_far("a cat"), "A cat");
    let plain = TextStyle::default();
    assert_eq!(plain.apply("a photo of a cat .", None), "a photo of a cat .");
}

#[test]
fn empty_texts_become_the_fallback() {
    let choice = |text: &str| Choice {
        text: text.into(),
        confidence: 0.5,
        tokens: 3,
        finish_reason: FinishReason::Stop,
        matching: None,
        sequence: TokenSequence::default(),
    };
    let texts = |choices: &[Choice]| -> Vec<String> {
        choices.iter().map(|choice| choice.text.clone()).collect()
    };
    let alt = TextStyle::alt_text();
    let (some, fallback) = styled(&[choice("a photo of"), choice("a dog")], alt, &colors(), "none");
    assert_eq!((texts(&some), fallback), (vec!["a dog".to_owned()], None));
    let (none, fallback) = styled(&[choice("a photo of"), choice("")], alt, &colors(), "none");
    assert_eq!(texts(&none), ["none"]);
    assert!(fallback.unwrap().fallback);
    let (same, fallback) = styled(&[choice("")], TextStyle::default(), &colors(), "none");
    assert_eq!((texts(&same), fallback), (vec![String::new()], None));
}

/// Of a brown and green photo.
fn colors() -> Colors {
    let color = |hex: &str, name: &str, rgb, fraction| cutline_image::DominantColor {
        hex: hex.into(),
        rgb,
        name: name.into(),
        fraction,
    };
    let colors = vec![
        color("#8b4513", "saddlebrown", [139, 69, 19], 0.5),
        color("#556b2f", "darkolivegreen", [85, 107, 47], 0.4),
        color("#ffffff", "white", [255, 255, 255], 0.1),
    ];
    let mood = cutline_image::Mood::of(&colors);
    Colors { colors, mood }
}

fn in_style(style: Style, text: &str) -> String {
    TextStyle { style, ..TextStyle::default() }.apply(text, Some(&colors()))
}

#[test]
fn titles_are_written_like_headlines() {
    for (text, expected) in [
        ("a cat sitting on top of a table", "Cat Sitting on Top of a Table"),
        ("there is a picture of the eiffel tower", "Eiffel Tower"),
        ("two dogs playing with", "Two Dogs Playing With"),
        ("a NASA rocket, on a pad.", "NASA Rocket, on a Pad"),
        ("a", ""),
        ("ßa dog", "SSa Dog"),
    ] {
        assert_eq!(in_style(Style::Title, text), expected, "{text}");
    }
    let long =
        in_style(Style::Title, &"word ".repeat(2).repeat(40).replace("word word", "one two"));
    assert!(long.chars().count() <= 60, "{long}");
}

#[test]
fn keywords_name_things() {
    for (text, expected) in [
        ("a white cat sitting on a couch next to a cat", "cat, couch"),
        ("a group of people standing on a beach", "people, beach"),
        ("a red and white", ""),
        ("", ""),
    ] {
        assert_eq!(in_style(Style::Keywords, text), expected, "{text}");
    }
    let short = TextStyle { style: Style::Keywords, max_chars: Some(21), ..TextStyle::default() };
    assert_eq!(short.apply("dogs elephants boat umbrella", None), "dogs, elephants, boat");
}

#[test]
fn engaging_texts_add_only_light_and_colours() {
    for (text, expected) in [
        (
            "a picture of a dog running in the grass",
            "A dog running in the grass. Colour turned all the way up, in warm browns and greens.",
        ),
        ("of the", ""),
    ] {
        assert_eq!(in_style(Style::Engaging, text), expected, "{text}");
    }
    // A mark at the end stays.
    assert!(in_style(Style::Engaging, "a train!").starts_with("A train! "));
    let emoji = TextStyle { style: Style::Engaging, emoji: true, ..TextStyle::default() };
    let said = emoji.apply("two dogs on a beach", Some(&colors()));
    assert!(said.ends_with(" 🐶🎉"), "{said}");
    assert_eq!(emoji.apply("two dogs on a beach", None), "Two dogs on a beach. 🐶");
    assert_eq!(emoji.so_far("two dogs on"), "Two dogs on");
    let short = TextStyle { max_chars: Some(20), ..emoji };
    assert_eq!(short.apply("two dogs on a beach", Some(&colors())), "Two dogs on a beach.");
    let tight = TextStyle { max_chars: Some(50), ..emoji };
    let said = tight.apply("two dogs on a beach", Some(&colors()));
    assert!(!said.contains("browns") && said.chars().count() <= 50, "{said}");
}

#[test]
fn every_style_has_a_name() {
    for style in ["caption", "alt_text", "engaging", "title", "keywords"] {
        assert_eq!(Style::named(style).unwrap().as_str(), style);
        assert_eq!(serde_json::to_value(Style::named(style)).unwrap(), style);
    }
    assert_eq!(Style::named("poem"), None);
}

/// Words of captions, odd ones among them.
fn odd_caption() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        Just("a".to_owned()),
        Just("picture".to_owned()),
        Just("of".to_owned()),
        Just("DOGS,".to_owned()),
        Just("ŉß".to_owned()),
        Just("\u{0}".to_owned()),
        Just("🐶👨\u{200d}👩".to_owned()),
        Just(".".to_owned()),
        "[a-z]{1,40}",
        "\\PC{0,12}",
    ];
    proptest::collection::vec(word, 0..30).prop_map(|words| words.join(" "))
}

proptest! {
    #[test]
    fn styles_are_bounded_and_always_the_same(
        text in odd_caption(),
        most in 20_usize..300,
        emoji: bool,
    ) {
        for style in [Style::AltText, Style::Engaging, Style::Title, Style::Keywords] {
            let style = TextStyle { style, max_chars: Some(most), emoji, ..TextStyle::default() };
            let (one, two) = (style.apply(&text, Some(&colors())), style.apply(&text, Some(&colors())));
            prop_assert_eq!(&one, &two);
            prop_assert!(one.chars().count() <= most, "{:?}", one);
            prop_assert!(style.so_far(&text).chars().count() <= most);
            prop_assert_eq!(one.trim(), one.as_str());
            // The text so far is what the whole begins with, if it was the whole caption.
            let so_far = style.so_far(&text);
            prop_assert!(one.starts_with(&so_far), "{:?} {:?}", one, so_far);
        }
    }

    #[test]
    fn keywords_are_words_of_the_caption(text in odd_caption()) {
        let lower = text.to_lowercase();
        let keywords = in_style(Style::Keywords, &text);
        let all: Vec<&str> = keywords.split(", ").filter(|word| !word.is_empty()).collect();
        for (at, word) in all.iter().enumerate() {
            prop_assert!(lower.contains(word) && !all[..at].contains(word), "{}", word);
        }
    }
}
