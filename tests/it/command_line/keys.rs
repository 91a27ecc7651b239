//! `cutline keys` and `cutline usage`, and a server that is killed.

use std::process::{Command, Output};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use tempfile::TempDir;

use super::server::Server;
use super::{assert_sentence, assert_status, cutline, photo, text};

fn with_library(folder: &TempDir, arguments: &[&str]) -> Output {
    cutline(folder, arguments).env("LIBRARY", "sqlite:photos.db").output().unwrap()
}

#[track_caller]
fn printed(folder: &TempDir, arguments: &[&str]) -> String {
    let output = with_library(folder, arguments);
    assert_status(&output, 0);
    text(&output.stdout).to_owned()
}

#[test]
fn keys_are_made_listed_rotated_and_revoked() {
    let folder = tempfile::tempdir().unwrap();
    let create =
        ["keys", "create", "web site", "--scope", "caption,admin", "--budget", "10", "--daily"];
    let key = printed(&folder, &create).trim_end().to_owned();
    assert!(key.starts_with("cutline_") && key.len() > 40, "{key}");
    assert_sentence(&with_library(&folder, &create), 2, &["web site", "choose another name"]);
    let list = printed(&folder, &["keys", "list"]);
    let cells: Vec<&str> = list.trim_end().split('\t').collect();
    assert_eq!(
        (cells[0], cells[1], cells[3], cells[4]),
        ("1", "web site", "caption,admin", "valid")
    );
    assert!(key.starts_with(cells[2].trim_end_matches('…')) && !list.contains(&key), "{list}");
    let json: Value = serde_json::from_str(&printed(&folder, &["keys", "list", "--json"])).unwrap();
    assert_eq!((&json["budget"]["amount"], &json["budget"]["period"]), (&10.into(), &"day".into()));
    let newer = printed(&folder, &["keys", "rotate", "web site", "--grace", "1h"]);
    assert_ne!(newer.trim_end(), key);
    assert_status(&with_library(&folder, &["keys", "revoke", "1"]), 0);
    assert!(printed(&folder, &["keys", "list"]).contains("revoked 20"));
    assert_sentence(&with_library(&folder, &["keys", "revoke", "nobody"]), 1, &["no key nobody"]);
    assert_eq!(printed(&folder, &["usage"]), "");
}

/// The images and requests that the library has counted.
fn counted(folder: &TempDir) -> (u64, u64) {
    let rows = printed(folder, &["usage", "--json"]);
    let Some(row) = rows.lines().next() else { return (0, 0) };
    let row: Value = serde_json::from_str(row).unwrap();
    (row["images"].as_u64().unwrap(), row["requests"].as_u64().unwrap())
}

/// Every answer that a client has is counted, once, whenever the server is killed.
#[test]
fn a_killed_server_loses_and_repeats_no_usage() {
    const CLIENTS: u64 = 12;
    let folder = tempfile::tempdir().unwrap();
    let key = printed(&folder, &["keys", "create", "app"]).trim_end().to_owned();
    let library = format!("sqlite:{}", folder.path().join("photos.db").display());
    let cat = std::fs::read(photo("cat")).unwrap();
    let (mut acknowledged, mut most) = (0, 0);
    for round in 0..3_u64 {
        let server = Server::start_with(&[("LIBRARY", library.as_str())]);
        server.wait_until_ready();
        let answered = AtomicU64::new(0);
        thread::scope(|scope| {
            for client in 0..CLIENTS {
                let (answered, cat, key) = (&answered, &cat, &key);
                let address = server.address.clone();
                scope.spawn(move || {
                    let agent: ureq::Agent = ureq::Agent::config_builder()
                        .timeout_global(Some(Duration::from_secs(60)))
                        .build()
                        .into();
                    // Two in three are cached, so that commits come as fast as they can.
                    for number in 0.. {
                        let tokens = if number % 3 == 0 { 1 + client } else { 1 };
                        let url = format!("{address}/caption/generate?max_new_tokens={tokens}");
                        let request = agent.post(url).header("content-type", "image/jpeg");
                        let mut answer = match request.header("x-api-key", key).send(cat.as_slice())
                        {
                            Ok(answer) => answer,
                            Err(ureq::Error::StatusCode(status)) => panic!("{status}"),
                            Err(_) => return,
                        };
                        let Ok(body) = answer.body_mut().read_to_vec() else { return };
                        assert_eq!(answer.status(), 200);
                        serde_json::from_slice::<Value>(&body).unwrap();
                        answered.fetch_add(1, Ordering::SeqCst);
                    }
                });
            }
            let begin = Instant::now();
            while answered.load(Ordering::SeqCst) < 40 + 37 * round {
                assert!(begin.elapsed() < Duration::from_secs(100));
                thread::sleep(Duration::from_millis(1));
            }
            let killed = Command::new("kill").args(["-KILL", &server.id().to_string()]).status();
            assert!(killed.unwrap().success());
        });
        let answered = answered.into_inner();
        acknowledged += answered;
        // A request of each client may have been between the commit and the answer.
        most += answered + CLIENTS;
        let (images, requests) = counted(&folder);
        assert!((acknowledged..=most).contains(&images), "{images} of {acknowledged} to {most}");
        assert_eq!(images, requests);
        (acknowledged, most) = (images, images);
    }
}
