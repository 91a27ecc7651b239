//! `cutline serve`

use std::io;
use std::process::ExitCode;

use clap::{ArgMatches, Command};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use super::runtime;
use super::signals::{self, Signals, TERMINATED};
use crate::config::{self, Group, Settings, Values};
use crate::http::{self, Listeners, Shutdown};
use crate::telemetry;
use cutline_error::{Error, ErrorKind, Result};

pub(super) const NAME: &str = "serve";

pub(super) fn command() -> Command {
    let command = Command::new(NAME)
        .about("Serves captions over HTTP")
        .after_help(
            "Examples:\n  \
             cutline serve\n  \
             cutline serve --host 0.0.0.0 --port 8080 --model Salesforce/blip-image-captioning-base\n  \
             curl -F image=@holiday.jpg http://127.0.0.1:8000/caption/generate",
        );
    config::with_server_settings(command, &Group::ALL)
}

pub(super) fn run(matches: &ArgMatches) -> Result<ExitCode> {
    let settings = Settings::new(&Values::of_command(matches)?)?;
    let _traces = telemetry::start_server(settings.log, &settings.traces)?;
    telemetry::log_panics();
    let runtime = runtime()?;
    let result = runtime.block_on(async {
        let mut signals = Signals::new()?;
        let reloads = signals::reloads(settings.routing.file.is_some())?;
        let http = bind(&settings.host, "PORT", settings.port).await?;
        let grpc = match settings.grpc_port {
            Some(port) => Some(bind(&settings.host, "GRPC_PORT", port).await?),
            None => None,
        };
        let listeners = Listeners { http, grpc };
        let (stop, stopped) = oneshot::channel();
        let serving = http::run(listeners, settings, reloads, async {
            // Never dropped before it is used: both live in this block.
            stopped.await.unwrap_or_default()
        });
        let second_signal = async {
            let _ = stop.send(if signals.next().await == TERMINATED {
                Shutdown::Delayed
            } else {
                // Ctrl-C: a person is waiting.
                Shutdown::Immediate
            });
            signals.next().await
        };
        tokio::select! {
            result = Box::pin(serving) => result.map(|()| ExitCode::SUCCESS),
            // Accepted requests are dropped; traces are still sent, when `_traces` is dropped.
            status = second_signal => Ok(ExitCode::from(status)),
        }
    });
    // Loading a model cannot be interrupted, so nothing waits for it.
    runtime.shutdown_background();
    result
}

async fn bind(host: &str, setting: &str, port: u16) -> Result<TcpListener> {
    TcpListener::bind((host, port)).await.map_err(|error| {
        let (kind, remedy) = match error.kind() {
            io::ErrorKind::AddrInUse => (
                ErrorKind::Io,
                format!("stop the program that uses the port, or set another {setting}"),
            ),
            io::ErrorKind::PermissionDenied => {
                (ErrorKind::Config, format!("set {setting} to a number above 1023"))
            }
            _ => (ErrorKind::Config, "set HOST to an address of this machine".to_owned()),
        };
        Error::new(
            kind,
            format!("cannot listen on HOST={host} {setting}={port} ({error}); {remedy}"),
        )
    })
}
