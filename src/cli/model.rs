//! `cutline model info` and `cutline model quantize`

use std::fmt::Write as _;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::PossibleValuesParser;
use clap::{ArgMatches, Args, Command, FromArgMatches};
use indicatif::{ProgressBar, ProgressStyle};

use super::{complain, print, unparsed};
use crate::captioner::Captioner;
use crate::config::{self, Group, LogSettings, Values, captioner_settings, model_source};
use crate::engine::quantize::{Destination, Quantized, TensorType, quantize};
use crate::engine::source;
use crate::telemetry::{self, Output};
use cutline_error::{Error, Result};

pub(super) const NAME: &str = "model";
const INFO: &str = "info";
const QUANTIZE: &str = "quantize";
const INFO_GROUPS: [Group; 3] = [Group::Model, Group::Images, Group::Logs];

/// Steps of the progress bar.
const STEPS: f32 = 1000.0;

#[derive(Args)]
struct InfoArgs {
    /// A folder, a .gguf file, or organisation/name[@revision] on the hub
    #[arg(value_name = "MODEL")]
    which: Option<String>,
}

#[derive(Args)]
struct QuantizeArgs {
    /// embedded, a folder, a .gguf file, or organisation/name[@revision] on the hub
    #[arg(value_name = "IN")]
    source: String,
    /// A .gguf file, or a folder for model.gguf; config and tokenizer are written next to it
    #[arg(value_name = "OUT")]
    out: PathBuf,
    /// Type of the matrices
    #[arg(long = "type", value_name = "TYPE",
          value_parser = PossibleValuesParser::new(TensorType::NAMES))]
    tensor_type: String,
    /// Overwrite existing files
    #[arg(long)]
    force: bool,
}

pub(super) fn command() -> Command {
    let info = InfoArgs::augment_args(Command::new(INFO))
        .about("Loads a model and prints the answer of GET /model/info, as JSON")
        .after_help(
            "Examples:\n  \
             cutline model info\n  \
             cutline model info Salesforce/blip-image-captioning-base",
        );
    let quantize = QuantizeArgs::augment_args(Command::new(QUANTIZE))
        .about("Writes a model with smaller weights, as GGUF")
        .after_help(
            "Examples:\n  \
             cutline model quantize embedded small-q8 --type q8_0\n  \
             cutline model quantize ./blip-large blip-large-q4k --type q4_k\n\n\
             A matrix whose rows do not fill the blocks of a type is written as q8_0, or else as f16. \
             Norms, biases and positions stay f32. The settings of the hub are read from the \
             environment and from --env-file.",
        );
    Command::new(NAME)
        .about("Describes models, and makes them smaller")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(config::with_settings(info, &INFO_GROUPS))
        .subcommand(config::with_settings(quantize, &[Group::Logs]))
}

pub(super) fn run(matches: &ArgMatches) -> Result<ExitCode> {
    match matches.subcommand() {
        Some((INFO, matches)) => info(matches),
        Some((QUANTIZE, matches)) => write_quantized(matches),
        _ => Err(Error::internal("cutline model has only the commands info and quantize")),
    }
}

fn info(matches: &ArgMatches) -> Result<ExitCode> {
    let args = InfoArgs::from_arg_matches(matches).map_err(unparsed)?;
    let mut values = Values::of_command(matches)?;
    if let Some(which) = args.which {
        values.set_option("MODEL", which);
    }
    telemetry::start(LogSettings::for_command(&values)?, Output::Stderr);
    let captioner = Captioner::load(&captioner_settings(&values)?)?;
    let json = serde_json::to_string_pretty(captioner.info())
        .map_err(|error| Error::internal("the model cannot be described").with_source(error))?;
    print(&format!("{json}\n"))?;
    Ok(ExitCode::SUCCESS)
}

fn write_quantized(matches: &ArgMatches) -> Result<ExitCode> {
    let args = QuantizeArgs::from_arg_matches(matches).map_err(unparsed)?;
    let mut values = Values::of_command(matches)?;
    values.set_option("MODEL", args.source);
    telemetry::start(LogSettings::for_command(&values)?, Output::Stderr);
    let (model, hub) = model_source(&values)?;
    let tensor_type: TensorType = args.tensor_type.parse()?;
    let files = source::open(&model, &hub)?;

    let bar = progress_bar();
    let destination = Destination::new(&args.out, args.force);
    let result = quantize(&files, tensor_type, &destination, &mut |share| {
        bar.set_position((share * STEPS) as u64);
    });
    bar.finish_and_clear();
    let quantized = result?;
    for line in substitutes(&quantized, tensor_type) {
        complain(&line);
    }
    print(&summary(&quantized, tensor_type))?;
    Ok(ExitCode::SUCCESS)
}

/// A bar on a terminal; elsewhere nothing.
fn progress_bar() -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("quantising {wide_bar} {percent:>3} %");
    ProgressBar::new(STEPS as u64)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// One line for each kind of layer whose matrices have another type than the one asked for.
fn substitutes(quantized: &Quantized, wanted: TensorType) -> Vec<String> {
    let block = wanted.block();
    let lines = quantized.plan.substitutes.iter().map(|((kind, names), count)| {
        format!(
            "{kind} instead of {wanted}, which needs rows in blocks of {block}: {count} × {names}"
        )
    });
    lines.collect()
}

fn summary(quantized: &Quantized, wanted: TensorType) -> String {
    let counts = quantized.plan.counts();
    let mut types = String::new();
    for (index, (kind, count)) in counts.iter().enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        let _ = write!(types, "{comma}{count} {kind}");
    }
    format!(
        "{}: {wanted}, {} tensors ({types}), {} before, {} after\n",
        quantized.path.display(),
        quantized.plan.tensors.len(),
        size(quantized.bytes_before),
        size(quantized.bytes_after),
    )
}

/// A size in decimal units.
fn size(bytes: u64) -> String {
    let bytes = bytes as f64;
    match bytes {
        1e9.. => format!("{:.2} GB", bytes / 1e9),
        1e6.. => format!("{:.1} MB", bytes / 1e6),
        _ => format!("{:.1} kB", bytes / 1e3),
    }
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_have_decimal_units() {
        assert_eq!(size(210_024), "210.0 kB");
        assert_eq!(size(67_699_386), "67.7 MB");
        assert_eq!(size(1_879_000_000), "1.88 GB");
    }
}
