use cutline_error::ErrorKind;
use proptest::prelude::*;

use super::*;

fn names(vocabulary: &Vocabulary) -> Vec<&str> {
    vocabulary.tags().map(|(_, tag)| tag.name()).collect()
}

#[test]
fn json_and_lines_mean_the_same() {
    let json = r#"{"name": "mine", "categories": [
        {"name": "animals", "tags": ["dog", {"name": "cat", "synonyms": ["kitten", "tom cat"]}]},
        {"name": "weather", "allowed": ["rain"], "k": 1, "threshold": 0.25,
         "template": "a {tag} day"}]}"#;
    let vocabulary = Vocabulary::parse(json.as_bytes()).unwrap();
    assert_eq!((vocabulary.name(), vocabulary.len()), ("mine", 3));
    assert_eq!(names(&vocabulary), ["dog", "cat", "rain"]);
    let [animals, weather] = vocabulary.categories() else { panic!("two categories") };
    assert_eq!((animals.name(), animals.k(), animals.threshold()), ("animals", DEFAULT_K, None));
    assert_eq!(animals.template().text(), DEFAULT_TEMPLATE);
    assert_eq!((weather.k(), weather.threshold()), (1, Some(0.25)));
    assert_eq!(weather.template().prompt(), "a");
    assert_eq!(weather.tags().collect::<Vec<_>>(), [TagId(2)]);
    let cat = vocabulary.find("CAT").unwrap();
    assert_eq!(vocabulary.tag(cat).synonyms(), ["kitten", "tom cat"]);
    assert_eq!(vocabulary.category(cat).name(), "animals");

    let lines = "# mine\n[animals]\n dog \ncat: kitten,  tom   cat\n\n[weather]\r\nrain\n";
    let lines = Vocabulary::parse(lines.as_bytes()).unwrap();
    assert_eq!(names(&lines), names(&vocabulary));
    assert_eq!(lines.categories()[0], vocabulary.categories()[0]);
    let list = Vocabulary::parse(b" [\"dog\", {\"name\": \"cat\"}]").unwrap();
    assert_eq!((names(&list), list.categories()[0].name()), (vec!["dog", "cat"], "tags"));
    assert_eq!(Vocabulary::parse(b"dog\ncat").unwrap(), list);
}

