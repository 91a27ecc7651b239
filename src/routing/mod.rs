//! Several models, and what happens when one is ill.
//!
//! [`load`] makes a captioner that answers for other models as well, if the settings name any: more models
//! in this process, and routes over them and over models elsewhere. The decisions are made in the crate
//! `cutline-route`; here they are carried out.
//!
//! - `models` loads the models in this process;
//! - `dispatch` says which of them, or which route, a request means;
//! - `drive` takes one photo along a route until there is an answer; `ask` asks one backend;
//! - `live` is the routes as they are now, until another file replaces them;
//! - `shared` is the state that all requests share, and the task that looks after ill backends;
//! - `upstream` speaks to models elsewhere;
//! - `view` is what people see of it.

mod ask;
mod dispatch;
mod drive;
mod live;
mod models;
mod shared;
#[cfg(test)]
mod tests;
mod upstream;
mod view;

use std::path::PathBuf;
use std::time::Duration;

pub use self::models::{Loaded, connect, load};
pub use self::upstream::ApiKey;
pub use self::view::{BackendView, Board, RouteView, Routes};
use crate::engine::source::ModelSource;
use cutline_route::Config;

/// Everything that configures models beside the main one.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RoutingSettings {
    /// More models in this process, with their names.
    pub models: Vec<(String, ModelSource)>,
    /// Bytes that the weights of all models may have in their files; `None` for no limit.
    pub max_weight_bytes: Option<u64>,
    /// Backends and routes.
    pub routes: Config,
    /// The file that they are from.
    pub file: Option<PathBuf>,
    /// The time for a whole request.
    pub limit: Duration,
    /// The key of each backend that has one, in the order of the backends.
    pub keys: Vec<Option<ApiKey>>,
}

impl RoutingSettings {
    /// Whether there is only the main model.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.models.is_empty() && self.routes.backends.is_empty() && self.routes.routes.is_empty()
    }
}
