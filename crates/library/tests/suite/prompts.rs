//! Prompts, labels and experiments.

use cutline_error::ErrorKind;
use cutline_library::prompts::{Experiment, Exposure, PromptChange, Variant, VersionChoice};
use cutline_library::{
    Applied, Change, FeedbackKind, Field, NewAsset, Store, TextAction, TextChange,
};

use super::{machine, person, photo};

fn make(store: &dyn Store, change: PromptChange) -> cutline_error::Result<i64> {
    match store.apply(vec![Change::Prompt(change)])?.pop() {
        Some(Applied::Prompt(number)) => Ok(number),
        other => panic!("{other:?}"),
    }
}

fn save(store: &dyn Store, content: &str) -> i64 {
    let change = PromptChange::Save {
        name: "alt".into(),
        description: None,
        content: content.into(),
        message: format!("why {content}"),
        author: person(),
    };
    make(store, change).unwrap()
}

fn label(version: Option<u32>, protected: Option<bool>, force: bool) -> PromptChange {
    PromptChange::Label {
        name: "alt".into(),
        label: "production".into(),
        version,
        protected,
        force,
        author: person(),
    }
}

fn served(store: &dyn Store, label: &str) -> Option<u32> {
    let choice = VersionChoice::Label(label.into());
    store.prompt_version("alt", &choice).unwrap().map(|version| version.version)
}

pub(crate) fn versions_never_change_and_labels_move(store: &dyn Store) {
    assert_eq!(store.prompts().unwrap(), []);
    assert_eq!(store.prompt("alt").unwrap(), None);
    let error = make(store, label(Some(1), None, false)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert_eq!((save(store, "one"), save(store, "two"), save(store, "two")), (1, 2, 2));
    assert_eq!(save(store, "one"), 3, "what is said again later is a new version");
    assert_eq!((served(store, "latest"), served(store, "production")), (Some(3), None));
    make(store, label(Some(2), None, false)).unwrap();
    assert_eq!(served(store, "production"), Some(2));
    // Rollback: the label moves back.
    make(store, label(Some(1), None, false)).unwrap();
    assert_eq!(served(store, "production"), Some(1));
    make(store, label(Some(9), None, false)).unwrap_err();
    make(store, label(None, None, false)).unwrap();
    assert_eq!(served(store, "production"), None);
    let history = store.prompt("alt").unwrap().unwrap();
    let said: Vec<(u32, &str)> = history
        .versions
        .iter()
        .map(|version| (version.version, version.content.as_str()))
        .collect();
    assert_eq!(said, [(3, "one"), (2, "two"), (1, "one")]);
    assert_eq!(history.versions[0].message, "why one");
    assert_eq!(history.versions[0].digest, history.versions[2].digest);
    let moves: Vec<Option<u32>> = history.moves.iter().map(|one| one.version).collect();
    assert_eq!(moves, [None, Some(1), Some(2)]);
    assert_eq!((history.prompt.latest, history.prompt.labels.len()), (3, 0));
    assert_eq!(store.prompts().unwrap(), [history.prompt]);
    let third = store.prompt_version("alt", &VersionChoice::Number(3)).unwrap().unwrap();
    assert_eq!((third.content.as_str(), third.author), ("one", person()));
    assert_eq!(store.prompt_version("alt", &VersionChoice::Number(4)).unwrap(), None);
}

pub(crate) fn protected_labels_need_a_confirmation(store: &dyn Store) {
    save(store, "one");
    save(store, "two");
    make(store, label(Some(1), Some(true), false)).unwrap();
    for change in [label(Some(2), None, false), label(None, None, false)] {
        let error = make(store, change).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::PreconditionFailed, "{error}");
    }
    make(store, label(Some(2), None, true)).unwrap();
    let labels = store.prompts().unwrap().remove(0).labels;
    assert_eq!((labels[0].version, labels[0].protected), (2, true));
    let latest = PromptChange::Label {
        name: "alt".into(),
        label: "latest".into(),
        version: Some(1),
        protected: None,
        force: true,
        author: person(),
    };
    assert_eq!(make(store, latest).unwrap_err().field(), Some("label"));
}

