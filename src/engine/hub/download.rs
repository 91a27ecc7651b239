//! Downloads a snapshot into the cache, file by file, and resumes interrupted downloads.

use std::fs::{self, File, OpenOptions};
use std::io::{IsTerminal, Read, Write};
use std::path::Path;

use indicatif::{ProgressBar, ProgressStyle};
use ureq::Body;
use ureq::http::Response;

use super::cache::{RepoCache, create_parent, unwritable};
use super::client::{HubClient, Meta, RequestFailure, header};
use super::{HubOptions, Snapshot};
use crate::engine::layout::{self, INDEXES, SINGLES};
use cutline_error::{Error, Result};

/// Bytes that are read from the network at a time.
const CHUNK: usize = 256 << 10;

const OK: u16 = 200;
const PARTIAL_CONTENT: u16 = 206;
const RANGE_NOT_SATISFIABLE: u16 = 416;

/// The download of one snapshot.
pub(super) struct Download<'a> {
    cache: &'a RepoCache,
    client: HubClient,
    progress: bool,
}

impl<'a> Download<'a> {
    /// `retry` says whether failed requests are repeated.
    pub(super) fn new(cache: &'a RepoCache, options: &HubOptions, retry: bool) -> Result<Self> {
        let client = HubClient::new(options, retry)?;
        let progress = options.progress && std::io::stderr().is_terminal();
        Ok(Self { cache, client, progress })
    }

    /// Downloads the missing files: the small ones first, the weights last. All files belong to one
    /// commit, even if the revision moves meanwhile: `known`, whose config and weights are in the
    /// cache, or else the revision's current commit.
    pub(super) fn run(self, known: Option<&str>) -> Result<Snapshot> {
        let commit = match known {
            Some(commit) => commit.to_owned(),
            None => self.config()?,
        };
        for file in super::cache::OPTIONAL {
            // Checked again for each file: tokenizer.json makes vocab.txt superfluous.
            if self.cache.wanted(&commit).any(|wanted| wanted == file) {
                self.file(&commit, file)?;
            }
        }
        if !self.cache.has_weights(&commit) {
            self.weights(&commit)?;
        }
        self.cache.remember(&commit)?;
        Ok(Snapshot { folder: self.cache.snapshot(&commit), commit })
    }

    /// Downloads config.json; the answer names the revision's commit.
    fn config(&self) -> Result<String> {
        let (repo, revision) = (self.cache.repo(), self.cache.revision());
        let Some(meta) = self.client.meta(repo, revision, "config.json")? else {
            return Err(Error::model(format!(
                "{} does not exist; {repo} is not a model in Hugging Face layout, or MODEL is misspelt: check \
                 MODEL",
                self.client.url(repo, revision, "config.json"),
            )));
        };
        self.store(&meta.commit, "config.json", &meta)?;
        Ok(meta.commit)
    }

    fn weights(&self, commit: &str) -> Result<()> {
        for (single, index) in SINGLES.into_iter().zip(INDEXES) {
            if self.file(commit, single)? {
                return Ok(());
            }
            if !self.file(commit, index)? {
                continue;
            }
            let path = self.cache.snapshot(commit).join(index);
            let bytes = fs::read(&path).map_err(|error| unwritable(&path, error))?;
            for shard in layout::shards(&path.display().to_string(), &bytes)? {
                if !self.file(commit, &shard)? {
                    return Err(Error::model(format!(
                        "{} does not exist, but {index} lists it; {} is incomplete: choose another \
                         revision or model",
                        self.client.url(self.cache.repo(), commit, &shard),
                        self.cache.repo(),
                    )));
                }
            }
            return Ok(());
        }
        Err(Error::model(format!(
            "{} has neither {} nor {} at {commit}; choose another revision or model",
            self.cache.repo(),
            SINGLES[0],
            SINGLES[1],
        )))
    }

    /// Downloads a file, and says whether the commit has it.
    fn file(&self, commit: &str, file: &str) -> Result<bool> {
        if let Some(known) = self.cache.find(commit, file) {
            return Ok(known);
        }
        match self.client.meta(self.cache.repo(), commit, file)? {
            Some(meta) => self.store(commit, file, &meta).map(|()| true),
            None => self.cache.mark_absent(commit, file).map(|()| false),
        }
    }

    fn store(&self, commit: &str, file: &str, meta: &Meta) -> Result<()> {
        let _lock = self.cache.lock(&meta.etag)?;
        if self.cache.find(commit, file) == Some(true) {
            return Ok(());
        }
        let blob = self.cache.blob(&meta.etag);
        // Another revision may have the same content.
        if !blob.exists() {
            self.blob(commit, file, meta, &blob)?;
        }
        self.cache.link(commit, file, &meta.etag)
    }

