//! Loads the models of this process, and connects them with the routes.

use std::sync::Arc;

use super::RoutingSettings;
use super::dispatch::Dispatcher;
use super::live::{Live, Model, speakers};
use super::shared::Shared;
use super::upstream::{Dial, SystemDial};
use super::view::Routes;
use crate::captioner::{Captioner, CaptionerSettings, Dispatch};
use crate::engine::source::ModelSource;
use cutline_error::{Error, ErrorKind, Result};
use cutline_route::Kind;

/// The main model, which answers for the others as well.
#[derive(Debug)]
pub struct Loaded {
    /// Answers all requests.
    pub captioner: Captioner,
    /// What people see of the routes, if there are other models or routes.
    pub routes: Option<Routes>,
}

/// Loads the main model, and all others that `routing` names. Blocks until that is done. Must be called
/// within a runtime of tokio if there are routes.
///
/// # Errors
/// Those of [`Captioner::load`]; [`Config`](ErrorKind::Config) if two models have one name, or if the
/// models are larger than they may be.
pub fn load(settings: &CaptionerSettings, routing: &RoutingSettings) -> Result<Loaded> {
    if routing.is_empty() {
        return Ok(Loaded { captioner: Captioner::load(settings)?, routes: None });
    }
    let wanted = wanted(routing)?;
    // What the settings allow for all caches together.
    let share = wanted.len() as u64 + 1;
    let mut settings = settings.clone();
    settings.memory.cache_max_bytes /= share;
    settings.memory.vision_cache_bytes /= share;
    settings.max_weight_bytes = routing.max_weight_bytes;
    let main = Captioner::load(&settings)?;
    settings.decoders = Some(main.decoders().clone());
    let mut models = Vec::with_capacity(wanted.len());
    for (name, source) in wanted {
        let used = std::iter::once(&main).chain(models.iter().map(|(_, model)| model));
        let used: u64 = used.map(|model| model.info().weight_bytes).sum();
        settings.max_weight_bytes = routing.max_weight_bytes.map(|most| most.saturating_sub(used));
        settings.model = source;
        let model = Captioner::load(&settings).map_err(|error| of_model(&name, error))?;
        tracing::info!(name, model = model.info().id, "another model is ready");
        models.push((name, model));
    }
    connect(main, models, routing)
}

/// Connects models that are loaded with the routes. Must be called within a runtime of tokio.
///
/// # Errors
/// [`Config`](ErrorKind::Config): the address of a backend cannot be used.
pub fn connect(
    main: Captioner,
    models: Vec<(String, Captioner)>,
    routing: &RoutingSettings,
) -> Result<Loaded> {
    let sources = wanted(routing)?;
    let model = |(name, captioner): (String, Captioner)| {
        let listed = routing.models.iter().any(|(other, _)| *other == name);
        let source = sources.iter().find(|(other, _)| *other == name);
        let source = source.map_or(ModelSource::Embedded, |(_, source)| source.clone());
        Model { name, source, listed, captioner }
    };
    let models: Vec<Model> = models.into_iter().map(model).collect();
    let dial: Arc<dyn Dial> = Arc::new(SystemDial);
    let speakers = speakers(&routing.routes, &routing.keys, &models, &dial)?;
    let shared =
        Shared::new(routing.routes.clone(), speakers, routing.limit, main.metrics().clone());
    let watch = shared.watch();
    let live = Live::new(shared, routing.keys.clone(), models, dial, watch);
    main.dispatch_with(Arc::new(Dispatcher(Arc::clone(&live))) as Arc<dyn Dispatch>);
    Ok(Loaded { captioner: main, routes: Some(Routes::new(live)) })
}

/// The models beside the main one: those of `MODELS`, and those that only the file of routes names.
fn wanted(routing: &RoutingSettings) -> Result<Vec<(String, ModelSource)>> {
    let mut wanted = routing.models.clone();
    for backend in &routing.routes.backends {
        let listed = wanted.iter().any(|(name, _)| *name == backend.model);
        if backend.kind != Kind::Local || backend.model.is_empty() || listed {
            continue;
        }
        let source = backend.model.parse::<ModelSource>();
        let source = source.map_err(|error| of_model(&backend.name, error))?;
        wanted.push((backend.name.clone(), source));
    }
    for (at, (name, _)) in wanted.iter().enumerate() {
        if wanted[..at].iter().any(|(other, _)| other == name) {
            return Err(Error::new(
                ErrorKind::Config,
                format!("there are two models named '{name}'; rename one in MODELS or ROUTES_FILE"),
            ));
        }
    }
    Ok(wanted)
}

fn of_model(name: &str, error: Error) -> Error {
    Error::new(error.kind(), format!("the model '{name}': {error}")).with_source(error)
}
