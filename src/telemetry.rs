//! Logs: one JSON object a line, or lines for people.

use tracing::Subscriber;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::registry;

use crate::config::{Level, LogSettings};

/// Where log lines go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// For a server: whoever runs it collects its output.
    Stdout,
    /// For a command, whose output is its result.
    Stderr,
}

/// Writes the process's logs from now on. Only the first call counts.
pub fn start(settings: LogSettings, output: Output) {
    // It fails only when there is a subscriber already, which is then the one to keep.
    let _ = match output {
        Output::Stdout => {
            tracing::subscriber::set_global_default(subscriber(settings, std::io::stdout))
        }
        Output::Stderr => {
            tracing::subscriber::set_global_default(subscriber(settings, std::io::stderr))
        }
    };
}

/// Lets panics write a log line too, which says more to a collector than text on standard error.
pub fn log_panics() {
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tracing::error!(error = %panic, "panic");
        default(panic);
    }));
}

/// What [`start`] installs, with the lines going to `writer`.
pub fn subscriber<W>(settings: LogSettings, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    // Other crates' lines are for their developers.
    let level = filter(settings.level);
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

fn filter(level: Level) -> LevelFilter {
    match level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    }
}