    fn blob(&self, commit: &str, file: &str, meta: &Meta, blob: &Path) -> Result<()> {
        let partial = blob.with_file_name(format!("{}.incomplete", meta.etag));
        let mut part = create_parent(&partial)
            .and_then(|()| OpenOptions::new().create(true).append(true).open(&partial))
            .map_err(|error| unwritable(&partial, error))?;
        let written = part.metadata().map_err(|error| unwritable(&partial, error))?.len();
        let mut part = Part { file: &mut part, path: &partial, written };
        tracing::info!(file, size = meta.size, from = written, "downloading");
        let bar = self.bar(file, meta.size);
        self.fill(&self.client.url(self.cache.repo(), commit, file), meta.size, &mut part, &bar)?;
        bar.finish_and_clear();
        part.file
            .sync_all()
            .and_then(|()| fs::rename(&partial, blob))
            .map_err(|error| unwritable(blob, error))
    }

    /// Requests the rest until the file is complete. Progress resets the count of failed attempts.
    fn fill(
        &self,
        url: &str,
        size: Option<u64>,
        part: &mut Part<'_>,
        bar: &ProgressBar,
    ) -> Result<()> {
        let mut failed = 0;
        loop {
            if size.is_some_and(|size| part.written > size) {
                part.restart()?;
            }
            if size.is_some_and(|size| part.written == size) {
                return Ok(());
            }
            let before = part.written;
            match self.client.get(url, before).and_then(|answer| part.take(answer, url, size, bar))
            {
                Ok(()) => return Ok(()),
                Err(RequestFailure::Permanent(error)) => return Err(error),
                Err(RequestFailure::Temporary(cause)) => {
                    failed = if part.written > before { 1 } else { failed + 1 };
                    self.client.pause_after(failed, &cause)?;
                }
            }
        }
    }

    fn bar(&self, file: &str, size: Option<u64>) -> ProgressBar {
        if !self.progress {
            return ProgressBar::hidden();
        }
        let template = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        let style = ProgressStyle::with_template(template);
        ProgressBar::new(size.unwrap_or_default())
            .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
            .with_message(file.to_owned())
    }
}

/// A blob that is being downloaded.
struct Part<'a> {
    file: &'a mut File,
    path: &'a Path,
    written: u64,
}

impl Part<'_> {
    /// Starts the file again from its beginning.
    fn restart(&mut self) -> Result<()> {
        self.file.set_len(0).map_err(|error| unwritable(self.path, error))?;
        self.written = 0;
        Ok(())
    }

    /// Appends the body of an answer to a request from `self.written` on.
    fn take(
        &mut self,
        answer: Response<Body>,
        url: &str,
        size: Option<u64>,
        bar: &ProgressBar,
    ) -> Result<(), RequestFailure> {
        match answer.status().as_u16() {
            PARTIAL_CONTENT if starts_at(&answer, self.written) => {}
            // The server ignored the range, or the part on disk does not fit: start again.
            OK => self.restart().map_err(RequestFailure::Permanent)?,
            PARTIAL_CONTENT | RANGE_NOT_SATISFIABLE => {
                self.restart().map_err(RequestFailure::Permanent)?;
                return Err(RequestFailure::Temporary(
                    "it sent a different range than requested".into(),
                ));
            }
            status => {
                return Err(RequestFailure::Permanent(Error::model(format!(
                    "{url} answered {status}; check HF_TOKEN and HF_ENDPOINT, or download the \
                     model elsewhere and set MODEL to its folder"
                ))));
            }
        }
        let announced = header(answer.headers(), "content-length")
            .and_then(|length| Some(self.written + length.parse::<u64>().ok()?));
        let size = size.or(announced);
        let mut body = answer.into_body().into_reader();
        let mut chunk = vec![0; CHUNK];
        loop {
            bar.set_position(self.written);
            let read =
                body.read(&mut chunk).map_err(|e| RequestFailure::Temporary(e.to_string()))?;
            if read == 0 {
                break;
            }
            self.file
                .write_all(&chunk[..read])
                .map_err(|error| RequestFailure::Permanent(unwritable(self.path, error)))?;
            self.written += read as u64;
        }
        match size {
            Some(size) if size != self.written => Err(RequestFailure::Temporary(format!(
                "{url} ended after {} of {size} bytes",
                self.written
            ))),
            _ => Ok(()),
        }
    }
}

/// Whether a partial answer begins at the requested offset.
fn starts_at(answer: &Response<Body>, offset: u64) -> bool {
    header(answer.headers(), "content-range")
        .and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse().ok())
        .is_some_and(|start: u64| start == offset)
}
