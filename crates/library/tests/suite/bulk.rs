use cutline_error::ErrorKind;
use cutline_library::bulk::{self, Bulk, BulkAction, Selection};
use cutline_library::{
    Applied, Change, Features, Feedback, FeedbackKind, Field, NameKind, NewAsset, Query, Store,
    TextAction, TextChange, Thumbnail,
};

use super::*;

fn captions(store: &dyn Store, count: u32) {
    for number in 0..count {
        caption(store, number, &format!("a dog number{number}"));
    }
}

fn replace(find: &str, replace: &str) -> Bulk {
    Bulk {
        select: Selection::Query(Box::new(Query { text: find.into(), ..Query::default() })),
        lang: "en".into(),
        action: BulkAction::Replace {
            field: Field::Caption,
            find: find.into(),
            replace: replace.into(),
        },
        author: person(),
        dry_run: false,
    }
}

pub(crate) fn a_rehearsal_changes_nothing(store: &dyn Store) {
    captions(store, 30);
    let rehearsal = Bulk { dry_run: true, ..replace("dog", "wolf") };
    let report = bulk::run(store, &rehearsal).unwrap();
    assert_eq!(
        (report.run, report.matched, report.changed, report.samples.len()),
        (None, 30, 30, 20)
    );
    let sample = &report.samples[0];
    assert_eq!(sample.after, sample.before.replace("dog", "wolf"));
    assert_eq!(found(store, "wolf", 30), [0; 0]);
    assert!(store.runs(9).unwrap().is_empty());
    let report = bulk::run(store, &replace("dog", "wolf")).unwrap();
    assert_eq!((report.changed, report.conflicts), (30, 0));
    assert_eq!(found(store, "wolf", 30).len(), 30);
    let error = bulk::run(store, &replace("", "wolf")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidParameter);
}

pub(crate) fn a_run_is_undone_but_later_edits_stay(store: &dyn Store) {
    captions(store, 5);
    edit(store, 4, write("a dog of mine"));
    let report = bulk::run(store, &replace("dog", "wolf")).unwrap();
    let run = report.run.unwrap();
    edit(store, 1, write("Rex"));
    assert_eq!(store.runs(9).unwrap()[0].revisions, 5);
    assert!(store.runs(9).unwrap()[0].finished_at.is_some());
    let rehearsal = bulk::undo(store, run, &person(), true).unwrap();
    assert_eq!((rehearsal.changed, rehearsal.matched), (4, 5));
    assert_eq!(shown(store, 0).0, "a wolf number0");
    let undone = bulk::undo(store, run, &person(), false).unwrap();
    assert_eq!((undone.changed, undone.conflicts), (4, 1));
    assert_eq!(shown(store, 0).0, "a dog number0");
    assert_eq!(shown(store, 1).0, "Rex");
    assert_eq!(shown(store, 4).0, "a dog of mine");
    assert_eq!(found(store, "dog", 9), [0, 2, 3, 4]);
    // The text is a machine's again, so a machine may replace it; not that of a person.
    caption(store, 0, "a hound");
    caption(store, 4, "a hound");
    assert_eq!(shown(store, 0).0, "a hound");
    assert_eq!(shown(store, 4), ("a dog of mine".into(), Some("a hound".into())));
    assert_eq!(bulk::undo(store, run, &person(), false).unwrap().changed, 0, "twice");
    assert!(bulk::undo(store, 99, &person(), false).is_err());
    // A run of a model that wrote first leaves nothing.
    let run = store.start_run("caption", "{}", &machine("2")).unwrap();
    let mut asset = NewAsset::new(photo(8), machine("2"));
    asset.run = Some(run);
    asset.text(Field::Caption, "one", None);
    add(store, asset.clone());
    asset.texts[0].text = "two".into();
    add(store, asset);
    bulk::undo(store, run, &person(), false).unwrap();
    assert_eq!(read(store, 8).texts, []);
    assert_eq!(found(store, "one OR two", 9), [0; 0]);
    assert_eq!(found(store, "missing:caption", 9), [8]);
    sound(store);
}

