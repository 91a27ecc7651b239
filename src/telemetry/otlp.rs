//! Traces to an OpenTelemetry collector: OTLP over HTTP, as protobuf.
//!
//! A thread of the SDK sends the spans, so a slow or missing collector does not delay requests; spans
//! that do not fit into the SDK's queue are dropped. The SDK itself reads further variables, such as
//! `OTEL_TRACES_SAMPLER` and `OTEL_EXPORTER_OTLP_HEADERS`.

use std::collections::HashMap;
use std::time::Duration;

use async_trait::async_trait;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::TracerProvider;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::{Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::Layer;
use tracing_subscriber::registry::LookupSpan;

use cutline_error::{Error, ErrorKind, Result};

/// How long one delivery may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The target of the spans and events of traces.
const TARGET: &str = "trace";

/// Sends traces. When it is dropped, it sends the remaining ones.
#[derive(Debug)]
pub(super) struct Exporter {
    provider: SdkTracerProvider,
}

impl Exporter {
    /// Connects to the collector at `endpoint`, an address without `/v1/traces`.
    pub(super) fn new(endpoint: &str, service_name: &str) -> Result<Self> {
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(Client::new())
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(format!("{endpoint}/v1/traces"))
            .with_timeout(TIMEOUT)
            .build()
            .map_err(|error| {
                Error::new(
                    ErrorKind::Config,
                    format!(
                        "OTEL_EXPORTER_OTLP_ENDPOINT={endpoint} cannot be used ({error}); give \
                         the address of a collector, such as http://localhost:4318"
                    ),
                )
                .with_source(error)
            })?;
        let resource = Resource::builder()
            .with_service_name(service_name.to_owned())
            .with_attribute(opentelemetry::KeyValue::new(
                "service.version",
                env!("CARGO_PKG_VERSION"),
            ))
            .build();
        let provider = SdkTracerProvider::builder()
            .with_resource(resource)
            .with_batch_exporter(exporter)
            .build();
        Ok(Self { provider })
    }

    /// The layer that turns spans of this crate into spans of traces.
    pub(super) fn layer<S>(&self) -> impl Layer<S> + Send + Sync + use<S>
    where
        S: Subscriber + for<'s> LookupSpan<'s> + Send + Sync,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer(env!("CARGO_PKG_NAME")))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            // Most of a stage runs on another thread, which would count as idle time.
            .with_tracked_inactivity(false)
            .with_filter(Targets::new().with_target(TARGET, LevelFilter::INFO))
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        if let Err(error) = self.provider.shutdown() {
            tracing::warn!(%error, "the last traces were not delivered");
        }
    }
}

/// Makes `span` a child of the span that `traceparent` names.
pub(super) fn follow(span: &Span, traceparent: &str) {
    let carrier = HashMap::from([("traceparent".to_owned(), traceparent.to_owned())]);
    let context = TraceContextPropagator::new().extract(&carrier);
    // This fails only without the layer, and then there are no traces.
    let _ = span.set_parent(context);
}

/// The HTTP client that the hub uses too. It blocks only the thread of the SDK.
#[derive(Debug)]
struct Client {
    agent: ureq::Agent,
}

impl Client {
    fn new() -> Self {
        let config = ureq::Agent::config_builder()
            .timeout_global(Some(TIMEOUT))
            .http_status_as_error(false)
            .build();
        Self { agent: config.into() }
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(
        &self,
        request: Request<Bytes>,
    ) -> std::result::Result<Response<Bytes>, HttpError> {
        let (parts, body) = request.into_parts();
        let request = Request::from_parts(parts, body.to_vec());
        let (parts, mut body) = self.agent.run(request)?.into_parts();
        Ok(Response::from_parts(parts, Bytes::from(body.read_to_vec()?)))
    }
}