fn experiment(name: &str) -> PromptChange {
    let variant = |version| Variant { version, weight: 1 };
    PromptChange::Start(Box::new(Experiment {
        id: 0,
        name: name.into(),
        prompt: "alt".into(),
        variants: vec![variant(1), variant(2)],
        unit: "photo".into(),
        salt: "s".into(),
        metric: "accepted".into(),
        planned: 10,
        author: person(),
        started_at: 0,
        stopped_at: None,
        promoted: None,
    }))
}

pub(crate) fn experiments_log_what_became_of_captions(store: &dyn Store) {
    save(store, "one");
    save(store, "two");
    make(store, experiment("first")).unwrap();
    // One at a time with a prompt, and each name once.
    let error = make(store, experiment("second")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::PreconditionFailed, "{error}");
    let running = store.experiments(true).unwrap().remove(0);
    assert_eq!((running.name.as_str(), running.variants.len()), ("first", 2));

    let version =
        |number| store.prompt_version("alt", &VersionChoice::Number(number)).unwrap().unwrap().id;
    for number in 1..=3 {
        let mut asset = NewAsset::new(photo(number), machine("m"));
        asset.text(Field::AltText, format!("text {number}"), Some(0.5));
        asset.texts[0].exposure = Some(Exposure {
            version: version(1 + number % 2),
            experiment: Some(running.id),
            latency: Some(f64::from(number)),
            cost: None,
        });
        // The second time, nothing is new about the text, but it was served.
        store.apply(vec![Change::Asset(Box::new(asset.clone()))]).unwrap();
        if number == 3 {
            store.apply(vec![Change::Asset(Box::new(asset))]).unwrap();
        }
    }
    let edit = |number, action| {
        let change = TextChange {
            hash: photo(number),
            field: Field::AltText,
            lang: "en".into(),
            action,
            author: person(),
            if_version: None,
            run: None,
        };
        store.apply(vec![Change::Text(change)]).unwrap();
    };
    edit(1, TextAction::Accept);
    edit(2, TextAction::Write { text: "other words".into() });
    let mut rows = store.exposures(running.id).unwrap();
    rows.sort_by(|a, b| a.latency.partial_cmp(&b.latency).unwrap());
    assert_eq!(rows.len(), 4);
    let seen: Vec<_> = rows.iter().map(|row| (row.version, row.feedback)).collect();
    assert_eq!(seen[0], (2, Some(FeedbackKind::Accept)));
    assert_eq!(seen[1], (1, Some(FeedbackKind::Edit)));
    assert!(seen[2..].iter().all(|row| *row == (2, None)));
    assert!(rows[1].edit.unwrap() > 0.0 && rows[0].confidence == Some(0.5));
    let history = store.history(&photo(1)).unwrap().unwrap();
    let first = history.last().unwrap();
    assert_eq!(first.template.as_deref(), Some("alt:2"));
    assert_eq!(first.experiment.as_deref(), Some("first"));

    let stop = |version| PromptChange::Stop {
        name: "first".into(),
        promote: version,
        force: false,
        author: person(),
    };
    assert_eq!(make(store, stop(Some(7))).unwrap_err().field(), Some("version"));
    make(store, stop(Some(2))).unwrap();
    assert_eq!(served(store, "production"), Some(2));
    assert_eq!(store.experiments(true).unwrap(), []);
    let ended = store.experiments(false).unwrap().remove(0);
    assert!(ended.stopped_at.is_some() && ended.promoted == Some(2));
    make(store, experiment("second")).unwrap();
    assert!(make(store, experiment("second")).is_err());
    // Photos can still be removed with everything about them.
    store.apply(vec![Change::Purge(photo(1))]).unwrap();
    assert_eq!(store.exposures(running.id).unwrap().len(), 3);
    assert_eq!(store.check().unwrap().problems, [""; 0]);
}
