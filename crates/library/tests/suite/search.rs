use std::collections::BTreeSet;
use std::sync::Arc;

use cutline_error::ErrorKind;
use cutline_library::{
    Attribute, Author, Change, Color, Features, Field, NameKind, NewAsset, Probe, Query, Similar,
    Sort, Store, TextAction, duplicates,
};

use super::*;

/// Six photos.
fn animals(store: &dyn Store) {
    let color = |name: &str| Color { hex: "#000000".into(), name: name.into(), percent: 50 };
    let texts = [
        ("a dog on a beach", "A dog.", "dog\nGolden Retriever", "red", "warm"),
        ("two dogs and a cat", "", "dog\ncat", "blue", "calm"),
        ("a cat on a sofa", "A cat sleeps.", "cat", "red", "calm"),
        ("a café at the beach", "", "", "blue", "warm"),
        ("people at a long table", "People eat.", "food", "green", "calm"),
        ("Don't \"quote\" me: 100% (really) AND NOT", "", "", "green", "calm"),
    ];
    for (number, (caption, alt, tags, name, mood)) in (0..).zip(texts) {
        let mut asset = NewAsset::new(photo(number), machine("1"));
        asset.text(Field::Caption, caption, Some(0.1 + 0.1 * number as f32));
        asset.text(Field::AltText, alt, None);
        asset.text(Field::Tags, tags, None);
        asset.name(NameKind::Path, format!("Holiday/IMG_000{number}.jpg"));
        asset.colors = vec![color(name)];
        asset.mood = Some(mood.into());
        asset.taken_at = Some(i64::from(number) * 86_400_000);
        add(store, asset);
    }
}

pub(crate) fn words_phrases_and_columns(store: &dyn Store) {
    animals(store);
    for (text, expected) in [
        ("dog", vec![0, 1]),
        ("DOGS", vec![0, 1]),
        ("dog beach", vec![0]),
        ("\"a dog\"", vec![0]),
        ("\"dog beach\"", vec![]),
        ("cat OR beach", vec![0, 1, 2, 3]),
        ("cat OR table sofa OR people", vec![2, 4]),
        ("beach -dog", vec![3]),
        ("-dog", vec![2, 3, 4, 5]),
        ("cafe", vec![3]),
        ("caf*", vec![3]),
        ("alt:cat", vec![2]),
        ("caption:people", vec![4]),
        ("caption:food", vec![]),
        ("food", vec![4]),
        ("name:img", vec![0, 1, 2, 3, 4, 5]),
        ("0003", vec![3]),
        ("holiday sofa", vec![2]),
        ("zebra", vec![]),
        ("don't", vec![5]),
        ("100%", vec![5]),
        ("", vec![0, 1, 2, 3, 4, 5]),
        ("!!!", vec![0, 1, 2, 3, 4, 5]),
    ] {
        assert_eq!(found(store, text, 6), expected, "{text}");
    }
    let query = Query { text: "be".into(), unfinished: true, ..Query::default() };
    assert_eq!(store.find(&query).unwrap().items.len(), 2, "as somebody types");
    assert_eq!(found(store, "be", 6), [0; 0]);
    // A better match comes first.
    let query = Query { text: "dog OR sofa OR sleep".into(), ..Query::default() };
    let page = store.find(&query).unwrap();
    assert_eq!((page.sort, page.items[0].asset.hash), (Sort::Relevance, photo(2)));
    // Words follow edits.
    edit(store, 0, write("a horse"));
    assert_eq!(found(store, "horse", 6), [0]);
    assert_eq!(found(store, "caption:dog", 6), [1]);
    sound(store);
}

