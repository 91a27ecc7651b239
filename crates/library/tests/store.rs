//! What every store must do. `suite` is written for any [`Store`]; SQLite runs it here.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod suite;

use std::path::Path;
use std::sync::Arc;

use cutline_library::sqlite::SqliteStore;
use cutline_library::{Store, open};

/// A store in a folder of its own.
fn sqlite(folder: &Path) -> Arc<dyn Store> {
    Arc::new(SqliteStore::open(&folder.join("photos.db")).unwrap())
}

macro_rules! run {
    ($($module:ident :: $test:ident),+ $(,)?) => {$(
        #[test]
        fn $test() {
            let folder = tempfile::tempdir().unwrap();
            suite::$module::$test(&*sqlite(folder.path()));
        }
    )+};
}

run! {
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
    bulk::a_run_is_undone_but_later_edits_stay,
    bulk::tags_are_added_and_removed,
    bulk::decisions_are_undone,
    bulk::feedback_is_reported_by_model_prompt_and_day,
    bulk::statistics_count,
}

#[test]
fn addresses_of_libraries() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.db");
    open(&format!("sqlite:{}", file.display())).unwrap();
    open(file.to_str().unwrap()).unwrap();
    for (wrong, hint) in [
        ("postgres://host/db", "sqlite:"),
        ("mysql://host/db", "mysql"),
        ("sqlite:", "names no file"),
        ("sqlite:/nowhere/at/all.db", "create the folder"),
    ] {
        let error = open(wrong).unwrap_err();
        assert!(error.detail().contains(hint), "{wrong}: {error}");
    }
}
