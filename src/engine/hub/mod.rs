//! Models from a Hugging Face hub, in the cache layout of `huggingface_hub`, so that this program
//! and Python can share a cache.
//!
//! A model in the cache is used without a request: a server that restarts does not change its model
//! because a branch has moved, and it works without a network. Naming another revision downloads
//! it.

mod cache;
mod client;
mod download;
mod verify;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use self::cache::{Cached, RepoCache};
use self::download::Download;
use cutline_error::{Error, Result};

/// The hub that is used unless `HF_ENDPOINT` names another.
pub const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// How to reach the hub, and where to store its files.
#[derive(Clone)]
pub struct HubOptions {
    /// `HF_ENDPOINT`: the address of the hub; empty for [`DEFAULT_ENDPOINT`].
    pub endpoint: String,
    /// `HF_TOKEN`: sent to the hub itself and never to another host.
    pub token: Option<String>,
    /// `MODEL_CACHE_DIR`: the folder that holds `models--organisation--name`.
    pub cache_dir: PathBuf,
    /// Use the cache only.
    pub offline: bool,
    /// Draw a progress bar, if standard error is a terminal.
    pub progress: bool,
    /// How long the hub may be silent while connecting, answering or sending.
    pub timeout: Duration,
    /// The pause before the second attempt; it doubles with each further one.
    pub retry_pause: Duration,
}

impl Default for HubOptions {
    /// The public hub, no token, the cache in `models` below the working directory.
    fn default() -> Self {
        Self {
            endpoint: DEFAULT_ENDPOINT.into(),
            token: None,
            cache_dir: "models".into(),
            offline: false,
            progress: true,
            timeout: Duration::from_secs(10),
            retry_pause: Duration::from_millis(500),
        }
    }
}

impl HubOptions {
    /// The address of the hub, without a trailing slash.
    pub(super) fn endpoint(&self) -> &str {
        match self.endpoint.trim().trim_end_matches('/') {
            "" => DEFAULT_ENDPOINT,
            endpoint => endpoint,
        }
    }
}

impl fmt::Debug for HubOptions {
    /// Everything but the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubOptions")
            .field("endpoint", &self.endpoint)
            .field("token", &self.token.as_ref().map(|_| "…"))
            .field("cache_dir", &self.cache_dir)
            .field("offline", &self.offline)
            .field("progress", &self.progress)
            .field("timeout", &self.timeout)
            .field("retry_pause", &self.retry_pause)
            .finish()
    }
}

/// One commit of a repository in the cache.
#[derive(Debug)]
pub(super) struct Snapshot {
    /// The folder that holds its files.
    pub(super) folder: PathBuf,
    /// The commit.
    pub(super) commit: String,
}

/// Finds the model in the cache, or downloads what is missing.
///
/// # Errors
/// It cannot be downloaded, or the cache cannot be written.
pub(super) fn fetch(repo: &str, revision: Option<&str>, options: &HubOptions) -> Result<Snapshot> {
    let cache = RepoCache::new(&options.cache_dir, repo, revision.unwrap_or("main"));
    let usable = match cache.look() {
        Cached::Complete(snapshot) => return Ok(snapshot),
        Cached::Usable(snapshot) => Some(snapshot),
        Cached::Nothing => None,
    };
    if options.offline {
        return usable.ok_or_else(|| not_cached(&cache, options));
    }
    let fetched = Download::new(&cache, options, usable.is_none())
        .and_then(|download| download.run(usable.as_ref().map(|known| known.commit.as_str())));
    match (fetched, usable) {
        (Ok(snapshot), _) => Ok(snapshot),
        (Err(error), Some(snapshot)) => {
            tracing::warn!(%error, "the model's optional files cannot be downloaded; continuing with \
                            those in the cache");
            Ok(snapshot)
        }
        (Err(error), None) => Err(error),
    }
}

fn not_cached(cache: &RepoCache, options: &HubOptions) -> Error {
    Error::model(format!(
        "{}@{} is not completely in MODEL_CACHE_DIR ({}), and downloads are switched off; switch \
         them on for one start, or set MODEL to a folder that holds the model",
        cache.repo(),
        cache.revision(),
        options.cache_dir.display(),
    ))
}
