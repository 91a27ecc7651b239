//! What happens on routes. All labels are names from the file of routes, and words of the program.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::{Histograms, seconds};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AttemptLabels {
    backend: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FailoverLabels {
    route: String,
    from: String,
    to: String,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BackendLabel {
    backend: String,
}

pub(super) struct BackendMetrics {
    attempts: Family<AttemptLabels, Counter>,
    seconds: Histograms<BackendLabel>,
    failovers: Family<FailoverLabels, Counter>,
    cost: Family<BackendLabel, Counter<f64, AtomicU64>>,
}

impl Default for BackendMetrics {
    fn default() -> Self {
        Self {
            attempts: Family::default(),
            seconds: Family::new_with_constructor(seconds),
            failovers: Family::default(),
            cost: Family::default(),
        }
    }
}

impl BackendMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        registry.register(
            "backend_attempts",
            "Requests to backends of routes, by how they ended",
            self.attempts.clone(),
        );
        registry.register(
            "backend_duration_seconds",
            "Time of a request to a backend",
            self.seconds.clone(),
        );
        registry.register(
            "backend_failovers",
            "Requests that another backend got after one had failed",
            self.failovers.clone(),
        );
        registry.register(
            "backend_cost",
            "Known costs of answers, in the currency of the prices",
            self.cost.clone(),
        );
    }

    pub(super) fn attempt(&self, backend: &str, outcome: &'static str, took: Duration) {
        let backend = backend.to_owned();
        let labels = AttemptLabels { backend: backend.clone(), outcome };
        self.attempts.get_or_create(&labels).inc();
        self.seconds.get_or_create(&BackendLabel { backend }).observe(took.as_secs_f64());
    }

    pub(super) fn failover(&self, route: &str, from: &str, to: &str, reason: &'static str) {
        let [route, from, to] = [route, from, to].map(str::to_owned);
        self.failovers.get_or_create(&FailoverLabels { route, from, to, reason }).inc();
    }

    pub(super) fn cost(&self, backend: &str, cost: f64) {
        self.cost.get_or_create(&BackendLabel { backend: backend.to_owned() }).inc_by(cost);
    }
}
