//! `cutline model info`; [`quantize`] has a file of its own.

use std::process::ExitCode;

use clap::{Arg, ArgMatches, Command};

use super::{options, print, quantize};
use crate::captioner::Captioner;
use crate::config::{Group, LogSettings, captioner_settings};
use crate::telemetry::{self, Output};
use cutline_error::{Error, Result};

pub(super) const NAME: &str = "model";
const GROUPS: [Group; 3] = [Group::Model, Group::Images, Group::Logs];

pub(super) fn command() -> Command {
    let info = Command::new("info")
        .about("Loads a model and prints what GET /model/info says, as JSON")
        .arg(
            Arg::new("which")
                .value_name("MODEL")
                .help("A folder, a .gguf file, or organisation/name[@revision] on the hub"),
        )
        .after_help(
            "Examples:\n  \
             cutline model info\n  \
             cutline model info Salesforce/blip-image-captioning-base",
        );
    Command::new(NAME)
        .about("Tells about models, and makes them smaller")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(options::with_settings(info, &GROUPS))
        .subcommand(quantize::command())
}

pub(super) fn run(matches: &ArgMatches) -> Result<ExitCode> {
    match matches.subcommand() {
        Some(("info", matches)) => info(matches),
        Some((quantize::NAME, matches)) => quantize::run(matches),
        _ => Err(Error::internal("cutline model has the commands info and quantize")),
    }
}

fn info(matches: &ArgMatches) -> Result<ExitCode> {
    let mut values = options::values(matches, &GROUPS)?;
    if let Some(which) = matches.get_one::<String>("which") {
        values.set_option("MODEL", which.clone());
    }
    telemetry::start(LogSettings::for_command(&values)?, Output::Stderr);
    let captioner = Captioner::load(&captioner_settings(&values)?)?;
    let json = serde_json::to_string_pretty(captioner.info())
        .map_err(|error| Error::internal("the model cannot be described").with_source(error))?;
    print(&format!("{json}\n"))?;
    Ok(ExitCode::SUCCESS)
}
