//! What every store must do.

pub(crate) mod bulk;
pub(crate) mod search;
pub(crate) mod texts;

use cutline_library::{
    Applied, Asset, Author, Change, ContentHash, Field, ModelAuthor, NewAsset, Query, Store,
    TextAction, TextChange, Written,
};

pub(crate) fn photo(number: u32) -> ContentHash {
    ContentHash::of(&number.to_le_bytes())
}

pub(crate) fn machine(version: &str) -> Author {
    Author::Model(ModelAuthor {
        name: "cutline-small".into(),
        digest: "blake3:00".into(),
        parameters: version.into(),
        prompt: "a photo of".into(),
    })
}

pub(crate) fn person() -> Author {
    Author::person("kim")
}

/// A model says what a photo shows.
pub(crate) fn caption(store: &dyn Store, number: u32, text: &str) -> Written {
    caption_by(store, number, text, machine("1"))
}

pub(crate) fn caption_by(store: &dyn Store, number: u32, text: &str, author: Author) -> Written {
    let mut asset = NewAsset::new(photo(number), author);
    asset.text(Field::Caption, text, Some(0.5));
    add(store, asset)
}

pub(crate) fn add(store: &dyn Store, asset: NewAsset) -> Written {
    match store.apply(vec![Change::Asset(Box::new(asset))]).unwrap().remove(0) {
        Applied::Asset { texts, .. } => texts.first().copied().unwrap_or(Written::Unchanged),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn change(number: u32, field: Field, action: TextAction) -> TextChange {
    let lang = "en".into();
    TextChange {
        hash: photo(number),
        field,
        lang,
        action,
        author: person(),
        if_version: None,
        run: None,
    }
}

pub(crate) fn edit(store: &dyn Store, number: u32, action: TextAction) -> Written {
    try_edit(store, number, action).unwrap()
}

pub(crate) fn try_edit(
    store: &dyn Store,
    number: u32,
    action: TextAction,
) -> cutline_error::Result<Written> {
    match store.apply(vec![Change::Text(change(number, Field::Caption, action))])?.remove(0) {
        Applied::Text { written, .. } => Ok(written),
        other => panic!("{other:?}"),
    }
}

pub(crate) fn write(text: &str) -> TextAction {
    TextAction::Write { text: text.into() }
}

pub(crate) fn read(store: &dyn Store, number: u32) -> Asset {
    store.asset(&photo(number)).unwrap().unwrap()
}

/// The caption that is shown, and the one that is suggested.
pub(crate) fn shown(store: &dyn Store, number: u32) -> (String, Option<String>) {
    let asset = read(store, number);
    let text = asset.text(Field::Caption, "en");
    (
        text.map(|text| text.text.clone()).unwrap_or_default(),
        text.and_then(|text| text.suggestion.as_ref()).map(|suggestion| suggestion.text.clone()),
    )
}

/// The photos that a text finds, in rising order.
pub(crate) fn found(store: &dyn Store, text: &str, among: u32) -> Vec<u32> {
    let query = Query { text: text.into(), limit: 200, ..Query::default() };
    let page = store.find(&query).unwrap_or_else(|error| panic!("{text}: {error}"));
    let number = |hash| (0..among).find(|number| photo(*number) == hash).unwrap();
    let mut numbers: Vec<u32> = page.items.iter().map(|found| number(found.asset.hash)).collect();
    numbers.sort_unstable();
    numbers
}

pub(crate) fn sound(store: &dyn Store) {
    let report = store.check().unwrap();
    assert_eq!(report.problems, [""; 0]);
}