pub(crate) fn tags_are_added_and_removed(store: &dyn Store) {
    captions(store, 2);
    let tags = |action| Bulk {
        select: Selection::Photos(vec![photo(0), photo(1), photo(7)]),
        action,
        ..replace("x", "y")
    };
    let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
    let add = tags(BulkAction::AddTags { tags: words(&["Beach", "animal", "beach"]) });
    assert_eq!(bulk::run(store, &add).unwrap().changed, 2);
    assert_eq!(bulk::run(store, &add).unwrap().changed, 0);
    assert_eq!(read(store, 0).text(Field::Tags, "en").unwrap().text, "animal\nBeach");
    assert_eq!(found(store, "tag:beach", 3), [0, 1]);
    let remove = tags(BulkAction::RemoveTags { tags: words(&["BEACH", "other"]) });
    assert_eq!(bulk::run(store, &remove).unwrap().changed, 2);
    assert_eq!(found(store, "tag:beach", 3), [0; 0]);
    let remove = tags(BulkAction::RemoveTags { tags: words(&["animal"]) });
    bulk::run(store, &remove).unwrap();
    assert_eq!(found(store, "missing:tags is:cleared", 3), [0, 1]);
    sound(store);
}

pub(crate) fn decisions_are_undone(store: &dyn Store) {
    captions(store, 3);
    for number in 0..3 {
        edit(store, number, write("mine"));
        caption(store, number, "a suggestion");
    }
    let all = |action| Bulk { action, ..replace("mine", "") };
    let field = Field::Caption;
    let rejected = bulk::run(store, &all(BulkAction::Reject { field })).unwrap();
    assert_eq!(rejected.changed, 3);
    assert_eq!(shown(store, 0), ("mine".into(), None));
    caption(store, 0, "a suggestion");
    assert_eq!(shown(store, 0), ("mine".into(), None));
    bulk::undo(store, rejected.run.unwrap(), &person(), false).unwrap();
    assert_eq!(shown(store, 0), ("mine".into(), Some("a suggestion".into())));
    let accepted = bulk::run(store, &all(BulkAction::Accept { field })).unwrap();
    assert_eq!((accepted.changed, shown(store, 2)), (3, ("a suggestion".into(), None)));
    bulk::undo(store, accepted.run.unwrap(), &person(), false).unwrap();
    assert_eq!(shown(store, 2), ("mine".into(), Some("a suggestion".into())));
    sound(store);
}

pub(crate) fn feedback_is_reported_by_model_prompt_and_day(store: &dyn Store) {
    captions(store, 3);
    let feedback = |number, kind, reason: &str| {
        Change::Feedback(Feedback {
            hash: photo(number),
            revision: None,
            field: Field::Caption,
            lang: "en".into(),
            kind,
            reason: reason.into(),
            author: person(),
        })
    };
    let rate = vec![
        feedback(0, FeedbackKind::Up, ""),
        feedback(1, FeedbackKind::Down, "that is a cat"),
        feedback(1, FeedbackKind::Down, "really"),
    ];
    store.apply(rate).unwrap();
    assert!(store.apply(vec![feedback(9, FeedbackKind::Up, "")]).is_err());
    edit(store, 1, write("a cat number1"));
    edit(store, 2, TextAction::Accept);
    caption(store, 1, "a suggestion");
    edit(store, 1, TextAction::Reject);
    let report = store.feedback_report().unwrap();
    assert_eq!(report.len(), 1);
    let row = &report[0];
    assert_eq!((row.up, row.down, row.accepted, row.rejected, row.edited), (1, 2, 1, 1, 1));
    assert_eq!((row.model.as_str(), row.prompt.as_str()), ("cutline-small", "a photo of"));
    assert!((row.mean_edit.unwrap() - 1.0 / 3.0).abs() < 1e-9, "{row:?}");
    assert_eq!(row.day.len(), "2026-11-27".len());
    let pairs = store.training_pairs(0, 10).unwrap();
    let edited = pairs.iter().find(|pair| pair.kind == "edit").unwrap();
    assert_eq!(
        (edited.machine.as_str(), edited.current.as_str()),
        ("a dog number1", "a cat number1")
    );
    assert_eq!(store.training_pairs(pairs[1].id, 10).unwrap().len(), pairs.len() - 2);
    // It goes with its photo.
    store.apply(vec![Change::Purge(photo(1))]).unwrap();
    assert_eq!(store.feedback_report().unwrap()[0].down, 0);
    sound(store);
}

