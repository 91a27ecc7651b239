//! What every store must do, over PostgreSQL, and what is particular to it. Each test starts a private
//! server; without the programs of one, they are skipped.

#![cfg(all(unix, feature = "postgres"))]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod server;
#[macro_use]
mod suite;
mod writers;

use std::thread;

use cutline_error::ErrorKind;
use cutline_library::postgres::PostgresStore;
use cutline_library::{
    Author, Change, ContentHash, Field, NameKind, NewAsset, Query, Store, exists, open,
};

use self::server::Server;

/// Runs all tests of `suite`, each with a library of its own.
#[test]
fn postgres_does_what_every_store_must_do() {
    let Some(server) = Server::start() else { return };
    let server = &server;
    macro_rules! run {
        ($($module:ident :: $test:ident),+ $(,)?) => {
            &[$((stringify!($test), suite::$module::$test as fn(&dyn Store))),+]
        };
    }
    type Test = (&'static str, fn(&dyn Store));
    let tests: &[Test] = every_test!(run);
    assert!(tests.len() > 20);
    // A connection of its own may be slow to begin; many at a time are not.
    let failed: Vec<&str> = tests
        .chunks(8)
        .flat_map(|tests| {
            thread::scope(|scope| {
                let run = |(name, test): Test| {
                    let test = move || test(&PostgresStore::open(&server.database(name)).unwrap());
                    (name, scope.spawn(test))
                };
                let running: Vec<_> = tests.iter().copied().map(run).collect();
                let failed = running
                    .into_iter()
                    .filter_map(|(name, test)| test.join().is_err().then_some(name));
                failed.collect::<Vec<_>>()
            })
        })
        .collect();
    assert_eq!(failed, [""; 0]);
}

fn asset(number: u32) -> Change {
    let mut asset = NewAsset::new(ContentHash::of(&number.to_le_bytes()), Author::model("m"));
    asset.name(NameKind::Path, format!("{number}.jpg"));
    asset.text(Field::Caption, "a dog", None);
    Change::Asset(Box::new(asset))
}

#[test]
fn addresses_rights_and_versions() {
    let Some(server) = Server::start() else { return };
    let address = server.database("photos");
    assert!(!exists(&address).unwrap());
    let store = open(&address).unwrap();
    assert!(exists(&address).unwrap());
    assert!(!format!("{store:?}").contains("secret"), "{store:?}");
    store.apply(vec![asset(1)]).unwrap();
    let error = store.backup("copy.db".as_ref()).unwrap_err();
    assert!(error.detail().contains("pg_dump"), "{error}");
    store.compact().unwrap();
    assert_eq!(store.stats().unwrap().assets, 1);
    drop(store);
    let refused = |address: &str, hint: &str| {
        let error = open(address).unwrap_err();
        assert!(error.detail().contains(hint), "{error}");
        assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
    };
    refused(&server.address("nothing"), "does not exist");
    refused("postgres://kim:secret@%2Fnowhere/db", "check that the server runs");
    server.sql("photos", "UPDATE cutline.library SET version = version + 1");
    refused(&address, "update the program");
    server.sql("photos", "UPDATE cutline.library SET version = version - 1");
    open(&address).unwrap();
    server.database("other");
    server.sql("other", "CREATE SCHEMA cutline; CREATE TABLE cutline.albums(id bigint)");
    refused(&server.address("other"), "another program");
    server.sql("postgres", "CREATE ROLE guest LOGIN; REVOKE ALL ON DATABASE other FROM PUBLIC");
    refused(&server.address("other").replace("cutline:", "guest:"), "permission denied");
    server.sql("postgres", "CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0");
    refused(&server.address("latin"), "UTF-8");
}

#[test]
fn limits_are_explained() {
    let Some(server) = Server::start() else { return };
    let address = server.database("photos");
    let store = open(&format!("{address}?options=-c%20lock_timeout%3D300")).unwrap();
    store.apply(vec![asset(1)]).unwrap();
    // Another process writes for too long.
    let mut other = server.client("photos");
    other.batch_execute("BEGIN; SELECT pg_advisory_xact_lock(7166571340)").unwrap();
    let error = store.apply(vec![asset(2)]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::LibraryBusy, "{error}");
    assert!(store.asset(&ContentHash::of(&1_u32.to_le_bytes())).unwrap().is_some());
    other.batch_execute("ROLLBACK").unwrap();
    store.apply(vec![asset(2)]).unwrap();
    // A full disk, as the server reports it.
    server.sql(
        "photos",
        "CREATE FUNCTION no_space() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' \
         USING ERRCODE = '53100'; END $$; \
         CREATE TRIGGER no_space BEFORE INSERT ON cutline.revisions EXECUTE FUNCTION no_space()",
    );
    let error = store.apply(vec![asset(3)]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::StorageFull, "{error}");
    server.sql("photos", "DROP TRIGGER no_space ON cutline.revisions");
    store.apply(vec![asset(3)]).unwrap();
    // A search that takes too long.
    let slow = open(&format!("{address}?options=-c%20statement_timeout%3D300")).unwrap();
    other.batch_execute("BEGIN; LOCK TABLE cutline.words").unwrap();
    let error = slow.find(&Query { text: "dog".into(), ..Query::default() }).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidParameter, "{error}");
    other.batch_execute("ROLLBACK").unwrap();
    assert_eq!(slow.find(&Query::default()).unwrap().items.len(), 3);
    // What is damaged is found.
    assert_eq!(store.check().unwrap().problems, [""; 0]);
    server.sql("photos", "UPDATE cutline.words SET words = 'cat:1A' WHERE asset_id = 1");
    server.sql("photos", "UPDATE cutline.labels SET uses = uses + 1");
    let problems = store.check().unwrap().problems.join("; ");
    assert!(problems.contains("index of words") && problems.contains("not counted"), "{problems}");
}

