//! Captions in a library, beside rows and sidecars.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cutline_library::{Author, Change, Field, Name, NameKind, RunId, Store};

use super::inputs::InputPhoto;
use super::record::{Description, FileStamp};
use super::resume::ResumeMode;
use crate::captioner::{CaptionParams, Choice, ModelInfo, Recipe, Style};
use crate::library;
use cutline_error::Result;
use cutline_image::Colors;

/// Photos that are stored together: a commit waits for the disk.
const TOGETHER: usize = 32;

/// Stores captions in a library, some at a time. What a person wrote there stays.
#[derive(Debug)]
pub(in crate::cli) struct Library {
    store: Arc<dyn Store>,
    author: Author,
    parameters: String,
    field: Field,
    style: Style,
    recipe: Option<Arc<Recipe>>,
    run: Option<RunId>,
    waiting: Vec<Change>,
}

impl Library {
    /// `params` are those of all photos, and `parameters` their fingerprint.
    pub(in crate::cli) fn new(
        store: Arc<dyn Store>,
        model: &ModelInfo,
        params: &CaptionParams,
        parameters: &str,
    ) -> Self {
        let prompt = params.prompt.as_deref().unwrap_or_default();
        let author = library::author(&model.id, &model.digest, parameters, prompt);
        let field = library::field(params.kept_style());
        Self {
            store,
            author,
            parameters: parameters.to_owned(),
            field,
            style: params.kept_style(),
            recipe: params.recipe.clone(),
            run: None,
            waiting: Vec::new(),
        }
    }

    /// Whether the library has what `mode` asks for of this version of a file.
    pub(in crate::cli) fn is_finished(
        &self,
        photo: &InputPhoto,
        stamp: Option<&FileStamp>,
        mode: ResumeMode,
    ) -> Result<bool> {
        let (Some(stamp), None) = (stamp, &photo.content) else { return Ok(false) };
        if mode == ResumeMode::Overwrite {
            return Ok(false);
        }
        let seen = self.store.named(NameKind::Path, &full(&photo.path))?;
        let Some((hash, _)) = seen.into_iter().next().filter(|(_, name)| same(name, stamp)) else {
            return Ok(false);
        };
        if mode == ResumeMode::OnlyMissing {
            let asset = self.store.asset(&hash)?;
            let text = asset.as_ref().and_then(|asset| asset.text(self.field, "en"));
            return Ok(text.is_some_and(|text| !text.text.is_empty()));
        }
        // Whatever became of the model's text: it need not be written again.
        let history = self.store.history(&hash)?.unwrap_or_default();
        Ok(history.iter().any(|revision| {
            revision.field == self.field
                && matches!(&revision.author, Author::Model(model) if model.parameters == self.parameters)
        }))
    }

    /// Stores what is known about a photo, soon.
    ///
    /// # Errors
    /// The library cannot be written.
    pub(in crate::cli) fn add(
        &mut self,
        path: &Path,
        description: Option<&Description>,
        colors: Option<Colors>,
        stamp: Option<&FileStamp>,
    ) -> Result<()> {
        let Some(Description::Caption(caption)) = description else { return Ok(()) };
        let appearance = caption.appearance.as_deref();
        let author = self.author.clone();
        let mut asset = library::asset(&caption.image, colors.as_ref(), appearance, author)?;
        asset.run = Some(self.run()?);
        asset.names.extend(stamp.map(|stamp| name(path, stamp)));
        if caption.fallback.is_none() {
            let confidence = caption.captions.first().and_then(Choice::known_confidence);
            asset.text(self.field, library::kept_text(self.style, &caption.caption), confidence);
            let waited = Duration::from_secs_f64(caption.timings.total_ms.max(0.0) / 1000.0);
            library::expose(&mut asset, self.recipe.as_deref(), waited, None);
        }
        self.waiting.push(Change::Asset(Box::new(asset)));
        if self.waiting.len() >= TOGETHER { self.flush() } else { Ok(()) }
    }

    /// Stores what waits, and ends the run.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub(in crate::cli) fn finish(&mut self) -> Result<()> {
        self.flush()?;
        match self.run.take() {
            Some(run) => self.store.finish_run(run),
            None => Ok(()),
        }
    }

    fn run(&mut self) -> Result<RunId> {
        match self.run {
            Some(run) => Ok(run),
            None => {
                let run = self.store.start_run("caption", "{}", &self.author)?;
                self.run = Some(run);
                Ok(run)
            }
        }
    }

    fn flush(&mut self) -> Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        self.store.apply(std::mem::take(&mut self.waiting)).map(drop)
    }
}

/// The same text for a file, wherever the command is started.
fn full(path: &Path) -> String {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned()).to_string_lossy().into_owned()
}

fn name(path: &Path, stamp: &FileStamp) -> Name {
    Name {
        size: Some(stamp.size_bytes),
        modified_at: i64::try_from(stamp.modified_ms).ok(),
        ..Name::new(NameKind::Path, full(path))
    }
}

fn same(name: &Name, stamp: &FileStamp) -> bool {
    name.size == Some(stamp.size_bytes) && name.modified_at == i64::try_from(stamp.modified_ms).ok()
}
