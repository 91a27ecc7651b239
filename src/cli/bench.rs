//! `cutline bench`

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgMatches, Command, value_parser};
use serde::Serialize;

use super::{options, print};
use crate::config::{Group, LogSettings, captioner_settings};
use crate::engine::bench::{Measured, Workload, measure, states};
use crate::engine::{self, EngineInfo, source};
use crate::telemetry::{self, Output};
use cutline_error::{Error, ErrorKind, Result};

pub(super) const NAME: &str = "bench";
const GROUPS: [Group; 2] = [Group::Model, Group::Logs];

pub(super) fn command() -> Command {
    let number = |name: &'static str, default: &'static str, help: &'static str| {
        Arg::new(name)
            .long(name)
            .value_name("N")
            .help(help)
            .value_parser(value_parser!(u32).range(1..))
            .default_value(default)
    };
    let command = Command::new(NAME)
        .about("Times the model on random images and prints one line of JSON")
        .arg(number("batch", "1", "Images that are captioned together"))
        .arg(number("new-tokens", "10", "Tokens of every caption, no more and no fewer"))
        .arg(number("iterations", "10", "Measured passes, after one that is not counted"))
        .arg(
            Arg::new("states")
                .long("states")
                .value_name("FILE")
                .help("Also write the vision tower's output of one image, f32 in little endian")
                .value_parser(value_parser!(PathBuf)),
        )
        .after_help(
            "Times are medians in milliseconds, of one image's share. A folder with config.json \
             and weights is enough: nothing is decoded to text.\n\n\
             Examples:\n  \
             cutline bench\n  \
             cutline bench --model ./blip-base --precision f32 --batch 16 --iterations 5",
        );
    options::with_settings(command, &GROUPS)
}

pub(super) fn run(matches: &ArgMatches) -> Result<ExitCode> {
    let values = options::values(matches, &GROUPS)?;
    telemetry::start(LogSettings::for_command(&values)?, Output::Stderr);
    let settings = captioner_settings(&values)?;
    let number = |name: &str| matches.get_one::<u32>(name).map_or(1, |&number| number as usize);
    let workload = Workload {
        batch: number("batch"),
        new_tokens: number("new-tokens"),
        iterations: number("iterations"),
    };
    let files = source::open(&settings.model, &settings.hub)?;
    let mut engine = engine::load(&files, settings.engine)?;
    let measured = measure(&mut engine, workload)?;
    if let Some(path) = matches.get_one::<PathBuf>("states") {
        write_states(&states(&mut engine)?, path)?;
    }
    let report = Report::new(&files.id, engine.info(), workload, measured);
    let json = serde_json::to_string(&report)
        .map_err(|error| Error::internal("the times cannot be printed").with_source(error))?;
    print(&format!("{json}\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// The line that is printed; scripts know its keys and their order.
#[derive(Debug, Serialize)]
struct Report<'a> {
    model: &'a str,
    precision: &'a str,
    kernels: &'a str,
    threads: usize,
    batch: usize,
    vision_ms: f64,
    cross_kv_ms: f64,
    decode_ms: f64,
    end_to_end_ms: f64,
    images_per_second: f64,
    device: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    gpu: Option<&'a str>,
}

impl<'a> Report<'a> {
    fn new(model: &'a str, info: &'a EngineInfo, workload: Workload, times: Measured) -> Self {
        Self {
            model,
            precision: &info.precision,
            kernels: &info.kernels,
            threads: info.threads,
            batch: workload.batch,
            vision_ms: milliseconds(times.vision),
            cross_kv_ms: milliseconds(times.cross_kv),
            decode_ms: milliseconds(times.decode),
            end_to_end_ms: milliseconds(times.end_to_end),
            images_per_second: rounded(1.0 / times.end_to_end.as_secs_f64()),
            device: &info.device,
            gpu: info.gpu.as_ref().map(|gpu| gpu.name.as_str()),
        }
    }
}

fn write_states(states: &[f32], path: &Path) -> Result<()> {
    let bytes: Vec<u8> = states.iter().flat_map(|number| number.to_le_bytes()).collect();
    fs::write(path, bytes).map_err(|error| {
        let path = path.display();
        Error::new(ErrorKind::Io, format!("{path} cannot be written ({error}); name another file"))
    })
}

fn milliseconds(time: Duration) -> f64 {
    rounded(time.as_secs_f64() * 1e3)
}

/// To three places: what lies behind them is noise.
fn rounded(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}
