//! Downloads a snapshot into the cache, file by file, and resumes interrupted downloads.

use std::cell::Cell;
use std::fs::{self, File, OpenOptions};
use std::io::{IsTerminal, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use ureq::Body;
use ureq::http::Response;

use super::cache::{RepoCache, create_parent, unwritable};
use super::client::{HubClient, HubResponse, Meta, RequestFailure, header, without_query};
use super::{HubOptions, Snapshot, verify};
use crate::engine::layout::{self, INDEXES, SINGLES, SMALL};
use cutline_blip::weights::CheckedFile;
use cutline_error::{Error, Result};

/// Bytes that are read from the network at a time.
const CHUNK: usize = 256 << 10;

/// The most bytes that the weights of one model may have. A hub that announces more, or sends without an
/// end, must not fill the disk.
const MAX_WEIGHTS: u64 = 16 << 30;

/// Bytes after which an attempt counts as progress, and which a server must send in the time of
/// [`HubClient::patience`].
const PROGRESS: u64 = 64 << 10;

const OK: u16 = 200;
const PARTIAL_CONTENT: u16 = 206;
const RANGE_NOT_SATISFIABLE: u16 = 416;

/// The download of one snapshot.
pub(super) struct Download<'a> {
    cache: &'a RepoCache,
    client: HubClient,
    progress: bool,
    /// Bytes of weights that may still be downloaded.
    left: Cell<u64>,
}

impl<'a> Download<'a> {
    /// `retry` says whether failed requests are repeated.
    pub(super) fn new(cache: &'a RepoCache, options: &HubOptions, retry: bool) -> Result<Self> {
        let client = HubClient::new(options, retry)?;
        let progress = options.progress && std::io::stderr().is_terminal();
        Ok(Self { cache, client, progress, left: Cell::new(MAX_WEIGHTS) })
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
            let bytes = CheckedFile::open(&path)?.read_all(SMALL)?;
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
        match blob.metadata() {
            Err(_) => self.blob(commit, file, meta, &blob)?,
            // Another revision may have the same content, but two contents may not have one name.
            Ok(known) => match meta.size.filter(|size| *size != known.len()) {
                None => {}
                Some(size) => {
                    return Err(Error::model(format!(
                        "{} has {} bytes, but the hub announces {size} for {file}; delete that file, and \
                         check HF_ENDPOINT if this happens again",
                        blob.display(),
                        known.len(),
                    )));
                }
            },
        }
        self.cache.link(commit, file, &meta.etag)
    }

    fn blob(&self, commit: &str, file: &str, meta: &Meta, blob: &Path) -> Result<()> {
        let url = self.client.url(self.cache.repo(), commit, file);
        let is_weights = layout::is_weights(file);
        let limit = if is_weights { self.left.get() } else { SMALL as u64 };
        if let Some(size) = meta.size.filter(|size| *size > limit) {
            return Err(too_long(&url, &format!("has {size} bytes, more"), limit));
        }
        let partial = blob.with_file_name(format!("{}.incomplete", meta.etag));
        let mut part = create_parent(&partial)
            .and_then(|()| OpenOptions::new().create(true).append(true).open(&partial))
            .map_err(|error| unwritable(&partial, error))?;
        let written = part.metadata().map_err(|error| unwritable(&partial, error))?.len();
        let expected = Expected { size: meta.size, limit, patience: self.client.patience() };
        let mut part = Part { file: &mut part, path: &partial, written };
        tracing::info!(file, size = meta.size, from = written, "downloading");
        let bar = self.bar(file, meta.size);
        self.fill(&url, &expected, &mut part, &bar)?;
        bar.finish_and_clear();
        if is_weights {
            self.left.set(self.left.get().saturating_sub(part.written));
        }
        part.file.sync_all().map_err(|error| unwritable(&partial, error))?;
        if let Err(error) = verify::content(&url, file, &meta.etag, &partial) {
            // Resuming it would not make it right.
            part.restart()?;
            return Err(error);
        }
        fs::rename(&partial, blob).map_err(|error| unwritable(blob, error))
    }

    /// Requests the rest until the file is complete. Progress resets the count of failed attempts.
    fn fill(
        &self,
        url: &str,
        expected: &Expected,
        part: &mut Part<'_>,
        bar: &ProgressBar,
    ) -> Result<()> {
        let mut failed = 0;
        loop {
            if part.written > expected.size.unwrap_or(expected.limit) {
                part.restart()?;
            }
            if expected.size.is_some_and(|size| part.written == size) {
                return Ok(());
            }
            let before = part.written;
            match self.client.get(url, before).and_then(|answer| part.take(answer, expected, bar)) {
                Ok(()) => return Ok(()),
                Err(RequestFailure::Permanent(error)) => return Err(error),
                Err(RequestFailure::Temporary(cause)) => {
                    failed = if part.written >= before + PROGRESS { 1 } else { failed + 1 };
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

/// What is known of a content before it comes.
struct Expected {
    /// Size in bytes, if the hub reports it.
    size: Option<u64>,
    /// The most bytes that are taken.
    limit: u64,
    patience: Duration,
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
        answer: HubResponse,
        expected: &Expected,
        bar: &ProgressBar,
    ) -> Result<(), RequestFailure> {
        let url = answer.address().to_owned();
        let answer = answer.response;
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
            .and_then(|length| self.written.checked_add(length.parse().ok()?));
        let size = expected.size.or(announced);
        let limit = size.unwrap_or(expected.limit).min(expected.limit);
        self.append(answer, &url, limit, expected.patience, bar)?;
        match size {
            Some(size) if size != self.written => Err(RequestFailure::Temporary(format!(
                "{url} ended after {} of {size} bytes",
                self.written
            ))),
            _ => Ok(()),
        }
    }

    /// Appends a body of at most `limit` bytes, those on disk included. A server that sends next to
    /// nothing for as long as `patience` has failed, although it is never silent.
    fn append(
        &mut self,
        answer: Response<Body>,
        url: &str,
        limit: u64,
        patience: Duration,
        bar: &ProgressBar,
    ) -> Result<(), RequestFailure> {
        let mut body = answer.into_body().into_reader();
        let mut chunk = vec![0; CHUNK];
        let (mut since, mut at_that_time) = (Instant::now(), self.written);
        loop {
            bar.set_position(self.written);
            let read =
                body.read(&mut chunk).map_err(|e| RequestFailure::Temporary(e.to_string()))?;
            if read == 0 {
                return Ok(());
            }
            if self.written + read as u64 > limit {
                self.restart().map_err(RequestFailure::Permanent)?;
                return Err(RequestFailure::Permanent(too_long(url, "sends more", limit)));
            }
            self.file
                .write_all(&chunk[..read])
                .map_err(|error| RequestFailure::Permanent(unwritable(self.path, error)))?;
            self.written += read as u64;
            if since.elapsed() >= patience {
                if self.written - at_that_time < PROGRESS {
                    return Err(RequestFailure::Temporary(format!(
                        "{url} sends fewer than {PROGRESS} bytes in {} s",
                        patience.as_secs_f32()
                    )));
                }
                (since, at_that_time) = (Instant::now(), self.written);
            }
        }
    }
}

fn too_long(url: &str, what: &str, limit: u64) -> Error {
    Error::model(format!(
        "{} {what} than the {limit} bytes that are expected at most; check HF_ENDPOINT, or choose another \
         model",
        without_query(url)
    ))
}

/// Whether a partial answer begins at the requested offset.
fn starts_at(answer: &Response<Body>, offset: u64) -> bool {
    header(answer.headers(), "content-range")
        .and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse().ok())
        .is_some_and(|start: u64| start == offset)
}
