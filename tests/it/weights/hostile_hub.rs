//! Hubs that redirect, lie, or do not come to an end.

use std::fs;
use std::time::{Duration, Instant};

use super::assert_says;
use super::fake_hub::{Fault, Mirror, REPO, Script};
use super::hub::{Client, SECOND, SECRET, fill_as_python, same_as, script, start, weights};

/// Asserts that the model cannot be downloaded, for reasons that contain `parts`, and that the cache is
/// not the worse for it: with an honest hub the next attempt succeeds.
#[track_caller]
fn assert_refused(lying: Script, parts: &[&str]) {
    let (hub, client) = start(lying);
    let error = client.open(REPO).unwrap_err();
    assert_says(&error, parts);
    assert!(!client.repo().join("refs/main").exists(), "an incomplete model was recorded");
    *hub.script.lock().unwrap() = script();
    client.open(REPO).unwrap();
    let snapshot = client.repo().join("snapshots").join(SECOND);
    same_as(&snapshot.join("model.safetensors"), &weights());
}

#[test]
fn a_mirror_on_another_host_is_followed_without_the_token() {
    for status in [301, 302, 303, 307, 308] {
        let (hub, _) = start(script());
        let mirror = Mirror::start(&hub, status);
        let mut client = Client::of(mirror.endpoint());
        client.options.token = Some(SECRET.into());
        let model = client.open(REPO).unwrap();
        assert_eq!(model.revision.as_deref(), Some(SECOND), "{status}");
        let snapshot = client.repo().join("snapshots").join(SECOND);
        same_as(&snapshot.join("model.safetensors"), &weights());
        let bearer = format!("Bearer {SECRET}");
        assert!(mirror.asked().iter().all(|r| r.header("authorization") == Some(&bearer)));
        let others = [hub.asked(), hub.fetched()].concat();
        assert!(!others.is_empty());
        assert!(others.iter().all(|r| r.header("authorization").is_none()), "{status}");
    }
}

#[test]
fn a_refusal_behind_a_redirect_names_its_address() {
    let (hub, _) = start(Script { token: Some(SECRET.into()), ..script() });
    let mirror = Mirror::start(&hub, 308);
    let mut client = Client::of(mirror.endpoint());
    let error = client.open(REPO).unwrap_err();
    assert_says(&error, &[&mirror.endpoint(), &hub.endpoint(), "redirects to", "401"]);
    client.options.token = Some(SECRET.into());
    let error = client.open(REPO).unwrap_err();
    assert_says(&error, &[&hub.endpoint(), "sent to HF_ENDPOINT only"]);
    assert!(!error.detail().contains(SECRET));

    // A sign-in page: it has no commit.
    let (page, _) = start(script());
    let (hub, client) = start(Script {
        redirect: Some((302, format!("{}/login?secret=1", page.endpoint()))),
        ..script()
    });
    page.script.lock().unwrap().redirect = Some((200, String::new()));
    let error = client.open(REPO).unwrap_err();
    assert_says(&error, &[&hub.endpoint(), "does not answer like", "/login)"]);
    assert!(!error.detail().contains("secret"));
}

#[test]
fn redirects_come_to_an_end() {
    let (hub, client) = start(Script { redirect: Some((307, "/elsewhere".into())), ..script() });
    let error = client.open(REPO).unwrap_err();
    assert_says(&error, &[&hub.endpoint(), "more than 10 times", "/elsewhere"]);
    assert_eq!(hub.asked().len(), 11, "it was asked again");
    // A host that does not answer is named.
    let nowhere = "http://127.0.0.1:1/x?secret=1";
    let (hub, client) = start(Script { redirect: Some((308, nowhere.into())), ..script() });
    let error = client.open(REPO).unwrap_err();
    assert_says(&error, &[&hub.endpoint(), "redirects to http://127.0.0.1:1/x:"]);
    assert!(!error.detail().contains("secret"));
    let local = Script { redirect: Some((302, "file:///etc/passwd".into())), ..script() };
    assert_refused(local, &["redirects to file:///etc/passwd", "HF_ENDPOINT"]);
}

