//! Captions on their way into a library.
//!
//! The server hands each caption to a thread, which stores several together: a commit waits for the disk,
//! and no request does. `cutline caption` stores its own.

use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cutline_library::{
    Author, Change, Color, ContentHash, Features, Field, ModelAuthor, NewAsset, Store, Thumbnail,
};

use cutline_library::prompts::Exposure;

use crate::captioner::{Appearance, ImageInfo, Keep, Kept, PhotoEmbedding, Recipe, Style};
use cutline_error::{Error, Result};
use cutline_image::Colors;

/// Captions that may wait to be stored.
const WAITING: usize = 4096;
/// Captions that are stored together.
const TOGETHER: usize = 256;
/// How long captions wait for others, at most.
const DELAY: Duration = Duration::from_secs(1);

/// The author of a model's captions; `parameters` is their fingerprint.
pub(crate) fn author(name: &str, digest: &str, parameters: &str, prompt: &str) -> Author {
    Author::Model(ModelAuthor {
        name: name.to_owned(),
        digest: digest.to_owned(),
        parameters: parameters.to_owned(),
        prompt: prompt.to_owned(),
    })
}

/// The field of texts in this style.
pub(crate) const fn field(style: Style) -> Field {
    match style {
        Style::Caption => Field::Caption,
        Style::AltText => Field::AltText,
        Style::Engaging => Field::Engaging,
        Style::Title => Field::Title,
        Style::Keywords => Field::Tags,
    }
}

/// A text in this style as the library keeps it: words that name something are tags, one per line.
pub(crate) fn kept_text(style: Style, text: &str) -> String {
    if style == Style::Keywords { text.replace(", ", "\n") } else { text.to_owned() }
}

/// Notes with which version of a prompt the last text was asked for.
pub(crate) fn expose(
    asset: &mut NewAsset,
    recipe: Option<&Recipe>,
    latency: Duration,
    cost: Option<f64>,
) {
    if let (Some(text), Some(recipe)) = (asset.texts.last_mut(), recipe) {
        text.exposure = Some(Exposure {
            version: recipe.id,
            experiment: recipe.experiment.as_ref().map(|(id, _)| *id),
            latency: Some(latency.as_secs_f64() * 1000.0),
            cost,
        });
    }
}

/// A photo with what is known about it.
pub(crate) fn asset(
    image: &ImageInfo,
    colors: Option<&Colors>,
    appearance: Option<&Appearance>,
    author: Author,
) -> Result<NewAsset> {
    let hash: ContentHash = image.hash.parse()?;
    let mut asset = NewAsset::new(hash, author);
    asset.format = Some(image.format.clone());
    asset.width = u32::try_from(image.width).ok();
    asset.height = u32::try_from(image.height).ok();
    asset.bytes = u64::try_from(image.size_bytes).ok();
    if let Some(appearance) = appearance {
        add_appearance(&mut asset, appearance);
    }
    let Some(colors) = colors else { return Ok(asset) };
    let label = serde_json::to_value(colors.mood.label).ok();
    asset.mood = label.and_then(|label| label.as_str().map(str::to_owned));
    let color = |color: &cutline_image::DominantColor| Color {
        hex: color.hex.clone(),
        name: color.name.clone(),
        // Shares are between 0 and 1.
        percent: (color.fraction * 100.0).round() as u8,
    };
    asset.colors = colors.colors.iter().map(color).collect();
    Ok(asset)
}

fn add_appearance(asset: &mut NewAsset, appearance: &Appearance) {
    if let Some(preview) = &appearance.preview {
        asset.dhash = Some(preview.difference_hash);
        let thumbnail = |bytes| Thumbnail { media_type: "image/jpeg".into(), bytes };
        asset.thumbnail = preview.thumbnail.clone().map(thumbnail);
    }
    if let Some(vector) = appearance.features.clone().filter(|vector| usable(vector))
        && let Author::Model(ModelAuthor { digest, .. }) = &asset.author
        && !digest.is_empty()
    {
        // Those of another model mean something else.
        asset.features = Some(Features { space: digest.clone(), vector });
    }
}

