//! The cache on disk, in the layout of `huggingface_hub`:
//!
//! ```text
//! models--organisation--name/
//!   refs/main                      the commit of a revision when it was downloaded
//!   blobs/<etag>                   file contents; `.incomplete` during the download
//!   snapshots/<commit>/<file>      links to blobs
//!   .no_exist/<commit>/<file>      files that the commit is known not to have
//! .locks/models--organisation--name/<etag>.lock
//! ```

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use super::Snapshot;
use crate::engine::layout::{self, INDEXES, SINGLES, SMALL};
use cutline_blip::weights::CheckedFile;
use cutline_error::{Error, Result};

/// The optional files of a model, in the order of downloading.
pub(super) const OPTIONAL: [&str; 6] = [
    "tokenizer.json",
    "vocab.txt",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "generation_config.json",
    "README.md",
];

/// The largest size in bytes of a file that names a commit.
const MAX_REFERENCE: usize = 256;

/// How much of a repository is in the cache.
pub(super) enum Cached {
    /// Every file that the commit has and this program uses.
    Complete(Snapshot),
    /// Config and weights; whether the other files exist is not known.
    Usable(Snapshot),
    /// Too little to load the model.
    Nothing,
}

/// One repository at one revision in the cache.
pub(super) struct RepoCache {
    dir: PathBuf,
    repo: Repo,
    name: String,
    cache: CacheRepo,
}

impl RepoCache {
    /// The caller has checked that `repo` and `revision` are plain names.
    pub(super) fn new(dir: &Path, repo: &str, revision: &str) -> Self {
        let name = repo.to_owned();
        let repo = Repo::with_revision(name.clone(), RepoType::Model, revision.into());
        let cache = Cache::new(dir.into()).repo(repo.clone());
        Self { dir: dir.into(), repo, name, cache }
    }

    /// `organisation/name`.
    pub(super) fn repo(&self) -> &str {
        &self.name
    }

    /// The requested branch, tag or commit.
    pub(super) fn revision(&self) -> &str {
        self.repo.revision()
    }

    /// Looks into the cache, without a request.
    pub(super) fn look(&self) -> Cached {
        let Some(commit) = self.known_commit() else { return Cached::Nothing };
        let folder = self.cache.pointer_path(&commit);
        if !folder.join("config.json").exists() || !self.has_weights(&commit) {
            return Cached::Nothing;
        }
        let complete = self.wanted(&commit).all(|file| self.find(&commit, file).is_some());
        let snapshot = Snapshot { folder, commit };
        if complete { Cached::Complete(snapshot) } else { Cached::Usable(snapshot) }
    }

