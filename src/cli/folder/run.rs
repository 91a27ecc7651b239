//! Captions photos, several at once, and writes the results in order.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::inputs::InputPhoto;
use super::library::Library;
use super::name;
use super::output::{Output, WriteError};
use super::progress::ProgressReporter;
use super::record::{Description, FileStamp, Record};
use super::sidecar::Sidecars;
use crate::captioner::{CaptionParams, Captioner, Fallback, Style};
use crate::cli::signals::Signals;
use cutline_error::{Error, ErrorKind, Result};
use cutline_image::Colors;

/// Captions photos with one set of parameters. Cheap to clone.
#[derive(Debug, Clone)]
pub(in crate::cli) struct CaptionRun {
    captioner: Captioner,
    params: CaptionParams,
    max_bytes: usize,
    sidecars: Option<Arc<Sidecars>>,
    /// Whether sidecars of somebody else are overwritten.
    overwrite: bool,
    /// Limits the photos in memory to as many as keep the model and the decoders busy.
    permits: Arc<Semaphore>,
    at_once: usize,
    parameters: Arc<str>,
    /// Whether colours are asked for although rows and sidecars have none.
    only_for_library: bool,
}

/// Where captions are written, beside sidecars.
#[derive(Debug)]
pub(in crate::cli) struct Places {
    pub(in crate::cli) output: Option<Output>,
    pub(in crate::cli) library: Option<Library>,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum RunEnd {
    /// All photos were processed.
    Done,
    /// The reader of standard output closed it.
    ReaderLeft,
    /// A signal arrived; the exit status for it.
    Interrupted(u8),
}

impl CaptionRun {
    pub(in crate::cli) fn new(
        captioner: Captioner,
        params: CaptionParams,
        max_bytes: usize,
        sidecars: Option<Sidecars>,
        overwrite: bool,
    ) -> Self {
        let at_once = captioner.photos_at_once();
        Self {
            parameters: captioner.fingerprint(&params).into(),
            captioner,
            params,
            max_bytes,
            sidecars: sidecars.map(Arc::new),
            overwrite,
            permits: Arc::new(Semaphore::new(at_once)),
            at_once,
            only_for_library: false,
        }
    }

    /// Finds colours for the library, whether or not rows have them.
    pub(in crate::cli) fn with_colors(mut self) -> Self {
        self.only_for_library = !std::mem::replace(&mut self.params.colors, true);
        self
    }

    /// Captions `photos` and writes their rows in order. After a signal, photos in progress are
    /// finished and no others started; after a second one, nothing is waited for.
    ///
    /// # Errors
    /// The output or the library cannot be written.
    pub(in crate::cli) async fn run(
        &self,
        photos: Vec<InputPhoto>,
        mut places: Places,
        progress: &mut ProgressReporter,
        mut signals: Signals,
    ) -> Result<RunEnd> {
        let end = self.write_all(photos, &mut places, progress, &mut signals).await;
        // Whatever ended the run, the captions that are made are kept.
        let kept = places
            .library
            .as_mut()
            .map_or(Ok(()), |library| tokio::task::block_in_place(|| library.finish()));
        match end {
            Ok(end) => kept.map(|()| end),
            Err(WriteError::ReaderLeft) => Ok(RunEnd::ReaderLeft),
            Err(WriteError::Error(error)) => Err(error),
        }
    }

