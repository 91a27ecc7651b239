//! Which model or route a request means.

use std::sync::Arc;

use tokio::task::JoinSet;

use super::drive::Job;
use super::shared::Shared;
use crate::captioner::{CaptionParams, CaptionStream, Captioner, Dispatch, Photo, Priority};
use cutline_error::Result;
use cutline_route::Route;

/// The models of this process beside the main one, and the routes.
#[derive(Debug)]
pub(super) struct Dispatcher {
    pub(super) models: Vec<(String, Captioner)>,
    pub(super) shared: Arc<Shared>,
    pub(super) _watch: JoinSet<()>,
}

impl Dispatch for Dispatcher {
    fn names(&self) -> Vec<&str> {
        let models = self.models.iter().map(|(name, _)| name.as_str());
        let routes = self.shared.config().routes.iter();
        let routes = routes.flat_map(|route| std::iter::once(&route.name).chain(&route.models));
        models.chain(routes.map(String::as_str)).collect()
    }

    fn model(&self, name: &str) -> Option<&Captioner> {
        let found =
            self.models.iter().find(|(own, captioner)| own == name || captioner.is_named(name));
        found.map(|(_, captioner)| captioner)
    }

    fn models(&self) -> Vec<(&str, &Captioner)> {
        self.models.iter().map(|(name, captioner)| (name.as_str(), captioner)).collect()
    }

    fn route(&self, params: &CaptionParams) -> Option<usize> {
        let name = params.model.as_deref().map(|name| name.strip_suffix(":latest").unwrap_or(name));
        let style = params.style.as_str();
        let means = |route: &Route| {
            let named = match name {
                Some(name) => route.name == name || route.models.iter().any(|other| other == name),
                None => route.default,
            };
            named && (route.styles.is_empty() || route.styles.iter().any(|other| other == style))
        };
        self.shared.config().routes.iter().position(means)
    }

    fn start(
        &self,
        captioner: &Captioner,
        route: usize,
        photos: Vec<Photo>,
        params: &CaptionParams,
        priority: Priority,
    ) -> Result<Vec<CaptionStream>> {
        let params = Arc::new(CaptionParams { model: None, ..params.clone() });
        let start = |photo| {
            let job = Job {
                shared: Arc::clone(&self.shared),
                main: captioner.clone(),
                route,
                photo,
                params: Arc::clone(&params),
                priority,
            };
            CaptionStream::routed(captioner, |writer| job.run(writer))
        };
        Ok(photos.into_iter().map(start).collect())
    }
}