    /// The optional files that are worth downloading.
    pub(super) fn wanted(&self, commit: &str) -> impl Iterator<Item = &'static str> {
        let tokenizer = self.cache.pointer_path(commit).join("tokenizer.json").exists();
        OPTIONAL.into_iter().filter(move |&file| !(file == "vocab.txt" && tokenizer))
    }

    /// `Some(true)`: the file is in the cache; `Some(false)`: the commit does not have it.
    pub(super) fn find(&self, commit: &str, file: &str) -> Option<bool> {
        if self.cache.pointer_path(commit).join(file).exists() {
            return Some(true);
        }
        self.absent(commit, file).exists().then_some(false)
    }

    /// Whether the weights of `commit` are in the cache, with all shards.
    pub(super) fn has_weights(&self, commit: &str) -> bool {
        let folder = self.snapshot(commit);
        let has_shards = |index: &str| {
            let index = CheckedFile::open(&folder.join(index)).ok();
            let shards = index
                .and_then(|file| layout::shards(file.name(), &file.read_all(SMALL).ok()?).ok());
            shards.is_some_and(|shards| shards.iter().all(|shard| folder.join(shard).exists()))
        };
        SINGLES.iter().any(|single| folder.join(single).exists())
            || INDEXES.into_iter().any(has_shards)
    }

    /// The folder with the files of `commit`.
    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.cache.pointer_path(commit)
    }

    /// The path of a file's content.
    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.cache.blob_path(etag)
    }

    /// Locks a blob until the result is dropped, so that two processes do not write the same file.
    pub(super) fn lock(&self, etag: &str) -> Result<File> {
        let path = self.dir.join(".locks").join(self.repo.folder_name());
        let path = path.join(format!("{etag}.lock"));
        let file = create_parent(&path)
            .and_then(|()| File::create(&path))
            .map_err(|error| unwritable(&path, error))?;
        if let Err(fs::TryLockError::WouldBlock) = file.try_lock() {
            tracing::info!(lock = %path.display(), "waiting for another process to download the file");
            // A file system without locks is used without them, as in `huggingface_hub`.
            let _ = file.lock();
        }
        Ok(file)
    }

    /// Makes a downloaded blob a file of `commit`.
    pub(super) fn link(&self, commit: &str, file: &str, etag: &str) -> Result<()> {
        let (blob, pointer) = (self.blob(etag), self.snapshot(commit).join(file));
        create_parent(&pointer)
            .and_then(|()| link(&blob, &Path::new("../../blobs").join(etag), &pointer))
            .map_err(|error| unwritable(&pointer, error))
    }

    /// Records that `commit` has no such file.
    pub(super) fn mark_absent(&self, commit: &str, file: &str) -> Result<()> {
        let path = self.absent(commit, file);
        create_parent(&path)
            .and_then(|()| File::create(&path))
            .map_err(|error| unwritable(&path, error))
            .map(drop)
    }

    /// Records the commit of the revision. Called once all files are complete, so that an
    /// interrupted update leaves the old commit usable.
    pub(super) fn remember(&self, commit: &str) -> Result<()> {
        if self.revision() == commit {
            return Ok(());
        }
        let path = self.reference();
        // Writing to a named pipe would wait for its reader.
        if path.metadata().is_ok_and(|known| !known.is_file()) {
            return Err(unwritable(&path, io::Error::other("it is not a regular file")));
        }
        self.cache.create_ref(commit).map_err(|error| unwritable(&path, error))
    }

    fn known_commit(&self) -> Option<String> {
        let revision = self.revision();
        if is_commit(revision) {
            return Some(revision.into());
        }
        let commit = CheckedFile::open(&self.reference()).ok()?.read_all(MAX_REFERENCE).ok()?;
        let commit = str::from_utf8(&commit).ok()?.trim();
        is_plain(commit).then(|| commit.to_owned())
    }

    fn reference(&self) -> PathBuf {
        self.folder().join("refs").join(self.revision())
    }

    fn absent(&self, commit: &str, file: &str) -> PathBuf {
        self.folder().join(".no_exist").join(commit).join(file)
    }

    fn folder(&self) -> PathBuf {
        self.dir.join(self.repo.folder_name())
    }
}

/// Whether `name`, an etag or a commit, is safe as the name of a file.
pub(super) fn is_plain(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    !name.is_empty() && name.len() < 200 && !name.starts_with('.') && name.bytes().all(plain)
}

/// Creates the folder of `path`.
pub(super) fn create_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)
}

/// The error for a cache that cannot be written.
pub(super) fn unwritable(path: &Path, error: io::Error) -> Error {
    Error::model(format!(
        "{} cannot be written ({error}); make MODEL_CACHE_DIR a folder that this user may write, \
         on a disk with enough space for the model",
        path.display(),
    ))
    .with_source(error)
}

fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Makes a relative link, so that the cache can be moved; without symbolic links, moves the file
/// itself.
fn link(blob: &Path, relative: &Path, pointer: &Path) -> io::Result<()> {
    // Another process was faster and may be reading it.
    if pointer.exists() {
        return Ok(());
    }
    // A link whose blob was deleted must be removed first.
    if pointer.symlink_metadata().is_ok() {
        fs::remove_file(pointer)?;
    }
    #[cfg(unix)]
    if std::os::unix::fs::symlink(relative, pointer).is_ok() {
        return Ok(());
    }
    #[cfg(windows)]
    if std::os::windows::fs::symlink_file(relative, pointer).is_ok() {
        return Ok(());
    }
    #[cfg(not(any(unix, windows)))]
    let _ = relative;
    fs::rename(blob, pointer)
}
