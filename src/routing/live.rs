//! The routes as they are now. Another file replaces them while requests are on their way.

use std::sync::Arc;

use parking_lot::RwLock;
use tokio::task::JoinSet;

use super::shared::{Shared, Speaker};
use super::upstream::{ApiKey, Dial, Upstream};
use crate::captioner::Captioner;
use crate::engine::source::ModelSource;
use cutline_error::{Error, ErrorKind, Result};
use cutline_route::{Backend, Config, Kind};

/// A model of this process beside the main one.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) name: String,
    /// Where it was loaded from.
    pub(super) source: ModelSource,
    /// Whether `MODELS` lists it; otherwise only the backend with its name means it.
    pub(super) listed: bool,
    pub(super) captioner: Captioner,
}

/// The routes as they are now, and what stays when they change.
#[derive(Debug)]
pub(super) struct Live {
    models: Vec<Model>,
    dial: Arc<dyn Dial>,
    now: RwLock<Generation>,
}

/// What one file of routes says.
#[derive(Debug)]
struct Generation {
    shared: Arc<Shared>,
    keys: Vec<Option<ApiKey>>,
    _watch: JoinSet<()>,
}

impl Live {
    /// `keys` are those of the backends, and `watch` looks after them.
    pub(super) fn new(
        shared: Arc<Shared>,
        keys: Vec<Option<ApiKey>>,
        models: Vec<Model>,
        dial: Arc<dyn Dial>,
        watch: JoinSet<()>,
    ) -> Arc<Self> {
        let now = RwLock::new(Generation { shared, keys, _watch: watch });
        Arc::new(Self { models, dial, now })
    }

    pub(super) fn models(&self) -> &[Model] {
        &self.models
    }

    /// What a request that begins now stays with.
    pub(super) fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.now.read().shared)
    }

    /// Replaces the file. See [`Routes::replace`](super::Routes::replace).
    pub(super) fn replace(&self, config: Config, keys: Vec<Option<ApiKey>>) -> Result<()> {
        let speakers = speakers(&config, &keys, &self.models, &self.dial)?;
        let mut now = self.now.write();
        let old = now.shared.config();
        let key = |keys: &[Option<ApiKey>], index: usize| keys.get(index).cloned().flatten();
        let same = |(index, backend): (usize, &Backend)| {
            old.backends
                .iter()
                .enumerate()
                .position(|(at, other)| other == backend && key(&now.keys, at) == key(&keys, index))
        };
        let kept: Vec<Option<usize>> = config.backends.iter().enumerate().map(same).collect();
        let shared = now.shared.replaced(config, speakers, &kept);
        let watch = shared.watch();
        *now = Generation { shared, keys, _watch: watch };
        Ok(())
    }
}

/// Who answers for each backend.
///
/// # Errors
/// [`Config`](ErrorKind::Config): an address cannot be used, or a model is not loaded.
pub(super) fn speakers(
    config: &Config,
    keys: &[Option<ApiKey>],
    models: &[Model],
    dial: &Arc<dyn Dial>,
) -> Result<Vec<Speaker>> {
    let speaker = |(index, backend): (usize, &Backend)| {
        if backend.kind != Kind::Local {
            let key = keys.get(index).cloned().flatten();
            return Upstream::new(backend, key, Arc::clone(dial)).map(Speaker::Upstream);
        }
        if backend.model.is_empty() {
            return Ok(Speaker::Main);
        }
        let found = models.iter().find(|model| means(backend, model));
        found.map(|model| Speaker::Local(model.captioner.clone())).ok_or_else(|| {
            let detail = format!(
                "the model of the backend '{}' is not loaded; start the server again to load it",
                backend.name
            );
            Error::new(ErrorKind::Config, detail)
        })
    };
    config.backends.iter().enumerate().map(speaker).collect()
}

fn means(backend: &Backend, model: &Model) -> bool {
    if model.listed {
        return model.name == backend.model;
    }
    let source = backend.model.parse::<ModelSource>();
    model.name == backend.name && source.is_ok_and(|source| source == model.source)
}
