//! What people see of backends and routes.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use utoipa::ToSchema;

use super::live::Live;
use super::{ApiKey, shared::Shared};
use crate::metrics::{BackendSnapshot, milliseconds};
use cutline_error::Result;
use cutline_route::{BackendStatus, Config, Moment, Router};

/// The state of all backends. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Routes(Arc<Live>);

/// All backends and routes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, ToSchema)]
pub struct Board {
    /// In the order of the file.
    pub backends: Vec<BackendView>,
    /// In the order of the file.
    pub routes: Vec<RouteView>,
}

/// A backend.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct BackendView {
    /// Its name.
    pub name: String,
    /// `local`, `openai` or `ollama`.
    pub kind: &'static str,
    /// The model there; empty for the main model of this process.
    pub model: String,
    /// `local`, or `remote` if photos leave this machine on their way to it.
    pub privacy: &'static str,
    /// Whether it gets requests: `closed` if it does, `half_open` if it gets one to see whether it is well
    /// again, `open` if it gets none.
    pub state: &'static str,
    /// For how long it still gets none, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub open_for_ms: Option<f64>,
    /// For how long it asked to be left alone, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub paused_for_ms: Option<f64>,
    /// Failures since its last answer.
    pub consecutive_failures: u32,
    /// Requests that it works on.
    pub in_flight: usize,
    /// Answers since the start.
    pub answered: u64,
    /// Failures since the start.
    pub failed: u64,
    /// Its last failure: `connect`, `timeout`, …
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub last_failure: Option<&'static str>,
    /// The cost of its answers since the start, as far as it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    pub cost: Option<f64>,
    /// Answers whose cost is not known.
    pub answers_without_cost: u64,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Serialize, ToSchema)]
pub struct RouteView {
    /// Its name, which is also the name of a model.
    pub name: String,
    /// More names of models that mean it.
    pub models: Vec<String>,
    /// Whether it takes requests that name no model.
    pub default: bool,
    /// The names of its backends, tier by tier.
    pub tiers: Vec<Vec<String>>,
    /// Whether photos may leave the machine.
    pub allow_remote: bool,
}

impl Routes {
    pub(super) fn new(live: Arc<Live>) -> Self {
        Self(live)
    }

    #[cfg(test)]
    pub(super) fn live(&self) -> Arc<Live> {
        Arc::clone(&self.0)
    }

    /// Replaces backends and routes. Requests that are on their way end with those they began with. A backend
    /// that is the same in both, with the same key, keeps its state. Must be called within a runtime of tokio.
    ///
    /// # Errors
    /// [`Config`](cutline_error::ErrorKind::Config): an address cannot be used, or a model would have to be
    /// loaded. Then all stays as it is.
    pub fn replace(&self, config: Config, keys: Vec<Option<ApiKey>>) -> Result<()> {
        self.0.replace(config, keys)
    }

    /// Everything as it is now.
    #[must_use]
    pub fn board(&self) -> Board {
        let shared = self.0.shared();
        shared.with_router(|router, now| Board {
            backends: (0..router.config().backends.len())
                .map(|index| backend(router, index, now))
                .collect(),
            routes: router.config().routes.iter().map(|one| route(&shared, one)).collect(),
        })
    }

    /// The state of the backends, for Prometheus.
    #[must_use]
    pub fn snapshot(&self) -> Vec<BackendSnapshot> {
        self.0.shared().snapshot()
    }
}

fn route(shared: &Shared, route: &cutline_route::Route) -> RouteView {
    let name = |backend: usize| shared.config().backends[backend].name.clone();
    RouteView {
        name: route.name.clone(),
        models: route.models.clone(),
        default: route.default,
        tiers: route
            .tiers
            .iter()
            .map(|tier| tier.iter().map(|member| name(member.backend)).collect())
            .collect(),
        allow_remote: route.allow_remote,
    }
}

fn backend(router: &Router, index: usize, now: Moment) -> BackendView {
    let backend = router.backend(index);
    let BackendStatus {
        state,
        open_until,
        paused_until,
        consecutive_failures,
        in_flight,
        tally,
        last_failure,
    } = router.status(index, now);
    let left = |until: Moment| milliseconds(until.checked_sub(now).unwrap_or(Duration::ZERO));
    BackendView {
        name: backend.name.clone(),
        kind: backend.kind.as_str(),
        model: backend.model.clone(),
        privacy: backend.privacy.as_str(),
        state: state.as_str(),
        open_for_ms: open_until.map(left),
        paused_for_ms: paused_until.map(left),
        consecutive_failures,
        in_flight,
        answered: tally.answered,
        failed: tally.failed,
        last_failure,
        cost: tally.cost,
        answers_without_cost: tally.without_cost,
    }
}
