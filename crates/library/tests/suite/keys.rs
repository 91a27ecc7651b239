//! Keys of clients, and what they have used.

use std::thread;

use cutline_library::{
    ApiKey, Applied, Budget, BudgetPeriod, BudgetUnit, Change, KeyChange, KeyRules, Scope, Secret,
    Store, UsageEntry, UsageGroup, UsageQuery, Used, now, parse_time,
};

use super::{caption, sound};

fn change(store: &dyn Store, change: KeyChange) -> cutline_error::Result<ApiKey> {
    match store.apply(vec![Change::Key(change)])?.remove(0) {
        Applied::Key(key) => Ok(*key),
        other => panic!("{other:?}"),
    }
}

fn create(store: &dyn Store, name: &str) -> ApiKey {
    let secret = Secret::generate().unwrap().hash();
    change(store, KeyChange::Create { rules: KeyRules::new(name), secret }).unwrap()
}

pub(crate) fn keys_are_made_edited_rotated_and_revoked(store: &dyn Store) {
    assert_eq!(store.keys().unwrap(), []);
    let secret = Secret::generate().unwrap();
    let mut rules = KeyRules::new("app");
    rules.scopes = vec![Scope::Admin, Scope::Caption];
    rules.models = vec!["cutline-small".into()];
    rules.budget = Some(Budget {
        amount: 5,
        unit: BudgetUnit::Tokens,
        period: BudgetPeriod::Month,
        soft_limit: 0.5,
    });
    rules.expires_at = Some(1234);
    let create_app = KeyChange::Create { rules: rules.clone(), secret: secret.hash() };
    let key = change(store, create_app.clone()).unwrap();
    rules.scopes.sort_unstable();
    assert_eq!(key.rules, rules);
    assert!(secret.reveal().starts_with(&key.prefix) && key.prefix.len() < 20);
    assert_eq!(key.hashes, [(secret.hash().hash, None)]);
    // No two have the same name.
    assert_eq!(change(store, create_app).unwrap_err().field(), Some("name"));
    let other = create(store, "other");
    let rename = |name: &str| KeyChange::Edit { id: other.id, rules: KeyRules::new(name) };
    assert_eq!(change(store, rename("app")).unwrap_err().field(), Some("name"));
    assert_eq!(change(store, rename("other")).unwrap().rules.name, "other");
    assert_eq!(change(store, rename("third")).unwrap().rules.name, "third");

    let newer = Secret::generate().unwrap();
    let rotate =
        |secret: &Secret, grace| KeyChange::Rotate { id: key.id, secret: secret.hash(), grace };
    let before = now();
    let rotated = change(store, rotate(&newer, 60_000)).unwrap();
    let until = rotated.previous_valid_until.unwrap();
    assert!((before + 60_000..=now() + 60_000).contains(&until), "{until}");
    assert_eq!(rotated.hashes[0], (secret.hash().hash, Some(until)));
    assert_eq!(rotated.hashes[1], (newer.hash().hash, None));
    assert!(newer.reveal().starts_with(&rotated.prefix));
    // One is read as all are, with its own secrets only.
    for one in store.keys().unwrap() {
        assert_eq!(store.key(one.id).unwrap(), Some(one));
    }
    assert_eq!(store.key(key.id).unwrap(), Some(rotated.clone()));
    assert_eq!(store.key(other.id + 1).unwrap(), None);
    // A second one without a grace ends both.
    let newest = Secret::generate().unwrap();
    let rotated = change(store, rotate(&newest, 0)).unwrap();
    assert!(rotated.hashes[..2].iter().all(|(_, until)| until.unwrap() <= now()), "{rotated:?}");
    assert_eq!(rotated.hashes[2], (newest.hash().hash, None));

    let revoked = change(store, KeyChange::Revoke { id: key.id }).unwrap().revoked_at;
    assert!(revoked.is_some());
    assert_eq!(change(store, KeyChange::Revoke { id: key.id }).unwrap().revoked_at, revoked);
    assert!(change(store, rotate(&newest, 0)).is_err(), "it is never valid again");
    for missing in
        [KeyChange::Revoke { id: 99 }, KeyChange::Edit { id: 99, rules: KeyRules::new("nobody") }]
    {
        let error = change(store, missing).unwrap_err();
        assert_eq!(error.kind(), cutline_error::ErrorKind::NotFound, "{error}");
    }
    assert_eq!(store.keys().unwrap().len(), 2);
    sound(store);
}

