use cutline_error::ErrorKind;
use cutline_library::{
    Action, Author, Change, Color, Features, Field, Name, NameKind, NewAsset, NewText, Probe,
    Similar, Store, TextAction, Thumbnail, Written,
};

use super::*;

pub(crate) fn a_photo_has_all_its_names_and_facts(store: &dyn Store) {
    let mut asset = NewAsset::new(photo(1), machine("1"));
    asset.names.push(Name {
        size: Some(5),
        modified_at: Some(7),
        ..Name::new(NameKind::Path, "a/b.jpg")
    });
    asset.format = Some("jpeg".into());
    asset.width = Some(640);
    asset.colors = vec![Color { hex: "#d2b48c".into(), name: "tan".into(), percent: 40 }];
    asset.mood = Some("warm".into());
    add(store, asset.clone());
    let mut again = NewAsset::new(photo(1), machine("1"));
    again.name(NameKind::Url, "https://example.org/b.jpg");
    again.height = Some(480);
    again.thumbnail = Some(Thumbnail { media_type: "image/webp".into(), bytes: vec![1, 2] });
    add(store, again);
    let found = read(store, 1);
    assert_eq!(
        (found.width, found.height, found.format.as_deref()),
        (Some(640), Some(480), Some("jpeg"))
    );
    assert_eq!(found.colors, asset.colors);
    assert_eq!(found.names.len(), 2);
    assert!(found.has_thumbnail);
    assert_eq!(store.thumbnail(&photo(1)).unwrap().unwrap().bytes, [1, 2]);
    let named = store.named(NameKind::Path, "a/b.jpg").unwrap();
    assert_eq!((named[0].0, named[0].1.size, named[0].1.modified_at), (photo(1), Some(5), Some(7)));
    // What is known already changes no version.
    let version = found.version;
    add(store, asset);
    assert_eq!(read(store, 1).version, version);
    // The file has other content now.
    let mut other = NewAsset::new(photo(2), machine("1"));
    other.names.push(Name { seen_at: i64::MAX, ..Name::new(NameKind::Path, "a/b.jpg") });
    add(store, other);
    let named = store.named(NameKind::Path, "a/b.jpg").unwrap();
    assert_eq!(named.iter().map(|(hash, _)| *hash).collect::<Vec<_>>(), [photo(2), photo(1)]);
    sound(store);
}

pub(crate) fn a_machine_never_replaces_what_a_person_wrote(store: &dyn Store) {
    assert!(matches!(caption(store, 1, "a dog"), Written::Current(_)));
    assert!(matches!(caption(store, 1, "a brown dog"), Written::Current(_)));
    assert_eq!(caption(store, 1, "a brown dog"), Written::Unchanged);
    edit(store, 1, write("Rex"));
    assert!(matches!(caption(store, 1, "a cat"), Written::Suggested(_)));
    assert_eq!(shown(store, 1), ("Rex".into(), Some("a cat".into())));
    assert_eq!(caption(store, 1, "a cat"), Written::Unchanged, "it is suggested already");
    assert!(matches!(caption(store, 1, "a mouse"), Written::Suggested(_)));
    assert_eq!(shown(store, 1), ("Rex".into(), Some("a mouse".into())));
    sound(store);
}

pub(crate) fn a_deliberate_deletion_stays(store: &dyn Store) {
    caption(store, 1, "a dog");
    edit(store, 1, TextAction::Clear);
    assert_eq!(edit(store, 1, TextAction::Clear), Written::Unchanged);
    assert!(matches!(caption(store, 1, "a dog again"), Written::Suggested(_)));
    assert_eq!(shown(store, 1), (String::new(), Some("a dog again".into())));
    // Writing nothing is deleting, also of a text that nobody has written.
    let change = change(1, Field::AltText, write("  "));
    store.apply(vec![Change::Text(change)]).unwrap();
    let mut asset = NewAsset::new(photo(1), machine("1"));
    asset.text(Field::AltText, "A dog.", None);
    assert!(matches!(add(store, asset), Written::Suggested(_)));
    sound(store);
}

