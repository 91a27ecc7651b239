//! A captioner with its threads, and captions in work.

use std::collections::HashMap;
use std::mem;
use std::sync::{Arc, Mutex, PoisonError};

use cutline::captioner::{CaptionParams, Captioner, CaptionerSettings, ParameterFields};
use cutline::config::{Values, captioner_settings};
use cutline::error::{Error, ErrorKind, Result};
use cutline::scheduler::VisionOrder;
use pyo3::prelude::*;
use serde_json::{Map, Value};
use tokio::runtime::{Handle, Runtime};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::input::{Input, Limits};
use super::process::{claim, is_forked, raised, wait};

/// Parameters that mean nothing here, and what to do instead.
const NO_PARAMETERS: [(&str, &str); 5] = [
    ("model", "one captioner has one model; give it to Captioner"),
    ("stream", "words are not streamed here; leave it out"),
    ("template", "templates are kept in a library; ask a server that has one"),
    ("variables", "templates are kept in a library; ask a server that has one"),
    ("user", "templates are kept in a library; ask a server that has one"),
];

/// What tasks share.
#[derive(Debug)]
struct Shared {
    captioner: Captioner,
    limits: Limits,
    /// Limits the photos in work, over all threads of the caller.
    permits: Semaphore,
}

/// A captioner and the threads around it.
#[derive(Debug)]
struct Work {
    shared: Option<Arc<Shared>>,
    runtime: Option<Runtime>,
    handle: Handle,
}