pub(crate) fn filters(store: &dyn Store) {
    animals(store);
    edit(store, 1, write("two friends and a cat"));
    edit(store, 3, TextAction::Clear);
    caption(store, 1, "dogs");
    for (text, expected) in [
        ("tag:dog", vec![0, 1]),
        ("tag:\"golden retriever\"", vec![0]),
        ("tag:retriever", vec![]),
        ("color:red", vec![0, 2]),
        ("colour:RED mood:calm", vec![2]),
        ("-color:red -mood:calm", vec![3]),
        ("color:pink", vec![]),
        ("-color:pink mood:warm", vec![0, 3]),
        ("missing:alt", vec![1, 3, 5]),
        ("missing:caption", vec![3]),
        ("missing:tags missing:alt_text", vec![3, 5]),
        ("is:reviewed", vec![1, 3]),
        ("is:unreviewed color:blue", vec![]),
        ("is:cleared", vec![3]),
        ("is:suggested", vec![1]),
        ("model:cutline-small", vec![0, 1, 2, 4, 5]),
        ("model:other", vec![]),
        ("after:1970-01-03 before:1970-01-05", vec![2, 3]),
        ("confidence:<0.35", vec![0, 2]),
        ("confidence:>0.35", vec![4, 5]),
        ("cat confidence:>0.25", vec![2]),
        ("cat color:blue", vec![1]),
        ("-cat tag:dog", vec![0]),
    ] {
        assert_eq!(found(store, text, 6), expected, "{text}");
    }
    let query = Query {
        text: "cat".into(),
        filters: vec![
            Attribute::new("mood", "calm", false).unwrap().unwrap(),
            Attribute::After(2 * 86_400_000),
        ],
        count: true,
        ..Query::default()
    };
    let page = store.find(&query).unwrap();
    assert_eq!((page.items.len(), page.total.unwrap().count), (1, 1));
    sound(store);
}

pub(crate) fn syntax_is_never_a_failure(store: &dyn Store) {
    animals(store);
    for text in [
        "cat-dog",
        "(cat",
        "cat)",
        "cat AND",
        "NOT cat",
        "NEAR(a b)",
        "a^b",
        "a+b",
        "{caption}: x",
        "*",
        "'; DROP TABLE assets; --",
        "a:b:c",
        "caption : dog",
        "\u{0}dog",
        "dog\u{0}",
        "%",
        "_",
        "\\",
        "🐕",
        "dog 🐕",
        "é*",
        "**",
        "-",
        "--dog",
        "- dog",
        "\u{300}",
        "ʰ",
        "a\u{301}\u{301}",
        "*dog*",
        "\u{e000}",
    ] {
        let query = Query { text: text.into(), unfinished: true, ..Query::default() };
        if let Err(error) = store.find(&query) {
            assert_eq!(error.kind(), ErrorKind::InvalidParameter, "{text}: {error}");
        }
        if let Err(error) = store.facets(&query) {
            assert_eq!(error.kind(), ErrorKind::InvalidParameter, "{text}: {error}");
        }
    }
    for query in [
        Query { text: "\"dog".into(), ..Query::default() },
        Query { cursor: Some("1".into()), ..Query::default() },
        Query { cursor: Some("added_zz_1_x".into()), ..Query::default() },
        Query { limit: 201, ..Query::default() },
    ] {
        let error = store.find(&query).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidParameter, "{query:?}");
    }
}

pub(crate) fn pages_have_every_photo_once(store: &dyn Store) {
    for number in 0..57 {
        let mut asset = NewAsset::new(photo(number), machine("1"));
        asset.text(
            Field::Caption,
            format!("dog {}", "very ".repeat(number as usize % 5)),
            Some(0.5),
        );
        // Many photos of the same moment.
        asset.taken_at = Some(i64::from(number / 10));
        asset.mood = Some(["calm", "warm"][number as usize % 2].into());
        add(store, asset);
    }
    for text in ["", "dog", "mood:calm", "dog mood:warm", "-cat"] {
        for sort in [
            None,
            Some(Sort::Relevance),
            Some(Sort::Added),
            Some(Sort::Taken),
            Some(Sort::Confidence),
        ] {
            let mut query =
                Query { text: text.into(), sort, limit: 7, count: true, ..Query::default() };
            let mut seen = Vec::new();
            loop {
                let page = store.find(&query).unwrap();
                assert!(page.items.len() <= 7);
                seen.extend(page.items.iter().map(|found| found.asset.hash));
                let expected = if text.contains("mood:calm") {
                    29
                } else if text.contains("warm") {
                    28
                } else {
                    57
                };
                assert_eq!(page.total.unwrap().count, expected, "{text} {sort:?}");
                match page.next {
                    Some(next) => query.cursor = Some(next),
                    None => {
                        assert_eq!(seen.len() as u64, expected, "{text} {sort:?}");
                        break;
                    }
                }
            }
            assert_eq!(seen.iter().collect::<BTreeSet<_>>().len(), seen.len(), "{text} {sort:?}");
            if sort == Some(Sort::Added) && text.is_empty() {
                assert_eq!(seen[0], photo(56));
            }
        }
    }
    let first = store.find(&Query { limit: 7, ..Query::default() }).unwrap();
    let other = Query { text: "dog".into(), cursor: first.next, ..Query::default() };
    let error = store.find(&other).unwrap_err();
    assert!(error.detail().contains("does not belong to this search"), "{error}");
}

