//! Caption parameters as options.

use std::sync::LazyLock;

use clap::{Arg, ArgMatches, Command};

use crate::captioner::{CaptionParams, Parameter, ParameterFields, TextUse};
use cutline_error::{Error, Result};

static PARAMETER_OPTIONS: LazyLock<Vec<(String, &'static Parameter)>> = LazyLock::new(|| {
    let parameters = Parameter::all().iter().filter(|one| !NO_OPTION.contains(&one.name()));
    parameters.map(|one| (one.name().replace('_', "-"), one)).collect()
});

/// Parameters that mean nothing on a command line: there is nothing to stream to, no cache outlives
/// the command, colours are always part of the output, the option `--model` says what is loaded, and there is
/// no other model that scores texts.
const NO_OPTION: [&str; 5] = ["model", "stream", "cache", "colors", "rerank"];

/// `command` with the parameters of a caption as options.
pub(super) fn with_parameters(command: Command) -> Command {
    with(command, "Captions", |_| true)
}

/// `command` with the parameters of an answer as options.
pub(super) fn with_answer_parameters(command: Command) -> Command {
    let names = TextUse::Ask.names();
    with(command, "Answers", |parameter| names.contains(&parameter.name()))
}

fn with(command: Command, heading: &'static str, wanted: impl Fn(&Parameter) -> bool) -> Command {
    let wanted = PARAMETER_OPTIONS.iter().filter(|(_, parameter)| wanted(parameter));
    command.args(wanted.map(|(option, parameter)| {
        let argument = Arg::new(parameter.name())
            .long(option.as_str())
            .value_name("VALUE")
            .allow_negative_numbers(true)
            .help(parameter.help())
            .help_heading(heading);
        if parameter.is_flag() { flag(argument) } else { argument }
    }))
}

/// The value is optional and follows `=`, so that a file name after the option is not its value.
fn flag(argument: Arg) -> Arg {
    argument.num_args(0..=1).require_equals(true).default_missing_value("true")
}

/// The parameters of the captions or answers.
pub(super) fn parameters(matches: &ArgMatches) -> Result<CaptionParams> {
    let mut fields = ParameterFields::default();
    for (_, parameter) in PARAMETER_OPTIONS.iter() {
        // A command may have some of them only.
        if let Ok(Some(text)) = matches.try_get_one::<String>(parameter.name()) {
            fields.add_text(parameter.name(), text).map_err(as_option)?;
        }
    }
    fields.finish().map_err(as_option)
}

/// The same message with the option's name in front, because that is what the user typed.
fn as_option(error: Error) -> Error {
    let Some(field) = error.field().map(str::to_owned) else { return error };
    Error::parameter(field.clone(), format!("--{}: {error}", field.replace('_', "-")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_parameter_but_four_is_an_option() {
        assert_eq!(PARAMETER_OPTIONS.len() + NO_OPTION.len(), Parameter::all().len());
    }

    #[test]
    fn the_command_line_is_sound() {
        crate::cli::command().debug_assert();
    }
}
