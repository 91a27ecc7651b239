//! The hub: downloads, resumed downloads, refusals, and the cache that needs no network afterwards.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cutline::engine::hub::HubOptions;
use cutline::engine::source::{self, ModelFiles, ModelSource};
use cutline::error::Error;
use tempfile::TempDir;

use super::fake_hub::{FakeHub, Fault, REPO, Script, etag};
use super::{assert_says, safetensors_of};

const FIRST: &str = "1111111111111111111111111111111111111111";
pub(super) const SECOND: &str = "2222222222222222222222222222222222222222";
pub(super) const SECRET: &str = "hf_secret";

pub(super) fn weights() -> Vec<u8> {
    safetensors_of(&[("a", &[100, 50])])
}

fn files(config: &str) -> BTreeMap<String, Vec<u8>> {
    [
        ("config.json", config.as_bytes().to_vec()),
        ("tokenizer.json", b"{}".to_vec()),
        ("vocab.txt", b"not needed with tokenizer.json".to_vec()),
        ("preprocessor_config.json", br#"{"size": 384}"#.to_vec()),
        ("README.md", b"---\nlicense: bsd-3-clause\n---\n".to_vec()),
        ("model.safetensors", weights()),
        ("pytorch_model.bin", b"not needed with safetensors".to_vec()),
        ("tf_model.h5", b"never needed".to_vec()),
    ]
    .map(|(name, body)| (name.to_owned(), body))
    .into()
}

pub(super) fn script() -> Script {
    Script {
        revisions: [("main", SECOND), ("v1", FIRST), ("refs/pr/3", FIRST)]
            .map(|(revision, commit)| (revision.to_owned(), commit.to_owned()))
            .into(),
        commits: [(FIRST, r#"{"first": true}"#), (SECOND, r#"{"second": true}"#)]
            .map(|(commit, config)| (commit.to_owned(), files(config)))
            .into(),
        ..Script::default()
    }
}

pub(super) struct Client {
    cache: TempDir,
    pub(super) options: HubOptions,
}

impl Client {
    pub(super) fn of(endpoint: String) -> Self {
        let cache = TempDir::new().unwrap();
        let options = HubOptions {
            endpoint,
            cache_dir: cache.path().join("hub"),
            progress: false,
            retry_pause: Duration::from_millis(1),
            ..HubOptions::default()
        };
        Self { cache, options }
    }

    pub(super) fn open(&self, model: &str) -> Result<ModelFiles, Error> {
        source::open(&model.parse::<ModelSource>().unwrap(), &self.options)
    }

    pub(super) fn repo(&self) -> PathBuf {
        self.options.cache_dir.join("models--org--tiny-blip")
    }

    fn partial(&self) -> PathBuf {
        self.repo().join("blobs").join(format!("{}.incomplete", etag(&weights())))
    }
}

pub(super) fn start(script: Script) -> (FakeHub, Client) {
    let hub = FakeHub::start(script);
    let client = Client::of(hub.endpoint());
    (hub, client)
}

pub(super) fn same_as(file: &Path, bytes: &[u8]) {
    assert!(fs::read(file).unwrap() == bytes, "{} differs", file.display());
}

#[test]
fn a_model_is_downloaded_with_the_files_it_needs_and_no_others() {
    let (hub, client) = start(script());
    let model = client.open(REPO).unwrap();
    assert_eq!(model.id, REPO);
    assert_eq!(model.source, format!("{}/{REPO}", hub.endpoint()));
    assert_eq!(model.revision.as_deref(), Some(SECOND));
    assert_eq!(model.config, br#"{"second": true}"#);
    assert_eq!(model.tokenizer.json.unwrap(), b"{}");
    assert!(model.tokenizer.vocab.is_none() && model.generation.is_none());
    assert_eq!(model.preprocessor.unwrap(), br#"{"size": 384}"#);
    assert_eq!(model.license.as_deref(), Some("bsd-3-clause"));
    assert_eq!(model.digest, format!("blake3:{}", blake3::hash(&weights()).to_hex()));
    for needless in ["vocab.txt", "pytorch_model.bin", "tf_model.h5", "index.json"] {
        assert!(hub.asked().iter().all(|r| !r.path.ends_with(needless)), "{needless}");
    }
    // All requests but the first name the commit, so a branch that moves does not mix two models.
    assert!(hub.asked()[1..].iter().all(|r| r.path.contains(SECOND)));
}

#[test]
fn the_cache_has_the_layout_of_huggingface_hub() {
    let (_hub, client) = start(script());
    client.open(REPO).unwrap();
    let repo = client.repo();
    same_as(&repo.join("refs/main"), SECOND.as_bytes());
    let weights = weights();
    same_as(&repo.join("blobs").join(etag(&weights)), &weights);
    let snapshot = repo.join("snapshots").join(SECOND);
    same_as(&snapshot.join("model.safetensors"), &weights);
    #[cfg(unix)]
    assert_eq!(
        fs::read_link(snapshot.join("model.safetensors")).unwrap(),
        Path::new("../../blobs").join(etag(&weights)),
    );
    assert!(repo.join(".no_exist").join(SECOND).join("generation_config.json").exists());
    assert!(!client.partial().exists());
}

#[test]
fn a_cached_model_needs_no_request() {
    let (hub, client) = start(script());
    client.open(REPO).unwrap();
    let asked = hub.asked().len();
    client.open(REPO).unwrap();
    assert_eq!(hub.asked().len(), asked);
    drop(hub);
    assert_eq!(client.open(REPO).unwrap().revision.as_deref(), Some(SECOND));
    let error = client.open(&format!("{REPO}@v1")).unwrap_err();
    assert_says(&error, &["cannot be reached", "HF_ENDPOINT", "set MODEL to its folder"]);
}

#[test]
fn offline_uses_the_cache_and_makes_no_request() {
    let (hub, mut client) = start(script());
    client.options.offline = true;
    let error = client.open(REPO).unwrap_err();
    assert_says(&error, &[REPO, "MODEL_CACHE_DIR", "switched off"]);
    assert!(hub.asked().is_empty());
    client.options.offline = false;
    client.open(REPO).unwrap();
    client.options.offline = true;
    client.open(REPO).unwrap();
}

/// The cache that Python's `from_pretrained` leaves behind when only the model was loaded.
pub(super) fn fill_as_python(client: &Client) {
    let snapshot = client.repo().join("snapshots").join(SECOND);
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(client.repo().join("refs")).unwrap();
    fs::write(client.repo().join("refs/main"), SECOND).unwrap();
    fs::write(snapshot.join("config.json"), "{}").unwrap();
    fs::write(snapshot.join("model.safetensors"), weights()).unwrap();
}

#[test]
fn a_cache_that_python_filled_is_used_and_completed() {
    let (hub, client) = start(script());
    fill_as_python(&client);
    // The branch has moved since then; the cached commit is completed, not replaced.
    hub.script.lock().unwrap().revisions.insert("main".into(), FIRST.into());
    let model = client.open(REPO).unwrap();
    assert_eq!(model.revision.as_deref(), Some(SECOND));
    assert!(model.tokenizer.json.is_some());
    assert!(hub.fetched().is_empty(), "the weights were downloaded again");
    let asked = hub.asked().len();
    client.open(REPO).unwrap();
    assert_eq!(hub.asked().len(), asked);
}

#[test]
fn older_formats_are_downloaded_if_there_is_nothing_newer() {
    let mut script = script();
    let files = script.commits.get_mut(SECOND).unwrap();
    files.remove("tokenizer.json");
    files.remove("model.safetensors");
    files.insert("pytorch_model.bin".into(), include_bytes!("tied.bin").to_vec());
    let (_hub, client) = start(script);
    let model = client.open(REPO).unwrap();
    assert!(model.tokenizer.json.is_none() && model.tokenizer.vocab.is_some());
    assert!(model.weights.contains("head.weight"));
}

#[test]
fn a_cached_model_starts_without_the_hub() {
    let mut silent = script();
    silent.hub_faults = [Fault::Silence].into();
    let (hub, mut client) = start(silent);
    client.options.timeout = Duration::from_millis(50);
    fill_as_python(&client);
    assert!(client.open(REPO).unwrap().tokenizer.json.is_none());
    assert_eq!(hub.asked().len(), 1, "one attempt is enough with a usable cache");
    drop(hub);
    assert!(client.open(REPO).unwrap().tokenizer.json.is_none());
}

#[test]
fn a_broken_connection_is_resumed_where_it_broke() {
    let mut script = script();
    script.faults = [Fault::Break(7000), Fault::Break(5000)].into();
    let (hub, client) = start(script);
    client.open(REPO).unwrap();
    let ranges: Vec<_> =
        hub.fetched().iter().map(|r| r.header("range").map(String::from)).collect();
    let from = |bytes: usize| Some(format!("bytes={bytes}-"));
    assert_eq!(ranges, [None, from(7000), from(12000)]);
    same_as(&client.repo().join("snapshots").join(SECOND).join("model.safetensors"), &weights());
}

#[test]
fn a_stopped_process_is_resumed_by_the_next() {
    let mut script = script();
    script.faults = [Fault::Break(7000)].into_iter().chain([Fault::Status(503); 9]).collect();
    let (hub, client) = start(script);
    assert_says(&client.open(REPO).unwrap_err(), &["cannot be reached", "503"]);
    same_as(&client.partial(), &weights()[..7000]);
    assert!(!client.repo().join("refs/main").exists(), "recorded before it is complete");
    hub.script.lock().unwrap().faults.clear();
    let before = hub.asked().len();
    client.open(REPO).unwrap();
    assert_eq!(hub.fetched().last().unwrap().header("range"), Some("bytes=7000-"));
    // The small files exist already: only the revision and the weights are requested.
    assert_eq!(hub.asked().len() - before, 3);
    same_as(&client.repo().join("snapshots").join(SECOND).join("model.safetensors"), &weights());
}

#[test]
fn a_server_that_ignores_ranges_does_not_corrupt_the_file() {
    let mut script = script();
    script.faults = [Fault::Break(7000), Fault::IgnoreRange].into();
    let (_hub, client) = start(script);
    client.open(REPO).unwrap();
    same_as(&client.repo().join("snapshots").join(SECOND).join("model.safetensors"), &weights());
}

#[test]
fn a_deleted_blob_is_downloaded_again() {
    let (hub, client) = start(script());
    client.open(REPO).unwrap();
    fs::remove_file(client.repo().join("blobs").join(etag(&weights()))).unwrap();
    client.open(REPO).unwrap();
    assert_eq!(hub.fetched().len(), 2);
    same_as(&client.repo().join("snapshots").join(SECOND).join("model.safetensors"), &weights());
}

#[test]
fn a_partial_file_that_is_too_long_is_discarded() {
    let (_hub, client) = start(script());
    fs::create_dir_all(client.repo().join("blobs")).unwrap();
    fs::write(client.partial(), vec![7; weights().len() + 1]).unwrap();
    client.open(REPO).unwrap();
    same_as(&client.repo().join("snapshots").join(SECOND).join("model.safetensors"), &weights());
}

#[test]
fn temporary_failures_of_the_hub_are_retried() {
    let mut script = script();
    script.hub_faults = [503, 500, 429, 502].map(Fault::Status).into();
    script.faults = [Fault::Status(503)].into();
    let (_hub, client) = start(script);
    client.open(REPO).unwrap();
}

#[test]
fn a_hub_that_keeps_failing_is_reported_with_a_remedy() {
    let mut script = script();
    script.hub_faults = [Fault::Status(503); 20].into();
    let (hub, client) = start(script);
    let error = client.open(REPO).unwrap_err();
    assert_says(&error, &[&hub.endpoint(), "503", "check the network and HF_ENDPOINT", "MODEL"]);
    assert_eq!(hub.asked().len(), 5);
}

#[test]
fn a_silent_storage_is_asked_again() {
    let mut script = script();
    script.faults = [Fault::Silence].into();
    let (hub, mut client) = start(script);
    client.options.timeout = Duration::from_millis(200);
    client.open(REPO).unwrap();
    assert!(hub.fetched().len() >= 2);
}

#[test]
fn the_token_is_sent_to_the_hub_only() {
    let mut script = script();
    script.token = Some(SECRET.into());
    script.indirect = true;
    let (hub, mut client) = start(script);
    client.options.token = Some(format!(" {SECRET}\n"));
    client.open(REPO).unwrap();
    let bearer = format!("Bearer {SECRET}");
    assert!(hub.asked().iter().all(|r| r.header("authorization") == Some(&bearer)));
    assert!(!hub.fetched().is_empty());
    for request in hub.fetched() {
        assert_eq!(request.header("authorization"), None, "{} {}", request.method, request.path);
    }
    assert!(!format!("{:?}", client.options).contains(SECRET));
}

#[test]
fn a_private_or_gated_model_requires_a_token() {
    for (gated, token, part) in [
        (false, None, "set HF_TOKEN"),
        (true, None, "accept its conditions"),
        (false, Some("hf_wrong"), "the token in HF_TOKEN"),
        (true, Some("hf_wrong"), "set HF_TOKEN"),
    ] {
        let (hub, mut client) = start(Script { token: Some(SECRET.into()), gated, ..script() });
        client.options.token = token.map(str::to_owned);
        let error = client.open(REPO).unwrap_err();
        assert_says(&error, &[REPO, "HF_TOKEN", part]);
        assert!(!error.detail().contains("hf_wrong"));
        assert_eq!(hub.asked().len(), 1, "a refusal is not retried");
    }
}

#[test]
fn what_is_missing_is_named() {
    let (hub, client) = start(script());
    let error = client.open("org/tiny-blib").unwrap_err();
    assert_says(&error, &["there is no model org/tiny-blib", &hub.endpoint(), "spelling"]);
    let error = client.open(&format!("{REPO}@v7")).unwrap_err();
    assert_says(&error, &[REPO, "no revision `v7`"]);

    let drop_files = |names: &[&str]| {
        let mut script = hub.script.lock().unwrap();
        let files = script.commits.get_mut(SECOND).unwrap();
        names.iter().for_each(|name| drop(files.remove(*name)));
    };
    drop_files(&["model.safetensors", "pytorch_model.bin"]);
    let error = client.open(REPO).unwrap_err();
    assert_says(&error, &[REPO, "neither model.safetensors nor pytorch_model.bin", SECOND]);
    drop_files(&["config.json"]);
    let other = Client::of(hub.endpoint());
    assert_says(&other.open(REPO).unwrap_err(), &["config.json does not exist", REPO]);
}

#[test]
fn shards_are_downloaded_through_their_index() {
    let mut script = script();
    let files = script.commits.get_mut(SECOND).unwrap();
    files.remove("model.safetensors");
    let index = r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#;
    files.insert("model.safetensors.index.json".into(), index.into());
    files.insert("model-1.safetensors".into(), safetensors_of(&[("a", &[2])]));
    let (hub, client) = start(script);
    let error = client.open(REPO).unwrap_err();
    assert_says(&error, &["model-2.safetensors does not exist", "incomplete"]);

    let second = safetensors_of(&[("b", &[2])]);
    let mut script = hub.script.lock().unwrap();
    script.commits.get_mut(SECOND).unwrap().insert("model-2.safetensors".into(), second);
    drop(script);
    // The first cache has recorded the shard as missing, because a commit cannot change.
    let other = Client::of(hub.endpoint());
    let model = other.open(REPO).unwrap();
    assert!(model.weights.contains("a") && model.weights.contains("b"));
    drop(hub);
    other.open(REPO).unwrap();
}

#[test]
fn revisions_are_pinned_and_share_their_blobs() {
    let (hub, client) = start(script());
    let first = client.open(&format!("{REPO}@v1")).unwrap();
    assert_eq!(first.revision.as_deref(), Some(FIRST));
    assert_eq!(first.config, br#"{"first": true}"#);
    let main = client.open(REPO).unwrap();
    assert_eq!(main.config, br#"{"second": true}"#);
    assert_eq!(hub.fetched().len(), 1, "the same weights were downloaded twice");
    let commit = client.open(&format!("{REPO}@{FIRST}")).unwrap();
    assert_eq!(commit.config, br#"{"first": true}"#);
    assert!(!client.repo().join("refs").join(FIRST).exists());
    let pull = client.open(&format!("{REPO}@refs/pr/3")).unwrap();
    assert_eq!(pull.config, br#"{"first": true}"#);
    same_as(&client.repo().join("refs/refs/pr/3"), FIRST.as_bytes());
}

#[test]
fn a_mirror_without_head_requests_works() {
    let (_hub, client) = start(Script { no_head: true, indirect: true, ..script() });
    client.open(REPO).unwrap();
    same_as(&client.repo().join("snapshots").join(SECOND).join("model.safetensors"), &weights());
}

#[test]
fn a_wrong_endpoint_is_reported() {
    let client = Client::of("huggingface".into());
    assert_says(&client.open(REPO).unwrap_err(), &["HF_ENDPOINT", "`huggingface`"]);
    let hub = FakeHub::start(script());
    // A hub without TLS.
    let mut client = Client::of(hub.endpoint().replace("http:", "https:"));
    client.options.timeout = Duration::from_millis(50);
    assert_says(&client.open(REPO).unwrap_err(), &["cannot be reached", "https://127.0.0.1"]);
    // A port without a listener.
    let client = Client::of(hub.endpoint());
    drop(hub);
    assert_says(&client.open(REPO).unwrap_err(), &["cannot be reached", "check the network"]);
}

#[test]
fn a_cache_that_cannot_be_written_is_named() {
    let (_hub, mut client) = start(script());
    let file = client.cache.path().join("file");
    fs::write(&file, "in the way").unwrap();
    client.options.cache_dir = file;
    assert_says(&client.open(REPO).unwrap_err(), &["cannot be written", "MODEL_CACHE_DIR"]);
}

#[test]
fn two_processes_can_download_the_same_model_at_once() {
    let (_hub, client) = start(script());
    std::thread::scope(|scope| {
        let both = [(); 2].map(|()| scope.spawn(|| client.open(REPO).map(drop)));
        both.into_iter().for_each(|thread| thread.join().unwrap().unwrap());
    });
    same_as(&client.repo().join("snapshots").join(SECOND).join("model.safetensors"), &weights());
}