    async fn write_all(
        &self,
        photos: Vec<InputPhoto>,
        places: &mut Places,
        progress: &mut ProgressReporter,
        signals: &mut Signals,
    ) -> Result<RunEnd, WriteError> {
        let mut photos = photos.into_iter();
        let mut pending: VecDeque<PendingPhoto> = VecDeque::new();
        let mut interrupted = None;
        loop {
            // Twice as many as are captioned at a time: finished photos wait here for slower ones
            // before them.
            while interrupted.is_none() && pending.len() < 2 * self.at_once {
                let Some(photo) = photos.next() else { break };
                pending.push_back(self.start(photo));
            }
            let Some(first) = pending.front_mut() else { break };
            let outcome = tokio::select! {
                biased;
                status = signals.next() => {
                    if interrupted.replace(status).is_some() {
                        break;
                    }
                    progress.note("stopping: photos in progress are finished first");
                    continue;
                }
                outcome = &mut first.task => outcome,
            };
            let Some(PendingPhoto { path, .. }) = pending.pop_front() else { break };
            let mut outcome = outcome.unwrap_or_else(|join| {
                let crashed = Error::internal("captioning crashed, which is a defect");
                PhotoOutcome::of(Err(crashed.with_source(join)))
            });
            if let Some(library) = &mut places.library {
                let colors = outcome.colors.take();
                let PhotoOutcome { description, stamp, .. } = &outcome;
                let added = tokio::task::block_in_place(|| {
                    library.add(&path, description.as_ref(), colors, stamp.as_ref())
                });
                added.map_err(WriteError::Error)?;
            }
            report(&path, &outcome, places.output.as_mut(), progress)?;
            if self.captioner.has_failed() {
                // All further photos would fail.
                return Err(WriteError::Error(Error::model(
                    "the model has stopped and cannot recover; run the same command again for the \
                     remaining photos",
                )));
            }
        }
        if let Some(output) = &mut places.output {
            output.end()?;
        }
        Ok(interrupted.map_or(RunEnd::Done, RunEnd::Interrupted))
    }

    fn start(&self, photo: InputPhoto) -> PendingPhoto {
        let path = photo.path.clone();
        let work = self.clone();
        PendingPhoto { path, task: tokio::spawn(async move { work.photo(photo).await }) }
    }

    async fn photo(&self, photo: InputPhoto) -> PhotoOutcome {
        let Ok(_permit) = self.permits.acquire().await else {
            return PhotoOutcome::of(Err(Error::internal("the run is over")));
        };
        // Taken before the bytes are read, so that a file that changes meanwhile is captioned again
        // by the next run.
        let stamp = match photo.content {
            None => FileStamp::of(&photo.path, &self.parameters),
            Some(_) => None,
        };
        let mut outcome = match Box::pin(self.describe(&photo)).await {
            Ok(mut description) => {
                let colors = self.colors(&mut description);
                PhotoOutcome { description: Some(description), error: None, stamp, colors }
            }
            Err(error) => self.without_description(error, stamp),
        };
        if let Err(error) = self.write_sidecar(&photo, &outcome).await {
            outcome = PhotoOutcome { error: Some(error), ..outcome };
        }
        outcome
    }

    /// The colours for the library, out of what is written elsewhere if it is to have none.
    fn colors(&self, description: &mut Description) -> Option<Colors> {
        let Description::Caption(caption) = description else { return None };
        if self.only_for_library { caption.colors.take() } else { caption.colors.clone() }
    }

    async fn describe(&self, photo: &InputPhoto) -> Result<Description> {
        let bytes = match &photo.content {
            Some(bytes) => bounded(bytes.clone(), self.max_bytes)?,
            None => {
                let (path, max_bytes) = (photo.path.clone(), self.max_bytes);
                let reading = tokio::task::spawn_blocking(move || read(&path, max_bytes));
                reading
                    .await
                    .map_err(|join| Error::internal("reading crashed").with_source(join))??
            }
        };
        let caption = self.captioner.caption(bytes, self.params.clone()).await?;
        Ok(Description::Caption(Box::new(caption)))
    }

    /// A file that is not a readable image gets the fallback as its alternative text. For any other
    /// failure nothing is written, so that the next run tries again.
    fn without_description(&self, error: Error, stamp: Option<FileStamp>) -> PhotoOutcome {
        let of_the_photo = matches!(
            error.kind(),
            ErrorKind::UnsupportedFormat | ErrorKind::UndecodableImage | ErrorKind::ImageTooLarge
        );
        let description =
            (of_the_photo && self.params.style != Style::Caption).then(|| Description::Nothing {
                text: self.captioner.fallback_text().to_owned(),
                reason: Fallback::because(error.detail()),
            });
        PhotoOutcome { description, error: Some(error), stamp, colors: None }
    }