/// A photo with its embedding.
fn embedded(image: &ImageInfo, embedding: &PhotoEmbedding) -> Result<NewAsset> {
    let PhotoEmbedding { model, digest, vector } = embedding;
    let mut asset = asset(image, None, None, author(model, digest, "", ""))?;
    let vector = vector.clone();
    asset.features = usable(&vector).then(|| Features { space: embedding_space(digest), vector });
    Ok(asset)
}

/// The space of the embeddings of photos and texts by the model with this digest.
pub(crate) fn embedding_space(digest: &str) -> String {
    format!("{}{digest}", Features::WITH_TEXTS)
}

/// Whether features have a direction. Without one they are worth nothing, and the store would refuse them.
pub(crate) fn usable(vector: &[f32]) -> bool {
    vector.iter().all(|x| x.is_finite()) && vector.iter().any(|x| *x != 0.0)
}

enum Job {
    Store(Box<NewAsset>),
    /// Answers when everything before it is stored.
    Flush(SyncSender<()>),
}

/// Stores captions in a library, from a thread of its own. When it is dropped, those that wait are stored.
#[derive(Debug)]
pub struct Keeper {
    jobs: Mutex<Option<SyncSender<Job>>>,
    thread: Option<JoinHandle<()>>,
}

impl Keeper {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`Internal`](cutline_error::ErrorKind::Internal): the system provides no thread.
    pub fn start(store: Arc<dyn Store>) -> Result<Self> {
        let (jobs, queue) = sync_channel(WAITING);
        let thread = std::thread::Builder::new()
            .name("keeper".into())
            .spawn(move || run(&*store, &queue))
            .map_err(|error| Error::internal("the system provides no thread").with_source(error))?;
        Ok(Self { jobs: Mutex::new(Some(jobs)), thread: Some(thread) })
    }

    /// Waits until all captions that were handed over are stored.
    pub fn flush(&self) {
        let (done, stored) = sync_channel(1);
        if let Some(jobs) = self.jobs() {
            let _ = jobs.send(Job::Flush(done));
            let _ = stored.recv();
        }
    }

    fn jobs(&self) -> Option<SyncSender<Job>> {
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Keep for Keeper {
    fn keep(&self, kept: Kept<'_>) {
        let parameters = kept.parameters;
        let (fingerprint, prompt) = (&parameters.fingerprint, &parameters.prompt);
        let author = author(kept.model, kept.digest, fingerprint, prompt);
        let Ok(mut asset) = asset(kept.image, Some(kept.colors), kept.appearance, author) else {
            return;
        };
        if let Some(best) = kept.best {
            let text = kept_text(parameters.style, &best.text);
            asset.text(field(parameters.style), text, best.known_confidence());
            expose(&mut asset, parameters.recipe.as_deref(), kept.latency, kept.cost);
        }
        let Some(jobs) = self.jobs() else { return };
        let embedded = kept.embedding.and_then(|embedding| embedded(kept.image, embedding).ok());
        let full = |asset| {
            let sent = jobs.try_send(Job::Store(Box::new(asset)));
            matches!(sent, Err(TrySendError::Full(_)))
        };
        if full(asset) || embedded.is_some_and(full) {
            tracing::warn!(
                "a caption is not kept: the disk of the library is too slow for so many"
            );
        }
    }
}

fn run(store: &dyn Store, queue: &Receiver<Job>) {
    while let Ok(first) = queue.recv() {
        let end = Instant::now() + DELAY;
        let mut changes = Vec::new();
        let mut flushed = Vec::new();
        let mut next = Some(first);
        while let Some(job) = next.take() {
            match job {
                Job::Store(asset) => changes.push(Change::Asset(asset)),
                Job::Flush(done) => {
                    flushed.push(done);
                    break;
                }
            }
            if changes.len() < TOGETHER {
                next = queue.recv_timeout(end.saturating_duration_since(Instant::now())).ok();
            }
        }
        if !changes.is_empty()
            && let Err(error) = store.apply(changes)
        {
            tracing::error!(%error, "captions cannot be kept");
        }
        for done in flushed {
            let _ = done.send(());
        }
    }
}
