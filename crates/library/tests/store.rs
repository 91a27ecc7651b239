//! What every store must do. `suite` is written for any [`Store`]; SQLite runs it here, PostgreSQL in
//! `postgres`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[macro_use]
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

every_test!(run);

#[test]
fn addresses_of_libraries() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("a.db");
    open(&format!("sqlite:{}", file.display())).unwrap();
    open(file.to_str().unwrap()).unwrap();
    for (wrong, hint) in [
        #[cfg(not(feature = "postgres"))]
        ("postgres://kim:secret@host/db", "--features postgres"),
        #[cfg(feature = "postgres")]
        ("postgres://kim:secret@host:x/db", "postgres://USER:PASSWORD@HOST/DATABASE"),
        ("mysql://host/db", "mysql"),
        ("sqlite:", "names no file"),
        ("sqlite:/nowhere/at/all.db", "create the folder"),
    ] {
        let error = open(wrong).unwrap_err();
        assert!(error.detail().contains(hint), "{wrong}: {error}");
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
    }
}

#[test]
fn addresses_are_shown_without_passwords() {
    for (url, shown) in [
        ("postgres://kim:se@cret@host:5433/db?password=secret", "postgres://host:5433/db"),
        ("postgres:///db", "postgres:///db"),
        ("sqlite:a@b.db", "sqlite:a@b.db"),
    ] {
        assert_eq!(cutline_library::shown(url), shown);
    }
}