#[test]
fn the_server_may_be_restarted() {
    let Some(mut server) = Server::start() else { return };
    let store = open(&server.database("photos")).unwrap();
    store.apply(vec![asset(1)]).unwrap();
    let found = || store.find(&Query::default()).map(|page| page.items.len());
    assert_eq!(found().unwrap(), 1);
    server.kill();
    let error = store.apply(vec![asset(2)]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    assert!(found().is_err());
    server.run();
    assert_eq!(found().unwrap(), 1);
    store.apply(vec![asset(3)]).unwrap();
    assert_eq!(found().unwrap(), 2);
    server.kill();
    server.run();
    // Also the other way around: the first to notice is the one that writes.
    store.apply(vec![asset(4)]).unwrap();
    assert_eq!(found().unwrap(), 3);
}

/// Servers of HTTP open libraries, read keys in them and close them in asynchronous code.
#[test]
fn it_works_inside_of_another_event_loop() {
    let Some(server) = Server::start() else { return };
    let address = server.database("photos");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let store = open(&address).unwrap();
        store.apply(vec![asset(1)]).unwrap();
        assert_eq!(store.find(&Query::default()).unwrap().items.len(), 1);
        assert!(store.check().unwrap().problems.is_empty());
        let kept = std::sync::Arc::clone(&store);
        let read = move || kept.asset(&ContentHash::of(b"x")).unwrap();
        assert_eq!(tokio::task::spawn_blocking(read).await.unwrap(), None);
        drop(store);
    });
}

/// Not a test: the child process of the others.
#[test]
fn child() {
    writers::write_if_child();
}

#[test]
fn killed_processes_lose_nothing_that_was_acknowledged() {
    let Some(server) = Server::start() else { return };
    let address = server.database("photos");
    drop(open(&address).unwrap());
    writers::kill_and_compare(&address, 8, false, |round| (round * 97) % 300);
}

#[test]
fn processes_write_at_once() {
    let Some(server) = Server::start() else { return };
    let address = server.database("photos");
    drop(open(&address).unwrap());
    writers::write_at_once(&address);
}

#[test]
fn a_killed_server_loses_nothing_that_was_acknowledged() {
    let Some(mut server) = Server::start() else { return };
    let address = server.database("photos");
    drop(open(&address).unwrap());
    for (round, photos) in [20, 50].into_iter().enumerate() {
        let name = format!("writer{round}");
        let mut child = writers::command(&address, &name).spawn().unwrap();
        writers::wait_for(&*open(&address).unwrap(), &name, photos);
        server.kill();
        // It ends by itself, because a change is refused.
        let said = writers::acknowledged(&mut child);
        child.wait().unwrap();
        assert!(said.len() > 15, "{} photos", said.len());
        server.run();
        let store = open(&address).unwrap();
        writers::compare(&*store, &name, &said);
        assert_eq!(store.check().unwrap().problems, [""; 0]);
    }
}