pub(crate) fn suggestions_are_accepted_or_rejected_for_good(store: &dyn Store) {
    caption(store, 1, "a dog");
    edit(store, 1, write("Rex"));
    caption(store, 1, "a cat");
    assert!(matches!(edit(store, 1, TextAction::Reject), Written::Rejected(_)));
    assert_eq!(shown(store, 1), ("Rex".into(), None));
    assert_eq!(caption(store, 1, "a cat"), Written::Unchanged, "it was rejected");
    caption(store, 1, "a big dog");
    edit(store, 1, TextAction::Accept);
    assert_eq!(shown(store, 1), ("a big dog".into(), None));
    let asset = read(store, 1);
    let text = asset.text(Field::Caption, "en").unwrap();
    assert_eq!((text.author.clone(), text.by.clone()), (machine("1"), Some(person())));
    assert!(text.reviewed);
    assert!(matches!(caption(store, 1, "a small dog"), Written::Suggested(_)));
    for action in [TextAction::Reject, TextAction::Reject, TextAction::Accept] {
        let result = try_edit(store, 1, action.clone());
        if let Err(error) = result {
            assert_eq!(error.kind(), ErrorKind::NotFound);
            assert!(error.detail().contains("no suggestion"));
        }
    }
    assert!(try_edit(store, 1, TextAction::Accept).is_err());
    // Without a suggestion, a text of a machine is confirmed.
    caption(store, 2, "a house");
    edit(store, 2, TextAction::Accept);
    assert!(read(store, 2).text(Field::Caption, "en").unwrap().reviewed);
    assert!(matches!(caption(store, 2, "a hut"), Written::Suggested(_)));
    sound(store);
}

pub(crate) fn imports_count_as_texts_of_people(store: &dyn Store) {
    caption_by(store, 1, "Rex in the garden", Author::import("Lightroom"));
    assert!(matches!(caption(store, 1, "a dog"), Written::Suggested(_)));
    edit(store, 1, write("Rex"));
    let again = caption_by(store, 1, "Rex in the garden", Author::import("Lightroom"));
    assert!(matches!(again, Written::Suggested(_)), "{again:?}");
    assert_eq!(shown(store, 1).0, "Rex");
    sound(store);
}

pub(crate) fn versions_are_checked(store: &dyn Store) {
    caption(store, 1, "a dog");
    let version = read(store, 1).version;
    let with = |version| {
        let mut change = change(1, Field::Caption, write(&format!("text for {version}")));
        change.if_version = Some(version);
        store.apply(vec![Change::Text(change)])
    };
    with(version).unwrap();
    let error = with(version).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PreconditionFailed);
    assert_eq!(shown(store, 1).0, format!("text for {version}"));
    with(version + 1).unwrap();
    let missing = change(9, Field::Caption, write("x"));
    let error = store.apply(vec![Change::Text(missing)]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
}

pub(crate) fn history_has_every_step(store: &dyn Store) {
    caption(store, 1, "a dog");
    let first = store.history(&photo(1)).unwrap().unwrap()[0].id;
    edit(store, 1, write("Rex"));
    caption(store, 1, "a cat");
    edit(store, 1, TextAction::Reject);
    edit(store, 1, TextAction::Clear);
    edit(store, 1, TextAction::Revert { revision: first });
    assert_eq!(shown(store, 1).0, "a dog");
    let history = store.history(&photo(1)).unwrap().unwrap();
    let actions: Vec<Action> = history.iter().rev().map(|revision| revision.action).collect();
    use Action::{Clear, Reject, Revert, Suggest, Write};
    assert_eq!(actions, [Write, Write, Suggest, Reject, Clear, Revert]);
    let texts: Vec<&str> = history.iter().rev().map(|revision| revision.text.as_str()).collect();
    assert_eq!(texts, ["a dog", "Rex", "a cat", "a cat", "", "a dog"]);
    assert_eq!(history.iter().filter(|revision| revision.current).count(), 1);
    assert!(history[0].current);
    assert_eq!((history[0].of, history[0].by.clone()), (Some(first), Some(person())));
    assert!(try_edit(store, 1, TextAction::Revert { revision: 999 }).is_err());
    // A revision of another photo is none of this one.
    caption(store, 2, "a house");
    assert!(try_edit(store, 2, TextAction::Revert { revision: first }).is_err());
    assert_eq!(store.history(&photo(3)).unwrap(), None);
    sound(store);
}

