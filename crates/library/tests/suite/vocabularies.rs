//! Vocabularies.

use cutline_error::ErrorKind;
use cutline_library::vocabularies::VocabularyChange;
use cutline_library::{Applied, Change, Store};

use super::person;

fn make(store: &dyn Store, change: VocabularyChange) -> cutline_error::Result<u32> {
    match store.apply(vec![Change::Vocabulary(change)])?.pop() {
        Some(Applied::Vocabulary(version)) => Ok(version),
        other => panic!("{other:?}"),
    }
}

fn save(store: &dyn Store, content: &str) -> u32 {
    let change = VocabularyChange::Save {
        name: "shop".into(),
        content: content.into(),
        message: format!("why {content}"),
        author: person(),
    };
    make(store, change).unwrap()
}

fn switch(store: &dyn Store, version: u32) -> cutline_error::Result<u32> {
    make(store, VocabularyChange::Use { name: "shop".into(), version })
}

fn says(store: &dyn Store, version: Option<u32>) -> Option<String> {
    store.vocabulary_content("shop", version).unwrap().map(|found| found.content)
}

pub(crate) fn versions_never_change_and_one_counts(store: &dyn Store) {
    assert_eq!(store.vocabularies().unwrap(), []);
    assert_eq!(store.vocabulary("shop").unwrap(), None);
    assert_eq!(says(store, None), None);
    assert_eq!(switch(store, 1).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!((save(store, "one"), save(store, "two"), save(store, "two")), (1, 2, 2));
    assert_eq!(says(store, None).as_deref(), Some("two"));
    assert_eq!(says(store, Some(1)).as_deref(), Some("one"));
    assert_eq!(says(store, Some(3)), None);
    // Back to the first, and forward again by saying the same as the newest.
    assert_eq!(switch(store, 1).unwrap(), 1);
    assert_eq!(says(store, None).as_deref(), Some("one"));
    assert_eq!(store.vocabularies().unwrap()[0].current, 1);
    assert_eq!(switch(store, 9).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(save(store, "two"), 2);
    assert_eq!(save(store, "one"), 3, "what is said again later is a new version");
    let history = store.vocabulary("shop").unwrap().unwrap();
    assert_eq!((history.vocabulary.latest, history.vocabulary.current), (3, 3));
    assert_eq!(store.vocabularies().unwrap(), [history.vocabulary]);
    let numbers: Vec<u32> = history.versions.iter().map(|version| version.version).collect();
    assert_eq!(numbers, [3, 2, 1]);
    assert_eq!(history.versions[0].digest, history.versions[2].digest);
    assert_eq!(history.versions[0].message, "why one");
    assert_eq!(history.versions[0].author, person());
}

pub(crate) fn what_is_deleted_is_gone_and_its_numbers_too(store: &dyn Store) {
    let delete = || make(store, VocabularyChange::Delete { name: "shop".into() });
    assert_eq!(delete().unwrap_err().kind(), ErrorKind::NotFound);
    save(store, "one");
    assert_eq!(delete().unwrap(), 0);
    assert_eq!(delete().unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(store.vocabularies().unwrap(), []);
    assert_eq!(store.vocabulary("shop").unwrap(), None);
    assert_eq!((says(store, None), says(store, Some(1))), (None, None));
    assert_eq!(switch(store, 1).unwrap_err().kind(), ErrorKind::NotFound);
    // A reference to the first version never means another one.
    assert_eq!(save(store, "two"), 2);
    assert_eq!((says(store, Some(1)), says(store, None).as_deref()), (None, Some("two")));
    let long = VocabularyChange::Save {
        name: "long".into(),
        content: "x".repeat(3 << 20),
        message: String::new(),
        author: person(),
    };
    assert_eq!(make(store, long).unwrap_err().field(), Some("vocabulary"));
    assert_eq!(store.vocabularies().unwrap().len(), 1);
}