pub(crate) fn statistics_count(store: &dyn Store) {
    captions(store, 4);
    edit(store, 0, write("mine"));
    caption(store, 0, "a suggestion");
    edit(store, 1, TextAction::Clear);
    let stats = store.stats().unwrap();
    assert_eq!((stats.assets, stats.revisions, stats.suggestions), (4, 7, 1));
    assert_eq!((stats.without_caption, stats.without_alt_text, stats.reviewed), (1, 4, 2));
    assert!(stats.bytes > 0);
}

/// Stores write the rows of such a call together, where they can.
pub(crate) fn a_call_with_many_changes_sees_its_own(store: &dyn Store) {
    let asset = |number: u32, caption: &str, tags: &str| {
        let mut asset = NewAsset::new(photo(number), machine("1"));
        asset.name(NameKind::Path, format!("/photos/{number}.jpg"));
        asset.text(Field::Caption, caption, Some(0.25));
        asset.text(Field::Tags, tags, None);
        asset.thumbnail = Some(Thumbnail { media_type: "image/jpeg".into(), bytes: vec![7; 99] });
        asset.features = Some(Features { space: "m".into(), vector: vec![number as f32 + 1.0; 4] });
        Change::Asset(Box::new(asset))
    };
    let clear = |number: u32| {
        Change::Text(TextChange {
            hash: photo(number),
            field: Field::Caption,
            lang: "en".into(),
            action: TextAction::Clear,
            author: person(),
            if_version: Some(1),
            run: None,
        })
    };
    caption(store, 0, "an old dog");
    let mut changes: Vec<Change> =
        (0..250).map(|number| asset(number, &format!("a dog number{number}"), "dog")).collect();
    // Again with another caption, edited, removed, and removed and added again.
    changes.push(asset(1, "two wolves", "wolf"));
    changes.push(clear(2));
    changes.extend([Change::Purge(photo(3)), Change::Purge(photo(4)), asset(4, "a fox", "fox")]);
    let applied = store.apply(changes).unwrap();
    let created = |applied: &&Applied| matches!(applied, Applied::Asset { created: true, .. });
    assert_eq!(applied.iter().filter(created).count(), 250);
    assert_eq!(shown(store, 0).0, "a dog number0");
    assert_eq!(shown(store, 1).0, "two wolves");
    assert_eq!(shown(store, 2).0, "");
    assert_eq!(shown(store, 4).0, "a fox");
    assert!(store.asset(&photo(3)).unwrap().is_none());
    let stats = store.stats().unwrap();
    assert_eq!((stats.assets, stats.thumbnails, stats.features), (249, 249, 249));
    let confidence = store.asset(&photo(9)).unwrap().unwrap().texts[0].confidence;
    assert_eq!(confidence, Some(0.25));
    let sure = Query { text: "confidence:<0.3".into(), count: true, ..Query::default() };
    assert_eq!(
        store.find(&sure).unwrap().total.unwrap().count,
        248,
        "not the one that was cleared"
    );
    assert_eq!(found(store, "tag:wolf", 300), [1]);
    assert_eq!(found(store, "wolves", 300), [1]);
    let problems = store.check().unwrap().problems;
    assert!(problems.is_empty(), "{problems:?}");

    // If one fails, none was made.
    let mut changes: Vec<Change> = (300..320).map(|number| asset(number, "a cow", "cow")).collect();
    changes.push(clear(2));
    let error = store.apply(changes).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PreconditionFailed);
    assert_eq!(found(store, "cow", 300), [0; 0]);
    assert_eq!(store.stats().unwrap().assets, 249);
    caption(store, 300, "a cow");
    assert_eq!(found(store, "cow", 301), [300]);
    assert!(store.check().unwrap().problems.is_empty());
}