pub(crate) fn words_are_highlighted(store: &dyn Store) {
    animals(store);
    let page = |text: &str| store.find(&Query { text: text.into(), ..Query::default() }).unwrap();
    let sofa = page("sofa");
    assert_eq!(sofa.items[0].highlights, ["a cat on a \u{e000}sofa\u{e001}"]);
    let dogs = page("dog color:blue");
    assert_eq!(
        dogs.items[0].highlights,
        ["two \u{e000}dogs\u{e001} and a cat", "cat\n\u{e000}dog\u{e001}"]
    );
    assert!(page("").items[0].highlights.is_empty());
}

pub(crate) fn facets_count(store: &dyn Store) {
    animals(store);
    let facet = |text: &str, attribute: &str| {
        let query = Query { text: text.into(), ..Query::default() };
        let facets = store.facets(&query).unwrap();
        let facet = facets.into_iter().find(|facet| facet.attribute == attribute).unwrap();
        assert!(facet.exact);
        let values = facet.values.into_iter();
        values.map(|value| format!("{} {}", value.value, value.count)).collect::<Vec<_>>()
    };
    assert_eq!(facet("", "color"), ["blue 2", "green 2", "red 2"]);
    assert_eq!(facet("", "mood"), ["calm 4", "warm 2"]);
    assert_eq!(facet("cat", "color"), ["blue 1", "red 1"]);
    assert_eq!(facet("cat", "tag"), ["cat 2", "dog 1"]);
    assert_eq!(facet("color:pink", "mood"), [""; 0]);
    store.apply(vec![Change::Purge(photo(4))]).unwrap();
    assert_eq!(facet("", "tag"), ["cat 2", "dog 2", "golden retriever 1"]);
}

pub(crate) fn very_many_matches_come_newest_first(store: &dyn Store) {
    let assets = (0..1005).map(|number| {
        let mut asset = NewAsset::new(photo(number), machine("1"));
        asset.text(Field::Caption, "a dog", None);
        Change::Asset(Box::new(asset))
    });
    store.apply(assets.collect()).unwrap();
    let mut query = Query { text: "dog".into(), limit: 200, ..Query::default() };
    let mut seen = 0;
    loop {
        let page = store.find(&query).unwrap();
        assert_eq!(page.sort, Sort::Added);
        if seen == 0 {
            assert_eq!(page.items[0].asset.hash, photo(1004));
            assert_eq!(page.items[0].highlights, ["a \u{e000}dog\u{e001}"]);
        }
        seen += page.items.len();
        match page.next {
            Some(next) => query.cursor = Some(next),
            None => break,
        }
    }
    assert_eq!(seen, 1005);
}