fn used(images: u64) -> Used {
    Used {
        requests: 1,
        images,
        cached: 1,
        errors: 0,
        prompt_tokens: 10 * images,
        completion_tokens: images,
    }
}

fn query(from: &str, to: &str, key: Option<i64>, group: UsageGroup) -> UsageQuery {
    UsageQuery { from: parse_time(from).unwrap(), to: parse_time(to).unwrap(), key, group }
}

pub(crate) fn usage_is_added_by_key_model_and_day(store: &dyn Store) {
    let (one, other) = (create(store, "one"), create(store, "other"));
    let entry = |key: &ApiKey, model: &str, at: &str, images| UsageEntry {
        key: key.id,
        model: model.into(),
        at: parse_time(at).unwrap(),
        used: used(images),
    };
    let entries = vec![
        entry(&one, "small", "2026-11-30T23:59:59Z", 1),
        entry(&one, "small", "2026-11-30T08:00:00Z", 2),
        entry(&one, "large", "2026-12-01", 4),
        entry(&other, "small", "2026-12-01", 8),
    ];
    store.apply(vec![Change::Usage(entries)]).unwrap();
    let rows = |query| -> Vec<(String, u64)> {
        let rows = store.usage(&query).unwrap();
        rows.into_iter().map(|row| (row.name, row.used.images)).collect()
    };
    let named = |rows: &[(&str, u64)]| -> Vec<(String, u64)> {
        rows.iter().map(|(name, images)| ((*name).to_owned(), *images)).collect()
    };
    let all = |group| query("2026-11-01", "2026-12-31", None, group);
    assert_eq!(rows(all(UsageGroup::Key)), named(&[("one", 7), ("other", 8)]));
    assert_eq!(rows(all(UsageGroup::Model)), named(&[("large", 4), ("small", 11)]));
    let days = named(&[("2026-11-30", 3), ("2026-12-01", 12)]);
    assert_eq!(rows(all(UsageGroup::Day)), days);
    let november = query("2026-11-01", "2026-11-30T12:00:00Z", Some(one.id), UsageGroup::Key);
    let row = store.usage(&november).unwrap().remove(0);
    assert_eq!(row.id, Some(one.id));
    assert_eq!((row.used.requests, row.used.cached, row.used.prompt_tokens), (2, 2, 30));
    assert_eq!((row.used.of(BudgetUnit::Images), row.used.of(BudgetUnit::Tokens)), (1, 33));
    let last = |name: &str| {
        let keys = store.keys().unwrap();
        keys.into_iter().find(|key| key.rules.name == name).unwrap().last_used_at
    };
    assert_eq!(last("one"), Some(parse_time("2026-12-01").unwrap()));
    // Nothing but the time of the last use, to the minute.
    let touch = UsageEntry { used: Used::default(), ..entry(&one, "", "2026-12-02T01:02:03Z", 0) };
    store.apply(vec![Change::Usage(vec![touch])]).unwrap();
    assert_eq!(last("one"), Some(parse_time("2026-12-02T01:02:00Z").unwrap()));
    assert_eq!(rows(all(UsageGroup::Day)), days);
    // A key that is not there takes nothing with it.
    let nobody = UsageEntry { key: 99, ..entry(&one, "small", "2026-12-01", 1) };
    let both = vec![entry(&one, "small", "2026-12-01", 1), nobody];
    assert!(store.apply(vec![Change::Usage(both)]).is_err());
    assert_eq!(rows(all(UsageGroup::Day)), days);
    sound(store);
}

pub(crate) fn usage_of_many_threads_is_exact(store: &dyn Store) {
    let key = create(store, "busy");
    thread::scope(|scope| {
        for thread in 0..8 {
            scope.spawn(move || {
                for number in 0..25 {
                    let entry = UsageEntry { key: key.id, model: "m".into(), at: 0, used: used(1) };
                    store.apply(vec![Change::Usage(vec![entry])]).unwrap();
                    caption(store, thread * 100 + number, "a dog");
                }
            });
        }
    });
    let rows = store.usage(&query("1970", "1970", Some(key.id), UsageGroup::Key)).unwrap();
    assert_eq!(rows[0].used.requests, 200);
    assert_eq!(rows[0].used.prompt_tokens, 2000);
}