pub(crate) fn all_changes_of_a_call_are_made_or_none(store: &dyn Store) {
    caption(store, 1, "a dog");
    let changes = vec![
        Change::Text(change(1, Field::Caption, write("Rex"))),
        Change::Text(change(7, Field::Caption, write("a photo that is not there"))),
    ];
    store.apply(changes).unwrap_err();
    assert_eq!(shown(store, 1).0, "a dog");
    assert_eq!(found(store, "rex", 9), [0; 0]);
    sound(store);
}

pub(crate) fn what_is_purged_is_gone(store: &dyn Store) {
    for number in 1..4 {
        let mut asset = NewAsset::new(photo(number), machine("1"));
        asset.name(NameKind::Path, format!("secret{number}.jpg"));
        asset.text(Field::Caption, format!("Clandestine{number} meeting"), None);
        asset.text(Field::Tags, format!("confidential{number}"), None);
        asset.features = Some(Features { space: "s".into(), vector: vec![1.0, number as f32] });
        add(store, asset);
    }
    edit(store, 1, write("Edited1 by a person"));
    let probe = |number| Similar { probe: Probe::Asset(photo(number)), limit: 5, min_score: -1.0 };
    assert_eq!(store.similar(&probe(2)).unwrap().len(), 2);
    store.apply(vec![Change::Purge(photo(1))]).unwrap();
    assert_eq!(store.asset(&photo(1)).unwrap(), None);
    assert_eq!(store.history(&photo(1)).unwrap(), None);
    for text in ["clandestine1", "edited1", "secret1", "confidential1", "tag:confidential1"] {
        assert_eq!(found(store, text, 9), [0; 0], "{text}");
    }
    let neighbours = store.similar(&probe(2)).unwrap();
    assert_eq!(neighbours.iter().map(|one| one.hash).collect::<Vec<_>>(), [photo(3)]);
    assert!(store.named(NameKind::Path, "secret1.jpg").unwrap().is_empty());
    assert_eq!(found(store, "clandestine2", 9), [2]);
    let stats = store.stats().unwrap();
    assert_eq!((stats.assets, stats.features, stats.names), (2, 2, 2));
    // It may be added, changed and removed at once.
    let mut asset = NewAsset::new(photo(9), machine("1"));
    asset.text(Field::Caption, "a dog", None);
    let again = Change::Text(change(9, Field::Caption, write("Rex")));
    let asset = Change::Asset(Box::new(asset));
    store.apply(vec![asset.clone(), again.clone(), Change::Purge(photo(9)), asset, again]).unwrap();
    assert_eq!(shown(store, 9).0, "Rex");
    assert_eq!(found(store, "rex", 10), [9]);
    store.apply(vec![Change::Purge(photo(9))]).unwrap();
    // It may come back as a new photo.
    caption(store, 1, "a dog");
    assert_eq!(store.history(&photo(1)).unwrap().unwrap().len(), 1);
    sound(store);
}

pub(crate) fn languages_are_apart(store: &dyn Store) {
    let mut asset = NewAsset::new(photo(1), machine("1"));
    let text = |lang: &str, text: &str| NewText {
        field: Field::AltText,
        lang: lang.into(),
        text: text.into(),
        confidence: None,
        exposure: None,
    };
    asset.texts = vec![text("en", "A dog."), text("de", "Ein Hund.")];
    add(store, asset);
    let mut german = change(1, Field::AltText, write("Ein brauner Hund."));
    german.lang = "de".into();
    store.apply(vec![Change::Text(german)]).unwrap();
    let asset = read(store, 1);
    assert_eq!(asset.text(Field::AltText, "en").unwrap().text, "A dog.");
    assert_eq!(asset.text(Field::AltText, "de").unwrap().text, "Ein brauner Hund.");
    assert_eq!(found(store, "brauner", 3), [1]);
    assert_eq!(found(store, "alt:dog", 3), [1]);
}
