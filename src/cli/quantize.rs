//! `cutline model quantize`

use std::fmt::Write as _;
use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::builder::PossibleValuesParser;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use indicatif::{ProgressBar, ProgressStyle};

use super::{complain, options, print};
use crate::config::{Group, LogSettings, captioner_settings};
use crate::engine::quantize::{Destination, Quantized, TensorType, quantize};
use crate::engine::source;
use crate::telemetry::{self, Output};
use cutline_error::{Error, Result};

pub(super) const NAME: &str = "quantize";

/// Steps of the bar.
const STEPS: f32 = 1000.0;

pub(super) fn command() -> Command {
    let command = Command::new(NAME)
        .about("Writes a model with smaller weights, as GGUF")
        .arg(
            Arg::new("in").value_name("IN").required(true).help(
                "embedded, a folder, a .gguf file, or organisation/name[@revision] on the hub",
            ),
        )
        .arg(
            Arg::new("out")
                .value_name("OUT")
                .help("A file in .gguf, or a folder for model.gguf; config and tokenizer go beside")
                .value_parser(value_parser!(PathBuf))
                .required(true),
        )
        .arg(
            Arg::new("type")
                .long("type")
                .value_name("TYPE")
                .help("Type of the matrices")
                .value_parser(PossibleValuesParser::new(TensorType::NAMES))
                .required(true),
        )
        .arg(
            Arg::new("force")
                .long("force")
                .help("Overwrite files that are there")
                .action(ArgAction::SetTrue),
        )
        .after_help(
            "Examples:\n  \
             cutline model quantize embedded small-q8 --type q8_0\n  \
             cutline model quantize ./blip-large blip-large-q4k --type q4_k\n\n\
             Matrices whose rows do not fill the blocks of a type become q8_0, or else f16; norms, \
             biases and positions stay f32. The settings of the hub are read from the environment \
             and from .env.",
        );
    options::with_settings(command, &[Group::Logs])
}

pub(super) fn run(matches: &ArgMatches) -> Result<ExitCode> {
    let mut values = options::values(matches, &[Group::Logs])?;
    if let Some(model) = matches.get_one::<String>("in") {
        values.set_option("MODEL", model.clone());
    }
    telemetry::start(LogSettings::for_command(&values)?, Output::Stderr);
    let settings = captioner_settings(&values)?;
    let (Some(kind), Some(out)) =
        (matches.get_one::<String>("type"), matches.get_one::<PathBuf>("out"))
    else {
        return Err(Error::internal("clap let a required argument go missing"));
    };
    let kind: TensorType = kind.parse()?;
    let files = source::open(&settings.model, &settings.hub)?;

    let bar = bar();
    let result =
        quantize(&files, kind, &Destination::new(out, matches.get_flag("force")), &mut |share| {
            bar.set_position((share * STEPS) as u64);
        });
    bar.finish_and_clear();
    let quantized = result?;
    for line in substitutes(&quantized, kind) {
        complain(&line);
    }
    print(&summary(&quantized, kind))?;
    Ok(ExitCode::SUCCESS)
}

/// A bar on a terminal, nothing elsewhere.
fn bar() -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("quantising {wide_bar} {percent:>3} %");
    ProgressBar::new(STEPS as u64)
        .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Which matrices could not be written as they were wanted, a line for each kind of layer.
fn substitutes(quantized: &Quantized, wanted: TensorType) -> Vec<String> {
    let block = wanted.block();
    let lines = quantized.plan.substitutes.iter().map(|((kind, names), count)| {
        format!("{kind} instead of {wanted}, whose rows fill blocks of {block}: {count} × {names}")
    });
    lines.collect()
}

fn summary(quantized: &Quantized, wanted: TensorType) -> String {
    let counts = quantized.plan.counts();
    let mut types = String::new();
    for (place, (kind, count)) in counts.iter().enumerate() {
        let comma = if place == 0 { "" } else { ", " };
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

/// Bytes for people, in powers of ten as disks count.
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
    fn sizes_are_for_people() {
        assert_eq!(size(210_024), "210.0 kB");
        assert_eq!(size(67_699_386), "67.7 MB");
        assert_eq!(size(1_879_000_000), "1.88 GB");
    }
}
