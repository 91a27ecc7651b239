//! What every store must do.

pub(crate) mod bulk;
pub(crate) mod keys;
pub(crate) mod prompts;
pub(crate) mod search;
pub(crate) mod texts;
pub(crate) mod vocabularies;

use cutline_library::{
    Applied, Asset, Author, Change, ContentHash, Field, ModelAuthor, NewAsset, Query, Store,
    TextAction, TextChange, Written,
};

/// Calls a macro with all tests.
macro_rules! every_test {
    ($run:ident) => {
        $run! {
            texts::a_photo_has_all_its_names_and_facts,
            texts::a_machine_never_replaces_what_a_person_wrote,
            texts::a_deliberate_deletion_stays,
            texts::suggestions_are_accepted_or_rejected_for_good,
            texts::imports_count_as_texts_of_people,
            texts::versions_are_checked,
            texts::history_has_every_step,
            texts::all_changes_of_a_call_are_made_or_none,
            texts::what_is_purged_is_gone,
            texts::languages_are_apart,
            search::words_phrases_and_columns,
            search::filters,
            search::syntax_is_never_a_failure,
            search::pages_have_every_photo_once,
            search::words_are_highlighted,
            search::facets_count,
            search::very_many_matches_come_newest_first,
            search::near_duplicates_are_grouped,
            search::similar_photos_are_those_of_comparing_all,
            bulk::a_rehearsal_changes_nothing,
            bulk::a_call_with_many_changes_sees_its_own,
            bulk::a_run_is_undone_but_later_edits_stay,
            bulk::tags_are_added_and_removed,
            bulk::decisions_are_undone,
            bulk::feedback_is_reported_by_model_prompt_and_day,
            bulk::statistics_count,
            keys::keys_are_made_edited_rotated_and_revoked,
            keys::usage_is_added_by_key_model_and_day,
            keys::usage_of_many_threads_is_exact,
            prompts::versions_never_change_and_labels_move,
            prompts::protected_labels_need_a_confirmation,
            prompts::experiments_log_what_became_of_captions,
            vocabularies::versions_never_change_and_one_counts,
            vocabularies::what_is_deleted_is_gone_and_its_numbers_too,
        }
    };
}

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
