//! Captioning photos, several at once, and writing what comes of them.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::inputs::Photo;
use super::output::{Output, Trouble};
use super::progress::Progress;
use super::record::{Described, Record, Stamp};
use super::sidecar::Sidecars;
use crate::captioner::{CaptionParams, Captioner, Fallback, Style};
use crate::cli::signals::Signals;
use cutline_error::{Error, ErrorKind, Result};
use cutline_xmp::Existing;

/// What is done to every photo. Cheap to clone.
#[derive(Debug, Clone)]
pub(in crate::cli) struct Work {
    captioner: Captioner,
    params: CaptionParams,
    max_bytes: usize,
    sidecars: Option<Arc<(Sidecars, Existing)>>,
    /// Photos whose bytes are in memory: enough to keep model and decoders busy, and no more.
    permits: Arc<Semaphore>,
    at_once: usize,
    parameters: Arc<str>,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::cli) enum End {
    /// All photos had their turn.
    Done,
    /// Nobody reads on.
    ReaderLeft,
    /// A signal came; the exit status that tells of it.
    Interrupted(u8),
}

impl Work {
    pub(in crate::cli) fn new(
        captioner: Captioner,
        params: CaptionParams,
        max_bytes: usize,
        sidecars: Option<(Sidecars, Existing)>,
    ) -> Self {
        let status = captioner.status();
        let [width, height] = captioner.info().input_size;
        // What the model reads of one: three numbers of four bytes a pixel.
        let input = (width * height * 12).max(1) as u64;
        let fitting = usize::try_from(captioner.budget().capacity() / input).unwrap_or(usize::MAX);
        let busy = status.max_batch_size.saturating_add(captioner.decoders().workers());
        let at_once = busy.min(status.queue_capacity).min(fitting).clamp(1, Semaphore::MAX_PERMITS);
        Self {
            parameters: captioner.fingerprint(&params).into(),
            captioner,
            params,
            max_bytes,
            sidecars: sidecars.map(Arc::new),
            permits: Arc::new(Semaphore::new(at_once)),
            at_once,
        }
    }

    /// Captions `photos` and writes their rows in their order. After a signal those in hand are
    /// finished and no others begun; a second one ends the program.
    ///
    /// # Errors
    /// The output cannot be written.
    pub(in crate::cli) async fn run(
        &self,
        photos: Vec<Photo>,
        mut output: Option<Output>,
        progress: &mut Progress,
        mut signals: Signals,
    ) -> Result<End> {
        let written = match &mut output {
            Some(output) => output.begin(),
            None => Ok(()),
        };
        if let Err(trouble) = written {
            return ended(trouble);
        }
        let mut photos = photos.into_iter();
        let mut in_hand: VecDeque<Task> = VecDeque::new();
        let mut stopped = None;
        loop {
            // Twice as many as are worked on: those that are done wait for one before them, while
            // others are begun.
            while stopped.is_none() && in_hand.len() < 2 * self.at_once {
                let Some(photo) = photos.next() else { break };
                in_hand.push_back(self.start(photo));
            }
            let Some(first) = in_hand.front_mut() else { break };
            let done = tokio::select! {
                biased;
                status = signals.next(), if stopped.is_none() => {
                    stopped = Some(status);
                    None
                }
                done = &mut first.work => Some(done),
            };
            let Some(done) = done else {
                progress.note("stopping: what is in hand is finished first");
                // Whoever asks twice does not want to wait.
                let mut again = Signals::new()?;
                tokio::spawn(async move { std::process::exit(again.next().await.into()) });
                continue;
            };
            let Some(task) = in_hand.pop_front() else { break };
            let done = done.unwrap_or_else(|join| {
                Done::of(Err(
                    Error::internal("captioning crashed, which is a defect").with_source(join)
                ))
            });
            if let Err(trouble) = write(&task.name, &done, output.as_mut(), progress) {
                return ended(trouble);
            }
        }
        if let Some(output) = &mut output
            && let Err(trouble) = output.end()
        {
            return ended(trouble);
        }
        Ok(stopped.map_or(End::Done, End::Interrupted))
    }

    fn start(&self, photo: Photo) -> Task {
        let name = photo.name();
        let work = self.clone();
        Task { name, work: tokio::spawn(async move { work.photo(photo).await }) }
    }

