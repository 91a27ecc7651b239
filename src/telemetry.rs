//! Logs, as one JSON object per line or as lines for people. Traces over OTLP, if the feature `otlp`
//! is enabled and an endpoint is set; their spans and events have the target `trace`.

#[cfg(feature = "otlp")]
mod otlp;

use tracing::level_filters::LevelFilter;
use tracing::{Span, Subscriber};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry;
use tracing_subscriber::registry::LookupSpan;

use crate::config::{LogSettings, TraceSettings};
use cutline_error::Result;

/// Where log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// For a server, whose output is collected.
    Stdout,
    /// For a command, whose standard output is its result.
    Stderr,
}

/// Writes the logs of the process from now on. Only the first call has an effect.
pub fn start(settings: LogSettings, output: Output) {
    // This fails only if there is a subscriber already, which then stays.
    let _ = match output {
        Output::Stdout => {
            tracing::subscriber::set_global_default(subscriber(settings, std::io::stdout))
        }
        Output::Stderr => {
            tracing::subscriber::set_global_default(subscriber(settings, std::io::stderr))
        }
    };
}

/// Sends the remaining traces when it is dropped.
#[derive(Debug)]
pub struct Traces {
    #[cfg(feature = "otlp")]
    _exporter: Option<otlp::Exporter>,
}

/// [`start`] for a server: its log on standard output, and its traces, if there is an endpoint.
///
/// # Errors
/// [`Config`](cutline_error::ErrorKind::Config): the endpoint cannot be used.
pub fn start_server(log: LogSettings, traces: &TraceSettings) -> Result<Traces> {
    #[cfg(feature = "otlp")]
    {
        let Some(endpoint) = &traces.endpoint else {
            start(log, Output::Stdout);
            return Ok(Traces { _exporter: None });
        };
        let exporter = otlp::Exporter::new(endpoint, &traces.service_name)?;
        let subscriber = subscriber(log, std::io::stdout).with(exporter.layer());
        let _ = tracing::subscriber::set_global_default(subscriber);
        Ok(Traces { _exporter: Some(exporter) })
    }
    #[cfg(not(feature = "otlp"))]
    {
        // The settings refuse an endpoint without the feature.
        let _ = traces;
        start(log, Output::Stdout);
        Ok(Traces {})
    }
}

/// Makes `span` part of the trace that a client's `traceparent` names. An invalid `traceparent` is
/// ignored, as <https://www.w3.org/TR/trace-context/> demands.
pub fn follow(span: &Span, traceparent: Option<&str>) {
    #[cfg(feature = "otlp")]
    if let Some(parent) = traceparent {
        otlp::follow(span, parent);
    }
    #[cfg(not(feature = "otlp"))]
    let _ = (span, traceparent);
}

/// Logs panics as well: log collectors seldom read the text on standard error.
pub fn log_panics() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tracing::error!(error = %panic, "a thread panicked");
        default(panic);
    }));
}

/// The subscriber that [`start`] installs, with its lines written to `writer`.
pub fn subscriber<W>(
    settings: LogSettings,
    writer: W,
) -> impl Subscriber + for<'s> LookupSpan<'s> + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    // Informative lines of other crates are for their developers.
    let level = LevelFilter::from_level(settings.level);
    let targets = Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_target(env!("CARGO_CRATE_NAME"), level);
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_target(false);
    let lines = if settings.human {
        lines.with_ansi(false).boxed()
    } else {
        lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed()
    };
    registry().with(lines.with_filter(targets))
}
