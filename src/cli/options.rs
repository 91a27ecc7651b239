//! Caption parameters as options.

use std::sync::LazyLock;

use clap::{Arg, ArgMatches, Command};

use crate::captioner::CaptionParams;
use cutline_error::{Error, Result};

static PARAMETER_OPTIONS: LazyLock<Vec<(String, &'static str, &'static str)>> =
    LazyLock::new(|| {
        PARAMETERS.iter().map(|(name, help)| (name.replace('_', "-"), *name, *help)).collect()
    });

/// The parameters that mean something on a command line, and what they mean. `stream`, `cache` and
/// `colors` do not: there is nothing to stream to, and no cache outlives the command.
const PARAMETERS: [(&str, &str); 15] = [
    ("prompt", "Text that the caption continues"),
    ("max_new_tokens", "Most tokens of a caption [default: 20]"),
    ("min_new_tokens", "Fewest tokens of a caption [default: 0]"),
    ("num_beams", "Beam search with this many beams, 1 to 10 [default: 1]"),
    ("num_captions", "Captions an image, 1 to 10 [default: 1]"),
    ("do_sample", "Sample words instead of taking the likeliest"),
    ("temperature", "Temperature of sampling [default: 1.0]"),
    ("top_k", "Sample among this many likeliest tokens, 0 for all [default: 50]"),
    ("top_p", "Sample among the likeliest tokens up to this probability [default: 1.0]"),
    ("seed", "Seed of sampling: the same seed gives the same caption"),
    ("repetition_penalty", "Above 1 discourages repetitions [default: 1.0]"),
    ("length_penalty", "Above 0 favours long beams, below 0 short ones [default: 1.0]"),
    (
        "no_repeat_ngram_size",
        "No sequence of this many tokens occurs twice, 0 for off [default: 0]",
    ),
    ("style", "caption, or alt_text for the alt of a web page [default: caption]"),
    ("max_chars", "Most characters of alt text, 20 to 1000 [default: 125]"),
];

/// `command` with the parameters of a caption as options.
pub(super) fn with_parameters(command: Command) -> Command {
    command.args(PARAMETER_OPTIONS.iter().map(|(option, name, help)| {
        let argument = Arg::new(*name)
            .long(option.as_str())
            .value_name("VALUE")
            .allow_negative_numbers(true)
            .help(*help)
            .help_heading("Captions");
        if *name == "do_sample" { flag(argument) } else { argument }
    }))
}

/// The value is optional and stands behind `=`, so that a file name after it is none.
fn flag(argument: Arg) -> Arg {
    argument.num_args(0..=1).require_equals(true).default_missing_value("true")
}

/// The parameters of the captions.
pub(super) fn parameters(matches: &ArgMatches) -> Result<CaptionParams> {
    let mut params = CaptionParams::default();
    for (name, _) in &PARAMETERS {
        if let Some(text) = matches.get_one::<String>(name) {
            params.set_text(name, text).map_err(as_option)?;
        }
    }
    params.validate().map_err(as_option)?;
    Ok(params)
}

/// The same sentence with the option's name in front, because that is what the user typed.
fn as_option(error: Error) -> Error {
    let Some(field) = error.field().map(str::to_owned) else { return error };
    Error::parameter(field.clone(), format!("--{}: {error}", field.replace('_', "-")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_parameter_but_three_is_an_option() {
        let names: Vec<&str> = CaptionParams::NAMES
            .into_iter()
            .filter(|name| !["stream", "cache", "colors"].contains(name))
            .collect();
        assert_eq!(PARAMETERS.map(|(name, _)| name).as_slice(), names);
    }

    #[test]
    fn the_command_line_is_sound() {
        crate::cli::command().debug_assert();
    }
}