    /// Writes the sidecar, if sidecars are asked for. The fallback text gets none: programs that read
    /// sidecars would take it for a description.
    async fn write_sidecar(&self, photo: &InputPhoto, outcome: &PhotoOutcome) -> Result<()> {
        let (Some(sidecars), Some(description)) = (&self.sidecars, &outcome.description) else {
            return Ok(());
        };
        if description.fallback().is_some() || photo.content.is_some() {
            return Ok(());
        }
        let record = Record { path: &photo.path, description, stamp: outcome.stamp.as_ref() };
        // A file of about a kilobyte is not worth another thread.
        tokio::task::block_in_place(|| sidecars.write(&photo.path, &record, self.overwrite))
    }
}

/// A photo in progress.
struct PendingPhoto {
    path: PathBuf,
    task: JoinHandle<PhotoOutcome>,
}

/// The result of captioning a photo.
struct PhotoOutcome {
    /// What is written to the output and the sidecar.
    description: Option<Description>,
    /// What is reported on standard error.
    error: Option<Error>,
    stamp: Option<FileStamp>,
    /// For the library.
    colors: Option<Colors>,
}

impl PhotoOutcome {
    fn of(result: Result<Description>) -> Self {
        match result {
            Ok(description) => {
                Self { description: Some(description), error: None, stamp: None, colors: None }
            }
            Err(error) => Self { description: None, error: Some(error), stamp: None, colors: None },
        }
    }
}

/// Writes one row, and advances the progress.
fn report(
    path: &Path,
    outcome: &PhotoOutcome,
    output: Option<&mut Output>,
    progress: &mut ProgressReporter,
) -> Result<(), WriteError> {
    let mut written = Ok(());
    if let (Some(output), Some(description)) = (output, &outcome.description) {
        written = output.row(&Record { path, description, stamp: outcome.stamp.as_ref() });
    }
    let name = name::line(path);
    let fallback = outcome.description.as_ref().and_then(Description::fallback);
    match (&outcome.error, fallback) {
        (Some(error), _) => progress.failed(&name, error.kind().code(), error.detail()),
        (None, Some(fallback)) => progress.failed(&name, "fallback", &fallback.fallback_reason),
        (None, None) => progress.captioned(),
    }
    written
}

/// Reads the file. Stops as soon as it is known to be too large. Pipes and devices are refused, because
/// opening or reading them may take for ever.
fn read(path: &Path, max_bytes: usize) -> Result<Vec<u8>> {
    if path.metadata().is_ok_and(|found| !found.is_file() && !found.is_dir()) {
        return Err(Error::new(
            ErrorKind::Io,
            "is not a regular file; send the image to --stdin-image",
        ));
    }
    let limit = u64::try_from(max_bytes).unwrap_or(u64::MAX).saturating_add(1);
    let mut bytes = Vec::new();
    let opened = File::open(path);
    opened.and_then(|file| file.take(limit).read_to_end(&mut bytes)).map_err(|error| {
        let remedy = match error.kind() {
            io::ErrorKind::NotFound if path.is_symlink() => {
                "it is a link: restore the file that it leads to"
            }
            io::ErrorKind::NotFound => "check the path",
            io::ErrorKind::PermissionDenied => "check its permissions",
            io::ErrorKind::IsADirectory => "name the files in it",
            _ => "check the disk",
        };
        Error::new(ErrorKind::Io, format!("cannot be read ({error}); {remedy}"))
    })?;
    bounded(bytes, max_bytes)
}

fn bounded(bytes: Vec<u8>, max_bytes: usize) -> Result<Vec<u8>> {
    if bytes.len() > max_bytes {
        return Err(Error::new(
            ErrorKind::ImageTooLarge,
            format!("has more than {max_bytes} bytes; scale it down or raise MAX_IMAGE_SIZE"),
        ));
    }
    Ok(bytes)
}