#[test]
fn what_cannot_be_used_is_refused_with_the_reason() {
    let many = |count: usize| {
        let tags: Vec<String> = (0..count).map(|n| format!("\"tag{n}\"")).collect();
        format!("[{}]", tags.join(","))
    };
    let categories = |count: usize| {
        let all: Vec<String> =
            (0..count).map(|n| format!("{{\"name\": \"c{n}\", \"tags\": [\"t{n}\"]}}")).collect();
        format!("{{\"categories\": [{}]}}", all.join(","))
    };
    assert_eq!(Vocabulary::from_json(&many(MAX_NAMES)).unwrap().len(), MAX_NAMES);
    assert_eq!(
        Vocabulary::from_json(&categories(MAX_CATEGORIES)).unwrap().categories().len(),
        MAX_CATEGORIES
    );
    let one = |rest: &str| format!(r#"{{"categories": [{{"name": "c", "tags": ["t"], {rest}}}]}}"#);
    for (text, why) in [
        (String::new(), "no tags"),
        ("{}".into(), "categories"),
        ("[]".into(), "no tags"),
        ("{\"categories\": 7}".into(), "a list"),
        ("[\"a1\", 7]".into(), "a tag: its name"),
        ("[\"dog\", \"Dog\"]".into(), "given twice"),
        ("[\"dog\", \" \"]".into(), "no letters"),
        ("[\"dog\", \"?!\"]".into(), "no letters"),
        ("[{\"name\": \"dog\", \"synonym\": []}]".into(), "synonym"),
        ("dog: hound\ncat: hound".into(), "stands for two tags"),
        ("dog: dog".into(), "given twice"),
        ("[a]\ndog\n[b]\ndog".into(), "in \"a\" and in \"b\""),
        ("[a]\ndog\n[A]\ncat".into(), "two categories"),
        ("[a]\n[b]\ncat".into(), "has no tags"),
        ("[a\ncat".into(), "line 1"),
        ("cat\ndog: a1,,b1".into(), "line 2"),
        (": hound".into(), "line 1"),
        ("x".repeat(65), "64 bytes"),
        ("x".repeat(999), "64 bytes"),
        ("[\"a\\u0000b\"]".into(), "no one sees"),
        (many(MAX_NAMES + 1), "more than 4096"),
        (categories(MAX_CATEGORIES + 1), "64 categories"),
        (one("\"k\": 0"), "k of \"c\""),
        (one("\"k\": 51"), "k of \"c\""),
        (one("\"k\": -1"), "column"),
        (one("\"threshold\": 1.5"), "between 0 and 1"),
        (one("\"template\": \"a photo\""), "{tag} once"),
        (one("\"template\": \"{tag} {tag}\""), "{tag} once"),
        (one(&format!("\"template\": \"{} {{tag}}\"", "x".repeat(200))), "128 bytes"),
        ("{\"categories\": [".into(), "line 1 column"),
    ] {
        let error = Vocabulary::parse(text.as_bytes()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidParameter);
        assert_eq!(error.field(), Some(FIELD));
        assert!(error.detail().contains(why), "{text}: {error}");
        assert!(error.detail().len() < 500, "{error}");
    }
    let synonyms = format!("[{{\"name\": \"a\", \"synonyms\": {}}}, \"b\"]", many(MAX_NAMES - 1));
    let error = Vocabulary::from_json(&synonyms).unwrap_err();
    assert!(error.detail().contains("names, synonyms included"), "{error}");
    assert!(Vocabulary::parse(&vec![b' '; MAX_BYTES + 1]).is_err());
    assert!(Vocabulary::parse(&[0xFF, 0xFE]).is_err());
    assert!(Vocabulary::parse("\u{FEFF}dog".as_bytes()).is_ok());
}

#[test]
fn articles_are_not_read_twice() {
    let template = Template::new("a photo of a {tag}").unwrap();
    assert_eq!(template.prompt(), "a photo of a");
    for (name, read) in [("a cat", "cat"), ("the sea", "sea"), ("another", "another")] {
        assert_eq!(template.continuation(name), read);
    }
    let without = Template::new("A photo taken at {tag} in summer").unwrap();
    assert_eq!(
        (without.prompt(), without.continuation("the sea")),
        ("a photo taken at", "the sea")
    );
}

proptest! {
    #[test]
    fn no_bytes_can_end_it(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Vocabulary::parse(&bytes);
    }

    #[test]
    fn no_text_of_its_letters_can_end_it(text in "[\\[\\]{}\":,a-c\\n #]{0,60}") {
        if let Ok(vocabulary) = Vocabulary::parse(text.as_bytes()) {
            prop_assert!(!vocabulary.is_empty());
            let matcher = crate::Matcher::new(&vocabulary);
            let _ = matcher.find(&text);
        }
    }
}

#[test]
fn what_is_written_is_read_as_the_same() {
    for text in [
        "dog\ncat: kitten, tom cat",
        r#"{"name": "mine", "categories": [
            {"name": "a \"b\"", "tags": ["dog", {"name": "cat", "synonyms": ["kitten"]}], "k": 7},
            {"name": "weather", "tags": ["rain"], "threshold": 0.3, "template": "a {tag} day"}]}"#,
    ] {
        let vocabulary = Vocabulary::parse(text.as_bytes()).unwrap();
        let written = serde_json::to_string(&vocabulary).unwrap();
        assert_eq!(Vocabulary::from_json(&written).unwrap(), vocabulary, "{written}");
    }
    let reference = crate::Reference { name: "shop".into(), version: Some(2) };
    let kept = Vocabulary::parse(b"dog").unwrap().kept_as(&reference);
    assert_eq!((kept.name(), kept.len()), ("library:shop:2", 1));
}