pub(crate) fn near_duplicates_are_grouped(store: &dyn Store) {
    for (number, dhash) in (0..).zip([
        0_u64,
        u64::MAX,
        0b11,
        0b111_1111,
        u64::MAX - 1,
        1 << 40 | 1 << 20 | 0b111_0000_0000,
    ]) {
        let mut asset = NewAsset::new(photo(number), Author::import("test"));
        asset.dhash = Some(dhash);
        (asset.width, asset.height) = (Some(100 + number), Some(100));
        asset.name(NameKind::Path, format!("{number}.jpg"));
        add(store, asset);
    }
    let two = store.near_duplicates(2).unwrap();
    assert_eq!(*two, [vec![photo(0), photo(2)], vec![photo(1), photo(4)]]);
    assert!(Arc::ptr_eq(&two, &store.near_duplicates(2).unwrap()), "they are found once");
    let page = duplicates::find(store, 2, 1, 5).unwrap();
    assert_eq!((page.groups.len(), page.total), (1, 2));
    let names: Vec<&str> = page.groups[0].iter().map(|photo| photo.name.as_str()).collect();
    assert_eq!(names, ["4.jpg", "1.jpg"], "the largest first");
    let five = store.near_duplicates(5).unwrap();
    assert_eq!(five[0], [photo(0), photo(2), photo(3), photo(5)]);
    assert!(store.near_duplicates(8).is_err());

    // Whatever changes a hash is seen at once.
    store.apply(vec![Change::Purge(photo(4))]).unwrap();
    assert_eq!(*store.near_duplicates(2).unwrap(), [vec![photo(0), photo(2)]]);
    let mut asset = NewAsset::new(photo(1), Author::import("test"));
    asset.dhash = Some(0b1);
    add(store, asset);
    assert_eq!(*store.near_duplicates(2).unwrap(), [vec![photo(0), photo(1), photo(2)]]);
    let mut asset = NewAsset::new(photo(9), Author::import("test"));
    asset.dhash = Some(1 << 40);
    add(store, asset);
    assert_eq!(store.near_duplicates(2).unwrap()[0].len(), 4);
}

pub(crate) fn similar_photos_are_those_of_comparing_all(store: &dyn Store) {
    let vector = |number: u32| -> Vec<f32> {
        let hash = photo(number).0;
        (0..24).map(|i| f32::from(hash[i]) - 127.5).collect()
    };
    for number in 0..300 {
        let mut asset = NewAsset::new(photo(number), machine("1"));
        asset.features = Some(Features { space: "m".into(), vector: vector(number) });
        add(store, asset);
        if number == 100 {
            let near = Similar { probe: Probe::Asset(photo(1)), limit: 3, min_score: -1.0 };
            assert_eq!(store.similar(&near).unwrap().len(), 3, "the rest is added later");
        }
    }
    let cosine = |a: &[f32], b: &[f32]| {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    };
    for probe in [0, 17, 299] {
        let similar = Similar { probe: Probe::Asset(photo(probe)), limit: 10, min_score: -1.0 };
        let found = store.similar(&similar).unwrap();
        let mut scores: Vec<f32> = (0..300)
            .filter(|number| *number != probe)
            .map(|number| cosine(&vector(probe), &vector(number)))
            .collect();
        scores.sort_by(|a, b| b.total_cmp(a));
        assert_eq!(found.len(), 10);
        for (found, expected) in found.iter().zip(&scores) {
            assert!((found.score - expected).abs() < 2e-3, "{found:?} {expected}");
        }
    }
    let features = Features { space: "m".into(), vector: vector(5) };
    let similar = Similar { probe: Probe::Features(features), limit: 1, min_score: 0.99 };
    assert!(store.similar(&similar).unwrap()[0].score > 0.99);
    let other = Features { space: "other model".into(), vector: vector(5) };
    let similar = Similar { probe: Probe::Features(other.clone()), limit: 1, min_score: 0.0 };
    assert_eq!(store.similar(&similar).unwrap_err().kind(), ErrorKind::NotFound);
    caption(store, 400, "a photo without features");
    let similar = Similar { probe: Probe::Asset(photo(400)), limit: 1, min_score: 0.0 };
    assert_eq!(store.similar(&similar).unwrap_err().kind(), ErrorKind::NotFound);
    // Other features replace those of a photo.
    let mut asset = NewAsset::new(photo(0), machine("1"));
    asset.features = Some(Features { space: "m".into(), vector: vector(17) });
    add(store, asset.clone());
    let similar = Similar { probe: Probe::Asset(photo(17)), limit: 1, min_score: 0.0 };
    assert_eq!(store.similar(&similar).unwrap()[0].hash, photo(0));
    asset.features = Some(Features { space: "m".into(), vector: vec![1.0; 3] });
    assert!(store.apply(vec![Change::Asset(Box::new(asset))]).is_err(), "another length");
    sound(store);
}