#[test]
fn a_content_that_is_not_what_was_announced_is_refused() {
    let other = Script { faults: [Fault::Other].into(), ..script() };
    assert_refused(other, &["model.safetensors", "SHA-256"]);
    for (body, part) in [("<!DOCTYPE html><p>Sign in</p>", "web page"), ("{\"a\": ", "not JSON")] {
        let mut lying = script();
        lying.commits.get_mut(SECOND).unwrap().insert("config.json".into(), body.into());
        assert_refused(lying, &["config.json", part]);
    }
    let same = Script { etag: Some("one".into()), ..script() };
    let (_hub, client) = start(same);
    assert_says(&client.open(REPO).unwrap_err(), &["blobs/one", "announces", "delete that file"]);
}

#[test]
fn no_announced_size_is_believed() {
    let huge = Script { size: Some(1 << 50), ..script() };
    let (hub, client) = start(huge);
    let error = client.open(REPO).unwrap_err();
    assert_says(&error, &["has 1125899906842624 bytes", "expected at most"]);
    assert!(hub.fetched().is_empty());
    // Ten bytes more than there are.
    let longer = Script { size: Some(weights().len() as u64 + 10), ..script() };
    assert_refused(longer, &["cannot be reached"]);
    // One byte less.
    let shorter = Script { size: Some(weights().len() as u64 - 1), ..script() };
    assert_refused(shorter, &["model.safetensors sends more"]);
}

#[test]
fn a_body_without_an_end_is_cut_off() {
    let fast = Fault::Endless(1 << 16, Duration::ZERO);
    assert_refused(Script { faults: [fast].into(), ..script() }, &["model.safetensors sends more"]);
    // Without a size, a small file may have 64 MiB.
    let (_hub, client) = start(Script { endless: Some("config.json"), ..script() });
    assert_says(&client.open(REPO).unwrap_err(), &["config.json sends more than the 67108864"]);
    let blobs = fs::read_dir(client.repo().join("blobs")).unwrap();
    let left: u64 = blobs.map(|blob| blob.unwrap().metadata().unwrap().len()).sum();
    assert_eq!(left, 0);
}

#[test]
fn a_server_that_sends_a_byte_now_and_then_is_given_up() {
    let slow = Fault::Endless(1, Duration::from_millis(5));
    let (_hub, mut client) = start(Script { faults: [slow; 5].into(), ..script() });
    client.options.timeout = Duration::from_millis(50);
    let begin = Instant::now();
    assert_says(&client.open(REPO).unwrap_err(), &["cannot be reached", "sends fewer than"]);
    assert!(begin.elapsed() < Duration::from_secs(30));
}

#[test]
fn a_usable_cache_survives_a_lying_hub() {
    let mut lying = script();
    let page = "<html>Sign in</html>";
    lying.commits.get_mut(SECOND).unwrap().insert("tokenizer.json".into(), page.into());
    let (_hub, client) = start(lying);
    fill_as_python(&client);
    let model = client.open(REPO).unwrap();
    assert!(model.tokenizer.json.is_none() && model.weights.contains("a"));
}

/// Pipes in the cache must not make the start hang.
#[cfg(unix)]
#[test]
fn pipes_in_the_cache_are_not_opened() {
    let (_hub, client) = start(script());
    client.open(REPO).unwrap();
    for name in ["refs/main".into(), format!("snapshots/{SECOND}/config.json")] {
        let path = client.repo().join(&name);
        fs::remove_file(&path).unwrap();
        let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        let result = client.open(REPO);
        if name == "refs/main" {
            assert_says(&result.unwrap_err(), &["refs/main", "cannot be written"]);
            fs::remove_file(&path).unwrap();
            fs::write(&path, SECOND).unwrap();
        } else {
            assert_says(&result.unwrap_err(), &["config.json", "not a regular file"]);
        }
    }
}