    async fn photo(&self, photo: Photo) -> Done {
        let Ok(_permit) = self.permits.acquire().await else {
            return Done::of(Err(Error::internal("the work on photos is over")));
        };
        // Before the bytes: a file that is changed meanwhile is done again the next time.
        let stamp = match photo.content {
            None => Stamp::of(&photo.path, &self.parameters),
            Some(_) => None,
        };
        let mut done = match Box::pin(self.describe(&photo)).await {
            Ok(described) => Done { described: Some(described), error: None, stamp },
            Err(error) => self.no_description(error, stamp),
        };
        if let Err(error) = self.beside(&photo, &done).await {
            done = Done { error: Some(error), ..done };
        }
        done
    }

    async fn describe(&self, photo: &Photo) -> Result<Described> {
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
        Ok(Described::Caption(Box::new(caption)))
    }

    /// Alternative text of what is no image says so; of all else that fails there is nothing, and
    /// the next run tries again.
    fn no_description(&self, error: Error, stamp: Option<Stamp>) -> Done {
        let of_the_photo = matches!(
            error.kind(),
            ErrorKind::UnsupportedFormat | ErrorKind::UndecodableImage | ErrorKind::ImageTooLarge
        );
        let described =
            (of_the_photo && self.params.style == Style::AltText).then(|| Described::Nothing {
                text: self.captioner.fallback_text().to_owned(),
                reason: Fallback::because(error.detail()),
            });
        Done { described, error: Some(error), stamp }
    }

    /// Writes the sidecar, if there is to be one. The text for no description gets none: programs
    /// that read sidecars would take it for one.
    async fn beside(&self, photo: &Photo, done: &Done) -> Result<()> {
        let (Some(sidecars), Some(described)) = (&self.sidecars, &done.described) else {
            return Ok(());
        };
        if described.fallback().is_some() || photo.content.is_some() {
            return Ok(());
        }
        let name = photo.name();
        let record = Record { path: &name, described, stamp: done.stamp.as_ref() };
        // A file of a kilobyte; the threads for decoding have better things to do.
        let (sidecars, existing) = &**sidecars;
        tokio::task::block_in_place(|| sidecars.write(&photo.path, &record, *existing))
    }
}

/// A photo in hand.
struct Task {
    name: String,
    work: JoinHandle<Done>,
}

/// What came of a photo.
struct Done {
    /// What is written of it.
    described: Option<Described>,
    /// What is told of it.
    error: Option<Error>,
    stamp: Option<Stamp>,
}

impl Done {
    fn of(result: Result<Described>) -> Self {
        match result {
            Ok(described) => Self { described: Some(described), error: None, stamp: None },
            Err(error) => Self { described: None, error: Some(error), stamp: None },
        }
    }
}

/// One row, and one step of the progress.
fn write(
    name: &str,
    done: &Done,
    output: Option<&mut Output>,
    progress: &mut Progress,
) -> Result<(), Trouble> {
    let mut written = Ok(());
    if let (Some(output), Some(described)) = (output, &done.described) {
        written = output.row(&Record { path: name, described, stamp: done.stamp.as_ref() });
    }
    let fallback = done.described.as_ref().and_then(Described::fallback);
    match (&done.error, fallback) {
        (Some(error), _) => progress.failed(name, error.kind().code(), error.detail()),
        (None, Some(fallback)) => progress.failed(name, "fallback", &fallback.fallback_reason),
        (None, None) => progress.captioned(),
    }
    written
}

fn ended(trouble: Trouble) -> Result<End> {
    match trouble {
        Trouble::ReaderLeft => Ok(End::ReaderLeft),
        Trouble::Error(error) => Err(error),
    }
}

/// The file, or as much of it as shows that it is too large.
fn read(path: &Path, max_bytes: usize) -> Result<Vec<u8>> {
    let limit = u64::try_from(max_bytes).unwrap_or(u64::MAX).saturating_add(1);
    let mut bytes = Vec::new();
    let opened = File::open(path);
    opened.and_then(|file| file.take(limit).read_to_end(&mut bytes)).map_err(|error| {
        let remedy = match error.kind() {
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
