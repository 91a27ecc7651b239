//! `cutline bench`

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{ArgMatches, Args, Command, FromArgMatches, value_parser};
use serde::Serialize;

use super::{print, unparsed};
use crate::config::{self, Group, LogSettings, Values, captioner_settings};
use crate::engine::bench::{Measured, Workload, measure, states};
use crate::engine::{self, EngineInfo, source};
use crate::metrics::milliseconds;
use crate::telemetry::{self, Output};
use cutline_error::{Error, ErrorKind, Result};

pub(super) const NAME: &str = "bench";
const GROUPS: [Group; 2] = [Group::Model, Group::Logs];

#[derive(Args)]
struct BenchArgs {
    /// Images that are captioned together
    #[arg(long, value_name = "N", default_value = "1", value_parser = value_parser!(u32).range(1..))]
    batch: u32,
    /// Tokens of each caption, no more and no fewer
    #[arg(long, value_name = "N", default_value = "10", value_parser = value_parser!(u32).range(1..))]
    new_tokens: u32,
    /// Measured passes, after one warm-up pass
    #[arg(long, value_name = "N", default_value = "10", value_parser = value_parser!(u32).range(1..))]
    iterations: u32,
    /// Write the vision tower's output for one image to this file, as little-endian f32
    #[arg(long, value_name = "FILE")]
    states: Option<PathBuf>,
}

pub(super) fn command() -> Command {
    let command = BenchArgs::augment_args(Command::new(NAME))
        .about("Measures the model on random images and prints one line of JSON")
        .after_help(
            "Times are medians in milliseconds per image. No tokenizer is needed: a folder with \
             config.json and weights is enough.\n\n\
             Examples:\n  \
             cutline bench\n  \
             cutline bench --model ./blip-base --precision f32 --batch 16 --iterations 5",
        );
    config::with_settings(command, &GROUPS)
}

pub(super) fn run(matches: &ArgMatches) -> Result<ExitCode> {
    let args = BenchArgs::from_arg_matches(matches).map_err(unparsed)?;
    let values = Values::of_command(matches)?;
    telemetry::start(LogSettings::for_command(&values)?, Output::Stderr);
    let settings = captioner_settings(&values)?;
    let workload = Workload {
        batch: args.batch as usize,
        new_tokens: args.new_tokens as usize,
        iterations: args.iterations as usize,
    };
    let files = source::open(&settings.model, &settings.hub)?;
    let mut engine = engine::load(&files, settings.engine)?;
    let measured = measure(&mut engine, workload)?;
    if let Some(path) = &args.states {
        write_states(&states(&mut engine)?, path)?;
    }
    let report = BenchReport::new(&files.id, engine.info(), workload, measured);
    let json = serde_json::to_string(&report)
        .map_err(|error| Error::internal("the times cannot be printed").with_source(error))?;
    print(&format!("{json}\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// The printed line. Scripts depend on its keys and their order.
#[derive(Debug, Serialize)]
struct BenchReport<'a> {
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

impl<'a> BenchReport<'a> {
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

/// To three decimal places: further ones are noise.
fn rounded(number: f64) -> f64 {
    (number * 1e3).round() / 1e3
}
