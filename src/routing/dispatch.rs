//! Which model or route a request means.

use std::sync::Arc;

use super::drive::Job;
use super::live::Live;
use super::shared::Shared;
use crate::captioner::{
    CaptionParams, CaptionStream, Captioner, Dispatch, Photo, Priority, Routed,
};
use cutline_route::Route;

/// The models of this process beside the main one, and the routes.
#[derive(Debug)]
pub(super) struct Dispatcher(pub(super) Arc<Live>);

/// A route, as the file had it when the request began.
#[derive(Debug)]
struct Chosen {
    shared: Arc<Shared>,
    route: usize,
}

impl Dispatch for Dispatcher {
    fn names(&self) -> Vec<String> {
        let shared = self.0.shared();
        let models = self.0.models().iter().map(|model| &model.name);
        let routes = shared.config().routes.iter();
        let routes = routes.flat_map(|route| std::iter::once(&route.name).chain(&route.models));
        models.chain(routes).cloned().collect()
    }

    fn model(&self, name: &str) -> Option<&Captioner> {
        let is = |model: &&super::live::Model| model.name == name || model.captioner.is_named(name);
        self.0.models().iter().find(is).map(|model| &model.captioner)
    }

    fn models(&self) -> Vec<(&str, &Captioner)> {
        self.0.models().iter().map(|model| (model.name.as_str(), &model.captioner)).collect()
    }

    fn route(&self, params: &CaptionParams) -> Option<Box<dyn Routed>> {
        let name = params.model.as_deref().map(|name| name.strip_suffix(":latest").unwrap_or(name));
        let style = params.style.as_str();
        let means = |route: &Route| {
            let named = match name {
                Some(name) => route.name == name || route.models.iter().any(|other| other == name),
                None => route.default,
            };
            named && (route.styles.is_empty() || route.styles.iter().any(|other| other == style))
        };
        let shared = self.0.shared();
        let route = shared.config().routes.iter().position(means)?;
        Some(Box::new(Chosen { shared, route }))
    }
}

impl Routed for Chosen {
    fn start(
        self: Box<Self>,
        captioner: &Captioner,
        photos: Vec<Photo>,
        params: &CaptionParams,
        priority: Priority,
    ) -> Vec<CaptionStream> {
        let params = Arc::new(CaptionParams { model: None, ..params.clone() });
        let start = |photo| {
            let job = Job {
                shared: Arc::clone(&self.shared),
                main: captioner.clone(),
                route: self.route,
                photo: Arc::new(photo),
                params: Arc::clone(&params),
                priority,
            };
            CaptionStream::routed(captioner, |writer| job.run(writer))
        };
        photos.into_iter().map(start).collect()
    }
}