impl Drop for Work {
    fn drop(&mut self) {
        // Within the runtime, so that nobody waits for the model's thread here.
        let _within = self.handle.enter();
        self.shared = None;
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// A loaded model. Cheap to share; it is closed when the last caption in work is gone as well.
#[pyclass(frozen, module = "cutline._native")]
#[derive(Debug)]
pub(crate) struct Engine {
    // Dropped first: the last one is dropped within the runtime.
    shared: Arc<Shared>,
    work: Arc<Work>,
}

/// Checked parameters of captions.
#[pyclass(frozen, module = "cutline._native")]
#[derive(Debug)]
pub(crate) struct Parameters(CaptionParams);

/// A caption in work. It is cancelled when it is dropped.
#[pyclass(frozen, module = "cutline._native")]
#[derive(Debug)]
pub(crate) struct Pending {
    work: Arc<Work>,
    task: Mutex<Option<JoinHandle<Result<String>>>>,
}

#[pymethods]
impl Engine {
    /// Loads a model with these settings, named as in the environment, and with this many threads; `None`
    /// for all cores.
    #[new]
    fn new(
        py: Python<'_>,
        settings: HashMap<String, String>,
        threads: Option<usize>,
    ) -> PyResult<Self> {
        claim()?;
        if let Some(count) = threads {
            start_threads(count).map_err(|error| raised(&error))?;
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|error| {
                let detail = format!(
                    "the system provides no threads ({error}); stop other programs or raise the limit"
                );
                raised(&Error::new(ErrorKind::Io, detail))
            })?;
        let handle = runtime.handle().clone();
        let mut work = Work { shared: None, runtime: Some(runtime), handle: handle.clone() };
        let loading = handle.spawn_blocking(move || load(&settings));
        let shared = Arc::new(wait(py, &handle, loading)?);
        work.shared = Some(Arc::clone(&shared));
        Ok(Self { shared, work: Arc::new(work) })
    }

    /// The model's description, as JSON.
    fn info(&self) -> PyResult<String> {
        json(self.shared.captioner.info()).map_err(|error| raised(&error))
    }

    /// Reads parameters from a JSON object, and checks them.
    fn parameters(&self, text: &str) -> PyResult<Parameters> {
        self.checked(text).map(Parameters).map_err(|error| raised(&error))
    }

    /// The fingerprint of captions with these parameters.
    fn fingerprint(&self, parameters: &Parameters) -> String {
        self.shared.captioner.fingerprint(&parameters.0)
    }

    /// Photos in work at a time that keep the model busy.
    #[getter]
    fn at_once(&self) -> usize {
        self.shared.captioner.photos_at_once()
    }

    /// Whether the model has stopped for good, for this process.
    fn has_failed(&self) -> bool {
        is_forked() || self.shared.captioner.has_failed()
    }

    /// Starts the caption of one image. `trusted` bytes are pixels that were written as a file.
    fn start(
        &self,
        image: &Bound<'_, PyAny>,
        parameters: &Parameters,
        trusted: bool,
    ) -> PyResult<Pending> {
        claim()?;
        let input = Input::of(image, trusted, self.shared.limits)?;
        let (shared, params) = (Arc::clone(&self.shared), parameters.0.clone());
        let task = self.work.handle.spawn(async move { shared.caption(input, params).await });
        Ok(Pending { work: Arc::clone(&self.work), task: Mutex::new(Some(task)) })
    }
}

impl Engine {
    fn checked(&self, text: &str) -> Result<CaptionParams> {
        let given: Map<String, Value> = serde_json::from_str(text)
            .map_err(|error| Error::internal("parameters are no JSON object").with_source(error))?;
        let mut fields = ParameterFields::default();
        for (name, value) in given {
            if let Some((_, remedy)) = NO_PARAMETERS.iter().find(|(known, _)| *known == name) {
                let detail = format!("{name} cannot be used in Python: {remedy}");
                return Err(Error::parameter(name, detail));
            }
            fields.add(&name, value)?;
        }
        let params = fields.finish()?;
        let captioner = &self.shared.captioner;
        // What the model refuses of them, before there is an image.
        captioner.prompt_tokens(&params.with_defaults(&captioner.info().generation))?;
        Ok(params)
    }
}

impl Shared {
    async fn caption(&self, input: Input, params: CaptionParams) -> Result<String> {
        let lost = |error| Error::internal("an image was lost").with_source(error);
        let _permit = self.permits.acquire().await.map_err(|_| Error::shutting_down())?;
        let limits = self.limits;
        let file = tokio::task::spawn_blocking(move || input.into_file(limits)).await;
        let caption = Box::pin(self.captioner.caption(file.map_err(lost)??, params)).await?;
        json(&caption)
    }
}

#[pymethods]
impl Pending {
    /// Whether the result is there.
    fn is_ready(&self) -> bool {
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        task.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits for the row, as JSON. Can be called once.
    fn wait(&self, py: Python<'_>) -> PyResult<String> {
        claim()?;
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        let task = task.ok_or_else(|| raised(&Error::internal("this caption was taken before")))?;
        let cancel = task.abort_handle();
        wait(py, &self.work.handle, task).inspect_err(|_| cancel.abort())
    }
}

/// Threads do not survive a fork, and what waits for them must not be dropped in a forked process.
impl Drop for Engine {
    fn drop(&mut self) {
        if is_forked() {
            mem::forget(Arc::clone(&self.work));
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let task = self.task.lock().unwrap_or_else(PoisonError::into_inner).take();
        if is_forked() {
            mem::forget((Arc::clone(&self.work), task));
        } else if let Some(task) = task {
            task.abort();
        }
    }
}

fn start_threads(count: usize) -> Result<()> {
    if count > 0 && cutline_kernels::start_threads(count) {
        return Ok(());
    }
    let detail = if count == 0 {
        "threads must be at least 1; leave it out for all cores".to_owned()
    } else {
        format!(
            "threads={count} cannot be used: this process computes with {} threads since its first \
             captioner; give the same number to all captioners of a process",
            cutline_kernels::threads()
        )
    };
    Err(Error::parameter("threads", detail))
}

fn load(settings: &HashMap<String, String>) -> Result<Shared> {
    let mut values = Values::of_process();
    for (name, text) in settings {
        values.set(name, text);
    }
    let mut settings = CaptionerSettings {
        // No one waits for a particular photo, so large batches are best.
        vision_order: VisionOrder::AllFirst,
        ..captioner_settings(&values)?
    };
    let limits = Limits { file_bytes: settings.max_image_bytes, pixels: settings.max_image_pixels };
    // Arrays are not compressed. Files are checked before they get there.
    let more = limits.array_bytes() - limits.file_bytes;
    settings.max_image_bytes += more;
    settings.memory.max_inflight_bytes =
        settings.memory.max_inflight_bytes.saturating_add(more as u64);
    let captioner = Captioner::load(&settings)?;
    let permits = Semaphore::new(captioner.photos_at_once());
    Ok(Shared { captioner, limits, permits })
}

fn json(value: &impl serde::Serialize) -> Result<String> {
    serde_json::to_string(value)
        .map_err(|error| Error::internal("an answer is no JSON").with_source(error))
}
